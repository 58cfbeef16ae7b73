"""The guard as a specification: who gets through to which route, and what all others are told."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from serve.errors import Conflict, Forbidden, Overloaded
from serve.guarded import Guarded, GuardedRoute, error_response, exception_handlers
from serve.principals import Principal, Principals, Role


def key_of(*roles: Role) -> str:
    return "key-of-" + "-".join(roles)


OWNERS = {
    sha256(key_of(*roles).encode()).digest(): Principal(
        "-".join(roles) or "nobody", frozenset(roles)
    )
    for roles in [(), *((role,) for role in Role), (Role.CALLER, Role.ADMIN), tuple(Role)]
}


async def who(request: Request) -> Response:
    principal = getattr(request.state, "principal", None)
    return PlainTextResponse(principal.name if principal else "anybody")


async def fails(request: Request) -> Response:
    match request.query_params["how"]:
        case "api":
            raise Overloaded("Later.")
        case "404" | "405" | "418" as status:
            raise HTTPException(int(status), "secret")
        case _:
            raise RuntimeError("secret")


async def breaks_off(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("secret")


class BreaksOff:
    __call__ = staticmethod(breaks_off)


def guarded() -> Guarded:
    routes = [
        *(GuardedRoute(f"/{role}", who, roles=frozenset({role})) for role in Role),
        GuardedRoute("/two", who, roles=frozenset({Role.REVIEWER, Role.AUDITOR})),
        GuardedRoute("/split", who, methods=["GET"], roles=frozenset({Role.REVIEWER})),
        GuardedRoute("/split", who, methods=["POST"], roles=frozenset({Role.ADMIN})),
        GuardedRoute("/open", who, roles="open"),
        GuardedRoute("/silent", who),
        Route("/plain", who),
        Mount("/mounted", app=Starlette(routes=[Route("/who", who)])),
        GuardedRoute("/fails", fails, roles="open"),
        GuardedRoute("/breaks-off", BreaksOff(), roles="open"),
    ]
    app = Starlette(routes=routes, exception_handlers=exception_handlers())
    return Guarded(app, Principals(OWNERS, None))


async def ask(
    path: str, *roles: Role, method: str = "GET", headers: dict[str, str] | None = None
) -> httpx.Response:
    transport = httpx.ASGITransport(guarded())
    if headers is None:
        headers = {"Authorization": f"Bearer {key_of(*roles)}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://guarded") as client:
        response = await client.request(method, path, headers=headers)
    assert len(response.headers["llava-med-request-id"]) == 32, "on every response"
    return response


def error(response: httpx.Response) -> dict[str, Any]:
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    return dict(body)


# --- roles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("needed", list(Role))
@pytest.mark.parametrize("held", list(Role))
async def test_a_role_opens_its_own_routes_and_no_other(held: Role, needed: Role) -> None:
    response = await ask(f"/{needed}", held)
    if held == needed:
        assert (response.status_code, response.text) == (200, held)
    else:
        assert response.status_code == 403
        assert error(response)["code"] == "role_missing"
        assert error(response)["type"] == "permission_error"
        assert error(response)["message"] == f"This needs a key with the role {needed}."


@pytest.mark.parametrize("held", list(Role))
async def test_any_role_of_a_route_is_enough(held: Role) -> None:
    response = await ask("/two", held)
    assert response.status_code == (200 if held in {Role.REVIEWER, Role.AUDITOR} else 403)
    if response.status_code == 403:
        assert "auditor or reviewer" in error(response)["message"]


async def test_each_method_of_a_path_may_have_roles_of_its_own() -> None:
    assert (await ask("/split", Role.REVIEWER)).status_code == 200
    assert (await ask("/split", Role.REVIEWER, method="POST")).status_code == 403
    assert (await ask("/split", Role.ADMIN, method="POST")).status_code == 200
    assert (await ask("/split", Role.ADMIN)).status_code == 403


@pytest.mark.parametrize("path", ["/silent", "/plain", "/mounted/who", "/mounted/none"])
async def test_a_route_that_names_no_role_is_for_nobody(path: str) -> None:
    response = await ask(path, *Role)
    assert response.status_code == 403
    assert error(response)["message"] == "This needs a key with the role that nobody has."
    assert (await ask(path, headers={})).status_code == 401


async def test_a_principal_without_roles_gets_nowhere_but_to_what_is_open() -> None:
    for role in Role:
        assert (await ask(f"/{role}")).status_code == 403
    assert (await ask("/open")).text == "anybody"


async def test_what_is_open_needs_no_key_and_knows_nobody() -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        response = await ask("/open", headers=headers)
        assert (response.status_code, response.text) == (200, "anybody")
    assert (await ask("/open", *Role)).text == "anybody"


async def test_an_unknown_route_is_404_and_a_wrong_method_405_for_those_with_a_key() -> None:
    for path in ("/none", "/caller/", "/caller/x", "//caller", "/CALLER", "/open/", "/"):
        assert (await ask(path, *Role)).status_code == 404
        assert (await ask(path, headers={})).status_code == 401
    assert (await ask("/caller", Role.CALLER, method="DELETE")).status_code == 405
    assert (await ask("/caller", Role.ADMIN, method="DELETE")).status_code == 403
    assert (await ask("/caller", method="DELETE", headers={})).status_code == 401


# --- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic key-of-caller", "key-of-caller",
     "Bearerkey-of-caller", "Bearer key-of-caller key-of-caller", "Bearer KEY-OF-CALLER"],
)  # fmt: skip
async def test_anything_but_a_known_key_is_401(authorization: str | None) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await ask("/caller", headers=headers)
    assert response.status_code == 401
    assert error(response)["code"] == "invalid_api_key"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer  "])
async def test_the_scheme_is_read_as_http_has_it(scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {key_of(Role.CALLER)}"}
    assert (await ask("/caller", headers=headers)).status_code == 200


@given(st.binary(max_size=80).filter(lambda key: sha256(key.strip()).digest() not in OWNERS))
async def test_no_wrong_key_gets_in(key: bytes) -> None:
    headers = [(b"authorization", b"Bearer " + key)]
    assert (await _asgi({"headers": headers}))["status"] == 401


# --- keys in URLs ------------------------------------------------------------------------------

NAMES = ["key", "api_key", "apikey", "api-key", "token", "access_token", "auth", "authorization"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("path", ["/caller", "/open", "/none", "/silent"])
async def test_a_key_in_a_url_is_refused_with_or_without_a_good_one_in_the_header(
    path: str, name: str
) -> None:
    for query in (f"{name}=sesame", f"a=b&{name.upper()}=sesame", f"a=b;{name}=sesame", name):
        for headers in (None, {}):
            response = await ask(f"{path}?{query}", Role.CALLER, headers=headers)
            assert response.status_code == 400
            assert error(response)["code"] == "key_in_url"
            assert "Authorization: Bearer KEY" in error(response)["message"]
            assert "replaced" in error(response)["message"]
            assert "sesame" not in response.text


@given(st.sampled_from(NAMES), st.data())
async def test_no_spelling_of_a_parameter_hides_a_key(name: str, data: st.DataObject) -> None:
    letters = [
        data.draw(st.sampled_from([letter, letter.upper(), f"%{ord(letter):02x}"]))
        for letter in name
    ]
    before = data.draw(st.sampled_from(["", "a=b&", "&&", "%20", "+", "a;"]))
    query = f"{before}{''.join(letters)}=x".encode()
    assert (await _asgi({"query_string": query, "path": "/open"}))["status"] == 400


@pytest.mark.parametrize("query", ["", "monkey=1", "keys=1", "a=key", "a=b%26key%3Dc", "%ff=1"])
async def test_other_parameters_are_none_of_the_guards_business(query: str) -> None:
    assert (await ask(f"/open?{query}")).status_code == 200


# --- what escapes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [("api", 429, "overloaded"), ("404", 404, "not_found"), ("405", 405, "method_not_allowed"),
     ("418", 500, "internal_error"), ("unforeseen", 500, "internal_error")],
)  # fmt: skip
async def test_whatever_a_handler_raises_is_an_error_object(
    how: str, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        response = await ask(f"/fails?how={how}", headers={})
    assert response.status_code == status
    assert error(response)["code"] == code
    assert "secret" not in response.text + caplog.text


async def test_a_failure_in_mid_answer_adds_nothing_to_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = await _asgi({"path": "/breaks-off"})
    assert answer == {"status": 200, "body": b"half"}
    assert "secret" not in caplog.text
    assert "RuntimeError" in caplog.text


async def test_websockets_are_not_spoken() -> None:
    assert await _asgi({"type": "websocket", "path": "/open"}) == {}


async def test_the_applications_start_and_end_are_its_own() -> None:
    happened: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        happened.append("start")
        yield
        happened.append("end")

    app = Guarded(Starlette(lifespan=lifespan), Principals(OWNERS, None))
    messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        return next(messages)

    async def send(_: Any) -> None: ...

    await app({"type": "lifespan"}, receive, send)
    assert happened == ["start", "end"]


def test_no_openai_client_retries_what_cannot_come_out_otherwise() -> None:
    for refusal, status in ((Conflict("Changed since."), 409), (Forbidden("Not yours."), 403)):
        response = error_response(refusal)
        assert response.status_code == status
        assert response.headers["x-should-retry"] == "false"
        assert json.loads(bytes(response.body))["error"]["code"] == refusal.code


async def _asgi(change: dict[str, Any]) -> dict[str, Any]:
    """Status and body of a request with bytes that httpx would not send."""
    answer: dict[str, Any] = {}

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answer["status"] = message["status"]
        else:
            answer["body"] = answer.get("body", b"") + message.get("body", b"")

    request = {
        "type": "http", "method": "GET", "path": "/caller", "headers": [], "query_string": b"",
    }  # fmt: skip
    await guarded()(request | change, receive, send)
    return answer
