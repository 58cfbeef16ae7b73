"""No answer leaves without a record: what is on disk, and when."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncGenerator, Awaitable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import select, text

from guardrails import policy
from guardrails.templates import ESCALATION_LINE
from serve.audit import reading, schema
from serve.audit.entries import AuditUnavailableError, Entry
from serve.audit.records import AnswerRecord, RefusalRecord
from serve.edge import build_edge
from serve.engine import Output, Prompt, Sampling, Step
from serve.errors import Unavailable
from serve.principals import Principals
from serve.recorder import Recorder
from serve.settings import load
from tests.unit.recording import MODEL, recorder_in
from tests.unit.taking_images import images

KEY = "unit-test-key-0123456789"
SETTINGS = load(api_key=KEY)
SECRET_QUESTION = "Is there a tension pneumothorax beside the zebra?"
ANSWER = " likely present, explanation: a tension pneumothorax on the left."
POLICY = policy.load()
HOLDING = policy.parse(policy.read().replace("mode: annotate", "mode: hold"))


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    with recorder_in(tmp_path) as one:
        yield one


def png_url() -> str:
    file = BytesIO()
    Image.linear_gradient("L").resize((640, 480)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def kinds(recorder: Recorder) -> list[str]:
    with recorder.store.reading() as connection:
        rows = connection.scalars(select(schema.records.c.kind).order_by(schema.records.c.seq))
        return [kind for kind in rows if kind != "open"]


def exchange(recorder: Recorder, audit_id: str) -> reading.Exchange:
    with recorder.store.reading() as connection:
        return reading.exchange(recorder.store, connection, audit_id)


def only_exchange(recorder: Recorder) -> reading.Exchange:
    with recorder.store.reading() as connection:
        (audit_id,) = connection.scalars(select(schema.keys.c.audit_id))
    return exchange(recorder, audit_id)


@dataclass
class Engine:
    """Says ``pieces``; notes what is on record when it starts and at each piece."""

    recorder: Recorder
    pieces: tuple[str, ...] = (ANSWER,)
    failure: Exception | None = None
    hang: bool = False
    before_last: Any = None
    seen: list[list[str]] = field(default_factory=list)

    async def generate(
        self, _prompt: Prompt, _sampling: Sampling, _request_id: str, allowed: Awaitable[None]
    ) -> AsyncGenerator[Step, None]:
        await allowed
        for number, piece in enumerate(self.pieces):
            self.seen.append(kinds(self.recorder))
            last = number == len(self.pieces) - 1
            if last and self.before_last is not None:
                self.before_last()
            ends = last and self.failure is None and not self.hang
            yield Step((Output(0, piece, 1, "stop" if ends else None),), prompt_tokens=7)
        if self.hang:
            await asyncio.sleep(3600)
        if self.failure is not None:
            raise self.failure

    async def check_health(self) -> None: ...

    def metrics(self) -> bytes:
        return b""


def app_of(engine: Engine, *, rules: policy.Policy = POLICY) -> Any:
    principals = Principals.of(api_key=SETTINGS.api_key, admin_key=None, keys=None)
    return build_edge(
        engine, SETTINGS, lambda: rules, images(SETTINGS), principals, engine.recorder
    )


async def ask(engine: Engine, *, rules: policy.Policy = POLICY, **fields: Any) -> httpx.Response:
    body = {"model": "llava-med", "messages": [{"role": "user", "content": SECRET_QUESTION}]}
    transport = httpx.ASGITransport(app_of(engine, rules=rules))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://edge", headers={"Authorization": f"Bearer {KEY}"}
    ) as client:
        return await client.post("/v1/chat/completions", json=body | fields)


def breaks(recorder: Recorder) -> None:
    """The store loses a table under the writer."""
    with recorder.store.engine.connect() as connection:
        connection.execute(text("ALTER TABLE records RENAME TO gone"))
        connection.commit()


def mended(recorder: Recorder) -> None:
    with recorder.store.engine.connect() as connection:
        connection.execute(text("ALTER TABLE gone RENAME TO records"))
        connection.commit()


@pytest.mark.parametrize("stream", [False, True])
async def test_the_request_is_on_record_before_the_engine_starts(
    recorder: Recorder, stream: bool
) -> None:
    engine = Engine(recorder)
    await ask(engine, stream=stream)
    assert engine.seen == [["request"]]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_exchange_is_recorded_whole(recorder: Recorder, stream: bool) -> None:
    response = await ask(Engine(recorder), stream=stream, seed=3, temperature=0.5)
    assert response.status_code == 200
    kept = only_exchange(recorder)
    request, answer = kept.request, kept.answer
    assert answer is not None
    assert (request.question, request.principal) == (SECRET_QUESTION, "default")
    assert (request.sampling.seed, request.sampling.temperature) == (3, 0.5)
    assert (request.policy, request.model.digest) == (POLICY.id, "0" * 64)
    assert request.turns[-1].text.startswith(SECRET_QUESTION)
    assert request.request_id == response.headers["llava-med-request-id"]
    assert kept.audit_id == request.review_id == str(uuid.UUID(request.request_id))
    (choice,) = answer.choices
    assert (answer.outcome, choice.raw) == ("complete", ANSWER.strip())
    assert choice.sent.startswith(ANSWER.strip())
    assert choice.sent.endswith(f"\n\n{ESCALATION_LINE}\n\n{POLICY.file.label}")
    assert answer.escalation == ("tension_pneumothorax",)
    assert 0 <= answer.planned_s <= (answer.first_token_s or 0) <= answer.total_s


async def test_what_the_rails_hold_back_is_on_record_and_nowhere_else(recorder: Recorder) -> None:
    advice = " likely present, explanation: a nodule. Start amoxicillin 500 mg daily."
    response = await ask(Engine(recorder, pieces=(advice,)))
    answer = only_exchange(recorder).answer
    assert answer is not None
    assert "amoxicillin" not in response.text
    assert "amoxicillin" in answer.choices[0].raw
    assert "amoxicillin" not in answer.choices[0].sent


async def test_the_image_is_stored_once_however_often_it_is_asked_about(recorder: Recorder) -> None:
    content = [
        {"type": "image_url", "image_url": {"url": png_url()}},
        {"type": "text", "text": SECRET_QUESTION},
    ]
    for _ in range(3):
        await ask(Engine(recorder), messages=[{"role": "user", "content": content}])
    with recorder.store.reading() as connection:
        names = {bytes(name) for name in connection.scalars(select(schema.blobs.c.name))}
        ids = list(connection.scalars(select(schema.keys.c.audit_id)))
        for audit_id in ids:
            (image,) = reading.exchange(recorder.store, connection, audit_id).request.images
            assert {bytes.fromhex(one) for one in (image.square, image.picture) if one} == names
            assert recorder.store.blob(connection, bytes.fromhex(image.square))[:4] == b"\x89PNG"
    assert len(ids) == 3


async def test_the_answer_is_on_record_when_its_end_leaves(recorder: Recorder) -> None:
    engine = Engine(recorder, pieces=(" likely absent, explanation: the lungs are", " clear", "."))
    at_each_event: list[tuple[bytes, list[str]]] = []

    async def send(message: Any) -> None:
        at_each_event.append((message.get("body", b""), kinds(recorder)))

    body = {"model": "llava-med", "messages": [{"role": "user", "content": "Is there a mass?"}]}
    await app_of(engine)(_scope(), _receive(json.dumps(body | {"stream": True}).encode()), send)
    ends = [seen for event, seen in at_each_event if b'_reason":"' in event or b"DONE" in event]
    assert ends
    assert all("answer" in seen for seen in ends)
    assert any("answer" not in seen for event, seen in at_each_event if b"likely" in event)


@pytest.mark.parametrize("stream", [False, True])
async def test_without_a_record_the_engine_does_not_start(recorder: Recorder, stream: bool) -> None:
    breaks(recorder)
    engine = Engine(recorder)
    engine.seen = []
    response = await ask(engine, stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "audit_unavailable")
    assert response.headers["retry-after"]


class NoRequests:
    """A store that is back just after it has lost a request."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def write(self, entry: Entry) -> Future[None]:
        self.kinds.append(entry.kind)
        written: Future[None] = Future()
        if entry.kind == "request":
            written.set_exception(AuditUnavailableError())
        else:
            written.set_result(None)
        return written


async def test_a_request_that_is_not_on_record_has_no_answer_there(recorder: Recorder) -> None:
    writer = NoRequests()
    response = await ask(Engine(Recorder(recorder.store, writer, MODEL)))
    assert response.json()["error"]["code"] == "audit_unavailable"
    assert writer.kinds == ["request"]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_recorded_does_not_end_and_the_next_one_does(
    recorder: Recorder, stream: bool
) -> None:
    pieces = (" likely", " absent, explanation: the end of it.")
    engine = Engine(recorder, pieces=pieces, before_last=lambda: breaks(recorder))
    response = await ask(engine, stream=stream)
    assert "the end of it" not in response.text
    assert "audit_unavailable" in response.text
    assert '"finish_reason":"stop"' not in response.text
    mended(recorder)
    assert (await ask(Engine(recorder), stream=stream)).status_code == 200


async def test_an_engine_that_fails_is_recorded_as_such(recorder: Recorder) -> None:
    await ask(Engine(recorder, pieces=(" likely",), failure=Unavailable("dead")))
    answer = await _answer_of(recorder)
    assert (answer.outcome, answer.error) == ("failed", "engine_unavailable")
    assert answer.choices[0].raw == "likely"


async def test_a_client_that_hangs_up_is_recorded_as_gone(recorder: Recorder) -> None:
    said = (" likely absent, explanation: the lungs are clear and the heart is normal",)
    body = {"model": "llava-med", "messages": [{"role": "user", "content": "Is there a mass?"}]}
    leaves = asyncio.Event()

    async def send(message: Any) -> None:
        if b"likely" in message.get("body", b""):
            leaves.set()

    await app_of(Engine(recorder, pieces=said, hang=True))(
        _scope(), _receive(json.dumps(body | {"stream": True}).encode(), leaves), send
    )
    answer = await _answer_of(recorder)
    assert answer.outcome == "abandoned"
    assert "lungs are clear" in answer.choices[0].sent


async def test_a_request_that_is_turned_down_is_recorded_without_its_text(
    recorder: Recorder,
) -> None:
    response = await ask(Engine(recorder), messages=[{"role": "user", "content": "<image>zebra"}])
    assert response.status_code == 400
    await _until(lambda: kinds(recorder) == ["refusal"])
    with recorder.store.reading() as connection:
        row = connection.execute(
            select(schema.records).where(schema.records.c.kind == "refusal")
        ).one()
        key = recorder.store.data_key(connection, row.audit_id)
        body = reading.body_of(RefusalRecord, reading.link_of(row), row.payload, key)
    assert (body.code, body.param, body.principal) == ("control_token", "messages", "default")
    assert "zebra" not in body.model_dump_json()


async def test_every_output_becomes_a_review_and_an_urgent_one_an_escalation(
    recorder: Recorder,
) -> None:
    urgent = (await ask(Engine(recorder))).json()["guardrails"]
    calm = " likely absent, explanation: no mass is seen."
    question = [{"role": "user", "content": "Is there a mass?"}]
    other = (await ask(Engine(recorder, pieces=(calm,)), messages=question)).json()["guardrails"]
    with recorder.store.reading() as connection:
        items = {row.review_id: row for row in connection.execute(select(schema.reviews))}
        outbox = connection.execute(select(schema.escalations)).all()
    assert set(items) == {urgent["review_id"], other["review_id"]}
    assert (items[urgent["review_id"]].urgent, items[other["review_id"]].urgent) == (True, False)
    assert {item.state for item in items.values()} == {"pending"}
    assert [(row.review_id, row.sent) for row in outbox] == [(urgent["review_id"], 0)]
    assert outbox[0].next_at < outbox[0].at  # due
    assert urgent["escalation"] == {
        "action": "escalate to urgent human review",
        "reasons": ["tension_pneumothorax"],
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["text", "json_object"])
async def test_a_held_draft_tells_its_review_and_nothing_else(
    recorder: Recorder, stream: bool, form: str
) -> None:
    said = ANSWER if form == "text" else '{"status": "present", "explanation": "a pneumothorax."}'
    response = await ask(
        Engine(recorder, pieces=(said[:9], said[9:])),
        rules=HOLDING,
        stream=stream,
        response_format={"type": form},
        messages=[{"role": "user", "content": "Is there air?"}],
    )
    kept = only_exchange(recorder)
    assert kept.request.held
    assert kept.answer is not None
    assert "pneumothorax" in kept.answer.choices[0].sent
    assert kept.request.review_id in response.text
    assert '"status":"held"' in response.text
    assert "content_filter" in response.text
    assert '"escalation":null' in response.text
    for word in ("present", "pneumothorax", "urgent"):
        assert word not in response.text


def test_nothing_readable_is_in_the_file(recorder: Recorder, tmp_path: Path) -> None:
    asyncio.run(ask(Engine(recorder)))
    raw = b"".join(file.read_bytes() for file in tmp_path.glob("audit.db*"))
    assert b"request" in raw
    for word in (b"zebra", b"pneumothorax", b"likely", b"default", b"explanation", b"template"):
        assert word not in raw, word


async def _answer_of(recorder: Recorder) -> AnswerRecord:
    await _until(lambda: "answer" in kinds(recorder))
    answer = only_exchange(recorder).answer
    assert answer is not None
    return answer


async def _until(true: Any) -> None:
    for _ in range(500):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come about")


def _scope() -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": [(b"authorization", f"Bearer {KEY}".encode())],
        "query_string": b"",
    }


def _receive(body: bytes, gone: asyncio.Event | None = None) -> Any:
    gone = gone or asyncio.Event()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive
