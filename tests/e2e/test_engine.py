"""What the engine does for us, read from its own counters."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from serve.phantom.draw import Phantom, draw
from tests.e2e.conftest import Stack
from tests.e2e.images import ask

HITS = "vllm:prefix_cache_hits_total"


def test_the_same_image_asked_again_hits_the_prefix_cache(stack: Stack) -> None:
    image = draw(Phantom(pneumothorax="left"), seed=11)
    client = stack.openai()

    def ask_once(question: str) -> float:
        before = stack.metric(HITS)
        client.chat.completions.create(model="llava-med", messages=ask(question, image))
        return stack.metric(HITS) - before

    first = ask_once("Is there a pneumothorax?")
    second = ask_once("Where is the pneumothorax?")
    assert first < 64
    # Image and preamble come first in the prompt: all of the image's 576 tokens are reused.
    assert second >= 576


def test_many_at_once_are_all_answered(stack: Stack) -> None:
    images = [draw(Phantom(), seed=seed) for seed in range(4)]
    client = stack.openai()

    def one(number: int) -> str:
        answer = client.chat.completions.create(
            model="llava-med",
            messages=ask("Is there a pneumothorax?", images[number % len(images)]),
        )
        return answer.id

    with ThreadPoolExecutor(16) as pool:
        ids = list(pool.map(one, range(64)))
    assert len(set(ids)) == 64
