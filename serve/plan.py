"""From a parsed request to everything the engine needs: limits, images, template, prompt.

Pure decisions but for one thing: images are decoded in a thread, off the event loop.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass

from guardrails import templates
from guardrails.templates import AnswerFormat, Template
from serve import protocol
from serve.engine import Prompt, PromptImage, Sampling, Turn
from serve.errors import BadRequest, NotFound, TooLarge
from serve.imaging import raster
from serve.protocol import ChatCompletionRequest
from serve.settings import MODEL_ID, Limits

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


async def make_plan(
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
    n = request.n or 1
    # Greedy unless asked otherwise: the same image and question give the same draft. Several
    # choices are only several when they are sampled: OpenAI's default then.
    temperature = request.temperature
    if temperature is None:
        temperature = 0.0 if n == 1 else 1.0
    if temperature == 0 and n > 1:
        raise BadRequest("n > 1 needs a temperature above 0: greedy choices are equal.", param="n")
    return Sampling(
        max_tokens=request.max_completion_tokens or request.max_tokens or limits.default_max_tokens,
        temperature=temperature,
        top_p=request.top_p or 1.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        n=n,
        seed=request.seed,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        grammar=templates.GRAMMAR[answer_format] if template is Template.FINDING else None,
        stream=bool(request.stream),
    )
