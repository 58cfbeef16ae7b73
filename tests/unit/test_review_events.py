"""An item's state as server-sent events, over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import ASGIApp

from serve.audit import schema
from serve.review import events
from tests.running import free_port
from tests.unit.reviewing import Room, key_of, room_in


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with room_in(tmp_path) as made:
        yield made


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[str]:
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  # it has no event
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}/v1/reviews"
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def watching(url: str, who: str) -> AsyncIterator[httpx.Response]:
    headers = {"authorization": f"Bearer {key_of(who)}"}
    async with (
        httpx.AsyncClient(timeout=30) as client,
        client.stream("GET", f"{url}/events", headers=headers) as response,
    ):
        yield response


async def next_event(lines: AsyncIterator[str]) -> tuple[str, dict[str, Any]]:
    name = ""
    async for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            return name, json.loads(line.removeprefix("data: "))
    raise AssertionError("the stream has ended")


async def test_a_caller_is_told_at_once_at_each_change_and_no_more_once_it_is_closed(
    room: Room,
) -> None:
    written = room.write(principal="ward-3", held=True)
    async with (
        served(room.app) as url,
        watching(f"{url}/{written.review_id}", "ward-3") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        lines = response.aiter_lines()
        name, first = await next_event(lines)
        assert name == "state"
        assert first == {
            "id": written.review_id,
            "object": "review",
            "state": "pending",
            "held": True,
            "version": 1,
        }
        await room.act(written.review_id, "claim", 1)
        assert (await next_event(lines))[1]["state"] == "claimed"
        await room.act(written.review_id, "sign_off", 2)
        assert (await next_event(lines))[1]["state"] == "signed_off"
        assert [line async for line in lines] == [""]
    # Looked at once, however often it was asked for.
    assert [one.what for one in room.reads()] == ["review events"]


async def test_nobody_watches_what_they_may_not_see(room: Room) -> None:
    written = room.write(principal="ward-3")
    async with served(room.app) as url:
        for who, status in (("ward-4", 404), ("data-office", 403), ("dr-jones", 200)):
            async with watching(f"{url}/{written.review_id}", who) as response:
                assert response.status_code == status


async def test_streams_are_bounded_and_one_that_ends_makes_room(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = room.write()
    monkeypatch.setattr(events, "LOOK_EVERY_S", 0.05)
    async with served(room.app) as base:
        url = f"{base}/{written.review_id}"
        async with asyncio.timeout(60):
            open_streams = [watching(url, "dr-jones") for _ in range(events.MAX_STREAMS)]
            responses = [await one.__aenter__() for one in open_streams]
            assert {one.status_code for one in responses} == {200}
            async with watching(url, "dr-jones") as refused:
                assert refused.status_code == 429
                assert refused.headers["retry-after"] == "1"
            await open_streams[0].__aexit__(None, None, None)
            while True:  # the server notices at its next look
                async with watching(url, "dr-jones") as response:
                    if response.status_code == 200:
                        break
                await asyncio.sleep(0.05)
            for one in open_streams[1:]:
                await one.__aexit__(None, None, None)


async def test_a_silent_stream_shows_that_it_is_alive(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "LOOK_EVERY_S", 0.02)
    monkeypatch.setattr(events, "KEEP_ALIVE_S", 0.1)
    written = room.write()
    async with (
        served(room.app) as url,
        watching(f"{url}/{written.review_id}", "dr-jones") as response,
    ):
        lines = response.aiter_lines()
        await next_event(lines)
        async for line in lines:
            if line.startswith(":"):
                break


async def test_a_store_that_goes_away_ends_the_stream_with_an_error(room: Room) -> None:
    written = room.write()
    async with (
        served(room.app) as url,
        watching(f"{url}/{written.review_id}", "dr-jones") as response,
    ):
        lines = response.aiter_lines()
        await next_event(lines)
        with room.store.engine.begin() as connection:
            schema.reviews.drop(connection)
        name, body = await next_event(lines)
        assert (name, body["error"]["code"]) == ("error", "audit_unavailable")
        assert [line async for line in lines] == [""]
