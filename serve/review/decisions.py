"""What an action does to an item, or why it may not. Pure: rows and clocks come from the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from guardrails.answers import Status
from serve.audit.records import Agreement, FindingVerdict, ReviewAction, ReviewRecord
from serve.errors import BadRequest, Conflict
from serve.review import states
from serve.review.items import MICROSECONDS, Content, Detail, Item
from serve.review.states import NoTransitionError, State

# Claims older than this may be taken over: whoever has claimed and gone home blocks nobody.
CLAIM_US = 30 * 60 * MICROSECONDS
MAX_AMENDED = 32_768
MAX_COMMENT = 8_192
MAX_FINDINGS = 64


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class GivenVerdict(_Closed):
    """A clinician's verdict on one finding, as it comes in."""

    finding: Annotated[str, Field(pattern=r"^[a-z0-9 _-]{1,64}$")]
    verdict: Agreement


class Act(_Closed):
    """The body of an action. ``version`` is that of the item that the reviewer has seen."""

    version: int = Field(ge=1)
    findings: tuple[GivenVerdict, ...] = Field(default=(), max_length=MAX_FINDINGS, strict=False)
    comment: str = Field(default="", max_length=MAX_COMMENT)
    amended: str | None = Field(default=None, max_length=MAX_AMENDED)


@dataclass(frozen=True, slots=True)
class Change:
    """What an item becomes. Times are microseconds since 1970."""

    state: State
    claimed_at: int | None
    acknowledged_at: int | None
    closed_at: int | None
    detail: Detail
    record: ReviewRecord

    @property
    def version(self) -> int:
        """Of the item, after it."""
        return self.record.version


def decide(
    item: Item, content: Content, action: ReviewAction, act: Act, *, principal: str, now: int
) -> Change:
    """What an action comes to.

    Raises:
        Conflict: the item is not as the reviewer saw it, or somebody else's; says whose.
        BadRequest: the action does not take what came with it, or lacks something.
    """
    state = _allowed(item, content.detail, action, act.version, principal, now)
    closing = action in states.CLOSING
    findings = _verdicts(action, act, content.findings)
    _check_texts(action, act)
    seconds = max(0, now - (item.claimed_at or now)) / MICROSECONDS if closing else None
    acknowledged_at: int | None = item.acknowledged_at or now
    if action == "release" and content.detail.acknowledged_by is None:
        acknowledged_at = None  # only the claim had: of what nobody looks at somebody is told again
    return Change(
        state=state,
        claimed_at={"claim": now, "release": None}.get(action, item.claimed_at),
        acknowledged_at=acknowledged_at,
        closed_at=now if closing else None,
        detail=Detail(
            claimed_by={"claim": principal, "release": None}.get(action, content.detail.claimed_by),
            acknowledged_by=content.detail.acknowledged_by
            or (principal if action == "acknowledge" else None),
            closed_by=principal if closing else None,
            findings=findings,
            comment=act.comment,
            amended=act.amended,
            seconds=seconds,
        ),
        record=ReviewRecord(
            review_id=item.review_id,
            version=item.version + 1,
            action=action,
            principal=principal,
            findings=findings,
            comment=act.comment,
            amended=act.amended,
            seconds=seconds,
        ),
    )


def changed() -> Conflict:
    """Somebody was faster."""
    return Conflict("This item has changed since you looked at it. Look again.")


def _allowed(
    item: Item, detail: Detail, action: ReviewAction, version: int, principal: str, now: int
) -> State:
    if item.state in states.CLOSED:
        how = item.state.replace("_", " ")
        raise Conflict(f"This item is closed: {how} by {detail.closed_by}.")
    try:
        state = states.after(item.state, action)
    except NoTransitionError:
        raise Conflict("Nobody holds this item. Claim it first.") from None
    if action == "claim" and item.state == "claimed":
        if now - (item.claimed_at or 0) < CLAIM_US:
            raise Conflict(f"{detail.claimed_by} holds this item.")
    elif item.state == "claimed" and action != "acknowledge" and detail.claimed_by != principal:
        raise Conflict(f"{detail.claimed_by} holds this item.")
    if version != item.version:
        raise changed()
    return state


def _check_texts(action: ReviewAction, act: Act) -> None:
    if action not in states.CLOSING and act.comment:
        raise BadRequest("Only what closes an item takes a comment.", param="comment")
    if action == "amend" and not (act.amended or "").strip():
        raise BadRequest("amend needs the text that replaces the draft.", param="amended")
    if action != "amend" and act.amended is not None:
        raise BadRequest("Only amend takes a text that replaces the draft.", param="amended")


def _verdicts(
    action: ReviewAction, act: Act, drafted: Mapping[str, Status]
) -> tuple[FindingVerdict, ...]:
    """The verdicts to record. Whoever signs off agrees with what they do not mention."""
    if act.findings and action not in states.CLOSING:
        raise BadRequest("Only what closes an item takes verdicts.", param="findings")
    given = {one.finding: one.verdict for one in act.findings}
    if len(given) != len(act.findings):
        raise BadRequest("Each finding takes one verdict.", param="findings")
    for finding, verdict in given.items():
        _check_verdict(verdict, drafted.get(finding))
    if action == "sign_off":
        unmentioned: dict[str, Agreement] = dict.fromkeys(drafted, "agree")
        given = unmentioned | given
    return tuple(
        FindingVerdict(finding=finding, verdict=verdict) for finding, verdict in given.items()
    )


def _check_verdict(verdict: Agreement, status: Status | None) -> None:
    """A rate is worth something only where each verdict could have been true."""
    if verdict == "missed":
        if status is Status.PRESENT:
            raise BadRequest(
                "A finding that the draft calls present is not missed.", param="findings"
            )
    elif status is None:
        raise BadRequest(
            "A finding that the draft does not name takes the verdict missed only.",
            param="findings",
        )
    elif verdict != "agree" and status is Status.ABSENT:
        raise BadRequest(
            "A finding that the draft calls absent is neither overcalled nor on a side.",
            param="findings",
        )
