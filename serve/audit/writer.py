"""Writes records: one thread, one chain, one transaction for all that wait (group commit).

An entry's future is done once the transaction is on disk. Whatever goes wrong in one, nothing of
it is there, everybody who waits is told, and the writer begins a new chain: whether a commit whose
connection broke took place is nothing it must guess.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Literal

from cachetools import LRUCache
from sqlalchemy import Connection, Insert, Table, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from serve.audit import schema
from serve.audit.chain import ORIGIN, Link
from serve.audit.checkpoints import Checkpoints, Head
from serve.audit.keyring import DataKey
from serve.audit.store import Store, key_place

Kind = Literal[
    "open", "request", "answer", "refusal", "read", "review", "escalation", "shred", "rotate"
]
logger = logging.getLogger("llava_med")

MAX_QUEUED = 10_000
_MAX_BATCH = 512
_HEADS = 64  # of other chains, that a new one names
_STOP = object()
# A blob's last use is noted once in this time at most; what shreds blobs must know (retention.py).
NOTED_US = 3600 * 1_000_000


class AuditUnavailableError(Exception):
    """The record is not on disk. Nothing that needs it may leave."""


class RefusedError(Exception):
    """What an entry was to change has changed already. Nothing of the entry was written."""


@dataclass(frozen=True, slots=True)
class Blob:
    """An image's file, and its name (``Store.blob_name``)."""

    name: bytes
    content: bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A record, and the rows that are to be there if and only if it is."""

    kind: Kind
    audit_id: str
    body: bytes  # JSON
    key: DataKey | None  # seals the body; None: it has nothing to hide
    new_key: bool = False  # the first of its exchange: its key is stored with it
    terms: tuple[int, ...] = ()
    blobs: tuple[Blob, ...] = ()
    rows: tuple[tuple[Table, Mapping[str, Any]], ...] = ()
    within: Callable[[Connection], None] | None = None  # may raise RefusedError before it changes


@dataclass(frozen=True, slots=True)
class _Waiting:
    entry: Entry
    written: Future[Link]


class Writer:
    """A chain's only writer."""

    def __init__(self, store: Store, checkpoints: Checkpoints, opened: Callable[[], bytes]) -> None:
        """Starts the thread. Nothing is written before the first entry.

        Args:
            store: where to.
            checkpoints: where this chain's heads are signed.
            opened: the body of the record that a chain begins with, as JSON.
        """
        self._store = store
        self._checkpoints = checkpoints
        self._opened = opened
        self._queue: queue.Queue[Any] = queue.Queue(MAX_QUEUED)
        self._connection: Connection | None = None
        self._head = Head("", 0, ORIGIN, 0)
        self._noted: LRUCache[bytes, int] = LRUCache(4096)
        self._put_blob = _upsert(store.engine.dialect.name)
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)
        self._thread.start()

    def write(self, entry: Entry) -> Future[Link]:
        """Takes an entry; its future is done once it is on disk.

        The future raises AuditUnavailableError, or the RefusedError that ``within`` raised.

        Raises:
            AuditUnavailableError: too many wait already.
        """
        waiting = _Waiting(entry, Future())
        # So that it cannot be cancelled: whoever stops waiting takes no record along.
        waiting.written.set_running_or_notify_cancel()
        try:
            self._queue.put_nowait(waiting)
        except queue.Full:
            raise AuditUnavailableError() from None
        return waiting.written

    def close(self) -> None:
        """Writes what waits, signs the head, and ends the thread."""
        self._queue.put(_STOP)
        self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            batch, running = self._next()
            if batch:
                self._serve(batch)
            self._sign(now=not running)
        self._drop_connection()

    def _sign(self, *, now: bool) -> None:
        try:
            self._checkpoints.sign(self._head, now=now)
        except OSError as error:  # the records are there; the next turn signs them
            logger.error("audit checkpoints: %s", type(error).__name__)

    def _next(self) -> tuple[list[_Waiting], bool]:
        """What waits; nothing, when a checkpoint is due before anything comes."""
        try:
            first = self._queue.get(timeout=self._checkpoints.due_s())
        except queue.Empty:
            return [], True
        batch = []
        while first is not _STOP:
            batch.append(first)
            if len(batch) == _MAX_BATCH:
                return batch, True
            try:
                first = self._queue.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

    def _serve(self, batch: list[_Waiting]) -> None:
        try:
            links = self._commit([waiting.entry for waiting in batch])
        except Exception as error:  # whatever it is: nothing was written
            logger.error("audit store: %s", type(error).__name__)
            self._drop_connection()
            for waiting in batch:
                waiting.written.set_exception(AuditUnavailableError())
            return
        for waiting, link in zip(batch, links, strict=True):
            if isinstance(link, RefusedError):
                waiting.written.set_exception(link)
            else:
                waiting.written.set_result(link)

    def _drop_connection(self) -> None:
        """Ends the chain, too: the next one begins with the next connection."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                connection.invalidate()
                connection.close()
            except Exception as error:  # it was broken already
                logger.info("audit store: %s", type(error).__name__)

    def _commit(self, entries: list[Entry]) -> list[Link | RefusedError]:
        connection = self._connection
        if connection is None:
            connection = self._store.engine.connect().execution_options(**{schema.WRITE: True})
            self._connection = connection
            with connection.begin():
                seen = list(_heads(connection))
            former = self._head
            self._head = Head(uuid.uuid4().hex, 0, ORIGIN, former.at)
            entries = [self._opening(former, seen), *entries]
            links = self._commit_on(connection, entries)[1:]
            self._sign(now=True)
            return links
        return self._commit_on(connection, entries)

    def _opening(self, former: Head, seen: Iterable[Head]) -> Entry:
        """The first record of a chain: who writes, and how far the others have come.

        So the end of a chain whose writer has died cannot be cut off unseen either.
        """
        heads = ",".join(f'"{head.writer}":[{head.seq},"{head.hash.hex()}"]' for head in seen)
        body = b'{"writer":%s,"former":"%s","heads":{%s}}' % (
            self._opened(),
            former.writer.encode(),
            heads.encode(),
        )
        rows = ((schema.writers, {"writer": self._head.writer}),)
        return Entry("open", str(uuid.uuid4()), body, key=None, rows=rows)

    def _commit_on(self, connection: Connection, entries: list[Entry]) -> list[Link | RefusedError]:
        rows: dict[Table, list[Mapping[str, Any]]] = {}
        links: list[Link | RefusedError] = []
        head = self._head
        used: dict[bytes, int] = {}
        with connection.begin():
            for entry in entries:
                try:
                    if entry.within is not None:
                        entry.within(connection)
                except RefusedError as refused:
                    links.append(refused)
                    continue
                at = max(time.time_ns() // 1000, head.at)  # a clock may be set back
                link = Link(head.writer, head.seq + 1, at, entry.kind, entry.audit_id, head.hash)
                row = self._row(link, entry)
                head = Head(link.writer, link.seq, row["hash"], at)
                rows.setdefault(schema.records, []).append(row)
                for table, values in self._others(link, entry):
                    rows.setdefault(table, []).append(values)
                self._put_blobs(connection, entry.blobs, at, used)
                links.append(link)
            for table, values_of in rows.items():
                connection.execute(insert(table), values_of)
        self._head = head
        self._noted.update(used)
        return links

    def _row(self, link: Link, entry: Entry) -> dict[str, Any]:
        payload = entry.body if entry.key is None else entry.key.seal(entry.body, link.place)
        digest = sha256(payload).digest()
        return {
            "writer": link.writer,
            "seq": link.seq,
            "at": link.at,
            "kind": link.kind,
            "audit_id": link.audit_id,
            "previous": link.previous,
            "digest": digest,
            "hash": link.hash(digest),
            "payload": payload,
        }

    def _others(self, link: Link, entry: Entry) -> Iterable[tuple[Table, Mapping[str, Any]]]:
        if entry.new_key and entry.key is not None:
            wrapped = self._store.keyring.wrap(entry.key, key_place(entry.audit_id))
            yield (
                schema.keys,
                {"audit_id": entry.audit_id, "at": link.at, "wrapped": wrapped},
            )
        for term in set(entry.terms):
            yield schema.terms, {"term": term, "at": link.at, "audit_id": entry.audit_id}
        for table, values in entry.rows:
            yield table, {"at": link.at, **values}

    def _put_blobs(
        self, connection: Connection, blobs: Iterable[Blob], at: int, used: dict[bytes, int]
    ) -> None:
        table = schema.blobs
        for blob in blobs:
            noted = used.get(blob.name, self._noted.get(blob.name, 0))
            if at - noted < NOTED_US // 2:
                continue
            used[blob.name] = at
            known = connection.execute(
                update(table).where(table.c.name == blob.name).values(last_used=at)
            )
            if known.rowcount == 0:
                key = DataKey.new()
                values = {
                    "name": blob.name,
                    "last_used": at,
                    "wrapped": self._store.keyring.wrap(key, blob.name),
                    "payload": key.seal(blob.content, blob.name),
                }
                connection.execute(self._put_blob, values)


def _upsert(dialect: str) -> Insert:
    """Puts a blob, unless somebody else has just done so."""
    if dialect == "sqlite":
        into = sqlite.insert(schema.blobs)
        return into.on_conflict_do_update(
            index_elements=["name"], set_={"last_used": into.excluded.last_used}
        )
    to = postgresql.insert(schema.blobs)
    return to.on_conflict_do_update(
        index_elements=["name"], set_={"last_used": to.excluded.last_used}
    )


def _heads(connection: Connection) -> Iterable[Head]:
    """How far the chains that began last have come."""
    writers, table = schema.writers, schema.records
    recent = select(writers.c.writer).order_by(writers.c.at.desc()).limit(_HEADS)
    for writer in connection.scalars(recent).all():
        row = connection.execute(
            select(table.c.seq, table.c.hash, table.c.at)
            .where(table.c.writer == writer)
            .order_by(table.c.seq.desc())
            .limit(1)
        ).first()
        if row is not None:
            yield Head(writer, row.seq, bytes(row.hash), row.at)
