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
from functools import lru_cache
from typing import Any, NamedTuple, cast

import re2

from guardrails.patterns import MAX_WORD, PatternError, Shape, analyse, analyse_rule

# google-re2's own objects behind its re-like wrapper, which takes three times as long as a match.
_AT_START, _WHOLE, _ANYWHERE = (
    getattr(re2._re2.RE2.Anchor, name)  # noqa: SLF001
    for name in ("ANCHOR_START", "ANCHOR_BOTH", "UNANCHORED")
)
_NOWHERE = (-1, -1)
WORD_BYTES = re.compile(rb"(?<![A-Za-z0-9])[A-Za-z0-9]{1,%d}" % MAX_WORD)


class Action(StrEnum):
    """What happens to an answer when a rule fires."""

    BLOCK = "block"  # the text ends before the match: finish_reason content_filter
    REDACT = "redact"  # the match is replaced
    FLAG = "flag"  # a verdict, the text goes out
    ESCALATE = "escalate"  # a verdict, and a clinician is to look at once


class Stage(StrEnum):
    """Where a rule looks: at what the client sends, or at what the model answers."""

    INPUT = "input"
    OUTPUT = "output"


@dataclass(frozen=True, slots=True, order=True)
class Verdict:
    """What one rule decided of a text; ``finding`` where it is about one."""

    rule: str
    action: Action
    stage: Stage
    finding: str = ""


HOLDING = frozenset({Action.BLOCK, Action.REDACT})


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule at one stage; patterns have their lexicons expanded (guardrails/patterns.py)."""

    id: str
    action: Action
    patterns: tuple[str, ...]
    unless_before: tuple[str, ...] = ()
    unless_after: tuple[str, ...] = ()
    unless_within: tuple[str, ...] = ()
    case_sensitive: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Automaton:
    """A pattern with its exceptions, compiled: whether it goes on, and what it matched."""

    width: int
    reach: int  # width with the context behind it
    heads: frozenset[str] | None
    before_width: int
    _pattern: Any
    _prefix: Any
    _before: Any | None
    _after: Any | None
    _within: Any | None

    def goes_on(self, shadow: bytes, start: int) -> bool:
        """Whether all of the text from ``start`` on is the beginning of a match."""
        return bool(self._prefix.Match(_WHOLE, shadow, start, len(shadow))[0] != _NOWHERE)

    def is_excused(self, shadow: bytes, start: int) -> bool:
        """Whether the text before ``start`` excuses any match there."""
        if self._before is None:
            return False
        context = shadow[max(0, start - self.before_width - 1) : start]
        return bool(self._before.Match(_ANYWHERE, context, 0, len(context))[0] != _NOWHERE)

    def match(self, shadow: bytes, start: int) -> int | None:
        """The end of the longest match that begins at ``start``, unless its context excuses it."""
        # One more than the width: whether the last word is whole shows in the character behind it.
        limit = min(len(shadow), start + self.width + 1)
        span = self._pattern.Match(_AT_START, shadow, start, limit)[0]
        if span == _NOWHERE:
            return None
        end = cast("int", span[1])
        if (
            self._within is not None
            and self._within.Match(_ANYWHERE, shadow, start, end)[0] != _NOWHERE
        ):
            return None
        if self.is_excused(shadow, start):
            return None
        if (
            self._after is not None
            and self._after.Match(_AT_START, shadow, end, len(shadow))[0] != _NOWHERE
        ):
            return None
        return end


class CompiledPattern(NamedTuple):
    """One pattern of a rule."""

    rule: Rule
    automaton: Automaton
    holds: bool  # whether text is held back for it; flags and escalations let it go


class RuleSet:
    """The rules of one stage.

    Raises:
        PatternError: a pattern cannot guard a stream; the message names the rule.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        patterns = [pattern for rule in rules for pattern in _compiled(rule)]
        # Text before a match that its exceptions may look at.
        self.context = max((pattern.automaton.before_width for pattern in patterns), default=0) + 1
        self.width = max((pattern.automaton.reach for pattern in patterns), default=0)
        self._headed: dict[bytes, tuple[CompiledPattern, ...]] = {}
        for pattern in patterns:
            for head in pattern.automaton.heads or ():
                key = head.encode()
                self._headed[key] = (*self._headed.get(key, ()), pattern)
        self._headless = [pattern for pattern in patterns if pattern.automaton.heads is None]
        self._known: dict[bytes, tuple[CompiledPattern, ...]] = {}
        self._beginnings = {
            head[:length] for head in self._headed for length in range(1, len(head) + 1)
        }
        self._unfinished: dict[bytes, bool] = {}

    def beginning(self, word: bytes, text: bytes) -> tuple[CompiledPattern, ...]:
        """The patterns of which a match may begin with this word.

        Args:
            word: a whole word, or the first MAX_WORD characters of one.
            text: the word with the character behind it, unless the text ends there.
        """
        patterns = self._headed.get(word.lower(), ())
        if not self._headless:
            return patterns
        headless = self._known.get(text)
        if headless is None:
            headless = tuple(
                pattern
                for pattern in self._headless
                if pattern.automaton.goes_on(text, 0)
                or pattern.automaton.match(text, 0) is not None
            )
            if len(self._known) < _MAX_KNOWN:
                self._known[text] = headless
        return patterns + headless

    def may_become(self, beginning: bytes) -> bool:
        """Whether a match may begin with a word of which only the beginning is known."""
        if beginning.lower() in self._beginnings:
            return True
        if not self._headless:
            return False
        known = self._unfinished.get(beginning)
        if known is None:
            known = any(pattern.automaton.goes_on(beginning, 0) for pattern in self._headless)
            if len(self._unfinished) < _MAX_KNOWN:
                self._unfinished[beginning] = known
        return known


_MAX_KNOWN = 20_000  # words remembered, to look at each only once


def _compiled(rule: Rule) -> list[CompiledPattern]:
    context = (rule.unless_before, rule.unless_after, rule.unless_within)
    try:
        return [
            CompiledPattern(
                rule,
                compile_pattern(pattern, *context, case_sensitive=rule.case_sensitive),
                rule.action in HOLDING,
            )
            for pattern in rule.patterns
        ]
    except PatternError as error:
        raise PatternError(f"rule {rule.id}: {error}") from None


@lru_cache(maxsize=4096)  # a rule stands in several rule sets, and most survive a new policy
def compile_pattern(
    pattern: str,
    unless_before: tuple[str, ...] = (),
    unless_after: tuple[str, ...] = (),
    unless_within: tuple[str, ...] = (),
    *,
    case_sensitive: bool = False,
) -> Automaton:
    """One pattern with its exceptions, ready for streams.

    Raises:
        PatternError: it cannot guard a stream.
    """
    shape = analyse_rule(pattern, case_sensitive=case_sensitive)
    before, after, within = (
        _context("|".join(texts), case_sensitive) if texts else None
        for texts in (unless_before, unless_after, unless_within)
    )
    return Automaton(
        width=shape.width,
        reach=shape.width + (after.width if after else 0),
        heads=shape.heads,
        before_width=before.width if before else 0,
        _pattern=_compile(rf"(?:{shape.source})\b", case_sensitive),
        # Behind a match, what follows may still excuse it.
        _prefix=_compile(
            rf"(?:{shape.prefix}|(?:{shape.source}){after.prefix})" if after else shape.prefix,
            case_sensitive,
        ),
        _before=_compile(rf"\b(?:{before.source})\z", case_sensitive) if before else None,
        _after=_compile(rf"(?:{after.source})\b", case_sensitive) if after else None,
        _within=_compile(rf"\b(?:{within.source})\b", case_sensitive) if within else None,
    )


@lru_cache(maxsize=1024)
def _context(pattern: str, case_sensitive: bool) -> Shape:
    return analyse(pattern, case_sensitive=case_sensitive)


@lru_cache(maxsize=8192)
def _compile(pattern: str, case_sensitive: bool) -> Any:
    options = re2.Options()
    options.case_sensitive = case_sensitive
    options.longest_match = True
    options.encoding = re2.Options.Encoding.LATIN1
    options.never_capture = True
    options.log_errors = False
    options.max_mem = _MAX_MEMORY
    try:
        return re2.compile(pattern.encode(), options)._regexp  # noqa: SLF001
    except re2.error:
        raise PatternError("too large: shorten its lists or repetitions") from None


_MAX_MEMORY = 64 << 20  # bytes for one pattern's automaton; it grows only as texts need it
