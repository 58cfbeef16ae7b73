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

from guardrails.answers import Answer, AnswerFormat, Finding, Template, parse
from guardrails.assess import FindingsRail
from guardrails.policy import Policy
from guardrails.rules import Action, Stage, Verdict
from guardrails.stream import StreamGuard


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


class OutputRails:
    """Guards one answer. ``push`` what the model says, then ``finish``: what they return may leave.

    Once ``blocked``, nothing more does. ``verdicts`` and ``value`` are for afterwards.
    """

    def __init__(
        self, policy: Policy, template: Template, answer_format: AnswerFormat, *, question: str
    ) -> None:
        self._guard = StreamGuard(policy.output_rules[template], mark=policy.file.mark)
        self._findings = FindingsRail(
            policy, template=template, answer_format=answer_format, question=question
        )
        self._template, self._format = template, answer_format
        self._released: list[str] = []

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
        if text:
            self._released.append(text)
        return text

    def value(self) -> Answer | None:
        """What left, read by the template's parser."""
        return parse(self.text, self._template, self._format)

    def verdicts(self) -> tuple[Verdict, ...]:
        """What the rules decided, each once."""
        value = self.value()
        finding = value if isinstance(value, Finding) else None
        fired = {Verdict(hit.rule, hit.action, Stage.OUTPUT) for hit in self._guard.hits}
        return tuple(sorted({*fired, *self._findings.verdicts(finding)}))
