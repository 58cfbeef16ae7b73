"""Several questions about one image decode it once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from serve.errors import UnusableImage
from serve.imaging.burned_in import BurnedIn
from serve.imaging.intake import Prepared
from serve.imaging.sources import Wanted
from serve.recent_images import RecentImages

IMAGE = Prepared(b"", 0, "", "image/png", BurnedIn(), None, None, None, None, b"", None, ())


class Decoder:
    """Counts, takes a moment, and fails as long as it is told to."""

    def __init__(self, failures: int = 0) -> None:
        self.calls = 0
        self._failures = failures

    def __call__(self) -> Coroutine[Any, Any, Prepared]:
        async def decode() -> Prepared:
            self.calls += 1
            await asyncio.sleep(0.02)
            if self.calls <= self._failures:
                raise UnusableImage("damaged")
            return IMAGE

        return decode()


async def test_an_image_is_decoded_once() -> None:
    recent, decode = RecentImages(2), Decoder()
    assert [await recent.get(b"a", decode) for _ in range(3)] == [IMAGE] * 3
    assert decode.calls == 1


async def test_also_when_all_ask_at_once() -> None:
    recent, decode = RecentImages(2), Decoder()
    await asyncio.gather(*(recent.get(b"a", decode) for _ in range(20)))
    assert decode.calls == 1


async def test_the_one_that_was_not_asked_about_for_longest_goes_first() -> None:
    recent, decode = RecentImages(2), Decoder()
    for name in (b"a", b"b", b"a", b"c", b"a"):
        await recent.get(name, decode)
    assert decode.calls == 3
    await recent.get(b"b", decode)
    assert decode.calls == 4


async def test_nothing_is_kept_where_nothing_should_be() -> None:
    recent, decode = RecentImages(0), Decoder()
    for _ in range(3):
        await recent.get(b"a", decode)
    assert decode.calls == 3


async def test_a_failure_is_everybodys_and_is_not_kept() -> None:
    recent, decode = RecentImages(2), Decoder(failures=1)
    errors = await asyncio.gather(
        *(recent.get(b"a", decode) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(error, UnusableImage) for error in errors)
    assert len({id(error) for error in errors}) == 3  # each names its own part of its request
    assert await recent.get(b"a", decode) is IMAGE


async def test_one_who_leaves_takes_nothing_from_those_who_stay() -> None:
    recent, decode = RecentImages(2), Decoder()
    leaving, staying = (asyncio.create_task(recent.get(b"a", decode)) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    assert await staying is IMAGE
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert decode.calls == 1


def _named(change: Callable[[dict[str, Any]], None]) -> bytes:
    arguments: dict[str, Any] = {
        "data": b"file", "declared": "image/png", "wanted": Wanted(frame=1), "principal": "me",
    }  # fmt: skip
    change(arguments)
    return RECENT.name(**arguments)


RECENT = RecentImages(1)


def test_the_name_is_of_the_file_of_what_is_wanted_and_of_who_asks() -> None:
    changes: list[Callable[[dict[str, Any]], None]] = [
        lambda _: None,
        lambda given: given.update(data=b"file2"),
        lambda given: given.update(declared=None),
        lambda given: given.update(wanted=Wanted(frame=2)),
        lambda given: given.update(wanted=Wanted(frame=1, window="lung")),
        lambda given: given.update(principal="you"),
    ]
    assert len({_named(change) for change in changes}) == len(changes)
    assert _named(lambda given: given.update(wanted=Wanted(frame=1, role="prior"))) == _named(
        changes[0]
    )


def test_the_name_tells_nobody_what_the_file_is() -> None:
    arguments = (b"file", "image/png", Wanted(), "me")
    assert RecentImages(1).name(*arguments) != RecentImages(1).name(*arguments)
