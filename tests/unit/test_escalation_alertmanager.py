"""A real Alertmanager takes the alerts, knows reminders again, and ends them when they are over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from serve.escalation.rules import Escalation
from tests.alertmanager import alertmanager
from tests.unit.urgent import Ward, ward_in

CONSOLE = "https://console.internal/"


@pytest.fixture
async def ward(tmp_path: Path) -> AsyncIterator[Ward]:
    async with ward_in(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with alertmanager() as started:
        yield started


async def test_an_alert_fires_until_its_finding_is_acknowledged(ward: Ward, url: str) -> None:
    looked_at, waiting = ward.urgent("pneumothorax"), ward.urgent("tension")
    courier = ward.courier(rules(url))
    await courier.look()
    ward.clock.offset_s += 60
    await courier.look()
    assert {key: len(value) for key, value in active(url, looked_at, waiting).items()} == {
        looked_at: 1,
        waiting: 1,
    }
    [alert] = active(url, looked_at)[looked_at]
    assert alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"] == "Urgent finding in a draft: pneumothorax"
    assert alert["generatorURL"] == CONSOLE
    ward.clock.offset_s = 0  # Alertmanager's own: an end ahead of it would not be one yet
    ward.acknowledge(looked_at)
    await courier.look()
    assert active(url, looked_at) == {looked_at: []}
    assert len(active(url, waiting)[waiting]) == 1
    assert ward.counted == {"sent": 4, "resolved": 1}
    ward.release(looked_at)
    await courier.look()
    assert len(active(url, looked_at)[looked_at]) == 1


async def test_it_takes_alerts_of_a_clock_that_was_set_back(ward: Ward, url: str) -> None:
    review_id = ward.urgent()
    courier = ward.courier(rules(url))
    await courier.look()
    ward.clock.offset_s -= 86_400
    ward.acknowledge(review_id)
    await courier.look()
    assert ward.attempts(review_id) == [("sent", 1, 200), ("sent", 1, 200)]
    assert active(url, review_id) == {review_id: []}


def rules(url: str) -> Escalation:
    return Escalation(url=SecretStr(url), format="alertmanager", remind_s=60, console_url=CONSOLE)


def active(url: str, *review_ids: str) -> dict[str, list[Any]]:
    """Alertmanager's firing alerts, by review."""
    answer = httpx.get(f"{url}/api/v2/alerts", params={"active": "true"}, trust_env=False)
    alerts = [alert for alert in answer.json() if alert["status"]["state"] != "suppressed"]
    return {
        review_id: [alert for alert in alerts if alert["labels"]["review_id"] == review_id]
        for review_id in review_ids
    }
