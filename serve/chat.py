"""The request path, top to bottom: plan -> engine -> rails -> answer, whole or streamed.

Composes; each stage does its own work and knows nothing of the others. The plan (serve/plan.py)
holds all that was decided before the engine runs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from guardrails import templates
from guardrails.templates import AnswerFormat, Template
from serve import protocol
from serve.engine import Engine, Output, Step
from serve.errors import ApiError, InternalError
from serve.plan import Plan
from serve.protocol import ChunkChoice, Delta, FinishReason, Usage
from serve.settings import MODEL_ID

POLICY = "builtin"
_DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Answer:
    """One choice on its way out: the engine's text in, the client's text out."""

    answer_format: AnswerFormat
    parts: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    tokens: int = 0

    def push(self, text: str) -> str:
        """Releases what may go out. The model's leading space never does."""
        if not self.parts:
            text = text.lstrip()
        if text:
            self.parts.append(text)
        return text

    def finish(self, reason: FinishReason) -> str:
        """Ends the answer; returns what is still to be sent: the draft label."""
        self.finish_reason = reason
        return templates.label(self.answer_format)

    @property
    def text(self) -> str:
        """The model's text so far, without label."""
        return "".join(self.parts)


def _guardrails(plan: Plan, answers: list[Answer]) -> protocol.Guardrails:
    findings = None
    if plan.template is Template.FINDING:
        findings = [
            protocol.FindingResult.of(templates.parse_finding(answer.text, plan.answer_format))
            for answer in answers
        ]
    return protocol.Guardrails(
        policy=POLICY,
        template=plan.template,
        format=plan.answer_format,
        label=templates.DRAFT_LABEL,
        verdicts=[],
        finding=findings[0] if findings else None,
        findings=findings if len(answers) > 1 else None,
        review_id=plan.review_id,
        audit_id=plan.audit_id,
    )


def _usage(prompt_tokens: int, answers: list[Answer]) -> Usage:
    completion_tokens = sum(answer.tokens for answer in answers)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
    )


async def complete(plan: Plan, engine: Engine) -> bytes:
    """Runs a plan to its end; returns the ``chat.completion`` object as JSON.

    Raises:
        ApiError: the engine refused the prompt or failed.
    """
    answers = [Answer(plan.answer_format) for _ in range(plan.sampling.n)]
    labels = [""] * len(answers)
    prompt_tokens = 0
    async with aclosing(_steps(plan, engine)) as steps:
        async for step in steps:
            prompt_tokens = step.prompt_tokens
            for output in step.outputs:
                answer = answers[output.index]
                answer.tokens += output.tokens
                answer.push(output.text)
                if output.finish_reason is not None:
                    labels[output.index] = answer.finish(output.finish_reason)
    if any(answer.finish_reason is None for answer in answers):
        raise InternalError()
    return (
        protocol.ChatCompletion(
            id=plan.id,
            created=plan.created,
            model=MODEL_ID,
            choices=[
                protocol.Choice(
                    index=index,
                    message=protocol.ChatMessage(content=answer.text + label),
                    finish_reason=answer.finish_reason or "stop",
                )
                for index, (answer, label) in enumerate(zip(answers, labels, strict=True))
            ],
            usage=_usage(prompt_tokens, answers),
            guardrails=_guardrails(plan, answers),
        )
        .model_dump_json()
        .encode()
    )


def _steps(plan: Plan, engine: Engine) -> AsyncGenerator[Step, None]:
    return engine.generate(plan.prompt, plan.sampling, plan.id)


async def stream(plan: Plan, engine: Engine) -> AsyncGenerator[bytes, None]:
    """Runs a plan; yields server-sent events (``chat.completion.chunk`` objects).

    The first event comes only after the engine's first step, so that whatever the engine refuses
    is still an ordinary HTTP error.

    Raises:
        ApiError: before the first event. Later ones become an event of their own.
    """
    events = _Events(plan)
    started = False
    try:
        async with aclosing(_steps(plan, engine)) as steps:
            async for step in steps:
                if not started:
                    started = True
                    yield events.opening(step.prompt_tokens)
                for output in step.outputs:
                    yield events.of(output)
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
        self._answers = [Answer(plan.answer_format) for _ in range(plan.sampling.n)]
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
        return b"".join(self._event(index, role) for index in range(len(self._answers)))

    def of(self, output: Output) -> bytes:
        """The events of one output; none while its text is held."""
        answer = self._answers[output.index]
        answer.tokens += output.tokens
        text = answer.push(output.text)
        events = self._event(output.index, Delta(content=text)) if text else b""
        if output.finish_reason is None:
            return events
        if rest := answer.finish(output.finish_reason):
            events += self._event(output.index, Delta(content=rest))
        done = all(answer.finish_reason for answer in self._answers)
        extra = self._guardrails() if done and not self._plan.include_usage else b""
        return events + self._event(output.index, Delta(), output.finish_reason, extra)

    def closing(self) -> bytes:
        """The usage event, if asked for, and the end mark."""
        if not self._plan.include_usage:
            return _DONE
        usage = _usage(self._prompt_tokens, self._answers).model_dump_json().encode()
        return b"".join((self._head, b'],"usage":', usage, self._guardrails(), b"}\n\n", _DONE))

    def _event(
        self, index: int, delta: Delta, reason: FinishReason | None = None, extra: bytes = b""
    ) -> bytes:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=reason)
        body = choice.model_dump_json(exclude_unset=True).encode()
        return b"".join((self._head, body, self._tail, extra, b"}\n\n"))

    def _guardrails(self) -> bytes:
        return b',"guardrails":' + _guardrails(self._plan, self._answers).model_dump_json().encode()
