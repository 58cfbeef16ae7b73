"""Start and stop on one machine: loopback only, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil

from serve import processes
from serve.local import run_dir
from tests.e2e.conftest import Stack, left_behind
from tests.running import free_port, start


def _listening(pids: set[int]) -> set[str]:
    return {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN and connection.pid in pids
    }


def test_every_port_of_the_service_is_on_loopback(stack: Stack) -> None:
    pids = {process.pid for process in processes.ours(run_dir(stack.port))} | {stack.process.pid}
    assert len(pids) > 5
    assert _listening(pids) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_the_log_shows_phases_and_a_call_but_no_key(stack: Stack) -> None:
    deadline = time.monotonic() + 30
    # /ready answers before `up` has said so.
    while "Stop with Ctrl-C" not in (log := stack.log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for phase in ("checkpoint", "Ray", "engine", "first token", "curl", "from openai import"):
        assert phase in log
    assert not [secret for secret in stack.secrets() if secret in log]


def test_a_second_start_on_the_same_port_is_refused_and_harms_nothing(stack: Stack) -> None:
    llava_med = Path(sys.executable).with_name("llava-med")
    second = subprocess.run(
        [llava_med, "up", "--port", str(stack.port)], capture_output=True, text=True, timeout=60
    )
    assert second.returncode == 1
    assert "runs already" in second.stderr
    with stack.http() as client:
        assert client.get("/ready").status_code == 200


def test_a_killed_service_is_cleaned_up_by_down(tmp_path: Path) -> None:
    port = free_port()
    log = tmp_path / "up.log"
    process = start(port, log, LLAVA_MED_STATE_DIR=str(tmp_path / "state"))
    try:
        deadline = time.monotonic() + 60
        while "Ray" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.2)
        assert len(processes.ours(run_dir(port))) > 3
        assert len(left_behind(port)) > 3
    finally:
        process.kill()
        process.wait()
        llava_med = Path(sys.executable).with_name("llava-med")
        subprocess.run([llava_med, "down", "--port", str(port)], check=True, timeout=60)
    assert left_behind(port) == []
    assert processes.port_is_free("127.0.0.1", port)
    assert not run_dir(port).exists()


def test_a_generated_key_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    from serve.local_secrets import with_secrets
    from serve.settings import load

    settings = load(state_dir=tmp_path / "state").model_copy(update={"api_key": None})
    first, shown = with_secrets(settings)
    again, not_shown = with_secrets(settings)
    path = tmp_path / "state" / "api-key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert first.api_key == again.api_key
    assert shown is not None
    assert not_shown is None
    assert shown not in repr(first)
