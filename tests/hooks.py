"""A real HTTP receiver of webhooks on loopback, which answers as it is told, dies and comes back.

async with receiver() as hooks:
    Escalation(url=hooks.url, secret=SECRET)
    hooks.calls[0].verified()
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from standardwebhooks import Webhook

from tests.running import free_port

SECRET = "whsec_dGhlIHNlY3JldCBvZiB0aGUgd2FyZCdzIHBhZ2Vy"
Behaviour = Callable[["Call"], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Call:
    """A request as it came."""

    request: web.Request
    body: bytes

    @property
    def id(self) -> str:
        return self.request.headers["webhook-id"]

    @property
    def content(self) -> Any:
        return json.loads(self.body)

    def verified(self, secret: str = SECRET) -> Any:
        """The body, if somebody else's code finds the signature right, and new."""
        return Webhook(secret).verify(self.body, dict(self.request.headers))


@dataclass
class Receiver:
    """Where it listens, what it does with a call, and which calls there were."""

    port: int
    scheme: str
    tls: ssl.SSLContext | None
    behaviour: Behaviour
    calls: list[Call] = field(default_factory=list)
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://localhost:{self.port}/hook"

    @property
    def ids(self) -> list[str]:
        return [call.id for call in self.calls]

    async def start(self) -> None:
        application = web.Application(client_max_size=1 << 20)
        application.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(
            self._runner, "127.0.0.1", self.port, ssl_context=self.tls, reuse_address=True
        ).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.StreamResponse:
        call = Call(request, await request.read())
        self.calls.append(call)
        return await self.behaviour(call)


@asynccontextmanager
async def receiver(
    behaviour: Behaviour | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """One that listens; it takes everything unless it is told otherwise."""
    hooks = Receiver(free_port(), "http" if tls is None else "https", tls, behaviour or status(204))
    await hooks.start()
    try:
        yield hooks
    finally:
        await hooks.stop()


def status(code: int, **headers: str) -> Behaviour:
    """The same answer to every call."""

    async def answer(_call: Call) -> web.StreamResponse:
        return web.Response(status=code, headers=headers, text="PLANTED-BODY")

    return answer


async def silence(_call: Call) -> web.StreamResponse:
    """Never answers."""
    await asyncio.sleep(3600)
    raise AssertionError


async def endless(call: Call) -> web.StreamResponse:
    """Takes the call, and talks for ever."""
    answer = web.StreamResponse()
    await answer.prepare(call.request)
    while True:
        await answer.write(b"PLANTED-BODY " * 1000)


async def hang_up(call: Call) -> web.StreamResponse:
    """Ends the connection in the place of an answer."""
    assert call.request.transport is not None
    call.request.transport.abort()
    return web.Response()
