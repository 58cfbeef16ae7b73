"""Receivers, couriers, databases and clocks that fail: told late, told twice, but always told."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import web
from sqlalchemy import update
from sqlalchemy.exc import OperationalError

from serve.audit import schema
from serve.escalation.courier import Courier
from tests.hooks import SECRET, Call, Receiver, receiver, silence, status
from tests.unit.urgent import Ward, rules, ward_in

LEASE_S = 11  # rules.timeout_s and ten seconds


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    async with ward_in(tmp_path) as made:
        yield made


async def test_failures_are_tried_again_later_and_later_and_never_given_up(ward: Ward) -> None:
    review_id = ward.urgent()
    async with receiver(status(500)) as hooks:
        courier = ward.courier(rules(hooks, max_reminders=0))
        waits = []
        for _ in range(12):
            before = ward.clock()
            await courier.look()
            waits.append((ward.row(review_id)["next_at"] - before) / 1e6)
            await courier.look()  # not yet
            ward.clock.offset_s += waits[-1]
        assert len(hooks.calls) == 12
        hooks.behaviour = status(200)
        await courier.look()
        assert set(hooks.ids) == {hooks.ids[0]}
    for number, wait in enumerate(waits):
        assert min(300, 2 ** (number + 1)) / 2 <= wait < min(300, 2 ** (number + 1)) + 2
    assert (ward.row(review_id)["sent"], ward.row(review_id)["failed"]) == (1, 0)
    assert ward.attempts(review_id) == [
        *(("failed", number, 500) for number in range(1, 13)),
        ("sent", 13, 200),
    ]
    assert ward.counted == {"failed": 12, "sent": 1}


async def test_a_receiver_that_hangs_refuses_or_redirects_has_not_taken_it(ward: Ward) -> None:
    review_id = ward.urgent()
    async with receiver() as elsewhere, receiver() as hooks:
        courier = ward.courier(rules(hooks, timeout_s=0.2))
        for behaviour in (silence, status(401), status(307, Location=elsewhere.url)):
            hooks.behaviour = behaviour
            await courier.look()
            ward.clock.offset_s += 300
        assert elsewhere.calls == []
    expected = [("failed", 1, None), ("failed", 2, 401), ("failed", 3, 307)]
    assert ward.attempts(review_id) == expected


async def test_a_receiver_that_dies_and_comes_back_is_told_by_the_running_courier(
    ward: Ward,
) -> None:
    async with receiver() as hooks:
        running = asyncio.ensure_future(ward.courier(rules(hooks)).run())
        ward.urgent()
        await until(lambda: len(hooks.calls) == 1)
        await hooks.stop()
        second = ward.urgent()
        await until(lambda: ward.row(second)["failed"] > 0)
        await hooks.start()
        await until(lambda: ward.row(second)["sent"] == 1)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        assert [call.verified()["review_id"] for call in hooks.calls[1:]] == [second]


async def test_who_is_slower_than_the_lease_is_not_counted_twice(ward: Ward) -> None:
    review_id = ward.urgent()
    courier_of: list[Courier] = []

    async def outlasts_the_lease(call: Call) -> web.StreamResponse:
        if len(hooks.calls) == 1:
            ward.clock.offset_s += LEASE_S + 1
            await courier_of[1].look()
        return await status(200)(call)

    async with receiver(outlasts_the_lease) as hooks:
        courier_of += [ward.courier(rules(hooks)) for _ in range(2)]
        await courier_of[0].look()
        assert len(hooks.calls) == 2
        assert len(set(hooks.ids)) == 1
    assert ward.row(review_id)["sent"] == 1
    assert len(ward.attempts(review_id)) == 2


async def test_a_courier_that_is_killed_before_the_record_is_followed_by_the_same_message(
    ward: Ward,
) -> None:
    review_id = ward.urgent()
    child: list[subprocess.Popen[bytes]] = []

    async def kill(_call: Call) -> web.StreamResponse:
        child[0].send_signal(signal.SIGKILL)
        return web.Response()

    async with receiver(kill) as hooks:
        child.append(start_child(ward, hooks))
        _, errors = await asyncio.to_thread(child[0].communicate, timeout=60)
        assert child[0].returncode == -signal.SIGKILL, errors
        assert (ward.row(review_id)["sent"], ward.attempts(review_id)) == (0, [])
        hooks.behaviour = status(200)
        courier = ward.courier(rules(hooks))
        await courier.look()
        assert len(hooks.calls) == 1  # the dead one's lease holds
        ward.clock.offset_s += LEASE_S
        await courier.look()
        assert len(hooks.calls) == 2
        assert hooks.ids[0] == hooks.ids[1]
        assert hooks.calls[0].verified() == hooks.calls[1].verified()
    assert ward.attempts(review_id) == [("sent", 1, 200)]


async def test_while_the_database_is_down_nothing_is_sent_and_later_everything_is(
    ward: Ward,
) -> None:
    review_id = ward.urgent()
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks))
        with locked(ward), pytest.raises(OperationalError):
            await courier.look()
        assert hooks.calls == []
        await courier.look()
        assert len(hooks.calls) == 1
    assert ward.row(review_id)["sent"] == 1


async def test_what_was_taken_and_could_not_be_recorded_is_sent_again_under_the_same_id(
    ward: Ward,
) -> None:
    review_id = ward.urgent()
    release = threading.Event()
    lock = Lock(ward, release)

    async def locks_the_database(call: Call) -> web.StreamResponse:
        await asyncio.to_thread(lock.start)
        return await status(200)(call)

    async with receiver(locks_the_database) as hooks:
        courier = ward.courier(rules(hooks))
        await courier.look()
        release.set()
        await asyncio.to_thread(lock.join)
        assert ward.attempts(review_id) == []
        assert ward.counted == {"broken": 1}
        hooks.behaviour = status(200)
        ward.clock.offset_s += LEASE_S
        await courier.look()
        assert len(hooks.calls) == 2
        assert hooks.ids[0] == hooks.ids[1]
    assert ward.attempts(review_id) == [("sent", 1, 200)]


async def test_a_running_courier_outlives_a_database_that_is_down(ward: Ward) -> None:
    async with receiver() as hooks:
        with locked(ward, exclusive=True):
            ward.store.engine.dispose()
            running = asyncio.ensure_future(ward.courier(rules(hooks)).run())
            await until(lambda: ward.counted["broken"] > 0)
        ward.urgent()
        await until(lambda: len(hooks.calls) == 1)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def test_a_clock_that_is_set_back_delays_nothing_for_longer_than_a_wait(ward: Ward) -> None:
    reminded, failed = ward.urgent("reminded"), ward.urgent("failed")

    async def behaviour(call: Call) -> web.StreamResponse:
        return await status(500 if "failed" in call.content["reasons"] else 200)(call)

    async with receiver(behaviour) as hooks:
        courier = ward.courier(rules(hooks))
        await courier.look()
        fresh = ward.urgent("fresh")
        ward.clock.offset_s -= 7 * 86_400
        await courier.look()
        told = [call.content["review_id"] for call in hooks.calls[2:]]
        assert sorted(told) == sorted([reminded, failed, fresh])
        await courier.look()
        assert len(hooks.calls) == 5  # and then waits as before


async def test_content_that_cannot_be_read_any_more_keeps_nobody_from_being_told(
    ward: Ward,
) -> None:
    review_id = ward.urgent("pneumothorax")
    keys = schema.keys
    with ward.store.engine.begin() as connection:  # shredded
        connection.execute(
            update(keys)
            .where(keys.c.audit_id == ward.row(review_id)["audit_id"])
            .values(wrapped=None)
        )
    async with receiver() as hooks:
        await ward.courier(rules(hooks)).look()
        assert hooks.calls[0].verified()["reasons"] == []
    assert ward.row(review_id)["sent"] == 1
    assert ward.counted == {"sent": 1}


CHILD = """
import asyncio, os
from serve.audit.opening import open_writer
from serve.audit.store import open_store
from serve.escalation.courier import Courier
from serve.escalation.rules import Escalation
from serve.settings import load
settings = load()
store = open_store(settings)
writer = open_writer(store, settings, "review")
rules = Escalation(url=os.environ["HOOK"], secret=os.environ["SECRET"], timeout_s=1)
courier = Courier(store, writer, rules, count=lambda _: None, measure=lambda *_: None)
asyncio.run(courier.run())
"""


def start_child(ward: Ward, hooks: Receiver) -> subprocess.Popen[bytes]:
    audit = ward.settings.audit
    assert audit.key is not None
    assert audit.signing_key is not None
    environment = {
        "LLAVA_MED_STATE_DIR": str(ward.settings.state_dir),
        "LLAVA_MED_AUDIT__KEY": audit.key.get_secret_value(),
        "LLAVA_MED_AUDIT__SIGNING_KEY": audit.signing_key.get_secret_value(),
        "HOOK": hooks.url,
        "SECRET": SECRET,
    }
    command = [sys.executable, "-c", CHILD]
    return subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE)


async def until(happened: Callable[[], bool], within_s: float = 20) -> None:
    async with asyncio.timeout(within_s):
        while not happened():  # noqa: ASYNC110 (it is in the database, or in another task)
            await asyncio.sleep(0.02)


@contextmanager
def locked(ward: Ward, *, exclusive: bool = False) -> Iterator[None]:
    """The database as it is for everybody else while one process does not let go of it.

    ``exclusive``: not even to be read. Nothing else may have it open then.
    """
    with closing(sqlite3.connect(ward.settings.state_dir / "audit.db")) as holder:
        holder.isolation_level = None
        if exclusive:
            ward.store.engine.dispose()
            holder.execute("PRAGMA locking_mode=EXCLUSIVE")
        holder.execute("BEGIN EXCLUSIVE")
        yield
        holder.execute("ROLLBACK")


class Lock(threading.Thread):
    """Holds the database; ``start`` returns once it does."""

    def __init__(self, ward: Ward, release: threading.Event) -> None:
        super().__init__(daemon=True)
        self._ward, self._release, self._held = ward, release, threading.Event()

    def start(self) -> None:
        super().start()
        assert self._held.wait(10)

    def run(self) -> None:
        with locked(self._ward):
            self._held.set()
            self._release.wait(30)
