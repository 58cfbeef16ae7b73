"""The queue in the database: a page of it, how much there is, and one action on one item.

Urgent items first, then the oldest. Every statement follows an index, however long the queue.
"""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import Literal

from sqlalchemy import Connection, func, or_, select, update

from serve.audit import schema
from serve.audit.entries import Entry, RefusedError
from serve.audit.records import ReviewAction
from serve.audit.store import Store, detail_place
from serve.escalation import outbox
from serve.review import decisions, items, states
from serve.review.decisions import Act, Change
from serve.review.items import Content, Item
from serve.review.states import State

Selection = Literal["pending", "claimed", "signed_off", "amended", "rejected", "open", "all"]
_CURSOR = re.compile(
    r"([01])\.(\d{1,18})\.([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
)


class CursorError(ValueError):
    """Not a cursor of ours."""


class OutrunError(RefusedError):
    """Somebody else has changed the item first."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """Behind which item a page begins."""

    urgent: bool
    at: int
    review_id: str

    def __str__(self) -> str:
        return f"{self.urgent:d}.{self.at}.{self.review_id}"

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """The reverse of ``str``.

        Raises:
            CursorError: it is not one.
        """
        found = _CURSOR.fullmatch(text)
        if found is None:
            raise CursorError()
        return cls(found[1] == "1", int(found[2]), found[3])


@dataclass(frozen=True, slots=True)
class Counts:
    """How much there is to do."""

    pending: int
    claimed: int
    urgent: int  # of both


def selected(selection: Selection) -> tuple[State, ...]:
    """The states that a selection names."""
    match selection:
        case "all":
            return states.STATES
        case "open":
            return states.OPEN
        case _:
            return (selection,)


def list_items(
    connection: Connection,
    selection: Selection,
    *,
    limit: int,
    urgent: bool | None = None,
    after: Cursor | None = None,
) -> tuple[list[Item], Cursor | None]:
    """A page, and where the next one begins; None at the end.

    Args:
        connection: for reading.
        selection: which states.
        limit: items, at most.
        urgent: only those that are, or are not.
        after: of the page before.
    """
    wanted = (True, False) if urgent is None else (urgent,)
    page: list[Item] = []
    for which in wanted:
        if after is not None and which > after.urgent:
            continue
        behind = after if after is not None and after.urgent is which else None
        # The index is by state first: one look for each, merged, is no scan of any.
        lanes = (
            _lane(connection, state, which, limit + 1 - len(page), behind)
            for state in selected(selection)
        )
        page += heapq.merge(*lanes, key=attrgetter("at", "review_id"))
    if len(page) <= limit:
        return page, None
    last = page[limit - 1]
    return page[:limit], Cursor(last.urgent, last.at, last.review_id)


def _lane(
    connection: Connection, state: State, urgent: bool, limit: int, after: Cursor | None
) -> Iterator[Item]:
    table = schema.reviews
    if limit <= 0:
        return
    query = (
        select(table)
        .where(table.c.state == state, table.c.urgent == urgent)
        .order_by(table.c.at, table.c.review_id)
        .limit(limit)
    )
    if after is not None:
        later = or_(table.c.at > after.at, table.c.review_id > after.review_id)
        query = query.where(table.c.at >= after.at, later)
    yield from map(items.item_of, connection.execute(query))


def counts(connection: Connection) -> Counts:
    """How much there is to do."""
    table = schema.reviews
    found = {
        (row.state, row.urgent): row.number
        for row in connection.execute(
            select(table.c.state, table.c.urgent, func.count().label("number"))
            .where(table.c.state.in_(states.OPEN))
            .group_by(table.c.state, table.c.urgent)
        )
    }
    pending, claimed = (
        sum(number for (state, _), number in found.items() if state == one) for one in states.OPEN
    )
    urgent = sum(number for (_, is_urgent), number in found.items() if is_urgent)
    return Counts(pending, claimed, urgent)


def now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def act(
    store: Store, item: Item, content: Content, action: ReviewAction, body: Act, principal: str
) -> Entry:
    """An action, to be written: its record, and the change to the item, or neither.

    Its future raises OutrunError where somebody else has changed the item meanwhile.

    Raises:
        Conflict, BadRequest: it may not be; see decisions.decide.
    """
    change = decisions.decide(item, content, action, body, principal=principal, now=now())
    place = detail_place(item.review_id, change.version)
    detail = content.key.seal(change.detail.model_dump_json().encode(), place)
    terms = {"principal": principal, "kind": "review"}
    return Entry(
        "review",
        item.audit_id,
        change.record.model_dump_json().encode(),
        content.key,
        terms=tuple(store.term(name, value) for name, value in terms.items()),
        within=partial(_apply, store, item, change, detail),
    )


def _apply(store: Store, item: Item, change: Change, detail: bytes, connection: Connection) -> None:
    table = schema.reviews
    this = table.c.review_id == item.review_id
    # Locked, so that nothing is changed before it is known to be ours.
    version = connection.scalar(select(table.c.version).where(this).with_for_update())
    if version != item.version:
        raise OutrunError()
    holder = change.detail.claimed_by
    connection.execute(
        update(table)
        .where(this)
        .values(
            state=change.state,
            claimant=None if holder is None else store.term("principal", holder),
            claimed_at=change.claimed_at,
            acknowledged_at=change.acknowledged_at,
            closed_at=change.closed_at,
            version=change.version,
            detail=detail,
        )
    )
    if change.acknowledged_at != item.acknowledged_at:
        outbox.wake(connection, item.review_id)
