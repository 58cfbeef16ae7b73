"""A real store, and the review application over it with a key for everybody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr
from sqlalchemy import select
from starlette.types import ASGIApp

from guardrails import policy
from serve.audit import schema
from serve.audit.reading import body_of, records_of
from serve.audit.records import ReadRecord, ReviewRecord
from serve.audit.store import Store
from serve.audit.writer import Writer
from serve.principals import KeyEntry, Principals, Role, keys_text
from serve.review.api import build_review_app
from tests.exchanges import Written, write_exchange
from tests.unit.recording import opened, settings_in

POLICY = policy.load()
ROLES: Mapping[str, set[Role]] = {
    "dr-jones": {Role.REVIEWER},
    "dr-smith": {Role.REVIEWER},
    "ward-3": {Role.CALLER},
    "ward-4": {Role.CALLER},
    "data-office": {Role.AUDITOR},
    "root": {Role.ADMIN},
}


def key_of(name: str) -> str:
    return f"key-of-{name}-0123456789"


def write_keys(path: Path) -> Path:
    """A keys file with everybody in it."""
    entries = tuple(
        KeyEntry(
            name=name, roles=frozenset(roles), sha256=sha256(key_of(name).encode()).hexdigest()
        )
        for name, roles in ROLES.items()
    )
    path.write_text(keys_text(entries))
    return path


def principals_in(folder: Path) -> Principals:
    keys = write_keys(folder / "keys.yaml")
    return Principals.of(api_key=SecretStr("k" * 16), admin_key=None, keys=keys)


@dataclass(frozen=True)
class Room:
    """Where reviewers work."""

    store: Store
    writer: Writer
    app: ASGIApp

    def write(self, **values: Any) -> Written:
        return write_exchange(self.store, self.writer, **values)

    async def get(self, path: str, who: str = "dr-jones", **options: Any) -> httpx.Response:
        return await self.send("GET", path, who, **options)

    async def act(
        self, id: str, action: str, version: int, who: str = "dr-jones", **body: Any
    ) -> httpx.Response:
        return await self.send(
            "POST", f"/v1/reviews/{id}/{action}", who, json={"version": version, **body}
        )

    async def send(self, method: str, path: str, who: str | None, **options: Any) -> httpx.Response:
        headers = {} if who is None else {"authorization": f"Bearer {key_of(who)}"}
        headers |= options.pop("headers", {})
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers, **options)

    def reads(self) -> list[ReadRecord]:
        """Every look that was recorded, oldest first."""
        table = schema.records
        with self.store.reading() as connection:
            ids = connection.scalars(
                select(table.c.audit_id)
                .where(table.c.kind == "read")
                .order_by(table.c.at, table.c.seq)
            ).all()
            return [
                body_of(ReadRecord, link, payload, self.store.data_key(connection, audit_id))
                for audit_id in ids
                for link, payload in records_of(connection, audit_id)
            ]

    def actions(self, written: Written) -> list[ReviewRecord]:
        """What was done to an item, by the records."""
        with self.store.reading() as connection:
            key = self.store.data_key(connection, written.audit_id)
            return [
                body_of(ReviewRecord, link, payload, key)
                for link, payload in records_of(connection, written.audit_id)
                if link.kind == "review"
            ]

    def row(self, written: Written) -> dict[str, Any]:
        """An item's row, and its escalation's."""
        found: dict[str, Any] = {}
        with self.store.reading() as connection:
            for table in (schema.escalations, schema.reviews):
                query = select(table).where(table.c.review_id == written.review_id)
                found |= dict(connection.execute(query).mappings().first() or {})
        return found


@contextmanager
def room_in(folder: Path, *, timeout_s: float = 5.0) -> Iterator[Room]:
    principals = principals_in(folder)
    with opened(settings_in(folder)) as (store, writer):
        app = build_review_app(store, writer, principals, lambda: POLICY, timeout_s=timeout_s)
        yield Room(store, writer, app)
