"""Uncertainty templates: the words added to a question, the grammar of the answer, its parser.

Knows text only. What a template asks for in words, the engine enforces by grammar, and the parser
reads back; the three live together so that they cannot drift apart.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum

PREAMBLE = (
    "You draft descriptions of medical images for a clinician to review. "
    "Describe only what can be seen. Do not give treatment advice."
)
DRAFT_LABEL = "Draft for clinician review. Research use only, not a diagnosis."

# One line each: a small model copies short instructions better, and they cost prompt tokens.
FINDING_INSTRUCTION = (
    'Answer in one line: "likely present", "likely absent" or "indeterminate", '
    'then ", explanation: " and one short reason.'
)
FINDING_JSON_INSTRUCTION = (
    'Answer as a JSON object: "status" is "present", "absent" or "indeterminate", '
    '"explanation" is one short reason.'
)


class Template(StrEnum):
    """How an answer is shaped. Values are the names clients use."""

    FINDING = "finding"
    FREE = "free"


class AnswerFormat(StrEnum):
    """How a ``finding`` answer is written."""

    TEXT = "text"
    JSON = "json"


class Status(StrEnum):
    """Whether the finding asked about is there. Never a probability, never a diagnosis."""

    PRESENT = "present"
    ABSENT = "absent"
    INDETERMINATE = "indeterminate"


@dataclass(frozen=True, slots=True)
class Finding:
    """A parsed ``finding`` answer."""

    status: Status
    explanation: str


_PHRASE = {
    Status.PRESENT: "likely present",
    Status.ABSENT: "likely absent",
    Status.INDETERMINATE: "indeterminate",
}
_STATUS = {phrase: status for status, phrase in _PHRASE.items()}

# The explanation is bounded: an unbounded string lets a weak model loop until max_tokens. It starts
# with a visible character, so that it cannot be empty or blank. Quotes and backslashes stay out of
# both forms: the JSON form then needs no escapes, and the two forms carry the same explanations.
_EXPLANATION = r'[^\s"\\\x00-\x1f\x7f][^"\\\x00-\x1f\x7f]{2,239}'

# Models of the Mistral family begin an answer with a space piece; forbidding it would force an
# unlikely first token. The space is stripped again before anything leaves.
GRAMMAR = {
    AnswerFormat.TEXT: f" ?({'|'.join(_STATUS)}), explanation: {_EXPLANATION}",
    AnswerFormat.JSON: (
        rf' ?\{{"status": "({"|".join(Status)})", "explanation": "{_EXPLANATION}"\}}'
    ),
}
_INSTRUCTION = {
    AnswerFormat.TEXT: FINDING_INSTRUCTION,
    AnswerFormat.JSON: FINDING_JSON_INSTRUCTION,
}
_TEXT_ANSWER = re.compile(rf"\s*({'|'.join(_STATUS)})(?:, explanation: ?(.*))?", re.DOTALL)
_JSON_STATUS = re.compile(rf'\s*\{{"status": "({"|".join(Status)})"')

# A closed question asks for yes or no: it begins with an auxiliary verb, or one follows a clause
# ("In the left lung, is there ...?"), and offers no alternatives ("... or ...").
_CLOSED_QUESTION = re.compile(
    r"(?:^|[.!?:,;\n])\s*(?:and|so|also|please)?\s*"
    r"(?:is|are|was|were|does|do|did|has|have|can|could)\b(?:n't)?[^.?!]*\?\s*$",
    re.IGNORECASE,
)
_ALTERNATIVES = re.compile(r"\bor\b(?!\s+(?:not|absent|no)\b)", re.IGNORECASE)
_REQUEST = re.compile(
    r"\b(?:can|could) you\b(?!\s+(?:see|find|detect|identify|notice)\b)", re.IGNORECASE
)


def is_closed_question(text: str) -> bool:
    """Whether the text ends in a question that present, absent or indeterminate answers."""
    match = _CLOSED_QUESTION.search(text)
    if match is None:
        return False
    question = match.group()
    return not (_ALTERNATIVES.search(question) or _REQUEST.search(question))


def question_prompt(question: str, template: Template, answer_format: AnswerFormat) -> str:
    """The question as the model is to read it: itself, then the template's instruction."""
    if template is Template.FREE:
        return question
    return f"{question}\n{_INSTRUCTION[answer_format]}"


def parse_finding(text: str, answer_format: AnswerFormat) -> Finding:
    """Reads a ``finding`` answer, whole or cut off by ``max_tokens``.

    A status is believed only when it is written out in full; anything else is indeterminate with
    the explanation that was readable, never a guess.
    """
    if answer_format is AnswerFormat.TEXT:
        match = _TEXT_ANSWER.match(text)
        if match is None:
            return Finding(Status.INDETERMINATE, "")
        return Finding(_STATUS[match[1]], (match[2] or "").strip())
    try:
        answer = json.loads(text)
        return Finding(Status(answer["status"]), str(answer["explanation"]))
    except (ValueError, KeyError, TypeError):
        match = _JSON_STATUS.match(text)
        return Finding(Status(match[1]) if match else Status.INDETERMINATE, "")


def without_label(answer: str) -> str:
    """An answer that a client sends back as history, as the model wrote it: without the label."""
    return answer.rstrip().removesuffix(DRAFT_LABEL).rstrip()


def label(answer_format: AnswerFormat) -> str:
    """What is appended to an answer; a JSON answer stays valid JSON and gets nothing."""
    return f"\n\n{DRAFT_LABEL}" if answer_format is AnswerFormat.TEXT else ""
