"""What the engine does for us, read from its own counters."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from serve.phantom.draw import Phantom, draw
from tests.e2e.conftest import Stack
from tests.e2e.images import ask

HITS = "vllm:prefix_cache_hits_total"
QUERIES = "vllm:prefix_cache_queries_total"


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


def _running(stack: Stack) -> float:
    return stack.metric("vllm:num_requests_running")


def _await(condition: object, timeout_s: float = 10) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False


def test_a_client_that_leaves_a_stream_ends_its_generation(stack: Stack) -> None:
    request = {
        "model": "llava-med",
        # No end in sight: it wanders, and every token said becomes likelier.
        "messages": ask("Describe the key findings."),
        "max_tokens": 3000,
        "temperature": 2.0,
        "frequency_penalty": -2.0,
        "presence_penalty": -2.0,
        "n": 8,
        "stream": True,
    }
    for _ in range(20):  # where it wanders is random: some answers end before they are seen to run
        with (
            stack.http() as client,
            client.stream("POST", "/v1/chat/completions", json=request) as response,
        ):
            next(response.iter_lines())
            seen = _await(lambda: _running(stack) > 0, timeout_s=0.3)
        if seen:
            # A long answer takes about twelve seconds.
            assert _await(lambda: _running(stack) == 0, timeout_s=3), "still generating"
            return
    raise AssertionError("no answer was long enough to leave")


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
