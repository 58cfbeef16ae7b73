"""Killed at random moments under load, on the running service: what was delivered is on record.

Each test kills one part of it, checks who was refused meanwhile, and that it answers again by
itself. tests/e2e/test_records_survive.py does the same far more often over an engine that starts at
once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import psutil
import pytest
from sqlalchemy import select

from serve import processes
from serve.audit import schema
from serve.audit.store import open_store
from serve.local import run_dir
from tests.e2e.conftest import Stack
from tests.e2e.test_records_survive import verified, wait_for
from tests.load import Load

CLIENTS = 3
CLIENT_TIMEOUT_S = 30  # tests/load.py's
MODEL = "llava-med:LlavaMedServer"
REVIEWS = "reviews:AuditLog"


@contextmanager
def _loaded(stack: Stack) -> Iterator[Load]:
    """Load meanwhile; in the end everything delivered is on record, and in the queue."""
    load = Load(stack.url, stack.key)
    with load.running(CLIENTS):
        wait_for(load, 5)
        yield load
        wait_for(load, 10)
    _check(stack, load)


def _check(stack: Stack, load: Load) -> None:
    settings = stack.settings()
    store = open_store(settings)
    try:
        with store.reading() as connection:
            table = schema.records
            kinds = {
                kind: set(connection.scalars(select(table.c.audit_id).where(table.c.kind == kind)))
                for kind in ("request", "answer")
            }
            queue = set(connection.scalars(select(schema.reviews.c.audit_id)))
        delivered = set(load.delivered)
        assert len(delivered) == len(load.delivered)
        assert delivered <= kinds["answer"] <= kinds["request"]
        assert delivered <= queue
        report = verified(store, settings)
        assert report.sound, report.problems
        assert report.checkpoints
    finally:
        store.engine.dispose()


def _at_random() -> None:
    time.sleep(random.uniform(0.05, 0.5))


def _until(what: Callable[[], bool], *, timeout_s: float) -> float:
    """Waits until something holds; the seconds that it took."""
    begun = time.monotonic()
    while not what():
        assert time.monotonic() - begun < timeout_s, "it did not come back"
        time.sleep(0.05)
    return time.monotonic() - begun


def _writer(stack: Stack) -> psutil.Process | None:
    """The process that writes what the model's replica records."""
    for child in stack.replica(MODEL).children():
        with suppress(psutil.Error):  # dead, and not yet reaped
            if "serve.audit.process" in child.cmdline():
                return child
    return None


def _reviews(stack: Stack) -> int:
    with stack.http("dr-jones") as client:
        return client.get("/v1/reviews", params={"limit": "1"}).status_code


def test_an_audit_writer_that_is_killed(stack: Stack) -> None:
    with _loaded(stack) as load:
        for _ in range(3):
            writer = _writer(stack)
            assert writer is not None
            _at_random()
            writer.kill()
            writer.wait(10)
            wait_for(load, 5)
            assert _writer(stack) not in (None, writer)
    assert set(load.refused) == {"audit_unavailable"}
    assert not load.broken


def test_a_review_deployment_that_is_killed_costs_no_caller_anything(stack: Stack) -> None:
    with _loaded(stack) as load:
        assert _reviews(stack) == 200
        _at_random()
        stack.replica(REVIEWS).kill()
        _until(lambda: _reviews(stack) == 200, timeout_s=60)
    assert not load.refused
    assert not load.broken


def test_a_database_that_is_killed(stack: Stack) -> None:
    if stack.database is None:
        pytest.skip("Debian's postgresql is not installed")
    with _loaded(stack) as load:
        for _ in range(2):
            _at_random()
            stack.database.kill()
            _until(lambda: _refused_all(stack), timeout_s=20)
            assert _reviews(stack) == 503
            before = len(load.delivered)
            time.sleep(1)
            assert len(load.delivered) == before
            stack.database.start()
            wait_for(load, 5)
            _until(lambda: _reviews(stack) == 200, timeout_s=20)
    assert set(load.refused) == {"audit_unavailable"}
    assert not load.broken


def _refused_all(stack: Stack) -> bool:
    body = {"model": "llava-med", "messages": [{"role": "user", "content": "Is there a mass?"}]}
    with stack.http() as client:
        response = client.post("/v1/chat/completions", json=body)
    return response.status_code == 503 and response.json()["error"]["code"] == "audit_unavailable"


def _engines(stack: Stack) -> list[psutil.Process]:
    return [
        process
        for process in processes.ours(run_dir(stack.port))
        if "EngineCore" in " ".join(process.cmdline())
    ]


def test_a_model_replica_that_is_killed(stack: Stack) -> None:
    with _loaded(stack) as load:
        engines = _engines(stack)
        assert engines
        replica = stack.replica(MODEL)
        _at_random()
        replica.kill()
        replica.wait(10)
        assert _reviews(stack) == 200
        seconds = _until(lambda: _ready(stack), timeout_s=180)
        wait_for(load, 20)
    assert not [engine for engine in engines if engine.is_running()]
    assert len(_engines(stack)) == len(engines)
    # Who was being answered has lost the connection; who came meanwhile was told so, or waited.
    patience = 1 + int(seconds / CLIENT_TIMEOUT_S)
    assert load.broken <= CLIENTS * (1 + patience)
    assert set(load.refused) <= {"no_replica", "engine_unavailable"}


def _ready(stack: Stack) -> bool:
    try:
        return httpx.get(f"{stack.url}/ready", timeout=60).status_code == 200
    except httpx.HTTPError:
        return False
