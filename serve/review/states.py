"""What can become of a draft under review: a table of states and actions.

Knows names only; who may act, and what an action needs, is serve/review/decisions.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from serve.audit.records import ReviewAction

State = Literal["pending", "claimed", "signed_off", "amended", "rejected"]

STATES: tuple[State, ...] = get_args(State)
OPEN: tuple[State, ...] = ("pending", "claimed")
CLOSED: tuple[State, ...] = ("signed_off", "amended", "rejected")
CLOSING: frozenset[ReviewAction] = frozenset({"sign_off", "amend", "reject"})

TRANSITIONS: Mapping[tuple[State, ReviewAction], State] = {
    ("pending", "claim"): "claimed",
    ("pending", "acknowledge"): "pending",
    ("claimed", "claim"): "claimed",  # by somebody else, of a claim that has gone stale
    ("claimed", "acknowledge"): "claimed",
    ("claimed", "release"): "pending",
    ("claimed", "sign_off"): "signed_off",
    ("claimed", "amend"): "amended",
    ("claimed", "reject"): "rejected",
}


class NoTransitionError(Exception):
    """The state does not know the action."""


def after(state: State, action: ReviewAction) -> State:
    """The state that an action leads to.

    Raises:
        NoTransitionError: it leads nowhere from here.
    """
    try:
        return TRANSITIONS[state, action]
    except KeyError:
        raise NoTransitionError() from None


def diagram() -> str:
    """The table as a Mermaid state diagram, for docs/review.md."""
    lines = ["stateDiagram-v2", "    [*] --> pending"]
    lines += [f"    {state} --> {to}: {action}" for (state, action), to in TRANSITIONS.items()]
    lines += [f"    {state} --> [*]" for state in CLOSED]
    return "\n".join(lines)
