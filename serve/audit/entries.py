"""What is handed to a writer: a record, and all that is to be there if and only if it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Table

from serve.audit.keyring import DataKey

Kind = Literal[
    "open", "request", "answer", "refusal", "read", "review", "escalation", "shred", "rotate"
]


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
