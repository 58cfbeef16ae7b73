"""Exchanges as a replica writes them: request, answer, images, and the review that comes of it.

with opened(settings_in(folder)) as (store, writer):
    one = write_exchange(store, writer, urgent=("pneumothorax",))
    client.get(f"/v1/reviews/{one.review_id}")
"""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from PIL import Image
from sqlalchemy import Table

from guardrails.answers import AnswerFormat, Status, Template
from guardrails.rules import Action, Stage
from guardrails.templates import DRAFT_LABEL, PREAMBLE
from serve.audit import schema
from serve.audit.chain import Link
from serve.audit.entries import Blob, Entry
from serve.audit.keyring import DataKey
from serve.audit.records import (
    AnswerRecord,
    Model,
    RecordedChoice,
    RecordedFinding,
    RecordedImage,
    RecordedSampling,
    RecordedTurn,
    RecordedVerdict,
    RequestRecord,
)
from serve.audit.store import Store
from serve.audit.writer import Writer
from serve.escalation import outbox
from serve.phantom.draw import Phantom, draw
from serve.protocol import ImageNote, ImageWindow

MODEL = Model(id="llava-med", digest="5e" * 32)
POLICY = "default-1@sha256:" + "0" * 64
QUESTION = "Is there a pneumothorax?"
ANSWER = "likely present, explanation: a pneumothorax is seen on the left. No effusion."
FINDINGS: Mapping[str, Status] = {
    "pneumothorax": Status.PRESENT,
    "pleural_effusion": Status.ABSENT,
}


@dataclass(frozen=True)
class Written:
    """The ids of an exchange."""

    audit_id: str
    review_id: str
    request_id: str


def png(image: Image.Image) -> bytes:
    """A picture's file."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def chest(seed: int = 1) -> bytes:
    """A drawing of a chest with a pneumothorax, 300 to 380 pixels a side, as a file."""
    return png(draw(Phantom(pneumothorax="left"), seed).convert("L"))


def write_exchange(store: Store, writer: Writer, **values: Any) -> Written:
    """Writes an exchange; see ``begin_exchange`` for what can be said of it."""
    written, futures = begin_exchange(store, writer, **values)
    for future in futures:
        future.result(10)
    return written


def begin_exchange(
    store: Store,
    writer: Writer,
    *,
    principal: str = "default",
    question: str = QUESTION,
    answers: Sequence[str] = (ANSWER,),
    findings: Mapping[str, Status] = FINDINGS,
    template: Template = Template.FINDING,
    images: Sequence[bytes] = (),
    urgent: Sequence[str] = (),
    held: bool = False,
    earlier: Sequence[RecordedTurn] = (),
    system: str = "",
    model: Model = MODEL,
    age_s: float = 0.0,
) -> tuple[Written, list[Future[Link]]]:
    """The same without waiting for it.

    Args:
        store: where to.
        writer: by whom.
        principal: whose request it is.
        question: the last user turn.
        answers: what the model said, one for each choice; the draft label is added.
        findings: what each of them says of findings.
        template: of the answer, which is text.
        images: PNG files; the squares are made of them.
        urgent: reasons to escalate.
        held: whether the caller waits for a reviewer.
        earlier: turns before the question.
        system: the client's own system message.
        model: what answered.
        age_s: how long ago the review was made.
    """
    ids = Written(str(uuid.uuid4()), str(uuid.uuid4()), uuid.uuid4().hex)
    key = DataKey.new()
    recorded = [_image(store, file) for file in images]
    preamble = f"{PREAMBLE}\n{system}" if system else PREAMBLE
    request = RequestRecord(
        request_id=ids.request_id,
        review_id=ids.review_id,
        principal=principal,
        model=model,
        policy=POLICY,
        template=template,
        format=AnswerFormat.TEXT,
        question=question,
        turns=(
            RecordedTurn(role="system", text=preamble),
            *earlier,
            RecordedTurn(role="user", text=question, images=tuple(range(len(images)))),
        ),
        images=tuple(image for image, _ in recorded),
        sampling=RecordedSampling(
            max_tokens=512,
            temperature=0.0 if len(answers) == 1 else 1.0,
            top_p=1.0,
            frequency_penalty=0.0,
            presence_penalty=0.0,
            n=len(answers),
            seed=None,
            stop=(),
            grammar=None,
            stream=False,
        ),
        verdicts=(),
        held=held,
    )
    verdicts = tuple(
        RecordedVerdict(
            rule="urgent_finding", action=Action.ESCALATE, stage=Stage.OUTPUT, finding=reason
        )
        for reason in urgent
    )
    answer = AnswerRecord(
        outcome="complete",
        error=None,
        choices=tuple(
            RecordedChoice(
                raw=f" {text}",
                sent=f"{text}\n\n{DRAFT_LABEL}",
                finish_reason="stop",
                tokens=len(text.split()),
                verdicts=verdicts,
                findings=tuple(
                    RecordedFinding(finding=name, status=status)
                    for name, status in sorted(findings.items())
                ),
            )
            for text in answers
        ),
        escalation=tuple(urgent),
        prompt_tokens=600,
        planned_s=0.01,
        first_token_s=0.1,
        total_s=0.4,
    )
    written = [
        writer.write(
            Entry(
                "request",
                ids.audit_id,
                request.model_dump_json().encode(),
                key,
                new_key=True,
                blobs=tuple(blob for _, blobs in recorded for blob in blobs),
            )
        ),
        writer.write(
            Entry(
                "answer",
                ids.audit_id,
                answer.model_dump_json().encode(),
                key,
                terms=_terms(store, request, answer),
                rows=_rows(store, ids, request, answer, age_s),
            )
        ),
    ]
    return ids, written


def _image(store: Store, file: bytes) -> tuple[RecordedImage, tuple[Blob, Blob]]:
    image = Image.open(io.BytesIO(file))
    square = image.convert("RGB").resize((336, 336))
    blobs = [Blob(store.blob_name(content), content) for content in (png(square), file)]
    recorded = RecordedImage(
        digest=sha256(square.tobytes()).hexdigest(),
        square=blobs[0].name.hex(),
        picture=blobs[1].name.hex(),
        instance=None,
        note=ImageNote(
            media_type="application/dicom",
            role=None,
            frame=1,
            frames=1,
            window=ImageWindow(origin="file", center=40.0, width=400.0),
            burned_in="none",
            burned_in_evidence=[],
        ),
    )
    return recorded, (blobs[0], blobs[1])


def _terms(store: Store, request: RequestRecord, answer: AnswerRecord) -> tuple[int, ...]:
    found = {
        ("kind", "answer"),
        ("principal", request.principal),
        ("request_id", request.request_id),
        ("review_id", request.review_id),
        ("template", str(request.template)),
        ("model", request.model.id),
        ("policy", request.policy),
        ("outcome", answer.outcome),
    }
    found |= {("urgent", "yes")} if answer.escalation else set()
    for choice in answer.choices:
        found |= {("finding", one.finding) for one in choice.findings}
        found |= {("rule", one.rule) for one in choice.verdicts}
        found |= {("action", str(one.action)) for one in choice.verdicts}
    return tuple(store.term(name, value) for name, value in sorted(found))


def _rows(
    store: Store, ids: Written, request: RequestRecord, answer: AnswerRecord, age_s: float
) -> tuple[tuple[Table, Mapping[str, Any]], ...]:
    at = time.time_ns() // 1000 - int(age_s * 1_000_000)
    both = {"review_id": ids.review_id, "audit_id": ids.audit_id, "at": at}
    review = both | {
        "state": "pending",
        "urgent": bool(answer.escalation),
        "held": request.held,
        "owner": store.term("principal", request.principal),
        "version": 1,
    }
    if not answer.escalation:
        return ((schema.reviews, review),)
    escalation = both | {"next_at": outbox.NEW, "sent": 0, "failed": 0}
    return (schema.reviews, review), (schema.escalations, escalation)
