"""StreamGuard: text goes in as the model makes it, safe text comes out, and nothing leaks.

For every rule set, text and way of cutting the text into chunks, what comes out is the same as for
the whole text at once: it ends before the leftmost match of a blocking rule, and has a mark in
place of every match of a redacting one.

Why that holds. A match begins at the start of a word. When the word is whole, the rule set says
which patterns may match there: these become *candidates*. A candidate is decided once the text from
its start on is no longer the beginning of a match, or the text ends. Text is released up to the
earliest undecided candidate, or the start of a last, unfinished word with which one may begin. So a
character leaves only when every match that could contain it has been decided. Work: each new
character is looked at once, and once more for each open candidate, which lives no longer than its
pattern is wide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from guardrails.folding import Folder
from guardrails.rules import WORD_BYTES, Action, CompiledPattern, RuleSet

_KEPT = 1024  # characters of decided shadow kept before it is dropped in one go


class _Candidate(NamedTuple):
    start: int
    pattern: CompiledPattern


@dataclass(frozen=True, slots=True, order=True)
class Hit:
    """A rule that fired, and where in the folded text."""

    start: int
    end: int
    rule: str
    action: Action


class StreamGuard:
    """Guards one text. ``push`` its chunks, then ``finish``; ``blocked`` tells how it ended."""

    def __init__(self, rules: RuleSet, *, mark: str = "[redacted]") -> None:
        self._rules = rules
        self._mark = mark
        self._folder = Folder()
        self._shadow, self._shadow_start = b"", 0  # what rules look at, from _shadow_start on
        self._text, self._text_start = "", 0  # what was not released, from _text_start on
        self._scanned = 0  # start of the first word that is not whole yet
        self._open: list[_Candidate] = []
        self._hits: list[Hit] = []
        self._redactions: list[tuple[int, int]] = []  # places in the text, not released yet
        self._marked_until = 0  # end of the last redaction of which the mark has left
        self._cut: int | None = None  # leftmost match of a blocking rule so far
        self.blocked = False
        self._finished = False

    @property
    def hits(self) -> tuple[Hit, ...]:
        """What fired so far, in the order of the text; behind a block nothing counts."""
        return tuple(
            sorted({hit for hit in self._hits if self._cut is None or hit.start <= self._cut})
        )

    @property
    def held(self) -> int:
        """Characters that are held back now."""
        return len(self._text)

    def push(self, text: str) -> str:
        """Takes the next chunk; returns what may leave."""
        if self._finished:
            raise RuntimeError("the text is finished")
        if self.blocked:
            return ""
        self._text += text
        self._shadow += self._folder.push(text)
        return self._advance(final=False)

    def finish(self) -> str:
        """Ends the text; returns what may leave of what was held."""
        if self._finished:
            raise RuntimeError("the text is finished")
        self._finished = True
        return "" if self.blocked else self._advance(final=True)

    def _advance(self, *, final: bool) -> str:
        looked_at = self._scanned
        self._find_candidates(final=final)
        if self._open:
            self._decide(looked_at, final=final)
        limit = self._scanned
        for candidate in self._open:
            if candidate.pattern.holds and candidate.start < limit:
                limit = candidate.start
        if self._cut is not None:
            limit = min(limit, self._cut)
            if all(candidate.start > self._cut for candidate in self._open):
                self.blocked = True
        released = self._release(self._folder.origin(limit))
        if self.blocked:
            self._text, self._open = "", []
        elif len(self._shadow) > _KEPT:
            self._forget()
        return released

    def _find_candidates(self, *, final: bool) -> None:
        """Notes where matches may begin, up to the last whole word."""
        shadow, base = self._shadow, self._shadow_start
        length, beginning = len(shadow), self._rules.beginning
        for word in WORD_BYTES.finditer(shadow, self._scanned - base):
            start, end = word.span()
            if end == length and not final:
                if self._rules.may_become(word[0]):
                    self._scanned = base + start
                    return
                break
            for pattern in beginning(word[0], shadow[start : end + 1]):
                self._open.append(_Candidate(base + start, pattern))
        self._scanned = base + length

    def _decide(self, looked_at: int, *, final: bool) -> None:
        """Decides the candidates at which no match can go on; from ``looked_at`` on, new ones."""
        shadow, base = self._shadow, self._shadow_start
        still_open = []
        for candidate in self._open:
            start, pattern = candidate
            automaton = pattern.automaton
            if not final and automaton.goes_on(shadow, start - base):
                # What stands before is known from the start: nothing is held in vain.
                if start < looked_at or not automaton.is_excused(shadow, start - base):
                    still_open.append(candidate)
            elif (end := automaton.match(shadow, start - base)) is not None:
                self._fire(Hit(start, base + end, pattern.rule.id, pattern.rule.action))
        self._open = still_open

    def _fire(self, hit: Hit) -> None:
        self._hits.append(hit)
        if hit.action is Action.BLOCK:
            self._cut = hit.start if self._cut is None else min(self._cut, hit.start)
        elif hit.action is Action.REDACT:
            end = self._folder.origin(hit.end - 1) + 1
            self._redactions.append((self._folder.origin(hit.start), end))

    def _release(self, limit: int) -> str:
        """Everything up to ``limit`` in the text, with marks in place of what is redacted."""
        start = self._text_start
        if limit <= start:
            return ""
        text, self._text, self._text_start = self._text, self._text[limit - start :], limit
        if not self._redactions and self._marked_until <= start:
            return text[: limit - start]
        pieces = []
        place = max(start, self._marked_until)
        self._redactions.sort()
        while self._redactions and self._redactions[0][0] < limit:
            first, end = self._redactions.pop(0)
            if first >= self._marked_until:  # else it overlaps one whose mark has left
                pieces += [text[place - start : first - start], self._mark]
            place = self._marked_until = max(self._marked_until, end)
        pieces.append(text[max(0, place - start) : limit - start])
        return "".join(pieces)

    def _forget(self) -> None:
        """Drops the shadow that neither candidates nor exceptions look at any more."""
        keep = min([self._scanned, *(candidate.start for candidate in self._open)])
        count = keep - self._rules.context - self._shadow_start
        if count > _KEPT // 2:
            self._shadow = self._shadow[count:]
            self._shadow_start += count
            self._folder.forget(self._shadow_start)
