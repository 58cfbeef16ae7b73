"""Every metric of our own, by name. vLLM's come beside them, under vLLM's names.

Labels have few values by construction: rule ids and actions are the policy's. None is made of what
a client sent. The collectors live as long as the process, as prometheus-client has it.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from guardrails.rules import Stage, Verdict

VERDICTS = Counter(
    "llava_med_guardrail_verdicts",
    "Requests or answers on which a rule fired, each rule once for each of them.",
    ["stage", "rule", "action"],
)
FAILURES = Counter(
    "llava_med_guardrail_failures",
    "Requests or answers that were withheld because a guardrail broke.",
    ["stage"],
)
POLICY_LOADS = Counter(
    "llava_med_policy_loads",
    "Policies offered to this replica: used, or refused with the former one kept.",
    ["outcome"],
)
POLICY = Gauge("llava_med_policy_info", "1 for the policy in force.", ["policy"])

IMAGES = Counter(
    "llava_med_images",
    "Images that requests brought, by what they are: prepared for the model, or the error code.",
    ["kind", "outcome"],
)
IMAGE_SECONDS = Histogram(
    "llava_med_image_intake_seconds",
    "From an image's URL to what the model sees: fetching, waiting and decoding.",
    ["kind"],
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20),
)

IMAGE_REUSE = Counter(
    "llava_med_image_reuse",
    "Images that were decoded for an earlier question (hit), or not yet (miss).",
    ["outcome"],
)
LOOP_LAG = Histogram(
    "llava_med_event_loop_lag_seconds",
    "How late the replica's event loop ran for reasons of its own process.",
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
)


RECORDS = Counter(
    "llava_med_audit_records",
    "Records by kind: durable, or failed; a failed one's request or answer was refused.",
    ["kind", "outcome"],
)
RECORD_SECONDS = Histogram(
    "llava_med_audit_write_seconds",
    "How long a request or an answer waited for its record to be durable.",
    ["kind"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
# What AuditLog serves, at /v1/reviews/metrics; a replica's own /metrics would show it as nought.
REVIEWS = CollectorRegistry()
ESCALATIONS = Counter(
    "llava_med_escalations",
    "Messages about urgent findings: sent, failed, resolved, unanswered (all reminders sent), or "
    "broken (the audit store did not answer).",
    ["outcome"],
    registry=REVIEWS,
)
URGENT_WAITING = Gauge(
    "llava_med_urgent_waiting",
    "Urgent findings that nobody has acknowledged.",
    registry=REVIEWS,
)
URGENT_OLDEST = Gauge(
    "llava_med_urgent_oldest_seconds", "Age of the oldest of these; 0: none.", registry=REVIEWS
)


def escalated(outcome: str) -> None:
    """Counts what became of a message about an urgent finding."""
    ESCALATIONS.labels(outcome).inc()


def urgent_waiting(number: int, oldest_s: float) -> None:
    """Shows what nobody has acknowledged."""
    URGENT_WAITING.set(number)
    URGENT_OLDEST.set(oldest_s)


def recorded(kind: str, seconds: float | None = None) -> None:
    """Counts a record that is durable, and how long somebody waited for it."""
    RECORDS.labels(kind, "durable").inc()
    if seconds is not None:
        RECORD_SECONDS.labels(kind).observe(seconds)


def record_failed(kind: str) -> None:
    """Counts a record that is not."""
    RECORDS.labels(kind, "failed").inc()


def loop_late(seconds: float) -> None:
    """Records one look at the event loop."""
    LOOP_LAG.observe(seconds)


def image_asked_for(*, known: bool) -> None:
    """Counts whether an image was at hand."""
    IMAGE_REUSE.labels("hit" if known else "miss").inc()


def image_taken(kind: str, seconds: float) -> None:
    """Counts an image that goes to the model."""
    IMAGES.labels(kind, "prepared").inc()
    IMAGE_SECONDS.labels(kind).observe(seconds)


def image_refused(kind: str, code: str) -> None:
    """Counts an image that does not."""
    IMAGES.labels(kind, code).inc()


def count_verdicts(verdicts: Iterable[Verdict]) -> None:
    """Counts what the rules decided of one request or one answer."""
    for stage, rule, action in {(v.stage, v.rule, v.action) for v in verdicts}:
        VERDICTS.labels(stage, rule, action).inc()


def count_failure(stage: Stage) -> None:
    """Counts a guardrail that broke."""
    FAILURES.labels(stage).inc()


def policy_used(policy_id: str) -> None:
    """Notes the policy in force."""
    POLICY.clear()
    POLICY.labels(policy_id).set(1)
    POLICY_LOADS.labels("used").inc()


def policy_refused() -> None:
    """Counts a policy that was not fit for use."""
    POLICY_LOADS.labels("refused").inc()
