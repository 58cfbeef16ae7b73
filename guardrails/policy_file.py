"""The shape of the policy file: its sections, their fields, and what each may hold.

Knows the schema only; what it cannot see (patterns, examples, names) is checked where a policy is
put together (guardrails/policy.py).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from guardrails.findings import Assertion
from guardrails.rules import Action
from guardrails.templates import Template


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Text = Annotated[str, Field(min_length=1)]
_Lexicon = Annotated[tuple[_Text, ...], Field(min_length=1)]
_Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
# Marks and labels are put into JSON and server-sent events as they are.
_Plain = Annotated[str, Field(min_length=1, max_length=200, pattern=r'^[^"\\\x00-\x1f]+$')]


class Examples(_Closed):
    """Texts on which a rule must fire, and texts on which it must not: checked at every load."""

    fires: tuple[_Text, ...] = ()
    passes: tuple[_Text, ...] = ()


class RuleEntry(_Closed):
    """A rule as the file has it. It needs an action at one stage at least."""

    id: _Name
    description: _Text
    input: Action | None = None
    output: Action | None = None
    templates: tuple[Template, ...] = tuple(Template)
    case_sensitive: bool = False
    patterns: tuple[_Text, ...] = Field(min_length=1)
    unless_before: tuple[_Text, ...] = ()
    unless_after: tuple[_Text, ...] = ()
    unless_within: tuple[_Text, ...] = ()
    examples: Examples = Examples()

    @model_validator(mode="after")
    def _acts(self) -> RuleEntry:
        if self.input is None and self.output is None:
            raise ValueError("needs an action: input, output or both")
        return self


class TemplateItem(_Closed):
    """The instruction that a template adds to a question, for its text and its JSON answer."""

    text: _Text
    json_: _Text = Field(alias="json")


class FindingItem(_Closed):
    """A finding, the terms that name it, and the findings that a mention of it speaks about too."""

    name: _Name
    terms: tuple[_Text, ...] = Field(min_length=1)
    urgent: bool = False
    implies: tuple[_Name, ...] = ()


class CueItem(_Closed):
    """Phrases that say whether a finding beside them is there."""

    status: Assertion
    direction: Literal["forward", "backward", "both"]
    phrases: tuple[_Text, ...]


class AssertionItem(_Closed):
    """How sentences deny, doubt and date findings (NegEx, ConText)."""

    cues: tuple[CueItem, ...] = ()
    pseudo: tuple[_Text, ...] = ()
    terminators: tuple[_Text, ...] = ()
    max_scope_words: int = Field(default=12, gt=0, le=60)


class FindingActions(_Closed):
    """What happens when an answer's findings are amiss; null: nothing."""

    # A finding that was not asked about.
    overcall: Literal[Action.FLAG, Action.REDACT, Action.BLOCK] | None = Action.FLAG
    # An explanation that affirms what the answer denies, or the reverse.
    inconsistent: Literal[Action.FLAG] | None = Action.FLAG
    urgent: Literal[Action.ESCALATE, Action.FLAG] | None = Action.ESCALATE


class ReviewMode(StrEnum):
    """When a caller gets the draft."""

    ANNOTATE = "annotate"  # at once, labelled
    HOLD = "hold"  # only once a clinician has signed it off


class ReviewItem(_Closed):
    """What a caller gets before a clinician has looked."""

    mode: ReviewMode = ReviewMode.ANNOTATE
    held: _Plain = "This draft is held for a clinician's review."  # in place of a held draft


class PolicyFile(_Closed):
    """The whole file."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    version: int = Field(ge=1)
    preamble: _Text
    label: _Plain
    mark: _Plain = "[redacted]"
    templates: dict[Template, TemplateItem] = Field(default_factory=dict)
    lexicons: dict[_Name, _Lexicon] = Field(default_factory=dict)
    rules: tuple[RuleEntry, ...] = ()
    actions: FindingActions = FindingActions()
    review: ReviewItem = ReviewItem()
    findings: tuple[FindingItem, ...] = ()
    assertion: AssertionItem = AssertionItem()
