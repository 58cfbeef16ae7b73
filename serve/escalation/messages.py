"""What a hook says, and its signature. Pure.

Ids, times and names of the policy's findings only: nothing of a prompt, an answer, an image or of
who asked.

Sources: Standard Webhooks (https://www.standardwebhooks.com), "Signature scheme"; Alertmanager's
API v2 (``POST /api/v2/alerts``).
"""

from __future__ import annotations

import base64
import hmac
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from serve.escalation.rules import Format

ACTION = "escalate to urgent human review"
# Alertmanager takes an alert without an end for over after five minutes. One that nobody has
# acknowledged is not: it stays until it is, or until Alertmanager has forgotten it.
_ALERT_LIFE = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Notice:
    """An urgent finding that somebody is told of, or that one is ``over``: looked at."""

    review_id: str
    audit_id: str
    created: int  # microseconds since 1970
    reminder: int  # 0: news; of one that is over, the next that would have come
    over: bool
    reasons: tuple[str, ...]

    @property
    def id(self) -> str:
        """The same however often it is sent, so that receivers know it again."""
        return f"{self.review_id}_{self.reminder}{'_over' if self.over else ''}"


def body(notice: Notice, format: Format, console: str | None, now: int) -> bytes:
    """A message as JSON. ``now``: microseconds since 1970."""
    content = (
        _generic(notice, console)
        if format == "generic"
        else [_alert(notice, console, datetime.fromtimestamp(now / 1e6, UTC))]
    )
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def signature(key: bytes, id: str, timestamp: int, body: bytes) -> str:
    """The header ``webhook-signature``. ``timestamp``: seconds since 1970."""
    digest = hmac.digest(key, f"{id}.{timestamp}.".encode() + body, "sha256")
    return f"v1,{base64.b64encode(digest).decode()}"


def _generic(notice: Notice, console: str | None) -> dict[str, Any]:
    return {
        "type": "llava_med.urgent_finding",
        "id": notice.id,
        "review_id": notice.review_id,
        "audit_id": notice.audit_id,
        "created": _text(_created(notice)),
        "reminder": notice.reminder,
        "reasons": notice.reasons,
        "action": ACTION,
        "console": console,
    }


def _alert(notice: Notice, console: str | None, now: datetime) -> dict[str, Any]:
    created = _created(notice)
    # It refuses an end before the start, which a clock that was set back would give.
    end = max(now, created) + (timedelta() if notice.over else _ALERT_LIFE)
    reasons = ", ".join(notice.reasons) or "see the review"
    alert = {
        "labels": {
            "alertname": "LlavaMedUrgentFinding",
            "severity": "critical",
            "review_id": notice.review_id,
        },
        "annotations": {"summary": f"Urgent finding in a draft: {reasons}", "action": ACTION},
        "startsAt": _text(created),
        "endsAt": _text(end),
    }
    return alert | ({} if console is None else {"generatorURL": console})


def _created(notice: Notice) -> datetime:
    return datetime.fromtimestamp(notice.created / 1e6, UTC)


def _text(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
