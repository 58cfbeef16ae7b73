"""A policy's patterns: macros expanded, analysed, and refused where a stream could not be guarded.

A pattern is a regular expression over folded text (guardrails/folding.py) that begins and ends with
whole words. For a stream it must be *regular and bounded*: no look-around, no back-reference, no
unbounded repetition. What the analysis finds lets StreamGuard hold back as little as it may:

- ``width``: the longest match, in characters;
- ``heads``: the first words a match can have, where they are finitely many;
- ``prefix``: a pattern for every beginning of a match. Text that it does not match is no match
  under way, so nothing is held for it.

The regular expression is read with the parser of the standard library and written anew for RE2, so
that analysis and matching cannot understand it differently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

MAX_WIDTH = 240
MAX_HEADS = 4096
# Longer words are names of nothing; a rule sees their first part.
MAX_WORD = 64
_MACRO = re.compile(r"\{([a-z][a-z0-9_]*)\}")
# Some words of one sentence, each with the space behind it.
_BUILT_IN = {f"gap{n or ''}": rf"(?:[^ .!?;]{{1,24}} ){{0,{n or 4}}}" for n in (0, 1, 2, 3)}

_EVERY = (1 << 128) - 1


def _mask(characters: str) -> int:
    return sum(1 << ord(character) for character in set(characters))


_DIGITS = _mask("0123456789")
_LOWER, _UPPER = _mask("abcdefghijklmnopqrstuvwxyz"), _mask("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_ALNUM = _DIGITS | _LOWER | _UPPER
_WORD = _ALNUM | _mask("_")
_CATEGORIES = {
    sre.CATEGORY_DIGIT: _DIGITS,
    sre.CATEGORY_NOT_DIGIT: _EVERY & ~_DIGITS,
    sre.CATEGORY_WORD: _WORD,
    sre.CATEGORY_NOT_WORD: _EVERY & ~_WORD,
    sre.CATEGORY_SPACE: _mask(" "),
    sre.CATEGORY_NOT_SPACE: _EVERY & ~_mask(" "),
}


class PatternError(ValueError):
    """A pattern cannot guard a stream. The message says what to write instead."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of a pattern; ``source`` and ``prefix`` are regular expressions for RE2.

    Where case is ignored they are to be compiled so, too.
    """

    width: int
    heads: frozenset[str] | None  # in lower case; None: more than MAX_HEADS
    source: str
    prefix: str


def expand(pattern: str, lexicons: Mapping[str, Sequence[str]]) -> str:
    """The pattern with ``{name}`` replaced by the alternatives of the lexicon of that name.

    Raises:
        PatternError: there is no such lexicon, or it contains itself.
    """
    return _expanded(pattern, lexicons, ())


def _expanded(pattern: str, lexicons: Mapping[str, Sequence[str]], within: tuple[str, ...]) -> str:
    def replace(macro: re.Match[str]) -> str:
        name = macro[1]
        if name in _BUILT_IN:
            return _BUILT_IN[name]
        if name not in lexicons:
            known = ", ".join(sorted({*lexicons, *_BUILT_IN}))
            raise PatternError(f"there is no lexicon {name!r}; known: {known}")
        if name in within:
            raise PatternError(f"the lexicon {name!r} contains itself")
        texts = (_expanded(text, lexicons, (*within, name)) for text in lexicons[name])
        return f"(?:{'|'.join(texts)})"

    return _MACRO.sub(replace, pattern)


def analyse(pattern: str, *, case_sensitive: bool = False) -> Shape:
    """The shape of an expanded pattern.

    Raises:
        PatternError: not a regular expression, not linear, not bounded, or not ASCII.
    """
    return _analysed(pattern, case_sensitive=case_sensitive)[0]


def analyse_rule(pattern: str, *, case_sensitive: bool = False) -> Shape:
    """The shape of a pattern that a rule fires on: it begins with a word's first character.

    Raises:
        PatternError: as analyse; or a match could be empty, or begin with no letter or digit.
    """
    shape, part = _analysed(pattern, case_sensitive=case_sensitive)
    if part.nullable:
        raise PatternError("matches the empty text")
    if part.first & ~_ALNUM:
        raise PatternError("must begin with a letter or a digit")
    return shape


# Ends a head that is whole; a head without it is continued by what follows in the pattern.
_END = " "


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a pattern: how to write it, its beginnings, and what its neighbours must know."""

    source: str
    prefix: str
    nullable: bool
    first: int  # bit mask of the characters it can begin with
    heads: frozenset[str] | None


_NOTHING = _Part("", "", True, 0, frozenset({""}))


@lru_cache(maxsize=4096)
def _analysed(pattern: str, *, case_sensitive: bool) -> tuple[Shape, _Part]:
    if not pattern.isascii():
        raise PatternError("patterns are ASCII: text is folded to ASCII before it is matched")
    try:
        tree = _parser.parse(pattern)
    except (re.error, OverflowError) as error:
        raise PatternError(f"not a regular expression: {error}") from None
    except RecursionError:
        raise PatternError("nested too deeply") from None
    if tree.state.flags & ~re.UNICODE:
        raise PatternError(_NO_FLAGS)
    width = tree.getwidth()[1]
    if width > MAX_WIDTH:
        raise PatternError(_BOUNDS)
    try:
        part = _sequence(tree, case_sensitive)
    except RecursionError:
        raise PatternError("nested too deeply") from None
    heads = part.heads and frozenset(head.rstrip(_END)[:MAX_WORD] for head in part.heads)
    return Shape(width, heads, part.source, part.prefix), part


_BOUNDS = f"may match over {MAX_WIDTH} characters: repeat with bounds ({{n,m}})"
_NO_FLAGS = "flags are not for a pattern to set; there is case_sensitive"


def _sequence(items: Any, case_sensitive: bool) -> _Part:
    parts = [_item(item, case_sensitive) for item in items]
    whole = _NOTHING
    for part in parts:
        whole = _Part(
            source=whole.source + part.source,
            prefix="",
            nullable=whole.nullable and part.nullable,
            first=whole.first | (part.first if whole.nullable else 0),
            heads=_continued(whole.heads, part.heads),
        )
    prefix = ""
    for part in reversed(parts):
        # A single character is there or not; what follows it may be empty, like any beginning.
        single = part.prefix == f"{part.source}?"
        rest = f"{part.source}{prefix}"
        prefix = f"(?:{rest})?" if single else f"(?:{rest}|{part.prefix})"
    return _Part(whole.source, prefix, whole.nullable, whole.first, whole.heads)


def _item(item: tuple[Any, Any], case_sensitive: bool) -> _Part:
    operator, argument = item
    match operator:
        case sre.LITERAL | sre.NOT_LITERAL | sre.IN | sre.ANY:
            return _character(_characters(operator, argument, case_sensitive), case_sensitive)
        case sre.BRANCH:
            return _either([_sequence(branch, case_sensitive) for branch in argument[1]])
        case sre.SUBPATTERN:
            _, added, removed, inner = argument
            if added or removed:
                raise PatternError(_NO_FLAGS)
            return _grouped(_sequence(inner, case_sensitive))
        case sre.MAX_REPEAT | sre.MIN_REPEAT:
            least, most, inner = argument
            return _repeat(_sequence(inner, case_sensitive), least, most)
        case sre.AT if argument is sre.AT_BOUNDARY:
            return _Part(r"\b", "", True, 0, frozenset({""}))
        case sre.AT:
            raise PatternError("anchors (^, $, \\A, \\Z, \\B) are not for a stream")
        case sre.ASSERT | sre.ASSERT_NOT:
            raise PatternError("look-around is not linear: use unless_before or unless_after")
        case sre.GROUPREF | sre.GROUPREF_EXISTS:
            raise PatternError("back-references are not linear")
        case _:
            raise PatternError(f"{str(operator).lower()} is not supported")


def _characters(operator: Any, argument: Any, case_sensitive: bool) -> int:
    """The bit mask of an item that matches one character."""
    if operator is sre.ANY:
        return _EVERY
    if operator is sre.LITERAL:
        return _cases(1 << argument, case_sensitive)
    if operator is sre.NOT_LITERAL:
        return _EVERY & ~_cases(1 << argument, case_sensitive)
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
    mask = _cases(mask & _EVERY, case_sensitive)
    return _EVERY & ~mask if negated else mask


def _cases(mask: int, case_sensitive: bool) -> int:
    if case_sensitive:
        return mask
    return mask | (mask & _LOWER) >> 32 | (mask & _UPPER) << 32


@lru_cache(maxsize=1024)
def _character(mask: int, case_sensitive: bool) -> _Part:
    characters = [chr(bit) for bit in range(128) if mask >> bit & 1]
    if not characters:
        raise PatternError("a set of characters that matches none")
    # Short to write is quick to compile: where case is ignored, RE2 adds the other one.
    kept = [one for one in characters if case_sensitive or not one.isupper()]
    written = "".join(one if one.isalnum() or one == " " else f"\\x{ord(one):02x}" for one in kept)
    source = f"[{written}]" if len(kept) > 1 else written
    heads = {character.lower() for character in characters if character.isalnum()}
    if mask & ~_ALNUM:
        heads.add(_END)
    return _Part(source, f"{source}?", False, mask, frozenset(heads))


def _grouped(part: _Part) -> _Part:
    return _Part(f"(?:{part.source})", part.prefix, part.nullable, part.first, part.heads)


def _either(branches: list[_Part]) -> _Part:
    heads: frozenset[str] | None = frozenset()
    first = 0
    for branch in branches:
        heads = None if heads is None or branch.heads is None else heads | branch.heads
        first |= branch.first
    return _Part(
        source=f"(?:{'|'.join(branch.source for branch in branches)})",
        prefix=f"(?:{'|'.join(branch.prefix for branch in branches)})",
        nullable=any(branch.nullable for branch in branches),
        first=first,
        heads=heads,
    )


def _repeat(part: _Part, least: int, most: int) -> _Part:
    if most > MAX_WIDTH:  # also without bound; what it repeats may be empty, and have no width
        raise PatternError(_BOUNDS)
    if most == 0:
        return _NOTHING
    heads: frozenset[str] | None = frozenset({""})
    optional = None if part.heads is None else part.heads | {""}
    for number in range(most):
        before = heads
        heads = _continued(heads, part.heads if number < least else optional)
        if number >= least and heads == before:
            break
    return _Part(
        source=f"(?:{part.source}){{{least},{most}}}",
        prefix=f"(?:{part.source}){{0,{most - 1}}}{part.prefix}",
        nullable=least == 0 or part.nullable,
        first=part.first,
        heads=heads,
    )


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
