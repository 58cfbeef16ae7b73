"""One running stack for all end-to-end tests: `llava-med up`, as a user starts it."""

from __future__ import annotations

import secrets
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from guardrails import policy
from tests.orthanc import Orthanc, orthanc
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
    pacs: Orthanc | None
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
def pacs() -> Iterator[Orthanc | None]:
    """A real PACS; None where Orthanc is not installed, outside of CI."""
    with ExitStack() as running:
        try:
            yield running.enter_context(orthanc())
        except pytest.skip.Exception:
            yield None


def _settings(pacs: Orthanc | None) -> dict[str, str]:
    if pacs is None:
        return {}
    prefix = "LLAVA_MED_IMAGING__DICOMWEB__"
    return {
        f"{prefix}URL": pacs.dicomweb,
        f"{prefix}USERNAME": pacs.username,
        f"{prefix}PASSWORD": pacs.password,
    }


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory, pacs: Orthanc | None) -> Iterator[Stack]:
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
        **_settings(pacs),
    )
    url = f"http://127.0.0.1:{port}"
    try:
        try:
            wait_ready(f"{url}/ready", process, log)
        except NotReadyError as error:
            pytest.exit(f"the service did not start: {error}", returncode=1)
        yield Stack(url, key, port, process, log, rules, pacs, time.monotonic() - started)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
