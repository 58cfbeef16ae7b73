"""``GET /v1/reviews/{id}/events``: an item's state while somebody waits, as server-sent events.

(WHATWG HTML, section 9.2.) Asks the store once a second: the change may come from another process,
and no database that we run on tells all of them of a commit (PostgreSQL could, SQLite cannot).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.errors import ApiError, Overloaded
from serve.principals import Principal
from serve.review import states
from serve.review.views import Event

LOOK_EVERY_S = 1.0
KEEP_ALIVE_S = 15.0  # proxies drop what is silent for longer, HAProxy after 30 s or more
MAX_STREAMS = 64  # of a replica; each is an ongoing request, of which there are 100


class Watched(Protocol):
    """Where states come from: serve.review.desk.Desk."""

    async def state(self, who: Principal, review_id: str) -> Event: ...

    async def state_again(self, who: Principal, review_id: str) -> Event: ...


class Events:
    """The route. An ASGI application: whatever ends a stream, its place is free again."""

    def __init__(
        self,
        watched: Watched,
        headers: Mapping[str, str],
    ) -> None:
        self._watched = watched
        self._headers = {**headers, "x-accel-buffering": "no"}
        self._streams = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI.

        Raises:
            Overloaded: too many wait already.
            NotFound: there is no such item for this principal.
        """
        request = Request(scope, receive)
        who: Principal = request.state.principal
        review_id = str(request.path_params["id"])
        if self._streams >= MAX_STREAMS:
            raise Overloaded("Too many wait for reviews. Try again, or ask now and then.")
        self._streams += 1
        try:
            first = await self._watched.state(who, review_id)
            response = StreamingResponse(
                self._events(request, who, review_id, first),
                media_type="text/event-stream",
                headers=self._headers,
            )
            await response(scope, receive, send)
        finally:
            self._streams -= 1

    async def _events(
        self, request: Request, who: Principal, review_id: str, event: Event
    ) -> AsyncIterator[bytes]:
        yield _message("state", event.model_dump_json().encode())
        said = time.monotonic()
        while event.state not in states.CLOSED and not await request.is_disconnected():
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                found = await self._watched.state_again(who, review_id)
            except ApiError as error:
                yield _message("error", error.body())
                return
            if found != event:
                event, said = found, time.monotonic()
                yield _message("state", event.model_dump_json().encode())
            elif time.monotonic() - said >= KEEP_ALIVE_S:
                said = time.monotonic()
                yield b": still there\n\n"


def _message(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
