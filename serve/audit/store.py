"""An open store: its database, its keys, and what is derived from them. Reads; never writes.

People's reads go through serve/audit/reading.py, which records them first.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from pathlib import Path

from sqlalchemy import Connection, Engine, select

from serve.audit import keyring, schema
from serve.audit.chain import Link
from serve.audit.keyring import AlteredError, DataKey, Keyring, WrongKeyError
from serve.audit.schema import WrongStoreError
from serve.settings import Audit, Settings

INDEX_KEY = "index_key"  # its name in ``meta``, and what it is bound to


class ShreddedError(Exception):
    """The key of this was destroyed; nobody can read it any more."""


class UnknownError(Exception):
    """There is no such record."""


# What is wrong with a store or its keys; the messages say it, and hold no secret.
STORE_ERRORS = (OSError, ValueError, WrongKeyError, AlteredError, WrongStoreError)


@dataclass(frozen=True, slots=True)
class Store:
    """What every reader and writer of one store shares. Safe to use from several threads."""

    engine: Engine
    keyring: Keyring
    id: str
    _index_key: bytes = field(repr=False)

    def term(self, name: str, value: str) -> int:
        """The keyed hash of ``name=value`` that tables have in the place of a value."""
        digest = blake2b(f"{name}={value}".encode(), key=self._index_key, digest_size=8)
        return int.from_bytes(digest.digest(), signed=True)

    def blob_name(self, content: bytes) -> bytes:
        """What a blob is stored under. Keyed: nobody can look whether a known image is here."""
        return self.blob_name_of(sha256(content).digest())

    def blob_name_of(self, digest: bytes) -> bytes:
        """The same, from the content's SHA-256."""
        return blake2b(digest, key=self._index_key, digest_size=32, person=b"blob").digest()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for one consistent look."""
        with self.engine.connect() as connection:
            yield connection

    def data_key(self, connection: Connection, audit_id: str) -> DataKey:
        """The key of an exchange.

        Raises:
            UnknownError: there is no such exchange.
            ShreddedError: its key was destroyed.
            WrongKeyError, AlteredError: it does not unwrap.
        """
        row = connection.execute(
            select(schema.keys.c.wrapped).where(schema.keys.c.audit_id == audit_id)
        ).first()
        if row is None:
            raise UnknownError()
        if row.wrapped is None:
            raise ShreddedError()
        return self.keyring.unwrap(row.wrapped, key_place(audit_id))

    def blob(self, connection: Connection, name: bytes) -> bytes:
        """An image's file.

        Raises:
            UnknownError: it was never stored, or has been shredded.
            WrongKeyError, AlteredError: it does not open.
        """
        row = connection.execute(
            select(schema.blobs.c.wrapped, schema.blobs.c.payload).where(
                schema.blobs.c.name == name
            )
        ).first()
        if row is None:
            raise UnknownError()
        content = self.keyring.unwrap(row.wrapped, name).open(row.payload, name)
        if self.blob_name(content) != name:
            raise AlteredError("an image is not the one that was stored")
        return content


def key_place(audit_id: str) -> bytes:
    """What an exchange's wrapped key is bound to."""
    return f"key\n{audit_id}".encode()


def detail_place(review_id: str, version: int) -> bytes:
    """What a review's sealed detail is bound to."""
    return f"review\n{review_id}\n{version}".encode()


def open_record(link: Link, payload: bytes, key: DataKey | None) -> bytes:
    """A record's body, as JSON. Without a key: one that is not sealed.

    Raises:
        AlteredError: it is not what was stored there.
    """
    return payload if key is None else key.open(payload, link.place)


def url_of(settings: Settings) -> str:
    """The database's URL: the settings', or a file in ``state_dir``."""
    if settings.audit.url is not None:
        return settings.audit.url.get_secret_value()
    return f"sqlite:///{settings.state_dir.expanduser().resolve() / 'audit.db'}"


def keyring_of(audit: Audit) -> Keyring:
    """The key ring: given as it is, or by file.

    Raises:
        ValueError: no key, or not one.
        OSError: the file cannot be read.
    """
    if audit.key is not None:
        return keyring.parse(audit.key.get_secret_value())
    if audit.key_file is None:
        raise ValueError("no key for the audit store: set audit.key or audit.key_file")
    return keyring.parse(audit.key_file.expanduser().read_text())


def open_store(settings: Settings) -> Store:
    """Opens the store; makes it where there is none.

    Raises:
        ValueError, OSError: no usable key.
        WrongKeyError: the store is sealed by another key.
        WrongStoreError: it was made by another version.
        sqlalchemy.exc.SQLAlchemyError: the database does not answer.
    """
    ring = keyring_of(settings.audit)
    url = url_of(settings)
    if url.startswith("sqlite:///"):
        path = Path(url.removeprefix("sqlite:///"))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    engine = schema.engine_for(url, timeout_s=settings.audit.timeout_s)
    first = {
        "store_id": uuid.uuid4().hex.encode(),
        INDEX_KEY: ring.wrap(DataKey.new(), INDEX_KEY.encode()),
    }
    try:
        entries = schema.prepare(engine, first)
        index_key = ring.unwrap(entries[INDEX_KEY], INDEX_KEY.encode()).secret
    except BaseException:
        engine.dispose()
        raise
    return Store(engine, ring, entries["store_id"].decode(), index_key)
