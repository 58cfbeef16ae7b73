"""What verification may find, and what it knows of kinds of records."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import Connection, select

from serve.audit import schema

Kind = Literal[
    "altered", "missing", "reordered", "cut off", "bad signature", "unsigned", "unopenable"
]
BATCH = 1000
BEGINS = frozenset({"request", "refusal", "read"})  # the first record of an exchange
UNSEALED = frozenset({"open", "shred", "rotate"})  # never shredded


@dataclass(frozen=True, slots=True)
class Problem:
    """The first thing that is wrong with a chain; or with a table, which ``chain`` names then."""

    kind: Kind
    chain: str
    seq: int  # 0: of no record
    audit_id: str | None
    text: str


Found = Callable[[Problem], None]
Progress = Callable[[int, int, str], None]  # done, of how many, what


def clock(at: int) -> str:
    """A time of the store, to be read."""
    return datetime.fromtimestamp(at / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def shredded_of(connection: Connection, audit_ids: Iterable[str]) -> set[str]:
    """Those of these exchanges whose first record's content is gone."""
    table = schema.records
    wanted = list(audit_ids)
    if not wanted:
        return set()
    query = select(table.c.audit_id).where(
        table.c.audit_id.in_(wanted), table.c.kind.in_(BEGINS), table.c.payload.is_(None)
    )
    return set(connection.scalars(query))
