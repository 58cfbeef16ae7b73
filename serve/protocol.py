"""Request and response types: the part of OpenAI's chat completions that we accept and add.

The request schema is closed: a field that is not here is refused, because vLLM would accept it
(``chat_template``, ``prompt_logprobs``, ``structured_outputs``, ...) and go round the guardrails.
Field names and meanings: OpenAI API reference, "Create chat completion".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardrails.answers import (
    AnswerFormat,
    Finding,
    Impression,
    Report,
    Status,
    Summary,
    Template,
)
from guardrails.rules import Action, Stage
from serve.body import Body, split, whole
from serve.errors import BadRequest


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


# --- request -----------------------------------------------------------------------------------


class TextPart(_Closed):
    type: Literal["text"]
    text: str


class ImageURL(_Closed):
    url: str
    # Accepted and without effect: this model always sees one square of 336 x 336 pixels.
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Closed):
    type: Literal["image_url"]
    image_url: ImageURL


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class SystemMessage(_Closed):
    role: Literal["system", "developer"]
    content: str | list[TextPart]
    name: str | None = None


class UserMessage(_Closed):
    role: Literal["user"]
    content: str | list[Part]
    name: str | None = None


class AssistantMessage(_Closed):
    role: Literal["assistant"]
    content: str | list[TextPart]
    name: str | None = None
    # openai-python sends these back when a client appends the message it received.
    refusal: None = None
    annotations: list[Any] | None = Field(default=None, max_length=0)
    audio: None = None
    function_call: None = None
    tool_calls: None = None


Message = Annotated[SystemMessage | UserMessage | AssistantMessage, Field(discriminator="role")]


class StreamOptions(_Closed):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class TextFormat(_Closed):
    type: Literal["text"]


class JsonObjectFormat(_Closed):
    type: Literal["json_object"]


class JsonSchema(_Closed):
    name: str
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")


class JsonSchemaFormat(_Closed):
    type: Literal["json_schema"]
    json_schema: JsonSchema


ResponseFormat = Annotated[
    TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
]
StopString = Annotated[str, Field(min_length=1, max_length=64)]


class ChatCompletionRequest(_Closed):
    """``POST /v1/chat/completions``. Ignored fields are listed so that clients may send them."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    n: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    metadata: dict[str, str] | None = Field(default=None, max_length=16)
    # Log-probabilities carry model text past the rails: only "no" is accepted.
    logprobs: Literal[False] | None = None
    # Without effect.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    store: bool | None = None


def parse_request(body: bytes | bytearray) -> tuple[ChatCompletionRequest, Body]:
    """Reads a request body: the request, and the inline images that its image parts refer to.

    Raises:
        BadRequest: not JSON, a field that is missing, unknown or of a wrong value; ``param`` is
            its path in OpenAI's notation, for example ``messages.0.content``.
    """
    inline = split(body)
    request = _validated(inline.json)
    images = (part.image_url.url for part in _parts(request) if isinstance(part, ImagePart))
    if sum(inline.mark in url for url in images) < len(inline.payloads):
        # A data URL that is no image's: text, or a name. It is read as what it is.
        inline = whole(body)
        request = _validated(inline.json)
    return request, inline


def _parts(request: ChatCompletionRequest) -> Iterator[Part]:
    for message in request.messages:
        if not isinstance(message.content, str):
            yield from message.content


def _validated(body: bytes | bytearray) -> ChatCompletionRequest:
    try:
        return ChatCompletionRequest.model_validate_json(body)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        # Of a union's branches, the one that got furthest is the one that was meant.
        first = max(details, key=lambda detail: len(detail["loc"]))
        kind = first["type"]
        if kind == "json_invalid":
            raise BadRequest("The request body is not valid JSON.", code="invalid_json") from None
        param = _param(first["loc"], unknown=kind == "extra_forbidden")
        if kind == "extra_forbidden":
            raise BadRequest(
                "The request has a field that this service does not support. "
                "docs/api.md lists the supported ones.",
                param=param,
                code="unsupported_parameter",
            ) from None
        if kind == "missing":
            raise BadRequest(
                "The request lacks a required field.", param=param, code="missing_parameter"
            ) from None
        raise BadRequest("A field of the request has an invalid value.", param=param) from None


_KNOWN_NAMES = frozenset(
    name
    for model in (
        ChatCompletionRequest,
        SystemMessage,
        UserMessage,
        AssistantMessage,
        TextPart,
        ImagePart,
        ImageURL,
        StreamOptions,
        JsonSchemaFormat,
        JsonSchema,
    )
    for name in model.model_fields
)


def _param(location: tuple[int | str, ...], *, unknown: bool) -> str | None:
    """The path of a field as clients know it: without the names of pydantic's union branches.

    An unknown field's name is the client's own. It is repeated only when it is a plain identifier,
    so that no text of the client comes back through an error.
    """
    path: list[str] = []
    for before, part in zip((None, *location), location, strict=False):
        # Behind an index pydantic names the branch of a discriminated union ("user", "text").
        if isinstance(part, int) or (part in _KNOWN_NAMES and not isinstance(before, int)):
            path.append(str(part))
    name = location[-1] if location else None
    if unknown and isinstance(name, str) and _is_plain(name) and path[-1:] != [name]:
        path.append(name)
    return ".".join(path) or None


def _is_plain(name: str) -> bool:
    return len(name) <= 40 and name.isascii() and name.isidentifier() and name.islower()


# --- response ----------------------------------------------------------------------------------

FinishReason = Literal["stop", "length", "content_filter"]


class FindingResult(_Closed):
    status: Status
    explanation: str

    @classmethod
    def of(cls, finding: Finding) -> FindingResult:
        return cls(status=finding.status, explanation=finding.explanation)


class Sections(_Closed):
    """A report, impression or summary by its sections; null where the template has none such."""

    findings: str | None = None
    impression: str | None = None
    summary: str | None = None
    complete: bool  # whether every section was begun

    @classmethod
    def of(cls, value: Report | Impression | Summary) -> Sections:
        match value:
            case Report():
                return cls(
                    findings=value.findings, impression=value.impression, complete=value.complete
                )
            case Impression():
                return cls(impression=value.text, complete=value.complete)
            case Summary():
                return cls(summary=value.text, complete=value.complete)


class Verdict(_Closed):
    """What one rule decided; ``finding`` where it is about one, ``choice`` when n > 1."""

    rule: str
    action: Action
    stage: Stage
    finding: str | None = None
    choice: int | None = None


class Escalation(_Closed):
    """A clinician is to look at once: what was found, or the rule that asks for it."""

    action: Literal["escalate to urgent human review"] = "escalate to urgent human review"
    reasons: list[str]


class ImageWindow(_Closed):
    """How a DICOM image's values became grey; without centre and width, by a LUT or their range."""

    origin: Literal["request", "file", "default"]
    center: float | None
    width: float | None


class ImageNote(_Closed):
    """What was done to one image of the request, in the order of the request."""

    media_type: str
    role: Literal["prior", "current"] | None
    frame: int | None  # DICOM: which frame, from 1, of how many
    frames: int | None
    window: ImageWindow | None  # DICOM, greyscale
    burned_in: Literal["none", "masked", "flagged"]
    burned_in_evidence: list[str]


class Guardrails(_Closed):
    """What we add beside OpenAI's fields to every completion.

    Of an answer that is held for review nothing is told here, neither.
    """

    status: Literal["draft", "held"] = "draft"
    policy: str
    template: Template
    format: AnswerFormat
    label: str
    verdicts: list[Verdict]
    finding: FindingResult | None  # the first choice's
    findings: list[FindingResult] | None = None  # every choice's, in order, when n > 1
    sections: Sections | None = None  # the first choice's, for report, impression and summary
    escalation: Escalation | None = None
    images: list[ImageNote]
    review_id: str
    audit_id: str


class Usage(_Closed):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatMessage(_Closed):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(_Closed):
    index: int
    message: ChatMessage
    logprobs: None = None
    finish_reason: FinishReason


class ChatCompletion(_Closed):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    guardrails: Guardrails


class Delta(_Closed):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(_Closed):
    index: int
    delta: Delta
    finish_reason: FinishReason | None = None
