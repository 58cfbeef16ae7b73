"""A policy's patterns: macros expanded, analysed, and refused where a stream could not be guarded.

A pattern is a regular expression over folded text (guardrails/folding.py) that begins and ends with
whole words. For a stream it must be *regular and bounded*: no look-around, no back-reference, no
unbounded repetition. What the analysis finds lets StreamGuard hold back as little as it may:

- ``width``: the longest match, in characters;
- ``heads``: the first words a match can have, where they are finitely many;
- ``pairs``: which character may follow which inside a match. Text with another pair ends any match
  under way (the local language that contains the pattern's; McNaughton & Papert 1971).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MAX_WIDTH = 240
MAX_HEADS = 4096
_MACRO = re.compile(r"\{([a-z][a-z0-9_]*)\}")
# Up to four words of one sentence, each with the space behind it.
_BUILT_IN = {"gap": r"(?:[^ .!?;]{1,24} ){0,4}"}

ALL = (1 << 128) - 1


def _mask(characters: str) -> int:
    return sum(1 << ord(character) for character in set(characters))


DIGITS = _mask("0123456789")
_LOWER, _UPPER = _mask("abcdefghijklmnopqrstuvwxyz"), _mask("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
LETTERS = _LOWER | _UPPER
WORD = DIGITS | LETTERS
_SPACE = _mask(" ")
_CATEGORIES = {
    sre.CATEGORY_DIGIT: DIGITS,
    sre.CATEGORY_NOT_DIGIT: ALL & ~DIGITS,
    sre.CATEGORY_WORD: WORD | _mask("_"),
    sre.CATEGORY_NOT_WORD: ALL & ~(WORD | _mask("_")),
    sre.CATEGORY_SPACE: _SPACE,
    sre.CATEGORY_NOT_SPACE: ALL & ~_SPACE,
}


class PatternError(ValueError):
    """A pattern cannot guard a stream. The message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of all texts that a pattern matches. Sets of characters are bit masks."""

    width: int
    first: int
    pairs: tuple[int, ...]  # by character: the characters that may follow it
    heads: frozenset[str] | None  # in lower case; None: more than MAX_HEADS
    one_word: bool  # whether one word alone can be a match


def expand(pattern: str, lexicons: Mapping[str, Sequence[str]]) -> str:
    """The pattern with ``{name}`` replaced by the alternatives of the lexicon of that name.

    Raises:
        PatternError: there is no such lexicon.
    """

    def replace(macro: re.Match[str]) -> str:
        name = macro[1]
        if name in _BUILT_IN:
            return _BUILT_IN[name]
        if name not in lexicons:
            known = ", ".join(sorted({*lexicons, *_BUILT_IN}))
            raise PatternError(f"there is no lexicon {name!r}; known: {known}")
        return f"(?:{'|'.join(lexicons[name])})"

    return _MACRO.sub(replace, pattern)


def analyse(pattern: str, *, case_sensitive: bool = False) -> Shape:
    """The shape of an expanded pattern.

    Raises:
        PatternError: not a regular expression, not linear, not bounded, or not ASCII.
    """
    if not pattern.isascii():
        raise PatternError("patterns are ASCII: text is folded to ASCII before it is matched")
    try:
        tree = _parser.parse(pattern)
    except (re.error, OverflowError) as error:
        raise PatternError(f"not a regular expression: {error}") from None
    except RecursionError:
        raise PatternError("nested too deeply") from None
    if tree.state.flags & ~re.UNICODE:
        raise PatternError("flags are not for a pattern to set; there is case_sensitive")
    width = tree.getwidth()[1]
    if width > MAX_WIDTH:
        raise PatternError(
            f"may match more than {MAX_WIDTH} characters: repeat with bounds ({{n,m}})"
        )
    pairs = [0] * 128
    part = _sequence(tree, pairs, case_sensitive)
    heads = part.heads and frozenset(head.rstrip(_END) for head in part.heads)
    return Shape(width, part.first, tuple(pairs), heads, part.one_word)


def analyse_rule(pattern: str, *, case_sensitive: bool = False) -> Shape:
    """The shape of a pattern that a rule fires on: it begins with a word's first character.

    Raises:
        PatternError: as analyse; or a match could be empty, or begin with no letter or digit.
    """
    shape = analyse(pattern, case_sensitive=case_sensitive)
    if re.fullmatch(pattern, ""):
        raise PatternError("matches the empty text")
    if shape.first & ~WORD:
        raise PatternError("must begin with a letter or a digit")
    return shape


# Ends a head that is whole; a head without it may be continued by what follows in the pattern.
_END = " "


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a pattern, as far as its neighbours matter to it."""

    nullable: bool
    first: int
    last: int
    heads: frozenset[str] | None
    one_word: bool  # whether letters and digits alone can match it


_NOTHING = _Part(True, 0, 0, frozenset({""}), True)


def _sequence(items: Any, pairs: list[int], case_sensitive: bool) -> _Part:
    part = _NOTHING
    for item in items:
        part = _join(part, _item(item, pairs, case_sensitive), pairs)
    return part


def _item(item: tuple[Any, Any], pairs: list[int], case_sensitive: bool) -> _Part:
    operator, argument = item
    match operator:
        case sre.LITERAL | sre.NOT_LITERAL | sre.IN | sre.ANY:
            return _character(_characters(operator, argument, case_sensitive))
        case sre.BRANCH:
            return _either([_sequence(branch, pairs, case_sensitive) for branch in argument[1]])
        case sre.SUBPATTERN:
            _, added, removed, inner = argument
            if added or removed:
                raise PatternError("flags are not for a pattern to set; there is case_sensitive")
            return _sequence(inner, pairs, case_sensitive)
        case sre.MAX_REPEAT | sre.MIN_REPEAT:
            least, most, inner = argument
            return _repeat(_sequence(inner, pairs, case_sensitive), least, most, pairs)
        case sre.AT if argument is sre.AT_BOUNDARY:
            return _NOTHING
        case sre.AT:
            raise PatternError("anchors (^, $, \\A, \\Z, \\B) are not for a stream")
        case sre.ASSERT | sre.ASSERT_NOT:
            raise PatternError("look-around is not linear: use unless_before or unless_after")
        case sre.GROUPREF | sre.GROUPREF_EXISTS:
            raise PatternError("back-references are not linear")
        case _:
            raise PatternError(f"{str(operator).lower()} is not supported")


def _characters(operator: Any, argument: Any, case_sensitive: bool) -> int:
    """The mask of an item that matches one character."""
    if operator is sre.ANY:
        return ALL
    if operator is sre.LITERAL:
        return _cases(1 << argument, case_sensitive)
    if operator is sre.NOT_LITERAL:
        return ALL & ~_cases(1 << argument, case_sensitive)
    mask, negated = 0, False
    for kind, value in argument:
        match kind:
            case sre.NEGATE:
                negated = True
            case sre.LITERAL:
                mask |= 1 << value
            case sre.RANGE:
                mask |= (2 << value[1]) - (1 << value[0])
            case sre.CATEGORY:
                mask |= _CATEGORIES[value]
    mask = _cases(mask & ALL, case_sensitive)
    return ALL & ~mask if negated else mask


def _cases(mask: int, case_sensitive: bool) -> int:
    if case_sensitive:
        return mask
    return mask | (mask & _LOWER) >> 32 | (mask & _UPPER) << 32


def bits(mask: int) -> list[int]:
    """The characters of a mask."""
    return [bit for bit in range(128) if mask >> bit & 1]


def _character(mask: int) -> _Part:
    heads = {chr(bit).lower() for bit in bits(mask & WORD)}
    if mask & ~WORD:
        heads.add(_END)
    return _Part(False, mask, mask, frozenset(heads), bool(mask & WORD))


def _either(branches: list[_Part]) -> _Part:
    heads: frozenset[str] | None = frozenset()
    for branch in branches:
        heads = None if heads is None or branch.heads is None else heads | branch.heads
    first = last = 0
    for branch in branches:
        first, last = first | branch.first, last | branch.last
    return _Part(
        nullable=any(branch.nullable for branch in branches),
        first=first,
        last=last,
        heads=heads,
        one_word=any(branch.one_word for branch in branches),
    )


def _repeat(part: _Part, least: int, most: int, pairs: list[int]) -> _Part:
    if most > 1:
        _follow(part, part, pairs)
    heads = None if part.heads is None else part.heads | {""}
    optional = replace(part, nullable=True, heads=heads, one_word=True)
    repeated = _NOTHING
    for number in range(most):
        once = part if number < least else optional
        before = repeated.heads
        repeated = _Part(
            nullable=repeated.nullable and once.nullable,
            first=part.first,
            last=part.last,
            heads=_continued(before, once.heads),
            one_word=repeated.one_word and once.one_word,
        )
        if number >= least and repeated.heads == before:
            break
    return repeated


def _join(left: _Part, right: _Part, pairs: list[int]) -> _Part:
    _follow(left, right, pairs)
    return _Part(
        nullable=left.nullable and right.nullable,
        first=left.first | (right.first if left.nullable else 0),
        last=right.last | (left.last if right.nullable else 0),
        heads=_continued(left.heads, right.heads),
        one_word=left.one_word and right.one_word,
    )


def _follow(left: _Part, right: _Part, pairs: list[int]) -> None:
    for character in bits(left.last):
        pairs[character] |= right.first


def _continued(left: frozenset[str] | None, right: frozenset[str] | None) -> frozenset[str] | None:
    """The heads of a concatenation: those still open go on into what follows."""
    if left is None:
        return None
    whole = {head for head in left if head.endswith(_END)}
    unfinished = left - whole
    if not unfinished:
        return left
    if right is None or len(unfinished) * len(right) > MAX_HEADS:
        return None
    return frozenset(whole | {start + end for start in unfinished for end in right})
