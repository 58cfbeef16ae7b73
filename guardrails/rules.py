"""Rules compiled for streaming: which can begin at a word, until when they can go on, what matched.

A rule fires where one of its patterns matches from the start of a word to the end of a word, unless
text directly before or after says otherwise. Patterns run on google-re2, whose time is linear in
the text whatever the pattern; how it was chosen is in docs/guardrails.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import re2

from guardrails.patterns import (
    ALL,
    DIGITS,
    LETTERS,
    PatternError,
    Shape,
    analyse,
    analyse_rule,
    bits,
)

# Longer words are names of nothing; a rule sees their first part.
MAX_WORD = 64
WORD_BYTES = re.compile(rb"(?<![A-Za-z0-9])[A-Za-z0-9]{1,%d}" % MAX_WORD)


class Action(StrEnum):
    """What happens to an answer when a rule fires."""

    BLOCK = "block"  # the text ends before the match: finish_reason content_filter
    REDACT = "redact"  # the match is replaced
    FLAG = "flag"  # a verdict, the text goes out
    ESCALATE = "escalate"  # a verdict, and a clinician is to look at once


HOLDING = frozenset({Action.BLOCK, Action.REDACT})


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule at one stage; patterns have their lexicons expanded (guardrails/patterns.py)."""

    id: str
    action: Action
    patterns: tuple[str, ...]
    unless_before: tuple[str, ...] = ()
    unless_after: tuple[str, ...] = ()
    case_sensitive: bool = False


@dataclass(frozen=True, slots=True)
class CompiledPattern:
    """One pattern of a rule, which can be asked for its match at a place."""

    rule: Rule
    source: str
    shape: Shape  # of the pattern
    reach: Shape  # of the pattern with the context behind it
    before_width: int
    compiled: Any
    before: Any | None
    after: Any | None

    @property
    def holds(self) -> bool:
        """Whether text is held back for it; flags and escalations let it go."""
        return self.rule.action in HOLDING

    def match(self, shadow: bytes, start: int) -> int | None:
        """The end of the longest match that begins at ``start``, unless its context excuses it."""
        # One more than the width: whether the last word is whole shows in the character behind it.
        match = self.compiled.match(shadow, start, start + self.shape.width + 1)
        if match is None:
            return None
        end = cast("int", match.end())
        if self.before is not None:
            context = shadow[max(0, start - self.before_width - 1) : start]
            if self.before.search(context) is not None:
                return None
        if self.after is not None and self.after.match(shadow, end) is not None:
            return None
        return end


@dataclass(frozen=True, slots=True)
class Group:
    """Patterns that begin with the same words: one look says whether any matches at a place."""

    holds: bool
    patterns: tuple[CompiledPattern, ...]
    any: Any
    width: int  # of the longest match with the context behind it
    dead: re.Pattern[bytes]  # two characters that no match holds side by side

    def matches(self, shadow: bytes, start: int) -> list[tuple[Rule, int]]:
        """The rules that fire at ``start``, each with the end of its match."""
        if self.any.match(shadow, start, start + self.width + 1) is None:
            return []
        ends = ((pattern.rule, pattern.match(shadow, start)) for pattern in self.patterns)
        return [(rule, end) for rule, end in ends if end is not None]


class RuleSet:
    """The rules of one stage.

    Raises:
        PatternError: a pattern cannot guard a stream; the message names the rule.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        parts = [part for rule in rules for part in _compiled(rule)]
        # Text before a match that its exceptions may look at.
        self.context = max((part.before_width for part in parts), default=0) + 1
        self.width = max((part.shape.width for part in parts), default=0)
        self._open = [(part.shape, _group([part])) for part in parts if part.shape.heads is None]
        by_head: dict[str, list[CompiledPattern]] = {}
        for part in parts:
            for head in part.shape.heads or ():
                by_head.setdefault(head, []).append(part)
        groups: dict[tuple[int, ...], tuple[Group, ...]] = {}
        self._headed: dict[bytes, tuple[Group, ...]] = {}
        for head, members in by_head.items():
            key = tuple(id(member) for member in members)
            if key not in groups:
                groups[key] = tuple(
                    _group(chosen)
                    for holds in (True, False)
                    if (chosen := [part for part in members if part.holds is holds])
                )
            self._headed[head.encode()] = groups[key]
        self._opened: dict[tuple[int, int, int | None], tuple[Group, ...]] = {}

    def beginning(self, word: bytes, following: int | None) -> tuple[Group, ...]:
        """The groups of which a match may begin with this word.

        Args:
            word: a whole word, or the first MAX_WORD characters of one.
            following: the character behind it; None where the text ends.
        """
        headed = self._headed.get(word.lower(), ())
        if not self._open:
            return headed
        key = (word[0], word[-1], following)
        opened = self._opened.get(key)
        if opened is None:
            opened = self._opened[key] = tuple(
                group
                for shape, group in self._open
                if shape.first >> word[0] & 1
                and (
                    shape.one_word
                    or (following is not None and shape.pairs[word[-1]] >> following & 1)
                )
            )
        return headed + opened if opened else headed


def _compiled(rule: Rule) -> list[CompiledPattern]:
    try:
        return [_compiled_pattern(rule, pattern) for pattern in rule.patterns]
    except PatternError as error:
        raise PatternError(f"rule {rule.id}: {error}") from None


def _compiled_pattern(rule: Rule, pattern: str) -> CompiledPattern:
    case = rule.case_sensitive
    before, after = "|".join(rule.unless_before), "|".join(rule.unless_after)
    shape = analyse_rule(pattern, case_sensitive=case)
    options = _options(case_sensitive=case)
    return CompiledPattern(
        rule=rule,
        source=pattern,
        shape=shape,
        reach=analyse(f"(?:{pattern})(?:{after})?", case_sensitive=case) if after else shape,
        before_width=analyse(before, case_sensitive=case).width if before else 0,
        compiled=_compile(rf"(?:{pattern})\b", options),
        before=_compile(rf"\b(?:{before})\z", options) if before else None,
        after=_compile(rf"(?:{after})\b", options) if after else None,
    )


def _options(*, case_sensitive: bool) -> Any:
    options = re2.Options()
    options.case_sensitive = case_sensitive
    options.longest_match = True
    options.encoding = re2.Options.Encoding.LATIN1
    options.log_errors = False
    return options


def _compile(pattern: str, options: Any) -> Any:
    try:
        return re2.compile(pattern.encode(), options)
    except re2.error as error:
        reason = error.args[0]
        text = reason.decode() if isinstance(reason, bytes) else str(reason)
        raise PatternError(f"not supported in linear time: {text}") from None


def _group(patterns: list[CompiledPattern]) -> Group:
    # Case is ignored unless all of them mind it: this one only says where to look closer.
    options = _options(case_sensitive=all(part.rule.case_sensitive for part in patterns))
    return Group(
        holds=patterns[0].holds,
        patterns=tuple(patterns),
        any=_compile(rf"(?:{'|'.join(part.source for part in patterns)})\b", options),
        width=max(part.reach.width for part in patterns),
        dead=_dead([part.reach.pairs for part in patterns]),
    )


def _dead(tables: list[tuple[int, ...]]) -> re.Pattern[bytes]:
    """Finds two neighbours that no table allows. Letters count as one, and digits as one."""
    allowed = [0] * 128
    for table in tables:
        allowed = [mine | theirs for mine, theirs in zip(allowed, table, strict=True)]
    for kind in (LETTERS, DIGITS):
        together = 0
        for character in bits(kind):
            together |= allowed[character]
        for character in bits(kind):
            allowed[character] = together
    by_allowed: dict[int, int] = {}
    for character, mask in enumerate(allowed):
        by_allowed[mask] = by_allowed.get(mask, 0) | 1 << character
    alternatives = [
        f"{_set(characters)}{_set(ALL & ~mask)}"
        for mask, characters in by_allowed.items()
        if mask != ALL
    ]
    return re.compile("|".join(alternatives).encode() if alternatives else rb"(?!)")


def _set(mask: int) -> str:
    return "[" + "".join(f"\\x{character:02x}" for character in bits(mask)) + "]"
