"""The record stage: durable before the engine starts, and again before the answer's end leaves.

A request's record, and the key that seals it, are on disk before the engine sees it; its answer's,
with the review item and the escalation that come of it, before its last byte leaves. What cannot be
recorded is not answered.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import fields
from functools import lru_cache
from types import TracebackType
from typing import Any, Protocol, Self

from sqlalchemy import Table

from guardrails.answers import Answer as Value
from guardrails.answers import Finding
from guardrails.assess import NamedFinding
from guardrails.rules import Action, Verdict
from serve import metrics
from serve.audit import records, schema
from serve.audit.entries import AuditUnavailableError, Blob, Entry, Kind
from serve.audit.keyring import DataKey
from serve.audit.records import AnswerRecord, Model, Outcome, RecordedChoice, RequestRecord
from serve.audit.store import Store
from serve.engine import Sampling
from serve.errors import ApiError, AuditUnavailable
from serve.escalation import outbox
from serve.images import TakenImage
from serve.plan import Plan


class Choice(Protocol):
    """One choice of an answer, as far as it has come (serve/chat.py)."""

    tokens: int

    @property
    def finish_reason(self) -> str | None: ...

    @property
    def raw(self) -> str:
        """What the model said."""
        ...

    @property
    def sent(self) -> str:
        """What the rails let out, with the label."""
        ...

    @property
    def value(self) -> Value | None: ...

    @property
    def verdicts(self) -> tuple[Verdict, ...]: ...

    @property
    def findings(self) -> tuple[NamedFinding, ...]: ...


class Writes(Protocol):
    """A Writer, or a WriterProcess."""

    def write(self, entry: Entry) -> Future[Any] | asyncio.Future[Any]:
        """Takes an entry; the future is done once it is on disk. Cancelling it stops no record."""
        ...


class Recorder:
    """Records what one process serves."""

    def __init__(self, store: Store, writer: Writes, model: Model) -> None:
        self.store = store
        self._writer, self._model = writer, model
        self._term = lru_cache(4096)(store.term)

    def begin(self, plan: Plan) -> Recording:
        """Begins to record a request: ``durable`` of what it returns says when that is done.

        Raises:
            AuditUnavailable: the store takes nothing; the engine must not start.
        """
        key = DataKey.new()
        files = [self._files(image) for image in plan.images]
        images = [_recorded(*pair) for pair in zip(plan.images, files, strict=True)]
        body = _request(plan, self._model, images)
        entry = Entry(
            "request",
            plan.audit_id,
            body.model_dump_json().encode(),
            key,
            new_key=True,
            blobs=tuple(blob for of_image in files for blob in of_image),
        )
        return Recording(self, plan, key, self.taken(entry))

    def refused(self, request_id: str, principal: str, error: ApiError) -> None:
        """Records a request that was turned down, without its text; nobody waits for it."""
        body = records.RefusalRecord(
            request_id=request_id,
            principal=principal,
            status=error.status,
            code=error.code,
            param=error.param,
            message=error.message,
        )
        terms = {"kind": "refusal", "principal": principal, "code": error.code}
        self.submit(
            Entry(
                "refusal",
                str(uuid.UUID(hex=request_id)),
                body.model_dump_json().encode(),
                DataKey.new(),
                new_key=True,
                terms=self._terms(terms.items()),
            )
        )

    def answer(
        self, plan: Plan, key: DataKey, body: AnswerRecord, finding: Finding | None
    ) -> Entry:
        """An answer's record, with its place in the queue, and its escalation if it is urgent."""
        urgent = bool(body.escalation)
        ids = {"review_id": plan.review_id, "audit_id": plan.audit_id}
        rows: list[tuple[Table, dict[str, Any]]] = []
        if any(choice.sent for choice in body.choices):
            item = {"state": "pending", "urgent": urgent, "held": plan.held, "version": 1}
            owner = self.store.term("principal", plan.principal)
            rows.append((schema.reviews, {**ids, **item, "owner": owner}))
            if urgent:
                rows.append(
                    (schema.escalations, {**ids, "next_at": outbox.NEW, "sent": 0, "failed": 0})
                )
        return Entry(
            "answer",
            plan.audit_id,
            body.model_dump_json().encode(),
            key,
            terms=self._terms(_searchable(plan, body, finding)),
            rows=tuple(rows),
        )

    def taken(self, entry: Entry) -> _Durable:
        """Hands over an entry; who awaits what this returns goes on once it is on disk.

        Raises:
            AuditUnavailable: it is not, or nobody knows; at once, or when it is awaited.
        """
        try:
            return _Durable(asyncio.wrap_future(self._writer.write(entry)), entry.kind)
        except AuditUnavailableError:
            metrics.record_failed(entry.kind)
            raise AuditUnavailable() from None

    def submit(self, entry: Entry) -> None:
        """Hands over an entry that nobody waits for."""

        def done(written: Future[Any] | asyncio.Future[Any]) -> None:
            if written.exception() is None:
                metrics.recorded(entry.kind)
            else:
                metrics.record_failed(entry.kind)

        try:
            self._writer.write(entry).add_done_callback(done)
        except AuditUnavailableError:
            metrics.record_failed(entry.kind)

    def _terms(self, values: Iterable[tuple[str, str]]) -> tuple[int, ...]:
        return tuple(self._term(name, value) for name, value in values)

    def _files(self, taken: TakenImage) -> tuple[Blob, ...]:
        """What the model saw, and the picture for reviewers, if there is one."""
        return tuple(
            Blob(self.store.blob_name_of(digest), file) for file, digest in taken.prepared.pngs
        )


class _Durable:
    """An entry that was handed over. To be awaited, or not, if its request has ended already."""

    def __init__(self, written: asyncio.Future[Any], kind: Kind) -> None:
        self._written, self._kind = written, kind
        self._started = time.perf_counter()

    def __await__(self) -> Generator[Any, None, None]:
        try:
            yield from self._written
        except AuditUnavailableError:
            metrics.record_failed(self._kind)
            raise AuditUnavailable() from None
        metrics.recorded(self._kind, time.perf_counter() - self._started)

    def then(self, follow: Callable[[], None]) -> None:
        """Calls once the entry is on disk, and never where it is not, or nobody knows."""

        def done(written: asyncio.Future[Any]) -> None:
            if not written.cancelled() and written.exception() is None:
                follow()

        self._written.add_done_callback(done)


class Recording:
    """A request that is on record. Whatever ends it, its answer's record follows.

    with recorder.begin(plan) as recording:
        recording.choices = answers
        async for step in engine.generate(..., recording.durable):
            recording.step(step.prompt_tokens)
        await recording.answered()
    """

    def __init__(self, recorder: Recorder, plan: Plan, key: DataKey, durable: _Durable) -> None:
        self.durable = durable  # the request: the engine starts only after it
        self.choices: Sequence[Choice] = ()
        self._recorder, self._plan, self._key = recorder, plan, key
        self._planned_s = plan.elapsed_s()
        self._first_token_s: float | None = None
        self.prompt_tokens = 0  # once the engine has begun
        self._ended = False

    def step(self, prompt_tokens: int) -> None:
        """Notes a step of the engine."""
        if self._first_token_s is None:
            self._first_token_s = self._plan.elapsed_s()
            self.prompt_tokens = prompt_tokens

    async def answered(self) -> None:
        """Records the answer. Its end may leave once this returns.

        Raises:
            AuditUnavailable: it is not on disk; the end must not leave.
        """
        self._ended = True
        await self._recorder.taken(self._entry("complete", None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        if self._ended:
            return
        if isinstance(error, Exception):
            code = error.code if isinstance(error, ApiError) else ApiError.code
            entry = self._entry("failed", code)
        else:  # the client has left
            entry = self._entry("abandoned", None)
        # An answer without its request could not be read: its key is stored with the request.
        self.durable.then(lambda: self._recorder.submit(entry))

    def _entry(self, outcome: Outcome, error: str | None) -> Entry:
        choices = [_choice(choice) for choice in self.choices]
        verdicts = (*self._plan.verdicts, *(one for c in self.choices for one in c.verdicts))
        body = AnswerRecord(
            outcome=outcome,
            error=error,
            choices=tuple(choices),
            escalation=reasons(verdicts),
            prompt_tokens=self.prompt_tokens,
            planned_s=self._planned_s,
            first_token_s=self._first_token_s,
            total_s=self._plan.elapsed_s(),
        )
        value = self.choices[0].value if self.choices else None
        return self._recorder.answer(
            self._plan, self._key, body, value if isinstance(value, Finding) else None
        )


def reasons(verdicts: Iterable[Verdict]) -> tuple[str, ...]:
    """Why a clinician is to look at once: findings, or rules where they are about none."""
    urgent = {v.finding or v.rule for v in verdicts if v.action is Action.ESCALATE}
    return tuple(sorted(urgent))


def _request(plan: Plan, model: Model, images: Sequence[records.RecordedImage]) -> RequestRecord:
    numbers = {image.digest: number for number, image in enumerate(images)}
    return RequestRecord(
        request_id=plan.request_id,
        review_id=plan.review_id,
        principal=plan.principal,
        model=model,
        policy=plan.policy.id,
        template=plan.template,
        format=plan.answer_format,
        question=plan.question,
        turns=tuple(
            records.RecordedTurn(
                role=turn.role,
                text=turn.text,
                images=tuple(numbers[image.digest] for image in turn.images),
            )
            for turn in plan.prompt.turns
        ),
        images=tuple(images),
        sampling=_sampling(plan.sampling),
        verdicts=_verdicts(plan.verdicts),
        held=plan.held,
    )


def _recorded(taken: TakenImage, files: Sequence[Blob]) -> records.RecordedImage:
    square, *picture = (file.name.hex() for file in files)
    return records.RecordedImage(
        digest=taken.prepared.digest,
        square=square,
        picture=picture[0] if picture else None,
        instance=taken.prepared.instance,
        note=taken.note,
    )


def _sampling(sampling: Sampling) -> records.RecordedSampling:
    values = {field.name: getattr(sampling, field.name) for field in fields(sampling)}
    return records.RecordedSampling(**values)


def _choice(choice: Choice) -> RecordedChoice:
    return RecordedChoice(
        raw=choice.raw,
        sent=choice.sent,
        finish_reason=choice.finish_reason,
        tokens=choice.tokens,
        verdicts=_verdicts(choice.verdicts),
        findings=tuple(
            records.RecordedFinding(finding=one.finding, status=one.status)
            for one in choice.findings
        ),
    )


def _verdicts(verdicts: Iterable[Verdict]) -> tuple[records.RecordedVerdict, ...]:
    return tuple(
        records.RecordedVerdict(
            rule=one.rule, action=one.action, stage=one.stage, finding=one.finding or None
        )
        for one in verdicts
    )


def _searchable(
    plan: Plan, body: AnswerRecord, finding: Finding | None
) -> Iterable[tuple[str, str]]:
    """What an exchange is found by."""
    yield from (
        ("kind", "answer"),
        ("principal", plan.principal),
        ("template", plan.template),
        ("outcome", body.outcome),
    )
    if finding is not None:
        yield "status", finding.status
    if body.escalation:
        yield "urgent", "yes"
    verdicts: list[Verdict | records.RecordedVerdict] = [*plan.verdicts]
    verdicts += (verdict for choice in body.choices for verdict in choice.verdicts)
    for verdict in verdicts:
        yield "rule", verdict.rule
        yield "action", verdict.action
    for choice in body.choices:
        for named in choice.findings:
            yield "finding", named.finding
