"""Labelled examples, and how well a policy does on them: ``llava-med policy test``.

A file of cases has one JSON object a line:

    {"category": "treatment", "text": "Start heparin.", "expect": true}
    {"category": "urgent", "text": "No evidence of pulmonary embolism.", "expect": false}
    {"category": "assertion", "text": "No effusion.", "finding": "pleural_effusion",
     "expect": "absent"}
    {"category": "overcall", "question": "Is there an effusion?", "text": "...", "expect": []}
    {"category": "phi", "text": "...", "expect": ["mrn", "name"]}

Any other category names rules: the one of that id and those whose id begins with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from pydantic import BaseModel, ConfigDict, ValidationError

from guardrails.assess import FindingsRail, mentions
from guardrails.document import PolicyError, Problem
from guardrails.findings import Assertion
from guardrails.policy import Policy, rules_of
from guardrails.rules import Action, RuleSet
from guardrails.stream import StreamGuard
from guardrails.templates import AnswerFormat, Template


class Case(BaseModel):
    """One labelled example."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    category: str
    text: str
    expect: bool | Assertion | tuple[str, ...]
    question: str = ""
    finding: str = ""


@dataclass(slots=True)
class Score:
    """Counts of one category. Of statuses and lists, each label counts by itself."""

    category: str
    hits: int = 0
    misses: int = 0
    false_alarms: int = 0
    cases: int = 0
    failed: list[tuple[Case, str]] = field(default_factory=list)

    @property
    def precision(self) -> float:
        """Of what was said, the share that is right; 1 where nothing was said."""
        said = self.hits + self.false_alarms
        return self.hits / said if said else 1.0

    @property
    def recall(self) -> float:
        """Of what should have been said, the share that was."""
        due = self.hits + self.misses
        return self.hits / due if due else 1.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.precision + self.recall
        return 2 * self.precision * self.recall / both if both else 0.0

    def count(self, expected: frozenset[str], said: frozenset[str]) -> None:
        """Counts one case by its labels."""
        self.hits += len(expected & said)
        self.misses += len(expected - said)
        self.false_alarms += len(said - expected)
        self.cases += 1


def read_cases(text: str, *, source: str = "cases") -> list[Case]:
    """The cases of a file.

    Raises:
        PolicyError: a line is no case; the message names it.
    """
    cases, problems = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            cases.append(Case.model_validate_json(line))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            problems.append(Problem(source, number, where, first["msg"]))
    if problems:
        raise PolicyError(problems)
    return cases


def run_cases(policy: Policy, cases: Iterable[Case]) -> Iterator[tuple[Case, Score]]:
    """Puts every case before the policy; yields it with its category's score so far.

    Raises:
        PolicyError: a category names no rule of the policy.
    """
    scores: dict[str, Score] = {}
    rule_sets: dict[str, RuleSet] = {}
    for case in cases:
        score = scores.setdefault(case.category, Score(case.category))
        if case.category == "assertion":
            _score_assertion(policy, case, score)
        else:
            expected, said = _labels(policy, case, rule_sets)
            score.count(expected, said)
            if expected != said:
                score.failed.append((case, ", ".join(sorted(said)) or "nothing"))
        yield case, score


def _labels(
    policy: Policy, case: Case, rule_sets: dict[str, RuleSet]
) -> tuple[frozenset[str], frozenset[str]]:
    if case.category in ("urgent", "overcall"):
        template = Template.FINDING if case.category == "overcall" else Template.FREE
        rail = FindingsRail(
            policy, template=template, answer_format=AnswerFormat.JSON, question=case.question
        )
        rail.push(case.text)
        rail.finish()
        rule = "urgent_finding" if case.category == "urgent" else "overcall"
        found = [verdict.finding for verdict in rail.verdicts(None) if verdict.rule == rule]
        if case.category == "overcall" and isinstance(case.expect, tuple):
            # "hiatal_hernia" is the "hernia" that was expected; beside an expected one, others
            # that nobody labelled are no mistake.
            named = {name for one in found for name in (one, *policy.findings[one].implies)}
            found = [name for name in case.expect if name in named] or found
    else:
        if case.category not in rule_sets:
            rule_sets[case.category] = _watching(policy, case.category)
        guard = StreamGuard(rule_sets[case.category])
        guard.push(case.text)
        guard.finish()
        found = [hit.rule.removeprefix(f"{case.category}_") for hit in guard.hits]
    if isinstance(case.expect, bool):
        label = frozenset({case.category})
        return (label if case.expect else frozenset()), (label if found else frozenset())
    return frozenset(case.expect), frozenset(found)


def _watching(policy: Policy, category: str) -> RuleSet:
    """The rules of a category at any stage, so that all of them speak and none ends the text."""
    rules = [
        replace(rule, action=Action.FLAG)
        for rule in rules_of(policy.file)
        if rule.id == category or rule.id.startswith(f"{category}_")
    ]
    if not rules:
        raise PolicyError([Problem("cases", 1, "category", f"no rule is called {category!r}")])
    return RuleSet(rules)


# Of several mentions of a finding, the one that says most counts.
_WEIGHT = (
    Assertion.PRESENT,
    Assertion.UNCERTAIN,
    Assertion.ABSENT,
    Assertion.HISTORICAL,
    Assertion.FAMILY,
)


def _score_assertion(policy: Policy, case: Case, score: Score) -> None:
    said = {
        mention.assertion
        for mention in mentions(policy, case.text)
        if mention.finding == case.finding
        or case.finding in policy.findings[mention.finding].implies
    }
    status = next((status for status in _WEIGHT if status in said), None)
    score.count(frozenset({str(case.expect)}), frozenset({str(status)} if status else ()))
    if status != case.expect:
        score.failed.append((case, str(status or "not mentioned")))
