"""Urgent findings in a real store, and their reviewer, both as the service writes them."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, select, update

from guardrails.answers import Template
from serve.audit import keyring, schema
from serve.audit.entries import Entry
from serve.audit.keyring import DataKey
from serve.audit.opening import open_writer
from serve.audit.reading import body_of, records_of
from serve.audit.records import (
    AnswerRecord,
    EscalationRecord,
    Model,
    RecordedSampling,
    RequestRecord,
    ReviewAction,
    ReviewRecord,
)
from serve.audit.store import Store, open_store
from serve.audit.writer import Writer
from serve.escalation import outbox
from serve.escalation.courier import Courier
from serve.escalation.rules import Escalation
from serve.settings import Settings, load
from tests.hooks import SECRET, Receiver

# Neither is to be seen in any message or log line.
QUESTION, PRINCIPAL = "PLANTED-QUESTION", "PLANTED-PRINCIPAL"
REMIND_S = 60


@dataclass
class Clock:
    """The system's, set back or forward by a test. Microseconds since 1970."""

    offset_s: float = 0.0

    def __call__(self) -> int:
        return time.time_ns() // 1000 + int(self.offset_s * 1_000_000)


@dataclass
class Ward:
    """A store with urgent findings in it."""

    settings: Settings
    store: Store
    writer: Writer
    clock: Clock = field(default_factory=Clock)
    counted: Counter[str] = field(default_factory=Counter)
    measured: list[tuple[int, float]] = field(default_factory=list)
    couriers: list[Courier] = field(default_factory=list)

    def courier(self, rules: Escalation) -> Courier:
        courier = Courier(
            self.store,
            self.writer,
            rules,
            count=lambda outcome: self.counted.update([outcome]),
            measure=lambda number, age_s: self.measured.append((number, age_s)),
            clock=self.clock,
        )
        self.couriers.append(courier)
        return courier

    def urgent(self, *reasons: str) -> str:
        """An answer with an urgent finding; gives its review's id."""
        audit_id, review_id, now = str(uuid.uuid4()), str(uuid.uuid4()), self.clock()
        key = DataKey.new()
        body = request(review_id).model_dump_json().encode()
        self.writer.write(Entry("request", audit_id, body, key, new_key=True)).result(10)
        review = {
            "review_id": review_id,
            "audit_id": audit_id,
            "at": now,
            "state": "pending",
            "urgent": True,
            "held": False,
            "owner": self.store.term("principal", PRINCIPAL),
            "version": 1,
        }
        row = {
            "review_id": review_id,
            "audit_id": audit_id,
            "at": now,
            "next_at": outbox.NEW,
            "sent": 0,
            "failed": 0,
        }
        body = answer(reasons or ("pneumothorax",)).model_dump_json().encode()
        rows = ((schema.reviews, review), (schema.escalations, row))
        self.writer.write(Entry("answer", audit_id, body, key, rows=rows)).result(10)
        return review_id

    def acknowledge(self, review_id: str, state: str = "pending") -> None:
        self._act(review_id, "acknowledge", acknowledged_at=self.clock(), state=state)

    def release(self, review_id: str) -> None:
        """By somebody whose claim was all that had acknowledged it."""
        self._act(review_id, "release", acknowledged_at=None, state="pending")

    def _act(self, review_id: str, action: ReviewAction, **values: Any) -> None:
        """As a reviewer's action does: review, outbox and record in one transaction."""
        audit_id = self.row(review_id)["audit_id"]
        with self.store.reading() as connection:
            key = self.store.data_key(connection, audit_id)
        record = ReviewRecord(review_id=review_id, version=2, action=action, principal=PRINCIPAL)

        def within(connection: Connection) -> None:
            table = schema.reviews
            connection.execute(update(table).where(table.c.review_id == review_id).values(**values))
            outbox.wake(connection, review_id)

        body = record.model_dump_json().encode()
        self.writer.write(Entry("review", audit_id, body, key, within=within)).result(10)

    def row(self, review_id: str) -> dict[str, Any]:
        """The outbox's."""
        table = schema.escalations
        with self.store.reading() as connection:
            found = connection.execute(select(table).where(table.c.review_id == review_id)).one()
        return dict(found._mapping)

    def attempts(self, review_id: str) -> list[tuple[str, int, int | None]]:
        """The records of attempts: outcome, number, status."""
        audit_id = self.row(review_id)["audit_id"]
        with self.store.reading() as connection:
            key = self.store.data_key(connection, audit_id)
            records = [
                body_of(EscalationRecord, link, payload, key)
                for link, payload in records_of(connection, audit_id)
                if link.kind == "escalation"
            ]
        return [(record.outcome, record.attempt, record.status) for record in records]


@asynccontextmanager
async def ward_in(folder: Path, **audit: Any) -> AsyncIterator[Ward]:
    """An empty one; in a SQLite file, unless ``audit`` names another database."""
    keys = {"key": keyring.new_key(), "signing_key": keyring.new_key()}
    settings = load(state_dir=folder, audit={**keys, "timeout_s": 0.5, **audit})
    store = open_store(settings)
    writer = open_writer(store, settings, "review")
    made = Ward(settings, store, writer)
    try:
        yield made
    finally:
        for courier in made.couriers:
            await courier.aclose()
        writer.close()
        store.engine.dispose()


def rules(hooks: Receiver, **values: Any) -> Escalation:
    """To a receiver, with short times."""
    given = {"url": hooks.url, "secret": SECRET, "timeout_s": 1, "remind_s": REMIND_S} | values
    return Escalation.model_validate(given)


def request(review_id: str) -> RequestRecord:
    return RequestRecord(
        request_id=str(uuid.uuid4()),
        review_id=review_id,
        principal=PRINCIPAL,
        model=Model(id="llava-med", digest="00"),
        policy="default",
        template=Template.FREE,
        format="text",
        question=QUESTION,
        turns=(),
        images=(),
        sampling=RecordedSampling(
            max_tokens=1,
            temperature=0,
            top_p=1,
            frequency_penalty=0,
            presence_penalty=0,
            n=1,
            seed=None,
            stop=(),
            grammar=None,
            stream=False,
        ),
        verdicts=(),
        held=False,
    )


def answer(reasons: tuple[str, ...]) -> AnswerRecord:
    return AnswerRecord(
        outcome="complete",
        error=None,
        choices=(),
        escalation=reasons,
        prompt_tokens=1,
        planned_s=0.0,
        first_token_s=0.0,
        total_s=0.0,
    )
