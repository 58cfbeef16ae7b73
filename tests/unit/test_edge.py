"""The edge and the request path over an engine that does what a test says.

The real engine has its own tests (tests/e2e); here it fails in ways that a real one rarely does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from guardrails import policy, templates
from guardrails.templates import AnswerFormat, Template
from serve import errors
from serve.edge import build_edge
from serve.engine import Output, Prompt, Sampling, Step
from serve.errors import ApiError, ContextTooLong, Unavailable
from serve.principals import Principals
from serve.readiness import Readiness
from serve.settings import load
from tests.unit.recording import any_recorder
from tests.unit.taking_images import images

POLICY = policy.load()
KEY = "unit-test-key-0123456789"
ADMIN_KEY = "unit-test-admin-key-0123"
PRINCIPALS = Principals.of(api_key=SecretStr(KEY), admin_key=SecretStr(ADMIN_KEY), keys=None)
HEADERS = {"Authorization": f"Bearer {KEY}"}
QUESTION = {"model": "llava-med", "messages": [{"role": "user", "content": "Is there a mass?"}]}
ANSWER = " likely absent, explanation: no mass is seen."


@dataclass
class ScriptedEngine:
    """Says ``pieces``, one a step, then fails with ``failure`` or ends."""

    pieces: list[str] = field(default_factory=lambda: [ANSWER])
    failure: Exception | None = None
    hang: bool = False
    prompts: list[Prompt] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    closed: int = 0

    async def generate(
        self, prompt: Prompt, sampling: Sampling, _request_id: str, allowed: Awaitable[None]
    ) -> AsyncGenerator[Step, None]:
        await allowed
        self.prompts.append(prompt)
        self.samplings.append(sampling)
        try:
            for number, piece in enumerate(self.pieces):
                last = number == len(self.pieces) - 1 and self.failure is None and not self.hang
                reason = "stop" if last else None
                yield Step((Output(0, piece, 1, reason),), prompt_tokens=7)  # type: ignore[arg-type]
            if self.hang:
                await asyncio.sleep(3600)
            if self.failure is not None:
                raise self.failure
        finally:
            self.closed += 1

    async def check_health(self) -> None:
        if isinstance(self.failure, Unavailable):
            raise self.failure

    def metrics(self) -> bytes:
        return b"up 1\n"


def _client(engine: ScriptedEngine, **given_settings: Any) -> httpx.AsyncClient:
    loaded = load(**given_settings)
    app = build_edge(engine, loaded, lambda: POLICY, images(loaded), PRINCIPALS, any_recorder())
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://edge", headers=HEADERS)


async def _post(engine: ScriptedEngine, **fields: Any) -> httpx.Response:
    async with _client(engine) as client:
        return await client.post("/v1/chat/completions", json=QUESTION | fields)


def _events(response: httpx.Response) -> list[Any]:
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def _content(events: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content", "")
        for event in events
        if isinstance(event, dict)
        for choice in event.get("choices", ())
    )


@pytest.mark.parametrize(
    ("method", "path", "caller", "admin", "nobody"),
    [
        ("POST", "/v1/chat/completions", 200, 403, 401),
        ("GET", "/v1/models", 200, 403, 401),
        ("GET", "/v1/models/llava-med", 200, 403, 401),
        ("GET", "/metrics", 200, 200, 401),
        ("GET", "/health", 200, 200, 200),
        ("GET", "/ready", 200, 200, 200),
        ("POST", "/tokenize", 404, 404, 401),
        ("GET", "/v1/models/", 404, 404, 401),
        ("DELETE", "/v1/models", 405, 403, 401),
    ],
)
async def test_each_route_is_for_its_roles_only(
    method: str, path: str, caller: int, admin: int, nobody: int
) -> None:
    engine = ScriptedEngine()
    async with _client(engine) as client:
        for key, status in ((KEY, caller), (ADMIN_KEY, admin), ("wrong", nobody)):
            headers = {"Authorization": f"Bearer {key}"}
            response = await client.request(method, path, headers=headers, json=QUESTION)
            assert response.status_code == status
    answered = [prompt for prompt in engine.prompts if prompt.cache_salt == "default"]
    assert len(answered) == (path == "/v1/chat/completions")


async def test_an_answer_is_labelled_and_its_leading_space_is_gone() -> None:
    body = (await _post(ScriptedEngine())).json()
    content = body["choices"][0]["message"]["content"]
    assert content == ANSWER.strip() + f"\n\n{templates.DRAFT_LABEL}"
    assert body["guardrails"]["finding"] == {
        "status": "absent",
        "explanation": "no mass is seen.",
    }


@settings(deadline=None)  # the store's disk is everybody's
@given(st.lists(st.integers(0, len(ANSWER)), max_size=12))
def test_however_the_engine_cuts_its_text_the_client_reads_the_same(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(ANSWER)]
    pieces = [ANSWER[a:b] for a, b in pairwise(bounds)]
    whole = asyncio.run(_post(ScriptedEngine()))
    streamed = asyncio.run(_post(ScriptedEngine(pieces=pieces), stream=True))
    assert _content(_events(streamed)) == whole.json()["choices"][0]["message"]["content"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status"),
    [(ContextTooLong("too long"), 400), (Unavailable("dead"), 503), (RuntimeError("secret"), 500)],
)
async def test_a_failure_before_the_first_token_is_an_http_error(
    failure: Exception, status: int, stream: bool
) -> None:
    engine = ScriptedEngine(pieces=[], failure=failure)
    response = await _post(engine, stream=stream)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "secret" not in response.text
    assert ("retry-after" in response.headers) == (status == 503)


@pytest.mark.parametrize("failure", [Unavailable("dead"), RuntimeError("secret")])
async def test_a_failure_in_mid_stream_is_an_event_of_its_own(failure: Exception) -> None:
    engine = ScriptedEngine(pieces=[" likely", " present"], failure=failure)
    events = _events(await _post(engine, stream=True))
    assert events[-1] == "[DONE]"
    assert set(events[-2]["error"]) == {"message", "type", "param", "code"}
    assert not any("guardrails" in event for event in events[:-1])
    assert "secret" not in json.dumps(events)


async def test_a_failure_late_in_a_whole_answer_lets_no_text_out() -> None:
    engine = ScriptedEngine(pieces=[" likely", " present"], failure=Unavailable("dead"))
    response = await _post(engine)
    assert response.status_code == 503
    assert "likely" not in response.text


async def test_an_engine_that_ends_without_a_reason_is_no_answer() -> None:
    assert (await _post(ScriptedEngine(pieces=[]))).status_code == 500


async def test_our_preamble_comes_first_and_the_clients_system_text_after_it() -> None:
    engine = ScriptedEngine()
    messages = [{"role": "system", "content": "Be brief."}, *QUESTION["messages"]]
    await _post(engine, messages=messages)
    system, user = engine.prompts[0].turns
    assert system.text == f"{templates.PREAMBLE}\nBe brief."
    assert user.text == f"Is there a mass?\n{templates.FINDING_INSTRUCTION}"
    assert engine.samplings[0].grammar == templates.grammar(Template.FINDING, AnswerFormat.TEXT)


async def test_history_goes_back_without_our_label_and_only_the_last_question_is_templated() -> (
    None
):
    engine = ScriptedEngine()
    first = {"role": "user", "content": "Is there an effusion?"}
    answer = {"role": "assistant", "content": f"No.\n\n{templates.DRAFT_LABEL}"}
    await _post(engine, messages=[first, answer, *QUESTION["messages"]])
    _, one, two, three = engine.prompts[0].turns
    assert (one.text, two.text) == ("Is there an effusion?", "No.")
    assert three.text.endswith(templates.FINDING_INSTRUCTION)


async def test_decoding_is_greedy_unless_the_client_asks_otherwise() -> None:
    engine = ScriptedEngine()
    await _post(engine)
    await _post(engine, temperature=0.7, top_p=0.9, seed=3, stop=["x"], max_tokens=5)
    greedy, asked = engine.samplings
    assert (greedy.temperature, greedy.max_tokens) == (0.0, 512)
    assert (asked.temperature, asked.top_p, asked.seed, asked.stop) == (0.7, 0.9, 3, ("x",))


async def test_several_choices_are_sampled() -> None:
    engine = ScriptedEngine(pieces=[])
    await _post(engine, n=2)
    assert engine.samplings[0].temperature == 1.0
    refused = await _post(engine, n=2, temperature=0)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"status": {}, "explanation": {}}},
        {"properties": {"explanation": {"type": "string"}, "status": {"type": "string"}}},
    ],
)
async def test_a_schema_of_the_two_fields_is_taken(schema: dict[str, Any]) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "finding", "schema": schema}}
    engine = ScriptedEngine(pieces=['{"status": "absent", "explanation": "clear."}'])
    response = await _post(engine, response_format=form)
    assert json.loads(response.json()["choices"][0]["message"]["content"])["status"] == "absent"


@pytest.mark.parametrize("schema", [None, {}, {"properties": {"diagnosis": {}}}, {"properties": 1}])
async def test_any_other_schema_is_refused(schema: dict[str, Any] | None) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    response = await _post(ScriptedEngine(), response_format=form)
    assert response.status_code == 400


async def test_a_client_that_hangs_up_closes_the_engines_generator() -> None:
    engine = ScriptedEngine(pieces=[" likely"], hang=True)
    app = build_edge(engine, load(), lambda: POLICY, images(load()), PRINCIPALS, any_recorder())
    body = json.dumps(QUESTION | {"stream": True}).encode()
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": body, "more_body": False})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if message["type"] == "http.response.body":
            incoming.put_nowait({"type": "http.disconnect"})

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"authorization", f"Bearer {KEY}".encode())],
        "query_string": b"",
    }
    await asyncio.wait_for(app(scope, incoming.get, send), timeout=5)
    assert engine.closed == 1
    assert sent[0]["status"] == 200


@pytest.mark.parametrize("length", [b"33554433", b"-1", b"1e3", b"x"])
async def test_an_announced_length_over_the_limit_is_refused_unread(length: bytes) -> None:
    async with _client(ScriptedEngine()) as client:
        response = await client.post(
            "/v1/chat/completions", content=b"{}", headers={"content-length": length.decode()}
        )
    assert response.status_code == 413


async def test_a_body_that_grows_over_the_limit_is_refused() -> None:
    async def endless() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 1024

    async with _client(ScriptedEngine(), limits={"max_body_bytes": 4096}) as client:
        response = await client.post("/v1/chat/completions", content=endless())
    assert response.status_code == 413


async def test_the_clients_request_id_is_not_taken() -> None:
    async with _client(ScriptedEngine()) as client:
        ids = {
            (await client.get("/v1/models", headers={"x-request-id": "mine"})).headers[
                "llava-med-request-id"
            ]
            for _ in range(3)
        }
    assert len(ids) == 3
    assert "mine" not in ids


async def test_ready_means_that_a_token_was_generated() -> None:
    engine = ScriptedEngine()
    readiness = Readiness(engine)
    await readiness.check()
    await readiness.check()
    assert len(engine.prompts) == 1, "the proof holds for some seconds"
    with pytest.raises(Unavailable):
        await Readiness(ScriptedEngine(pieces=[])).check()


async def test_a_hanging_engine_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.readiness.TIMEOUT_S", 0.05)
    engine = ScriptedEngine(pieces=[""], hang=True)
    with pytest.raises(Unavailable):
        await Readiness(engine).check()
    assert engine.closed == 1


def test_every_error_has_openais_shape_and_a_fixed_wording() -> None:
    def tree(error: type[ApiError]) -> list[type[ApiError]]:
        return [error, *(leaf for child in error.__subclasses__() for leaf in tree(child))]

    kinds = tree(ApiError)
    assert len(kinds) == 18
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or ""), "the tree in the docstring is whole"
        assert 400 <= kind.status < 600
