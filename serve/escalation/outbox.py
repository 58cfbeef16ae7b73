"""The outbox: which urgent findings somebody is still to be told of, in the table ``escalations``.

Knows SQL and time; nothing of hooks. A row is written in one transaction with the answer it is
about, so there is no answer without it. Who sends takes a lease on it first: ``next_at`` moves to
the lease's end, and only who read the former value can move it.

Times are microseconds since 1970, of clocks that may be wrong: a new row, or one that was woken, is
due whatever the clock says, and so is one further ahead than anything is ever put.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, and_, case, func, null, or_, select, update

from serve.audit.schema import escalations, reviews

# Values of next_at that are no times: written with the answer, and by `wake`.
NEW = 0
WOKEN = 1
# What is acknowledged, or closed, is no longer anybody's to be told of.
_OPEN_STATES = ("pending", "claimed")


@dataclass(frozen=True, slots=True)
class Due:
    """A row of the outbox as it was read. ``open``: nobody has acknowledged or closed it."""

    review_id: str
    audit_id: str
    at: int
    next_at: int
    sent: int
    failed: int
    open: bool

    @property
    def untouched(self) -> bool:
        """Whether nobody has taken it yet."""
        return self.next_at == NEW


def due(connection: Connection, now: int, *, furthest: int, limit: int) -> list[Due]:
    """What is to be sent now: what is new, what was woken, then what has waited longest.

    Args:
        connection: to read with.
        now: the time.
        furthest: how far ahead a row is put at most; one beyond that was put there by a clock
            that has been set back since.
        limit: rows at most.
    """
    table = escalations
    rows = connection.execute(
        select(
            table.c.review_id,
            table.c.audit_id,
            table.c.at,
            table.c.next_at,
            table.c.sent,
            table.c.failed,
            _is_open().label("open"),
        )
        .join(reviews, reviews.c.review_id == table.c.review_id)
        .where(
            table.c.next_at >= 0,  # by the index, past all that is settled
            or_(table.c.next_at <= max(now, WOKEN), table.c.next_at > now + furthest),
        )
        .order_by(table.c.next_at)
        .limit(limit)
    )
    return [
        Due(row.review_id, row.audit_id, row.at, row.next_at, row.sent, row.failed, bool(row.open))
        for row in rows
    ]


def claim(connection: Connection, row: Due, until: int) -> bool:
    """Takes a lease on a row; False if somebody else was faster."""
    return _move(connection, row, until)


def settle(connection: Connection, row: Due) -> bool:
    """Nothing more is sent of a row; False if somebody else was faster."""
    return _move(connection, row, None)


def delivered(
    connection: Connection, row: Due, lease: int, *, sent: int, next_at: int | None
) -> None:
    """Notes that the receiver took a message; ``sent``: how many of its finding, with this one.

    Where the lease has run out, or ``wake`` has ended it, whoever did so knows better when to look
    at the row again; that it was sent is true all the same, once.
    """
    table = escalations
    connection.execute(
        update(table)
        .where(table.c.review_id == row.review_id)
        .values(
            sent=case((table.c.sent < sent, sent), else_=table.c.sent),
            failed=0,
            next_at=_unless_moved(lease, next_at),
        )
    )


def not_delivered(connection: Connection, row: Due, lease: int, next_at: int) -> None:
    """Notes that the receiver did not take a message."""
    table = escalations
    connection.execute(
        update(table)
        .where(table.c.review_id == row.review_id)
        .values(failed=table.c.failed + 1, next_at=_unless_moved(lease, next_at))
    )


def wake(connection: Connection, review_id: str) -> None:
    """Has a review's row looked at now.

    Call it where ``acknowledged_at`` is set, or taken back, in the same transaction: what is to be
    said now, if anything, is then decided by what the review has become.
    """
    table = escalations
    connection.execute(
        update(table)
        .where(
            table.c.review_id == review_id, or_(table.c.next_at.is_(None), table.c.next_at > NEW)
        )
        .values(next_at=WOKEN)
    )


def waiting(connection: Connection) -> tuple[int, int | None]:
    """How many urgent findings nobody has acknowledged, and since when the oldest waits."""
    row = connection.execute(
        select(func.count(), func.min(reviews.c.at)).where(reviews.c.urgent.is_(True), _is_open())
    ).one()
    return int(row[0]), row[1]


def _is_open() -> ColumnElement[bool]:
    return and_(reviews.c.acknowledged_at.is_(None), reviews.c.state.in_(_OPEN_STATES))


def _move(connection: Connection, row: Due, next_at: int | None) -> bool:
    table = escalations
    moved = connection.execute(
        update(table)
        .where(table.c.review_id == row.review_id, table.c.next_at == row.next_at)
        .values(next_at=next_at)
    )
    return moved.rowcount == 1


def _unless_moved(lease: int, next_at: int | None) -> ColumnElement[int]:
    column = escalations.c.next_at
    return case((column == lease, null() if next_at is None else next_at), else_=column)
