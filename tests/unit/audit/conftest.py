"""An open store on SQLite or PostgreSQL, with a real writer, and exchanges to fill it with."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Table, text

from guardrails.answers import AnswerFormat, Status, Template
from guardrails.rules import Action, Stage
from serve.audit import checkpoints, keyring, reading, schema
from serve.audit.contents import Contents
from serve.audit.entries import Blob, Entry
from serve.audit.opening import checkpoint_folder, open_writer
from serve.audit.records import (
    AnswerRecord,
    EscalationRecord,
    Model,
    RecordedChoice,
    RecordedFinding,
    RecordedImage,
    RecordedSampling,
    RecordedTurn,
    RecordedVerdict,
    RequestRecord,
    ReviewAction,
    ReviewRecord,
)
from serve.audit.store import Store, detail_place, open_store
from serve.audit.verify import Report, verify
from serve.audit.writer import Writer
from serve.protocol import ImageNote
from serve.settings import Settings, load
from tests.postgres import Postgres, postgres

QUESTION = "Is there a left-sided pneumothorax?"
DRAFT = "Yes. A large tension pneumothorax is seen on the left."
NOTE = ImageNote(
    media_type="application/dicom",
    role=None,
    frame=1,
    frames=1,
    window=None,
    burned_in="none",
    burned_in_evidence=[],
)


def exchange(
    store: Store,
    *,
    blob: Blob,
    principal: str = "dr-jones",
    urgent: bool = False,
    question: str = QUESTION,
    sent: str = DRAFT,
    finding: str = "pneumothorax",
    status: str = "present",
) -> tuple[Entry, Entry]:
    """The request and the answer of an exchange, as the service writes them."""
    request_id = uuid.uuid4()
    audit_id = review_id = str(request_id)
    key = keyring.DataKey.new()
    request = RequestRecord(
        request_id=request_id.hex,
        review_id=review_id,
        principal=principal,
        model=Model(id="llava-med", digest="a" * 64),
        policy="default-1@sha256:" + "b" * 64,
        template=Template.FINDING,
        format=AnswerFormat.TEXT,
        question=question,
        turns=(RecordedTurn(role="user", text=question, images=(0,)),),
        images=(
            RecordedImage(
                digest="c" * 64, square=blob.name.hex(), picture=None, instance=None, note=NOTE
            ),
        ),
        sampling=RecordedSampling(
            max_tokens=512,
            temperature=0.0,
            top_p=1.0,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            n=1,
            seed=None,
            stop=(),
            grammar=None,
            stream=False,
        ),
        verdicts=(),
        held=False,
    )
    verdict = RecordedVerdict(
        rule="urgent_finding", action=Action.ESCALATE, stage=Stage.OUTPUT, finding=finding
    )
    answer = AnswerRecord(
        outcome="complete",
        error=None,
        choices=(
            RecordedChoice(
                raw=f"{sent} (raw)",
                sent=sent,
                finish_reason="stop",
                tokens=12,
                verdicts=(verdict,) if urgent else (),
                findings=(RecordedFinding(finding=finding, status=Status(status)),),
            ),
        ),
        escalation=(finding,) if urgent else (),
        prompt_tokens=600,
        planned_s=0.01,
        first_token_s=0.1,
        total_s=0.5,
    )
    values = [("kind", "answer"), ("principal", principal), ("finding", finding)]
    values += [("template", "finding"), ("status", status), ("outcome", "complete")]
    if urgent:
        values += [("urgent", "yes"), ("rule", "urgent_finding"), ("action", "escalate")]
    ids = {"review_id": review_id, "audit_id": audit_id}
    item = {"state": "pending", "urgent": urgent, "held": False, "version": 1}
    rows: list[tuple[Table, dict[str, Any]]] = []
    rows.append((schema.reviews, {**ids, **item, "owner": store.term("principal", principal)}))
    if urgent:
        rows.append((schema.escalations, {**ids, "next_at": 0, "sent": 0, "failed": 0}))
    body = request.model_dump_json().encode()
    return (
        Entry("request", audit_id, body, key, new_key=True, blobs=(blob,)),
        Entry(
            "answer",
            audit_id,
            answer.model_dump_json().encode(),
            key,
            terms=tuple(store.term(*pair) for pair in values),
            rows=tuple(rows),
        ),
    )


@dataclass
class Audited:
    """A store, its settings and a writer. ``write`` puts a whole exchange into it."""

    settings: Settings
    store: Store
    writer: Writer
    pictures: dict[str, bytes] = field(default_factory=dict)  # by audit_id

    def write(
        self,
        *,
        principal: str = "dr-jones",
        urgent: bool = False,
        picture: bytes | None = None,
        answered: bool = True,
        question: str = QUESTION,
        sent: str = DRAFT,
    ) -> str:
        """Writes an exchange as the service does; its audit_id."""
        picture = picture if picture is not None else os.urandom(2000)
        request, answer = exchange(
            self.store,
            principal=principal,
            urgent=urgent,
            question=question,
            sent=sent,
            blob=Blob(self.store.blob_name(picture), picture),
        )
        self.pictures[request.audit_id] = picture
        self.writer.write(request).result(10)
        if answered:
            self.writer.write(answer).result(10)
        return request.audit_id

    def review(self, audit_id: str, action: ReviewAction, state: str, comment: str = "") -> None:
        """Does what the review queue does: changes the row, and records it."""
        with self.store.reading() as connection:
            key = self.store.data_key(connection, audit_id)
            row = connection.execute(
                schema.reviews.select().where(schema.reviews.c.audit_id == audit_id)
            ).one()
        version = row.version + 1
        at = time.time_ns() // 1000
        changed: dict[str, int | None] = {"acknowledged_at": row.acknowledged_at or at}
        if action == "claim":
            changed["claimant"] = self.store.term("principal", "dr-reader")
        elif action == "release":  # nobody has acknowledged by hand
            changed = {"claimant": None, "acknowledged_at": None}
        record = ReviewRecord(
            review_id=row.review_id,
            version=version,
            action=action,
            principal="dr-reader",
            comment=comment,
        )

        def within(connection: Connection) -> None:
            detail = key.seal(b"{}", detail_place(row.review_id, version))
            connection.execute(
                schema.reviews.update()
                .where(schema.reviews.c.review_id == row.review_id)
                .values(state=state, version=version, detail=detail, **changed)
            )

        body = record.model_dump_json().encode()
        self.writer.write(Entry("review", audit_id, body, key, within=within)).result(10)

    def escalate(self, audit_id: str) -> None:
        """Does what the courier does once somebody was told: records it, and counts."""
        with self.store.reading() as connection:
            key = self.store.data_key(connection, audit_id)
        record = EscalationRecord(review_id=audit_id, outcome="sent", attempt=1, status=204)

        def within(connection: Connection) -> None:
            table = schema.escalations
            connection.execute(
                table.update().where(table.c.audit_id == audit_id).values(sent=table.c.sent + 1)
            )

        body = record.model_dump_json().encode()
        self.writer.write(Entry("escalation", audit_id, body, key, within=within)).result(10)

    def look(self) -> None:
        """Records a look."""
        reading.note(self.store, self.writer, "an-auditor", "search").result(10)

    def second_writer(self) -> Writer:
        """Another chain."""
        return open_writer(self.store, self.settings, "command")

    def signed(self) -> Report:
        """Closes the writer, which signs its head, and verifies."""
        self.writer.close()
        return self.verify()

    def verify(self, *, with_key: bool = True) -> Report:
        signing_key = self.settings.audit.signing_key
        assert signing_key is not None
        public = checkpoints.signing_key(signing_key.get_secret_value()).public_key()
        lines = checkpoints.read(checkpoint_folder(self.settings), self.store.id, public)
        return verify(self.store.engine, lines, Contents(self.store, 1) if with_key else None)

    def sql(self, statement: str, **values: object) -> int:
        """What somebody does who can change the database."""
        with self.store.engine.begin() as connection:
            return connection.execute(text(statement), values).rowcount


class Clock:
    """Time as writers see it; it can be set."""

    monotonic = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self.ahead_us = 0

    def time_ns(self) -> int:
        return time.time_ns() + self.ahead_us * 1000

    def set_back(self, *, days: float = 0, seconds: float = 0) -> None:
        self.ahead_us = -int((days * 86_400 + seconds) * 1_000_000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The writers' clock; right until it is set."""
    clock = Clock()
    monkeypatch.setattr("serve.audit.committing.time", clock)
    return clock


@pytest.fixture(scope="session")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'audit.db'}"
    return str(request.getfixturevalue("server").database())


Opener = Callable[[str], Audited]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    """Opens a store at a URL; it is closed afterwards."""
    kept: list[Audited] = []

    def open_at(url: str) -> Audited:
        audit = {"url": url, "key": keyring.new_key(), "signing_key": keyring.new_key()}
        settings = load(state_dir=tmp_path, audit={**audit, "checkpoint_s": 0.01})
        store = open_store(settings)
        kept.append(Audited(settings, store, open_writer(store, settings, "replica")))
        return kept[-1]

    yield open_at
    for audited in kept:
        audited.writer.close()
        audited.store.engine.dispose()


@pytest.fixture
def audited(url: str, opened: Opener) -> Audited:
    return opened(url)


@pytest.fixture
def on_sqlite(tmp_path: Path, opened: Opener) -> Audited:
    return opened(f"sqlite:///{tmp_path / 'audit.db'}")
