"""What is open, what is closed, and the shape of every refusal."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import AuthenticationError, BadRequestError, NotFoundError

from tests.e2e.conftest import Stack
from tests.e2e.images import ask, noise, part

ASK: dict[str, Any] = {"model": "llava-med", "messages": ask("Is there an effusion?")}


def _assert_openai_error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert "Traceback" not in response.text
    return dict(error)


def test_openais_client_lists_and_retrieves_the_model(stack: Stack) -> None:
    client = stack.openai()
    assert [model.id for model in client.models.list()] == ["llava-med"]
    assert client.models.retrieve("llava-med").id == "llava-med"
    with pytest.raises(NotFoundError):
        client.models.retrieve("gpt-4o")


def test_liveness_and_readiness_need_no_key(stack: Stack) -> None:
    for path in ("/health", "/ready"):
        assert httpx.get(stack.url + path).status_code == 200


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer wrong", "Basic eDp5"])
def test_nothing_else_opens_without_the_key(stack: Stack, authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    for method, path in [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("POST", "/tokenize"),
    ]:
        response = httpx.request(method, stack.url + path, headers=headers, json=ASK)
        _assert_openai_error(response, 401)


def test_openais_client_sees_an_authentication_error(stack: Stack) -> None:
    with pytest.raises(AuthenticationError):
        stack.openai().with_options(api_key="wrong").models.list()


def test_every_route_of_vllms_own_server_is_closed(stack: Stack) -> None:
    import argparse

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.app import build_app
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    (model,) = (stack.log.parent / "state" / "checkpoints").iterdir()
    engine = AsyncEngineArgs(model=str(model))
    arguments = argparse.Namespace(**(vars(engine) | vars(FrontendArgs())))
    routes = build_app(arguments, supported_tasks=("generate",)).routes
    ours = {"/v1/chat/completions", "/v1/models", "/health", "/metrics"}
    theirs = {route.path for route in routes if hasattr(route, "path")} - ours
    assert len(theirs) > 10
    with stack.http() as client:
        for path in theirs:
            for method in ("GET", "POST"):
                _assert_openai_error(client.request(method, path), 404)


def test_a_method_that_a_route_does_not_take_is_refused(stack: Stack) -> None:
    with stack.http() as client:
        _assert_openai_error(client.get("/v1/chat/completions"), 405)
        _assert_openai_error(client.delete("/v1/models"), 405)


@pytest.mark.parametrize(
    ("change", "status", "code", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model_not_found", "model"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"chat_template": "{{ 1 }}"}, 400, "unsupported_parameter", "chat_template"),
        ({"n": 16384}, 400, "invalid_value", "n"),
        ({"metadata": {"template": "poem"}}, 400, "invalid_value", "metadata.template"),
        ({"messages": ask("<image>" * 500)}, 400, "control_token", "messages"),
        ({"messages": ask("Compare.", *map(noise, range(5)))}, 413, "request_too_large", None),
        ({"messages": ask("word " * 6000)}, 400, "context_length_exceeded", "messages"),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "http://127.0.0.1:8265/a.png"}}]}]},
            400, "invalid_image_url", "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]},
            422, "unusable_image", "messages.0.content.0",
        ),
        (
            {"messages": [{"role": "user", "content": [
                {"type": "image_url", "image_url": {"url": "data:image/gif;base64,AAAA"}}]}]},
            415, "unsupported_media_type", "messages.0.content.0",
        ),
        ({"messages": [ASK["messages"][0]] * 2}, 400, "invalid_value", "messages"),
        (
            {"metadata": {"template": "free"}, "response_format": {"type": "json_object"}},
            400, "invalid_value", "response_format",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_says_what_is_wrong(
    stack: Stack, change: dict[str, Any], status: int, code: str, param: str | None, stream: bool
) -> None:
    with stack.http() as client:
        response = client.post("/v1/chat/completions", json=ASK | {"stream": stream} | change)
    error = _assert_openai_error(response, status)
    assert error["code"] == code
    assert param is None or error["param"] == param
    assert response.headers["x-should-retry"] == "false"


def test_stream_options_need_a_stream(stack: Stack) -> None:
    with stack.http() as client:
        body = ASK | {"stream_options": {"include_usage": True}}
        error = _assert_openai_error(client.post("/v1/chat/completions", json=body), 400)
    assert error["param"] == "stream_options"


def test_a_body_over_the_limit_is_refused_before_it_is_read(stack: Stack) -> None:
    with stack.http() as client:
        response = client.post("/v1/chat/completions", content=b"x" * ((32 << 20) + 1))
    _assert_openai_error(response, 413)


def test_openais_client_sees_a_bad_request(stack: Stack) -> None:
    with pytest.raises(BadRequestError) as caught:
        stack.openai().chat.completions.create(**ASK, temperature=9)
    assert caught.value.param == "temperature"


def test_after_many_bad_requests_it_still_answers(stack: Stack) -> None:
    bodies = [b"", b"{", b"[" * 10_000, b'{"model": 1}', b"\x00" * 1000, b'{"messages": [{}]}']
    with stack.http() as client:
        for number in range(120):
            response = client.post("/v1/chat/completions", content=bodies[number % len(bodies)])
            _assert_openai_error(response, 400)
        image = part(noise(1))
        image["image_url"]["url"] = image["image_url"]["url"][:-4000]
        broken = ASK | {"messages": [{"role": "user", "content": [image]}]}
        for _ in range(20):
            assert client.post("/v1/chat/completions", json=broken).status_code in (400, 422)
        assert client.post("/v1/chat/completions", json=ASK).status_code == 200
