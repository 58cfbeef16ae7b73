"""Hosts on loopback that answer as they are told, byte by byte: a good one, and hostile ones."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Host:
    """Where it listens, and what it was asked."""

    port: int = 0
    connections: int = 0
    requests: list[str] = field(default_factory=list)


@asynccontextmanager
async def host(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Host]:
    """Gives every request the same answer. Without ``tls`` it speaks plain http."""
    state = Host()
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        # The other end hangs up on most of these answers.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                state.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
                await answer(writer)
                await writer.drain()
        writer.transport.abort()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=tls)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def respond(body: bytes = b"", *headers: str, status: int = 200) -> Answer:
    """A whole answer with a Content-Length."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head(status, f"Content-Length: {len(body)}", *headers) + body)

    return answer


def stream(
    chunk: bytes, *headers: str, start: bytes = b"", end: bytes = b"", pause: float = 0.0
) -> Answer:
    """An answer without a Content-Length that never ends by itself, unless ``end`` is given."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "Connection: close", *headers) + start)
        while not end:
            writer.write(chunk)
            await writer.drain()
            await asyncio.sleep(pause)
        writer.write(chunk + end)
        await writer.drain()
        writer.close()

    return answer


def raw(data: bytes) -> Answer:
    """Bytes as they are, then the end of the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        writer.close()

    return answer


def head(status: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Whatever", *headers, "", ""]).encode()


async def silence(writer: asyncio.StreamWriter) -> None:
    """Never answers."""
    await asyncio.sleep(3600)


async def dripping_head(writer: asyncio.StreamWriter) -> None:
    """A header a moment, for ever: no pause is long enough to be a timeout of its own."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
