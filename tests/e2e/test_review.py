"""From an answer to a clinician's verdict, on the running service: queue, console, hook, CLI."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pyarrow.parquet as pq
import pytest
from PIL import Image

from guardrails import policy
from serve.local import run_dir
from serve.phantom.draw import Phantom, draw
from tests.e2e.conftest import REMIND_S, Stack, new_key
from tests.e2e.images import ask
from tests.hooks import Call

REVIEWS = "/v1/reviews"
QUESTION = "Is there a pneumothorax?"
COLLAPSED = draw(Phantom(pneumothorax="left"), seed=3)
URGENT = ("  - name: pneumothorax\n", "  - name: pneumothorax\n    urgent: true\n")
HOLD = ("  mode: annotate\n", "  mode: hold\n")
Found = TypeVar("Found")


def _policy(*changes: tuple[str, str]) -> str:
    text = policy.read()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


@pytest.fixture
def _urgent(stack: Stack) -> Iterator[None]:
    """A policy by which a pneumothorax, which the phantom knows, is urgent."""
    done = stack.reload(_policy(URGENT))
    assert done.returncode == 0, done.stderr
    yield
    assert stack.reload(policy.read()).returncode == 0


@pytest.fixture
def _held(stack: Stack) -> Iterator[None]:
    """A policy by which nothing leaves before a clinician has signed it off."""
    done = stack.reload(_policy(URGENT, HOLD))
    assert done.returncode == 0, done.stderr
    yield
    assert stack.reload(policy.read()).returncode == 0


def _asked(
    stack: Stack,
    image: Image.Image = COLLAPSED,
    *,
    who: str | None = None,
    question: str = QUESTION,
) -> dict[str, Any]:
    with stack.http(who) as client:
        body = {"model": "llava-med", "messages": ask(question, image)}
        response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def _review_id(answer: dict[str, Any]) -> str:
    return str(answer["guardrails"]["review_id"])


def _queue(client: httpx.Client, **query: str) -> Iterator[dict[str, Any]]:
    """The whole queue: other tests leave thousands in it."""
    after: dict[str, str] = {}
    while True:
        response = client.get(REVIEWS, params={"limit": "200", **query, **after})
        assert response.status_code == 200, response.text
        page = response.json()
        yield from page["data"]
        if not page["has_more"]:
            return
        after = {"after": page["next"]}


def _item(client: httpx.Client, review_id: str) -> dict[str, Any]:
    response = client.get(f"{REVIEWS}/{review_id}")
    assert response.status_code == 200, response.text
    return dict(response.json())


def _act(client: httpx.Client, review_id: str, action: str, **body: object) -> httpx.Response:
    return client.post(f"{REVIEWS}/{review_id}/{action}", json=body)


def _signed_off(stack: Stack, review_id: str, **body: object) -> dict[str, Any]:
    with stack.http("dr-jones") as client:
        version = _item(client, review_id)["version"]
        claimed = _act(client, review_id, "claim", version=version)
        assert claimed.status_code == 200, claimed.text
        version = claimed.json()["version"]
        done = _act(client, review_id, "sign_off", version=version, **body)
        assert done.status_code == 200, done.text
        return dict(done.json())


def _error(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def _soon(what: Callable[[], Found | None], *, timeout_s: float = 10) -> Found:
    """What is there before long."""
    deadline = time.monotonic() + timeout_s
    while (found := what()) is None:
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


def test_an_answer_is_in_the_queue_and_the_reviewer_sees_what_left(stack: Stack) -> None:
    answer = _asked(stack)
    review_id = _review_id(answer)
    with stack.http("dr-jones") as client:
        (listed,) = (one for one in _queue(client) if one["id"] == review_id)
        item = _item(client, review_id)
    assert listed["state"] == "pending"
    assert listed["question"] == QUESTION
    assert listed["status"] == answer["guardrails"]["finding"]["status"] == "present"
    assert [choice["text"] for choice in item["draft"]] == [
        answer["choices"][0]["message"]["content"]
    ]
    assert item["audit_id"] == answer["guardrails"]["audit_id"]
    assert item["policy"] == answer["guardrails"]["policy"]
    assert {"finding": "pneumothorax", "status": "present"} in item["draft"][0]["findings"]


def test_who_claims_closes_and_whoever_comes_later_is_refused(stack: Stack) -> None:
    review_id = _review_id(_asked(stack))
    with stack.http("dr-jones") as jones, stack.http("dr-smith") as smith:
        assert _act(jones, review_id, "claim", version=1).json()["claimed_by"] == "dr-jones"
        assert _error(_act(smith, review_id, "sign_off", version=2)) == (409, "conflict")
        verdicts = [{"finding": "pneumothorax", "verdict": "overcall"}]
        done = _act(jones, review_id, "sign_off", version=2, findings=verdicts, comment="A fold.")
        assert done.json()["state"] == "signed_off"
        assert _error(_act(smith, review_id, "sign_off", version=2)) == (409, "conflict")
        assert _error(_act(smith, review_id, "reject", version=3)) == (409, "conflict")
        item = _item(smith, review_id)
        assert review_id not in [one["id"] for one in _queue(smith, state="open")]
    assert [(step["action"], step["principal"]) for step in item["history"]] == [
        ("claim", "dr-jones"),
        ("sign_off", "dr-jones"),
    ]
    assert item["findings"] == verdicts
    assert item["comment"] == "A fold."


def test_a_caller_sees_state_and_answer_of_its_own_and_nothing_of_others(stack: Stack) -> None:
    mine = _asked(stack)
    theirs = _asked(stack, who="viewer")
    with stack.http() as client, stack.http("viewer") as viewer:
        seen = _item(client, _review_id(mine))
        assert set(seen) == {"id", "object", "state", "held", "answer", "answers"}
        assert seen["state"] == "pending"
        assert seen["answer"] == mine["choices"][0]["message"]["content"]
        assert _item(viewer, _review_id(theirs))["answer"]
        for path in (f"{REVIEWS}/{_review_id(theirs)}", f"{REVIEWS}/{_review_id(theirs)}/events"):
            assert _error(client.get(path)) == (404, "not_found")
        for path in (REVIEWS, f"{REVIEWS}/stats", f"{REVIEWS}/{_review_id(mine)}/images/0"):
            assert _error(client.get(path)) == (403, "role_missing")
        refused = _act(client, _review_id(mine), "claim", version=1)
        assert _error(refused) == (403, "role_missing")
    with stack.http("dr-jones") as reviewer:
        assert reviewer.post("/v1/chat/completions", json={}).status_code == 403


def _data(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    return (json.loads(line[6:]) for line in lines if line.startswith("data: {"))


def _last(text: str) -> dict[str, Any]:
    """A whole answer, or the last event of a streamed one."""
    return dict([*_data(text.splitlines())][-1] if text.startswith("data: ") else json.loads(text))


@pytest.mark.parametrize("who", [None, "dr-smith"])
def test_who_waits_hears_of_each_state_until_it_is_closed(stack: Stack, who: str | None) -> None:
    review_id = _review_id(_asked(stack))
    with (
        stack.http(who) as client,
        stack.http("dr-jones") as jones,
        client.stream("GET", f"{REVIEWS}/{review_id}/events") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        events = _data(response.iter_lines())
        assert next(events)["state"] == "pending"
        _act(jones, review_id, "claim", version=1)
        told_at = time.monotonic()
        assert next(events)["state"] == "claimed"
        assert time.monotonic() - told_at < 5
        _act(jones, review_id, "sign_off", version=2)
        assert [event["state"] for event in events] == ["signed_off"]


@pytest.mark.parametrize("size", [(336, 336), (1500, 1200)])
def test_the_image_under_review_is_a_bare_png_of_what_was_asked_about(
    stack: Stack, size: tuple[int, int]
) -> None:
    image = COLLAPSED.convert("L").resize(size)
    review_id = _review_id(_asked(stack, image))
    with stack.http("dr-jones") as client:
        (shown,) = _item(client, review_id)["images"]
        response = client.get(shown["url"])
        assert _error(client.get(f"{REVIEWS}/{review_id}/images/1")) == (404, "not_found")
    assert response.headers["content-type"] == "image/png"
    assert response.headers["cache-control"] == "no-store"
    png = Image.open(io.BytesIO(response.content))
    scale = min(1, 1024 / size[0])
    assert png.size == (round(size[0] * scale), round(size[1] * scale))
    assert png.info == {}
    if scale == 1:
        assert png.convert("L").tobytes() == image.tobytes()


def test_the_console_is_served_with_headers_that_let_a_browser_do_little(stack: Stack) -> None:
    root = f"{stack.url}{REVIEWS}/console"
    moved = httpx.get(root)
    assert moved.is_redirect
    assert httpx.URL(root).join(moved.headers["location"]) == httpx.URL(f"{root}/")
    page = httpx.get(f"{root}/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    names = [part.split('"')[0] for part in page.text.split('src="')[1:]]
    scripts = [httpx.get(f"{root}/{name}") for name in names if name.endswith(".js")]
    assert scripts
    for response in (page, *scripts):
        rules = response.headers["content-security-policy"].split("; ")
        assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(rules)
        assert "unsafe" not in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert "set-cookie" not in response.headers
    assert httpx.get(f"{root}/../deployment.py").status_code in (401, 404)
    assert httpx.get(f"{root}/%2e%2e/pages.py").status_code in (401, 404)


@pytest.mark.parametrize("path", ["/v1/models", "/health", REVIEWS, f"{REVIEWS}/console/"])
def test_a_key_in_a_url_is_refused_by_both_applications(stack: Stack, path: str) -> None:
    key = stack.people["admin"]
    response = httpx.get(f"{stack.url}{path}", params={"api_key": key})
    assert _error(response) == (400, "key_in_url")
    assert key not in response.text


def test_a_new_reviewers_key_opens_at_once_and_a_revoked_one_does_not(stack: Stack) -> None:
    key = new_key("dr-new", "reviewer", stack.environment)
    headers = {"Authorization": f"Bearer {key}"}

    def answers(status: int) -> bool | None:
        response = httpx.get(f"{stack.url}{REVIEWS}?limit=1", headers=headers)
        return True if response.status_code == status else None

    assert _soon(lambda: answers(200))
    assert stack.command("keys", "revoke", "dr-new").returncode == 0
    assert _soon(lambda: answers(401))


def _calls(stack: Stack, review_id: str) -> list[Call]:
    return [call for call in stack.hooks.calls if call.content["review_id"] == review_id]


@pytest.mark.usefixtures("_urgent")
def test_whoever_is_on_call_hears_of_an_urgent_finding_until_somebody_acknowledges(
    stack: Stack,
) -> None:
    seen, unseen = _asked(stack), _asked(stack)
    asked = time.monotonic()
    assert seen["guardrails"]["escalation"]["reasons"] == ["pneumothorax"]
    first = _soon(lambda: next(iter(_calls(stack, _review_id(seen))), None))
    assert time.monotonic() - asked < 3
    with stack.http("dr-smith") as client:
        done = _act(client, _review_id(seen), "acknowledge", version=1)
        assert done.status_code == 200, done.text
        assert done.json()["acknowledged"]
        assert done.json()["escalation"]["next"] is None
        (listed,) = (one for one in _queue(client, urgent="true") if one["id"] == _review_id(seen))
    assert listed["acknowledged"]
    assert listed["state"] == "pending"
    assert first.verified() == {
        "type": "llava_med.urgent_finding",
        "id": f"{_review_id(seen)}_0",
        "review_id": _review_id(seen),
        "audit_id": seen["guardrails"]["audit_id"],
        "created": first.content["created"],
        "reminder": 0,
        "reasons": ["pneumothorax"],
        "action": "escalate to urgent human review",
        "console": f"{stack.url}{REVIEWS}/console/",
    }
    said = json.dumps(dict(first.request.headers)).encode() + first.body
    for text in (QUESTION, seen["guardrails"]["finding"]["explanation"], stack.key, "default"):
        assert text.encode() not in said
    reminded = _soon(lambda: _calls(stack, _review_id(unseen))[1:2] or None, timeout_s=REMIND_S + 8)
    assert reminded[0].verified()["reminder"] == 1
    time.sleep(1.5)  # another look of the courier's
    assert len(_calls(stack, _review_id(seen))) == 1


@pytest.mark.usefixtures("_held")
@pytest.mark.parametrize("stream", [False, True])
def test_a_held_draft_is_shown_to_nobody_but_reviewers_until_it_is_signed_off(
    stack: Stack, stream: bool
) -> None:
    body = {"model": "llava-med", "messages": ask(QUESTION, COLLAPSED), "stream": stream}
    with stack.http() as client:
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 200
        text = response.text
        rails = _last(text)["guardrails"]
        assert rails["status"] == "held"
        assert rails["finding"] is rails["findings"] is rails["sections"] is None
        assert rails["escalation"] is None
        assert "likely" not in text
        assert "This draft is held" in text
        before = _item(client, rails["review_id"])
        assert before == {
            "id": rails["review_id"],
            "object": "review",
            "state": "pending",
            "held": True,
            "answer": None,
            "answers": None,
        }
        # Held or not, whoever is on call hears of it.
        assert _soon(lambda: next(iter(_calls(stack, rails["review_id"])), None))
        signed = _signed_off(stack, rails["review_id"])
        after = _item(client, rails["review_id"])
    assert after["state"] == "signed_off"
    assert after["answer"] == signed["draft"][0]["text"]
    assert after["answer"].startswith("likely present, explanation: ")


@pytest.mark.usefixtures("_held")
def test_a_held_draft_that_is_amended_leaves_as_amended_and_a_rejected_one_never(
    stack: Stack,
) -> None:
    amended, rejected = (_review_id(_asked(stack)) for _ in range(2))
    with stack.http("dr-jones") as jones, stack.http() as client:
        for review_id in (amended, rejected):
            assert _act(jones, review_id, "claim", version=1).status_code == 200
        assert _act(jones, amended, "amend", version=2, amended="No pneumothorax.").is_success
        assert _act(jones, rejected, "reject", version=2).is_success
        assert _item(client, amended)["answer"] == "No pneumothorax."
        assert _item(client, rejected)["answer"] is None


def test_commands_tell_of_the_running_service_what_it_did(stack: Stack, tmp_path: Path) -> None:
    answer = _asked(stack)
    audit_id, review_id = answer["guardrails"]["audit_id"], _review_id(answer)
    verdicts = [{"finding": "pneumothorax", "verdict": "agree"}]
    _signed_off(stack, review_id, findings=verdicts)

    found = stack.command("audit", "search", "--status", "present", "--since", "1h", "--json")
    assert found.returncode == 0, found.stderr
    assert audit_id in [json.loads(line)["audit_id"] for line in found.stdout.splitlines()]

    shown = stack.command("audit", "show", review_id, "--json", "--images", str(tmp_path / "pngs"))
    assert shown.returncode == 0, shown.stderr
    assert QUESTION in shown.stdout
    assert answer["guardrails"]["finding"]["explanation"] in shown.stdout
    assert "sign_off" in shown.stdout
    assert list((tmp_path / "pngs").iterdir())

    file = tmp_path / "answers.parquet"
    written = stack.command("audit", "export", str(file), "--since", "1h", "--status", "present")
    assert written.returncode == 0, written.stderr
    assert audit_id in pq.read_table(file).column("audit_id").to_pylist()

    rates = stack.command("review", "stats", "--json")
    assert rates.returncode == 0, rates.stderr
    assert json.loads(rates.stdout)["signed_off"] >= 1

    verified = stack.command("audit", "verify", "--json")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert json.loads(verified.stdout)["sound"] is True


@pytest.mark.parametrize("who", ["dr-jones", "viewer"])
def test_commands_need_the_role(stack: Stack, who: str) -> None:
    refused = stack.command("audit", "search", who=who)
    assert refused.returncode == 2
    assert "does not have the role auditor" in refused.stderr
    assert stack.people[who] not in refused.stderr


def test_no_log_has_a_key_or_anything_of_a_question_or_an_answer(stack: Stack) -> None:
    question, comment = "Is there a pneumothorax beside the zircon?", "A fold of the skin."
    answer = _asked(stack, question=question)
    _signed_off(stack, _review_id(answer), comment=comment)
    said = (question, answer["guardrails"]["finding"]["explanation"], comment)
    unwanted = [text.encode() for text in (*said, *stack.secrets())]
    logs = [*run_dir(stack.port).glob("session_*/logs/**/*.*"), stack.log]
    assert len(logs) > 5
    for log in logs:
        if log.is_file():
            content = log.read_bytes()
            assert not [text for text in unwanted if text in content], log
