"""Decoding processes: what one image does to its process harms no other image."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import time
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

from serve.errors import TooLarge, UnusableImage
from serve.imaging.workers import Workers


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    pool = Workers(workers=2, timeout_s=2, memory_mib=1024)
    yield pool
    pool.stop()


@pytest.fixture(autouse=True)
async def _still_answers(workers: Workers) -> AsyncIterator[None]:
    yield
    assert await workers.run(abs, -3) == 3


def _refuse() -> None:
    raise TooLarge("An image may have 5 pixels.", param="p", code="c")


def _take_memory(mib: int) -> int:
    return len(bytearray(mib << 20))


async def test_work_is_done_in_another_process(workers: Workers) -> None:
    assert await workers.run(os.getpid) != os.getpid()


async def test_a_refusal_arrives_whole(workers: Workers) -> None:
    with pytest.raises(TooLarge) as caught:
        await workers.run(_refuse)
    error = caught.value
    assert (error.message, error.param, error.code) == ("An image may have 5 pixels.", "p", "c")


async def test_work_that_takes_too_long_is_ended(workers: Workers) -> None:
    started = time.monotonic()
    with pytest.raises(UnusableImage) as caught:
        await workers.run(time.sleep, 60)
    assert caught.value.code == "decoding_timeout"
    assert time.monotonic() - started < 10


async def test_work_that_takes_too_much_memory_is_refused(workers: Workers) -> None:
    assert await workers.run(_take_memory, 100) == 100 << 20
    with pytest.raises(TooLarge):
        await workers.run(_take_memory, 2000)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
async def test_a_decoder_that_crashes_costs_its_own_image_only(
    workers: Workers, number: signal.Signals
) -> None:
    crash = workers.run(signal.raise_signal, number)
    others = [workers.run(abs, -n) for n in range(20)]
    crashed, *answers = await asyncio.gather(crash, *others, return_exceptions=True)
    assert isinstance(crashed, UnusableImage)
    assert answers == list(range(20))


async def test_processes_that_are_killed_at_any_moment_lock_nothing() -> None:
    pool = Workers(workers=2, timeout_s=5, memory_mib=1024)
    data = os.urandom(16 << 20)
    try:
        for moment in (0, 0.002, 0.01, 0.03, 0.1):
            pool.warm_up()
            tasks = [asyncio.ensure_future(pool.run(len, data)) for _ in range(8)]
            await asyncio.sleep(moment)
            for process in _decoding():
                process.kill()
            results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
            kinds = {one if isinstance(one, int) else type(one) for one in results}
            assert kinds <= {16 << 20, UnusableImage}
            assert results.count(16 << 20) >= 4
            assert await asyncio.wait_for(pool.run(len, data), 30) == 16 << 20
    finally:
        pool.stop()


def _decoding() -> list[psutil.Process]:
    """The processes forked from the server that forks them."""
    me = psutil.Process()
    return [child for child in me.children(recursive=True) if child.ppid() != me.pid]


async def test_processes_that_idle_and_are_killed_are_replaced_unnoticed() -> None:
    pool = Workers(workers=2, timeout_s=5, memory_mib=1024)
    try:
        pool.warm_up()
        for process in _decoding():
            process.kill()
            process.wait()
        assert await asyncio.gather(*(pool.run(abs, -n) for n in range(8))) == list(range(8))
    finally:
        pool.stop()


async def test_work_that_cannot_be_sent_or_answered_harms_no_process(workers: Workers) -> None:
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError)):
        await workers.run(lambda: 1)
    with pytest.raises((AttributeError, TypeError, pickle.PicklingError, UnusableImage)):
        await workers.run(iter, [1, 2, 3].__iter__)


async def test_processes_end_with_the_pool() -> None:
    pool = Workers(workers=2, timeout_s=5, memory_mib=1024)
    pids = {await pool.run(os.getpid) for _ in range(10)}
    pool.stop()
    assert not any(psutil.pid_exists(pid) for pid in pids)
