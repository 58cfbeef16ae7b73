"""The review API over a real store: who sees what, what is recorded, and who wins."""

from __future__ import annotations

import asyncio
import io
import json
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sqlalchemy import update

from guardrails.answers import Status, Template
from serve.audit import schema
from serve.audit.records import RecordedTurn
from serve.review import pages
from tests.exchanges import ANSWER, QUESTION, Written, chest
from tests.unit.reviewing import Room, room_in

LIST = "/v1/reviews"


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    with room_in(tmp_path) as made:
        yield made


def of(written: Written, rest: str = "") -> str:
    return f"{LIST}/{written.review_id}{rest}"


def code(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def message(response: Any) -> str:
    return str(response.json()["error"]["message"])


# --- the list ----------------------------------------------------------------------------------


async def test_the_list_has_urgent_items_first_and_then_the_oldest(room: Room) -> None:
    young, old = room.write(age_s=10), room.write(age_s=1000)
    urgent = room.write(age_s=5, urgent=["pneumothorax"])
    page = (await room.get(LIST)).json()
    assert [one["id"] for one in page["data"]] == [one.review_id for one in (urgent, old, young)]
    assert page["counts"] == {"pending": 3, "claimed": 0, "urgent": 1}
    assert page["object"] == "list"
    assert not page["has_more"]
    assert page["next"] is None


async def test_a_summary_says_what_an_item_is_about(room: Room) -> None:
    written = room.write(age_s=65, urgent=["pneumothorax"], question="x" * 500)
    (item,) = (await room.get(LIST)).json()["data"]
    assert 65 <= item.pop("age_s") < 80
    assert time.time() - 80 < item.pop("created") <= time.time() - 65
    assert item == {
        "id": written.review_id,
        "object": "review",
        "state": "pending",
        "urgent": True,
        "held": False,
        "readable": True,
        "acknowledged": False,
        "template": "finding",
        "question": "x" * 200,
        "status": "present",
        "reasons": ["pneumothorax"],
        "claimed_by": None,
    }


async def test_pages_follow_one_another_without_a_gap_or_a_repetition(room: Room) -> None:
    written = [room.write(age_s=n, urgent=["mass"] if n % 3 == 0 else ()) for n in range(7)]
    taken = await room.act(written[2].review_id, "claim", 1)
    assert taken.status_code == 200
    seen: list[str] = []
    query = "?state=all&limit=2"
    while True:
        page = (await room.get(LIST + query)).json()
        seen += [one["id"] for one in page["data"]]
        assert page["has_more"] is (page["next"] is not None)
        if not page["has_more"]:
            break
        query = f"?state=all&limit=2&after={page['next']}"
    order = [6, 3, 0, 5, 4, 2, 1]  # urgent first; then by age, whatever the state
    assert seen == [written[n].review_id for n in order]


async def test_the_list_can_be_narrowed_to_states_and_to_urgent_items(room: Room) -> None:
    plain, urgent = room.write(), room.write(urgent=["mass"])
    await room.act(plain.review_id, "claim", 1)

    async def listed(query: str) -> list[str]:
        return [one["id"] for one in (await room.get(f"{LIST}?{query}")).json()["data"]]

    assert await listed("state=claimed") == [plain.review_id]
    assert await listed("state=pending") == [urgent.review_id]
    assert await listed("state=open") == [urgent.review_id, plain.review_id]
    assert await listed("state=open&urgent=true") == [urgent.review_id]
    assert await listed("state=open&urgent=false") == [plain.review_id]
    assert await listed("state=rejected") == []


@pytest.mark.parametrize(
    "query",
    ["state=mine", "urgent=yes", "limit=0x1", "limit=201", "limit=-1", "after=1.2.3", "page=2"],
)
async def test_a_parameter_that_is_not_understood_is_refused(room: Room, query: str) -> None:
    assert (await room.get(f"{LIST}?{query}")).status_code == 400


async def test_an_item_that_does_not_open_spoils_no_list(room: Room) -> None:
    good, bad, shredded = room.write(age_s=3), room.write(age_s=2), room.write(age_s=1)
    with room.store.engine.begin() as connection:
        for table, written, values in (
            (schema.records, bad, {"payload": b"x" * 40}),
            (schema.keys, shredded, {"wrapped": None}),
        ):
            connection.execute(
                update(table).where(table.c.audit_id == written.audit_id).values(**values)
            )
    items = (await room.get(LIST)).json()["data"]
    assert [one["readable"] for one in items] == [True, False, False]
    assert items[0]["id"] == good.review_id
    assert items[1]["question"] is items[1]["status"] is None
    assert code(await room.get(of(bad))) == (500, "internal_error")
    assert code(await room.get(of(shredded))) == (404, "shredded")
    assert code(await room.act(shredded.review_id, "claim", 1)) == (404, "shredded")


# --- one item ----------------------------------------------------------------------------------


async def test_a_reviewer_gets_an_item_whole(room: Room) -> None:
    earlier = [
        RecordedTurn(role="user", text="What is it?"),
        RecordedTurn(role="assistant", text="A chest."),
    ]
    written = room.write(
        images=[chest()], urgent=["pneumothorax"], earlier=earlier, system="Portable film."
    )
    item = (await room.get(of(written))).json()
    assert item["audit_id"] == written.audit_id
    assert item["version"] == 1
    assert item["question"] == QUESTION
    assert item["turns"] == [
        {"role": "system", "text": "Portable film."},
        {"role": "user", "text": "What is it?"},
        {"role": "assistant", "text": "A chest."},
        {"role": "user", "text": QUESTION},
    ]
    assert item["label"] == POLICY_LABEL
    (choice,) = item["draft"]
    assert choice["text"].startswith(ANSWER)
    assert choice["text"].endswith(POLICY_LABEL)
    assert {"finding": "pleural_effusion", "status": "absent"} in choice["findings"]
    assert choice["verdicts"][0]["finding"] == "pneumothorax"
    marked = {choice["text"][h["start"] : h["end"]]: h["status"] for h in choice["highlights"]}
    assert marked == {"pneumothorax": "present", "effusion": "absent"}
    assert item["escalation"]["reasons"] == ["pneumothorax"]
    assert item["images"][0]["url"] == of(written, "/images/0")
    assert item["images"][0]["window"] == {"origin": "file", "center": 40.0, "width": 400.0}
    assert item["history"] == []
    assert "raw" not in json.dumps(item)


POLICY_LABEL = "Draft for clinician review. Research use only, not a diagnosis."


async def test_highlights_count_as_javascript_does(room: Room) -> None:
    text = "likely present, explanation: \U0001fac1\U0001fac1 a pneumothorax is seen."
    written = room.write(answers=[text])
    (choice,) = (await room.get(of(written))).json()["draft"]
    (place,) = choice["highlights"]
    units = choice["text"].encode("utf-16-le")
    assert units[2 * place["start"] : 2 * place["end"]].decode("utf-16-le") == "pneumothorax"


async def test_an_image_comes_as_the_file_that_was_stored(room: Room) -> None:
    file = chest(seed=5)
    written = room.write(images=[file])
    response = await room.get(of(written, "/images/0"))
    assert response.content == file
    assert Image.open(io.BytesIO(response.content)).format == "PNG"
    assert response.headers["content-type"] == "image/png"
    assert response.headers["cache-control"] == "no-store"
    assert code(await room.get(of(written, "/images/1"))) == (404, "not_found")


async def test_ids_that_are_none_lead_nowhere(room: Room) -> None:
    assert code(await room.get(f"{LIST}/{uuid.uuid4()}")) == (404, "not_found")
    for path in ("/nothing", "/../v1/reviews", "/%2e%2e/console", "/1%27%20OR%201=1"):
        assert (await room.get(LIST + path)).status_code == 404
    assert code(await room.act(str(uuid.uuid4()), "claim", 1)) == (404, "not_found")


# --- who ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "allowed"),
    [
        ("dr-jones", {"list", "item", "image", "stats", "claim"}),
        ("ward-3", {"item", "metrics"}),
        ("data-office", {"stats"}),
        ("root", {"metrics"}),
        (None, set()),
    ],
)
async def test_a_route_is_for_its_roles_only(
    room: Room, who: str | None, allowed: set[str]
) -> None:
    written = room.write(principal="ward-3", images=[chest()])
    routes = {
        "list": ("GET", LIST, {}),
        "item": ("GET", of(written), {}),
        "image": ("GET", of(written, "/images/0"), {}),
        "stats": ("GET", f"{LIST}/stats", {}),
        "metrics": ("GET", f"{LIST}/metrics", {}),
        "claim": ("POST", of(written, "/claim"), {"json": {"version": 1}}),
    }
    for name, (method, path, options) in routes.items():
        status = (await room.send(method, path, who, **options)).status_code
        assert status == (200 if name in allowed else 401 if who is None else 403), name


async def test_a_caller_sees_its_own_items_only(room: Room) -> None:
    written = room.write(principal="ward-3")
    assert (await room.get(of(written), "ward-3")).status_code == 200
    assert code(await room.get(of(written), "ward-4")) == (404, "not_found")


async def test_a_held_answer_leaves_only_once_it_is_signed_off(room: Room) -> None:
    written = room.write(principal="ward-3", held=True)
    before = (await room.get(of(written), "ward-3")).json()
    assert before == {
        "id": written.review_id,
        "object": "review",
        "state": "pending",
        "held": True,
        "answer": None,
        "answers": None,
    }
    await room.act(written.review_id, "claim", 1)
    assert (await room.get(of(written), "ward-3")).json()["answer"] is None
    await room.act(written.review_id, "sign_off", 2)
    after = (await room.get(of(written), "ward-3")).json()
    assert after["state"] == "signed_off"
    assert after["answer"].startswith(ANSWER)


async def test_a_held_answer_that_was_amended_leaves_as_amended(room: Room) -> None:
    written = room.write(principal="ward-3", held=True, answers=[ANSWER, ANSWER])
    await room.act(written.review_id, "claim", 1)
    await room.act(written.review_id, "amend", 2, amended="No pneumothorax.", comment="secret")
    told = await room.get(of(written), "ward-3")
    assert told.json()["answer"] == "No pneumothorax."
    assert told.json()["answers"] is None
    assert "secret" not in told.text
    assert ANSWER not in told.text


@pytest.mark.parametrize("held", [True, False])
async def test_a_rejected_answer_never_leaves(room: Room, held: bool) -> None:
    written = room.write(principal="ward-3", held=held)
    await room.act(written.review_id, "claim", 1)
    await room.act(written.review_id, "reject", 2)
    told = (await room.get(of(written), "ward-3")).json()
    assert (told["state"], told["answer"]) == ("rejected", None)


# --- actions -----------------------------------------------------------------------------------


async def test_a_review_from_claim_to_sign_off(room: Room) -> None:
    written = room.write(urgent=["pneumothorax"])
    claimed = (await room.act(written.review_id, "claim", 1)).json()
    assert (claimed["state"], claimed["version"]) == ("claimed", 2)
    assert claimed["claimed_by"] == "dr-jones"
    assert claimed["acknowledged"]
    given = [
        {"finding": "pneumothorax", "verdict": "wrong_side"},
        {"finding": "rib fracture", "verdict": "missed"},
    ]
    closed = (
        await room.act(written.review_id, "sign_off", 2, findings=given, comment="right side")
    ).json()
    assert closed["state"] == "signed_off"
    assert {one["finding"]: one["verdict"] for one in closed["findings"]} == {
        "pneumothorax": "wrong_side",
        "rib fracture": "missed",
        "pleural_effusion": "agree",  # not mentioned
    }
    assert closed["comment"] == "right side"
    assert 0 <= closed["seconds"] < 60
    assert [(one["action"], one["principal"]) for one in closed["history"]] == [
        ("claim", "dr-jones"),
        ("sign_off", "dr-jones"),
    ]
    assert [record.action for record in room.actions(written)] == ["claim", "sign_off"]
    assert room.actions(written)[1].seconds == closed["seconds"]
    assert (await room.get(LIST)).json()["counts"] == {"pending": 0, "claimed": 0, "urgent": 0}


async def test_of_two_that_sign_at_once_one_wins_and_the_other_is_told(room: Room) -> None:
    written = room.write()
    await room.act(written.review_id, "claim", 1)
    answers = await asyncio.gather(
        *(room.act(written.review_id, action, 2) for action in ("sign_off", "reject") * 4)
    )
    won = [one for one in answers if one.status_code == 200]
    assert len(won) == 1
    assert {one.status_code for one in answers if one not in won} == {409}
    assert all(one.json()["error"]["code"] == "conflict" for one in answers if one not in won)
    assert len(room.actions(written)) == 2  # the claim, and whoever won
    assert room.row(written)["version"] == 3


async def test_of_two_that_claim_at_once_one_holds_it(room: Room) -> None:
    written = room.write()
    answers = await asyncio.gather(
        *(room.act(written.review_id, "claim", 1, who) for who in ("dr-jones", "dr-smith") * 4)
    )
    (won,) = [one for one in answers if one.status_code == 200]
    holder = won.json()["claimed_by"]
    assert [record.principal for record in room.actions(written)] == [holder]


async def test_a_conflict_says_who_holds_an_item_or_how_it_was_closed(room: Room) -> None:
    written = room.write()
    unclaimed = await room.act(written.review_id, "sign_off", 1)
    assert code(unclaimed) == (409, "conflict")
    assert "Claim it first" in message(unclaimed)
    await room.act(written.review_id, "claim", 1)
    for action in ("claim", "release", "sign_off", "reject"):
        refused = await room.act(written.review_id, action, 2, "dr-smith")
        assert code(refused) == (409, "conflict")
        assert message(refused) == "dr-jones holds this item."
    stale = await room.act(written.review_id, "sign_off", 1)
    assert "has changed" in message(stale)
    await room.act(written.review_id, "reject", 2)
    late = await room.act(written.review_id, "claim", 3, "dr-smith")
    assert message(late) == "This item is closed: rejected by dr-jones."
    assert late.headers["x-should-retry"] == "false"


async def test_a_claim_of_half_an_hour_ago_may_be_taken_over(room: Room) -> None:
    written = room.write()
    await room.act(written.review_id, "claim", 1)
    table = schema.reviews
    for minutes, status in ((29, 409), (31, 200)):
        with room.store.engine.begin() as connection:
            at = time.time_ns() // 1000 - minutes * 60_000_000
            connection.execute(update(table).values(claimed_at=at))
        assert (await room.act(written.review_id, "claim", 2, "dr-smith")).status_code == status
    lost = await room.act(written.review_id, "sign_off", 2)
    assert message(lost) == "dr-smith holds this item."


async def test_what_stops_the_reminders_of_an_urgent_item_and_what_does_not(room: Room) -> None:
    claimed, known = room.write(urgent=["mass"]), room.write(urgent=["mass"])
    await room.act(claimed.review_id, "claim", 1)
    assert room.row(claimed)["acknowledged_at"] is not None
    released = (await room.act(claimed.review_id, "release", 2)).json()
    # Nobody looks at it now.
    assert not released["acknowledged"]
    assert released["escalation"]["next"] == released["created"]
    assert room.row(claimed)["acknowledged_at"] is None
    assert room.row(claimed)["next_at"] is not None
    assert room.row(claimed)["claimant"] is None

    seen = (await room.act(known.review_id, "acknowledge", 1)).json()
    assert (seen["state"], seen["acknowledged"]) == ("pending", True)
    assert seen["escalation"]["next"] is None
    await room.act(known.review_id, "claim", 2)
    await room.act(known.review_id, "release", 3)
    assert room.row(known)["acknowledged_at"] is not None


@pytest.mark.parametrize(
    ("action", "body", "param"),
    [
        ("amend", {}, "amended"),
        ("amend", {"amended": "  "}, "amended"),
        ("amend", {"amended": "x" * 32_769}, "amended"),
        ("sign_off", {"amended": "other"}, "amended"),
        ("sign_off", {"comment": "x" * 8_193}, "comment"),
        ("release", {"comment": "later"}, "comment"),
        ("release", {"findings": [{"finding": "mass", "verdict": "missed"}]}, "findings"),
        ("sign_off", {"findings": [{"finding": "mass", "verdict": "agree"}]}, "findings"),
        ("sign_off", {"findings": [{"finding": "Mass<b>", "verdict": "missed"}]}, "findings"),
        ("sign_off", {"findings": [{"finding": "mass", "verdict": "maybe"}]}, "findings"),
        ("sign_off", {"findings": [{"finding": "mass\n", "verdict": "missed"}]}, "findings"),
        ("sign_off", {"findings": [{"finding": "mass", "verdict": "missed"}] * 2}, "findings"),
        ("sign_off", {"findings": [{"finding": "pneumothorax", "verdict": "missed"}]}, "findings"),
        (
            "sign_off",
            {"findings": [{"finding": "pleural_effusion", "verdict": "overcall"}]},
            "findings",
        ),
    ],
)
async def test_an_action_takes_only_what_belongs_to_it(
    room: Room, action: str, body: dict[str, Any], param: str
) -> None:
    written = room.write()
    await room.act(written.review_id, "claim", 1)
    refused = await room.act(written.review_id, action, 2, **body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
    assert room.row(written)["version"] == 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"{}", "missing_parameter"),
        (b'{"version": "1"}', "invalid_value"),
        (b'{"version": 0}', "invalid_value"),
        (b'{"version": 1, "state": "signed_off"}', "unsupported_parameter"),
    ],
)
async def test_a_body_is_of_one_closed_form(room: Room, body: bytes, expected: str) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    path = of(room.write(), "/claim")
    refused = await room.send("POST", path, "dr-jones", content=body, headers=headers)
    assert code(refused) == (400, expected)


async def test_a_body_that_a_form_could_send_is_refused(room: Room) -> None:
    written = room.write()
    for media_type in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused = await room.send(
            "POST",
            of(written, "/claim"),
            "dr-jones",
            content=b'{"version": 1}',
            headers={"content-type": media_type},
        )
        assert code(refused) == (415, "unsupported_media_type")


async def test_a_body_has_a_limit(room: Room) -> None:
    refused = await room.act(room.write().review_id, "claim", 1, comment="x" * (256 << 10))
    assert code(refused) == (413, "request_too_large")


async def test_a_method_that_a_route_does_not_take_is_told_so(room: Room) -> None:
    written = room.write()
    assert (await room.send("GET", of(written, "/claim"), "dr-jones")).status_code == 405
    assert (await room.send("DELETE", of(written), "dr-jones")).status_code == 405


# --- records -----------------------------------------------------------------------------------


async def test_every_look_is_recorded_with_who_and_what(room: Room) -> None:
    written = room.write(principal="ward-3", images=[chest()])
    await room.get(f"{LIST}?state=open&urgent=false")
    await room.get(of(written))
    await room.get(of(written), "ward-3")
    await room.get(of(written, "/images/0"))
    await room.get(f"{LIST}/stats", "data-office")
    await room.get(of(written), "ward-4")
    assert [(one.principal, one.what, one.of) for one in room.reads()] == [
        ("dr-jones", "reviews", None),
        ("dr-jones", "review", written.review_id),
        ("ward-3", "review", written.review_id),
        ("dr-jones", "image", written.review_id),
        ("data-office", "review stats", None),
        ("ward-4", "review", written.review_id),
    ]
    assert room.reads()[0].query == {"state": "open", "limit": "50", "urgent": "false"}


async def test_what_cannot_be_recorded_is_not_shown(tmp_path: Path) -> None:
    with room_in(tmp_path, timeout_s=0.3) as room:
        written = room.write(images=[chest()])
        blocker = room.store.engine.raw_connection()
        blocker.driver_connection.execute("BEGIN IMMEDIATE")  # another writer that hangs
        try:
            for path in (LIST, of(written), of(written, "/images/0"), f"{LIST}/stats"):
                refused = await room.get(path)
                assert code(refused) == (503, "audit_unavailable")
                assert QUESTION not in refused.text
            assert code(await room.act(written.review_id, "claim", 1)) == (503, "audit_unavailable")
        finally:
            blocker.driver_connection.rollback()
            blocker.close()


async def test_a_client_that_leaves_takes_no_record_along(room: Room) -> None:
    written = room.write()
    waiting = [asyncio.create_task(room.get(of(written))) for _ in range(20)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (await room.get(of(written))).status_code == 200


async def test_a_store_that_was_taken_away_is_told_as_such(room: Room) -> None:
    written = room.write()
    with room.store.engine.begin() as connection:
        schema.reviews.drop(connection)
    assert code(await room.get(of(written))) == (503, "audit_unavailable")


# --- how it is served --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "path"), [("/v1/reviews", "/stats"), ("/v1/reviews", "/v1/reviews/stats"), ("", LIST)]
)
async def test_it_does_not_matter_whether_the_server_cuts_the_prefix_off(
    room: Room, root: str, path: str
) -> None:
    status: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(sent: Any) -> None:
        status.append(sent.get("status", 0))

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": "GET",
        "path": path,
        "root_path": root,
        "query_string": b"",
        "headers": [(b"authorization", b"Bearer key-of-dr-jones-0123456789")],
    }
    await room.app(scope, receive, send)
    assert status[0] == 200


async def test_answers_are_for_this_reader_only(room: Room) -> None:
    written = room.write()
    for response in (await room.get(LIST), await room.get(of(written))):
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"
        assert "set-cookie" not in response.headers
    preflight = await room.send(
        "OPTIONS",
        LIST,
        None,
        headers={"origin": "https://evil", "access-control-request-method": "GET"},
    )
    assert preflight.status_code in (401, 405)
    assert not [name for name in preflight.headers if name.startswith("access-control-")]


async def test_the_console_is_open_and_its_browser_may_do_little(room: Room) -> None:
    page = await room.send("GET", f"{LIST}/console/", None)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "require-trusted-types-for 'script'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["cache-control"] == "no-cache"
    redirect = await room.send("GET", f"{LIST}/console", None)
    assert redirect.status_code == 307
    assert redirect.headers["location"] == "console/"
    assert not room.reads()


@pytest.mark.parametrize(
    "path",
    [
        "../api.py",
        "..%2Fapi.py",
        "%2e%2e/api.py",
        "nothing.js",
        "index.html/",
        "%2Fetc%2Fpasswd",
        "index.html%00.js",
    ],
)
async def test_the_console_has_no_other_files(room: Room, path: str) -> None:
    # With a key: without one even this would be 401.
    assert (await room.get(f"{LIST}/console/{path}")).status_code == 404


async def test_the_console_gets_every_file_it_has(room: Room) -> None:
    for name, page in pages.read_pages().items():
        response = await room.send("GET", f"{LIST}/console/{name}", None)
        assert response.content == page.content
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_a_report_has_no_status_and_a_finding_that_was_cut_off_is_indeterminate(
    room: Room,
) -> None:
    room.write(template=Template.REPORT, answers=["Findings: clear.\nImpression: normal."], age_s=2)
    room.write(answers=["likely pre"], findings={"pneumothorax": Status.INDETERMINATE}, age_s=1)
    assert [one["status"] for one in (await room.get(LIST)).json()["data"]] == [
        None,
        "indeterminate",
    ]
