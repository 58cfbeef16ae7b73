"""Where a draft names findings, as a specification: which places, and what is said there."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.assess import FindingsRail
from guardrails.folding import fold
from guardrails.highlights import Highlight, highlights
from guardrails.policy import Policy, load, parse
from guardrails.templates import AnswerFormat, Status, Template, label

POLICY = load()
PRESENT, ABSENT, INDETERMINATE = Status.PRESENT, Status.ABSENT, Status.INDETERMINATE


def marked(text: str, policy: Policy = POLICY) -> list[str]:
    return [f"{text[h.start : h.end]}={h.finding} {h.status}" for h in highlights(policy, text)]


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ("", []),
        ("The lungs are clear.", []),
        ("A mass.", ["mass=mass present"]),
        (
            "No pneumothorax. A pleural  effusion cannot be excluded; large Mass.",
            [
                "pneumothorax=pneumothorax absent",
                "pleural  effusion=pleural_effusion indeterminate",
                "Mass=mass present",
            ],
        ),
        ("History of pneumonia.", ["pneumonia=pneumonia indeterminate"]),
        ("Father had a pneumothorax.", ["pneumothorax=pneumothorax indeterminate"]),
        ("Is there a mass? No mass.", ["mass=mass absent"]),
        ("The heart is enlarged.", ["heart is enlarged=cardiomegaly present"]),
        (
            "likely absent, explanation: pleural effusion is seen",
            ["pleural effusion=pleural_effusion present"],
        ),
        (
            '{"status": "absent", "explanation": "effusion, no mass"}',
            ["effusion=pleural_effusion present", "mass=mass absent"],
        ),
        (
            '{"findings": "No effusion", "impression": "effusion',
            ["effusion=pleural_effusion absent", "effusion=pleural_effusion present"],
        ),
        (
            "Findings: no mass.\nImpression: effusion",
            ["mass=mass absent", "effusion=pleural_effusion present"],
        ),
        ('He wrote "no mass".', ["mass=mass absent"]),
    ],
)
def test_a_draft_is_marked_where_it_names_findings(text: str, places: list[str]) -> None:
    assert marked(text) == places


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("\U0001f600 A mаss.", "mаss"),
        ("No  **pneumo\u00adthorax**!", "pneumo\u00adthorax"),
        ("Ａ ｍａｓｓ", "ｍａｓｓ"),
        ("pleural\u00a0\u200b \n eﬀusion", "pleural\u00a0\u200b \n eﬀusion"),
        ("A maß.", "maß"),
        ("½ mass", "mass"),
        ("\u200bm\u0301a\u0301s\u0301s\u0301 seen", "m\u0301a\u0301s\u0301s"),
    ],
)
def test_places_are_those_of_the_text_and_not_of_what_rules_see(text: str, place: str) -> None:
    (found,) = highlights(POLICY, text)
    assert text[found.start : found.end] == place


def test_label_and_escalation_line_name_no_finding() -> None:
    text = "A mass."
    labelled = text + label(AnswerFormat.TEXT, POLICY.file.label, urgent=True)
    assert highlights(POLICY, labelled) == highlights(POLICY, text)
    assert highlights(POLICY, text) == (Highlight(2, 6, "finding", "mass", PRESENT),)


# --- properties ----------------------------------------------------------------------------------

TERMS = {
    "effusion": ("pleural effusion", "effusion"),
    "mass": ("mass",),
    "air": ("free air",),
}


@cache
def plain_policy() -> Policy:
    """A policy whose terms are words and nothing else, so that a slice is compared as it is."""
    listed = "".join(
        f"  - {{name: {name}, terms: [{', '.join(terms)}]}}\n" for name, terms in TERMS.items()
    )
    cues = "assertion: {cues: [{status: absent, direction: forward, phrases: ['no']}]}\n"
    return parse(
        f"name: plain\nversion: 1\npreamble: x\nlabel: y\nfindings:\n{listed}{cues}", source="p"
    )


def disguised(term: str) -> st.SearchStrategy[str]:
    """A term with letters of other alphabets, and with signs in it that nobody sees."""
    shapes = {
        "a": "aаａá",
        "e": "eеｅé",
        "s": "sѕｓ𝐬",
        "f": "fｆ𝒇",
        "m": "mｍ",
        # A line break is missing: before markup it begins a bullet, hence another sentence.
        " ": [" ", "\u00a0", "  ", "\t", " \u200b "],
    }
    hidden = st.sampled_from(["", "", "", "\u200b", "\u00ad", "*", "\u0301"])
    pieces = [st.sampled_from(list(shapes.get(letter, letter))) for letter in term]
    inner = [part for piece in pieces for part in (piece, hidden)]
    return st.tuples(*inner).map("".join)


FILLERS = (" ", ". ", "; ", "\n- ", ", ", " and ", "? ", " no ", " heart ", "½ ", "漢", '"', "😀")
FILLERS += ("**", "\u200b", "explanation: ", "likely absent, explanation: ", '{"a": "', "Is there ")
DRAFTS = st.lists(
    st.sampled_from(FILLERS) | st.sampled_from(sorted(sum(TERMS.values(), ()))).flatmap(disguised),
    max_size=16,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(DRAFTS)
def test_every_place_folds_to_a_term_of_its_finding_and_they_stand_in_order(draft: str) -> None:
    found = highlights(plain_policy(), draft)
    for one in found:
        assert fold(draft[one.start : one.end]) in TERMS[one.finding]
        assert one.kind == "finding"
    edges = [edge for one in found for edge in (one.start, one.end)]
    assert all(0 <= edge <= len(draft) for edge in edges)
    assert all(one.start < one.end for one in found)
    assert all(before.end <= after.start for before, after in pairwise(found))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(sorted(sum(TERMS.values(), ()))).flatmap(disguised), max_size=8))
def test_no_disguise_hides_a_finding(terms: list[str]) -> None:
    found = highlights(plain_policy(), "; ".join(terms))
    assert [fold(term).strip() for term in terms] == [
        fold("; ".join(terms)[one.start : one.end]) for one in found
    ]


@settings(max_examples=200, deadline=None)
@given(DRAFTS)
def test_what_is_marked_is_what_the_record_says(draft: str) -> None:
    free = {"template": Template.FREE, "answer_format": AnswerFormat.TEXT}
    policy = plain_policy()
    # Quotes end a sentence of JSON only, and the head of a finding answer is no sentence.
    draft = re.sub(r'["{]|explanation:', "", draft)
    rail = FindingsRail(policy, **free, question="")
    rail.push(draft)
    rail.finish()
    said: dict[str, set[Status]] = {}
    for one in highlights(policy, draft):
        said.setdefault(one.finding, set()).add(one.status)
    expected = {name: PRESENT if PRESENT in statuses else ABSENT for name, statuses in said.items()}
    assert {one.finding: one.status for one in rail.findings(None)} == expected


@settings(deadline=None)
@given(st.text())
def test_any_text_can_be_marked(text: str) -> None:
    for one in highlights(POLICY, text):
        assert 0 <= one.start < one.end <= len(text)
