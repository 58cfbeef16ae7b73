"""Rotates the key-encryption key: wraps every data key anew, while the service runs.

A value is replaced only where it still is what was read (``WHERE wrapped = ...``), so nothing that
others shred or wrap meanwhile is undone. Interrupted, it goes on where it was: what is under the
current key is left alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Table, bindparam, func, select, update

from serve.audit import schema
from serve.audit.entries import Entry
from serve.audit.keyring import ID_BYTES, Keyring
from serve.audit.records import RotateRecord
from serve.audit.store import INDEX_KEY, Store, key_place
from serve.audit.writer import Writer

_BATCH = 500


@dataclass(frozen=True, slots=True)
class Rotated:
    """What a run has done."""

    current: str  # key id
    rewrapped: int
    newest: int  # when the newest value was last used that was under a former key; 0: none


@dataclass(frozen=True, slots=True)
class _Column:
    """A table with wrapped values, by primary key and time; what each is bound to."""

    table: Table
    name: str
    at: str
    place: Callable[[Any], bytes]


_COLUMNS = (
    _Column(schema.keys, "audit_id", "at", key_place),
    _Column(schema.blobs, "name", "last_used", bytes),
)


def rotate(
    store: Store,
    writer: Writer,
    ring: Keyring,
    principal: str,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Rotated:
    """Wraps everything by the current key of ``ring`` that is not yet.

    Args:
        store: in which.
        writer: writes the record of it.
        ring: the current key, and those that values may still be under.
        principal: who wants it.
        progress: called with the values looked at so far, of how many.

    Raises:
        WrongKeyError, AlteredError: a value is under a key that is not in the ring.
        AuditUnavailableError, sqlalchemy.exc.SQLAlchemyError: the store does not take it.
    """
    total = done = newest = 0
    rewrapped = _rotate_index_key(store, ring)
    with store.reading() as connection:
        for column in _COLUMNS:
            total += connection.scalar(select(func.count()).select_from(column.table)) or 0
    for column in _COLUMNS:
        for looked_at, changed, at in _rewrap(store, ring, column):
            done += looked_at
            rewrapped += changed
            newest = max(newest, at)
            progress(done, total)
    body = RotateRecord(principal=principal, current=ring.current.hex(), rewrapped=rewrapped)
    entry = Entry("rotate", str(uuid.uuid4()), body.model_dump_json().encode(), key=None)
    writer.write(entry).result()
    return Rotated(ring.current.hex(), rewrapped, newest)


def left(store: Store, ring: Keyring) -> int:
    """How many values are under another key than the ring's current one."""
    count = 0
    with store.reading() as connection:
        wrapped = schema.meta.c.value
        index_key = connection.scalar(select(wrapped).where(schema.meta.c.name == INDEX_KEY))
        count += index_key is None or bytes(index_key[:ID_BYTES]) != ring.current
    for column in _COLUMNS:
        last = None
        while True:
            with store.reading() as connection:
                rows = _after(connection, column, last)
            if not rows:
                break
            last = rows[-1][0]
            count += sum(bytes(old[:ID_BYTES]) != ring.current for _, _, old in rows if old)
    return count


def _rotate_index_key(store: Store, ring: Keyring) -> int:
    meta = schema.meta
    with _writing(store) as connection, connection.begin():
        old = connection.scalar(select(meta.c.value).where(meta.c.name == INDEX_KEY))
        new = _new(ring, old, INDEX_KEY.encode())
        if new is None:
            return 0
        there = (meta.c.name == INDEX_KEY) & (meta.c.value == old)
        return connection.execute(update(meta).where(there).values(value=new)).rowcount


def _rewrap(store: Store, ring: Keyring, column: _Column) -> Iterator[tuple[int, int, int]]:
    """By batch: how many were looked at, how many are wrapped anew, the newest time of these."""
    table = column.table
    change = (
        update(table)
        .where(table.c[column.name] == bindparam("key"), table.c.wrapped == bindparam("old"))
        .values(wrapped=bindparam("new"))
    )
    last = None
    while True:
        with _writing(store) as connection, connection.begin():
            rows = _after(connection, column, last)
            if not rows:
                return
            changes, newest = [], 0
            for key, at, old in rows:
                new = _new(ring, old, column.place(key))
                if new is not None:
                    changes.append({"key": key, "old": old, "new": new})
                    newest = max(newest, at)
            changed = connection.execute(change, changes).rowcount if changes else 0
        last = rows[-1][0]
        yield len(rows), changed, newest


def _after(connection: Connection, column: _Column, last: Any) -> list[tuple[Any, int, Any]]:
    table = column.table
    key = table.c[column.name]
    query = select(key, table.c[column.at], table.c.wrapped).order_by(key).limit(_BATCH)
    if last is not None:
        query = query.where(key > last)
    return [(found, at, wrapped) for found, at, wrapped in connection.execute(query)]


def _new(ring: Keyring, old: bytes | None, place: bytes) -> bytes | None:
    """The value under the current key; None: it is, or it was shredded."""
    if old is None or bytes(old[:ID_BYTES]) == ring.current:
        return None
    return ring.wrap(ring.unwrap(bytes(old), place), place)


def _writing(store: Store) -> Connection:
    return store.engine.connect().execution_options(**{schema.WRITE: True})
