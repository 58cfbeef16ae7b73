"""Verifies a store: every chain from its first record on, signed checkpoints, and contents.

Chains and checkpoints are verified without any secret; with the store's keys also whether all that
is sealed opens (serve/audit/contents.py). Reads in batches, all of one snapshot: what a running
service writes meanwhile is left to the next time. Shows nothing of what anybody asked or answered.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, select, text

from serve.audit import schema
from serve.audit.chain import ORIGIN, Link
from serve.audit.checkpoints import Checkpoint, Head
from serve.audit.contents import Contents
from serve.audit.heads import compare, compare_checkpoints
from serve.audit.problems import (
    BATCH,
    BEGINS,
    UNSEALED,
    Found,
    Kind,
    Problem,
    Progress,
    clock,
    shredded_of,
)
from serve.audit.reading import link_of
from serve.audit.records import ShredRecord

# A service signs its chain every ``audit.checkpoint_s``, a command at its end.
_SIGNED_SOON_US = 60 * 1_000_000


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified, and what was found."""

    chains: int
    records: int
    checkpoints: int  # signed by the key, and compared
    damaged_lines: int  # of the checkpoints' file; a crash may leave half of one
    last_checkpoint: int | None  # microseconds since 1970
    images: int | None  # None: contents were not opened
    shredded: int  # exchanges
    unfinished: int  # requests without an answer: in the engine now, or their process died
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(slots=True)
class _Tally:
    """What was come across so far."""

    records: int = 0
    requests: int = 0
    answers: int = 0
    shredded: int = 0  # exchanges whose content is gone
    accounted: int = 0  # exchanges that shred records speak of
    before: int = 0  # the latest of shred records
    newest_shredded: dict[str, Link] = field(default_factory=dict)  # by chain
    newest_shred: dict[str, Link] = field(default_factory=dict)  # the record of it, by chain
    problems: dict[str, Problem] = field(default_factory=dict)

    def found(self, problem: Problem) -> None:
        """Keeps the first of each chain; of those who miss its end, who knows it furthest."""
        known = self.problems.get(problem.chain)
        later = 0 if known is None else problem.seq - known.seq
        if known is None or later < 0 or (later == 0 and problem.kind == known.kind == "cut off"):
            self.problems[problem.chain] = problem


def verify(
    engine: Engine,
    checkpoints: Iterable[Checkpoint],
    contents: Contents | None,
    progress: Progress = lambda _done, _total, _what: None,
) -> Report:
    """Verifies everything.

    Args:
        engine: the store's database.
        checkpoints: read while they are compared (``checkpoints.read``).
        contents: opens what is sealed; None: it stays so.
        progress: called with what is done, of how many, and what it is.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database does not answer.
    """
    tally = _Tally()
    images = None
    with _snapshot(engine) as connection:
        listed, ends = _chains(connection)
        total = sum(ends.values())
        for writer, end in ends.items():
            if writer not in listed:
                tally.found(Problem("missing", writer, 0, None, "it is not in the list of chains"))
            for _batch in _walk(connection, writer, end, tally, contents):
                progress(tally.records, total, "records")
        _account_for_shredded(tally)
        if contents is not None:
            images = contents.images(connection, tally.found, progress)
            contents.reviews(connection, tally.found)
            contents.escalations(connection, tally.found)
    signed = compare_checkpoints(engine, checkpoints, tally.found, progress)
    _require_signatures(tally, signed.furthest)
    return Report(
        chains=len(ends),
        records=tally.records,
        checkpoints=signed.compared,
        damaged_lines=signed.damaged,
        last_checkpoint=signed.last,
        images=images,
        shredded=tally.shredded,
        unfinished=tally.requests - tally.answers,
        problems=tuple(tally.problems.values()),
    )


@contextmanager
def _snapshot(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
            # Nobody waits for this one.
            connection.execute(text("SET LOCAL statement_timeout = 0"))
        yield connection


# --- chains ------------------------------------------------------------------------------------


def _chains(connection: Connection) -> tuple[frozenset[str], dict[str, int]]:
    """The listed chains, and the last record's number of all that are listed or have records."""
    table, writers = schema.records, schema.writers
    listed = connection.scalars(select(writers.c.writer).order_by(writers.c.at)).all()
    ends = select(table.c.writer, func.max(table.c.seq)).group_by(table.c.writer)
    found = {writer: int(end) for writer, end in connection.execute(ends)}
    return frozenset(listed), {**dict.fromkeys(listed, 0), **found}


def _walk(
    connection: Connection, writer: str, end: int, tally: _Tally, contents: Contents | None
) -> Iterator[None]:
    """Verifies one chain; yields after each batch."""
    if end == 0:
        tally.found(Problem("cut off", writer, 1, None, "none of its records is there"))
    head = Head(writer, 0, ORIGIN, 0)
    while rows := _rows(connection, writer, head.seq, with_keys=contents is not None):
        links = [link_of(row) for row in rows]
        for row, link in zip(rows, links, strict=True):
            digest, hashed = bytes(row.digest), bytes(row.hash)
            wrong = _wrong(head, link, row.payload, digest, hashed)
            if wrong is not None:
                tally.found(_placed(wrong, link, digest, hashed, end))
            head = Head(writer, link.seq, hashed, link.at)
            _count(connection, link, row.payload, tally)
        gone = [link for row, link in zip(rows, links, strict=True) if row.payload is None]
        _check_shredded(connection, gone, tally)
        if contents is not None:
            contents.records(connection, rows, links, tally.found)
        tally.records += len(rows)
        yield


def _rows(
    connection: Connection, writer: str, after: int, *, with_keys: bool
) -> Sequence[Row[Any]]:
    table, keys = schema.records, schema.keys
    query = select(table)
    if with_keys:
        query = query.add_columns(keys.c.at.label("key_at"), keys.c.wrapped).outerjoin(
            keys, keys.c.audit_id == table.c.audit_id
        )
    query = query.where(table.c.writer == writer, table.c.seq > after)
    return connection.execute(query.order_by(table.c.seq).limit(BATCH)).all()


def _wrong(
    head: Head, link: Link, payload: bytes | None, digest: bytes, hashed: bytes
) -> Problem | None:
    """What is wrong with a record that is to follow ``head``."""

    def problem(kind: Kind, text: str) -> Problem:
        return Problem(kind, link.writer, link.seq, link.audit_id, text)

    if link.seq != head.seq + 1:
        return Problem(
            "missing",
            link.writer,
            head.seq + 1,
            None,
            f"records {head.seq + 1} to {link.seq - 1} are not there",
        )
    if payload is not None and sha256(payload).digest() != digest:
        return problem("altered", "its content is not what was written")
    if link.hash(digest) != hashed:
        return problem("altered", "it is not what was written")
    if link.previous != head.hash:
        return problem("altered", "it does not follow the record before it: one was replaced")
    if link.at < head.at:
        return problem("reordered", "it is older than the record before it")
    return None


def _placed(wrong: Problem, link: Link, digest: bytes, hashed: bytes, end: int) -> Problem:
    """The problem; told apart whether the record is whole, but stands where another one stood."""
    if wrong.kind != "altered" or link.hash(digest) == hashed:
        return wrong
    for seq in range(1, end + 2):
        if replace(link, seq=seq).hash(digest) == hashed:
            return replace(wrong, kind="reordered", text=f"it was written as record {seq}")
    return wrong


def _count(connection: Connection, link: Link, payload: bytes | None, tally: _Tally) -> None:
    tally.requests += link.kind == "request"
    tally.answers += link.kind == "answer"
    if link.kind == "shred":
        tally.newest_shred[link.writer] = link
    if payload is None:
        return
    try:
        if link.kind == "shred":
            shred = ShredRecord.model_validate_json(payload)
            tally.before = max(tally.before, shred.before)
            tally.accounted += shred.exchanges
        elif link.kind == "open":
            by = f"a chain that began on {clock(link.at)}"
            heads = [
                Head(writer, seq, bytes.fromhex(hashed), link.at)
                for writer, (seq, hashed) in json.loads(payload)["heads"].items()
            ]
            compare(connection, heads, lambda _head: by, tally.found)
    except (ValueError, KeyError, TypeError, AttributeError):
        text = "its content is not of the form that this software writes"
        tally.found(Problem("altered", link.writer, link.seq, link.audit_id, text))


# --- what was shredded -------------------------------------------------------------------------


def _check_shredded(connection: Connection, gone: Sequence[Link], tally: _Tally) -> None:
    """Content is gone with that of its exchange's first record, which shred records speak of."""
    for link in gone:
        if link.kind in BEGINS:
            tally.shredded += 1
            tally.newest_shredded[link.writer] = link  # times never fall within a chain
        elif link.kind in UNSEALED:
            _is_gone(link, tally.found)
    later = {link.audit_id: link for link in gone if link.kind not in BEGINS | UNSEALED}
    for audit_id in later.keys() - shredded_of(connection, later):
        _is_gone(later[audit_id], tally.found)


def _account_for_shredded(tally: _Tally) -> None:
    for link in tally.newest_shredded.values():
        if link.at >= tally.before:
            _is_gone(link, tally.found)
    if tally.shredded > tally.accounted and not tally.problems:
        text = f"{tally.shredded} exchanges are shredded; records speak of {tally.accounted}"
        tally.found(Problem("missing", "keys", 0, None, text))


def _require_signatures(tally: _Tally, furthest: Mapping[str, int]) -> None:
    """Whoever destroys content can write what excuses it; only the service can sign that."""
    for writer, link in tally.newest_shred.items():
        if furthest.get(writer, 0) >= link.seq:
            continue
        said = "it says that content was shredded, and no signed checkpoint covers it"
        if time.time_ns() // 1000 - link.at < _SIGNED_SOON_US:
            said += "; it is less than a minute old and may be signed soon: verify again"
        tally.found(Problem("unsigned", writer, link.seq, link.audit_id, said))


def _is_gone(link: Link, found: Found) -> None:
    text = "its content is gone, and no record says that it was shredded"
    found(Problem("missing", link.writer, link.seq, link.audit_id, text))
