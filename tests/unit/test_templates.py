"""Uncertainty templates."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrails import templates
from guardrails.templates import AnswerFormat, Finding, Status, Template

CLOSED = [
    "Is there evidence of pneumothorax?",
    "is there a pleural effusion ?",
    "Are the lungs clear?",
    "Does the image show consolidation?",
    "Do you see nothing else?\nHas the heart enlarged?",
    "In the left lung, is there an opacity?",
    "Frontal radiograph. Is the effusion present or absent?",
    "And is there cardiomegaly?",
    "Do you see a mass?",
    "Can you see a mass?",
]
OPEN = [
    "Describe the key findings.",
    "What is the modality?",
    "Is this CT or MRI?",
    "Can you describe the image?",
    "Is there an effusion? Describe it.",
    "Where is the consolidation?",
    "",
    "This is a radiograph.",
]


@pytest.mark.parametrize("question", CLOSED)
def test_a_question_for_yes_or_no_is_closed(question: str) -> None:
    assert templates.is_closed_question(question)


@pytest.mark.parametrize("question", OPEN)
def test_any_other_text_is_open(question: str) -> None:
    assert not templates.is_closed_question(question)


def _grammar_accepts(text: str, answer_format: AnswerFormat) -> bool:
    return re.fullmatch(templates.GRAMMAR[answer_format], text) is not None


explanations = st.from_regex(r"\A[a-z0-9(][A-Za-z0-9 ,.()%-]{2,100}\Z")


@given(st.sampled_from(Status), explanations)
def test_what_the_text_grammar_allows_parses_back(status: Status, explanation: str) -> None:
    phrase = {"present": "likely present", "absent": "likely absent"}.get(status, status)
    text = f" {phrase}, explanation: {explanation}"
    assert _grammar_accepts(text, AnswerFormat.TEXT)
    assert templates.parse_finding(text, AnswerFormat.TEXT) == Finding(status, explanation.strip())


@given(st.sampled_from(Status), explanations)
def test_what_the_json_grammar_allows_is_json_and_parses_back(
    status: Status, explanation: str
) -> None:
    text = json.dumps({"status": status, "explanation": explanation})
    assert _grammar_accepts(text, AnswerFormat.JSON)
    assert templates.parse_finding(text, AnswerFormat.JSON) == Finding(status, explanation)


@given(st.from_regex(templates.GRAMMAR[AnswerFormat.JSON], fullmatch=True))
def test_every_json_answer_of_the_grammar_is_valid_json(text: str) -> None:
    assert set(json.loads(text)) == {"status", "explanation"}


@pytest.mark.parametrize(
    "text",
    [
        "likely present, explanation: ",
        "present, explanation: a rim",
        "likely present",
        "maybe",
        "likely present, explanation: a\nb",
        "likely present, explanation: " + "x" * 241,
        'likely present, explanation: says "no"',
    ],
)
def test_the_text_grammar_refuses_what_is_not_the_form(text: str) -> None:
    assert not _grammar_accepts(text, AnswerFormat.TEXT)


@given(st.text(), st.sampled_from(AnswerFormat))
def test_any_text_parses_to_one_of_three_states_and_only_full_words_count(
    text: str, answer_format: AnswerFormat
) -> None:
    finding = templates.parse_finding(text, answer_format)
    if finding.status is not Status.INDETERMINATE:
        assert str(finding.status) in text


@given(st.integers(min_value=0, max_value=60), st.sampled_from(AnswerFormat))
def test_an_answer_cut_off_is_indeterminate_until_its_status_is_whole(
    length: int, answer_format: AnswerFormat
) -> None:
    whole = {
        AnswerFormat.TEXT: "likely present, explanation: a dark rim on the left.",
        AnswerFormat.JSON: '{"status": "present", "explanation": "a dark rim on the left."}',
    }[answer_format]
    status = {AnswerFormat.TEXT: "likely present", AnswerFormat.JSON: '{"status": "present"'}
    finding = templates.parse_finding(whole[:length], answer_format)
    complete = length >= len(status[answer_format])
    assert finding.status is (Status.PRESENT if complete else Status.INDETERMINATE)


def test_the_instruction_follows_the_question_only_for_a_finding() -> None:
    question = "Is there an effusion?"
    assert templates.question_prompt(question, Template.FREE, AnswerFormat.TEXT) == question
    asked = templates.question_prompt(question, Template.FINDING, AnswerFormat.TEXT)
    assert asked == f"{question}\n{templates.FINDING_INSTRUCTION}"


def test_a_text_answer_ends_with_the_draft_label_and_json_stays_json() -> None:
    assert templates.label(AnswerFormat.TEXT).endswith(templates.DRAFT_LABEL)
    assert templates.label(AnswerFormat.JSON) == ""


@given(st.from_regex(r"\A[A-Za-z][A-Za-z .]{0,40}[a-z.]\Z"))
def test_history_loses_the_label_that_we_added(answer: str) -> None:
    assert templates.without_label(answer + templates.label(AnswerFormat.TEXT)) == answer
    assert templates.without_label(answer) == answer
