"""Killed at random moments under load: no answer was delivered that is not on record.

The service here is the real edge, request path, recorder and store over an engine that takes no
time to start, so that it can die often; tests/e2e/test_recording.py does it once to the whole.
"""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from serve.audit import keyring, schema
from serve.audit.checkpoints import read, signing_key
from serve.audit.contents import Contents
from serve.audit.store import Store, open_store
from serve.audit.verify import Report, verify
from serve.settings import Settings, load
from tests.load import Load
from tests.postgres import Postgres, postgres
from tests.running import free_port

KEY = secrets.token_urlsafe(24)
KILLS = 6


class Service:
    """tests.scripted in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        audit, key = self.settings.audit, self.settings.audit.key
        assert key is not None
        assert audit.signing_key is not None
        given = {
            "API_KEY": KEY,
            "STATE_DIR": str(self.settings.state_dir),
            "AUDIT__KEY": key.get_secret_value(),
            "AUDIT__SIGNING_KEY": audit.signing_key.get_secret_value(),
            "AUDIT__CHECKPOINT_S": str(audit.checkpoint_s),
            "AUDIT__TIMEOUT_S": str(audit.timeout_s),
        }
        if audit.url is not None:
            given["AUDIT__URL"] = audit.url.get_secret_value()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.scripted", str(self.port)],
            env=os.environ | {f"LLAVA_MED_{name}": value for name, value in given.items()},
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                httpx.get(f"{self.url}/health").raise_for_status()
            except httpx.HTTPError:
                assert self._process.poll() is None
                time.sleep(0.05)
            else:
                return
        raise AssertionError("the service did not start")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


@contextmanager
def service(settings: Settings) -> Iterator[Service]:
    running = Service(settings)
    running.start()
    try:
        yield running
    finally:
        running.kill()


def settings_in(folder: Path, url: str | None = None) -> Settings:
    keys = {"key": keyring.new_key(), "signing_key": keyring.new_key()}
    where = {} if url is None else {"url": url}
    return load(state_dir=folder, audit={**keys, **where, "checkpoint_s": 0.2, "timeout_s": 2.0})


def check(settings: Settings, load_: Load) -> None:
    """Everything delivered is on record, whole and in the queue; every chain verifies."""
    store = open_store(settings)
    assert load_.delivered
    assert set(load_.refused) <= {"audit_unavailable"}, load_.refused
    with store.reading() as connection:
        table = schema.records
        answers = set(connection.scalars(select(table.c.audit_id).where(table.c.kind == "answer")))
        requests = set(
            connection.scalars(select(table.c.audit_id).where(table.c.kind == "request"))
        )
        queue = set(connection.scalars(select(schema.reviews.c.audit_id)))
        urgent = set(connection.scalars(select(schema.escalations.c.audit_id)))
    delivered = set(load_.delivered)
    assert len(delivered) == len(load_.delivered)
    assert delivered <= answers
    assert answers <= requests
    assert delivered <= queue
    assert queue == urgent
    report = verified(store, settings)
    assert report.sound, report.problems
    assert report.checkpoints
    store.engine.dispose()


def verified(store: Store, settings: Settings) -> Report:
    assert settings.audit.signing_key is not None
    key = signing_key(settings.audit.signing_key.get_secret_value()).public_key()
    checkpoints = read(settings.state_dir / "audit-checkpoints", store.id, key)
    return verify(store.engine, checkpoints, Contents(store))


def wait_for(load_: Load, more: int, *, timeout_s: float = 30) -> None:
    """Until so many more answers were delivered."""
    wanted = len(load_.delivered) + more
    deadline = time.monotonic() + timeout_s
    while len(load_.delivered) < wanted:
        assert time.monotonic() < deadline, f"no answers any more: {load_.refused}"
        time.sleep(0.01)


def at_random() -> None:
    time.sleep(random.uniform(0.05, 0.4))


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_service_that_is_killed_again_and_again(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("server").database() if database == "postgresql" else None
    settings = settings_in(tmp_path, url)
    with service(settings) as running:
        load_ = Load(running.url, KEY)
        with load_.running():
            for _ in range(KILLS):
                wait_for(load_, 1)
                at_random()
                running.kill()
                running.start()
            wait_for(load_, 20)
    assert load_.broken
    check(settings, load_)


def test_a_database_that_is_killed_again_and_again(server: Postgres, tmp_path: Path) -> None:
    settings = settings_in(tmp_path, server.database())
    with service(settings) as running:
        load_ = Load(running.url, KEY)
        with load_.running():
            for _ in range(KILLS // 2):
                wait_for(load_, 1)
                at_random()
                server.kill()
                refused = load_.refused["audit_unavailable"]
                while load_.refused["audit_unavailable"] < refused + 3:
                    time.sleep(0.02)
                server.start()
            wait_for(load_, 20)
    assert not load_.broken
    check(settings, load_)


@contextmanager
def small_disk(folder: Path, *, mib: int) -> Iterator[Path]:
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("no right to mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_and_then_is_not(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", mib=24) as folder:
        settings = settings_in(folder)
        with service(settings) as running:
            load_ = Load(running.url, KEY)
            with load_.running():
                for _ in range(3):
                    wait_for(load_, 5)
                    _fill(folder / "filler")
                    refused = load_.refused["audit_unavailable"]
                    while load_.refused["audit_unavailable"] < refused + 5:
                        time.sleep(0.02)
                    (folder / "filler").unlink()
                wait_for(load_, 10)
        assert not load_.broken
        check(settings, load_)


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
