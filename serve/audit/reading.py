"""Reading for people. Every look is recorded first; what cannot be recorded is not shown."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel
from sqlalchemy import Connection, Row, select

from serve.audit import schema
from serve.audit.chain import Link
from serve.audit.entries import Entry
from serve.audit.keyring import DataKey
from serve.audit.records import AnswerRecord, ReadRecord, RequestRecord
from serve.audit.store import Store, UnknownError, open_record
from serve.audit.writer import Writer

Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and, unless its process died first, its answer."""

    audit_id: str
    at: int  # microseconds since 1970
    request: RequestRecord
    answer: AnswerRecord | None


def note(
    store: Store,
    writer: Writer,
    principal: str,
    what: str,
    *,
    of: str | None = None,
    query: Mapping[str, str] | None = None,
) -> Future[Link]:
    """Records a look; done once it is on disk. Call and wait before anything is shown.

    Raises:
        AuditUnavailableError: from the future, or at once.
    """
    body = ReadRecord(principal=principal, what=what, of=of, query=dict(query or {}))
    entry = Entry(
        "read",
        str(uuid.uuid4()),
        body.model_dump_json().encode(),
        DataKey.new(),
        new_key=True,
        terms=(store.term("principal", principal), store.term("kind", "read"))
        + ((store.term("of", of),) if of else ()),
    )
    return writer.write(entry)


def exchange(store: Store, connection: Connection, audit_id: str) -> Exchange:
    """An exchange, decrypted.

    Raises:
        UnknownError: there is none.
        ShreddedError: its key was destroyed.
        AlteredError, WrongKeyError: it does not open.
    """
    key = store.data_key(connection, audit_id)
    at, request = 0, None
    answer = None
    for link, payload in records_of(connection, audit_id):
        if link.kind == "request":
            at = link.at
            request = body_of(RequestRecord, link, payload, key)
        elif link.kind == "answer":
            answer = body_of(AnswerRecord, link, payload, key)
    if request is None:
        raise UnknownError()
    return Exchange(audit_id, at, request, answer)


def records_of(connection: Connection, audit_id: str) -> list[tuple[Link, bytes]]:
    """All records of an exchange in the order they were written; shredded ones are left out."""
    table = schema.records
    rows = connection.execute(
        select(table)
        .where(table.c.audit_id == audit_id, table.c.payload.is_not(None))
        .order_by(table.c.at, table.c.seq)
    )
    return [(link_of(row), bytes(row.payload)) for row in rows]


def link_of(row: Row[Any]) -> Link:
    """Where a row of ``records`` stands in its chain."""
    return Link(row.writer, row.seq, row.at, row.kind, row.audit_id, bytes(row.previous))


def body_of(kind: type[Body], link: Link, payload: bytes, key: DataKey | None) -> Body:
    """A record's body.

    Raises:
        AlteredError: it does not open.
    """
    return kind.model_validate_json(open_record(link, payload, key))
