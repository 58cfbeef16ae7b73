"""Finding and ending what a local service left behind."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serve import loopback, processes

SLEEP = "import time; time.sleep(60)"


def _sleeper(log: Path, *arguments: str, ignore_term: bool = False) -> subprocess.Popen[bytes]:
    code = f"import signal; signal.signal(15, signal.SIG_IGN); {SLEEP}" if ignore_term else SLEEP
    with log.open("wb") as output:
        return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=output)


def test_a_process_is_ours_by_its_output_or_by_its_arguments(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "run-2"
    run.mkdir()
    other.mkdir()
    started = [
        _sleeper(run / "a.log"),
        _sleeper(other / "b.log", f"--dir={run}/x"),
        _sleeper(other / "c.log"),
    ]
    try:
        found = {process.pid for process in processes.ours(run)}
        assert found == {started[0].pid, started[1].pid}
        assert processes.sweep(run) == 2
        assert processes.ours(run) == []
        assert started[2].poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_what_ignores_sigterm_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_S", 0.5)
    process = _sleeper(tmp_path / "a.log", ignore_term=True)
    assert processes.sweep(tmp_path) >= 1
    process.wait(5)


def test_a_port_in_use_is_not_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert not processes.port_is_free("127.0.0.1", port)
        assert not processes.wait_until_free("127.0.0.1", port, timeout_s=0.2)
    assert processes.wait_until_free("127.0.0.1", port, timeout_s=5)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_addresses_are_known(host: str) -> None:
    assert loopback.is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "hospital.example"])
def test_other_addresses_are_not(host: str) -> None:
    assert not loopback.is_loopback(host)


def test_the_haproxy_wrapper_closes_what_ray_opens_and_keeps_the_rest(tmp_path: Path) -> None:
    config = tmp_path / "haproxy.cfg"
    config.write_text(
        "global\n    nbthread 2\nfrontend prometheus\n    bind :9101\n    no log\n"
        "frontend http_frontend\n    bind 127.0.0.1:8000\nlisten stats\n  bind *:8404\n"
        "backend app\n    server a 127.0.0.1:30000\n"
    )
    subprocess.run(
        [loopback.HAPROXY, "-db", "-f", config],
        check=True,
        env={"LLAVA_MED_HAPROXY": "/bin/true", "PATH": "/usr/bin:/bin"},
    )
    assert config.read_text() == (
        "global\n    nbthread 2\nfrontend http_frontend\n    bind 127.0.0.1:8000\n"
        "backend app\n    server a 127.0.0.1:30000\n"
    )
    page = (tmp_path / "500.http").read_text()
    head, _, body = page.partition("\n\n")
    assert "503" in head
    assert f"content-length: {len(body)}" in head
