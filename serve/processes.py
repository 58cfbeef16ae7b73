"""Finds and ends the processes of a local service, whoever their parent is by now.

Ray's workers rename themselves and vLLM's engine outlives a killed parent, so neither names nor
parents say whose a process is. What stays: everything we start writes its output into our run
folder, or has a path in it in its command line or environment.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from pathlib import Path

import psutil

GRACE_S = 3.0


def ours(run_dir: Path) -> list[psutil.Process]:
    """Processes of the service that ran in ``run_dir``, this one and its ancestors left out."""
    marker = f"{run_dir}/".encode()
    me = psutil.Process()
    spare = {me.pid, *(parent.pid for parent in me.parents())}
    return [
        process
        for process in psutil.process_iter()
        if process.pid not in spare and _belongs(process.pid, marker)
    ]


def _belongs(pid: int, marker: bytes) -> bool:
    proc = Path("/proc", str(pid))
    try:
        # Ray's agents write into pipes, and a title over their command line.
        if any(marker in (proc / name).read_bytes() for name in ("cmdline", "environ")):
            return True
        return any(
            str((proc / "fd" / descriptor).readlink()).encode().startswith(marker)
            for descriptor in ("1", "2")
        )
    except OSError:  # gone, or another user's
        return False


def sweep(run_dir: Path) -> int:
    """Ends what is left: SIGTERM, then SIGKILL after a grace of GRACE_S seconds. Returns how many.

    Repeats until nothing is left, since a dying parent may have started one more.
    """
    count = 0
    for _ in range(5):
        found = ours(run_dir)
        if not found:
            break
        count += len(found)
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(found, timeout=GRACE_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=GRACE_S)
    return count


def is_up(pid: int, run_dir: Path) -> bool:
    """Whether the process that wrote ``pid`` still runs, and the number was not given again."""
    try:
        return psutil.Process(pid).create_time() <= (run_dir / "pid").stat().st_mtime
    except (psutil.NoSuchProcess, OSError):
        return False


def interrupt(pid: int, *, timeout_s: float) -> bool:
    """Asks a running `llava-med up` to stop, as Ctrl-C does; True when it is gone in time."""
    try:
        process = psutil.Process(pid)
        process.send_signal(signal.SIGINT)
        process.wait(timeout_s)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def port_is_free(host: str, port: int) -> bool:
    """Whether we could listen there now."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def wait_until_free(host: str, port: int, *, timeout_s: float) -> bool:
    """Waits for a port that a swept process may hold for a moment longer."""
    deadline = time.monotonic() + timeout_s
    while not port_is_free(host, port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
