"""The table of states: what it allows, and that the documentation shows it as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.audit.records import ReviewAction
from serve.review.states import (
    CLOSED,
    CLOSING,
    OPEN,
    STATES,
    TRANSITIONS,
    NoTransitionError,
    State,
    after,
    diagram,
)

ACTIONS: tuple[ReviewAction, ...] = get_args(ReviewAction)
DOCUMENT = Path(__file__).parents[2] / "docs" / "review.md"


@given(st.sampled_from(STATES), st.sampled_from(ACTIONS))
def test_a_pair_leads_where_the_table_says_or_is_refused(
    state: State, action: ReviewAction
) -> None:
    if (state, action) in TRANSITIONS:
        assert after(state, action) == TRANSITIONS[state, action]
    else:
        with pytest.raises(NoTransitionError):
            after(state, action)


def test_nothing_leads_out_of_a_closed_state() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] in CLOSED]
    assert set(OPEN) | set(CLOSED) == set(STATES)


def test_only_a_claim_stands_between_a_new_item_and_a_closed_one() -> None:
    closers = {pair for pair, to in TRANSITIONS.items() if to in CLOSED}
    assert closers == {("claimed", action) for action in CLOSING}
    assert [pair[0] for pair, to in TRANSITIONS.items() if to == "claimed" != pair[0]] == [
        "pending"
    ]


def test_acknowledging_changes_no_state() -> None:
    assert {state: after(state, "acknowledge") for state in OPEN} == {s: s for s in OPEN}


def test_the_diagram_is_the_table() -> None:
    edges = re.findall(r"(\w+) --> (\w+): (\w+)", diagram())
    assert {(state, action): to for state, to, action in edges} == TRANSITIONS


def test_the_documentation_shows_the_diagram() -> None:
    assert diagram() in DOCUMENT.read_text("utf-8")
