"""Reviews in both databases, by two services on one store; what they leave behind verifies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from serve.audit.contents import Contents
from serve.audit.verify import verify
from serve.review.api import build_review_app
from serve.settings import Settings
from tests.exchanges import chest
from tests.postgres import postgres
from tests.unit.recording import opened, settings_in
from tests.unit.reviewing import POLICY, Room, principals_in


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    with ExitStack() as stack:
        given = {}
        if request.param == "postgresql":
            given["url"] = stack.enter_context(postgres()).url
        yield settings_in(tmp_path, **given)


@pytest.fixture
def rooms(settings: Settings) -> Iterator[list[Room]]:
    """Two services, each with a chain of its own."""
    principals = principals_in(settings.state_dir)
    with ExitStack() as stack:
        made = []
        for _ in range(2):
            store, writer = stack.enter_context(opened(settings))
            app = build_review_app(store, writer, principals, lambda: POLICY, timeout_s=10)
            made.append(Room(store, writer, app))
        yield made


async def test_whatever_two_services_do_at_once_each_item_has_one_history(
    rooms: list[Room],
) -> None:
    first, second = rooms
    written = [
        first.write(urgent=["mass"] if n % 2 else (), images=[chest()] if n == 0 else ())
        for n in range(6)
    ]

    async def race(action: str, version: int, who: tuple[str, str]) -> None:
        for one in written:
            answers = await asyncio.gather(
                *(
                    room.act(one.review_id, action, version, name)
                    for room, name in zip(rooms * 3, who * 3, strict=True)
                )
            )
            statuses = sorted(answer.status_code for answer in answers)
            assert statuses == [200, 409, 409, 409, 409, 409]

    await race("claim", 1, ("dr-jones", "dr-smith"))
    holders = [room.row(one)["claimant"] for room, one in zip(rooms * 3, written, strict=True)]
    assert set(holders) <= {first.store.term("principal", who) for who in ("dr-jones", "dr-smith")}
    for one, holder in zip(written, holders, strict=True):
        who = "dr-jones" if holder == first.store.term("principal", "dr-jones") else "dr-smith"
        answers = await asyncio.gather(
            *(room.act(one.review_id, "sign_off", 2, who) for room in rooms * 2)
        )
        assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
        assert [record.version for record in second.actions(one)] == [2, 3]
        assert [record.principal for record in second.actions(one)] == [who, who]

    page = (await second.get("/v1/reviews?state=all&limit=4")).json()
    rest = (await first.get(f"/v1/reviews?state=all&limit=4&after={page['next']}")).json()
    listed = [one["id"] for one in page["data"] + rest["data"]]
    order = [written[n].review_id for n in (1, 3, 5, 0, 2, 4)]
    assert listed == order
    assert page["counts"] == {"pending": 0, "claimed": 0, "urgent": 0}
    assert (await first.get("/v1/reviews/stats")).json()["signed_off"] == 6

    report = verify(first.store.engine, [], Contents(first.store))
    assert report.problems == ()
    assert report.images == 2
