"""One running stack for all end-to-end tests: `llava-med up`, as a user starts it."""

from __future__ import annotations

import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from guardrails import policy
from tests.running import NotReadyError, free_port, start, wait_ready


@dataclass(frozen=True)
class Stack:
    """A running service."""

    url: str
    key: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    policy: Path
    ready_s: float

    def openai(self, **options: object) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=self.key, max_retries=0, **options)  # type: ignore[arg-type]

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)

    def metric(self, name: str) -> float:
        """The sum of a counter or gauge over its labels."""
        with self.http() as client:
            lines = client.get("/metrics").text.splitlines()
        values = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert values, f"no metric {name}"
        return sum(float(line.rsplit(" ", 1)[1]) for line in values)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    port, key, log = free_port(), secrets.token_urlsafe(24), folder / "up.log"
    rules = folder / "policy.yaml"
    rules.write_text(policy.read())
    started = time.monotonic()
    process = start(
        port,
        log,
        "--policy",
        str(rules),
        LLAVA_MED_API_KEY=key,
        LLAVA_MED_STATE_DIR=str(folder / "state"),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        try:
            wait_ready(f"{url}/ready", process, log)
        except NotReadyError as error:
            pytest.exit(f"the service did not start: {error}", returncode=1)
        yield Stack(url, key, port, process, log, rules, time.monotonic() - started)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
