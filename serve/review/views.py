"""The JSON that reviewers and callers get. Knows items and a policy's highlights; reads nothing.

Times are seconds since 1970; offsets into texts are UTF-16 code units, as JavaScript counts them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Literal

from pydantic import BaseModel, ConfigDict

from guardrails import templates
from guardrails.answers import Status, Template
from guardrails.highlights import highlights
from guardrails.policy import Policy
from serve.audit.records import (
    FindingVerdict,
    Model,
    RecordedChoice,
    RecordedFinding,
    RecordedTurn,
    RecordedVerdict,
    ReviewAction,
)
from serve.protocol import ImageNote
from serve.review import states
from serve.review.items import MICROSECONDS, Content, Item, Reminders
from serve.review.queue import Counts, Cursor
from serve.review.states import State

PREFIX = "/v1/reviews"
QUESTION_CHARS = 200


class _View(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Summary(_View):
    """An item in the list. Where it is not readable, all that was sealed is null."""

    id: str
    object: Literal["review"] = "review"
    state: State
    urgent: bool
    held: bool
    readable: bool  # false: shredded, or it does not open (`llava-med audit verify`)
    created: int
    age_s: int
    acknowledged: bool
    template: Template | None
    question: str | None
    status: Status | None
    reasons: tuple[str, ...]
    claimed_by: str | None


class CountsView(_View):
    pending: int
    claimed: int
    urgent: int


class Page(_View):
    """``GET /v1/reviews``."""

    object: Literal["list"] = "list"
    data: tuple[Summary, ...]
    has_more: bool
    next: str | None
    counts: CountsView


class HighlightView(_View):
    start: int
    end: int
    kind: str
    finding: str
    status: Status


class ChoiceView(_View):
    """One choice of the draft, as it left or would have."""

    index: int
    text: str
    finish_reason: str | None
    findings: tuple[RecordedFinding, ...]
    verdicts: tuple[RecordedVerdict, ...]
    highlights: tuple[HighlightView, ...]


class ImageView(ImageNote):
    """An image, and where its picture is."""

    index: int
    url: str


class TurnView(_View):
    role: Literal["system", "user", "assistant"]
    text: str


class EscalationView(_View):
    """``next`` is when somebody is told again, at once if it has passed; null: not any more."""

    reasons: tuple[str, ...]
    sent: int
    failed: int
    next: int | None


class Step(_View):
    """What a reviewer did, and when."""

    action: ReviewAction
    principal: str
    at: int


class Full(Summary):
    """An item, whole."""

    audit_id: str
    version: int
    label: str
    policy: str
    model: Model
    turns: tuple[TurnView, ...]
    images: tuple[ImageView, ...]
    draft: tuple[ChoiceView, ...]
    request_verdicts: tuple[RecordedVerdict, ...]
    escalation: EscalationView | None
    claimed_at: int | None
    acknowledged_at: int | None
    closed_at: int | None
    findings: tuple[FindingVerdict, ...]  # what the reviewer says of them
    comment: str
    amended: str | None
    seconds: float | None
    history: tuple[Step, ...]


class Told(_View):
    """What the caller of an item gets: what became of it, and its answer once that may leave."""

    id: str
    object: Literal["review"] = "review"
    state: State
    held: bool
    answer: str | None = None  # the first choice's
    answers: tuple[str, ...] | None = None  # every choice's, where there are several


class Event(_View):
    """A state, as it is told while somebody waits."""

    id: str
    object: Literal["review"] = "review"
    state: State
    held: bool
    version: int


def summary(item: Item, content: Content | None, *, now: int) -> Summary:
    """An item of the list; ``content`` is None where it is not to be had."""
    return Summary(**_summary(item, content, now))


def page(
    found: Iterable[tuple[Item, Content | None]], next: Cursor | None, counts: Counts, *, now: int
) -> Page:
    """A page of the list."""
    return Page(
        data=tuple(summary(item, content, now=now) for item, content in found),
        has_more=next is not None,
        next=None if next is None else str(next),
        counts=CountsView(pending=counts.pending, claimed=counts.claimed, urgent=counts.urgent),
    )


def _summary(item: Item, content: Content | None, now: int) -> dict[str, object]:
    fields: dict[str, object] = {
        "id": item.review_id,
        "state": item.state,
        "urgent": item.urgent,
        "held": item.held,
        "readable": content is not None,
        "created": item.at // MICROSECONDS,
        "age_s": max(0, now - item.at) // MICROSECONDS,
        "acknowledged": item.acknowledged_at is not None,
        "template": None,
        "question": None,
        "status": None,
        "reasons": (),
        "claimed_by": None,
    }
    if content is not None:
        fields |= {
            "template": content.request.template,
            "question": content.request.question[:QUESTION_CHARS],
            "status": content.status,
            "reasons": content.answer.escalation,
            "claimed_by": content.detail.claimed_by,
        }
    return fields


def full(
    item: Item,
    content: Content,
    reminders: Reminders | None,
    policy: Policy | None,
    *,
    now: int,
) -> Full:
    """An item for a reviewer.

    The highlights are those of the policy in force, which may not be the one that the draft was
    made under.
    """
    request, detail = content.request, content.detail
    fields = _summary(item, content, now) | {"question": request.question}
    return Full(
        **fields,
        audit_id=item.audit_id,
        version=item.version,
        label=policy.file.label if policy else templates.DRAFT_LABEL,
        policy=request.policy,
        model=request.model,
        turns=tuple(_turns(request.turns, policy)),
        images=tuple(
            ImageView(
                **image.note.model_dump(),
                index=index,
                url=f"{PREFIX}/{item.review_id}/images/{index}",
            )
            for index, image in enumerate(request.images)
        ),
        draft=tuple(
            _choice(index, choice, policy) for index, choice in enumerate(content.answer.choices)
        ),
        request_verdicts=request.verdicts,
        escalation=_escalation(item, reminders, content.answer.escalation),
        claimed_at=_seconds(item.claimed_at),
        acknowledged_at=_seconds(item.acknowledged_at),
        closed_at=_seconds(item.closed_at),
        findings=detail.findings,
        comment=detail.comment,
        amended=detail.amended,
        seconds=detail.seconds,
        history=tuple(
            Step(action=record.action, principal=record.principal, at=at // MICROSECONDS)
            for at, record in content.history
        ),
    )


def told(item: Item, content: Content) -> Told:
    """An item for its caller. A held draft leaves when it was signed off, one rejected never."""
    fields = Told(id=item.review_id, state=item.state, held=item.held)
    if item.state == "rejected" or (item.held and item.state in states.OPEN):
        return fields
    if content.detail.amended is not None:
        return fields.model_copy(update={"answer": content.detail.amended})
    texts = tuple(choice.sent for choice in content.answer.choices)
    answers = texts if len(texts) > 1 else None
    return fields.model_copy(update={"answer": texts[0] if texts else None, "answers": answers})


def event(item: Item) -> Event:
    """An item's state."""
    return Event(id=item.review_id, state=item.state, held=item.held, version=item.version)


def _turns(turns: Sequence[RecordedTurn], policy: Policy | None) -> Iterable[TurnView]:
    """The turns without our own preamble; what the client's system messages said stays."""
    for turn in turns:
        if turn.role != "system":
            yield TurnView(role=turn.role, text=turn.text)
        elif policy is not None:
            text = turn.text.removeprefix(policy.file.preamble).lstrip("\n")
            if text:
                yield TurnView(role="system", text=text)


def _choice(index: int, choice: RecordedChoice, policy: Policy | None) -> ChoiceView:
    places = highlights(policy, choice.sent) if policy else ()
    units = [0, *accumulate(1 + (ord(character) > 0xFFFF) for character in choice.sent)]
    return ChoiceView(
        index=index,
        text=choice.sent,
        finish_reason=choice.finish_reason,
        findings=choice.findings,
        verdicts=choice.verdicts,
        highlights=tuple(
            HighlightView(
                start=units[one.start],
                end=units[one.end],
                kind=one.kind,
                finding=one.finding,
                status=one.status,
            )
            for one in places
        ),
    )


def _escalation(
    item: Item, reminders: Reminders | None, reasons: tuple[str, ...]
) -> EscalationView | None:
    if reminders is None:
        return None
    # The outbox keeps its time until the courier has seen that it is acknowledged.
    due_at = None if item.acknowledged_at is not None else reminders.next_at
    # What is due at once has a time before all times in the outbox.
    next_at = None if due_at is None else max(item.at, due_at)
    return EscalationView(
        reasons=reasons,
        sent=reminders.sent,
        failed=reminders.failed,
        next=_seconds(next_at),
    )


def _seconds(at: int | None) -> int | None:
    return None if at is None else at // MICROSECONDS
