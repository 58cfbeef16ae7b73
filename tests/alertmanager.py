"""A real Alertmanager (Debian's) on a free loopback port, gone afterwards."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.running import free_port

START_TIMEOUT_S = 30
CONFIG = "route:\n  receiver: nobody\nreceivers:\n  - name: nobody\n"


def executable() -> str:
    """Alertmanager's, or the test is skipped; in CI, where it has to be there, it fails."""
    found = shutil.which("prometheus-alertmanager")
    if found is not None:
        return found
    missing = "Debian's prometheus-alertmanager is not installed"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@contextmanager
def alertmanager() -> Iterator[str]:
    """Starts one, waits until it is ready, gives its URL."""
    program = executable()
    url = f"http://127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder:
        config, log = Path(folder, "config.yml"), Path(folder, "log")
        config.write_text(CONFIG)
        command = [
            program,
            f"--config.file={config}",
            f"--storage.path={folder}/data",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--cluster.listen-address=",  # no cluster
        ]
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            _wait(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/-/ready", timeout=5, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError(f"Alertmanager did not start:\n{log.read_text()[-4000:]}")
