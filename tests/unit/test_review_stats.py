"""Rates by their definitions, over a real store; the commands that print and draw them."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import update
from typer.testing import CliRunner

from guardrails.answers import Status, Template
from serve.audit import keyring, schema
from serve.audit.records import Model
from serve.review import chart, stats
from serve.review.command import app
from serve.review.stats import Group
from tests.exchanges import Written
from tests.unit.reviewing import Room, key_of, room_in

OTHER = Model(id="llava-med", digest="a" * 64, adapter="chest", adapter_digest="b" * 64)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with room_in(tmp_path) as made:
        yield made


async def close(room: Room, action: str, given_: dict[str, str], **values: Any) -> Written:
    written = room.write(**values)
    assert (await room.act(written.review_id, "claim", 1)).status_code == 200
    body: dict[str, Any] = {"amended": "Other."} if action == "amend" else {}
    body["findings"] = [{"finding": name, "verdict": one} for name, one in given_.items()]
    assert (await room.act(written.review_id, action, 2, **body)).status_code == 200
    return written


async def reviewed(room: Room) -> None:
    """Drafts that call a pneumothorax present and an effusion absent, and one more."""
    await close(room, "sign_off", {})
    await close(room, "sign_off", {"pneumothorax": "overcall"})
    await close(room, "amend", {"pneumothorax": "wrong_side", "pleural_effusion": "missed"})
    await close(room, "sign_off", {"nodule": "missed"}, model=OTHER, template=Template.REPORT)
    await close(room, "reject", {}, findings={"mass": Status.INDETERMINATE})
    room.write()  # nobody has closed it


def one(report: stats.Report, by: str, name: str) -> Group:
    (found,) = [group for group in report.groups if (group.by, group.name) == (by, name)]
    return found


def shares(group: Group) -> dict[str, tuple[int, int]]:
    return {
        name: (getattr(group, name).count, getattr(group, name).of)
        for name in ("agreement", "overcall", "miss", "wrong_side")
    }


async def test_rates_follow_their_definitions(room: Room) -> None:
    await reviewed(room)
    report = stats.report(stats.tally(room.store))
    assert (report.signed_off, report.amended, report.rejected) == (3, 1, 1)
    assert shares(one(report, "finding", "pneumothorax")) == {
        "agreement": (2, 4),  # signed off twice without a word about it
        "overcall": (1, 4),
        "wrong_side": (1, 4),
        "miss": (0, 2),
    }
    assert shares(one(report, "finding", "pleural_effusion")) == {
        "agreement": (3, 4),
        "overcall": (0, 0),  # never called
        "wrong_side": (0, 0),
        "miss": (1, 1),  # agreeing that it is absent is no finding found
    }
    assert shares(one(report, "finding", "nodule"))["miss"] == (1, 1)
    assert not [group for group in report.groups if group.name == "mass"]  # nobody judged it
    assert shares(one(report, "all", ""))["agreement"] == (5, 9)
    assert one(report, "template", "report").reviews == 1
    assert one(report, "model", f"llava-med@{'a' * 12}+chest@{'b' * 12}").verdicts == 3


async def test_a_time_can_be_named(room: Room) -> None:
    old = await close(room, "sign_off", {})
    await close(room, "reject", {})
    with room.store.engine.begin() as connection:
        table = schema.reviews
        where = table.c.review_id == old.review_id
        connection.execute(update(table).where(where).values(closed_at=1_000_000_000))
    assert stats.tally(room.store, until=2_000_000_000).states == {"signed_off": 1}
    assert stats.tally(room.store, since=2_000_000_000).states == {"rejected": 1}
    answer = (await room.get("/v1/reviews/stats?since=2000&until=9999999999")).json()
    assert (answer["signed_off"], answer["rejected"]) == (0, 1)
    assert (await room.get("/v1/reviews/stats?since=yesterday")).status_code == 400


async def test_what_was_shredded_is_counted_as_such_and_in_no_rate(room: Room) -> None:
    gone = await close(room, "sign_off", {})
    await close(room, "sign_off", {})
    with room.store.engine.begin() as connection:
        where = schema.keys.c.audit_id == gone.audit_id
        connection.execute(update(schema.keys).where(where).values(wrapped=None))
    report = stats.report(stats.tally(room.store))
    assert (report.signed_off, report.unreadable) == (1, 1)


async def test_every_batch_is_read(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "BATCH", 2)
    for _ in range(5):
        await close(room, "sign_off", {})
    told: list[int] = []
    assert stats.tally(room.store, progress=told.append).states["signed_off"] == 5
    assert told == [2, 2, 1]


def test_the_interval_is_wilsons() -> None:
    # E. B. Wilson's own formula, for 8 of 10.
    z, n, p = 1.959963984540054, 10, 0.8
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    found = stats.rate(8, 10)
    assert found.rate == 0.8
    assert found.low == pytest.approx(middle - half)
    assert found.high == pytest.approx(middle + half)


@given(st.integers(0, 50), st.integers(0, 50))
def test_a_rate_lies_within_its_interval(count: int, rest: int) -> None:
    found = stats.rate(count, count + rest)
    if count + rest == 0:
        assert found.rate is found.low is found.high is None
    else:
        assert found.rate is not None
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.rate + 1e-12
        assert found.rate - 1e-12 <= found.high <= 1


@pytest.mark.parametrize("suffix", chart.FORMATS)
async def test_the_picture_shows_every_group(room: Room, tmp_path: Path, suffix: str) -> None:
    await reviewed(room)
    path = tmp_path / f"rates{suffix}"
    chart.draw(stats.report(stats.tally(room.store)), path)
    if suffix == ".png":
        image = Image.open(path)
        assert image.width > 1000
        assert image.convert("L").getextrema() == (0, 255)
    else:
        assert "<svg" in path.read_text()


# --- commands ----------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Room, CliRunner]]:
    """A store that the command line finds, and the key of somebody in the environment."""
    with room_in(tmp_path) as room:
        monkeypatch.setenv("LLAVA_MED_STATE_DIR", str(tmp_path))
        monkeypatch.setenv("LLAVA_MED_AUDIT__SIGNING_KEY", keyring.new_key())
        secret = next(iter(room.store.keyring._keys.values())).secret
        key = base64.b64encode(secret).decode()
        monkeypatch.setenv("LLAVA_MED_AUDIT__KEY", key)
        monkeypatch.setenv("LLAVA_MED_USER_KEY", key_of("dr-jones"))
        yield room, CliRunner()


async def test_the_queue_is_printed_without_what_a_terminal_would_obey(
    command: tuple[Room, CliRunner],
) -> None:
    room, runner = command
    written = room.write(question="\x1b[31mred [bold]x[/bold]\u202e", urgent=["mass"])
    result = runner.invoke(app, ["list"], env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    assert written.review_id in result.output
    assert "\x1b[31m" not in result.output
    assert "\u202e" not in result.output
    assert "[bold]x[/bold]" in result.output
    assert "1 pending, 0 claimed; 1 of them urgent" in result.output
    page = json.loads(runner.invoke(app, ["list", "--urgent", "--json"]).stdout)
    assert page["data"][0]["id"] == written.review_id
    assert [(look.principal, look.what) for look in room.reads()] == [("dr-jones", "reviews")] * 2


async def test_rates_are_printed_drawn_and_given_as_json(
    command: tuple[Room, CliRunner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, runner = command
    await reviewed(room)
    monkeypatch.setenv("LLAVA_MED_USER_KEY", key_of("data-office"))
    result = runner.invoke(app, ["stats"], env={"COLUMNS": "250"})
    assert result.exit_code == 0, result.output
    assert "25% (5% to 70%) of 4" in result.output
    assert "3 signed off, 1 amended, 1 rejected" in result.output
    path = tmp_path / "rates.png"
    result = runner.invoke(app, ["stats", "--json", "--picture", str(path)])
    assert json.loads(result.stdout)["amended"] == 1
    assert path.stat().st_size > 10_000
    later = runner.invoke(app, ["stats", "--json", "--since", "2200-01-01"])
    assert json.loads(later.stdout)["groups"] == []
    nothing = runner.invoke(app, ["stats", "--since", "2200-01-01", "--picture", str(path)])
    assert nothing.exit_code == 1
    assert room.reads()[-1].principal == "data-office"


@pytest.mark.parametrize("who", ["ward-3", "root", "nobody"])
async def test_a_key_without_the_role_gets_nothing(
    command: tuple[Room, CliRunner], monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    room, runner = command
    written = room.write()
    monkeypatch.setenv("LLAVA_MED_USER_KEY", key_of(who))
    for arguments in (["list"], ["stats"]):
        result = runner.invoke(app, arguments)
        assert result.exit_code == 2
        assert written.review_id not in result.output
    assert room.reads() == []


@pytest.mark.parametrize(
    "arguments", [["list", "--state", "mine"], ["stats", "--picture", "rates.exe"]]
)
async def test_an_option_that_is_not_understood_is_told(
    command: tuple[Room, CliRunner], arguments: list[str]
) -> None:
    assert command[1].invoke(app, arguments).exit_code == 2


def test_the_definitions_are_in_the_help() -> None:
    text = " ".join(CliRunner().invoke(app, ["stats", "--help"]).output.split())
    for words in ("agree / all verdicts", "missed / (missed", "present or indeterminate"):
        assert words in text
