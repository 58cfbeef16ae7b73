"""What an answer says of findings, as a specification: over-calls, contradictions, urgent ones."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrails.assess import (
    MAX_SENTENCE,
    FindingsRail,
    mentions,
    spoken_of,
    statements,
    status_of,
)
from guardrails.findings import Assertion
from guardrails.policy import Policy, parse, read
from guardrails.templates import AnswerFormat, Finding, Status, Template, parse_finding

OVERCALL = ["flag", "redact", "block"]
FREE, FINDING = Template.FREE, Template.FINDING
TEXT, JSON = AnswerFormat.TEXT, AnswerFormat.JSON
Result = tuple[str, bool, list[str]]


@cache
def policy(overcall: str = "flag", old: str = "", new: str = "") -> Policy:
    """The policy that ships without its rules, with another action."""
    text = read()
    text = text[: text.index("\nrules:")] + text[text.index("\nfindings:") :]
    return parse(text.replace("overcall: flag ", f"overcall: {overcall} ").replace(old, new))


def assessed(
    rules: Policy,
    question: str,
    chunks: list[str],
    template: Template = FREE,
    answer_format: AnswerFormat = TEXT,
) -> Result:
    rail = FindingsRail(rules, template=template, answer_format=answer_format, question=question)
    text = "".join([*map(rail.push, chunks), rail.finish()])
    finding: Finding | None = None
    if template is FINDING:
        finding = parse_finding("".join(chunks), answer_format)
    verdicts = rail.verdicts(finding)
    return text, rail.blocked, [f"{each.rule} {each.action} {each.finding}" for each in verdicts]


# --- over-calls ----------------------------------------------------------------------------------

ANSWER = "No pneumothorax. There is a pleural effusion. Heart normal."


@pytest.mark.parametrize(
    ("overcall", "text"),
    [
        ("flag", ANSWER),
        ("redact", "No pneumothorax. [redacted] Heart normal."),
        ("block", "No pneumothorax. "),
    ],
)
def test_a_finding_that_nobody_asked_about_is(overcall: str, text: str) -> None:
    said = assessed(policy(overcall), "Is there a pneumothorax?", [ANSWER])
    assert said == (text, overcall == "block", [f"overcall {overcall} pleural_effusion"])


def test_a_policy_may_let_it_pass() -> None:
    said = assessed(policy("null"), "Is there a pneumothorax?", [ANSWER])
    assert said == (ANSWER, False, [])


@pytest.mark.parametrize(
    ("question", "answer", "overcalled"),
    [
        ("Is there a pneumothorax?", "There is a pneumothorax.", ""),
        ("Is there a pneumothorax?", "No pleural effusion.", ""),
        ("Is there a pneumothorax?", "A pleural effusion cannot be excluded.", "pleural_effusion"),
        ("Is there a pneumothorax?", "History of pneumonia.", ""),
        ("Is there a pneumothorax?", "Cardiomegaly; a rib fracture.", "cardiomegaly fracture"),
        ("Effusion or cardiomegaly?", "Cardiomegaly with an effusion.", ""),
        ("Is there a pneumothorax?", "A tension pneumothorax.", ""),
        ("Is there a tension pneumothorax?", "A small pneumothorax.", ""),
        ("Describe the image.", "There is a pleural effusion.", ""),
        ("", "There is a pleural effusion.", ""),
    ],
)
@pytest.mark.parametrize("overcall", OVERCALL)
def test_over_calls(question: str, answer: str, overcalled: str, overcall: str) -> None:
    text, blocked, verdicts = assessed(policy(overcall), question, [answer])
    names = [said.split()[2] for said in verdicts if said.startswith("overcall")]
    assert names == (overcalled.split()[:1] if overcall == "block" else overcalled.split())
    assert blocked is bool(overcalled and overcall == "block")
    assert (text == answer) is (overcall == "flag" or not overcalled)


@pytest.mark.parametrize(
    ("template", "answer_format", "answer", "redacted"),
    [
        (FREE, TEXT, "There is an effusion.", "There is an effusion."),
        (
            FINDING,
            TEXT,
            "likely present, explanation: a mass is seen. Yes.",
            "likely present, explanation: [redacted] Yes.",
        ),
        (
            FINDING,
            JSON,
            '{"status": "present", "explanation": "A mass. Lungs clear. An effusion"}',
            '{"status": "present", "explanation": "[redacted] Lungs clear. [redacted]"}',
        ),
        (
            FINDING,
            TEXT,
            "likely absent, explanation: No. Is there a mass? No.",
            "likely absent, explanation: No. Is there a mass? No.",
        ),
        (FINDING, TEXT, "likely present pleural effusion", "likely present pleural effusion"),
    ],
)
def test_a_finding_answer_is_judged_though_its_question_names_none(
    template: Template, answer_format: AnswerFormat, answer: str, redacted: str
) -> None:
    for chunks in ([answer], list(answer)):
        said = assessed(policy("redact"), "Is it there?", chunks, template, answer_format)
        assert said[0] == redacted


def test_a_section_keeps_its_lead() -> None:
    answer = "Findings: A mass.\nImpression: An effusion. Clear lungs."
    redacted = "Findings: [redacted]\nImpression: [redacted] Clear lungs."
    for chunks in ([answer], list(answer)):
        said = assessed(policy("redact"), "Pneumothorax?", chunks, Template.REPORT)
        assert said[0] == redacted


def test_what_is_spoken_of_with_a_finding() -> None:
    rules = policy()
    assert spoken_of(rules, ["tension_pneumothorax"]) == {"tension_pneumothorax", "pneumothorax"}
    circle = policy(
        "flag",
        "  - name: pneumothorax\n",
        "  - name: pneumothorax\n    implies: [tension_pneumothorax]\n",
    )
    assert spoken_of(circle, ["pneumothorax"]) == {"tension_pneumothorax", "pneumothorax"}
    assert spoken_of(rules, []) == frozenset()
    said = [mention.finding for mention in mentions(rules, "No ｅffusion. PE. Mass; PE")]
    assert said == ["pleural_effusion", "pulmonary_embolism", "mass", "pulmonary_embolism"]


# --- urgent --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "urgent"),
    [
        ("A tension pneumothorax is present.", "tension_pneumothorax"),
        ("Pulmonary embolism cannot be excluded.", "pulmonary_embolism"),
        ("Free air. Aortic dissection. Free air.", "aortic_dissection pneumoperitoneum"),
        ("Ａоrtic disseсtion", "aortic_dissection"),
        ("No evidence of aortic dissection.", ""),
        ("History of pulmonary embolism.", ""),
        ("A small effusion.", ""),
    ],
)
def test_urgent_findings_that_are_not_denied_escalate(answer: str, urgent: str) -> None:
    said = assessed(policy(), "Describe the image.", [answer])
    assert said == (answer, False, [f"urgent_finding escalate {name}" for name in urgent.split()])


ASKED = "Is there a tension pneumothorax?"


@pytest.mark.parametrize(
    ("question", "answer", "escalates"),
    [
        (ASKED, "likely present, explanation: the left lung is dark.", True),
        (ASKED, "indeterminate, explanation: the film is rotated.", True),
        (ASKED, "likely pres", True),
        (ASKED, "likely absent, explanation: the lungs are clear.", False),
        ("Is there a fracture?", "likely present, explanation: a lucent line.", False),
        ("Is it bad?", "likely present, explanation: yes.", False),
    ],
)
def test_urgent_findings_that_were_asked_about_escalate_by_status(
    question: str, answer: str, escalates: bool
) -> None:
    said = assessed(policy(), question, [answer], FINDING)[2]
    assert said == ["urgent_finding escalate tension_pneumothorax"] * escalates
    status = {"p": "present", "a": "absent", "i": "indeterminate"}[
        answer.removeprefix("likely ")[0]
    ]
    as_json = f'{{"status": "{status}", "explanation": "Rotated"}}'
    assert assessed(policy(), question, [as_json], FINDING, JSON)[2] == said


@pytest.mark.parametrize(
    ("old", "new", "verdicts"),
    [
        ("urgent: escalate", "urgent: flag", ["urgent_finding flag tension_pneumothorax"]),
        ("urgent: escalate", "urgent: null", []),
    ],
)
def test_a_policy_says_what_urgent_findings_do(old: str, new: str, verdicts: list[str]) -> None:
    answer = "likely present, explanation: a tension pneumothorax."
    assert assessed(policy("flag", old, new), ASKED, [answer], FINDING)[2] == verdicts


# --- contradictions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "explanation", "contradicts"),
    [
        (Status.ABSENT, "There is a pleural effusion.", True),
        (Status.ABSENT, "No effusion on the left. Small effusion on the right.", True),
        (Status.ABSENT, "An effusion cannot be excluded.", False),
        (Status.ABSENT, "No pleural effusion.", False),
        (Status.ABSENT, "Clear.", False),
        (Status.PRESENT, "No pleural effusion is seen.", True),
        (Status.PRESENT, "No effusion on the left. Small effusion on the right.", False),
        (Status.PRESENT, "Blunted angles.", False),
        (Status.PRESENT, "No pneumothorax.", False),
        (Status.INDETERMINATE, "No pleural effusion.", False),
        (Status.INDETERMINATE, "There is a pleural effusion.", False),
    ],
)
def test_an_explanation_may_contradict_its_answer(
    status: Status, explanation: str, contradicts: bool
) -> None:
    phrase = status if status is Status.INDETERMINATE else f"likely {status}"
    text = f"{phrase}, explanation: {explanation}"
    as_json = f'{{"status": "{status}", "explanation": "{explanation}"}}'
    verdicts = ["inconsistent_finding flag pleural_effusion"] * contradicts
    question = "Is there a pleural effusion?"
    assert assessed(policy(), question, [text], FINDING) == (text, False, verdicts)
    assert assessed(policy(), question, [as_json], FINDING, JSON) == (as_json, False, verdicts)
    silent = policy("flag", "inconsistent: flag", "inconsistent: null")
    assert assessed(silent, question, [text], FINDING)[2] == []


# --- statuses of a whole answer ------------------------------------------------------------------


def named(
    question: str,
    chunks: list[str],
    template: Template = FREE,
    answer_format: AnswerFormat = TEXT,
    *,
    rules: Policy | None = None,
    earlier: str = "",
) -> list[str]:
    rail = FindingsRail(
        rules or policy(),
        template=template,
        answer_format=answer_format,
        question=question,
        earlier=earlier,
    )
    left = "".join([*map(rail.push, chunks), rail.finish()])
    findings = rail.findings(parse_finding(left, answer_format) if template is FINDING else None)
    assert list(findings) == sorted(set(findings))
    return [f"{one.finding} {one.status}" for one in findings]


@pytest.mark.parametrize(
    ("question", "answer", "findings"),
    [
        ("Describe the image.", "The lungs are clear.", []),
        (
            "Describe the image.",
            "A mass. No effusion.",
            ["mass present", "pleural_effusion absent"],
        ),
        ("Describe the image.", "No mass on the left. A mass on the right.", ["mass present"]),
        ("Describe the image.", "No mass. A mass cannot be excluded.", ["mass indeterminate"]),
        ("Describe the image.", "Possible mass. A mass.", ["mass present"]),
        ("Describe the image.", "A mass. A mass.", ["mass present"]),
        ("Describe the image.", "History of pneumonia.", ["pneumonia indeterminate"]),
        ("Describe the image.", "No pneumonia. History of pneumonia.", ["pneumonia absent"]),
        ("Describe the image.", "Is there a mass?", []),
        ("Mass or effusion?", "A mass.", ["mass present", "pleural_effusion indeterminate"]),
        ("Is there a pneumothorax?", "", ["pneumothorax indeterminate"]),
        ("Is there a pneumothorax?", "I cannot help with that.", ["pneumothorax indeterminate"]),
        # A finding speaks of the one that it implies only where it is there.
        (
            "Is there a pneumothorax?",
            "A tension pneumothorax is seen.",
            ["pneumothorax present", "tension_pneumothorax present"],
        ),
        (
            "Is there a pneumothorax?",
            "Possible tension pneumothorax.",
            ["pneumothorax indeterminate", "tension_pneumothorax indeterminate"],
        ),
        (
            "Is there a pneumothorax?",
            "No tension pneumothorax.",
            ["pneumothorax indeterminate", "tension_pneumothorax absent"],
        ),
        ("Describe the image.", "A tension pneumothorax.", ["tension_pneumothorax present"]),
    ],
)
def test_a_whole_answer_says_of_each_finding(
    question: str, answer: str, findings: list[str]
) -> None:
    assert named(question, [answer]) == named(question, list(answer)) == findings


@pytest.mark.parametrize(
    "refusal",
    [
        "I cannot tell whether there is a pneumothorax.",
        "I am unable to say if there is any pneumothorax.",
        "I can't answer questions about pneumothorax.",
        "I cannot assess for pneumothorax.",
        "I am not able to diagnose a pneumothorax.",
        "I cannot provide an opinion on a pneumothorax.",
    ],
)
def test_a_refusal_neither_affirms_nor_denies(refusal: str) -> None:
    for template in (FREE, FINDING):
        said = named("Is there a pneumothorax?", [refusal], template)
        assert said == ["pneumothorax indeterminate"]


@pytest.mark.parametrize(
    ("answer", "findings"),
    [
        ("likely present, explanation: a dark rim", ["pneumothorax present"]),
        ("likely absent, explanation: clear lungs", ["pneumothorax absent"]),
        ("indeterminate, explanation: rotated", ["pneumothorax indeterminate"]),
        # The status decides, whatever the explanation says.
        ("likely absent, explanation: a pneumothorax", ["pneumothorax absent"]),
        ("likely present, explanation: no pneumothorax", ["pneumothorax present"]),
        ("likely absent, explanation: a mass", ["mass present", "pneumothorax absent"]),
        # Cut off, refused, empty.
        ("likely pres", ["pneumothorax indeterminate"]),
        ("A pneumothorax is seen.", ["pneumothorax indeterminate"]),
        ("", ["pneumothorax indeterminate"]),
    ],
)
def test_the_status_decides_for_what_was_asked(answer: str, findings: list[str]) -> None:
    question = "Is there a pneumothorax?"
    assert named(question, [answer], FINDING) == named(question, list(answer), FINDING) == findings


@pytest.mark.parametrize(
    ("answer", "findings"),
    [
        ('{"status": "absent", "explanation": "A mass"}', ["mass present", "pneumothorax absent"]),
        ('{"status": "abs', ["pneumothorax indeterminate"]),
        ('{"status": "absent", "explan', ["pneumothorax absent"]),
    ],
)
def test_the_status_decides_in_json_too(answer: str, findings: list[str]) -> None:
    assert named("Is there a pneumothorax?", [answer], FINDING, JSON) == findings


def test_denying_a_finding_denies_nothing_that_it_implies() -> None:
    answer = "likely absent, explanation: the mediastinum is central"
    assert named(ASKED, [answer], FINDING) == ["tension_pneumothorax absent"]


def test_an_earlier_question_is_not_answered_again() -> None:
    answer, earlier = "likely absent, explanation: sharp angles, mild cardiomegaly", "Cardiomegaly?"
    question = "Is there an effusion?"
    found = ["cardiomegaly present", "pleural_effusion absent"]
    assert named(question, [answer], FINDING, earlier=earlier) == found
    # Nobody is told that what was asked before is an over-call.
    for asked, verdicts in (("Cardiomegaly?", []), ("", ["overcall"])):
        rail = FindingsRail(
            policy(), template=FINDING, answer_format=TEXT, question=question, earlier=asked
        )
        rail.push(answer)
        rail.finish()
        assert [said.rule for said in rail.verdicts(None)] == verdicts


@pytest.mark.parametrize(
    ("overcall", "findings"),
    [
        ("flag", ["mass present", "pleural_effusion present", "pneumothorax absent"]),
        ("redact", ["pneumothorax absent"]),
        ("block", ["pneumothorax absent"]),
    ],
)
def test_what_did_not_leave_is_not_said(overcall: str, findings: list[str]) -> None:
    answer = "No pneumothorax. A mass, no tension pneumothorax. An effusion."
    findings = findings + ["tension_pneumothorax absent"] * (overcall == "flag")
    assert named("Is there a pneumothorax?", [answer], rules=policy(overcall)) == findings


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (set(), "indeterminate"),
        ({Assertion.PRESENT, Assertion.UNCERTAIN, Assertion.ABSENT}, "present"),
        ({Assertion.UNCERTAIN, Assertion.ABSENT}, "indeterminate"),
        ({Assertion.ABSENT}, "absent"),
        ({Assertion.ABSENT, Assertion.HISTORICAL, Assertion.FAMILY}, "absent"),
        ({Assertion.HISTORICAL, Assertion.FAMILY}, "indeterminate"),
    ],
)
def test_only_a_denial_makes_a_finding_absent(said: set[Assertion], status: str) -> None:
    assert status_of(said) == status


def test_statements_are_the_sentences_that_ask_nothing() -> None:
    def stated(text: str) -> list[str]:
        return [text[start:end] for start, end in statements(text)]

    assert stated("A mass. Is there an effusion? No.") == ["A mass.", "No."]
    assert stated("likely absent, explanation: a mass. No.") == ["a mass.", "No."]
    assert stated('{"a": "No mass. A rib", "b": "x"}')[3:5] == ["No mass.", "A rib"]
    assert stated('No "mass" seen') == ['No "mass" seen']


# --- streams -------------------------------------------------------------------------------------


def test_a_sentence_is_held_only_where_it_may_be_kept_from_leaving() -> None:
    chunks = ["No pneumothorax", ". An eff", "usion. Heart", " normal"]

    def leaves(overcall: str) -> list[str]:
        rail = FindingsRail(
            policy(overcall), template=FREE, answer_format=TEXT, question="Pneumothorax?"
        )
        return [*map(rail.push, chunks), rail.finish()]

    assert leaves("flag") == [*chunks, ""]
    assert leaves("redact") == ["", "No pneumothorax.", " [redacted]", "", " Heart normal"]
    assert leaves("block") == ["", "No pneumothorax.", " ", "", ""]


WORDS = (
    *("No ", "pleural effusion", "effusion", " and ", "mass", "large pneumothorax", "heart is "),
    *(
        "enlarged",
        ". ",
        "; ",
        "\n",
        "? ",
        "!",
        " ",
        "no. ",
        "4",
        "Dr. ",
        '"',
        "\n\n- ",
        "...",
        ", ",
    ),
    *("explanation:", "likely present", "likely absent, explanation: ", "3.5 cm", "\u00a0", '\\"'),
    *('{"status": "present", "explanation": "', '"}', ".) ", "cannot be excluded", "ｍаss", "A"),
)
ANSWERS = st.lists(st.sampled_from(WORDS), max_size=40).map(
    lambda words: "".join(words)[:MAX_SENTENCE]
)


@settings(max_examples=200, deadline=None)
@given(
    text=ANSWERS,
    overcall=st.sampled_from(OVERCALL),
    question=st.sampled_from(["Is there a pneumothorax?", "Describe the image.", "Effusion?"]),
    template=st.sampled_from([FREE, FINDING]),
    answer_format=st.sampled_from(AnswerFormat),
    data=st.data(),
)
def test_an_answer_is_assessed_the_same_however_it_is_cut(
    text: str,
    overcall: str,
    question: str,
    template: Template,
    answer_format: AnswerFormat,
    data: st.DataObject,
) -> None:
    def said(chunks: list[str]) -> tuple[Result, list[str]]:
        rules = policy(overcall)
        result = assessed(rules, question, chunks, template, answer_format)
        return result, named(question, chunks, template, answer_format, rules=rules)

    edges = [0, *sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8))), len(text)]
    whole = said([text])
    assert said(list(text)) == whole
    assert said([text[start:end] for start, end in pairwise(edges)]) == whole
    if overcall == "flag":
        assert whole[0][:2] == (text, False)
    if overcall == "block":
        assert text.startswith(whole[0][0])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 1350), max_size=8))
def test_a_sentence_without_an_end_is_judged_in_parts(places: list[int]) -> None:
    text = "effusion " * 150
    edges = [0, *sorted(places), len(text)]
    chunks = [text[start:end] for start, end in pairwise(edges)]
    for overcall, released in {"flag": text, "redact": "[redacted] " * 3, "block": ""}.items():
        said = assessed(policy(overcall), "Pneumothorax?", chunks)
        assert said == (released, overcall == "block", [f"overcall {overcall} pleural_effusion"])


def test_of_a_sentence_without_an_end_no_more_is_held_than_a_part() -> None:
    rail = FindingsRail(policy("redact"), template=FREE, answer_format=TEXT, question="PE?")
    released = "".join(rail.push(word) for word in ["heart "] * 500)
    assert len(released) >= 3000 - MAX_SENTENCE - len("heart ")
    assert released + rail.finish() == "heart " * 500


def test_behind_a_block_nothing_leaves_and_nothing_is_judged() -> None:
    rail = FindingsRail(policy("block"), template=FREE, answer_format=TEXT, question="PE?")
    assert rail.push("A mass. Free air. ") == ""
    assert rail.blocked
    assert (rail.push("Clear lungs."), rail.finish()) == ("", "")
    assert [(said.rule, said.finding) for said in rail.verdicts(None)] == [("overcall", "mass")]


@pytest.mark.parametrize("size", [1, 7, 5000])
@pytest.mark.parametrize("overcall", ["flag", "redact", "block"])
def test_a_very_long_sentence_is_cut_between_words_however_it_comes(
    size: int, overcall: str
) -> None:
    text = "a" * 600 + "  " + "b" * 593 + " mass seen"
    chunks = [text[at : at + size] for at in range(0, len(text), size)]
    whole = assessed(policy(overcall), "Pneumothorax?", [text])
    assert assessed(policy(overcall), "Pneumothorax?", chunks) == whole
    assert whole[2] == [f"overcall {overcall} mass"]
