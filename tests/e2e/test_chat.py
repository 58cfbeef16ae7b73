"""Answers: constrained, labelled, the same streamed or not."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID

import pytest
from openai import OpenAI
from pydantic import BaseModel

from guardrails.templates import DRAFT_LABEL, AnswerFormat, Template, grammar
from serve.phantom.draw import Phantom, draw
from tests.e2e.conftest import Stack
from tests.e2e.images import ask, noise, part

MODEL = "llava-med"
FINDING = grammar(Template.FINDING, AnswerFormat.TEXT) or ""
CHEST = draw(Phantom(), seed=7)


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return stack.openai()


def _streamed(client: OpenAI, **request: Any) -> tuple[str, list[Any]]:
    chunks = list(client.chat.completions.create(model=MODEL, stream=True, **request))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    return text, chunks


def _without_label(content: str) -> str:
    text, separator, rest = content.partition(f"\n\n{DRAFT_LABEL}")
    assert separator
    assert rest == ""
    return text


def test_a_closed_question_gets_the_finding_template_unasked(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask("Is there evidence of pneumothorax?", CHEST)
    )
    content = answer.choices[0].message.content or ""
    assert re.fullmatch(FINDING, _without_label(content))
    rails = answer.model_extra["guardrails"]
    assert rails["template"] == "finding"
    assert rails["label"] == DRAFT_LABEL
    assert rails["finding"]["status"] in ("present", "absent", "indeterminate")
    assert rails["finding"]["explanation"] in content
    assert rails["review_id"] == rails["audit_id"] == str(UUID(answer.id.removeprefix("chatcmpl-")))
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 576
    assert answer.choices[0].finish_reason == "stop"


def test_an_open_question_is_answered_freely_and_labelled(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask("Describe the key findings.", CHEST)
    )
    assert _without_label(answer.choices[0].message.content or "")
    rails = answer.model_extra["guardrails"]
    assert rails["template"] == "free"
    assert rails["finding"] is None


@pytest.mark.parametrize("template", ["finding", "free"])
def test_the_client_can_name_the_template(client: OpenAI, template: str) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ask("Is there a pleural effusion?", CHEST),
        metadata={"template": template},
    )
    assert answer.model_extra["guardrails"]["template"] == template


@pytest.mark.parametrize(
    "request_fields",
    [
        {"messages": ask("Is there a pleural effusion?", CHEST)},
        {"messages": ask("Describe the key findings.", CHEST)},
        {"messages": ask("Is there a pleural effusion?")},
        {
            "messages": ask("Is the heart enlarged?", CHEST),
            "response_format": {"type": "json_object"},
        },
        {"messages": ask("Is the heart enlarged?", CHEST), "max_tokens": 4},
    ],
    ids=["finding", "free", "text only", "json", "cut off"],
)
def test_a_stream_says_the_same_as_a_whole_answer(
    client: OpenAI, request_fields: dict[str, Any]
) -> None:
    whole = client.chat.completions.create(model=MODEL, **request_fields)
    text, chunks = _streamed(client, **request_fields)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    last = chunks[-1]
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    theirs, ours = last.model_extra["guardrails"], whole.model_extra["guardrails"]
    ids = ("review_id", "audit_id")
    assert {k: v for k, v in theirs.items() if k not in ids} == {
        k: v for k, v in ours.items() if k not in ids
    }
    assert all("guardrails" not in (chunk.model_extra or {}) for chunk in chunks[:-1])


def test_usage_comes_in_a_chunk_of_its_own_when_asked_for(client: OpenAI) -> None:
    request: dict[str, Any] = {"messages": ask("Is the heart enlarged?", CHEST)}
    whole = client.chat.completions.create(model=MODEL, **request)
    _, chunks = _streamed(client, **request, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert "guardrails" in chunks[-1].model_extra


class FindingAnswer(BaseModel):
    status: str
    explanation: str


def test_json_answers_are_json_with_the_two_fields_and_nothing_else(client: OpenAI) -> None:
    request: dict[str, Any] = {
        "messages": ask("Is there consolidation?", CHEST),
        "response_format": {"type": "json_object"},
    }
    whole = client.chat.completions.create(model=MODEL, **request)
    answer = json.loads(whole.choices[0].message.content or "")
    assert set(answer) == {"status", "explanation"}
    assert whole.model_extra["guardrails"]["finding"] == answer
    text, _ = _streamed(client, **request)
    assert json.loads(text) == answer


def test_openais_parse_helper_works_with_a_model_of_the_answer(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=ask("Is there consolidation?", CHEST),  # type: ignore[arg-type]
        response_format=FindingAnswer,
    )
    parsed = answer.choices[0].message.parsed
    assert parsed is not None
    assert parsed.status in ("present", "absent", "indeterminate")


def test_several_choices_are_each_whole_and_labelled(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=ask("Is there a pneumothorax?", CHEST),
        n=3,
        temperature=1.0,
        seed=1,
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        assert re.fullmatch(FINDING, _without_label(choice.message.content or ""))
    assert len(answer.model_extra["guardrails"]["findings"]) == 3


def test_several_choices_stream_side_by_side(client: OpenAI) -> None:
    _, chunks = _streamed(
        client, messages=ask("Is there a pneumothorax?", CHEST), n=2, temperature=1.0, seed=1
    )
    for index in (0, 1):
        text = "".join(
            choice.delta.content or ""
            for chunk in chunks
            for choice in chunk.choices
            if choice.index == index
        )
        assert re.fullmatch(FINDING, _without_label(text))


def test_max_tokens_cuts_the_answer_and_never_guesses(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask("Is there a pneumothorax?", CHEST), max_tokens=1
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.model_extra["guardrails"]["finding"]["status"] == "indeterminate"


def test_several_images_and_turns_are_taken(client: OpenAI) -> None:
    first = ask("Describe the key findings.", CHEST, draw(Phantom(), seed=8))
    answer = client.chat.completions.create(model=MODEL, messages=first)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 2 * 576
    history = [
        {"role": "system", "content": "Be brief."},
        *first,
        {"role": "assistant", "content": answer.choices[0].message.content},
        *ask("Is there a pneumothorax?"),
    ]
    follow_up = client.chat.completions.create(model=MODEL, messages=history)  # type: ignore[arg-type]
    assert follow_up.model_extra["guardrails"]["template"] == "finding"


def test_the_answer_depends_on_the_image(client: OpenAI) -> None:
    def status(phantom: Phantom, kind: str) -> str:
        parts = [
            part(draw(phantom, seed=3), kind),
            {"type": "text", "text": "Is there a pleural effusion?"},
        ]
        answer = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": parts}],  # type: ignore[typeddict-item]
        )
        return str(answer.model_extra["guardrails"]["finding"]["status"])

    for kind in ("PNG", "JPEG"):
        assert status(Phantom(effusion="left"), kind) == "present"
        assert status(Phantom(), kind) == "absent"


def test_noise_is_answered_too(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask("Is there a pleural effusion?", noise(1, (1200, 90)))
    )
    assert answer.choices[0].finish_reason in ("stop", "length")


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("report", ("findings", "impression")),
        ("impression", ("impression",)),
        ("summary", ("summary",)),
    ],
)
def test_sections_are_enforced_as_text_and_as_json(
    client: OpenAI, template: str, fields: tuple[str, ...]
) -> None:
    def answer(**request: Any) -> tuple[str, dict[str, Any]]:
        said = client.chat.completions.create(
            model=MODEL, messages=ask("Describe the findings.", CHEST), max_tokens=400, **request
        )
        return said.choices[0].message.content or "", said.model_extra["guardrails"]

    content, rails = answer(metadata={"template": template})
    # The phantom was taught no such report: it may fill its first section until max_tokens.
    assert content.startswith(f"{fields[0].capitalize()}: ")
    assert all(rails["sections"][field] in content for field in fields)
    if rails["sections"]["complete"]:
        assert all(f"{field.capitalize()}: " in content for field in fields)
    properties = {field: {"type": "string"} for field in fields}
    schema = {"name": template, "schema": {"type": "object", "properties": properties}}
    content, rails = answer(response_format={"type": "json_schema", "json_schema": schema})
    assert rails["template"] == template
    assert rails["format"] == "json"
    if rails["sections"]["complete"]:
        assert set(json.loads(content)) == set(fields)
