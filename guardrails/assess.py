"""What an answer says of findings: their statuses, over-calls, contradictions, and urgent ones.

Reads the answer sentence by sentence as it is made. Text goes through at once, unless the policy
redacts or blocks over-calls: then a sentence is held until it is whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass

from guardrails.answers import AnswerFormat, Finding, Status, Template, parse_finding
from guardrails.findings import Assertion, Mention, sentences
from guardrails.folding import fold
from guardrails.policy import Policy
from guardrails.rules import HOLDING, Action, Stage, Verdict
from guardrails.templates import is_closed_question

# A sentence without an end is cut here, so that the work on each word stays bounded.
MAX_SENTENCE = 600
_AFFIRMED = frozenset({Assertion.PRESENT, Assertion.UNCERTAIN})
_ENDS = frozenset('.!?;\n"')
_UNDECIDED = re.compile(r"[.!?;\n\"][\s\"')\]]{0,80}\Z")
_LEAD = re.compile(r"(?:Findings|Impression|Summary): ")
_HEAD_END = "explanation:"  # in the finding template, what stands before is the status


@dataclass(frozen=True, slots=True, order=True)
class NamedFinding:
    """A finding of the policy, and what a whole answer says of it."""

    finding: str
    status: Status


def status_of(said: Set[Assertion]) -> Status:
    """The status that all that is said of one finding amounts to.

    Affirmed anywhere is present; denied and never doubted is absent. History, family and what is
    only looked for ("rule out", "cannot be assessed for") deny nothing: indeterminate.
    """
    if Assertion.PRESENT in said:
        return Status.PRESENT
    if Assertion.ABSENT in said and Assertion.UNCERTAIN not in said:
        return Status.ABSENT
    return Status.INDETERMINATE


def mentions(policy: Policy, text: str) -> Iterator[Mention]:
    """All findings that a text names, with what it says of them."""
    for start, end in sentences(text):
        yield from policy.detector.mentions(fold(text[start:end]))


def spoken_of(policy: Policy, names: Iterable[str]) -> frozenset[str]:
    """The findings, and those that are spoken about with them."""
    reached: set[str] = set()
    pending = list(names)
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += policy.findings[name].implies
    return frozenset(reached)


def statements(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the sentences in which a whole answer states something, whatever its template."""
    at = 0
    if parse_finding(text, AnswerFormat.TEXT).complete:
        at = text.index(_HEAD_END) + len(_HEAD_END)
    is_json = text.lstrip().startswith("{")
    for start, end in _whole(text[at:], quoted=is_json, final=True):
        if not _asks(text[at + start : at + end]):
            yield at + start, at + end


class FindingsRail:
    """Assesses one answer. ``push`` its chunks, then ``finish``; then ask what was found.

    Args:
        policy: in force.
        template: of the answer.
        answer_format: of the answer.
        question: what the answer answers.
        earlier: what was asked before it: spoken of, hence never an over-call, but not answered.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        template: Template,
        answer_format: AnswerFormat,
        question: str,
        earlier: str = "",
    ) -> None:
        self._policy = policy
        self._json = answer_format is AnswerFormat.JSON
        self._named = {mention.finding for mention in mentions(policy, question)}
        asked = self._named | {mention.finding for mention in mentions(policy, earlier)}
        self._asked = spoken_of(policy, asked)
        self._overcall = policy.file.actions.overcall
        self._holds = self._overcall in HOLDING
        # Where the question names no finding ("Describe the image"), none is unasked for.
        self._judges = self._overcall is not None and bool(asked or template is Template.FINDING)
        # In a finding answer the status stands first; it is read by the template's parser.
        self._in_head = template is Template.FINDING and not self._json
        self._text = ""  # from the start of the first sentence that is not whole
        self._may_end = False  # whether a sentence may have ended in it
        self._said: dict[str, set[Assertion]] = {}
        self._left: dict[str, set[Assertion]] = {}  # what was not withheld of it
        self._urgent: set[str] = set()
        self._overcalled: set[str] = set()
        self.blocked = False

    def push(self, text: str) -> str:
        """Takes the next chunk of guarded text; returns what may leave."""
        if self.blocked:
            return ""
        self._text += text
        if not self._may_end:
            self._may_end = not _ENDS.isdisjoint(text)
        assessed = self._assess(final=False)
        return assessed if self._holds else text

    def finish(self) -> str:
        """Ends the answer; returns what may leave of what was held."""
        assessed = "" if self.blocked else self._assess(final=True)
        return assessed if self._holds else ""

    def verdicts(self, finding: Finding | None) -> Iterator[Verdict]:
        """What was decided. ``finding`` is the answer to a finding question, parsed."""
        actions = self._policy.file.actions
        for name in sorted(self._overcalled):
            yield Verdict("overcall", Action(actions.overcall or "flag"), Stage.OUTPUT, name)
        if finding is not None and actions.inconsistent:
            for name in sorted(self._asked & self._said.keys()):
                if _contradicts(finding.status, self._said[name]):
                    yield Verdict(
                        "inconsistent_finding", Action(actions.inconsistent), Stage.OUTPUT, name
                    )
        if actions.urgent:
            for name in sorted(self._urgent | self._urgent_by_status(finding)):
                yield Verdict("urgent_finding", Action(actions.urgent), Stage.OUTPUT, name)

    def findings(self, answer: Finding | None) -> tuple[NamedFinding, ...]:
        """What left says of each finding that it names or that the question names, by name.

        Args:
            answer: to a finding question, parsed; its status decides for what was asked.
        """
        said = {name: set(self._left.get(name, ())) for name in self._left.keys() | self._named}
        for name, assertions in self._left.items():
            # A hydropneumothorax is a pneumothorax; that there is none denies no pneumothorax.
            for implied in spoken_of(self._policy, [name]) & said.keys() - {name}:
                said[implied] |= assertions & _AFFIRMED
        statuses = {name: status_of(assertions) for name, assertions in said.items()}
        if answer is not None:
            statuses |= dict.fromkeys(self._named, answer.status)
        return tuple(sorted(NamedFinding(name, status) for name, status in statuses.items()))

    def _urgent_by_status(self, finding: Finding | None) -> set[str]:
        """Urgent findings that were asked about and are not denied."""
        if finding is None or finding.status is Status.ABSENT:
            return set()
        return {name for name in self._asked if self._policy.findings[name].urgent}

    def _assess(self, *, final: bool) -> str:
        """Judges the sentences that are whole; returns them as they may leave."""
        out = ""
        if self._in_head:
            head, separator, rest = self._text.partition(_HEAD_END)
            if not separator and not final:
                return ""
            self._in_head = False
            out, self._text = head + separator, rest
        if not (final or self._may_end or len(self._text) > MAX_SENTENCE):
            return out
        text, place = self._text, 0
        for start, end in _whole(text, quoted=self._json, final=final):
            out += text[place:start]
            if self._judge(text[start:end]) and self._holds:
                if self._overcall is Action.BLOCK:
                    self.blocked = True
                    return out
                # A section keeps its lead, or its template's parser would not find it.
                lead = _LEAD.match(text, start, end)
                out += (lead[0] if lead else "") + self._policy.file.mark
            else:
                out += text[start:end]
            place = end
        self._text = "" if final else text[place:]
        # An end mark counts once it is known what follows; the last one may not be decided yet.
        self._may_end = _UNDECIDED.search(self._text) is not None
        return out + text[place:] if final else out

    def _judge(self, sentence: str) -> bool:
        """Notes what a sentence says; returns whether it calls a finding nobody asked about."""
        if _asks(sentence):
            return False
        overcalls = False
        named = self._policy.detector.mentions(fold(sentence))
        for mention in named:
            name = mention.finding
            self._said.setdefault(name, set()).add(mention.assertion)
            if mention.assertion not in _AFFIRMED:
                continue
            if mention.urgent:
                self._urgent.add(name)
            if self._judges and self._asked.isdisjoint(spoken_of(self._policy, [name])):
                overcalls = True
                self._overcalled.add(name)
        if not (overcalls and self._holds):
            for mention in named:
                self._left.setdefault(mention.finding, set()).add(mention.assertion)
        return overcalls


def _asks(sentence: str) -> bool:
    """Whether a sentence is a question: it says nothing of what is there."""
    return sentence.endswith("?") and is_closed_question(sentence)


def _whole(text: str, *, quoted: bool, final: bool) -> Iterator[tuple[int, int]]:
    """The sentences of ``text`` that are whole. A JSON string's quotes end one."""
    pieces = text.split('"') if quoted else [text]
    at = 0
    for number, piece in enumerate(pieces):
        still_open = not final and number == len(pieces) - 1
        spans = [(at + start, at + end) for start, end in _bounded(piece)]
        yield from spans[:-1] if still_open else spans
        at += len(piece) + 1


def _bounded(text: str) -> Iterator[tuple[int, int]]:
    """The sentences of a text; what is longer than MAX_SENTENCE is cut between words."""
    at, rest = 0, text
    while rest:
        for start, end in sentences(rest):
            if end - start <= MAX_SENTENCE:
                yield at + start, at + end
                continue
            cut = rest.rfind(" ", start + 1, start + MAX_SENTENCE + 1)
            cut = start + MAX_SENTENCE if cut < 0 else cut
            yield at + start, at + cut
            at, rest = at + cut, rest[cut:]  # begins anew, as it does when it comes in pieces
            break
        else:
            return


def _contradicts(status: Status, said: set[Assertion]) -> bool:
    """Whether an explanation says outright the reverse of the answer's status."""
    if status is Status.ABSENT:
        return Assertion.PRESENT in said
    if status is Status.PRESENT:
        return said == {Assertion.ABSENT}
    return False
