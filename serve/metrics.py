"""Every metric of our own, by name. vLLM's come beside them, under vLLM's names.

Labels have few values by construction: rule ids and actions are the policy's. None is made of what
a client sent. The collectors live as long as the process, as prometheus-client has it.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter, Gauge

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
