"""Findings in clinical sentences: which are named, and whether the sentence says they are there.

Knows how to find terms in words. Does not know the terms, which are data that somebody else loads,
nor what follows from a finding; how a sentence denies or doubts one is in ``assertions`` and
``scope``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guardrails import phrases
from guardrails.assertions import (
    Assertion,
    AssertionRules,
    Cue,
    Mark,
    find_marks,
    signal_phrases,
)
from guardrails.scope import assertions

__all__ = [
    "Assertion",
    "AssertionRules",
    "Cue",
    "FindingDetector",
    "FindingEntry",
    "Mention",
    "sentences",
]

_UNKNOWN = "-"  # stands for words that no term contains
# Words that a term must not skip, and hence must know.
_SEPARATORS = (",", ";", ":", "?", "(", ")", "/", "and", "or", "nor", "but", "with")


@dataclass(frozen=True, slots=True)
class FindingEntry:
    """A finding and the phrases that name it."""

    name: str
    terms: tuple[str, ...]
    urgent: bool
    implies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mention:
    """A finding named at ``start:end`` of the sentence given."""

    finding: str
    start: int
    end: int
    assertion: Assertion
    urgent: bool


class FindingDetector:
    """Finds all findings of a policy in a sentence, in one pass over its words."""

    def __init__(self, findings: Sequence[FindingEntry], rules: AssertionRules) -> None:
        self._known: dict[str, str] = {sign: sign for sign in _SEPARATORS}
        self._terms = phrases.build(
            ((term, entry) for entry in findings for term in entry.terms), self._learn
        )
        self._signals = signal_phrases(rules)
        self._max_scope = rules.max_scope_words

    def _learn(self, word: str) -> str:
        """The one form under which a word of a term is found, whatever its number."""
        if len(word) > 1 and word.isupper():
            # An abbreviation: in lower case it may be a word, or a part of a name.
            self._known[word] = self._known[word + "s"] = word
            return word
        forms = list(phrases.surfaces(word.lower()))
        for form in forms:
            self._known.setdefault(form, forms[0])
        return forms[0]

    def mentions(self, sentence: str) -> tuple[Mention, ...]:
        """The findings named in a sentence, in order, none within another."""
        spans = [match.span() for match in phrases.TOKEN.finditer(sentence)]
        raw = [sentence[start:end] for start, end in spans]
        words = [word.lower() for word in raw]
        known = self._known
        pairs = zip(raw, words, strict=True)
        keys = [known.get(word) or known.get(low, _UNKNOWN) for word, low in pairs]
        keys.append(phrases.END)
        entries: list[FindingEntry] = []
        findings: list[Mark] = []
        roots = self._terms.children
        at = 0
        while at < len(words):
            if keys[at] not in roots or (found := self._terms.longest(keys, at)) is None:
                at += 1
                continue
            end, entry, gapped = found
            entries.append(entry)
            findings.append(Mark(at, end, gapped=gapped))
            at = end
        if not findings:
            return ()
        words.append(phrases.END)
        marks = find_marks(self._signals, words, findings)
        statuses = assertions(marks, len(spans), self._max_scope)
        return tuple(
            Mention(entry.name, spans[mark.start][0], spans[mark.end - 1][1], status, entry.urgent)
            for entry, mark, status in zip(entries, findings, statuses, strict=True)
        )


# Begins at the first of several signs only, so that a row of them is read once.
_BOUNDARY = re.compile(r"(?<![.!?;])[.!?;]++[\"')\]]*+(?=\s|$)|\n")
_ABBREVIATION = re.compile(
    r"\b(?:dr|mr|mrs|ms|prof|approx|ca|cf|vs|e\.g|i\.e|resp|incl|fig|st|rt|lt)\.$", re.IGNORECASE
)
_NUMBER_SIGN = re.compile(r"\bno\.$", re.IGNORECASE)
_LONGEST_ABBREVIATION = 8
_BULLETS = "-*+#>=|("


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the sentences of a text, without the space around them.

    A line break inside a phrase is a space; one before a heading, a bullet or a blank line ends a
    sentence.
    """
    start = 0
    for match in _BOUNDARY.finditer(text):
        if _ends_sentence(text, match):
            yield from _stripped(text, start, match.end())
            start = match.end()
    yield from _stripped(text, start, len(text))


def _stripped(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    part = text[start:end]
    if part and not part.isspace():
        yield start + len(part) - len(part.lstrip()), start + len(part.rstrip())


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    end = match.end()
    if match[0] == "\n":
        return _starts_line(text, end)
    if match[0][0] == "?":
        # "query ? PE": the sign belongs to what follows.
        return match.start() > 0 and not text[match.start() - 1].isspace()
    if match[0] != ".":
        return True
    before = text[max(0, end - _LONGEST_ABBREVIATION) : end]
    if _ABBREVIATION.search(before):
        return False
    return not (_NUMBER_SIGN.search(before) and text[end : end + 2].strip().isdigit())


def _starts_line(text: str, at: int) -> bool:
    """Whether the line at ``at`` starts something new. Bounded, since blanks may be many."""
    while at < len(text) and text[at] in " \t\r":
        at += 1
    if at == len(text) or text[at] == "\n":
        return True
    return text[at].isupper() or text[at].isdigit() or text[at] in _BULLETS
