"""Shreds what is old: destroys its keys and its content, and records that it was done.

A batch of exchanges (or images) is shredded in one transaction with the record that says so:
whatever interrupts a run, what is gone is accounted for, and the next run goes on from there. The
chains stay whole, since they are made of hashes. What is left of an exchange: ids, times, kinds.

SQLite: deleted bytes are overwritten with zeros (``secure_delete``), and the write-ahead log is
emptied afterwards. PostgreSQL keeps old row versions until VACUUM, and its log and every backup
keep them for longer: those are the operator's. Rotating the key-encryption key afterwards
(serve/audit/rotate.py) and destroying the old one makes the wrapped keys in old backups useless.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sqlalchemy import ColumnElement, Connection, delete, func, select, tuple_, update

from serve.audit import schema
from serve.audit.committing import NOTED_US
from serve.audit.entries import Entry, RefusedError
from serve.audit.problems import UNSEALED
from serve.audit.reading import body_of, records_of
from serve.audit.records import RequestRecord, ShredRecord
from serve.audit.store import Store
from serve.audit.writer import Writer

DAY_US = 24 * 3600 * 1_000_000
# Together in one transaction: others' writes wait for it, some tens of milliseconds.
_EXCHANGES = 200
_IMAGES = 50
_LOOKED_AT = 5000  # keys that one statement looks at
_TRIES = 20
_OPEN = ("pending", "claimed")


class RetentionError(ValueError):
    """It must not be shredded; the message says why."""


class ClockError(RetentionError):
    """Nothing was recorded lately: the clock may have jumped forward."""


class _Changed(RefusedError):
    """Somebody else has shredded or used some of a batch meanwhile."""


@dataclass(frozen=True, slots=True)
class Shredded:
    """What a run has done."""

    exchanges: int
    images: int
    kept: int  # old, but their review is open
    log_emptied: bool  # SQLite: no former content is left in its write-ahead log


def shred(
    store: Store,
    writer: Writer,
    principal: str,
    before: int,
    *,
    open_too: bool = False,
    sure: bool = False,
    progress: Callable[[int], None] = lambda _exchanges: None,
) -> Shredded:
    """Shreds every exchange that began before a time, and images that were last used before it.

    Args:
        store: in which.
        writer: writes the records of it.
        principal: who wants it.
        before: microseconds since 1970.
        open_too: also exchanges whose review is open.
        sure: even if nothing was recorded in the last two days.
        progress: called with the exchanges that are shredded so far.

    Raises:
        RetentionError: ``before`` is less than a day ago.
        ClockError: nothing was recorded in the last two days.
        AuditUnavailableError, sqlalchemy.exc.SQLAlchemyError: the store does not take it.
    """
    now = time.time_ns() // 1000
    if before > now - DAY_US:
        raise RetentionError("what is less than a day old is not shredded")
    with store.reading() as connection:
        newest = connection.scalar(select(func.max(schema.records.c.at)))
    if newest is not None and newest < now - 2 * DAY_US and not sure:
        raise ClockError(
            "the newest record is more than two days old: the clock may have jumped forward"
        )
    exchanges = 0
    kept: list[str] = []
    for batch in _old(store, before, open_too=open_too, kept=kept):
        exchanges += _shred(store, writer, principal, before, batch, open_too=open_too)
        progress(exchanges)
    images = _shred_images(store, writer, principal, before, kept)
    return Shredded(exchanges, images, len(kept), _empty_log(store))


# --- exchanges ---------------------------------------------------------------------------------


def _old(store: Store, before: int, *, open_too: bool, kept: list[str]) -> Iterator[list[str]]:
    """Batches of exchanges to shred; those that are not, since they are open, into ``kept``."""
    keys, place = schema.keys, (0, "")
    query = (
        select(keys.c.at, keys.c.audit_id, keys.c.wrapped.is_(None).label("gone"))
        .where(keys.c.at < before)
        .order_by(keys.c.at, keys.c.audit_id)
        .limit(_LOOKED_AT)
    )
    while True:
        with store.reading() as connection:
            behind = tuple_(keys.c.at, keys.c.audit_id) > place
            rows = connection.execute(query.where(keys.c.at >= place[0], behind)).all()
            old = [row.audit_id for row in rows if not row.gone]
            under_review = set() if open_too else _under_review(connection, old)
        if not rows:
            return
        place = (rows[-1].at, rows[-1].audit_id)
        kept += under_review
        remaining = iter(audit_id for audit_id in old if audit_id not in under_review)
        while batch := list(islice(remaining, _EXCHANGES)):
            yield batch


def _under_review(connection: Connection, audit_ids: Sequence[str]) -> set[str]:
    reviews = schema.reviews
    query = select(reviews.c.audit_id).where(
        reviews.c.audit_id.in_(audit_ids), reviews.c.state.in_(_OPEN)
    )
    return set(connection.scalars(query))


def _shred(
    store: Store,
    writer: Writer,
    principal: str,
    before: int,
    batch: list[str],
    *,
    open_too: bool,
) -> int:
    """Shreds those of a batch that nobody else has; how many."""
    keys = schema.keys
    for _ in range(_TRIES):
        with store.reading() as connection:
            query = select(keys.c.audit_id).where(_whole(batch))
            left = sorted(connection.scalars(query))
            if not open_too:
                left = sorted(set(left) - _under_review(connection, left))
        if not left:
            return 0

        def within(connection: Connection, left: list[str] = left) -> None:
            locked = select(keys.c.audit_id).where(_whole(left)).order_by(keys.c.audit_id)
            there = connection.scalars(locked.with_for_update()).all()
            if len(there) != len(left) or (not open_too and _under_review(connection, left)):
                raise _Changed()
            _destroy(connection, left)

        body = ShredRecord(principal=principal, before=before, exchanges=len(left), blobs=0)
        if _written(writer, body, within):
            return len(left)
    raise RetentionError("others shred at the same time; try again")


def _whole(audit_ids: Sequence[str]) -> ColumnElement[bool]:
    keys = schema.keys
    return keys.c.audit_id.in_(audit_ids) & keys.c.wrapped.is_not(None)


def _destroy(connection: Connection, audit_ids: list[str]) -> None:
    records, keys = schema.records, schema.keys
    reviews, escalations, terms = schema.reviews, schema.escalations, schema.terms
    connection.execute(
        update(records)
        .where(records.c.audit_id.in_(audit_ids), records.c.kind.not_in(UNSEALED))
        .values(payload=None)
    )
    connection.execute(update(keys).where(keys.c.audit_id.in_(audit_ids)).values(wrapped=None))
    connection.execute(update(reviews).where(reviews.c.audit_id.in_(audit_ids)).values(detail=None))
    connection.execute(
        update(escalations).where(escalations.c.audit_id.in_(audit_ids)).values(next_at=None)
    )
    connection.execute(delete(terms).where(terms.c.audit_id.in_(audit_ids)))


# --- images ------------------------------------------------------------------------------------


def _shred_images(
    store: Store, writer: Writer, principal: str, before: int, kept: Sequence[str]
) -> int:
    """Shreds images that no exchange needs that is left; how many."""
    # Their last use may have been later than was noted.
    blobs, limit = schema.blobs, before - NOTED_US
    needed = _images_of(store, kept)
    images, place = 0, (0, b"")
    while True:
        with store.reading() as connection:
            rows = connection.execute(
                select(blobs.c.last_used, blobs.c.name)
                .where(blobs.c.last_used < limit, blobs.c.last_used >= place[0])
                .where(tuple_(blobs.c.last_used, blobs.c.name) > place)
                .order_by(blobs.c.last_used, blobs.c.name)
                .limit(_IMAGES)
            ).all()
        if not rows:
            return images
        place = (rows[-1].last_used, bytes(rows[-1].name))
        names = sorted({bytes(row.name) for row in rows} - needed)
        # Images that were used again since are left to a later run.
        if names and _delete_images(writer, principal, before, names, limit):
            images += len(names)


def _delete_images(
    writer: Writer, principal: str, before: int, names: list[bytes], limit: int
) -> bool:
    blobs = schema.blobs

    def within(connection: Connection) -> None:
        old = blobs.c.name.in_(names) & (blobs.c.last_used < limit)
        locked = select(blobs.c.name).where(old).order_by(blobs.c.name).with_for_update()
        if len(connection.scalars(locked).all()) != len(names):
            raise _Changed()
        connection.execute(delete(blobs).where(blobs.c.name.in_(names)))

    body = ShredRecord(principal=principal, before=before, exchanges=0, blobs=len(names))
    return _written(writer, body, within)


def _images_of(store: Store, audit_ids: Sequence[str]) -> set[bytes]:
    """The images of exchanges that are left though they are old."""
    names = set()
    with store.reading() as connection:
        for audit_id in audit_ids:
            key = store.data_key(connection, audit_id)
            for link, payload in records_of(connection, audit_id):
                if link.kind == "request":
                    request = body_of(RequestRecord, link, payload, key)
                    for image in request.images:
                        names |= {name for name in (image.square, image.picture) if name}
    return {bytes.fromhex(name) for name in names}


# --- both --------------------------------------------------------------------------------------


def _written(writer: Writer, body: ShredRecord, within: Callable[[Connection], None]) -> bool:
    """Whether it was done; not, when somebody else has changed what it is about."""
    entry = Entry(
        "shred", str(uuid.uuid4()), body.model_dump_json().encode(), key=None, within=within
    )
    try:
        writer.write(entry).result()
    except _Changed:
        return False
    return True


def _empty_log(store: Store) -> bool:
    """SQLite's write-ahead log has former content until it is written back and cut to nothing."""
    if store.engine.dialect.name != "sqlite":
        return True
    for _ in range(_TRIES):
        with store.engine.connect() as connection:
            raw = connection.connection.cursor()  # not within a transaction
            try:
                busy = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                raw.close()
        if not busy:
            return True
        time.sleep(0.1)
    return False
