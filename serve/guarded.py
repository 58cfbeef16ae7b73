"""Around every HTTP application: request id, key, role, and no exception that escapes as text.

Knows Starlette's routes and who may use them; does not know what they do. Pure ASGI: nothing here
buffers a stream. Denies by default: a route that does not say who may use it is for nobody.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, Literal
from urllib.parse import unquote_plus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Message, Receive, Scope, Send

from serve.errors import (
    ApiError,
    BadRequest,
    Forbidden,
    InternalError,
    MethodNotAllowed,
    NotFound,
    Unauthorized,
)
from serve.principals import Principal, Principals, Role

# Ray Serve answers with an x-request-id of its own, which a client may choose; this one is ours.
REQUEST_ID_HEADER = b"llava-med-request-id"
_KEY_PARAMETERS = frozenset(
    {"key", "api_key", "apikey", "api-key", "token", "access_token", "auth", "authorization"}
)
logger = logging.getLogger("llava_med")


class GuardedRoute(Route):
    """A route that says who may use it: any of ``roles``, or everybody, without a key."""

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        methods: Collection[str] = ("GET",),
        roles: frozenset[Role] | Literal["open"] = frozenset(),
    ) -> None:
        super().__init__(path, endpoint, methods=methods)
        self.roles = roles


class Guarded:
    """The application, for those only whom its routes name.

    What a handler finds in ``scope["state"]``: ``request_id``, and ``principal`` (a Principal;
    not on open routes).
    """

    def __init__(self, app: Starlette, principals: Principals) -> None:
        self._app = app
        self._principals = principals

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
            _refuse_key_in_url(scope["query_string"])
            self._admit(scope)
            await self._app(scope, receive, send_with_id)
        except ApiError as error:
            await error_response(error)(scope, receive, send_with_id)
        except Exception as error:  # the last line: a stack trace helps no client
            # The type alone: a message may quote the request.
            logger.error("request %s failed: %s", request_id, type(error).__name__)
            if not started:
                await error_response(InternalError())(scope, receive, send_with_id)

    def _admit(self, scope: Scope) -> None:
        """Lets a request through to the route that Starlette will choose for it, or raises.

        Raises:
            Unauthorized: no key, or a wrong one; also where there is no route, so that only
                those with a key learn which there are.
            NotFound: there is no such route.
            Forbidden: the key is known and has none of the route's roles.
        """
        route = _route(self._app.routes, scope)
        roles = route.roles if isinstance(route, GuardedRoute) else frozenset()
        if roles == "open":
            return
        principal = self._principal(scope)
        if route is None:
            raise NotFound("There is no such route here.")
        if not principal.roles & roles:
            needed = " or ".join(sorted(roles)) or "that nobody has"
            raise Forbidden(f"This needs a key with the role {needed}.")
        scope["state"]["principal"] = principal

    def _principal(self, scope: Scope) -> Principal:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, key = value.partition(b" ")
                if scheme.lower() == b"bearer" and (found := self._principals.find(key.strip())):
                    return found
        raise Unauthorized("Give the API key as `Authorization: Bearer KEY`.")


def error_response(error: ApiError) -> Response:
    """The error as an HTTP response, in OpenAI's shape."""
    return Response(error.body(), error.status, headers=error.headers())


def exception_handlers() -> Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]]:
    """For Starlette: whatever a handler raises becomes an ApiError's response."""
    return {
        ApiError: _on_exception,
        HTTPException: _on_http_exception,
        Exception: _on_exception,
    }


async def _on_exception(_: Request, error: Exception) -> Response:
    return error_response(error if isinstance(error, ApiError) else InternalError())


async def _on_http_exception(_: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    match status:
        case 404:
            return error_response(NotFound("There is no such route here."))
        case 405:
            return error_response(MethodNotAllowed("This route does not take this method."))
        case _:
            return error_response(InternalError())


def _refuse_key_in_url(query: bytes) -> None:
    """Proxies, browsers and logs keep URLs.

    Raises:
        BadRequest: a parameter is named like a key.
    """
    for parameter in query.replace(b";", b"&").split(b"&"):
        name = unquote_plus(parameter.partition(b"=")[0].decode("latin-1"))
        if name.strip().lower() in _KEY_PARAMETERS:
            raise BadRequest(
                "A key in a URL ends up in logs. Send it as `Authorization: Bearer KEY`, and have "
                "this one replaced: others may have read it.",
                code="key_in_url",
            )


def _route(routes: list[BaseRoute], scope: Scope) -> BaseRoute | None:
    """The one that Starlette's router takes: the first that fits, else the first by path alone."""
    by_path_alone = None
    for route in routes:
        match, _ = route.matches(scope)
        if match is Match.FULL:
            return route
        if match is Match.PARTIAL and by_path_alone is None:
            by_path_alone = route
    return by_path_alone
