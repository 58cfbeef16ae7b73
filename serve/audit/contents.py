"""Whether everything that is sealed opens, and what belongs together is there.

For serve/audit/verify.py: opens contents with the store's keys, tells what is wrong with them, and
shows nothing of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy import Connection, Row, func, select

from serve.audit import schema
from serve.audit.chain import Link
from serve.audit.keyring import AlteredError, WrongKeyError
from serve.audit.problems import (
    BATCH,
    BEGINS,
    UNSEALED,
    Found,
    Kind,
    Problem,
    Progress,
    shredded_of,
)
from serve.audit.reading import body_of, link_of
from serve.audit.records import EscalationRecord, ReviewRecord
from serve.audit.store import Store, detail_place, key_place

_IMAGES = 16  # read at once: some are of a megabyte
# The state of a review after an action; the others keep it.
_AFTER = {
    "claim": "claimed",
    "release": "pending",
    "sign_off": "signed_off",
    "amend": "amended",
    "reject": "rejected",
}
_NAMES: Mapping[type, str] = {ReviewRecord: "review", EscalationRecord: "escalation"}
Body = TypeVar("Body", ReviewRecord, EscalationRecord)


@dataclass(slots=True)
class _Batch:
    """What a batch of records speaks of, to be looked up together."""

    keyless: list[Link] = field(default_factory=list)
    images: dict[bytes, Link] = field(default_factory=dict)
    answers: dict[str, tuple[Link, bool]] = field(default_factory=dict)  # whether urgent
    requests: dict[str, tuple[Link, str, bool]] = field(default_factory=dict)  # whose, whether held


@dataclass(frozen=True, slots=True)
class Contents:
    """Opens a store's contents, table by table.

    ``max_reminders`` is the setting of escalation. None: it is not known, and any number will do.
    """

    store: Store
    max_reminders: int | None = None

    def records(
        self,
        connection: Connection,
        rows: Sequence[Row[Any]],
        links: Sequence[Link],
        found: Found,
    ) -> None:
        """Opens records, ``rows`` with their exchanges' ``key_at`` and ``wrapped``."""
        batch = _Batch()
        for row, link in zip(rows, links, strict=True):
            if link.kind in UNSEALED:
                continue
            if row.key_at is None:
                found(_of(link, "missing", "the key of its exchange is not there"))
            elif link.kind in BEGINS and row.key_at != link.at:
                found(_of(link, "altered", "the time of its exchange's key is not its own"))
            elif row.payload is None:
                if row.wrapped is not None:
                    found(_of(link, "missing", "its content is gone, but its key is not"))
            elif row.wrapped is None:
                batch.keyless.append(link)
            else:
                try:
                    key = self.store.keyring.unwrap(row.wrapped, key_place(link.audit_id))
                    _note(batch, link, key.open(row.payload, link.place))
                except WrongKeyError as error:
                    found(_of(link, "unopenable", str(error)))
                except AlteredError:
                    found(_of(link, "unopenable", "neither its content nor its key may be whole"))
                except (ValueError, KeyError, TypeError):
                    found(_of(link, "altered", "its content is not of the form of its kind"))
        self._look_up(connection, batch, found)

    def _look_up(self, connection: Connection, batch: _Batch, found: Found) -> None:
        if batch.keyless:
            shredded = shredded_of(connection, {link.audit_id for link in batch.keyless})
            for link in batch.keyless:
                if link.audit_id not in shredded:
                    text = "its key is gone, and no record says it was shredded"
                    found(_of(link, "missing", text))
        if batch.images:
            table = schema.blobs
            query = select(table.c.name).where(table.c.name.in_(list(batch.images)))
            there = {bytes(name) for name in connection.scalars(query)}
            for name in batch.images.keys() - there:
                found(_of(batch.images[name], "missing", f"its image {name.hex()} is not there"))
        if batch.answers or batch.requests:
            self._compare_queued(connection, batch, found)

    def _compare_queued(self, connection: Connection, batch: _Batch, found: Found) -> None:
        """Whether the queue has the reviews of a batch, as they were written."""
        reviews, escalations = schema.reviews, schema.escalations
        rows = connection.execute(
            select(
                reviews.c.audit_id,
                reviews.c.urgent,
                reviews.c.held,
                reviews.c.owner,
                escalations.c.review_id.label("escalated"),
            )
            .outerjoin(escalations, escalations.c.review_id == reviews.c.review_id)
            .where(reviews.c.audit_id.in_(list(batch.answers.keys() | batch.requests.keys())))
        )
        queued = {row.audit_id: row for row in rows}
        for audit_id, (link, urgent) in batch.answers.items():
            row = queued.get(audit_id)
            if row is None:
                found(_of(link, "missing", "its review is not there"))
            elif bool(row.urgent) is not urgent:
                found(_of(link, "altered", "whether its review is urgent is not as it was written"))
            elif urgent and row.escalated is None:
                found(_of(link, "missing", "its escalation is not there"))
        for audit_id, (link, principal, held) in batch.requests.items():
            row = queued.get(audit_id)
            if row is None:
                continue  # none was written without an answer, which tells of what is gone
            if bool(row.held) is not held:
                found(_of(link, "altered", "whether its review is held is not as it was written"))
            elif row.owner != self.store.term("principal", principal):
                found(_of(link, "altered", "its review is another caller's than it was written"))

    def images(self, connection: Connection, found: Found, progress: Progress) -> int:
        """Opens every image; how many there are."""
        table = schema.blobs
        total = connection.scalar(select(func.count()).select_from(table)) or 0
        done, last = 0, b""
        query = select(table.c.name, table.c.wrapped, table.c.payload).order_by(table.c.name)
        while rows := connection.execute(query.where(table.c.name > last).limit(_IMAGES)).all():
            for row in rows:
                last = bytes(row.name)
                if not self._opens(last, row.wrapped, row.payload):
                    text = f"the image {last.hex()} does not open"
                    found(Problem("unopenable", "images", 0, None, text))
            done += len(rows)
            progress(done, total, "images")
        return total

    def _opens(self, name: bytes, wrapped: bytes, payload: bytes) -> bool:
        try:
            content = self.store.keyring.unwrap(wrapped, name).open(payload, name)
        except (AlteredError, WrongKeyError):
            return False
        return self.store.blob_name(content) == name

    def reviews(self, connection: Connection, found: Found) -> None:
        """Whether reviews are as their records left them."""
        table, keys = schema.reviews, schema.keys
        query = (
            select(table, keys.c.wrapped)
            .outerjoin(keys, keys.c.audit_id == table.c.audit_id)
            .order_by(table.c.review_id)
            .limit(BATCH)
        )
        last = ""
        while rows := connection.execute(query.where(table.c.review_id > last)).all():
            last = rows[-1].review_id
            whole = {row.audit_id: row for row in rows if row.wrapped is not None}
            acts = self._acts(connection, whole)
            for row in whole.values():
                if text := self._wrong(row, acts.get(row.review_id, ())):
                    found(Problem("altered", "reviews", 0, row.audit_id, text))

    def escalations(self, connection: Connection, found: Found) -> None:
        """Whether somebody is still told of every urgent review that nobody has acknowledged."""
        reviews, table, keys = schema.reviews, schema.escalations, schema.keys
        # serve/escalation/outbox.py: what has no time, or one before 0, is never due.
        silent = table.c.next_at.is_(None) | (table.c.next_at < 0)
        rows = connection.execute(
            select(reviews.c.review_id, reviews.c.audit_id, table.c.sent, keys.c.wrapped)
            .outerjoin(table, table.c.review_id == reviews.c.review_id)
            .join(keys, keys.c.audit_id == reviews.c.audit_id)
            .where(reviews.c.urgent.is_(True), reviews.c.state.in_(("pending", "claimed")))
            .where(reviews.c.acknowledged_at.is_(None), keys.c.wrapped.is_not(None), silent)
        ).all()
        for row in rows:
            wrapped = {row.audit_id: row.wrapped}
            records = self._bodies(connection, EscalationRecord, wrapped)
            told = sum(record.outcome == "sent" for record in records)
            if min(row.sent or 0, told) <= (self.max_reminders or 0):
                text = (
                    f"nobody is told any more of the urgent review {row.review_id}, which nobody "
                    f"has acknowledged; its records say {told} times so far"
                )
                found(Problem("altered", "escalations", 0, row.audit_id, text))

    def _acts(
        self, connection: Connection, whole: Mapping[str, Row[Any]]
    ) -> dict[str, list[ReviewRecord]]:
        """What reviewers did, by review."""
        acts = defaultdict(list)
        wrapped = {audit_id: row.wrapped for audit_id, row in whole.items()}
        for record in self._bodies(connection, ReviewRecord, wrapped):
            acts[record.review_id].append(record)
        return acts

    def _bodies(
        self, connection: Connection, kind: type[Body], wrapped: Mapping[str, bytes]
    ) -> Iterable[Body]:
        """Records of one kind; of those that do not open, the chains' walk tells."""
        table, name = schema.records, _NAMES[kind]
        query = select(table).where(table.c.audit_id.in_(list(wrapped)), table.c.kind == name)
        for row in connection.execute(query):
            try:
                place = key_place(row.audit_id)
                key = self.store.keyring.unwrap(wrapped[row.audit_id], place)
                yield body_of(kind, link_of(row), row.payload, key)
            except (AlteredError, WrongKeyError, ValidationError, TypeError):
                continue

    def _wrong(self, row: Row[Any], acts: Iterable[ReviewRecord]) -> str | None:
        state, version = "pending", 1
        claimant, acknowledged, by_hand = None, False, False
        for act in sorted(acts, key=lambda act: act.version):
            state, version = _AFTER.get(act.action, state), act.version
            by_hand |= act.action == "acknowledge"
            acknowledged = by_hand or act.action != "release"  # serve/review/decisions.py
            claimant = {"claim": act.principal, "release": None}.get(act.action, claimant)
        if (row.state, row.version) != (state, version):
            return (
                f"the review {row.review_id} is {row.state} (version {row.version}); "
                f"its records say {state} (version {version})"
            )
        if (row.acknowledged_at is not None) is not acknowledged:
            return f"whether somebody acknowledged {row.review_id} is not as its records say"
        if row.claimant != (claimant and self.store.term("principal", claimant)):
            return f"who claimed the review {row.review_id} is not as its records say"
        if row.detail is not None:
            try:
                key = self.store.keyring.unwrap(row.wrapped, key_place(row.audit_id))
                key.open(row.detail, detail_place(row.review_id, row.version))
            except (AlteredError, WrongKeyError):
                return f"the detail of the review {row.review_id} does not open"
        return None


def _note(batch: _Batch, link: Link, body: bytes) -> None:
    if link.kind == "request":
        request = from_json(body)
        batch.requests[link.audit_id] = (link, request["principal"], request["held"])
        for image in request["images"]:
            for name in (image["square"], image["picture"]):
                if name is not None:
                    batch.images[bytes.fromhex(name)] = link
    elif link.kind == "answer":
        answer = from_json(body)
        if any(choice["sent"] for choice in answer["choices"]):
            batch.answers[link.audit_id] = (link, bool(answer["escalation"]))


def _of(link: Link, kind: Kind, text: str) -> Problem:
    return Problem(kind, link.writer, link.seq, link.audit_id, text)
