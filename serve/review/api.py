"""``/v1/reviews``: the review queue's HTTP application. Everything not here is 404.

Parses requests and sends answers; what they mean is serve/review/desk.py's. No cookies and no CORS
headers: another site's page can neither read anything here nor have a browser send a key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import get_args

from prometheus_client import generate_latest
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from guardrails.policy import Policy
from serve.audit.records import ReviewAction
from serve.audit.store import Store
from serve.audit.writer import Writer
from serve.errors import BadRequest, NotFound, TooLarge, UnsupportedMedia
from serve.guarded import Guarded, GuardedRoute, exception_handlers
from serve.metrics import REVIEWS
from serve.principals import Principal, Principals, Role
from serve.review import pages
from serve.review.decisions import Act
from serve.review.desk import Desk
from serve.review.events import Events
from serve.review.pages import Page
from serve.review.queue import Cursor, CursorError, Selection
from serve.review.views import PREFIX

MAX_BODY_BYTES = 256 * 1024
MAX_LIMIT = 200
_DEFAULT_LIMIT = 50
_SELECTIONS: tuple[Selection, ...] = get_args(Selection)
_ACTIONS: tuple[ReviewAction, ...] = get_args(ReviewAction)
_REVIEWERS = frozenset({Role.REVIEWER})
_SCRAPERS = frozenset({Role.CALLER, Role.ADMIN})
_MAX_SECONDS = 10_000_000_000  # of an epoch time; the year 2286
_PRIVATE: Mapping[str, str] = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


def build_review_app(
    store: Store,
    writer: Writer,
    principals: Principals,
    policy: Callable[[], Policy | None] = lambda: None,
    *,
    timeout_s: float,
) -> ASGIApp:
    """The application, mounted at ``/v1/reviews``.

    Args:
        store: of the exchanges.
        writer: records looks and actions.
        principals: who may use it.
        policy: in force, for highlights.
        timeout_s: for one record to be on disk; then the request is refused (503).
    """
    desk = Desk(store, writer, policy, timeout_s=timeout_s)
    routes = Routes(desk, pages.read_pages())
    item = PREFIX + "/{id:uuid}"
    app = Starlette(
        routes=[
            GuardedRoute(PREFIX, routes.list, roles=_REVIEWERS),
            GuardedRoute(f"{PREFIX}/", routes.list, roles=_REVIEWERS),
            GuardedRoute(f"{PREFIX}/stats", routes.stats, roles=_REVIEWERS | {Role.AUDITOR}),
            GuardedRoute(f"{PREFIX}/metrics", routes.metrics, roles=_SCRAPERS),
            GuardedRoute(f"{PREFIX}/console", routes.to_console, roles="open"),
            GuardedRoute(f"{PREFIX}/console/", routes.page, roles="open"),
            GuardedRoute(PREFIX + "/console/{name}", routes.page, roles="open"),
            GuardedRoute(item, routes.item, roles=_REVIEWERS | {Role.CALLER}),
            GuardedRoute(f"{item}/images/{{index:int}}", routes.image, roles=_REVIEWERS),
            GuardedRoute(
                f"{item}/events", Events(desk, _PRIVATE), roles=_REVIEWERS | {Role.CALLER}
            ),
            *(
                GuardedRoute(
                    f"{item}/{action}",
                    partial(routes.act, action),
                    methods=["POST"],
                    roles=_REVIEWERS,
                )
                for action in _ACTIONS
            ),
        ],
        exception_handlers=exception_handlers(),
    )
    return _with_whole_paths(Guarded(app, principals))


class Routes:
    """The handlers."""

    def __init__(self, desk: Desk, console: Mapping[str, Page]) -> None:
        self._desk, self._console = desk, console

    async def list(self, request: Request) -> Response:
        """``GET /v1/reviews``."""
        query = _query(request, {"state", "urgent", "limit", "after"})
        state = query.get("state", "pending")
        if state not in _SELECTIONS:
            raise _bad("state", f"one of {', '.join(_SELECTIONS)}")
        urgent = query.get("urgent")
        if urgent not in (None, "true", "false"):
            raise _bad("urgent", "true or false")
        try:
            after = Cursor.parse(query["after"]) if "after" in query else None
        except CursorError:
            raise _bad("after", "what `next` of the page before says") from None
        page = await self._desk.list(
            _who(request),
            state,
            urgent=None if urgent is None else urgent == "true",
            limit=_number(query, "limit", default=_DEFAULT_LIMIT, most=MAX_LIMIT) or 1,
            after=after,
        )
        return _json(page)

    async def item(self, request: Request) -> Response:
        """``GET /v1/reviews/{id}``."""
        _query(request, ())
        return _json(await self._desk.item(_who(request), _id(request)))

    async def image(self, request: Request) -> Response:
        """``GET /v1/reviews/{id}/images/{index}``."""
        _query(request, ())
        index = int(request.path_params["index"])
        file = await self._desk.image(_who(request), _id(request), index)
        return Response(file, media_type="image/png", headers=_PRIVATE)

    async def act(self, action: ReviewAction, request: Request) -> Response:
        """``POST /v1/reviews/{id}/{action}``."""
        _query(request, ())
        body = _act(await _json_body(request))
        return _json(await self._desk.act(_who(request), _id(request), action, body))

    async def stats(self, request: Request) -> Response:
        """``GET /v1/reviews/stats``."""
        query = _query(request, {"since", "until"})
        since, until = (
            None if name not in query else 1_000_000 * _number(query, name, 0, _MAX_SECONDS)
            for name in ("since", "until")
        )
        return _json(await self._desk.stats(_who(request), since, until))

    async def metrics(self, _: Request) -> Response:
        """``GET /v1/reviews/metrics``: escalations, in Prometheus' text format."""
        return Response(generate_latest(REVIEWS), media_type="text/plain; version=0.0.4")

    async def to_console(self, _: Request) -> Response:
        """``GET /v1/reviews/console``: its files are named relative to the folder."""
        return RedirectResponse("console/", headers=dict(pages.HEADERS))

    async def page(self, request: Request) -> Response:
        """``GET /v1/reviews/console/{name}``."""
        found = self._console.get(request.path_params.get("name", pages.INDEX))
        if found is None:
            raise NotFound("There is no such route here.")
        headers = {**pages.HEADERS, "content-type": found.media_type}
        return Response(found.content, headers=headers)


def _with_whole_paths(app: ASGIApp) -> ASGIApp:
    """Takes paths with or without the prefix at which a server has mounted us.

    ASGI has ``path`` with ``root_path`` at its front, and Ray Serve keeps to it; older servers cut
    it off. Routes here are whole, so that both are one.
    """

    async def whole(scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "")
        if scope["type"] == "http" and root:
            path = scope["path"]
            path = path if path.startswith(PREFIX) else root + path
            scope = {**scope, "root_path": "", "path": path}
        await app(scope, receive, send)

    return whole


def _who(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


def _id(request: Request) -> str:
    return str(request.path_params["id"])


def _query(request: Request, known: Collection[str]) -> dict[str, str]:
    for name in request.query_params:
        if name not in known:
            raise BadRequest(
                "This route does not take one of the URL's parameters.",
                code="unsupported_parameter",
            )
    return dict(request.query_params)


def _number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) > most:
        raise _bad(name, f"a number up to {most}")
    return int(text)


def _bad(name: str, wanted: str) -> BadRequest:
    return BadRequest(f"{name} is {wanted}.", param=name)


async def _json_body(request: Request) -> bytes:
    """The body.

    Raises:
        UnsupportedMedia: not said to be JSON, which no form of another site can say (CSRF).
        TooLarge: over MAX_BODY_BYTES.
        BadRequest: the client hung up before its end.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMedia("The body is JSON: send content-type application/json.")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise TooLarge(f"A request body may have {MAX_BODY_BYTES} bytes.")
    except ClientDisconnect:
        raise BadRequest("The body is not whole.") from None
    return bytes(body)


def _act(body: bytes) -> Act:
    """The action's body.

    Raises:
        BadRequest: it is not of its closed form; names the field, never what was in it.
    """
    try:
        return Act.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    if problem["type"] == "json_invalid":
        raise BadRequest("The body is not JSON.", code="invalid_json")
    if problem["type"] == "extra_forbidden":
        fields = ", ".join(Act.model_fields)
        raise BadRequest(f"An action has the fields {fields}.", code="unsupported_parameter")
    place = str(problem["loc"][0]) if problem["loc"] else None
    if problem["type"] == "missing" and place == "version":
        raise BadRequest(
            "Give the version of the item that you have seen.",
            param="version",
            code="missing_parameter",
        )
    raise BadRequest("A field of the body has a value that it does not take.", param=place)


def _json(view: BaseModel) -> Response:
    return Response(view.model_dump_json(), media_type="application/json", headers=dict(_PRIVATE))
