"""Finds exchanges by the terms and times of their records, newest first.

By indexes alone; nothing is opened. Who calls records the look first (serve/audit/reading.py).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, exists, func, select, text, tuple_

from serve.audit import schema

_COUNTED = 10_000  # enough to tell a rare term from a common one


@dataclass(frozen=True, slots=True)
class Hit:
    """A record that has all terms; where the next page goes on behind."""

    at: int  # microseconds since 1970
    audit_id: str


@dataclass(frozen=True, slots=True)
class Page:
    """Some hits; ``after`` asks for the next ones, None: there are no more."""

    hits: tuple[Hit, ...]
    after: Hit | None


def search(
    connection: Connection,
    terms: Collection[int],
    *,
    since: int | None = None,
    until: int | None = None,
    after: Hit | None = None,
    limit: int = 50,
) -> Page:
    """The newest records that have all of the terms: of an exchange, that of its answer.

    Args:
        connection: to the store.
        terms: at least one (``Store.term``).
        since: in microseconds since 1970; not older.
        until: older than this.
        after: the ``after`` of the page before.
        limit: hits of a page.
    """
    table = schema.terms
    if connection.dialect.name == "postgresql":
        # For one page, its planner would join and sort all that two common terms have.
        for plan in ("hashjoin", "mergejoin", "bitmapscan", "seqscan", "sort"):
            connection.execute(text(f"SET LOCAL enable_{plan} = off"))
    drives, *others = sorted(terms, key=lambda term: _count(connection, term, since, until))
    query = select(table.c.at, table.c.audit_id).where(table.c.term == drives)
    if since is not None:
        query = query.where(table.c.at >= since)
    if until is not None:
        query = query.where(table.c.at < until)
    if after is not None:
        behind = tuple_(table.c.at, table.c.audit_id) < (after.at, after.audit_id)
        query = query.where(table.c.at <= after.at, behind)
    for term in others:
        too = table.alias()
        # The terms of one record have its time: both indexes are walked side by side.
        query = query.where(
            exists().where(
                too.c.term == term, too.c.at == table.c.at, too.c.audit_id == table.c.audit_id
            )
        )
    query = query.order_by(table.c.at.desc(), table.c.audit_id.desc()).limit(limit + 1)
    hits = tuple(Hit(row.at, row.audit_id) for row in connection.execute(query))
    return Page(hits[:limit], hits[limit - 1] if len(hits) > limit else None)


def _count(connection: Connection, term: int, since: int | None, until: int | None) -> int:
    table = schema.terms
    some = select(table.c.at).where(table.c.term == term)
    if since is not None:
        some = some.where(table.c.at >= since)
    if until is not None:
        some = some.where(table.c.at < until)
    counted = select(func.count()).select_from(some.limit(_COUNTED).subquery())
    return connection.scalar(counted) or 0
