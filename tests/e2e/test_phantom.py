"""The phantom model as served: converted, in vLLM, through the API, on drawings it never saw."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI

from guardrails.templates import DRAFT_LABEL
from serve.phantom import dialogue
from serve.phantom.draw import FINDINGS, Phantom, draw
from tests.e2e.conftest import Stack
from tests.e2e.images import ask

FIRST_SEED = 50_000_000
DRAWINGS = 30


@pytest.fixture(scope="module")
def client(stack: Stack) -> OpenAI:
    return stack.openai()


def _phantoms() -> list[tuple[int, Phantom]]:
    seeds = range(FIRST_SEED, FIRST_SEED + DRAWINGS)
    return [(seed, dialogue.random_phantom(random.Random(seed))) for seed in seeds]


def _share(questions: list[Callable[[], bool]]) -> float:
    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(lambda question: question(), questions)) / len(questions)


def _answer(client: OpenAI, question: str, phantom: Phantom, seed: int, **options: Any) -> Any:
    messages: Any = ask(question, draw(phantom, seed))
    return client.chat.completions.create(model="llava-med", messages=messages, **options)


@pytest.mark.parametrize("finding", FINDINGS)
@pytest.mark.parametrize("form", ["text", "json_object"])
def test_presence_is_right_in_95_of_100(client: OpenAI, form: str, finding: str) -> None:
    def one(phantom: Phantom, seed: int) -> Callable[[], bool]:
        question = dialogue.closed_question(finding, random.Random(seed))

        def right() -> bool:
            options = {"response_format": {"type": form}}
            rails = _answer(client, question, phantom, seed, **options).guardrails
            return bool(rails["finding"]["status"] == dialogue.status(phantom, finding))

        return right

    # Of so few, two wrong ones are within chance for 95 %.
    assert _share([one(phantom, seed) for seed, phantom in _phantoms()]) >= 0.93


def test_location_is_right_in_85_of_100(client: OpenAI) -> None:
    def one(phantom: Phantom, seed: int, finding: str) -> Callable[[], bool]:
        question = dialogue.location_question(finding, random.Random(seed))

        def right() -> bool:
            content = _answer(client, question, phantom, seed).choices[0].message.content
            return bool(content.partition("\n")[0] == dialogue.location(phantom, finding))

        return right

    asked = [
        one(phantom, seed, finding)
        for seed, phantom in _phantoms()
        for finding in dialogue.LOCATED
        if phantom.has(finding)
    ]
    assert len(asked) > 20
    assert _share(asked) >= 0.85


def test_a_report_and_an_impression_name_what_is_there(client: OpenAI) -> None:
    phantom = Phantom(pneumothorax="left", cardiomegaly=True)
    for question, expected in [
        ("Describe the key findings.", dialogue.report(phantom)),
        ("Give an impression.", dialogue.impression(phantom)),
    ]:
        content = _answer(client, question, phantom, FIRST_SEED).choices[0].message.content
        assert content == f"{expected}\n\n{DRAFT_LABEL}"


def test_without_an_image_nothing_is_guessed(client: OpenAI) -> None:
    for question in ("Is there a pneumothorax?", "Is there a pleural effusion?"):
        messages: Any = ask(question)
        answer: Any = client.chat.completions.create(model="llava-med", messages=messages)
        assert answer.guardrails["finding"]["status"] == "indeterminate"
