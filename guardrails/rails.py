"""The rails of a request: what may go in, what may come out. The library's front door.

    policy = load()
    checked = check_input(policy, ["Is there a pneumothorax?"])
    rails = OutputRails(policy, Template.FREE, AnswerFormat.TEXT, question=checked.texts[0])
    for chunk in answer:
        send(rails.push(chunk))
    send(rails.finish())

Nothing here reads a clock, a file or the network. An exception out of these calls means that the
text was not guarded: whoever calls must let nothing leave then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from guardrails.answers import Answer, AnswerFormat, Finding, Template, parse
from guardrails.assess import FindingsRail, NamedFinding
from guardrails.policy import Policy
from guardrails.rules import Action, Stage, Verdict
from guardrails.stream import StreamGuard

__all__ = ["CheckedInput", "NamedFinding", "OutputRails", "check_input"]


@dataclass(frozen=True, slots=True)
class CheckedInput:
    """A client's texts as the model may read them; none may where ``refused`` names rules."""

    texts: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    @property
    def refused(self) -> tuple[str, ...]:
        """The rules that block this request."""
        return tuple(verdict.rule for verdict in self.verdicts if verdict.action is Action.BLOCK)


def check_input(policy: Policy, texts: Sequence[str]) -> CheckedInput:
    """Puts all texts of a request before the input rules."""
    checked, verdicts = [], set()
    for text in texts:
        guard = StreamGuard(policy.input_rules, mark=policy.file.mark)
        checked.append(guard.push(text) + guard.finish())
        verdicts |= {Verdict(hit.rule, hit.action, Stage.INPUT) for hit in guard.hits}
    return CheckedInput(tuple(checked), tuple(sorted(verdicts)))


class _Outcome(NamedTuple):
    """What is known of an answer once it has ended."""

    value: Answer | None
    verdicts: tuple[Verdict, ...]


class OutputRails:
    """Guards one answer. ``push`` what the model says, then ``finish``: what they return may leave.

    Once ``blocked``, nothing more of the model's words is taken; ``finish`` still has to be called,
    since the last sentence is assessed then. ``value``, ``verdicts``, ``urgent`` and ``findings``
    are for afterwards.

    Args:
        policy: in force.
        template: of the answer.
        answer_format: of the answer.
        question: what the answer answers.
        earlier: what was asked before it in the same conversation.
    """

    def __init__(
        self,
        policy: Policy,
        template: Template,
        answer_format: AnswerFormat,
        *,
        question: str,
        earlier: str = "",
    ) -> None:
        self._guard = StreamGuard(policy.output_rules[template], mark=policy.file.mark)
        self._findings = FindingsRail(
            policy,
            template=template,
            answer_format=answer_format,
            question=question,
            earlier=earlier,
        )
        self._template, self._format = template, answer_format
        self._released: list[str] = []
        self._outcome: _Outcome | None = None

    @property
    def blocked(self) -> bool:
        """Whether a rule ended the answer."""
        return self._guard.blocked or self._findings.blocked

    @property
    def text(self) -> str:
        """What has left so far."""
        return "".join(self._released)

    def push(self, text: str) -> str:
        """Takes the model's next words; returns what may leave."""
        return self._release(self._findings.push(self._guard.push(text)))

    def finish(self) -> str:
        """Ends the answer; returns what may leave of what was held."""
        rest = self._findings.push(self._guard.finish())
        return self._release(rest + self._findings.finish())

    def _release(self, text: str) -> str:
        self._outcome = None
        if text:
            self._released.append(text)
        return text

    def value(self) -> Answer | None:
        """What left, read by the template's parser."""
        return self._decided().value

    def verdicts(self) -> tuple[Verdict, ...]:
        """What the rules decided, each once."""
        return self._decided().verdicts

    @property
    def urgent(self) -> bool:
        """Whether a clinician is to look at once."""
        return any(verdict.action is Action.ESCALATE for verdict in self.verdicts())

    def findings(self) -> tuple[NamedFinding, ...]:
        """What left says of each finding that it or the question names, each once, by name."""
        return self._findings.findings(_finding(self.value()))

    def _decided(self) -> _Outcome:
        if self._outcome is None:
            value = parse(self.text, self._template, self._format)
            fired = {Verdict(hit.rule, hit.action, Stage.OUTPUT) for hit in self._guard.hits}
            assessed = self._findings.verdicts(_finding(value))
            self._outcome = _Outcome(value, tuple(sorted({*fired, *assessed})))
        return self._outcome


def _finding(value: Answer | None) -> Finding | None:
    return value if isinstance(value, Finding) else None
