"""Fuzzes image intake: ``python -m tests.fuzz.imaging --seconds 600``.

Targets: whole images (``image``), image URLs (``url``), request bodies (``body``), and the decoders
of compressed frames by themselves (``codecs``). Work is done in a child process, so that a crash is
recorded and ends nothing. With atheris installed, Python code is instrumented and inputs that reach
new code are kept; without it, the seeds are mutated at random, from ``--seed``. What is found lies
in ``--finds``: one input for each distinct problem, named after it. Exits with 1 if there is one.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import mmap
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

ADDRESS_SPACE = 6 << 30  # the machine has other things to do
HANGS = 30.0  # seconds after which a child is ended
_SLOT = 1 << 20

Check = Callable[[bytes], str]


def main() -> int:
    """Runs children until the time is up, and says what they found."""
    options = _options()
    if options.child:
        return _child(options)
    options.finds.mkdir(parents=True, exist_ok=True)
    options.corpus.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + options.seconds
    totals: Counter[str] = Counter()
    restarts = 0
    while (left := deadline - time.monotonic()) > 1:
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as slot:
            slot.truncate(_SLOT)
            why = _run_child(options, left, Path(slot.name), options.seed + restarts)
            totals.update(_report(slot.name))
            if why:
                _keep(options.finds, f"{options.target} {why}", _current(slot.name))
        restarts += 1
    _say(json.dumps(dict(totals.most_common()), indent=1))
    finds = sorted(path.name for path in options.finds.iterdir())
    _say(f"{options.target}: {len(finds)} finds in {restarts} processes", *finds)
    return 1 if finds else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--target", choices=("image", "url", "body", "codecs"), default="image")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--engine", choices=("atheris", "random"), help="default: what there is")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path, default=Path("build/fuzz/corpus"), help="of atheris")
    parser.add_argument("--finds", type=Path, default=Path("build/fuzz/finds"))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine is None:
        options.engine = "atheris" if _has_atheris() and options.target != "codecs" else "random"
    return options


def _has_atheris() -> bool:
    from importlib.util import find_spec

    return find_spec("atheris") is not None


def _run_child(options: argparse.Namespace, seconds: float, slot: Path, seed: int) -> str:
    """How a child ended that did not end well; empty where it did."""
    command = [
        sys.executable, "-m", "tests.fuzz.imaging", "--child", str(slot), "--seed", str(seed),
        "--seconds", str(seconds), "--target", options.target, "--engine", options.engine,
        "--corpus", str(options.corpus), "--finds", str(options.finds),
    ]  # fmt: skip
    child = subprocess.Popen(command)
    before, since = b"", time.monotonic()
    while child.poll() is None:
        time.sleep(0.5)
        current = slot.read_bytes()[:64]
        if current != before or not any(current):
            before, since = current, time.monotonic()
        elif time.monotonic() - since > HANGS:
            child.kill()
            child.wait()
            return "hangs"
    if child.returncode == 0:
        return ""
    if child.returncode > 0:
        return f"ends with {child.returncode}"
    return f"ends with {signal.Signals(-child.returncode).name}"


# --- the child ------------------------------------------------------------------------------------


def _child(options: argparse.Namespace) -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable(logging.CRITICAL)
    if options.engine == "atheris":
        import atheris

        with atheris.instrument_imports(include=["serve", "pydicom", "PIL", "pybase64"]):
            import tests.fuzz.properties as properties
    else:
        import tests.fuzz.properties as properties
    from tests.fuzz import seeds
    from tests.fuzz.mutations import mutate

    properties.as_in_workers()
    chosen: list[tuple[bytes, Check]]
    match options.target:
        case "image":
            chosen = [(data, properties.image) for data in seeds.images().values()]
        case "url":
            chosen = [(data, properties.url) for data in seeds.urls().values()]
        case "body":
            chosen = [(data, properties.body) for data in seeds.bodies().values()]
        case _:
            chosen = [
                (data, properties.codestream(syntax))
                for syntax, streams in seeds.codestreams().items()
                for data in streams
            ]
    slot = _Slot(options.child)
    # After the libraries, which reserve much that they never use.
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    if options.engine == "atheris":
        _with_atheris(options, [data for data, _ in chosen], chosen[0][1], mutate, slot)
    rng = random.Random(options.seed)
    deadline = time.monotonic() + options.seconds
    while time.monotonic() < deadline:
        data, check = rng.choice(chosen)
        _once(mutate(data, rng), check, slot, options)
    slot.report()
    return 0


def _with_atheris(
    options: argparse.Namespace,
    seeds: list[bytes],
    check: Check,
    mutate: Callable[[bytes, random.Random], bytes],
    slot: _Slot,
) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    for data in seeds:
        (options.corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def mutant(data: bytes, size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        return atheris.Mutate(data, size) if rng.random() < 0.2 else mutate(data, rng)[:size]

    arguments = [
        "fuzz",
        str(options.corpus),
        f"-seed={options.seed}",
        f"-max_total_time={int(options.seconds)}",
        f"-max_len={_SLOT // 16}",
        f"-artifact_prefix={options.finds}/",
        # What hangs, crashes or eats memory is for our parent to find, and for the properties.
        *("-timeout=1200", "-rss_limit_mb=0", "-detect_leaks=0"),
        *(f"-handle_{name}=0" for name in ("segv", "abrt", "bus", "fpe", "ill")),
        *("-len_control=0", "-print_final_stats=1"),
    ]
    atheris.Setup(arguments, lambda data: _once(data, check, slot, options), custom_mutator=mutant)
    atheris.Fuzz()


def _once(data: bytes, check: Check, slot: _Slot, options: argparse.Namespace) -> None:
    slot.put(data)
    try:
        slot.count(check(data))
    except BaseException as error:  # a panic of Rust code is no Exception
        name = f"{options.target} {_place(error)}"
        slot.count(f"FOUND {name}")
        _keep(options.finds, name, data)


def _place(error: BaseException) -> str:
    """Names a problem: the exception, and the last of our lines that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/serve/" in frame.filename]
    where = f" {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    what = str(error) if type(error).__name__ == "Broken" else ""
    return f"{type(error).__name__} {what}{where}"


def _keep(folder: Path, name: str, data: bytes) -> None:
    """The smallest input of each problem."""
    path = folder / re.sub(r"[^\w.-]+", "-", name).strip("-")
    if not path.exists() or path.stat().st_size > len(data):
        path.write_bytes(data)


class _Slot:
    """Memory that outlives this process: its current input, and what it counted."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SLOT)
        self._path = path
        self._counts: Counter[str] = Counter()
        self._reported = time.monotonic()

    def put(self, data: bytes) -> None:
        self._counts["executions"] += 1
        head = self._counts["executions"].to_bytes(8, "little") + len(data).to_bytes(8, "little")
        self._memory[: 16 + len(data)] = head + data

    def count(self, outcome: str) -> None:
        self._counts[outcome] += 1
        if time.monotonic() - self._reported > 2:
            self.report()

    def report(self) -> None:
        self._reported = time.monotonic()
        text = json.dumps(self._counts).encode()
        self._memory[_SLOT // 2 : _SLOT // 2 + len(text) + 1] = text + b"\0"


def _current(slot: str) -> bytes:
    data = Path(slot).read_bytes()
    return data[16 : 16 + int.from_bytes(data[8:16], "little")]


def _report(slot: str) -> dict[str, Any]:
    text = Path(slot).read_bytes()[_SLOT // 2 :].split(b"\0")[0]
    found: dict[str, Any] = json.loads(text or b"{}")
    return found


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
