"""From a parsed request to everything the engine needs: limits, images, template, prompt.

Pure decisions; what takes long (rules, images) runs in a thread, off the event loop.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from guardrails import templates
from guardrails.policy import Policy
from guardrails.policy_file import ReviewMode
from guardrails.rails import check_input
from guardrails.rules import Stage, Verdict
from guardrails.templates import AnswerFormat, Template
from serve import metrics, protocol
from serve.body import Body
from serve.engine import Prompt, PromptImage, Sampling, Turn
from serve.errors import BadRequest, ContentFiltered, GuardFailed, NotFound, TooLarge
from serve.images import Images, Place, TakenImage
from serve.protocol import ChatCompletionRequest
from serve.settings import MODEL_ID, Limits

# Pieces that steer the model's own format; in a client's text they would forge turns or images.
_CONTROL_TEXT = ("<image>", "[INST]", "[/INST]", "<s>", "</s>", "<unk>")


@dataclass(frozen=True, slots=True)
class Plan:
    """A request, decided: all that is known before the engine runs."""

    id: str
    request_id: str
    principal: str
    created: int  # seconds since 1970
    started: float  # time.perf_counter()
    audit_id: str
    review_id: str
    policy: Policy
    template: Template
    answer_format: AnswerFormat
    question: str  # the last one, as far as the rules let it through
    earlier: str  # what the user asked before it
    verdicts: tuple[Verdict, ...]  # of the input rules
    images: tuple[TakenImage, ...]
    prompt: Prompt
    sampling: Sampling
    include_usage: bool

    @property
    def held(self) -> bool:
        """Whether the draft waits for a clinician's sign-off."""
        return self.policy.file.review.mode is ReviewMode.HOLD

    def elapsed_s(self) -> float:
        """Seconds since the request was read."""
        return time.perf_counter() - self.started


async def make_plan(
    request: ChatCompletionRequest,
    *,
    inline: Body,
    policy: Policy,
    principal: str,
    limits: Limits,
    images: Images,
    request_id: str,
) -> Plan:
    """Everything between the parsed request and the engine.

    The request's id, 32 hexadecimal digits, becomes that of its records and of its review.

    Raises:
        ApiError: the request cannot be served; its subclass says why.
    """
    started = time.perf_counter()
    exchange = str(uuid.UUID(hex=request_id))  # who knows one of its ids finds it by that
    if request.model != MODEL_ID:
        raise NotFound(
            f"This service has one model: {MODEL_ID}.", param="model", code="model_not_found"
        )
    _check_limits(request, limits)
    template, answer_format = _choose_template(request)
    _check_alternation(request)
    # A long text takes the rules some 100 ms, which streams beside it should not feel.
    texts, verdicts = await asyncio.to_thread(_checked_texts, request, policy)
    urls = {
        (position, number): part.image_url.url
        for position, message in enumerate(request.messages)
        for number, part in _image_parts(message)
    }
    taken = await images.take_all(urls, inline, principal=principal)
    turns = _conversation(request, texts, policy, template, answer_format, taken)
    asked = [
        text
        for message, text in zip(request.messages, texts, strict=True)
        if isinstance(message, protocol.UserMessage)
    ]
    return Plan(
        id=f"chatcmpl-{request_id}",
        request_id=request_id,
        principal=principal,
        created=int(time.time()),
        started=started,
        audit_id=exchange,
        review_id=exchange,
        policy=policy,
        template=template,
        answer_format=answer_format,
        question=asked[-1],
        earlier="\n".join(asked[:-1]),
        verdicts=verdicts,
        images=tuple(taken.values()),
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


def _checked_texts(
    request: ChatCompletionRequest, policy: Policy
) -> tuple[tuple[str, ...], tuple[Verdict, ...]]:
    """The text of every message as the model may read it.

    Raises:
        ContentFiltered: a rule blocks it; the message names the rule, never the text.
        GuardFailed: the rules could not be applied.
    """
    texts = ["\n".join(_texts(message)) for message in request.messages]
    try:
        checked = check_input(policy, texts)
    except Exception as error:  # text that was not checked does not reach the model
        metrics.count_failure(Stage.INPUT)
        raise GuardFailed() from error
    metrics.count_verdicts(checked.verdicts)
    if checked.refused:
        raise ContentFiltered(
            f"The request was refused by policy: {', '.join(checked.refused)}. "
            "docs/guardrails.md says what each rule looks for.",
            param="messages",
        )
    return checked.texts, checked.verdicts


def _choose_template(request: ChatCompletionRequest) -> tuple[Template, AnswerFormat]:
    """The template: named in ``metadata``, else implied by JSON, else by a closed question."""
    last = request.messages[-1]
    if not isinstance(last, protocol.UserMessage):
        raise BadRequest("The last message must be the user's.", param="messages")
    by_format = _template_of_format(request)
    named = (request.metadata or {}).get("template")
    if named is not None:
        if named not in set(Template):
            names = ", ".join(Template)
            raise BadRequest(f"metadata.template is one of: {names}.", param="metadata.template")
        template = Template(named)
        # A schema names its template; json_object goes with all that have a JSON form.
        json_object = isinstance(request.response_format, protocol.JsonObjectFormat)
        fits = template is not Template.FREE if json_object else by_format in (None, template)
        if not fits:
            raise BadRequest(
                f"The template {template} has no such JSON answer.", param="response_format"
            )
    elif by_format is not None:
        template = by_format
    elif templates.is_closed_question("\n".join(_texts(last))):
        template = Template.FINDING
    else:
        template = Template.FREE
    return template, AnswerFormat.TEXT if by_format is None else AnswerFormat.JSON


def _template_of_format(request: ChatCompletionRequest) -> Template | None:
    """The template whose JSON answer ``response_format`` asks for; None: text."""
    match request.response_format:
        case protocol.JsonObjectFormat():
            return Template.FINDING
        case protocol.JsonSchemaFormat(json_schema=schema):
            properties = (schema.schema_ or {}).get("properties")
            names = set(properties) if isinstance(properties, dict) else set()
            template = templates.json_template(names)
            if template is None:
                known = "; ".join(", ".join(names) for names in templates.JSON_FIELDS.values())
                raise BadRequest(
                    f"A response schema has exactly the string properties of a template: {known}.",
                    param="response_format.json_schema.schema",
                )
            return template
        case _:
            return None


def _named(taken: Sequence[TakenImage], param: str) -> str:
    """A line that says which image is of which study, where the request says so.

    Raises:
        BadRequest: some images have a role and some have none, or none is current.
    """
    roles = [image.wanted.role for image in taken]
    if not any(roles):
        return ""
    if None in roles or "current" not in roles:
        raise BadRequest(
            "Where one image has a role, each has one, and one is current.",
            param=param,
            code="invalid_image_parameter",
        )
    if len(roles) == 1:
        return f"The image is the {roles[0]} study.\n"
    names = (f"Image {number} is the {role} study." for number, role in enumerate(roles, 1))
    return " ".join(names) + "\n"


def _conversation(
    request: ChatCompletionRequest,
    texts: Sequence[str],
    policy: Policy,
    template: Template,
    answer_format: AnswerFormat,
    taken: Mapping[Place, TakenImage],
) -> tuple[Turn, ...]:
    """The turns the model reads: our preamble first, whatever the client's system text says."""
    system = [policy.file.preamble]
    turns: list[Turn] = []
    last = len(request.messages) - 1
    for position, (message, text) in enumerate(zip(request.messages, texts, strict=True)):
        match message:
            case protocol.SystemMessage():
                system.append(text)
            case protocol.AssistantMessage():
                turns.append(Turn("assistant", templates.without_label(text, policy.file.label)))
            case protocol.UserMessage():
                if position == last:
                    text = templates.question_prompt(
                        text, template, answer_format, policy.instructions
                    )
                images = [image for place, image in taken.items() if place[0] == position]
                text = _named(images, f"messages.{position}") + text
                seen = (PromptImage(one.prepared.image, one.prepared.digest) for one in images)
                turns.append(Turn("user", text, tuple(seen)))
    return (Turn("system", "\n".join(system)), *turns)


def _check_alternation(request: ChatCompletionRequest) -> None:
    """The model was trained on strictly alternating turns that the user begins and ends."""
    turns = [m for m in request.messages if not isinstance(m, protocol.SystemMessage)]
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
        grammar=templates.grammar(template, answer_format),
        stream=bool(request.stream),
    )
