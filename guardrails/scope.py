"""How far what a sentence says reaches: over words, over lists, and against other statements.

Knows the order of cues, joints and findings in one sentence, and combines them; every pass is
linear in their number. Does not know the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guardrails.assertions import FINDING, JOINTS, Assertion, Mark, Signal

# In ", bilateral opacity and effusion" nothing says that the list before goes on; in ", effusion,
# and opacity" the brevity does.
_MAX_ITEM = 2
# Deeper nesting of cues says nothing more; the bound keeps hostile sentences linear.
_MAX_ACTIVE = 4
# Where several cues follow a finding, the first of these wins.
_BACKWARD_ORDER = (
    Assertion.FAMILY,
    Assertion.UNCERTAIN,
    Assertion.ABSENT,
    Assertion.PRESENT,
    Assertion.HISTORICAL,
)


@dataclass(slots=True)
class _Reach:
    """A cue under way: the word that its scope counts from, and what it has passed."""

    cue: Mark
    edge: int
    crossed: bool = False  # a finding
    linked: bool = False  # a joint of a list since that finding
    joint: bool = False  # any joint
    paired: bool = False  # the comma right before the cue: ", seen before, has gone"


def assertions(marks: Sequence[Mark], words: int, max_scope: int) -> Iterator[Assertion]:
    """What is said of each finding among the marks, in order."""
    _link(marks, words)
    _forward(marks, max_scope)
    _backward(marks, max_scope)
    return (_combine(mark) for mark in marks if mark.signal is FINDING)


def _link(marks: Sequence[Mark], words: int) -> None:
    """Which commas continue a list: those that a later joint closes, or before a bare finding."""
    closing, item = "", words
    following: list[Mark] = []
    for mark in reversed(marks):
        kind = mark.signal.kind
        if kind in (",", "stop"):
            soft = kind == "," or mark.soft
            near = closing == "or" or item - mark.end <= _MAX_ITEM
            if soft and closing and near and (kind == "," or closing == "or"):
                mark.link = closing
            elif kind == "," and _is_bare(mark, following, words):
                mark.link = "bare"
            else:
                closing = ""
        elif kind in ("and", "or"):
            closing = kind
        elif kind == "verb" or (kind == "cue" and not (closing == "or" and _plain(mark))):
            closing = ""
        elif kind == "finding":
            item = mark.start
        following = [mark, *following[:1]]


def _plain(mark: Mark) -> bool:
    """Whether a cue may stand inside a list: "no effusion, new opacity, or mass"."""
    return mark.signal.status is Assertion.PRESENT


def _is_bare(comma: Mark, following: Sequence[Mark], words: int) -> bool:
    """Whether the item after a comma is a finding, one word before it at most, and no more."""
    if not following or following[0].signal is not FINDING:
        return False
    item = following[0]
    if item.start - comma.end > 1 or item.clause:
        return False
    if len(following) == 1:
        return item.end == words
    return following[1].start == item.end and following[1].signal.kind in (",", "stop")


def _forward(marks: Sequence[Mark], max_scope: int) -> None:
    active: list[_Reach] = []
    heading, listed, previous = False, False, FINDING
    last_joint = ""
    for mark in marks:
        kind = mark.signal.kind
        if kind == "finding":
            if mark.clause and previous.kind in JOINTS.values():
                active = []
            active = [reach for reach in active if mark.start - reach.edge <= max_scope]
            mark.before = _nearest(active, mark.inside)
            mark.asked = heading
            mark.firm = (
                bool(mark.inside)
                or last_joint != "and"
                or not all(reach.crossed for reach in active)
            )
            active = [reach for reach in active if not reach.cue.narrow]
            for reach in active:
                reach.crossed, reach.edge = True, mark.end
        elif kind == "cue":
            heading = heading or mark.heading
            if previous.kind in ("and", "("):
                active = []
            if mark.signal.forward and not mark.heading:
                active = [*active[1 - _MAX_ACTIVE :], _Reach(mark, mark.end)]
                listed, last_joint = False, ""
        elif kind == "stop" and not mark.link:
            active = []
            heading = heading and not mark.heading
        elif kind != "verb":
            joint = mark.link or kind
            active = [reach for reach in active if _passes(reach.cue, joint, listed)]
            listed = listed or joint in ("and", "or")
            last_joint = joint
        previous = mark.signal


def _passes(cue: Mark, joint: str, listed: bool) -> bool:
    """Whether a cue's scope goes on after a joint."""
    if cue.narrow or joint == ",":
        return False
    if cue.signal.status is Assertion.HISTORICAL and joint in ("with", "bare"):
        return False
    return not (joint == "bare" and listed)


def _nearest(active: Sequence[_Reach], inside: Sequence[Signal]) -> Assertion | None:
    """The status that cues before a finding give it: the nearest, unless one further out rules."""
    status: Assertion | None = inside[-1].status if inside else None
    start = -1
    for reach in reversed(active):
        outer = reach.cue.signal.status
        adjacent = reach.edge == start and not reach.crossed
        pair = (outer, status)
        if (
            status is None
            or outer in (Assertion.FAMILY, Assertion.ABSENT)
            or (adjacent and outer is Assertion.HISTORICAL and status is not Assertion.ABSENT)
            or (adjacent and pair == (Assertion.PRESENT, Assertion.HISTORICAL))
        ):
            status = outer
        start = reach.cue.start
    return status


def _backward(marks: Sequence[Mark], max_scope: int) -> None:
    active: list[_Reach] = []
    for mark in reversed(marks):
        kind = mark.signal.kind
        if kind == "finding":
            active = [
                reach
                for reach in active
                if reach.edge - mark.end <= max_scope
                and (reach.linked or not reach.crossed)
                and not (mark.clause and reach.joint)
            ]
            near = [reach for reach in active if not reach.crossed]
            said = {reach.cue.signal.status for reach in near or active}
            mark.after = next((status for status in _BACKWARD_ORDER if status in said), None)
            mark.direct = bool(near)
            for reach in active:
                reach.crossed, reach.linked, reach.edge = True, False, mark.start
        elif kind == "cue":
            if mark.signal.forward:
                active = [reach for reach in active if not reach.crossed]
            if mark.signal.backward or mark.last:
                active = [
                    *active[1 - _MAX_ACTIVE :],
                    _Reach(mark, mark.start),
                ]
        elif kind == "stop" and not mark.link:
            active = []
        elif kind == "verb":
            active = [reach for reach in active if not reach.joint]
        elif kind in (",", "and", "or", "stop"):
            active = [reach for reach in active if _joins(reach, mark)]
            for reach in active:
                reach.linked, reach.joint = True, True


def _joins(reach: _Reach, mark: Mark) -> bool:
    """Whether what is said after a joint is said of what stands before it as well."""
    if mark.signal.kind == "and":
        return not reach.cue.singular
    if mark.signal.kind == "or" or mark.link in ("and", "or"):
        return True
    if mark.signal.kind == "," and reach.edge == mark.end:
        reach.paired = True
    return reach.paired and not reach.crossed


def _combine(mark: Mark) -> Assertion:
    """What comes after a finding is the predicate and rules, with these exceptions."""
    before, after = mark.before, mark.after
    if Assertion.FAMILY in (before, after):
        return Assertion.FAMILY
    if before is None or after is None:
        status = before or after or Assertion.PRESENT
    else:
        weak = after in (Assertion.PRESENT, Assertion.HISTORICAL)
        kept = (
            not mark.direct
            or (before is Assertion.ABSENT and weak)
            or (before is Assertion.PRESENT and after is Assertion.HISTORICAL)
        )
        status = before if kept and (mark.firm or not mark.direct) else after
    if mark.asked and status is not Assertion.ABSENT:
        return Assertion.HISTORICAL
    return status
