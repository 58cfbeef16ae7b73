"""Shapes of answers: for each template the grammar the engine enforces, and the parser of it.

Knows text only: not what is asked (guardrails/templates.py), nor what is seen in the image. Grammar
and parser are made of the same sections, so that they cannot drift apart.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Template(StrEnum):
    """How an answer is shaped. Values are the names clients use."""

    FINDING = "finding"
    REPORT = "report"
    IMPRESSION = "impression"
    SUMMARY = "summary"
    FREE = "free"


class AnswerFormat(StrEnum):
    """How an answer is written. A free answer is text always."""

    TEXT = "text"
    JSON = "json"


class Status(StrEnum):
    """Whether the finding asked about is there. Never a probability, never a diagnosis."""

    PRESENT = "present"
    ABSENT = "absent"
    INDETERMINATE = "indeterminate"


# In all answers ``complete`` says that every section was begun and, in JSON, that the object is
# closed. The last section of a text answer has no end mark: whether ``max_tokens`` cut it off, only
# the finish reason tells.


@dataclass(frozen=True, slots=True)
class Finding:
    """A parsed ``finding`` answer."""

    status: Status
    explanation: str
    complete: bool


@dataclass(frozen=True, slots=True)
class Report:
    """A parsed ``report`` answer."""

    findings: str
    impression: str
    complete: bool


@dataclass(frozen=True, slots=True)
class Impression:
    """A parsed ``impression`` answer."""

    text: str
    complete: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """A parsed ``summary`` answer."""

    text: str
    complete: bool


Answer = Finding | Report | Impression | Summary

_PHRASE = {
    Status.PRESENT: "likely present",
    Status.ABSENT: "likely absent",
    Status.INDETERMINATE: "indeterminate",
}
_STATUS = {
    AnswerFormat.TEXT: {phrase: status for status, phrase in _PHRASE.items()},
    AnswerFormat.JSON: {str(status): status for status in Status},
}

# --- sections ----------------------------------------------------------------------------------

# Sections are bounded: an unbounded string lets a weak model loop until max_tokens. Quotes and
# backslashes stay out of both forms: the JSON form then needs no escapes, and the two forms carry
# the same words.
_VISIBLE = r'[^\s"\\\x00-\x1f\x7f-\xa0]'
# Words are counted, not characters. xgrammar 0.2.8 takes 1 to 2 s to compile {2,1199} over
# characters, because a count above 128 multiplies the states that each token is tried in, and the
# same bound over groups of characters costs milliseconds to seconds for each token. Words of up to
# 32 characters compile in about 0.1 s. They cannot be blank, nor be spaced out.
_WORD = f"{_VISIBLE}{{1,32}}"


def _words(most: int, between: str = " ") -> str:
    """A pattern of one to ``most`` words. English has about six characters a word."""
    return f"{_WORD}({between}{_WORD}){{0,{most - 1}}}"


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of an answer: its JSON field, what leads it in text, and the patterns it follows."""

    field: str
    lead: str
    text: str
    json: str


_IMPRESSION = _words(100)
_SECTIONS: Mapping[Template, tuple[_Section, ...]] = {
    Template.FINDING: (
        _Section("status", "", f"({'|'.join(_PHRASE.values())})", f"({'|'.join(Status)})"),
        _Section("explanation", ", explanation: ", _words(40), _words(40)),
    ),
    Template.REPORT: (
        _Section("findings", "Findings: ", _words(200), _words(200)),
        _Section("impression", "\nImpression: ", _IMPRESSION, _IMPRESSION),
    ),
    Template.IMPRESSION: (_Section("impression", "Impression: ", _IMPRESSION, _IMPRESSION),),
    Template.SUMMARY: (_Section("summary", "Summary: ", _words(130, r"[ \n]"), _words(130)),),
}
JSON_FIELDS: Mapping[Template, tuple[str, ...]] = {
    template: tuple(section.field for section in sections)
    for template, sections in _SECTIONS.items()
}


def json_template(properties: Set[str]) -> Template | None:
    """The template whose JSON answer has exactly these properties."""
    for template, fields in JSON_FIELDS.items():
        if properties == set(fields):
            return template
    return None


def _marks(sections: tuple[_Section, ...], answer_format: AnswerFormat) -> list[str]:
    """What stands around the sections: before the first, between, behind the last."""
    if answer_format is AnswerFormat.TEXT:
        return [*(section.lead for section in sections), ""]
    first, *others = (section.field for section in sections)
    return [f'{{"{first}": "', *(f'", "{field}": "' for field in others), '"}']


def grammar(template: Template, answer_format: AnswerFormat) -> str | None:
    """The regular expression an answer matches as a whole; None: free.

    No look-around, no anchors, every repetition bounded: xgrammar compiles it.
    """
    sections = _SECTIONS.get(template)
    if sections is None:
        return None
    before, *marks = [_escaped(mark) for mark in _marks(sections, answer_format)]
    is_text = answer_format is AnswerFormat.TEXT
    patterns = [section.text if is_text else section.json for section in sections]
    # Models of the Mistral family begin an answer with a space piece; forbidding it would force an
    # unlikely first token. The space is stripped again before anything leaves.
    return f" ?{before}" + "".join(map("".join, zip(patterns, marks, strict=True)))


def _escaped(mark: str) -> str:
    # Not re.escape: xgrammar does not know escaped spaces.
    return mark.replace("{", r"\{").replace("}", r"\}").replace("\n", r"\n")


# --- parsers -----------------------------------------------------------------------------------


def parse(text: str, template: Template, answer_format: AnswerFormat) -> Answer | None:
    """Reads an answer, whole or cut off; None for ``free``. Whatever the text, it does not raise.

    What is not there is empty. Text that is not the template's form has no status and no sections.
    """
    match template:
        case Template.FINDING:
            return parse_finding(text, answer_format)
        case Template.REPORT:
            values, complete = _read(text, template, answer_format)
            return Report(values["findings"], values["impression"], complete)
        case Template.IMPRESSION:
            values, complete = _read(text, template, answer_format)
            return Impression(values["impression"], complete)
        case Template.SUMMARY:
            values, complete = _read(text, template, answer_format)
            return Summary(values["summary"], complete)
        case Template.FREE:
            return None


def parse_finding(text: str, answer_format: AnswerFormat) -> Finding:
    """Reads a ``finding`` answer, whole or cut off by ``max_tokens``.

    A status is believed only when it is written out in full, followed by nothing or by what the
    form has next; anything else is indeterminate and not complete, never a guess.
    """
    values, complete = _read(text, Template.FINDING, answer_format)
    status = _STATUS[answer_format].get(values["status"])
    if status is None:
        return Finding(Status.INDETERMINATE, values["explanation"], complete=False)
    return Finding(status, values["explanation"], complete)


def _read(
    text: str, template: Template, answer_format: AnswerFormat
) -> tuple[dict[str, str], bool]:
    """The sections by field, and whether all are there."""
    fields = JSON_FIELDS[template]
    whole = _object(text, fields) if answer_format is AnswerFormat.JSON else None
    if whole is not None:
        values = [whole[field] for field in fields]
    else:
        marks = _marks(_SECTIONS[template], answer_format)
        values = _scan(text, marks, quoted=answer_format is AnswerFormat.JSON)
    values = [value.strip() for value in values]
    ended = whole is not None or answer_format is AnswerFormat.TEXT
    complete = ended and len(values) == len(fields) and all(values)
    values += [""] * (len(fields) - len(values))
    return dict(zip(fields, values, strict=True)), complete


def _object(text: str, fields: tuple[str, ...]) -> dict[str, str] | None:
    """A whole JSON object of exactly these string fields, in any order and spacing."""
    try:
        pairs = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError):  # of deep nesting
        return None
    # Of a field given twice json.loads would believe the last; here it is no answer.
    if not _is_pairs(pairs) or sorted(key for key, _ in pairs) != sorted(fields):
        return None
    return dict(pairs)


def _is_pairs(value: Any) -> bool:
    """Whether a decoded value is an object of strings: an array holds no tuples."""
    return isinstance(value, list) and all(
        isinstance(pair, tuple) and isinstance(pair[1], str) for pair in value
    )


def _scan(text: str, marks: list[str], *, quoted: bool) -> list[str]:
    """What stands between the marks, as far as the text goes and is in form."""
    before, *ends = marks
    rest = text.lstrip()
    if not rest.startswith(before):
        return []
    rest = rest.removeprefix(before)
    values: list[str] = []
    for end in ends:
        value, found, rest = rest.partition(end) if end else (rest, end, "")
        if not found:
            value = _without_begun(value, end)
        if quoted and '"' in value:
            return []
        values.append(value)
        if not found:
            return values
    return [] if rest.strip() else values


def _without_begun(text: str, mark: str) -> str:
    """A text without the beginning of a mark that was cut off."""
    for length in range(len(mark) - 1, 0, -1):
        if text.endswith(mark[:length]):
            return text[:-length]
    return text
