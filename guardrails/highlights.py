"""Where in a draft its findings stand, for whoever reviews it.

Knows places and statuses; does not know how they are shown.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from guardrails.answers import Status
from guardrails.assess import statements, status_of
from guardrails.folding import Folder
from guardrails.policy import Policy


@dataclass(frozen=True, slots=True)
class Highlight:
    """A place that names something. ``start`` and ``end`` count characters as Python does.

    Not UTF-16 units, as JavaScript's: a character beyond the basic plane counts once.
    """

    start: int
    end: int
    kind: Literal["finding"]
    finding: str
    status: Status


def highlights(policy: Policy, text: str) -> tuple[Highlight, ...]:
    """Every place where a whole draft names a finding, in order, none within another.

    Args:
        policy: under which the draft was made.
        text: as it left, in any template and format, with or without the label.
    """
    return tuple(_places(policy, text))


def _places(policy: Policy, text: str) -> Iterator[Highlight]:
    for start, end in statements(text):
        folder = Folder()
        shadow = folder.push(text[start:end]).decode("ascii")
        for mention in policy.detector.mentions(shadow):
            first = start + folder.origin(mention.start)
            # What folding drops behind the last letter (markup, marks) is no part of the name.
            last = start + folder.origin(mention.end - 1)
            status = status_of({mention.assertion})
            yield Highlight(first, last + 1, "finding", mention.finding, status)
