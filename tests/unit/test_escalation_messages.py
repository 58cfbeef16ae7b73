"""What a hook says, signed so that others' code agrees."""

from __future__ import annotations

import base64
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from serve.escalation.messages import Notice, body, signature

CREATED = 1_800_000_000_123_456  # 2027-01-15T08:00:00.123456Z
NOTICE = Notice("review-1", "audit-1", CREATED, 0, False, ("pneumothorax", "tension"))
CONSOLE = "https://console.internal/"


@given(key=st.binary(min_size=24, max_size=64), id=st.uuids().map(str), content=st.text())
def test_other_code_finds_the_signature_right_and_of_anything_else_wrong(
    key: bytes, id: str, content: str
) -> None:
    now, data = int(time.time()), content.encode()
    headers = {
        "webhook-id": id,
        "webhook-timestamp": str(now),
        "webhook-signature": signature(key, id, now, data),
    }
    theirs = Webhook(base64.b64encode(key).decode())
    theirs.verify(data, headers, json_parse=False)
    for changed in (
        headers | {"webhook-id": id + "1"},
        headers | {"webhook-timestamp": str(now + 1)},
    ):
        with pytest.raises(WebhookVerificationError):
            theirs.verify(data, changed, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        theirs.verify(data + b" ", headers, json_parse=False)


def test_a_generic_message_has_ids_times_and_reasons_and_nothing_else() -> None:
    assert json.loads(body(NOTICE, "generic", CONSOLE, CREATED)) == {
        "type": "llava_med.urgent_finding",
        "id": "review-1_0",
        "review_id": "review-1",
        "audit_id": "audit-1",
        "created": "2027-01-15T08:00:00.123456Z",
        "reminder": 0,
        "reasons": ["pneumothorax", "tension"],
        "action": "escalate to urgent human review",
        "console": CONSOLE,
    }
    assert json.loads(body(NOTICE, "generic", None, CREATED))["console"] is None


def test_an_alert_stands_for_thirty_days_unless_it_is_over() -> None:
    [alert] = json.loads(body(NOTICE, "alertmanager", CONSOLE, CREATED + 5_000_000))
    assert alert == {
        "labels": {
            "alertname": "LlavaMedUrgentFinding",
            "severity": "critical",
            "review_id": "review-1",
        },
        "annotations": {
            "summary": "Urgent finding in a draft: pneumothorax, tension",
            "action": "escalate to urgent human review",
        },
        "startsAt": "2027-01-15T08:00:00.123456Z",
        "endsAt": "2027-02-14T08:00:05.123456Z",
        "generatorURL": CONSOLE,
    }


def test_an_alert_that_is_over_has_the_same_labels_and_ends_now() -> None:
    over = Notice("review-1", "audit-1", CREATED, 1, True, ("pneumothorax",))
    [alert] = json.loads(body(over, "alertmanager", None, CREATED + 5_000_000))
    [before] = json.loads(body(NOTICE, "alertmanager", None, CREATED))
    assert alert["labels"] == before["labels"]
    assert alert["endsAt"] == "2027-01-15T08:00:05.123456Z"
    assert "generatorURL" not in alert


@given(over=st.booleans(), step_us=st.integers(-(10**15), 10**15))
def test_an_alert_never_ends_before_it_starts_whatever_the_clock(over: bool, step_us: int) -> None:
    notice = Notice("review-1", "audit-1", CREATED, 0, over, ())
    [alert] = json.loads(body(notice, "alertmanager", None, CREATED + step_us))
    assert alert["startsAt"] <= alert["endsAt"]


def test_each_reminder_and_each_end_has_an_id_of_its_own() -> None:
    notices = [
        Notice("r", "a", CREATED, number, over, ())
        for number in (0, 1, 2, 10)
        for over in (False, True)
    ]
    assert len({notice.id for notice in notices}) == len(notices)
