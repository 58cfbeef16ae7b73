"""The end of a chain: seals entries, links them, and puts all of a batch in one transaction.

Whatever goes wrong in a transaction, nothing of it is there, everybody who waits is told, and the
next one begins a new chain: whether a commit whose connection broke took place is nothing that must
be guessed. Not for several threads.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256
from typing import Any

from cachetools import LRUCache
from sqlalchemy import Connection, Insert, Table, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from serve.audit import schema
from serve.audit.chain import ORIGIN, Link
from serve.audit.checkpoints import Checkpoints, Head
from serve.audit.entries import AuditUnavailableError, Blob, Entry, RefusedError
from serve.audit.keyring import DataKey
from serve.audit.store import Store, key_place

logger = logging.getLogger("llava_med")

_HEADS = 64  # of other chains, that a new one names
# A blob's last use is noted once in this time at most; what shreds blobs must know (retention.py).
NOTED_US = 3600 * 1_000_000


class ChainEnd:
    """Where one writer goes on writing."""

    def __init__(self, store: Store, checkpoints: Checkpoints, opened: Callable[[], bytes]) -> None:
        """Writes nothing before the first entry.

        Args:
            store: where to.
            checkpoints: where this chain's heads are signed.
            opened: the body of the record that a chain begins with, as JSON.
        """
        self._store = store
        self._checkpoints = checkpoints
        self._opened = opened
        self._connection: Connection | None = None
        self._head = Head("", 0, ORIGIN, 0)
        self._inserts: dict[tuple[str, tuple[str, ...]], str] = {}
        self._noted: LRUCache[bytes, int] = LRUCache(4096)
        self._put_blob = _upsert(store.engine.dialect.name)

    def commit(self, entries: Sequence[Entry]) -> Sequence[Link | Exception]:
        """Writes entries; for each its place in the chain, or why it is not there.

        An AuditUnavailableError stands for all of them, a RefusedError for the one that raised it.
        """
        try:
            links = self._commit(entries)
        except Exception as error:  # whatever it is: nothing was written
            logger.error("audit store: %s", type(error).__name__)
            self._drop_connection()
            return [AuditUnavailableError()] * len(entries)
        if any(entry.kind == "shred" for entry in entries):
            self.sign(now=True)  # what accounts for missing content must not be in doubt itself
        return links

    def sign(self, *, now: bool = False) -> None:
        """Signs the chain's head if it is time to, or ``now``."""
        try:
            self._checkpoints.sign(self._head, now=now)
        except OSError as error:  # the records are there; the next turn signs them
            logger.error("audit checkpoints: %s", type(error).__name__)

    def due_s(self) -> float | None:
        """Seconds until there is something to sign; None while there is nothing."""
        return self._checkpoints.due_s()

    def close(self) -> None:
        """Signs the head and ends the connection."""
        self.sign(now=True)
        self._drop_connection()

    def _drop_connection(self) -> None:
        """Ends the chain, too: the next one begins with the next connection."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                connection.invalidate()
                connection.close()
            except Exception as error:  # it was broken already
                logger.info("audit store: %s", type(error).__name__)

    def _commit(self, entries: Sequence[Entry]) -> Sequence[Link | RefusedError]:
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
            self.sign(now=True)
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

    def _commit_on(
        self, connection: Connection, entries: Sequence[Entry]
    ) -> Sequence[Link | RefusedError]:
        rows: dict[str, list[dict[str, Any]]] = {}
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
                for table, values in ((schema.records, row), *self._others(link, entry)):
                    rows.setdefault(self._insert(table, tuple(values)), []).append(values)
                self._put_blobs(connection, entry.blobs, at, used)
                links.append(link)
            for statement, values_of in rows.items():
                connection.exec_driver_sql(
                    statement, values_of if len(values_of) > 1 else values_of[0]
                )
        self._head = head
        self._noted.update(used)
        return links

    def _insert(self, table: Table, columns: tuple[str, ...]) -> str:
        """The statement, made once: SQLAlchemy's own way to it takes longer than SQLite's work."""
        known = self._inserts.get((table.name, columns))
        if known is None:
            compiled = insert(table).compile(self._store.engine, column_keys=list(columns))
            known = self._inserts[table.name, columns] = str(compiled)
        return known

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

    def _others(self, link: Link, entry: Entry) -> Iterable[tuple[Table, dict[str, Any]]]:
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
