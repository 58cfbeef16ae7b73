"""The request path, top to bottom: plan -> record -> engine -> rails -> record -> answer.

Composes; each stage does its own work and knows nothing of the others. The plan (serve/plan.py)
holds all that was decided before the engine runs.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing

from guardrails import templates
from guardrails.answers import Answer as Value
from guardrails.answers import AnswerFormat, Finding
from guardrails.assess import NamedFinding
from guardrails.rails import OutputRails
from guardrails.rules import Stage, Verdict
from serve import metrics, protocol
from serve.engine import Engine, Output, Step
from serve.errors import ApiError, GuardFailed, InternalError
from serve.plan import Plan
from serve.protocol import ChunkChoice, Delta, FinishReason, Usage
from serve.recorder import Recorder, Recording, reasons
from serve.settings import MODEL_ID

_DONE = b"data: [DONE]\n\n"


class Answer:
    """One choice on its way out: the engine's text in, the client's text out."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._rails = OutputRails(
            plan.policy,
            plan.template,
            plan.answer_format,
            question=plan.question,
            earlier=plan.earlier,
        )
        self._raw: list[str] = []
        self._label = ""
        self.tokens = 0
        self.finish_reason: FinishReason | None = None

    def take(self, output: Output) -> str:
        """Takes one output of the engine; returns what may leave, with the label at the end.

        Raises:
            GuardFailed: a rail broke. Nothing of this answer may leave any more.
        """
        if self.finish_reason is not None:
            return ""  # a rule ended this choice; the engine goes on with the others
        self.tokens += output.tokens
        # Models of the Mistral family begin with a space piece; it never leaves.
        text = output.text if self._raw else output.text.lstrip()
        if text:
            self._raw.append(text)
        try:
            released = self._rails.push(text)
            if self._rails.blocked or output.finish_reason is not None:
                released += self._rails.finish()
                blocked = self._rails.blocked
                self.finish_reason = "content_filter" if blocked else output.finish_reason
                self._label = templates.label(
                    self._plan.answer_format,
                    self._plan.policy.file.label,
                    urgent=self._rails.urgent,
                )
        except Exception as error:  # whatever broke: text that was not guarded does not leave
            metrics.count_failure(Stage.OUTPUT)
            raise GuardFailed() from error
        return released + self._label

    @property
    def raw(self) -> str:
        """What the model said."""
        return "".join(self._raw)

    @property
    def sent(self) -> str:
        """What has left, and would have if it were not held for review."""
        return self._rails.text + self._label

    @property
    def value(self) -> Value | None:
        """What has left, read by the template's parser."""
        return self._rails.value()

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """What the output rules decided."""
        return self._rails.verdicts()

    @property
    def findings(self) -> tuple[NamedFinding, ...]:
        """What has left says of each finding."""
        return self._rails.findings()


def _guardrails(plan: Plan, answers: list[Answer]) -> protocol.Guardrails:
    for answer in answers:
        metrics.count_verdicts(answer.verdicts)
    common = protocol.Guardrails(
        status="held" if plan.held else "draft",
        policy=plan.policy.id,
        template=plan.template,
        format=plan.answer_format,
        label=plan.policy.file.label,
        verdicts=[_verdict(verdict) for verdict in plan.verdicts],
        finding=None,
        images=[image.note for image in plan.images],
        review_id=plan.review_id,
        audit_id=plan.audit_id,
    )
    return common if plan.held else common.model_copy(update=_said(plan, answers))


def _said(plan: Plan, answers: list[Answer]) -> dict[str, object]:
    """The fields of the ``guardrails`` object that are about the draft."""
    several = len(answers) > 1
    verdicts = [
        _verdict(verdict, number if several else None)
        for number, answer in enumerate(answers)
        for verdict in answer.verdicts
    ]
    urgent = reasons([*plan.verdicts, *(one for answer in answers for one in answer.verdicts)])
    values = [answer.value for answer in answers]
    findings = [protocol.FindingResult.of(one) for one in values if isinstance(one, Finding)]
    first = None if isinstance(values[0], Finding) else values[0]
    return {
        "verdicts": [*(_verdict(verdict) for verdict in plan.verdicts), *verdicts],
        "finding": findings[0] if findings else None,
        "findings": findings if findings and several else None,
        "sections": protocol.Sections.of(first) if first else None,
        "escalation": protocol.Escalation(reasons=list(urgent)) if urgent else None,
    }


def _held(plan: Plan) -> str:
    """What stands in place of a draft that is held; JSON where the client asked for JSON."""
    if plan.answer_format is AnswerFormat.TEXT:
        return plan.policy.file.review.held
    return json.dumps({"status": "held", "review_id": plan.review_id})


def _verdict(verdict: Verdict, choice: int | None = None) -> protocol.Verdict:
    return protocol.Verdict(
        rule=verdict.rule,
        action=verdict.action,
        stage=verdict.stage,
        finding=verdict.finding or None,
        choice=choice,
    )


def _usage(prompt_tokens: int, answers: list[Answer]) -> Usage:
    completion_tokens = sum(answer.tokens for answer in answers)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


async def complete(plan: Plan, engine: Engine, recorder: Recorder) -> bytes:
    """Runs a plan to its end; returns the ``chat.completion`` object as JSON.

    Raises:
        ApiError: the engine refused the prompt or failed, or the answer is not on record.
    """
    answers = [Answer(plan) for _ in range(plan.sampling.n)]
    contents = [""] * len(answers)
    with recorder.begin(plan) as recording:
        recording.choices = answers
        async with aclosing(_steps(plan, engine, recording)) as steps:
            async for step in steps:
                recording.step(step.prompt_tokens)
                for output in step.outputs:
                    contents[output.index] += answers[output.index].take(output)
                if all(answer.finish_reason for answer in answers):
                    break
        if any(answer.finish_reason is None for answer in answers):
            raise InternalError()
        await recording.answered()
    if plan.held:
        contents = [_held(plan)] * len(answers)
    return (
        protocol.ChatCompletion(
            id=plan.id,
            created=plan.created,
            model=MODEL_ID,
            choices=[
                protocol.Choice(
                    index=index,
                    message=protocol.ChatMessage(content=content),
                    finish_reason=_reason(plan, answer),
                )
                for index, (answer, content) in enumerate(zip(answers, contents, strict=True))
            ],
            usage=_usage(recording.prompt_tokens, answers),
            guardrails=_guardrails(plan, answers),
        )
        .model_dump_json()
        .encode()
    )


def _reason(plan: Plan, answer: Answer) -> FinishReason:
    return "content_filter" if plan.held else answer.finish_reason or "stop"


def _steps(plan: Plan, engine: Engine, recording: Recording) -> AsyncGenerator[Step, None]:
    return engine.generate(plan.prompt, plan.sampling, plan.id, recording.durable)


async def stream(plan: Plan, engine: Engine, recorder: Recorder) -> AsyncGenerator[bytes, None]:
    """Runs a plan; yields server-sent events (``chat.completion.chunk`` objects).

    The first event comes only after the engine's first step, so that whatever the engine refuses
    is still an ordinary HTTP error; the events that end it, only once the answer is on record.

    Raises:
        ApiError: before the first event. Later ones become an event of their own.
    """
    events = _Events(plan)
    started = False
    try:
        with recorder.begin(plan) as recording:
            recording.choices = events.answers
            async with aclosing(_steps(plan, engine, recording)) as steps:
                async for step in steps:
                    recording.step(step.prompt_tokens)
                    if not started:
                        started = True
                        yield events.opening(step.prompt_tokens)
                    for output in step.outputs:
                        event = events.of(output)
                        if events.done:
                            await recording.answered()
                        if event:
                            yield event
                    if events.done:
                        break  # the engine may not have: rules ended every choice
    except Exception as error:
        if not started:
            raise
        api_error = error if isinstance(error, ApiError) else InternalError()
        yield b"data: " + api_error.body() + b"\n\n" + _DONE
        return
    yield events.closing()


class _Events:
    """Server-sent events of one answer. The parts that never change are encoded once.

    The ``guardrails`` object rides in the last event before ``[DONE]``: the last choice's last one,
    or the usage event where the client asked for one.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.answers = [Answer(plan) for _ in range(plan.sampling.n)]
        self._prompt_tokens = 0
        self._head = (
            f'data: {{"id":"{plan.id}","object":"chat.completion.chunk","created":{plan.created},'
            f'"model":"{MODEL_ID}","choices":['
        ).encode()
        self._tail = b'],"usage":null' if plan.include_usage else b"]"

    def opening(self, prompt_tokens: int) -> bytes:
        """The first event of every choice: the role."""
        self._prompt_tokens = prompt_tokens
        role = Delta(role="assistant", content="")
        return b"".join(self._event(index, role) for index in range(len(self.answers)))

    def of(self, output: Output) -> bytes:
        """The events of one output; none while its text is held."""
        answer = self.answers[output.index]
        if answer.finish_reason is not None:
            return b""
        text = answer.take(output)
        if self._plan.held:
            text = _held(self._plan) if answer.finish_reason else ""
        events = self._event(output.index, Delta(content=text)) if text else b""
        if answer.finish_reason is None:
            return events
        extra = self._guardrails() if self.done and not self._plan.include_usage else b""
        return events + self._event(output.index, Delta(), _reason(self._plan, answer), extra)

    @property
    def done(self) -> bool:
        """Whether every choice has ended."""
        return all(answer.finish_reason for answer in self.answers)

    def closing(self) -> bytes:
        """The usage event, if asked for, and the end mark."""
        if not self._plan.include_usage:
            return _DONE
        usage = _usage(self._prompt_tokens, self.answers).model_dump_json().encode()
        return b"".join((self._head, b'],"usage":', usage, self._guardrails(), b"}\n\n", _DONE))

    def _event(
        self, index: int, delta: Delta, reason: FinishReason | None = None, extra: bytes = b""
    ) -> bytes:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=reason)
        body = choice.model_dump_json(exclude_unset=True).encode()
        return b"".join((self._head, body, self._tail, extra, b"}\n\n"))

    def _guardrails(self) -> bytes:
        return b',"guardrails":' + _guardrails(self._plan, self.answers).model_dump_json().encode()
