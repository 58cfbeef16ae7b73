"""Whether everything that is sealed opens, and what belongs together is there.

For serve/audit/verify.py: opens contents with the store's keys, tells what is wrong with them, and
shows nothing of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json
from sqlalchemy import Connection, Row, func, select

from serve.audit import schema
from serve.audit.chain import Link
from serve.audit.keyring import AlteredError, WrongKeyError
from serve.audit.problems import (
    BATCH,
    BEGINS,
    UNSEALED,
    Found,
    Kind,
    Problem,
    Progress,
    shredded_of,
)
from serve.audit.reading import body_of, link_of
from serve.audit.records import ReviewRecord
from serve.audit.store import Store, detail_place, key_place

_IMAGES = 16  # read at once: some are of a megabyte
# The state of a review after an action; the others keep it.
_AFTER = {
    "claim": "claimed",
    "release": "pending",
    "sign_off": "signed_off",
    "amend": "amended",
    "reject": "rejected",
}


@dataclass(slots=True)
class _Batch:
    """What a batch of records speaks of, to be looked up together."""

    keyless: list[Link] = field(default_factory=list)
    images: dict[bytes, Link] = field(default_factory=dict)
    answers: dict[str, tuple[Link, bool]] = field(default_factory=dict)  # whether urgent


@dataclass(frozen=True, slots=True)
class Contents:
    """Opens a store's contents, table by table."""

    store: Store

    def records(
        self,
        connection: Connection,
        rows: Sequence[Row[Any]],
        links: Sequence[Link],
        found: Found,
    ) -> None:
        """Opens records, ``rows`` with their exchanges' ``key_at`` and ``wrapped``."""
        batch = _Batch()
        for row, link in zip(rows, links, strict=True):
            if link.kind in UNSEALED:
                continue
            if row.key_at is None:
                found(_of(link, "missing", "the key of its exchange is not there"))
            elif link.kind in BEGINS and row.key_at != link.at:
                found(_of(link, "altered", "the time of its exchange's key is not its own"))
            elif row.payload is None:
                if row.wrapped is not None:
                    found(_of(link, "missing", "its content is gone, but its key is not"))
            elif row.wrapped is None:
                batch.keyless.append(link)
            else:
                try:
                    key = self.store.keyring.unwrap(row.wrapped, key_place(link.audit_id))
                    _note(batch, link, key.open(row.payload, link.place))
                except WrongKeyError as error:
                    found(_of(link, "unopenable", str(error)))
                except AlteredError:
                    found(_of(link, "unopenable", "neither its content nor its key may be whole"))
                except (ValueError, KeyError, TypeError):
                    found(_of(link, "altered", "its content is not of the form of its kind"))
        _look_up(connection, batch, found)

    def images(self, connection: Connection, found: Found, progress: Progress) -> int:
        """Opens every image; how many there are."""
        table = schema.blobs
        total = connection.scalar(select(func.count()).select_from(table)) or 0
        done, last = 0, b""
        query = select(table.c.name, table.c.wrapped, table.c.payload).order_by(table.c.name)
        while rows := connection.execute(query.where(table.c.name > last).limit(_IMAGES)).all():
            for row in rows:
                last = bytes(row.name)
                if not self._opens(last, row.wrapped, row.payload):
                    text = f"the image {last.hex()} does not open"
                    found(Problem("unopenable", "images", 0, None, text))
            done += len(rows)
            progress(done, total, "images")
        return total

    def _opens(self, name: bytes, wrapped: bytes, payload: bytes) -> bool:
        try:
            content = self.store.keyring.unwrap(wrapped, name).open(payload, name)
        except (AlteredError, WrongKeyError):
            return False
        return self.store.blob_name(content) == name

    def reviews(self, connection: Connection, found: Found) -> None:
        """Whether reviews are as their records left them."""
        table, keys = schema.reviews, schema.keys
        query = (
            select(table, keys.c.wrapped)
            .outerjoin(keys, keys.c.audit_id == table.c.audit_id)
            .order_by(table.c.review_id)
            .limit(BATCH)
        )
        last = ""
        while rows := connection.execute(query.where(table.c.review_id > last)).all():
            last = rows[-1].review_id
            whole = {row.audit_id: row for row in rows if row.wrapped is not None}
            acts = self._acts(connection, whole)
            for row in whole.values():
                if text := self._wrong(row, acts.get(row.review_id, ())):
                    found(Problem("altered", "reviews", 0, row.audit_id, text))

    def _acts(
        self, connection: Connection, whole: Mapping[str, Row[Any]]
    ) -> dict[str, list[ReviewRecord]]:
        """What reviewers did, by review; of records that do not open, the chains' walk tells."""
        table = schema.records
        query = select(table).where(table.c.audit_id.in_(list(whole)), table.c.kind == "review")
        acts = defaultdict(list)
        for row in connection.execute(query):
            try:
                place = key_place(row.audit_id)
                key = self.store.keyring.unwrap(whole[row.audit_id].wrapped, place)
                record = body_of(ReviewRecord, link_of(row), row.payload, key)
            except (AlteredError, WrongKeyError, ValidationError, TypeError):
                continue
            acts[record.review_id].append(record)
        return acts

    def _wrong(self, row: Row[Any], acts: Iterable[ReviewRecord]) -> str | None:
        state, version = "pending", 1
        for act in sorted(acts, key=lambda act: act.version):
            state, version = _AFTER.get(act.action, state), act.version
        if (row.state, row.version) != (state, version):
            return (
                f"the review {row.review_id} is {row.state} (version {row.version}); "
                f"its records say {state} (version {version})"
            )
        if row.detail is not None:
            try:
                key = self.store.keyring.unwrap(row.wrapped, key_place(row.audit_id))
                key.open(row.detail, detail_place(row.review_id, row.version))
            except (AlteredError, WrongKeyError):
                return f"the detail of the review {row.review_id} does not open"
        return None


def _note(batch: _Batch, link: Link, body: bytes) -> None:
    if link.kind == "request":
        for image in from_json(body)["images"]:
            for name in (image["square"], image["picture"]):
                if name is not None:
                    batch.images[bytes.fromhex(name)] = link
    elif link.kind == "answer":
        answer = from_json(body)
        if any(choice["sent"] for choice in answer["choices"]):
            batch.answers[link.audit_id] = (link, bool(answer["escalation"]))


def _look_up(connection: Connection, batch: _Batch, found: Found) -> None:
    if batch.keyless:
        shredded = shredded_of(connection, {link.audit_id for link in batch.keyless})
        for link in batch.keyless:
            if link.audit_id not in shredded:
                found(_of(link, "missing", "its key is gone, and no record says it was shredded"))
    if batch.images:
        table = schema.blobs
        query = select(table.c.name).where(table.c.name.in_(list(batch.images)))
        there = {bytes(name) for name in connection.scalars(query)}
        for name in batch.images.keys() - there:
            found(_of(batch.images[name], "missing", f"its image {name.hex()} is not there"))
    if batch.answers:
        reviews, escalations = schema.reviews, schema.escalations
        rows = connection.execute(
            select(reviews.c.audit_id, reviews.c.urgent, escalations.c.review_id)
            .outerjoin(escalations, escalations.c.review_id == reviews.c.review_id)
            .where(reviews.c.audit_id.in_(list(batch.answers)))
        )
        queued = {row.audit_id: row for row in rows}
        for audit_id, (link, urgent) in batch.answers.items():
            row = queued.get(audit_id)
            if row is None:
                found(_of(link, "missing", "its review is not there"))
            elif bool(row.urgent) is not urgent:
                found(_of(link, "altered", "whether its review is urgent is not as it was written"))
            elif urgent and row.review_id is None:
                found(_of(link, "missing", "its escalation is not there"))


def _of(link: Link, kind: Kind, text: str) -> Problem:
    return Problem(kind, link.writer, link.seq, link.audit_id, text)
