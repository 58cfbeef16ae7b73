"""The HTTP edge: routes and their roles, body limit. Everything not here is 404.

Pure ASGI on Starlette's router: no middleware that buffers a stream. Keys, roles and the shape of
errors are serve/guarded.py's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from guardrails.policy import Policy
from serve import chat
from serve.engine import Engine
from serve.errors import ApiError, NotFound, TooLarge
from serve.guarded import Guarded, GuardedRoute, exception_handlers
from serve.images import Images
from serve.plan import Plan, make_plan
from serve.principals import Principals, Role
from serve.protocol import parse_request
from serve.readiness import Readiness
from serve.recorder import Recorder
from serve.settings import MODEL_ID, Settings

CALLERS = frozenset({Role.CALLER})


def build_edge(
    engine: Engine,
    settings: Settings,
    policy_in_force: Callable[[], Policy],
    images: Images,
    principals: Principals,
    recorder: Recorder,
) -> ASGIApp:
    """The whole application that a replica serves.

    The policy is asked for with each request, so that a new one needs no restart.
    """
    readiness = Readiness(engine)

    async def health(_: Request) -> Response:
        await engine.check_health()
        return _json(b'{"status":"ok"}')

    async def ready(_: Request) -> Response:
        await readiness.check()
        return _json(b'{"status":"ready"}')

    async def metrics(_: Request) -> Response:
        return Response(engine.metrics(), media_type="text/plain; version=0.0.4")

    created = int(time.time())
    card = (
        f'{{"id":"{MODEL_ID}","object":"model","created":{created},"owned_by":"research-use-only"}}'
    ).encode()

    async def models(_: Request) -> Response:
        return _json(b'{"object":"list","data":[' + card + b"]}")

    async def model(request: Request) -> Response:
        if request.path_params["model"] != MODEL_ID:
            raise NotFound(
                f"This service has one model: {MODEL_ID}.", param="model", code="model_not_found"
            )
        return _json(card)

    completions = ChatCompletions(engine, settings, policy_in_force, images, recorder)
    app = Starlette(
        routes=[
            GuardedRoute("/v1/chat/completions", completions, methods=["POST"], roles=CALLERS),
            GuardedRoute("/v1/models", models, roles=CALLERS),
            GuardedRoute("/v1/models/{model}", model, roles=CALLERS),
            GuardedRoute("/metrics", metrics, roles=CALLERS | {Role.ADMIN}),
            GuardedRoute("/health", health, roles="open"),
            GuardedRoute("/ready", ready, roles="open"),
        ],
        exception_handlers=exception_handlers(),
    )
    return Guarded(app, principals)


class ChatCompletions:
    """``POST /v1/chat/completions``."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        policy_in_force: Callable[[], Policy],
        images: Images,
        recorder: Recorder,
    ) -> None:
        self._engine = engine
        self._images = images
        self._recorder = recorder
        self._policy_in_force = policy_in_force
        self._limits = settings.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        try:
            body = await _read_body(scope, receive, limit=self._limits.max_body_bytes)
        except ApiError as error:
            self._record_refusal(scope, error)
            raise
        if body is not None:
            await _until_disconnect(receive, lambda: self._respond(body, scope, send))

    async def _respond(self, body: bytearray, scope: Scope, send: Send) -> None:
        try:
            plan = await self._plan(body, scope)
        except ApiError as error:
            self._record_refusal(scope, error)
            raise
        if plan.sampling.stream:
            await _send_events(chat.stream(plan, self._engine, self._recorder), send)
        else:
            await _send(send, await chat.complete(plan, self._engine, self._recorder))

    def _record_refusal(self, scope: Scope, error: ApiError) -> None:
        state = scope["state"]
        self._recorder.refused(state["request_id"], state["principal"].name, error)

    async def _plan(self, body: bytearray, scope: Scope) -> Plan:
        request, inline = parse_request(body)
        return await make_plan(
            request,
            inline=inline,
            policy=self._policy_in_force(),
            principal=scope["state"]["principal"].name,
            limits=self._limits,
            images=self._images,
            request_id=scope["state"]["request_id"],
        )


async def _read_body(scope: Scope, receive: Receive, *, limit: int) -> bytearray | None:
    """The request body; None when the client hung up before its end.

    Raises:
        TooLarge: over ``limit`` bytes, announced or sent.
    """
    too_large = TooLarge(f"A request body may have {limit} bytes.")
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or int(value) > limit):
            raise too_large
    body = bytearray()  # grows in place: joining megabytes at the end would stop the event loop
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > limit:
            raise too_large
        body += chunk
        if not message.get("more_body"):
            return body


async def _until_disconnect(receive: Receive, respond: Callable[[], Awaitable[None]]) -> None:
    """Runs ``respond``; a client that hangs up cancels it, and with it the engine's request."""
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            tasks.cancel_scope.cancel()

        tasks.start_soon(watch)
        try:
            await respond()
        except Exception as error:  # kept out of the task group, which would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _send(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_events(events: AsyncGenerator[bytes, None], send: Send) -> None:
    started = False
    async with aclosing(events):
        async for event in events:
            if not started:
                headers = [
                    (b"content-type", b"text/event-stream; charset=utf-8"),
                    (b"cache-control", b"no-cache"),
                    (b"x-accel-buffering", b"no"),
                ]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                started = True
            if event:
                await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
