"""Everything the store has under one audit_id, opened. Who calls records the look first."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel
from sqlalchemy import Connection, select

from serve.audit import records, schema
from serve.audit.chain import Link
from serve.audit.problems import UNSEALED
from serve.audit.reading import body_of, link_of
from serve.audit.store import ShreddedError, Store, UnknownError

_BODIES: dict[str, type[BaseModel]] = {
    "request": records.RequestRecord,
    "answer": records.AnswerRecord,
    "refusal": records.RefusalRecord,
    "read": records.ReadRecord,
    "review": records.ReviewRecord,
    "escalation": records.EscalationRecord,
    "shred": records.ShredRecord,
    "rotate": records.RotateRecord,
}
Body = TypeVar("Body", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Dossier:
    """Records in the order they were written, and the state of the review, where there is one."""

    audit_id: str
    records: tuple[tuple[Link, BaseModel], ...]
    review: str | None

    def all(self, kind: type[Body]) -> list[Body]:
        """The records of one kind."""
        return [body for _, body in self.records if isinstance(body, kind)]

    def one(self, kind: type[Body]) -> Body | None:
        """The last record of a kind of which there is one at most."""
        found = self.all(kind)
        return found[-1] if found else None


def audit_id_of(given: str) -> str:
    """The audit_id of an exchange of which any id is known: they are one UUID.

    Args:
        given: an audit_id, a review_id, or a request's id: 32 hexadecimal digits, with
            ``chatcmpl-`` before them in a response.

    Raises:
        ValueError: it is none.
    """
    return str(uuid.UUID(given.removeprefix("chatcmpl-")))


def dossier(store: Store, connection: Connection, audit_id: str) -> Dossier:
    """All records of an exchange (or of a look, a refusal, ...), opened.

    Raises:
        UnknownError: there are none.
        ShreddedError: their key was destroyed.
        AlteredError, WrongKeyError: they do not open.
    """
    table = schema.records
    rows = connection.execute(
        select(table).where(table.c.audit_id == audit_id).order_by(table.c.at, table.c.seq)
    ).all()
    if not rows:
        raise UnknownError()
    sealed = any(row.kind not in UNSEALED for row in rows)
    key = store.data_key(connection, audit_id) if sealed else None
    opened = []
    for row in rows:
        if row.kind in _BODIES:
            if row.payload is None:
                raise ShreddedError()
            seal = None if row.kind in UNSEALED else key
            body = body_of(_BODIES[row.kind], link_of(row), bytes(row.payload), seal)
            opened.append((link_of(row), body))
    reviews = schema.reviews
    state = connection.scalar(select(reviews.c.state).where(reviews.c.audit_id == audit_id))
    return Dossier(audit_id, tuple(opened), state)
