"""What an action comes to, for every item and every reviewer: by properties."""

from __future__ import annotations

import uuid
from typing import get_args

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from guardrails.answers import Status
from serve.audit.keyring import DataKey
from serve.audit.records import (
    Agreement,
    AnswerRecord,
    RecordedChoice,
    RecordedFinding,
    ReviewAction,
)
from serve.errors import BadRequest, Conflict
from serve.review import states
from serve.review.decisions import CLAIM_US, Act, Change, GivenVerdict, decide
from serve.review.items import Content, Detail, Item
from tests.unit.urgent import request

NOW = 1_800_000_000_000_000
ACTIONS: tuple[ReviewAction, ...] = get_args(ReviewAction)
VERDICTS: tuple[Agreement, ...] = get_args(Agreement)
NAMES = ("pneumothorax", "pleural_effusion", "mass", "rib fracture")
SAID = {
    "pneumothorax": Status.PRESENT,
    "pleural_effusion": Status.ABSENT,
    "mass": Status.INDETERMINATE,
}


def content(*statuses: dict[str, Status], detail: Detail | None = None) -> Content:
    choices = tuple(
        RecordedChoice(
            raw="",
            sent="",
            finish_reason="stop",
            tokens=1,
            verdicts=(),
            findings=tuple(
                RecordedFinding(finding=name, status=status) for name, status in said.items()
            ),
        )
        for said in statuses or (SAID,)
    )
    answer = AnswerRecord(
        outcome="complete",
        error=None,
        choices=choices,
        escalation=(),
        prompt_tokens=1,
        planned_s=0,
        first_token_s=0,
        total_s=0,
    )
    return Content(DataKey.new(), detail or Detail(), request(str(uuid.uuid4())), answer, ())


def item(state: states.State, claimed_at: int | None, version: int = 5) -> Item:
    return Item(
        review_id="r",
        audit_id="a",
        at=NOW - 10 * CLAIM_US,
        state=state,
        urgent=True,
        held=False,
        owner=1,
        claimed_at=claimed_at,
        acknowledged_at=claimed_at,
        closed_at=None,
        version=version,
        detail=None,
    )


def body(action: ReviewAction, version: int = 5) -> Act:
    return Act(version=version, amended="No mass." if action == "amend" else None)


@given(
    st.sampled_from(states.STATES),
    st.sampled_from(ACTIONS),
    st.integers(0, 2 * CLAIM_US),
    st.sampled_from(["dr-jones", "dr-smith"]),
    st.sampled_from([4, 5, 6]),
)
def test_an_action_is_allowed_exactly_where_the_rules_say_so(
    state: states.State, action: ReviewAction, age: int, who: str, version: int
) -> None:
    holder = None if state == "pending" else "dr-jones"
    held = item(state, None if state == "pending" else NOW - age)
    inside = content(detail=Detail(claimed_by=holder, closed_by=holder))
    allowed = (
        (state, action) in states.TRANSITIONS
        and version == held.version
        and (
            state == "pending"
            or action == "acknowledge"
            or (age >= CLAIM_US if action == "claim" else who == holder)
        )
    )

    def done() -> Change:
        return decide(held, inside, action, body(action, version), principal=who, now=NOW)

    if not allowed:
        with pytest.raises(Conflict):
            done()
        return
    change = done()
    assert change.state == states.TRANSITIONS[state, action]
    assert change.version == held.version + 1
    assert (change.detail.claimed_by is None) == (
        action == "release" or (state == "pending" and action != "claim")
    )
    assert (change.closed_at is not None) == (change.state in states.CLOSED)
    assert (change.detail.seconds == age / 1e6) if change.closed_at else not change.detail.seconds
    assert change.record.action == action
    assert change.record.principal == who


@given(st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VERDICTS)))
def test_a_verdict_is_taken_only_where_it_can_be_true(given_: dict[str, Agreement]) -> None:
    possible = {
        "agree": {"pneumothorax", "pleural_effusion", "mass"},
        "overcall": {"pneumothorax", "mass"},
        "wrong_side": {"pneumothorax", "mass"},
        "missed": {"pleural_effusion", "mass", "rib fracture"},
    }
    act = Act(
        version=5,
        findings=tuple(GivenVerdict(finding=name, verdict=one) for name, one in given_.items()),
    )
    held, inside = item("claimed", NOW - 1), content(detail=Detail(claimed_by="dr-jones"))
    if all(name in possible[verdict] for name, verdict in given_.items()):
        change = decide(held, inside, "sign_off", act, principal="dr-jones", now=NOW)
        said = {one.finding: one.verdict for one in change.record.findings}
        assert said == {**dict.fromkeys(SAID, "agree"), **given_}
        change = decide(held, inside, "reject", act, principal="dr-jones", now=NOW)
        assert {one.finding: one.verdict for one in change.record.findings} == given_
    else:
        with pytest.raises(BadRequest):
            decide(held, inside, "sign_off", act, principal="dr-jones", now=NOW)


@given(st.lists(st.sampled_from(list(Status)), min_size=1, max_size=4))
def test_of_several_choices_the_strongest_statement_counts(said: list[Status]) -> None:
    found = content(*({"mass": status} for status in said)).findings
    order = [Status.PRESENT, Status.INDETERMINATE, Status.ABSENT]
    assert found == {"mass": min(said, key=order.index)}


def test_a_clock_that_was_set_back_makes_no_negative_time() -> None:
    held, inside = item("claimed", NOW + 1_000), content(detail=Detail(claimed_by="dr-jones"))
    change = decide(held, inside, "sign_off", Act(version=5), principal="dr-jones", now=NOW)
    assert change.detail.seconds == 0


@given(st.text(max_size=70))
def test_names_of_findings_are_plain(name: str) -> None:
    plain = 1 <= len(name) <= 64 and not set(name) - set("abcdefghijklmnopqrstuvwxyz0123456789 _-")
    assume(name.isascii() or not plain)
    if plain:
        assert GivenVerdict(finding=name, verdict="missed").finding == name
    else:
        with pytest.raises(ValueError, match="finding"):
            GivenVerdict(finding=name, verdict="missed")
