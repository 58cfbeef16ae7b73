"""The HTTP edge: routes, authentication, body limit, error shape. Everything not here is 404.

Pure ASGI on Starlette's router: no middleware that buffers a stream.
"""

from __future__ import annotations

import hmac
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from hashlib import sha256

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guardrails.policy import Policy
from serve import chat
from serve.engine import Engine
from serve.errors import (
    ApiError,
    InternalError,
    MethodNotAllowed,
    NotFound,
    TooLarge,
    Unauthorized,
)
from serve.images import Images
from serve.plan import make_plan
from serve.protocol import parse_request
from serve.readiness import Readiness
from serve.settings import MODEL_ID, Settings

OPEN_ROUTES = frozenset({"/health", "/ready"})
# Ray Serve answers with an x-request-id of its own, which a client may choose; this one is ours.
REQUEST_ID_HEADER = b"llava-med-request-id"
logger = logging.getLogger("llava_med")


def build_edge(
    engine: Engine, settings: Settings, policy_in_force: Callable[[], Policy], images: Images
) -> ASGIApp:
    """The whole application that a replica serves.

    The policy is asked for with each request, so that a new one needs no restart.

    Raises:
        ValueError: no API key is set; the service does not start without one.
    """
    if settings.api_key is None:
        raise ValueError("no API key: set LLAVA_MED_API_KEY, or start with `llava-med up`")
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

    completions = ChatCompletions(engine, settings, policy_in_force, images)
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", completions, methods=["POST"]),
            Route("/v1/models", models, methods=["GET"]),
            Route("/v1/models/{model}", model, methods=["GET"]),
            Route("/metrics", metrics, methods=["GET"]),
            Route("/health", health, methods=["GET"]),
            Route("/ready", ready, methods=["GET"]),
        ],
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_exception,
            Exception: _on_api_error,
        },
    )
    app.router.redirect_slashes = False
    return Guarded(app, api_key=settings.api_key.get_secret_value())


class Guarded:
    """Around every route: request id, API key, and no exception that escapes as text."""

    def __init__(self, app: ASGIApp, *, api_key: str) -> None:
        self._app = app
        self._digest = sha256(api_key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # no WebSockets here
        # Minted, never taken from the client: it names records (CVE-2026-105755).
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message.get("headers", ()),
                    (REQUEST_ID_HEADER, request_id.encode()),
                ]
            await send(message)

        try:
            if scope["path"] not in OPEN_ROUTES:
                scope["state"]["principal"] = self._principal(scope)
            await self._app(scope, receive, send_with_id)
        except ApiError as error:
            await _response(error)(scope, receive, send_with_id)
        except Exception as error:  # the last line: a stack trace helps no client
            # The type alone: a message may quote the request.
            logger.error("request %s failed: %s", request_id, type(error).__name__)
            if not started:
                await _response(InternalError())(scope, receive, send_with_id)

    def _principal(self, scope: Scope) -> str:
        """Who calls, from ``Authorization: Bearer``; compared in constant time.

        Raises:
            Unauthorized: no key, or a wrong one.
        """
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, key = value.partition(b" ")
                digest = sha256(key.strip()).digest()
                if scheme.lower() == b"bearer" and hmac.compare_digest(digest, self._digest):
                    return "default"
        raise Unauthorized("Give the API key as `Authorization: Bearer KEY`.")


class ChatCompletions:
    """``POST /v1/chat/completions``."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        policy_in_force: Callable[[], Policy],
        images: Images,
    ) -> None:
        self._engine = engine
        self._images = images
        self._policy_in_force = policy_in_force
        self._limits = settings.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        body = await _read_body(scope, receive, limit=self._limits.max_body_bytes)
        if body is not None:
            await _until_disconnect(receive, lambda: self._respond(body, scope, send))

    async def _respond(self, body: bytearray, scope: Scope, send: Send) -> None:
        request, inline = parse_request(body)
        plan = await make_plan(
            request,
            inline=inline,
            policy=self._policy_in_force(),
            principal=scope["state"]["principal"],
            limits=self._limits,
            images=self._images,
            request_id=scope["state"]["request_id"],
        )
        if plan.sampling.stream:
            await _send_events(chat.stream(plan, self._engine), send)
        else:
            await _send(send, await chat.complete(plan, self._engine))


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


def _response(error: ApiError) -> Response:
    return Response(error.body(), error.status, headers=error.headers())


async def _on_api_error(_: Request, error: Exception) -> Response:
    return _response(error if isinstance(error, ApiError) else InternalError())


async def _on_http_exception(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    match status:
        case 404:
            return _response(NotFound("There is no such route here."))
        case 405:
            return _response(MethodNotAllowed("This route does not take this method."))
        case _:
            return _response(InternalError())
