"""Grammars and parsers of answers: what one allows, the other reads, whole or cut off."""

from __future__ import annotations

import json
import re
from itertools import product

import pytest
import xgrammar
from hypothesis import given
from hypothesis import strategies as st

from guardrails import answers
from guardrails.answers import (
    Answer,
    AnswerFormat,
    Finding,
    Impression,
    Report,
    Status,
    Summary,
    Template,
)

SHAPED = [template for template in Template if template is not Template.FREE]
FORMS = list(product(SHAPED, AnswerFormat))
# Words as the grammars allow them; the end of one section may look like the beginning of a mark.
sections = st.lists(
    st.from_regex(r"""\A[a-zA-Z0-9.,;:(){}%é*'-]{1,12}\Z""")
    | st.sampled_from([",", "{", "}", ":"]),
    min_size=1,
    max_size=30,
).map(" ".join)


def _matches(text: str, template: Template, answer_format: AnswerFormat) -> bool:
    pattern = answers.grammar(template, answer_format)
    return pattern is not None and re.fullmatch(pattern, text) is not None


def _parts(answer: Answer) -> tuple[str, ...]:
    match answer:
        case Finding():
            return str(answer.status), answer.explanation
        case Report():
            return answer.findings, answer.impression
        case _:
            return (answer.text,)


def _written(answer: Answer, answer_format: AnswerFormat) -> str:
    """The answer as a model writes it."""
    if answer_format is AnswerFormat.JSON:
        return json.dumps(
            dict(zip(answers.JSON_FIELDS[_template(answer)], _parts(answer), strict=True)),
            ensure_ascii=False,
        )
    match answer:
        case Finding(status=status):
            phrase = status if status is Status.INDETERMINATE else f"likely {status}"
            return f"{phrase}, explanation: {answer.explanation}"
        case Report():
            return f"Findings: {answer.findings}\nImpression: {answer.impression}"
        case Impression():
            return f"Impression: {answer.text}"
        case Summary():
            return f"Summary: {answer.text}"


def _template(answer: Answer) -> Template:
    return Template(type(answer).__name__.lower())


wholes: st.SearchStrategy[Answer] = st.one_of(
    st.builds(Finding, st.sampled_from(Status), sections, st.just(True)),
    st.builds(Report, sections, sections, st.just(True)),
    st.builds(Impression, sections, st.just(True)),
    st.builds(Summary, sections, st.just(True)),
)


@st.composite
def of_a_grammar(draw: st.DrawFn) -> tuple[str, Template, AnswerFormat]:
    """Any text that a grammar allows, with its template and format."""
    template, answer_format = draw(st.sampled_from(FORMS))
    pattern = answers.grammar(template, answer_format)
    assert pattern is not None
    return draw(st.from_regex(pattern, fullmatch=True)), template, answer_format


# --- round trips -------------------------------------------------------------------------------


@given(wholes, st.sampled_from(AnswerFormat), st.sampled_from(["", " "]))
def test_what_is_written_in_form_parses_back(
    answer: Answer, answer_format: AnswerFormat, space: str
) -> None:
    text = space + _written(answer, answer_format)
    assert _matches(text, _template(answer), answer_format)
    assert answers.parse(text, _template(answer), answer_format) == answer


@given(of_a_grammar())
def test_whatever_a_grammar_allows_parses_as_whole(
    case: tuple[str, Template, AnswerFormat],
) -> None:
    text, template, answer_format = case
    answer = answers.parse(text, template, answer_format)
    assert answer is not None
    assert answer.complete
    assert all(_parts(answer))
    assert _written(answer, answer_format).split() == text.split()
    if answer_format is AnswerFormat.JSON:
        assert tuple(json.loads(text)) == answers.JSON_FIELDS[template]


def test_a_summary_has_lines_but_no_blank_ones() -> None:
    text = "Summary: The heart is large.\nThe lungs are clear."
    assert _matches(text, Template.SUMMARY, AnswerFormat.TEXT)
    assert answers.parse(text, Template.SUMMARY, AnswerFormat.TEXT) == Summary(
        "The heart is large.\nThe lungs are clear.", complete=True
    )
    assert not _matches("Summary: One.\n\nTwo.", Template.SUMMARY, AnswerFormat.TEXT)


# --- cut off -----------------------------------------------------------------------------------


@given(of_a_grammar())
def test_a_status_is_indeterminate_until_it_is_whole_and_then_never_changes(
    case: tuple[str, Template, AnswerFormat],
) -> None:
    text, template, answer_format = case
    whole = answers.parse(text, template, answer_format)
    if not isinstance(whole, Finding):
        return
    states = [
        answers.parse_finding(text[:length], answer_format).status
        for length in range(len(text) + 1)
    ]
    word = str(whole.status)
    seen = text.index(word) + len(word)
    assert set(states[:seen]) == {Status.INDETERMINATE}
    assert set(states[seen:]) == {whole.status}


@given(of_a_grammar(), st.data())
def test_sections_only_grow_and_hold_no_part_of_the_form(
    case: tuple[str, Template, AnswerFormat], data: st.DataObject
) -> None:
    text, template, answer_format = case
    whole = answers.parse(text, template, answer_format)
    cut = answers.parse(text[: data.draw(st.integers(0, len(text)))], template, answer_format)
    assert whole is not None
    assert cut is not None
    if isinstance(whole, Finding):
        assert isinstance(cut, Finding)
        assert whole.explanation.startswith(cut.explanation)
    else:
        for short, long in zip(_parts(cut), _parts(whole), strict=True):
            assert long.startswith(short)
    if answer_format is AnswerFormat.JSON:
        assert cut.complete is (cut == whole)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Findings: A rim.\nImpre", Report("A rim.", "", complete=False)),
        ("Findings: A rim.\nImpression: ", Report("A rim.", "", complete=False)),
        ("Findings: A rim.", Report("A rim.", "", complete=False)),
        ("Findings", Report("", "", complete=False)),
        ("Impression: A rim.", Report("", "", complete=False)),
    ],
)
def test_a_report_cut_off_keeps_what_was_read(text: str, answer: Report) -> None:
    assert answers.parse(text, Template.REPORT, AnswerFormat.TEXT) == answer


# --- not in form -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot tell from this image.",
        "I cannot say whether an effusion is likely present, explanation: none.",
        "likely",
        "likely presen",
        "likely presentation of the heart",
        "likely present or likely absent",
        "likely present, but possibly absent",
        "likely present. likely absent, explanation: a rim",
        "not likely present, explanation: a rim",
        "present, explanation: a rim",
        "absent",
        '{"status": "present", "explanation": "a rim"}',
    ],
)
def test_no_status_is_guessed_from_text(text: str) -> None:
    finding = answers.parse_finding(text, AnswerFormat.TEXT)
    assert (finding.status, finding.complete) == (Status.INDETERMINATE, False)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I cannot tell from this image.",
        '{"status": "pres',
        '{"status": "likely present", "explanation": "a rim"}',
        '{"status": "present", "status": "absent", "explanation": "a rim"}',
        '{"status": "present", "explanation": "a rim"} {"status": "absent"',
        '{"status": "present", "explanation": 1}',
        '{"status": ["present"], "explanation": "a rim"}',
        '{"status": null, "explanation": "a rim"}',
        '[["status", "present"], ["explanation", "a rim"]]',
        '{"status": "present"}',
        '{"status": "present", "explanation": "a rim", "other": "x"}',
        "[" * 100_000,
        '{"status":' * 100_000,
        "1" * 5_000,
        "NaN",
    ],
)
def test_no_status_is_guessed_from_json(text: str) -> None:
    finding = answers.parse_finding(text, AnswerFormat.JSON)
    assert (finding.status, finding.complete) == (Status.INDETERMINATE, False)


def test_json_is_read_in_any_order_and_spacing() -> None:
    text = '{\n  "explanation": "a rim",\n  "status": "absent"\n}\n'
    assert answers.parse_finding(text, AnswerFormat.JSON) == Finding(
        Status.ABSENT, "a rim", complete=True
    )


anything = st.text() | st.text("{}[]\":, \n\\") | st.lists(
    st.sampled_from(
        [
            "likely present", "likely absent", "indeterminate", ", explanation: ", "Findings: ",
            "\nImpression: ", "Summary: ", '{"status": "', "present", '", "explanation": "', '"}',
            '{"findings": "', '", "impression": "', '{"summary": "', "x", '"', "\n", " ", "\\",
        ]
    )
).map("".join)  # fmt: skip


@given(anything, st.sampled_from(Template), st.sampled_from(AnswerFormat))
def test_any_text_parses_and_only_full_words_count(
    text: str, template: Template, answer_format: AnswerFormat
) -> None:
    answer = answers.parse(text, template, answer_format)
    assert (answer is None) is (template is Template.FREE)
    if answer is not None and answer.complete:
        assert all(_parts(answer))
    if isinstance(answer, Finding) and answer.status is not Status.INDETERMINATE:
        phrase = f"likely {answer.status}" if answer_format is AnswerFormat.TEXT else answer.status
        assert phrase in text


# --- grammars ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "likely present, explanation: ",
        "present, explanation: a rim",
        "likely present",
        "maybe",
        "likely present, explanation: a\nb",
        "likely present, explanation: a  b",
        "likely present, explanation: " + "x" * 33,
        "likely present, explanation: " + "x " * 40 + "x",
        'likely present, explanation: says "no"',
    ],
)
def test_the_finding_grammar_refuses_what_is_not_the_form(text: str) -> None:
    assert not _matches(text, Template.FINDING, AnswerFormat.TEXT)


@pytest.mark.parametrize(("template", "answer_format"), FORMS)
def test_xgrammar_takes_every_grammar_and_they_are_bounded(
    template: Template, answer_format: AnswerFormat
) -> None:
    pattern = answers.grammar(template, answer_format)
    assert pattern is not None
    xgrammar.Grammar.from_regex(pattern)
    assert re.search(r"[*+^$]|\{\d+,\}|\(\?", re.sub(r"\[.*?\]", "", pattern)) is None


def test_a_free_answer_has_neither_grammar_nor_value() -> None:
    for answer_format in AnswerFormat:
        assert answers.grammar(Template.FREE, answer_format) is None
        assert answers.parse("Clear lungs.", Template.FREE, answer_format) is None


@pytest.mark.parametrize(
    ("properties", "template"),
    [
        ({"status", "explanation"}, Template.FINDING),
        ({"findings", "impression"}, Template.REPORT),
        ({"impression"}, Template.IMPRESSION),
        ({"summary"}, Template.SUMMARY),
        ({"findings"}, None),
        ({"summary", "impression"}, None),
        (set(), None),
    ],
)
def test_a_templates_fields_name_it(properties: set[str], template: Template | None) -> None:
    assert answers.json_template(properties) is template
