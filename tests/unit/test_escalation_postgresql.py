"""The same on a real PostgreSQL: transactions run side by side, and the server dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from tests.hooks import receiver, status
from tests.postgres import Postgres, postgres
from tests.unit.urgent import REMIND_S, Ward, rules, ward_in


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as started:
        yield started


@pytest.fixture
async def ward(server: Postgres, tmp_path: Path) -> AsyncIterator[Ward]:
    async with ward_in(tmp_path, url=server.database(), timeout_s=5) as made:
        yield made


async def test_a_finding_is_told_reminded_of_and_over(ward: Ward) -> None:
    review_id = ward.urgent("pneumothorax")
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks, format="alertmanager", secret=None, max_reminders=1))
        for _ in range(3):
            await courier.look()
            ward.clock.offset_s += REMIND_S
        ward.acknowledge(review_id)
        hooks.behaviour = status(500)
        await courier.look()
        hooks.behaviour = status(200)
        ward.clock.offset_s += 2
        await courier.look()
        assert len(hooks.calls) == 4
    assert ward.counted == {"sent": 2, "unanswered": 1, "failed": 1, "resolved": 1}
    assert [number for number, _ in ward.measured] == [1, 1, 1, 0, 0]


async def test_couriers_side_by_side_tell_each_finding_once(ward: Ward) -> None:
    reviews = [ward.urgent() for _ in range(40)]
    async with receiver() as hooks:
        couriers = [ward.courier(rules(hooks)) for _ in range(4)]
        for _ in range(5):
            await asyncio.gather(*(courier.look() for courier in couriers))
        assert sorted(call.content["review_id"] for call in hooks.calls) == sorted(reviews)
    assert ward.counted == {"sent": 40}


async def test_what_waits_survives_a_server_that_is_killed(ward: Ward, server: Postgres) -> None:
    review_id = ward.urgent()
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks))
        server.kill()
        try:
            with pytest.raises(OperationalError):
                await courier.look()
            assert hooks.calls == []
        finally:
            server.start()
        await courier.look()
        assert [call.content["review_id"] for call in hooks.calls] == [review_id]
    # The writer noticed with this record that its connection had died; the next one is taken.
    assert ward.counted == {"broken": 1}
