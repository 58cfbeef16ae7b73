"""Templates: the words added to a question, which questions imply one, and the label of an answer.

Knows what is asked; the shapes of answers are guardrails/answers.py, whose names are offered here
too. Instructions, grammars and parsers share the template's name and nothing else: the words may be
set by policy, the shapes may not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from guardrails.answers import (
    JSON_FIELDS,
    Answer,
    AnswerFormat,
    Finding,
    Impression,
    Report,
    Status,
    Summary,
    Template,
    grammar,
    json_template,
    parse,
    parse_finding,
)

__all__ = [
    "DEFAULT_INSTRUCTIONS",
    "DRAFT_LABEL",
    "ESCALATION_LINE",
    "FINDING_INSTRUCTION",
    "FINDING_JSON_INSTRUCTION",
    "JSON_FIELDS",
    "PREAMBLE",
    "Answer",
    "AnswerFormat",
    "Finding",
    "Impression",
    "Report",
    "Status",
    "Summary",
    "Template",
    "TemplateText",
    "grammar",
    "is_closed_question",
    "json_template",
    "label",
    "parse",
    "parse_finding",
    "question_prompt",
    "without_label",
]

# --- words -------------------------------------------------------------------------------------

PREAMBLE = (
    "You draft descriptions of medical images for a clinician to review. "
    "Describe only what can be seen. Do not give treatment advice."
)
DRAFT_LABEL = "Draft for clinician review. Research use only, not a diagnosis."
ESCALATION_LINE = "Escalate to urgent human review."

# One line each: a small model copies short instructions better, and they cost prompt tokens.
FINDING_INSTRUCTION = (
    'Answer in one line: "likely present", "likely absent" or "indeterminate", '
    'then ", explanation: " and one short reason.'
)
FINDING_JSON_INSTRUCTION = (
    'Answer as a JSON object: "status" is "present", "absent" or "indeterminate", '
    '"explanation" is one short reason.'
)


@dataclass(frozen=True, slots=True)
class TemplateText:
    """What is added to a question, by the format of its answer."""

    text: str
    json: str


# A free question is asked as it is.
DEFAULT_INSTRUCTIONS: Mapping[Template, TemplateText] = {
    Template.FINDING: TemplateText(FINDING_INSTRUCTION, FINDING_JSON_INSTRUCTION),
    Template.REPORT: TemplateText(
        'Answer in two lines: "Findings: " and what is seen, then "Impression: " and what it '
        "amounts to.",
        'Answer as a JSON object: "findings" is what is seen, "impression" is what it amounts to.',
    ),
    Template.IMPRESSION: TemplateText(
        'Answer in one line: "Impression: ", then the main findings, separated by "; ".',
        'Answer as a JSON object: "impression" is the main findings, separated by "; ".',
    ),
    Template.SUMMARY: TemplateText(
        'Answer with "Summary: " and what is seen, in a few short sentences.',
        'Answer as a JSON object: "summary" is what is seen, in a few short sentences.',
    ),
}


def question_prompt(
    question: str,
    template: Template,
    answer_format: AnswerFormat,
    instructions: Mapping[Template, TemplateText] = DEFAULT_INSTRUCTIONS,
) -> str:
    """The question as the model is to read it: itself, then the template's instruction if any."""
    words = instructions.get(template)
    if words is None:
        return question
    return f"{question}\n{words.text if answer_format is AnswerFormat.TEXT else words.json}"


def without_label(answer: str, text: str = DRAFT_LABEL) -> str:
    """An answer that a client sends back as history, as the model wrote it.

    The label and the escalation line are taken away, also where only one of them is left.
    """
    unlabelled = answer.rstrip().removesuffix(text.rstrip()).rstrip()
    return unlabelled.removesuffix(ESCALATION_LINE).rstrip()


def label(answer_format: AnswerFormat, text: str = DRAFT_LABEL, *, urgent: bool = False) -> str:
    """What is appended to an answer; a JSON answer stays valid JSON and gets nothing.

    Args:
        answer_format: of the answer.
        text: the policy's label.
        urgent: whether a clinician is to look at once; a line before the label then says so.
    """
    if answer_format is AnswerFormat.JSON:
        return ""
    return f"\n\n{ESCALATION_LINE}\n\n{text}" if urgent else f"\n\n{text}"


# --- closed questions --------------------------------------------------------------------------

# A closed question asks for yes or no. Only the last sentence is read, in lower case; one that does
# not fit is no plain question. In doubt a question is open: a free answer to a closed question is
# an answer still, a status is none to "left or right?".
_MAX_QUESTION = 400
_WH = r"(?:what(?:'s)?|which|who|whose|whom|where(?:'s)?|when|why|how)\b"
_AUX = r"(?:is|are|was|were|does|do|did|has|have|had|can|could|would|might|may)(?:n't)?\b"
_SENTENCE_END = re.compile(rf"[.!?][\"')\]]*\s+(?=\S)|\n\s*\n|\n\s*(?={_AUX})")
_COURTESY = re.compile(r"\s*(?:\bthanks?\b(?: you\b)?(?: in advance\b)?|\bplease\b)[\s.!]*$")
_CLAUSE_END = re.compile(r"[,:;\n]\s*| [-\u2013\u2014] ")
_LEAD = re.compile(
    r"^(?:(?:and|so|also|please|but|ok|okay|now|then|well|hi|hello|doctor|further|finally)\b\s*)+"
)
_TAG = re.compile(
    r",\s*(?:right|correct|yes|no|true|agreed|(?:is|are|was|were|does|do|has|have)(?:n't)? "
    r"(?:it|there|they|he|she|this|that))$"
)

# What a clause begins with decides. "When compared to ..., is there ...?" only sets the scene.
_SCENE = re.compile(r"(?:when|where) (?:\w+(?:ed|ing)|the)\b|(?:tell me|let me know)$")
_WHETHER = re.compile(
    r"(?:tell me|let me know|say|state|check|determine|assess|confirm|decide|see) (?:if|whether)\b"
)
_OPEN = re.compile(
    rf"(?:(?:in|on|at|to|of|from|for|with|by|under|through|within|about) )?{_WH}|(?:describe|list|"
    r"summari[sz]e|explain|give|write|show|compare|name|identify|report|interpret|outline|provide|"
    r"draft|comment|elaborate|characteri[sz]e|classify|discuss|generate|tell|let|should|will|shall|must)\b"
)
_QUESTION = re.compile(_AUX)
# Without a question mark only what cannot be a request.
_INVERSION = re.compile(
    r"(?:is|are|was|were|does|did|has|have)(?:n't)? (?:there|it|this|that|the|these|those|any)\b"
    r"|(?:do|can) you see\b"
)

# Somebody is asked to do something, unless it is to perceive or to judge.
_SOMEBODY = r"\w+(?:n't)? (?:i|we|you|(?:any|some)(?:one|body)|it be possible to|it possible to)\b"
_REQUEST = re.compile(_SOMEBODY)
_PERCEPTION = re.compile(
    rf"{_SOMEBODY}(?: (?:please|also|still|really|actually|clearly|able to))* (?:(?:see|seen|"
    r"detect|detected|notice|noticed|spot|visuali[sz]e|observe|observed|appreciate|make out|find|"
    r"found|recogni[sz]e|exclude|rule out|confirm|think|believe|suspect|agree|call|consider|"
    r"(?:sure|certain|confident)(?= )|(?:say|tell|determine|assess|check|judge)(?: me)?"
    r"(?= (?:if|whether|that|there)\b)|identif(?:y|ied)(?! (?:the|this|these|those|all)\b))\b"
    rf")(?! {_WH})"
)
# More is asked than yes or no: "... and if so, where?"
_MORE = re.compile(
    rf"\b(?:and|if (?:so|yes|any|present)),? (?:(?:in|on|at|to|of|from) )?{_WH}"
    r"|\b(?:any|some)thing (?:else|you|to)\b"
)

# "Left or right?" is a choice, "yes or no?" is none, "any mass or nodule?" asks for either.
_OR = re.compile(r"\bor\b|\bvs\b|\bversus\b|\b(?:left/right|right/left)\b")
_NO_CHOICE = re.compile(
    r"\b(?:yes or no|present or (?:absent|not)|absent or present|and/or|or (?:not|isn't|aren't|no|"
    r"none|absent|more|less|so|greater|larger|fewer))\b"
)
_EITHER = re.compile(
    r"\b(?:any|no|without|(?:evidence|signs?|suggestion|suspicion|indications?|features) of)\b"
    r".* or\b"
)
_EXISTENTIAL = re.compile(r"\b(?:is|are|was|were)(?:n't)? there\b.* or\b")
_TRAIT = (
    r"(?:left|right|upper|lower|middle|anterior|posterior|medial|lateral|proximal|distal|apical|"
    r"basal|central|peripheral|unilateral|bilateral|benign|malignant|acute|chronic|old|new|small|"
    r"large|mild|moderate|severe|normal|abnormal|one|two|single|multiple)"
)
_TRAITS = re.compile(rf"\b{_TRAIT}\b(?: \w+)? or (?:(?:in|on|at|to|is|the|an?|it) )*{_TRAIT}\b")

# Without a question's verb: "Pneumothorax?", "Any sign of free air?", but not "Diagnosis?".
_STATEMENT = re.compile(r"\b(?:is|are|was|were|has|have|shows?|see|suggests?|appears?)\b(?=.*\w)")
_POINTED = re.compile(r"(?:the|your|my|this|that|these|those|its|his|her|their|i|we|you)\b")
_EXISTENCE = re.compile(
    r"(?:(?:any|no)\b\s*)?(?:(?:evidence|signs?|suggestion|suspicion|indications?|presence) of )?"
)
_PREPOSITION = re.compile(
    r" (?:of|for|in|on|at|with|from|to|within|near|along|behind|above|below) "
)
_MAX_PHRASE = 6
_TOPIC = re.compile(
    r"findings?|impressions?|diagnos[ei]s|differentials?|modality|reports?|summary|description|"
    r"conclusions?|locations?|position|site|size|sides?|severity|extent|causes?|a?etiology|therapy|"
    r"treatment|management|prognosis|recommendations?|suggestions?|comments?|thoughts?|ideas?|"
    r"opinions?|questions?|details?|advice|next|steps?|plan|help|sorry|pardon|interpretation|"
    r"assessment|explanation|reasons?|meaning|names?|age|gender|sex|date|views?|plane|projection|"
    r"sequence|orientation|technique|quality|grade|stage|types?|kind|images?|pictures?|scans?|study|"
    r"history|else|more|really|sure|ready|updates?|anything|something|measurements?|dimensions?|"
    r"diameter|volume|numbers?|count|score|colou?r|shape|organs?|anatomy|region|test|yes|no|any|"
    r"evidence|signs?|presence|you|hello|hi|hey|thanks|structures?|likelihood|probability|lungs?|"
    r"heart|bones?|ribs?|chest|pleura|mediastinum|diaphragm|brain|liver|kidneys?|spleen|abdomen|"
    r"pelvis|spine|lobes?"
)


def is_closed_question(text: str) -> bool:
    """Whether the text ends in a question that present, absent or indeterminate answers."""
    folded = _COURTESY.sub("", text[-_MAX_QUESTION:].casefold().replace("\u2019", "'"))
    folded = folded.rstrip(" \t\n\"')]")
    sentences = _SENTENCE_END.split(folded)
    if len(text) > _MAX_QUESTION and len(sentences) == 1:
        return False
    question = _TAG.sub("", sentences[-1].rstrip("?!. \t\n"))
    plain = " ".join(question.split())
    if _MORE.search(plain) or _offers_choice(plain):
        return False
    clauses = [_LEAD.sub("", clause.strip()) for clause in _CLAUSE_END.split(question)]
    return _asks_yes_or_no(clauses, marked=folded.endswith("?"))


def _asks_yes_or_no(clauses: list[str], *, marked: bool) -> bool:
    """Decides by the first clause that asks; ``marked``: by a question mark."""
    for clause in clauses:
        if _SCENE.match(clause):
            continue
        if _WHETHER.match(clause):
            return True
        if _OPEN.match(clause):
            return False
        if _QUESTION.match(clause):
            if _REQUEST.match(clause) and not _PERCEPTION.match(clause):
                return False
            return marked or _INVERSION.match(clause) is not None
    return marked and _names_a_finding(clauses[-1])


def _names_a_finding(clause: str) -> bool:
    """Whether a clause, asked without a question's verb, is about something being there."""
    if _STATEMENT.search(clause):
        return re.search(rf"\b{_WH}", clause) is None
    exists = _EXISTENCE.match(clause)
    phrase = clause[exists.end() :] if exists else clause
    noun = _PREPOSITION.split(phrase)[0].rpartition(" ")[2]
    if not noun or _TOPIC.fullmatch(noun):
        return False
    return phrase != clause or (
        len(phrase.split()) <= _MAX_PHRASE and _POINTED.match(phrase) is None
    )


def _offers_choice(question: str) -> bool:
    question = _NO_CHOICE.sub("", question)
    if not _OR.search(question) or _EITHER.search(question):
        return False
    return not _EXISTENTIAL.search(question) or _TRAITS.search(question) is not None
