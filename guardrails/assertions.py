"""What a sentence may say of a finding, and the phrases that say it.

In the manner of NegEx and ConText: cues ("no evidence of", "cannot be excluded"), phrases that only
look like cues, and terminators. Knows how to find them; which they are is data, and how far they
reach is in ``scope``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from guardrails import phrases

Direction = Literal["forward", "backward", "both"]


class Assertion(StrEnum):
    """What a sentence says of a finding. Hypothetical ("rule out PE") counts as historical."""

    PRESENT = "present"
    ABSENT = "absent"
    UNCERTAIN = "uncertain"
    HISTORICAL = "historical"
    FAMILY = "family"


@dataclass(frozen=True, slots=True)
class Cue:
    """A phrase that gives the findings on one side of it, or on both, a status."""

    phrase: str
    status: Assertion
    direction: Direction


@dataclass(frozen=True, slots=True)
class AssertionRules:
    """Phrases that carry a status, look as if they did (``pseudo``), or end what came before."""

    cues: tuple[Cue, ...]
    pseudo: tuple[str, ...]
    terminators: tuple[str, ...]
    max_scope_words: int


_VERBS = frozenset(
    {"is", "are", "was", "were", "has", "have", "had", "remains", "remain", "appears", "appear"}
    | {"shows", "show", "demonstrates", "demonstrate", "reveals", "seen", "noted", "present"}
    | {"identified"}
)
JOINTS = {",": ",", "and": "and", "or": "or", "nor": "or", "/": "or", "with": "with", "(": "("}
_SINGULAR_VERBS = frozenset({"is", "was", "has"})
# "history of" governs the whole list after it, "old" only the noun it stands before.
_HEADS = frozenset({"of", "for", "post", "p", "out", "o", "exclude", ":"})


@dataclass(frozen=True, slots=True)
class Signal:
    """What a phrase that is no finding does: ``kind`` is cue, pseudo, stop, verb or a joint."""

    kind: str
    status: Assertion = Assertion.PRESENT
    forward: bool = False
    backward: bool = False


FINDING = Signal("finding")


@dataclass(slots=True)
class Mark:
    """A signal or a finding in its place (counted in words), and what is learnt about it."""

    start: int
    end: int
    signal: Signal = FINDING
    gapped: bool = False  # a finding whose words have others between them
    clause: bool = False  # a finding that is a clause of its own: "heart is enlarged"
    inside: list[Signal] = field(default_factory=list)  # cues in the words that a term skips
    heading: bool = False  # "indication:" speaks for all that follows; "findings:" ends it
    narrow: bool = False  # "old" reaches its own noun only
    singular: bool = False  # "A and B is not seen" speaks of B only
    last: bool = False  # "pneumothorax: no" has nothing else to speak of
    soft: bool = False  # ", large" may also be an item of a list
    link: str = ""  # what kind of list a comma continues, if any
    before: Assertion | None = None
    firm: bool = True  # said of this finding, not of one that "and" joins it to
    asked: bool = False  # under a heading
    after: Assertion | None = None
    direct: bool = True  # what follows is said of this finding first


def signal_phrases(rules: AssertionRules) -> phrases.Phrases[Signal]:
    """The phrases of a policy and the joints of the language, ready to be found."""
    found = phrases.build(_signals(rules), str.lower)
    bracket: phrases.Phrases[Signal] = phrases.Phrases(value=Signal("("))
    # Not by way of a pattern, where it is grammar.
    found.children["("] = bracket
    return found


def _signals(rules: AssertionRules) -> Iterator[tuple[str, Signal]]:
    """Policy first: where two signals have the same words, the first stays."""
    for phrase in rules.pseudo:
        yield phrase, Signal("pseudo")
    for cue in rules.cues:
        forward, backward = cue.direction != "backward", cue.direction != "forward"
        yield cue.phrase, Signal("cue", cue.status, forward, backward)
    for phrase in rules.terminators:
        yield phrase, Signal("stop")
    yield from ((word, Signal("verb")) for word in sorted(_VERBS))
    yield from ((word, Signal(kind)) for word, kind in JOINTS.items() if word != "(")


def find_marks(
    signals: phrases.Phrases[Signal], words: Sequence[str], findings: Sequence[Mark]
) -> list[Mark]:
    """All marks of a sentence in order. What lies inside a finding is no mark of its own."""
    marks: list[Mark] = []
    roots = signals.children
    at = 0
    for finding in (*findings, None):
        until = finding.start if finding is not None else len(words) - 1
        while at < until:
            found = signals.longest(words, at) if words[at] in roots else None
            if found is None:
                at += 1
                continue
            end, signal, _ = found
            if signal.kind != "pseudo":
                mark = Mark(at, min(end, until), signal)
                _describe(mark, words[at:end])
                mark.last = end == len(words) - 1
                marks.append(mark)
            at = min(end, until)
        if finding is not None:
            marks.append(finding)
            if finding.gapped:
                _read_inside(signals, words, finding)
            at = finding.end
    return marks


def _describe(mark: Mark, words: Sequence[str]) -> None:
    """Learns from the wording what the status alone does not say."""
    if mark.signal.kind == "stop":
        mark.heading = words[-1] == ":"
        mark.soft = words[0] in (",", "and") and _VERBS.isdisjoint(words)
    elif mark.signal.kind == "cue":
        historical = mark.signal.status is Assertion.HISTORICAL
        mark.heading = historical and words[-1] == ":"
        mark.narrow = historical and words[-1] not in _HEADS
        mark.singular = not _SINGULAR_VERBS.isdisjoint(words)


def _read_inside(signals: phrases.Phrases[Signal], words: Sequence[str], finding: Mark) -> None:
    """A term that skips words may have skipped cues: "heart is not enlarged"."""
    at = finding.start
    finding.clause = not _VERBS.isdisjoint(words[at : finding.end])
    while at < finding.end:
        found = signals.longest(words, at)
        if found is not None and found[1].kind == "cue":
            finding.inside.append(found[1])
        at = found[0] if found is not None else at + 1
