"""Items of the queue as they are stored: rows, and what is sealed in them. Reads; decides nothing.

Reads many items with two statements, so that a list of fifty costs little more than one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import Connection, Row, select

from guardrails.answers import Finding, Status, Template, parse_finding
from serve.audit import schema
from serve.audit.keyring import AlteredError, DataKey, WrongKeyError
from serve.audit.reading import body_of, link_of
from serve.audit.records import AnswerRecord, FindingVerdict, RequestRecord, ReviewRecord
from serve.audit.store import Store, UnknownError, detail_place, key_place
from serve.review.states import State

MICROSECONDS = 1_000_000
# Of what several choices say of one finding, the first of these that is said.
_STRONGEST = (Status.PRESENT, Status.INDETERMINATE, Status.ABSENT)


class Detail(BaseModel):
    """What a review has come to. Sealed in its row."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    claimed_by: str | None = None
    acknowledged_by: str | None = None  # by hand, not by a claim
    closed_by: str | None = None
    findings: tuple[FindingVerdict, ...] = ()
    comment: str = ""
    amended: str | None = None
    seconds: float | None = None  # from claim to close


@dataclass(frozen=True, slots=True)
class Item:
    """What stands in the queue in clear. Times are microseconds since 1970."""

    review_id: str
    audit_id: str
    at: int
    state: State
    urgent: bool
    held: bool
    owner: int  # a term (Store.term) of the caller's name
    claimed_at: int | None
    acknowledged_at: int | None
    closed_at: int | None
    version: int
    detail: bytes | None  # sealed


@dataclass(frozen=True, slots=True)
class Content:
    """What is sealed in an item and its exchange."""

    key: DataKey
    detail: Detail
    request: RequestRecord
    answer: AnswerRecord
    history: tuple[tuple[int, ReviewRecord], ...]  # with the time of each, oldest first

    @property
    def status(self) -> Status | None:
        """What the first choice answers to a finding question."""
        if self.request.template is not Template.FINDING or not self.answer.choices:
            return None
        value: Finding = parse_finding(self.answer.choices[0].sent, self.request.format)
        return value.status

    @property
    def findings(self) -> dict[str, Status]:
        """What the draft says of each finding, all of its choices together."""
        said: dict[str, set[Status]] = {}
        for choice in self.answer.choices:
            for one in choice.findings:
                said.setdefault(one.finding, set()).add(one.status)
        return {
            name: next(status for status in _STRONGEST if status in statuses)
            for name, statuses in sorted(said.items())
        }


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An item whose content is not to be had: shredded, or not as it was stored."""

    shredded: bool


@dataclass(frozen=True, slots=True)
class Reminders:
    """How often somebody was told of an urgent item, and when they are told again."""

    sent: int
    failed: int
    next_at: int | None


def find(connection: Connection, review_id: str) -> Item:
    """An item's row.

    Raises:
        UnknownError: there is none.
    """
    row = connection.execute(
        select(schema.reviews).where(schema.reviews.c.review_id == review_id)
    ).first()
    if row is None:
        raise UnknownError()
    return item_of(row)


def reminders(connection: Connection, review_id: str) -> Reminders | None:
    """Of an urgent item; None of any other."""
    table = schema.escalations
    row = connection.execute(select(table).where(table.c.review_id == review_id)).first()
    return None if row is None else Reminders(row.sent, row.failed, row.next_at)


def item_of(row: Row[Any]) -> Item:
    """A row of ``reviews``."""
    fields = {name: getattr(row, name) for name in Item.__dataclass_fields__}
    return Item(**fields | {"detail": None if row.detail is None else bytes(row.detail)})


def contents(
    store: Store, connection: Connection, items: Collection[Item]
) -> dict[str, Content | Unreadable]:
    """What is sealed in items, by their review id. One that does not open spoils no other."""
    audit_ids = [item.audit_id for item in items]
    keys = schema.keys
    wrapped = {
        row.audit_id: row.wrapped
        for row in connection.execute(select(keys).where(keys.c.audit_id.in_(audit_ids)))
    }
    records = schema.records
    rows: dict[str, list[Row[Any]]] = {}
    for row in connection.execute(
        select(records)
        .where(
            records.c.audit_id.in_(audit_ids),
            records.c.kind.in_(("request", "answer", "review")),
            records.c.payload.is_not(None),
        )
        .order_by(records.c.at, records.c.seq)
    ):
        rows.setdefault(row.audit_id, []).append(row)
    return {
        item.review_id: _content(store, item, wrapped, rows.get(item.audit_id, ()))
        for item in items
    }


def content(store: Store, connection: Connection, item: Item) -> Content | Unreadable:
    """The same of one item."""
    return contents(store, connection, [item])[item.review_id]


def _content(
    store: Store, item: Item, wrapped: Mapping[str, bytes | None], rows: Iterable[Row[Any]]
) -> Content | Unreadable:
    sealed_key = wrapped.get(item.audit_id)
    if sealed_key is None:
        return Unreadable(shredded=item.audit_id in wrapped)
    try:
        key = store.keyring.unwrap(sealed_key, key_place(item.audit_id))
        return _opened(item, key, list(rows))
    except (AlteredError, WrongKeyError, ValidationError):
        return Unreadable(shredded=False)


def _opened(item: Item, key: DataKey, rows: Sequence[Row[Any]]) -> Content | Unreadable:
    links = [(link_of(row), bytes(row.payload)) for row in rows]
    requests = [body_of(RequestRecord, *one, key) for one in links if one[0].kind == "request"]
    answers = [body_of(AnswerRecord, *one, key) for one in links if one[0].kind == "answer"]
    if not requests or not answers or (item.detail is None and item.version > 1):
        return Unreadable(shredded=False)
    place = detail_place(item.review_id, item.version)
    sealed = None if item.detail is None else key.open(item.detail, place)
    return Content(
        key=key,
        detail=Detail() if sealed is None else Detail.model_validate_json(sealed),
        request=requests[0],
        answer=answers[0],
        history=tuple(
            (link.at, body_of(ReviewRecord, link, payload, key))
            for link, payload in links
            if link.kind == "review"
        ),
    )
