"""Rules as a specification: where they fire, what excuses a match, and what is looked up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from guardrails.folding import fold
from guardrails.patterns import PatternError
from guardrails.rules import HOLDING, MAX_WORD, Action, Rule, RuleSet, compile_pattern
from guardrails.stream import StreamGuard


def rule(*patterns: str, **fields: Any) -> Rule:
    return Rule("r", Action.FLAG, patterns, **fields)


def fires(watching: Rule, text: str) -> list[str]:
    """What a rule matches in the shadow of a text, the same whole and letter by letter."""
    found = []
    for chunks in ([text], list(text)):
        guard = StreamGuard(RuleSet([watching]))
        assert "".join([*map(guard.push, chunks), guard.finish()]) == text
        found.append([fold(text)[hit.start : hit.end] for hit in guard.hits])
    assert found[0] == found[1]
    return found[0]


@pytest.mark.parametrize(
    ("pattern", "text", "matches"),
    [
        ("start", "Start, restart, START.", ["Start", "START"]),
        ("start", "starts upstart start1", []),
        ("start", "start's start-up", ["start", "start"]),
        ("start", "*start*_up_ *start*", ["start"]),
        ("start heparin", "start heparin", ["start heparin"]),
        ("a b|a b c", "a b c", ["a b c"]),
        ("a(?: b){0,3}", "a b b c a", ["a b b", "a"]),
        (r"\d{2} ?mg", "12mg 112 mg 12 mgs", ["12mg"]),
        ("a b", "a a b b", ["a b"]),
        ("a (?:b )?a", "a b a b a", ["a b a", "a b a"]),
    ],
)
def test_matches_are_longest_and_of_whole_words(
    pattern: str, text: str, matches: list[str]
) -> None:
    assert fires(rule(pattern), text) == matches


NO = {"unless_before": ("no ", "without (?:[a-z]{1,9} ){0,2}")}
LATER = {"unless_after": (" (?:is|was) (?:not )?given", ", declined")}
WITHIN = {"unless_within": ("in situ", "old")}


@pytest.mark.parametrize(
    ("exceptions", "text", "matches"),
    [
        ({}, "no chest tube", ["chest tube"]),
        (NO, "chest tube", ["chest tube"]),
        (NO, "no chest tube", []),
        (NO, "No chest tube", []),
        (NO, "piano chest tube", ["chest tube"]),
        (NO, "no, chest tube", ["chest tube"]),
        (NO, "no chest tube chest tube", ["chest tube"]),
        (NO, "without any more chest tube", []),
        (NO, "without any more of a chest tube", ["chest tube"]),
        (LATER, "chest tube", ["chest tube"]),
        (LATER, "chest tube is", ["chest tube"]),
        (LATER, "chest tube is given", []),
        (LATER, "chest tube was not given.", []),
        (LATER, "chest tube is givens", ["chest tube"]),
        (LATER, "chest tube, declined", []),
        (LATER, "chest tube. It is given", ["chest tube"]),
        (WITHIN, "chest old tube", []),
        (WITHIN, "chest in situ tube", []),
        (WITHIN, "chest gold tube", ["chest gold tube"]),
        (WITHIN, "old chest tube old", ["chest tube"]),
        (NO | LATER | WITHIN, "a chest new tube is here", ["chest new tube"]),
        (NO | LATER | WITHIN, "no chest tube, chest old tube, chest tube, declined", []),
    ],
)
def test_exceptions_excuse_a_match(
    exceptions: dict[str, Any], text: str, matches: list[str]
) -> None:
    assert fires(rule("chest (?:[a-z]{1,6} ){0,2}tube", **exceptions), text) == matches


def test_an_exception_reaches_back_over_long_texts() -> None:
    words = "heart " * 1000
    watching = rule("tube", unless_before=("no (?:[a-z]{1,5} ){0,8}",))
    assert fires(watching, f"{words}no {'chest ' * 8}tube {words}tube") == ["tube"]


def test_nothing_is_forgotten_that_an_exception_may_still_look_at() -> None:
    before, after = ("no (?:x ){0,110}",), ("(?: c){1,118} d",)
    watching = rule("a(?: b){1,115}", unless_before=before, unless_after=after)
    match, undecided = "a" + " b" * 115, " c" * 118
    assert fires(watching, f"{'x ' * 300}{match}{undecided} e") == [match]
    assert fires(watching, f"{'x ' * 300}{match}{undecided} d") == []
    assert fires(watching, f"{'x ' * 200}no {'x ' * 100}{match}{undecided} e") == []


@pytest.mark.parametrize(
    ("text", "matches"),
    [("Mr Marsh", ["Mr Marsh"]), ("MR marsh", []), ("mr Marsh", []), ("not Mr Marsh", [])],
)
def test_case_matters_where_a_rule_says_so(text: str, matches: list[str]) -> None:
    watching = rule("Mr [A-Z][a-z]{1,9}", case_sensitive=True, unless_before=("not ",))
    assert fires(watching, text) == matches


# --- what is looked up at a word -----------------------------------------------------------------


def beginning(rules: RuleSet, text: str) -> list[str]:
    word = text.rstrip(" .,@")
    return [pattern.rule.id for pattern in rules.beginning(word.encode(), text.encode())]


def test_only_rules_that_can_begin_with_a_word_are_looked_at() -> None:
    rules = RuleSet(
        [
            Rule("start", Action.BLOCK, ("(?:start|begin) x",)),
            Rule("stop", Action.FLAG, ("(?:stop|begin)", "begin-y")),
            Rule("mail", Action.REDACT, ("[a-z]{1,9}@[a-z]{1,9}",)),
            Rule("id", Action.REDACT, (r"\d{4}",)),
        ]
    )
    assert beginning(rules, "start ") == ["start"]
    assert beginning(rules, "BEGIN ") == ["start", "stop", "stop"]
    assert beginning(rules, "heart ") == []
    assert beginning(rules, "heart@") == ["mail"]
    assert beginning(rules, "heart") == ["mail"]  # the text may end here, or go on
    assert beginning(rules, "1234 ") == ["id"]
    assert beginning(rules, "12 ") == []
    assert beginning(rules, "heart@") == ["mail"]  # as remembered


def test_without_rules_nothing_is_looked_at() -> None:
    rules = RuleSet([])
    assert (rules.width, rules.context, beginning(rules, "start ")) == (0, 1, [])


def test_a_rule_set_knows_how_far_its_rules_look() -> None:
    rules = RuleSet([rule("ab", unless_before=("no ",), unless_after=(" not",)), rule("a{5}")])
    assert (rules.width, rules.context) == (2 + 4, 3 + 1)


def test_words_are_looked_up_even_when_no_more_are_remembered() -> None:
    rules = RuleSet([rule("[a-z]{3}1[0-9]{0,9}")])
    for number in range(20_100):
        rules.beginning(b"x", b"x%d " % number)
    assert [beginning(rules, text) for text in ("abc1 ", "abc2 ")] == [["r"], []]
    assert len(rules._known) == 20_000


@pytest.mark.parametrize("length", [1, MAX_WORD - 1, MAX_WORD, MAX_WORD + 1, 100, 200])
def test_words_may_be_long(length: int) -> None:
    assert fires(rule("[a-z]{1,200} stop"), f"{'x' * length} stop") == [f"{'x' * length} stop"]
    assert fires(rule("x{1,9} stop"), f"{'x' * length} stop") == ["x stop"] * (length == 1)
    assert fires(rule("stop"), f"{'x' * length}stop stop") == ["stop"]


def test_a_word_of_which_the_first_part_is_a_rule_of_its_own_is_not_that_word() -> None:
    word = "x" * MAX_WORD
    assert fires(rule(word), f"{word} {word}x {word}") == [word, word]


# --- compiled ------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", list(Action))
def test_text_is_held_for_rules_that_keep_it_from_leaving(action: Action) -> None:
    (pattern,) = RuleSet([replace(rule("stop"), action=action)]).beginning(b"stop", b"stop ")
    assert pattern.holds is (action in HOLDING) is (action in {"block", "redact"})


def test_a_pattern_goes_on_while_text_may_become_a_match_or_an_excuse() -> None:
    automaton = compile_pattern("chest tube", (), (" is not",))
    for text, goes_on in {
        b"c": True,
        b"chest t": True,
        b"chest tube": True,
        b"chest tube is": True,
        b"chest tube is not": True,
        b"chest tube is not ": False,
        b"chest tube,": False,
        b"chest x": False,
    }.items():
        assert automaton.goes_on(b"no " + text, 3) is goes_on


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (rule("fine", "a*"), "rule r: may match over 240 characters: repeat with bounds ({n,m})"),
        (rule("-a"), "rule r: must begin with a letter or a digit"),
        (
            rule("a", unless_before=("^",)),
            r"rule r: anchors (^, $, \A, \Z, \B) are not for a stream",
        ),
        (
            rule("a", unless_after=("(?=b)",)),
            "rule r: look-around is not linear: use unless_before",
        ),
        (rule("a", unless_within=("(?i)b",)), "rule r: flags are not for a pattern to set"),
        (rule(r"a(?:\b){0,2000}"), "rule r: may match over 240 characters"),
    ],
)
def test_a_faulty_pattern_is_refused_by_the_name_of_its_rule(faulty: Rule, message: str) -> None:
    with pytest.raises(PatternError) as error:
        RuleSet([faulty])
    assert str(error.value).startswith(message)
