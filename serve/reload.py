"""A new policy for the running service: read, checked whole, and handed to the replicas.

`llava-med policy reload` signals the `llava-med up` that runs on a port; that one reads its policy
file again and leaves the outcome in a file beside its process id.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from guardrails import policy

SIGNAL = signal.SIGUSR1
_TIMEOUT_S = 60.0
_FAILED = "refused"


class ReloadError(Exception):
    """The policy was not replaced; the message says why."""


def serve_until(
    stop: threading.Event, directory: Path, path: Path | None, use: Callable[[str], None]
) -> None:
    """Waits for ``stop``; on SIGNAL reads the policy file anew and hands its text to ``use``."""
    asked = threading.Event()
    signal.signal(SIGNAL, lambda *_: asked.set())
    while not stop.wait(0.2):
        if asked.is_set():
            asked.clear()
            _write(directory, _outcome(path, use))


def _outcome(path: Path | None, use: Callable[[str], None]) -> str:
    try:
        text = policy.read(path)
        new = policy.parse(text, source=str(path or "default.yaml"))
        use(text)
    except Exception as error:  # whatever it is, the service goes on with the policy it has
        return f"{_FAILED}\n{error}"
    return new.id


def _write(directory: Path, outcome: str) -> None:
    new = directory / "policy.new"
    new.write_text(outcome)
    new.replace(directory / "policy")


def request(pid: int, directory: Path) -> str:
    """Has the service in ``directory`` read its policy again; returns the id of the new one.

    Raises:
        ReloadError: it refused, or did not answer in time; the former policy is in force.
    """
    outcome = directory / "policy"
    outcome.unlink(missing_ok=True)
    os.kill(pid, SIGNAL)
    deadline = time.monotonic() + _TIMEOUT_S
    while not outcome.is_file():
        if time.monotonic() > deadline:
            raise ReloadError("the service did not answer")
        time.sleep(0.1)
    text = outcome.read_text()
    if text.startswith(_FAILED):
        raise ReloadError(text.removeprefix(_FAILED).strip())
    return text
