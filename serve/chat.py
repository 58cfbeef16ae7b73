"""The request path, top to bottom: request -> intake -> template -> engine -> rails -> answer.

Decides and composes; each stage does its own work and knows nothing of the others.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field

from guardrails import templates
from guardrails.templates import AnswerFormat, Template
from serve import protocol
from serve.engine import Engine, Prompt, PromptImage, Sampling, Step, Turn
from serve.errors import ApiError, BadRequest, InternalError, NotFound, TooLarge
from serve.imaging import raster
from serve.protocol import ChatCompletionRequest, ChunkChoice, Delta, FinishReason, Usage
from serve.settings import MODEL_ID, Limits

POLICY = "builtin"
_DONE = b"data: [DONE]\n\n"
# Pieces that steer the model's own format; in a client's text they would forge turns or images.
_CONTROL_TEXT = ("<image>", "[INST]", "[/INST]", "<s>", "</s>", "<unk>")
_JSON_FIELDS = {"status", "explanation"}


@dataclass(frozen=True, slots=True)
class Plan:
    """A request, decided: all that is known before the engine runs."""

    id: str
    created: int
    audit_id: str
    review_id: str
    template: Template
    answer_format: AnswerFormat
    prompt: Prompt
    sampling: Sampling
    include_usage: bool


async def plan(
    request: ChatCompletionRequest, *, principal: str, limits: Limits, request_id: str
) -> Plan:
    """Everything between the parsed request and the engine.

    Raises:
        ApiError: the request cannot be served; its subclass says why.
    """
    if request.model != MODEL_ID:
        raise NotFound(
            f"This service has one model: {MODEL_ID}.", param="model", code="model_not_found"
        )
    _check_limits(request, limits)
    template, answer_format = _choose_template(request)
    turns = await _conversation(request, template, answer_format, limits)
    return Plan(
        id=f"chatcmpl-{request_id}",
        created=int(time.time()),
        audit_id=str(uuid.uuid4()),
        review_id=str(uuid.uuid4()),
        template=template,
        answer_format=answer_format,
        prompt=Prompt(turns=turns, cache_salt=principal),
        sampling=_sampling(request, template, answer_format, limits),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
    )


def _check_limits(request: ChatCompletionRequest, limits: Limits) -> None:
    if len(request.messages) > limits.max_messages:
        raise TooLarge(f"A request may have {limits.max_messages} messages.", param="messages")
    if (request.n or 1) > limits.max_choices:
        raise BadRequest(f"n may be at most {limits.max_choices}.", param="n")
    if request.stream_options is not None and not request.stream:
        raise BadRequest("stream_options needs stream: true.", param="stream_options")
    texts = [text for message in request.messages for text in _texts(message)]
    if sum(map(len, texts)) > limits.max_text_chars:
        raise TooLarge(
            f"A request may have {limits.max_text_chars} characters of text.", param="messages"
        )
    if any(piece in text for text in texts for piece in _CONTROL_TEXT):
        raise BadRequest(
            f"Message text may not contain the model's control tokens: {' '.join(_CONTROL_TEXT)}.",
            param="messages",
            code="control_token",
        )
    images = sum(len(_image_parts(message)) for message in request.messages)
    if images > limits.max_images:
        raise TooLarge(f"A request may have {limits.max_images} images.", param="messages")


def _choose_template(request: ChatCompletionRequest) -> tuple[Template, AnswerFormat]:
    """The template: named in ``metadata``, else implied by JSON, else by a closed question."""
    last = request.messages[-1]
    if not isinstance(last, protocol.UserMessage):
        raise BadRequest("The last message must be the user's.", param="messages")
    wants_json = _wants_json(request)
    named = (request.metadata or {}).get("template")
    if named is not None:
        if named not in set(Template):
            names = ", ".join(Template)
            raise BadRequest(f"metadata.template is one of: {names}.", param="metadata.template")
        template = Template(named)
    elif wants_json or templates.is_closed_question("\n".join(_texts(last))):
        template = Template.FINDING
    else:
        template = Template.FREE
    if wants_json and template is not Template.FINDING:
        raise BadRequest(
            "JSON answers come with the template finding only.", param="response_format"
        )
    return template, AnswerFormat.JSON if wants_json else AnswerFormat.TEXT


def _wants_json(request: ChatCompletionRequest) -> bool:
    match request.response_format:
        case None | protocol.TextFormat():
            return False
        case protocol.JsonObjectFormat():
            return True
        case protocol.JsonSchemaFormat(json_schema=schema):
            properties = (schema.schema_ or {}).get("properties")
            if not isinstance(properties, dict) or set(properties) != _JSON_FIELDS:
                raise BadRequest(
                    "A response schema has exactly two string properties: status (present, "
                    "absent or indeterminate) and explanation.",
                    param="response_format.json_schema.schema",
                )
            return True


async def _conversation(
    request: ChatCompletionRequest,
    template: Template,
    answer_format: AnswerFormat,
    limits: Limits,
) -> tuple[Turn, ...]:
    """The turns the model reads: our preamble first, whatever the client's system text says."""
    system = [templates.PREAMBLE]
    turns: list[Turn] = []
    last = len(request.messages) - 1
    for position, message in enumerate(request.messages):
        text = "\n".join(_texts(message))
        match message:
            case protocol.SystemMessage():
                system.append(text)
            case protocol.AssistantMessage():
                turns.append(Turn("assistant", templates.without_label(text)))
            case protocol.UserMessage():
                if position == last:
                    text = templates.question_prompt(text, template, answer_format)
                images = [
                    await _intake(part, limits, param=f"messages.{position}.content.{number}")
                    for number, part in _image_parts(message)
                ]
                turns.append(Turn("user", text, tuple(images)))
    _check_alternation(turns)
    return (Turn("system", "\n".join(system)), *turns)


async def _intake(part: protocol.ImagePart, limits: Limits, *, param: str) -> PromptImage:
    encoded = raster.parse_data_url(part.image_url.url, param=param)
    pixels = await asyncio.to_thread(
        raster.decode, encoded, max_pixels=limits.max_image_pixels, param=param
    )
    return PromptImage(pixels, encoded.digest)


def _check_alternation(turns: list[Turn]) -> None:
    """The model was trained on strictly alternating turns that the user begins and ends."""
    roles = [turn.role for turn in turns]
    if roles != [("user", "assistant")[i % 2] for i in range(len(roles))]:
        raise BadRequest(
            "Messages alternate: user, assistant, ..., user. Join consecutive ones of a role.",
            param="messages",
        )


def _texts(message: protocol.Message) -> list[str]:
    if isinstance(message.content, str):
        return [message.content]
    return [part.text for part in message.content if isinstance(part, protocol.TextPart)]


def _image_parts(message: protocol.Message) -> list[tuple[int, protocol.ImagePart]]:
    if isinstance(message.content, str):
        return []
    return [
        (number, part)
        for number, part in enumerate(message.content)
        if isinstance(part, protocol.ImagePart)
    ]


def _sampling(
    request: ChatCompletionRequest,
    template: Template,
    answer_format: AnswerFormat,
    limits: Limits,
) -> Sampling:
    stop = request.stop or ()
    return Sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens or limits.default_max_tokens,
        # Greedy unless asked otherwise: the same image and question give the same draft.
        temperature=request.temperature or 0.0,
        top_p=request.top_p or 1.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        n=request.n or 1,
        seed=request.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        grammar=templates.GRAMMAR[answer_format] if template is Template.FINDING else None,
        stream=bool(request.stream),
    )


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


def _steps(plan: Plan, engine: Engine) -> AsyncIterator[Step]:
    return engine.generate(plan.prompt, plan.sampling, plan.id)


async def stream(plan: Plan, engine: Engine) -> AsyncIterator[bytes]:
    """Runs a plan; yields server-sent events (``chat.completion.chunk`` objects).

    The first event comes only after the engine's first step, so that whatever the engine refuses
    is still an ordinary HTTP error. The ``guardrails`` object rides in the last event before
    ``[DONE]``.

    Raises:
        ApiError: before the first event. Later ones become an event of their own.
    """
    answers = [Answer(plan.answer_format) for _ in range(plan.sampling.n)]
    head = (
        f'data: {{"id":"{plan.id}","object":"chat.completion.chunk","created":{plan.created},'
        f'"model":"{MODEL_ID}",'
    ).encode()
    usage = b',"usage":null' if plan.include_usage else b""
    started = False
    prompt_tokens = 0

    def event(index: int, delta: Delta, reason: FinishReason | None, extra: bytes = b"") -> bytes:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=reason)
        body = choice.model_dump_json(exclude_unset=True).encode()
        return b"".join((head, b'"choices":[', body, b"]", usage, extra, b"}\n\n"))

    try:
        async with aclosing(_steps(plan, engine)) as steps:
            async for step in steps:
                if not started:
                    started = True
                    prompt_tokens = step.prompt_tokens
                    for index in range(len(answers)):
                        yield event(index, Delta(role="assistant", content=""), None)
                for output in step.outputs:
                    answer = answers[output.index]
                    answer.tokens += output.tokens
                    if text := answer.push(output.text):
                        yield event(output.index, Delta(content=text), None)
                    if output.finish_reason is None:
                        continue
                    if rest := answer.finish(output.finish_reason):
                        yield event(output.index, Delta(content=rest), None)
                    extra = b""
                    if all(answer.finish_reason for answer in answers) and not plan.include_usage:
                        extra = _guardrails_field(plan, answers)
                    yield event(output.index, Delta(), output.finish_reason, extra)
    except Exception as error:
        if not started:
            raise
        api_error = error if isinstance(error, ApiError) else InternalError()
        yield b"data: " + api_error.body() + b"\n\n"
        yield _DONE
        return
    if plan.include_usage:
        total = _usage(prompt_tokens, answers).model_dump_json().encode()
        rails = _guardrails_field(plan, answers)
        yield b"".join((head, b'"choices":[],"usage":', total, rails, b"}\n\n"))
    yield _DONE


def _guardrails_field(plan: Plan, answers: list[Answer]) -> bytes:
    return b',"guardrails":' + _guardrails(plan, answers).model_dump_json().encode()
