"""Patterns as a specification: which can guard a stream, and what is known of those."""

from __future__ import annotations

import re
from typing import Any

import pytest
import re2
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from guardrails.patterns import MAX_HEADS, MAX_WIDTH, PatternError, analyse, analyse_rule, expand

UNBOUNDED = "may match over 240 characters: repeat with bounds ({n,m})"
LOOK_AROUND = "look-around is not linear: use unless_before or unless_after"
BACK_REFERENCE = "back-references are not linear"
ANCHOR = r"anchors (^, $, \A, \Z, \B) are not for a stream"
FLAGS = "flags are not for a pattern to set; there is case_sensitive"
NO_CHARACTER = "a set of characters that matches none"
NOT_ALNUM = "must begin with a letter or a digit"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("ab*", UNBOUNDED),
        ("ab+", UNBOUNDED),
        ("ab{3,}", UNBOUNDED),
        ("a(?:b.*?)c", UNBOUNDED),
        ("a" * 241, UNBOUNDED),
        ("a{241}", UNBOUNDED),
        ("(?:ab?){121}", UNBOUNDED),
        ("a(?=b)", LOOK_AROUND),
        ("a(?!b)", LOOK_AROUND),
        ("(?<=a)b", LOOK_AROUND),
        ("(?<!a)b", LOOK_AROUND),
        (r"(a)\1", BACK_REFERENCE),
        ("(?P<x>a)(?P=x)", BACK_REFERENCE),
        ("(a)(?(1)b|c)", BACK_REFERENCE),
        ("^a", ANCHOR),
        ("a$", ANCHOR),
        (r"\Aa", ANCHOR),
        (r"a\Z", ANCHOR),
        (r"a\Bb", ANCHOR),
        ("(?i)a", FLAGS),
        ("(?x)a b", FLAGS),
        ("(?a)a", FLAGS),
        ("a(?i:b)", FLAGS),
        ("a(?-i:b)", FLAGS),
        ("(?>a)", "atomic_group is not supported"),
        ("a?+", "possessive_repeat is not supported"),
        ("é", "patterns are ASCII: text is folded to ASCII before it is matched"),
        (r"\xe9", NO_CHARACTER),
        (r"[^\x00-\x7f]", NO_CHARACTER),
        ("(a", "not a regular expression: missing ), unterminated subpattern at position 0"),
        ("a{99999999999}", "not a regular expression: the repetition number is too large"),
        ("(" * 5000 + "a" + ")" * 5000, "nested too deeply"),
    ],
)
def test_refused(pattern: str, message: str) -> None:
    with pytest.raises(PatternError) as error:
        analyse(pattern)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("", "matches the empty text"),
        ("a?", "matches the empty text"),
        ("(?:ab|)", "matches the empty text"),
        ("a{0}", "matches the empty text"),
        (r"\b", "matches the empty text"),
        (" a", NOT_ALNUM),
        ("-a", NOT_ALNUM),
        ("a? b", NOT_ALNUM),
        ("[a-z-]b", NOT_ALNUM),
        ("(?:a|#)b", NOT_ALNUM),
        (r"\wa", NOT_ALNUM),
        (".", NOT_ALNUM),
        ("[^a]", NOT_ALNUM),
        (r"\Da", NOT_ALNUM),
        ("ab*", UNBOUNDED),
    ],
)
def test_refused_of_a_rule(pattern: str, message: str) -> None:
    with pytest.raises(PatternError) as error:
        analyse_rule(pattern)
    assert str(error.value) == message


def test_what_only_a_rule_is_refused_may_stand_around_a_match() -> None:
    assert analyse(" ?(?:not )?").width == 5


LEXICONS = {
    "drug": ("heparin", "{class}s?"),
    "class": ("statin", "beta[- ]blocker"),
    "egg": ("{hen}",),
    "hen": ("{egg}",),
}


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("start", "start"),
        (r"\d{1,3}", r"\d{1,3}"),
        ("{class}", "(?:statin|beta[- ]blocker)"),
        ("start {drug}", "start (?:heparin|(?:statin|beta[- ]blocker)s?)"),
        ("a {gap}b", "a (?:[^ .!?;]{1,24} ){0,4}b"),
        ("a {gap2}b", "a (?:[^ .!?;]{1,24} ){0,2}b"),
    ],
)
def test_lexicons_stand_for_their_alternatives(pattern: str, expanded: str) -> None:
    assert expand(pattern, LEXICONS) == expanded


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "start {drugs}",
            "there is no lexicon 'drugs'; known: class, drug, egg, gap, gap1, gap2, gap3, hen",
        ),
        ("{egg}", "the lexicon 'egg' contains itself"),
    ],
)
def test_lexicons_refused(pattern: str, message: str) -> None:
    with pytest.raises(PatternError) as error:
        expand(pattern, LEXICONS)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("pattern", "width"),
    [
        ("abc", 3),
        ("ab?c{2,5}", 7),
        ("(?:a|bcd) e", 5),
        (r"\ba\b", 1),
        ("a.{0,239}", MAX_WIDTH),
        ("(?:ab){120}", MAX_WIDTH),
        ("a{0}", 0),
        ("ab{2,3}?", 4),
    ],
)
def test_width_is_of_the_longest_match(pattern: str, width: int) -> None:
    assert analyse(pattern).width == width


@pytest.mark.parametrize(
    ("pattern", "heads"),
    [
        ("Start heparin", "start"),
        ("(?:start|stop) {1,2}x", "start stop"),
        ("(?:give|g?iven?) it", "give given ive iven"),
        ("anti-?viral", "anti antiviral"),
        ("anti[- ]?viral", "anti antiviral"),
        (r"[ab]\d x", " ".join(f"{letter}{digit}" for letter in "ab" for digit in range(10))),
        ("a{1,3}", "a aa aaa"),
        ("a?b", "ab b"),
        ("(?:a|b-)?c", "ac b c"),
        (r"\bstart\b x", "start"),
        ("(?:ab ?){2}", "ab abab"),
        ("(?:a|b|)(?:c|d) ", "ac ad bc bd c d"),
        ("a[^a-z]b", "a " + " ".join(f"a{digit}b" for digit in range(10))),
        ("(a)(?P<name>b)", "ab"),
        ("a{0}b", "b"),
        ("(?:a ){1,100}", "a"),
    ],
)
def test_heads_are_the_first_words_of_a_match(pattern: str, heads: str) -> None:
    assert " ".join(sorted(analyse(pattern).heads or [])).split() == sorted(heads.split())


@pytest.mark.parametrize(
    "pattern", ["[a-z]{3}", "[a-z]{1,20}x?", r"\d{4,6}", "(?:a|[a-z]{5})b", "a?[a-z]{3}"]
)
def test_where_first_words_are_too_many_none_are_listed(pattern: str) -> None:
    assert analyse(pattern).heads is None


def test_as_many_heads_as_may_be() -> None:
    assert analyse(r"[ab]{12}").heads is not None
    assert len(analyse(r"[ab]{12}").heads or ()) == MAX_HEADS
    assert analyse(r"[ab]{13}").heads is None


# --- source and prefix ---------------------------------------------------------------------------

ATOMS = [
    "a",
    "b",
    "B",
    "7",
    " ",
    "-",
    r"\.",
    ".",
    "[ab]",
    "[^a ]",
    r"\d",
    r"\w",
    r"\s",
    r"\S",
    "[A-C]",
]
ALPHABET = "abBC7 -.x"


def repeated(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeats = st.sampled_from(["?", "??", "{2}", "{0,2}", "{1,3}", "{0,2}?", "{0}"])
    return st.tuples(inner, repeats).map(lambda pair: f"(?:{pair[0]}){pair[1]}")


def larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        several.map("".join), several.map(lambda each: f"(?:{'|'.join(each)})"), repeated(inner)
    )


PATTERNS = st.recursive(st.sampled_from(ATOMS), larger, max_leaves=8)


def matcher(pattern: str, *, case_sensitive: bool) -> Any:
    options = re2.Options()
    options.case_sensitive = case_sensitive
    return re2.compile(pattern.encode(), options)


def accepts(compiled: Any, text: str) -> bool:
    return compiled.fullmatch(text.encode()) is not None


@settings(max_examples=300, deadline=None)
@given(pattern=PATTERNS, case_sensitive=st.booleans(), data=st.data())
def test_the_beginnings_of_every_match_are_known(
    pattern: str, case_sensitive: bool, data: st.DataObject
) -> None:
    shape = analyse(pattern, case_sensitive=case_sensitive)
    match = data.draw(st.from_regex(pattern, fullmatch=True, alphabet=ALPHABET))
    if not case_sensitive:
        match = data.draw(st.sampled_from([match, match.upper(), match.lower()]))
    source, prefix = (
        matcher(text, case_sensitive=case_sensitive) for text in (shape.source, shape.prefix)
    )
    assert len(match) <= shape.width
    assert accepts(source, match)
    assert all(accepts(prefix, match[:end]) for end in range(len(match) + 1))


@settings(max_examples=300, deadline=None)
@given(pattern=PATTERNS, case_sensitive=st.booleans(), text=st.text(alphabet=ALPHABET, max_size=8))
def test_what_is_matched_is_what_was_written(pattern: str, case_sensitive: bool, text: str) -> None:
    shape = analyse(pattern, case_sensitive=case_sensitive)
    flags = 0 if case_sensitive else re.IGNORECASE
    assert accepts(matcher(shape.source, case_sensitive=case_sensitive), text) == bool(
        re.fullmatch(pattern, text, flags)
    )


@settings(max_examples=300, deadline=None)
@given(pattern=PATTERNS, data=st.data())
def test_every_match_of_a_rule_begins_with_one_of_its_heads(
    pattern: str, data: st.DataObject
) -> None:
    try:
        shape = analyse_rule(f"b?{pattern}")
    except PatternError:
        assume(False)
    match = data.draw(st.from_regex(f"b?{pattern}", fullmatch=True, alphabet=ALPHABET))
    assert match[:1].isalnum()
    head = re.match("[A-Za-z0-9]+", match)
    assert shape.heads is None or (head and head[0].lower() in shape.heads)
