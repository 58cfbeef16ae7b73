"""Whether a store has the records that somebody else remembers: checkpoints, and later chains.

For serve/audit/verify.py. Knows chains by their hashes alone; opens nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby, islice

from sqlalchemy import Connection, Engine, select

from serve.audit import schema
from serve.audit.checkpoints import Checkpoint, Head
from serve.audit.problems import BATCH, Found, Problem, Progress, clock


@dataclass(slots=True)
class Signed:
    """What was read of checkpoints."""

    compared: int = 0  # signed by the key
    damaged: int = 0  # lines that are none
    last: int | None = None  # when the last was signed, in microseconds since 1970
    furthest: dict[str, int] = field(default_factory=dict)  # by chain, the number of a record


def compare_checkpoints(
    engine: Engine, checkpoints: Iterable[Checkpoint], found: Found, progress: Progress
) -> Signed:
    """Compares signed heads with the store; tells of what is not signed by the key."""
    signed = Signed()
    remaining = iter(checkpoints)
    while batch := list(islice(remaining, BATCH)):
        heads = [one.head for one in batch if one.valid]
        # Not the snapshot, which may be older than what was signed.
        with engine.connect() as connection:
            compare(connection, heads, lambda head: f"the checkpoint of {clock(head.at)}", found)
        for head in heads:
            signed.compared += 1
            signed.last = max(signed.last or 0, head.at)
            signed.furthest[head.writer] = max(signed.furthest.get(head.writer, 0), head.seq)
        for one in batch:
            if one.valid:
                continue
            if one.head.seq == 0:
                signed.damaged += 1
                continue
            text = f"the checkpoint of {clock(one.head.at)} is not signed by this key"
            found(Problem("bad signature", one.head.writer, one.head.seq, None, text))
        progress(signed.compared, signed.compared, "checkpoints")
    return signed


def compare(
    connection: Connection, heads: Iterable[Head], by: Callable[[Head], str], found: Found
) -> None:
    """Compares heads with the store; ``by`` says who names one."""
    table = schema.records
    for writer, of_writer in groupby(sorted(heads, key=_chain), _chain):
        named = list(of_writer)
        query = select(table.c.seq, table.c.hash).where(
            table.c.writer == writer, table.c.seq.in_({head.seq for head in named})
        )
        hashes: Mapping[int, bytes] = {
            row.seq: bytes(row.hash) for row in connection.execute(query)
        }
        for head in named:
            if head.seq not in hashes:
                _cut_off(connection, head, by(head), found)
            elif hashes[head.seq] != head.hash:
                text = f"{by(head)} names another record {head.seq}: the chain was written anew"
                found(Problem("altered", writer, head.seq, None, text))


def _cut_off(connection: Connection, head: Head, by: str, found: Found) -> None:
    table = schema.records
    end = connection.scalar(
        select(table.c.seq)
        .where(table.c.writer == head.writer)
        .order_by(table.c.seq.desc())
        .limit(1)
    )
    if end is None:
        text = f"{by} names its record {head.seq}; the store has none of it"
    elif end < head.seq:
        text = f"{by} names record {head.seq}; the chain ends at {end}"
    else:
        return  # a gap, which the walk has told
    found(Problem("cut off", head.writer, (end or 0) + 1, None, text))


def _chain(head: Head) -> str:
    return head.writer
