"""The no-leak property of StreamGuard, against a slow and simple oracle on stdlib's re."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guardrails.folding import Folder
from guardrails.rules import MAX_WORD, Action, Rule, RuleSet
from guardrails.stream import StreamGuard

MARK = "[redacted]"


def guarded(rules: RuleSet, chunks: list[str]) -> tuple[str, bool, tuple[tuple[int, str], ...]]:
    guard = StreamGuard(rules, mark=MARK)
    out = "".join([*map(guard.push, chunks), guard.finish()])
    return out, guard.blocked, tuple((hit.start, hit.rule) for hit in guard.hits)


def oracle(rules: list[Rule], text: str) -> tuple[str, bool, tuple[tuple[int, str], ...]]:
    """Every word start, every pattern, every length, with the whole text at hand."""
    folder = Folder()
    shadow = folder.push(text).decode()
    hits = []
    for word in re.finditer(r"(?<![A-Za-z0-9])[A-Za-z0-9]", shadow):
        for rule in rules:
            for pattern in rule.patterns:
                end = _longest(rule, pattern, shadow, word.start())
                if end is not None:
                    hits.append((word.start(), end, rule))
    blocking = [start for start, _, rule in hits if rule.action is Action.BLOCK]
    cut = min(blocking, default=None)
    limit = len(text) if cut is None else folder.origin(cut)
    spans = [
        (folder.origin(start), folder.origin(end - 1) + 1)
        for start, end, rule in sorted(hits, key=lambda hit: hit[:2])
        if rule.action is Action.REDACT and (cut is None or start < cut)
    ]
    out, place = "", 0
    for start, end in spans:
        if start >= place:
            out += text[place:start] + MARK
        place = max(place, end)
    out += text[place:limit]
    fired = sorted(
        {(start, end, rule.id) for start, end, rule in hits if cut is None or start <= cut}
    )
    return out, cut is not None, tuple((start, rule) for start, _, rule in fired)


def _longest(rule: Rule, pattern: str, shadow: str, start: int) -> int | None:
    flags = 0 if rule.case_sensitive else re.IGNORECASE
    whole = re.compile(pattern, flags)
    ends = [
        end
        for end in range(start + 1, len(shadow) + 1)
        if re.compile(r"\b").match(shadow, end) and whole.fullmatch(shadow, start, end)
    ]
    if not ends:
        return None
    before = "|".join(rule.unless_before)
    if before and re.search(rf"\b(?:{before})\Z", shadow[:start], flags):
        return None
    after = "|".join(rule.unless_after)
    if after and re.compile(rf"(?:{after})\b", flags).match(shadow, ends[-1]):
        return None
    return ends[-1]


# Small words and few of them: near-misses, overlaps and matches all come up often.
WORDS = ("start", "st", "art", "a", "b", "no", "drug", "12", "mg", "x1", "Bo")
word = st.sampled_from(WORDS)
separator = st.sampled_from([" ", " ", " ", "-", ". ", ", ", "  ", "\n", "@", "."])
optional_gap = st.sampled_from(["", "", "(?:[^ .]{1,6} ){0,2}", "[a-z ]{0,5}", "(?:a |no ){0,2}"])


@st.composite
def patterns(draw: st.DrawFn) -> str:
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return r"\d{1,3}(?: ?mg)?"
    if kind == 1:
        return r"[a-z0-9]{1,5}(?:\.[a-z]{1,3})?@[a-z]{1,5}"
    if kind == 2:
        return "[A-Z][a-z]{1,3} [A-Z][a-z]{1,3}"
    first = "|".join(draw(st.lists(word, min_size=1, max_size=3)))
    rest = "|".join(draw(st.lists(word, min_size=1, max_size=2)))
    joint = draw(st.sampled_from([" ", "[- ]", ", ?"]))
    return f"(?:{first}){joint}{draw(optional_gap)}(?:{rest}){draw(st.sampled_from(['', 's?']))}"


@st.composite
def rule_lists(draw: st.DrawFn) -> list[Rule]:
    contexts = st.sampled_from([(), (), ("no ",), (r"no (?:[a-z]{1,5} ){0,2}",)])
    afters = st.sampled_from([(), (), (" no",), (r"[ ,]{1,2}(?:a )?no",)])
    return [
        Rule(
            id=f"r{number}",
            action=draw(st.sampled_from(list(Action))),
            patterns=tuple(draw(st.lists(patterns(), min_size=1, max_size=2))),
            unless_before=draw(contexts),
            unless_after=draw(afters),
            case_sensitive=draw(st.sampled_from([False, False, True])),
        )
        for number in range(draw(st.integers(1, 4)))
    ]


DISGUISES = {
    "s": ["S", "ｓ", "s\u00ad", "ѕ"],
    "t": ["T", "ｔ", "t\u0301", "т"],
    "a": ["A", "а", "a\u200b", "ä", "*a"],
    "r": ["R", "r\u0336"],
    "m": ["㎎"],
    "1": ["１", "¹", "½"],
    " ": ["\u00a0", "\n", " \t", "\u2003", " \u200b "],
    "-": ["\u2011", "–"],
}


@st.composite
def texts(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.tuples(word, separator), max_size=14))
    plain = "".join(part for pair in parts for part in pair)
    if draw(st.booleans()):
        return plain
    return "".join(
        draw(st.sampled_from([character, *DISGUISES.get(character, [])])) for character in plain
    )


def cut_at(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(places), len(text)]
    return [text[start:end] for start, end in pairwise(edges)]


@settings(max_examples=600, deadline=None)
@given(rules=rule_lists(), text=texts(), data=st.data())
def test_any_cut_of_any_text_is_guarded_like_the_whole_text_by_the_oracle(
    rules: list[Rule], text: str, data: st.DataObject
) -> None:
    expected = oracle(rules, text)
    compiled = RuleSet(rules)
    assert guarded(compiled, [text]) == expected
    assert guarded(compiled, list(text)) == expected
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=8))
    assert guarded(compiled, cut_at(text, places)) == expected


@settings(max_examples=60, deadline=None)
@given(rules=rule_lists(), parts=st.lists(st.tuples(word, separator), max_size=3))
def test_every_cut_of_a_short_text(rules: list[Rule], parts: list[tuple[str, str]]) -> None:
    text = "".join(part for pair in parts for part in pair)[:9]
    compiled, expected = RuleSet(rules), oracle(rules, text)
    for count in range(len(text)):
        for places in combinations(range(1, len(text)), count):
            assert guarded(compiled, cut_at(text, list(places))) == expected


@settings(max_examples=60, deadline=None)
@given(rules=rule_lists(), parts=st.lists(texts(), min_size=40, max_size=60), data=st.data())
def test_long_texts_with_random_cuts(
    rules: list[Rule], parts: list[str], data: st.DataObject
) -> None:
    text = "".join(parts)
    compiled = RuleSet(rules)
    size = data.draw(st.integers(1, 40))
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    assert guarded(compiled, chunks) == guarded(compiled, [text])


@settings(max_examples=300, deadline=None)
@given(rules=rule_lists(), text=texts())
def test_what_was_released_holds_no_match_of_a_blocking_rule(rules: list[Rule], text: str) -> None:
    blocking = [replace(rule, action=Action.BLOCK) for rule in rules]
    out, _, _ = guarded(RuleSet(blocking), list(text))
    assert text.startswith(out)
    assert oracle(blocking, out)[2] == () or any(rule.unless_after for rule in rules)


@settings(max_examples=200, deadline=None)
@given(rules=rule_lists(), text=texts())
def test_no_more_is_held_than_the_widest_rule_and_a_word(rules: list[Rule], text: str) -> None:
    compiled = RuleSet(rules)
    guard = StreamGuard(compiled)
    dropped = len(text) - len(Folder().push(text))  # characters that no rule sees
    for character in text:
        guard.push(character)
        assert guard.held <= compiled.width + MAX_WORD + max(dropped, 0) + 2


def test_words_without_a_rule_leave_at_once() -> None:
    guard = StreamGuard(RuleSet([Rule("r", Action.BLOCK, ("start heparin",))]))
    assert guard.push("The heart is ") == "The heart is "
    assert guard.push("sta") == ""
    assert guard.push("b") == "stab"  # no match begins with this word
    assert guard.push("le. ") == "le. "
    assert guard.push("Start") == ""
    assert guard.push(" hepa") == ""
    assert guard.push("tic") == "Start hepatic"


def test_a_block_ends_the_text_and_the_rest_is_ignored() -> None:
    guard = StreamGuard(RuleSet([Rule("r", Action.BLOCK, ("start heparin",))]))
    assert guard.push("Clear lungs. Start heparin now") == "Clear lungs. "
    assert guard.blocked
    assert guard.push("and more") == ""
    assert guard.finish() == ""
    with pytest.raises(RuntimeError):
        guard.push("more")
    with pytest.raises(RuntimeError):
        guard.finish()


def test_the_original_characters_leave() -> None:
    guard = StreamGuard(RuleSet([Rule("r", Action.REDACT, (r"mrn \d{3}",))]))
    text = "Ｃｌｅａｒ lüngs,\u00a0MＲN\u200b １２3, ½ \n\n ende\u0301"
    assert (
        guard.push(text) + guard.finish() == "Ｃｌｅａｒ lüngs,\u00a0[redacted], ½ \n\n ende\u0301"
    )


@pytest.mark.parametrize("text", ["a" * 5000, "start " * 900, ". " * 2500, "12 " * 1700])
def test_long_monotonous_texts_come_out_whole(text: str) -> None:
    rules = RuleSet([Rule("r", Action.BLOCK, ("start (?:[^ .]{1,9} ){0,4}drug", r"\d{3} mg"))])
    assert guarded(rules, list(text)) == (text, False, ())


@example("x" * 200 + "@b")
@given(st.text(max_size=80))
def test_any_text_at_all_comes_out_whole_when_no_rule_fires(text: str) -> None:
    rules = RuleSet([Rule("r", Action.BLOCK, ("qqq1 zzz",)), Rule("w", Action.REDACT, ("q@zz9",))])
    assert guarded(rules, list(text))[0] == text or "qqq1" in text or "@" in text
