"""The tables of the store, the same in SQLite and PostgreSQL. Knows nothing of what is sealed.

What stands here in clear: ids, times, kinds, states, and hashes. Everything else is sealed
(serve/audit/keyring.py), or a keyed hash (``terms``), which only who has the key can search.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
)

VERSION = b"1"
WRITE = "llava_med_write"  # execution option of transactions that write
_MAKING = 0x6C6D_6175  # PostgreSQL's advisory lock of whoever makes the tables

metadata = MetaData()

meta = Table(
    "meta",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", LargeBinary, nullable=False),
)

# One row an event. `at` is in microseconds since 1970, and never falls within a writer's chain.
records = Table(
    "records",
    metadata,
    Column("writer", String(32), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, nullable=False, index=True),
    Column("kind", String(16), nullable=False),
    Column("audit_id", String(36), nullable=False, index=True),
    Column("previous", LargeBinary, nullable=False),  # the hash before, in the same chain
    Column("digest", LargeBinary, nullable=False),  # SHA-256 of the payload
    Column("hash", LargeBinary, nullable=False),
    Column("payload", LargeBinary),  # sealed; null after it was shredded
)

# Every chain, so that its head is found without looking at every record.
writers = Table(
    "writers",
    metadata,
    Column("writer", String(32), primary_key=True),
    Column("at", BigInteger, nullable=False, index=True),
)

# The data key of every exchange: a request, its answer, its review. Null after it was shredded.
keys = Table(
    "keys",
    metadata,
    Column("audit_id", String(36), primary_key=True),
    Column("at", BigInteger, nullable=False, index=True),
    Column("wrapped", LargeBinary),
)

# A keyed hash of "field=value", for each that an exchange can be searched by.
terms = Table(
    "terms",
    metadata,
    Column("term", BigInteger, primary_key=True, autoincrement=False),
    Column("at", BigInteger, primary_key=True, autoincrement=False),
    Column("audit_id", String(36), primary_key=True),
    sqlite_with_rowid=False,
)
Index("terms_of_exchange", terms.c.audit_id)  # what is deleted with it

# Images, each stored once under a keyed hash of its content.
blobs = Table(
    "blobs",
    metadata,
    Column("name", LargeBinary, primary_key=True),
    Column("last_used", BigInteger, nullable=False, index=True),
    Column("wrapped", LargeBinary, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

# The clinicians' queue. `owner` and `claimant` are terms of principals; `detail` is sealed.
reviews = Table(
    "reviews",
    metadata,
    Column("review_id", String(36), primary_key=True),
    Column("audit_id", String(36), nullable=False, index=True),
    Column("at", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("urgent", Boolean, nullable=False),
    Column("held", Boolean, nullable=False),
    Column("owner", BigInteger, nullable=False),
    Column("claimant", BigInteger),
    Column("claimed_at", BigInteger),
    Column("acknowledged_at", BigInteger),
    Column("closed_at", BigInteger),
    Column("version", Integer, nullable=False),
    Column("detail", LargeBinary),
)
Index("reviews_in_order", reviews.c.state, reviews.c.urgent.desc(), reviews.c.at)

# What is still to be sent for urgent reviews: written with the answer, in the same transaction.
escalations = Table(
    "escalations",
    metadata,
    Column("review_id", String(36), primary_key=True),
    Column("audit_id", String(36), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("next_at", BigInteger, index=True),  # null: nothing more to send
    Column("sent", Integer, nullable=False),  # deliveries that the receiver took
    Column("failed", Integer, nullable=False),  # attempts since the last one that it took
)


class WrongStoreError(Exception):
    """The database is not a store of this version."""


def engine_for(url: str, *, timeout_s: float) -> Engine:
    """A database. SQLite: one file in WAL mode, synced at each commit, freed pages zeroed.

    Args:
        url: SQLAlchemy's, ``sqlite:////path/audit.db`` or ``postgresql+psycopg://...``.
        timeout_s: for a lock, a connection, a statement.
    """
    if url.startswith("sqlite"):
        engine = create_engine(
            url,
            paramstyle="named",  # as PostgreSQL's: rows are dictionaries for both
            connect_args={"timeout": timeout_s, "check_same_thread": False},
        )
        event.listen(engine, "connect", _sqlite_connected)
        event.listen(engine, "begin", _sqlite_begin)
        return engine
    milliseconds = int(timeout_s * 1000)
    return create_engine(
        url,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": max(2, int(timeout_s)),
            "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds}",
            "tcp_user_timeout": milliseconds,
        },
    )


def _sqlite_connected(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, see below
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "secure_delete=ON",
        "wal_autocheckpoint=4000",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    # A transaction that reads first and writes later could find that somebody else has written.
    write = connection.get_execution_options().get(WRITE)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def prepare(engine: Engine, first: dict[str, bytes]) -> dict[str, bytes]:
    """Makes what is missing; returns the store's entries of ``meta``.

    Args:
        engine: the database.
        first: the entries of a store that is made now; an older one keeps its own.

    Raises:
        WrongStoreError: it was made by another version.
    """
    with engine.connect() as connection:
        found = _entries(connection) if inspect(connection).has_table(meta.name) else {}
    if not found:
        # One transaction, and one process at a time: nobody sees half of a store.
        with engine.connect().execution_options(**{WRITE: True}) as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(select(func.pg_advisory_xact_lock(_MAKING)))
            metadata.create_all(connection)
            found = _entries(connection)
            if not found:
                rows = [{"name": "version", "value": VERSION}]
                rows += [{"name": name, "value": value} for name, value in first.items()]
                connection.execute(insert(meta), rows)
                found = _entries(connection)
            connection.commit()
    if found.get("version") != VERSION:
        raise WrongStoreError("the audit store was made by another version of this software")
    return found


def _entries(connection: Connection) -> dict[str, bytes]:
    return {name: bytes(value) for name, value in connection.execute(select(meta))}
