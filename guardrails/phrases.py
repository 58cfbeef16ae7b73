"""Phrase patterns, and an automaton of words that finds the longest of many at a place in a text.

A pattern is words with ``(a|b)`` alternatives, ``[a]`` optional words and ``...`` for up to four
words of any kind. Knows words; does not know what a phrase is for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

# Hyphens are no tokens, hence the same as spaces; so are full stops, since what is read is one
# sentence and a full stop inside it belongs to an abbreviation.
TOKEN = re.compile(r"\d+\.\d+|[A-Za-z0-9]+(?:'[A-Za-z]+)?|[,;:?()/]")
END = ""  # stands after the last word; no phrase contains it

_PART = re.compile(r"\.\.\.|[A-Za-z0-9]+(?:'[A-Za-z]+)?|[,;:?/()\[\]|]")
_GAP = "..."
_OPTIONAL = re.compile(r"\[[^\[\]]*\]")
_MAX_GAP = 4
_GAP_STOPS = frozenset({",", ";", ":", "?", "(", ")", "/", "and", "or", "nor", "but", "with", END})

T = TypeVar("T")

# What may follow: words, each with what may follow it, or (END, n) where the pattern n is complete.
# Wordings of a pattern are far too many to list; as sets, they share their ends.
_Rest: TypeAlias = "frozenset[tuple[str, _Rest | int]]"


@dataclass(slots=True)
class Phrases(Generic[T]):
    """Phrases by their words; each leads to a value."""

    children: dict[str, Phrases[T]] = field(default_factory=dict)
    gap: Phrases[T] | None = None
    value: T | None = None

    def longest(self, words: Sequence[str], at: int) -> tuple[int, T, bool] | None:
        """The longest phrase at ``at``: its end, its value, and whether it skipped words.

        ``words`` must end with ``END``.
        """
        node = self
        best: tuple[int, T, bool] | None = None
        while True:
            if node.value is not None and (best is None or at > best[0]):
                best = (at, node.value, False)
            if node.gap is not None:
                for skipped in range(_MAX_GAP + 1):
                    found = node.gap.longest(words, at + skipped)
                    if found is not None and (best is None or found[0] > best[0]):
                        best = (found[0], found[1], found[2] or skipped > 0)
                    if words[at + skipped] in _GAP_STOPS:
                        break
            following = node.children.get(words[at])
            if following is None:
                return best
            node, at = following, at + 1


def build(patterns: Iterable[tuple[str, T]], spell: Callable[[str], str]) -> Phrases[T]:
    """All patterns in one. Where two have a wording in common, the first has it.

    ``spell`` gives the form in which the text will have a word of a pattern.
    """
    values: list[T] = []
    starts: set[tuple[str, _Rest | int]] = set()
    for number, (pattern, value) in enumerate(patterns):
        values.append(value)
        starts |= _compile(parts(pattern), frozenset({(END, number)}), spell)
    # A pattern with nothing but optional words would be found everywhere.
    root = frozenset(arc for arc in starts if arc[0] != END)
    return _determine(root, values, {})


def parts(pattern: str) -> list[str]:
    """The words and signs of a pattern."""
    return _PART.findall(pattern)


def fault(pattern: str) -> str | None:
    """What is wrong with a pattern, if anything."""
    if not pattern.isascii():
        return "terms are ASCII: text is folded to ASCII before it is read"
    opened: list[str] = []
    for sign in pattern:
        if sign in "([":
            opened.append(")" if sign == "(" else "]")
        elif sign in ")]" and (not opened or opened.pop() != sign):
            return "brackets do not match"
    if opened:
        return "brackets do not match"
    needed, optional = pattern, 1
    while optional:
        needed, optional = _OPTIONAL.subn(" ", needed)
    return None if any(map(str.isalnum, needed)) else "may stand for no word at all"


def surfaces(word: str) -> Iterator[str]:
    """A word's singular first, then the forms that are read as it."""
    singular = _singular(word)
    yield singular
    yield word
    yield singular + ("es" if singular.endswith(("s", "x", "sh", "ch")) else "s")
    if singular.endswith("y"):
        yield singular[:-1] + "ies"


def _compile(pattern: list[str], after: _Rest, spell: Callable[[str], str]) -> _Rest:
    """Reads from the end to the opening bracket or the start: what follows is known by then."""
    done: _Rest = frozenset()
    current = after
    while pattern:
        part = pattern.pop()
        if part in "([":
            break
        if part == "|":
            done, current = done | current, after
        elif part in ")]":
            inner = _compile(pattern, current, spell)
            current = inner | current if part == "]" else inner
        else:
            current = frozenset({(part if part == _GAP else spell(part), current)})
    return done | current


def _determine(rest: _Rest, values: Sequence[T], known: dict[_Rest, Phrases[T]]) -> Phrases[T]:
    if rest in known:
        return known[rest]
    node = known[rest] = Phrases[T]()
    merged: dict[str, _Rest] = {}
    complete: list[int] = []
    for word, target in rest:
        if isinstance(target, int):
            complete.append(target)
        else:
            merged[word] = merged[word] | target if word in merged else target
    for word, target in merged.items():
        if word == _GAP:
            node.gap = _determine(target, values, known)
        else:
            node.children[word] = _determine(target, values, known)
    if complete:
        node.value = values[min(complete)]
    return node


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "xes", "shes", "ches")):
        return word[:-2]
    if word.endswith("s") and len(word) > 3 and not word.endswith(("ss", "us", "is")):
        return word[:-1]
    return word
