"""What records hold: typed, closed, as JSON inside the seal."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from guardrails.answers import AnswerFormat, Status, Template
from guardrails.rules import Action, Stage
from serve.protocol import ImageNote

Outcome = Literal["complete", "failed", "abandoned"]
Agreement = Literal["agree", "overcall", "missed", "wrong_side"]
ReviewAction = Literal["claim", "release", "acknowledge", "sign_off", "amend", "reject"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Model(_Record):
    """Digests are SHA-256, as hex: of the converted checkpoint's manifest."""

    id: str
    digest: str
    adapter: str | None = None
    adapter_digest: str | None = None


class Versions(_Record):
    """What a chain is written by."""

    service: str
    python: str
    packages: dict[str, str]
    host: str
    process: int
    role: Literal["replica", "review", "command"]
    model: Model | None


class RecordedImage(_Record):
    """An image; ``square`` and ``picture`` name blobs, as hex."""

    digest: str  # SHA-256 of the square's pixels: the engine's name for it
    square: str  # PNG of exactly what the model saw
    picture: str | None  # PNG of the de-identified image, larger; None: the square has it all
    instance: str | None  # keyed hash of SOPInstanceUID
    note: ImageNote


class RecordedTurn(_Record):
    """A turn of the prompt, as the model read it; ``images`` are numbers into the record's."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[int, ...] = ()


class RecordedSampling(_Record):
    """As the engine got it (serve/engine.py)."""

    max_tokens: int
    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    n: int
    seed: int | None
    stop: tuple[str, ...]
    grammar: str | None
    stream: bool


class RecordedVerdict(_Record):
    rule: str
    action: Action
    stage: Stage
    finding: str | None = None


class RecordedFinding(_Record):
    """What an answer says of a finding."""

    finding: str
    status: Status


class RequestRecord(_Record):
    """Durable before the engine starts."""

    request_id: str
    review_id: str
    principal: str
    model: Model
    policy: str
    template: Template
    format: AnswerFormat
    question: str
    turns: tuple[RecordedTurn, ...]
    images: tuple[RecordedImage, ...]
    sampling: RecordedSampling
    verdicts: tuple[RecordedVerdict, ...]
    held: bool


class RecordedChoice(_Record):
    """``raw`` is what the model said, ``sent`` what left (or would have, where it is held)."""

    raw: str
    sent: str
    finish_reason: str | None
    tokens: int
    verdicts: tuple[RecordedVerdict, ...]
    findings: tuple[RecordedFinding, ...]


class AnswerRecord(_Record):
    """Durable before an answer's last byte leaves. Times are seconds from the request's start."""

    outcome: Outcome
    error: str | None  # the error's code, where there was one
    choices: tuple[RecordedChoice, ...]
    escalation: tuple[str, ...]  # reasons; empty: none
    prompt_tokens: int
    planned_s: float
    first_token_s: float | None
    total_s: float


class RefusalRecord(_Record):
    """A request that never reached the engine."""

    request_id: str
    principal: str
    status: int
    code: str
    param: str | None
    message: str  # of our own wording: never the client's text


class ReadRecord(_Record):
    """Somebody looked."""

    principal: str
    what: str  # search, show, export, image, list, ...
    of: str | None  # the audit_id or review_id
    query: dict[str, str]


class FindingVerdict(_Record):
    """A clinician's verdict on one finding of a draft."""

    finding: str
    verdict: Agreement


class ReviewRecord(_Record):
    """What a reviewer did."""

    review_id: str
    version: int  # after it
    action: ReviewAction
    principal: str
    findings: tuple[FindingVerdict, ...] = ()
    comment: str = ""
    amended: str | None = None  # the text that replaces the draft
    seconds: float | None = None  # from claim to close


class EscalationRecord(_Record):
    """An attempt to tell somebody."""

    review_id: str
    outcome: Literal["sent", "failed"]
    attempt: int
    status: int | None  # HTTP


class ShredRecord(_Record):
    """Keys were destroyed. Not sealed: whoever verifies must know which content may be gone."""

    principal: str
    before: int  # microseconds since 1970: of all exchanges that began earlier
    exchanges: int
    blobs: int


class RotateRecord(_Record):
    """Keys were wrapped anew."""

    principal: str
    current: str  # key id
    rewrapped: int
