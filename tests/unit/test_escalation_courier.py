"""Nobody misses an urgent finding: a real store, a real writer, a real receiver.

Each test says when the courier looks; ``run`` is there to look each second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from sqlalchemy import update

from serve.audit import schema
from serve.escalation.rules import Escalation
from tests.hooks import Call, receiver, silence, status
from tests.unit.urgent import PRINCIPAL, QUESTION, REMIND_S, Ward, rules, ward_in


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    async with ward_in(tmp_path) as made:
        yield made


async def test_an_urgent_finding_is_told_once_until_its_reminder_is_due(ward: Ward) -> None:
    review_id = ward.urgent("pneumothorax", "tension")
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks, console_url="https://console.internal/"))
        for _ in range(3):
            await courier.look()
        [call] = hooks.calls
    message = call.verified()
    assert message["review_id"] == review_id
    assert message["audit_id"] == ward.row(review_id)["audit_id"]
    assert message["reasons"] == ["pneumothorax", "tension"]
    assert message["reminder"] == 0
    assert message["console"] == "https://console.internal/"
    assert ward.attempts(review_id) == [("sent", 1, 204)]
    assert ward.counted == {"sent": 1}


async def test_reminders_come_until_somebody_acknowledges(ward: Ward) -> None:
    review_id = ward.urgent()
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks))
        for _ in range(3):
            await courier.look()
            ward.clock.offset_s += REMIND_S
        ward.acknowledge(review_id)
        for _ in range(3):
            await courier.look()
            ward.clock.offset_s += REMIND_S
        assert [call.verified()["reminder"] for call in hooks.calls] == [0, 1, 2]
        assert len(set(hooks.ids)) == 3
    assert ward.row(review_id)["next_at"] is None
    assert ward.counted == {"sent": 3}


@pytest.mark.parametrize("state", ["signed_off", "amended", "rejected"])
async def test_a_closed_review_is_nobodys_to_be_told_of(ward: Ward, state: str) -> None:
    review_id = ward.urgent()
    reviews = schema.reviews
    with ward.store.engine.begin() as connection:  # closed, though never acknowledged
        connection.execute(
            update(reviews).where(reviews.c.review_id == review_id).values(state=state)
        )
    async with receiver() as hooks:
        await ward.courier(rules(hooks)).look()
        assert hooks.calls == []


async def test_a_claimed_review_is_told_of_still(ward: Ward) -> None:
    review_id = ward.urgent()
    reviews = schema.reviews
    with ward.store.engine.begin() as connection:
        connection.execute(
            update(reviews).where(reviews.c.review_id == review_id).values(state="claimed")
        )
    async with receiver() as hooks:
        await ward.courier(rules(hooks)).look()
        assert len(hooks.calls) == 1


async def test_after_the_last_reminder_has_had_its_time_a_finding_is_unanswered(ward: Ward) -> None:
    review_id = ward.urgent()
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks, max_reminders=2))
        for number in range(6):
            assert ward.counted["unanswered"] == (number > 3)
            await courier.look()
            ward.clock.offset_s += REMIND_S
        assert len(hooks.calls) == 3
    assert ward.row(review_id)["next_at"] is None
    assert ward.counted == {"sent": 3, "unanswered": 1}
    assert ward.measured[-1][0] == 1  # it waits still


async def test_a_slow_message_does_not_keep_others_back(ward: Ward) -> None:
    slow, others = ward.urgent("slow"), {ward.urgent("other") for _ in range(9)}

    async def behaviour(call: Call) -> web.StreamResponse:
        return await (silence if "slow" in call.verified()["reasons"] else status(200))(call)

    async with receiver(behaviour) as hooks:
        await ward.courier(rules(hooks, timeout_s=1)).look()
    assert ward.row(slow)["failed"] == 1
    assert {ward.row(other)["sent"] for other in others} == {1}


async def test_more_than_go_together_go_one_after_the_other_news_before_reminders(
    ward: Ward,
) -> None:
    old = [ward.urgent() for _ in range(16)]
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks))
        assert await courier.look()
        ward.clock.offset_s += REMIND_S
        new = [ward.urgent() for _ in range(16)]
        assert await courier.look()
        assert {call.verified()["review_id"] for call in hooks.calls[16:]} == set(new)
        assert await courier.look()
        assert {call.verified()["review_id"] for call in hooks.calls[32:]} == set(old)
        assert not await courier.look()


async def test_two_couriers_tell_each_finding_once(ward: Ward) -> None:
    reviews = [ward.urgent() for _ in range(30)]
    async with receiver() as hooks:
        couriers = [ward.courier(rules(hooks)) for _ in range(2)]
        for _ in range(4):
            await asyncio.gather(*(courier.look() for courier in couriers))
        assert sorted(call.verified()["review_id"] for call in hooks.calls) == sorted(reviews)
    assert ward.counted == {"sent": 30}


async def test_what_waits_is_measured_with_and_without_a_hook(ward: Ward) -> None:
    without = ward.courier(Escalation())
    await without.look()
    first, _second = ward.urgent(), ward.urgent()
    ward.clock.offset_s += 100
    await without.look()
    ward.acknowledge(first)
    await without.look()
    assert [number for number, _ in ward.measured] == [0, 2, 1]
    assert ward.measured[0][1] == 0
    assert 100 <= ward.measured[1][1] < 110


async def test_what_waited_without_a_hook_is_told_once_there_is_one(ward: Ward) -> None:
    looked_at, waiting = ward.urgent(), ward.urgent()
    await ward.courier(Escalation()).look()
    ward.acknowledge(looked_at)
    async with receiver() as hooks:
        await ward.courier(rules(hooks)).look()
        assert [call.verified()["review_id"] for call in hooks.calls] == [waiting]


async def test_alertmanager_is_told_at_once_and_once_that_it_is_over(ward: Ward) -> None:
    review_id, never_told = ward.urgent(), ward.urgent()
    ward.acknowledge(never_told)
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks, format="alertmanager", secret=None))
        await courier.look()
        assert len(hooks.calls) == 1
        ward.acknowledge(review_id)
        hooks.behaviour = status(503)
        await courier.look()
        hooks.behaviour = status(200)
        ward.clock.offset_s += 2
        for _ in range(3):
            await courier.look()
        assert len(hooks.calls) == 3
    assert [attempt[0] for attempt in ward.attempts(review_id)] == ["sent", "failed", "sent"]
    assert ward.counted == {"sent": 1, "failed": 1, "resolved": 1}


async def test_a_finding_that_is_released_unread_is_told_of_again_at_once(ward: Ward) -> None:
    review_id = ward.urgent()
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks, format="alertmanager", secret=None))
        await courier.look()
        for _ in range(2):
            ward.acknowledge(review_id, "claimed")
            await courier.look()
            ward.release(review_id)
            await courier.look()
        expected = [f"{review_id}_{end}" for end in ("0", "1_over", "1", "2_over", "2")]
        assert hooks.ids == expected
    assert ward.row(review_id)["sent"] == 3


async def test_a_finding_acknowledged_while_it_is_told_is_over_next(ward: Ward) -> None:
    review_id = ward.urgent()

    async def acknowledges(call: Call) -> web.StreamResponse:
        if len(hooks.calls) == 1:
            await asyncio.to_thread(ward.acknowledge, review_id)
        return await status(200)(call)

    async with receiver(acknowledges) as hooks:
        courier = ward.courier(rules(hooks, format="alertmanager", secret=None))
        for _ in range(3):
            await courier.look()
        assert len(hooks.calls) == 2
    assert ward.counted == {"sent": 1, "resolved": 1}


async def test_an_unanswered_finding_is_over_for_alertmanager_when_it_is_answered(
    ward: Ward,
) -> None:
    review_id = ward.urgent()
    async with receiver() as hooks:
        courier = ward.courier(rules(hooks, format="alertmanager", secret=None, max_reminders=0))
        await courier.look()
        ward.clock.offset_s += REMIND_S
        await courier.look()
        assert ward.row(review_id)["next_at"] is None
        ward.acknowledge(review_id)
        await courier.look()
    assert ward.counted == {"sent": 1, "unanswered": 1, "resolved": 1}


async def test_no_message_log_line_or_count_has_a_question_or_a_name(
    ward: Ward, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    review_id = ward.urgent()
    async with receiver(status(500)) as hooks:
        courier = ward.courier(rules(hooks, max_reminders=0))
        await courier.look()
        hooks.behaviour = status(200)
        for _ in range(2):
            ward.clock.offset_s += 300
            await courier.look()
        sent = b"".join(call.body for call in hooks.calls)
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert "unanswered" in logged
    for planted in (QUESTION, PRINCIPAL, "PLANTED-BODY"):
        assert planted.encode() not in sent
        assert planted not in logged
    assert review_id not in "\n".join(
        record.getMessage() for record in caplog.records if record.name == "llava_med"
    )
