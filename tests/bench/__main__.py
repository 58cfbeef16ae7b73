"""``make bench``: this service beside bare vLLM, same model, same requests, in one run.

Rounds alternate between the two, so that whatever else the machine does falls on both. The one
that is not measured stands still meanwhile (SIGSTOP): on two cores even an idle engine costs the
other. All run in one session, so that Linux' autogroup scheduling treats them alike. Bare vLLM is
its own API server with the preamble as a system message, so that both engines see the same prompt
and, decoding greedily, write the same tokens. Prints a table; its last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import track
from rich.table import Table

from guardrails.templates import PREAMBLE
from serve.checkpoint.cache import ensure_converted
from serve.phantom import weights_dir
from serve.settings import OFFLINE
from tests.bench.load import (
    CLIENTS,
    REQUEST,
    Round,
    Server,
    drawings,
    rate,
    run_round,
    summary,
    this_service,
)
from tests.running import free_port, start, wait_ready

ROUNDS = 5
SETTLE_S = 0.5
console = Console()


def _start_bare(model: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    arguments = {
        "--model": model, "--served-model-name": "llava-med", "--host": "127.0.0.1",
        "--port": port, "--max-model-len": 4096, "--max-num-seqs": 64,
        "--block-size": 32,
        "--limit-mm-per-prompt": '{"image": 4}', "--generation-config": "vllm",
        "--uvicorn-log-level": "warning",
    }  # fmt: skip
    with log.open("wb") as output:
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "vllm.entrypoints.openai.api_server",
                *(str(word) for pair in arguments.items() for word in pair),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ
            | OFFLINE
            | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
        )


def _memory_mib(pids: list[psutil.Process]) -> float:
    """Proportional set size: shared pages are counted once."""
    total = 0
    for process in pids:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total / (1 << 20)


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="llava-med-bench-"))
    model = ensure_converted(weights_dir(), Path.home() / ".llava-med" / "checkpoints")
    key, port, bare_port = secrets.token_urlsafe(24), free_port(), free_port()
    console.print("starting both servers")
    bare = _start_bare(model, bare_port, folder / "bare.log")
    ours = start(port, folder / "ours.log", LLAVA_MED_API_KEY=key, LLAVA_MED_MODEL=str(model))
    servers = (
        Server(
            "bare vLLM",
            f"http://127.0.0.1:{bare_port}",
            {},
            REQUEST | {"messages": [{"role": "system", "content": PREAMBLE}]},
            lambda: [psutil.Process(bare.pid), *psutil.Process(bare.pid).children(recursive=True)],
        ),
        this_service(port, key, ours.pid),
    )
    images = drawings()
    try:
        wait_ready(f"{servers[0].url}/health", bare, folder / "bare.log")
        wait_ready(f"{servers[1].url}/ready", ours, folder / "ours.log")
        report = asyncio.run(_measure(servers, images))
        report["memory_mib"] = {server.name: _memory_mib(server.processes()) for server in servers}
    finally:
        for process in (ours, bare):
            process.send_signal(signal.SIGINT)
        for process in (ours, bare):
            process.wait(60)
    _print(report)


async def _alone(
    server: Server, servers: tuple[Server, Server], images: list[str], clients: int
) -> Round:
    """A round while the other server stands still."""
    (other,) = (one for one in servers if one is not server)
    other.signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(SETTLE_S)
        return await run_round(server, images, clients)
    finally:
        other.signal(signal.SIGCONT)


async def _measure(servers: tuple[Server, Server], images: list[str]) -> dict[str, Any]:
    report: dict[str, Any] = {"cpus": os.cpu_count(), "model": "phantom", "clients": {}}
    for clients in CLIENTS:
        rounds: dict[str, list[Round]] = {server.name: [] for server in servers}
        for server in servers:  # warm-up: caches, connections, compiled shapes
            await _alone(server, servers, images, clients)
        for number in track(range(ROUNDS), f"{clients} clients", console=console):
            # Who goes first changes every round.
            for server in servers if number % 2 else servers[::-1]:
                rounds[server.name].append(await _alone(server, servers, images, clients))
        bare, ours = (summary(rounds[server.name]) for server in servers)
        texts = [rounds[server.name][0].texts for server in servers]
        report["clients"][clients] = {
            servers[0].name: bare,
            servers[1].name: ours,
            "requests_per_s_of_bare": ours["requests_per_s"] / bare["requests_per_s"],
            "ttft_p50_of_bare": ours["ttft_ms_p50"] / bare["ttft_ms_p50"],
            "inter_token_p50_of_bare": ours["inter_token_ms_p50"] / bare["inter_token_ms_p50"],
            "same_text": all(
                any(mine.startswith(theirs.strip()) for theirs in texts[0]) for mine in texts[1]
            ),
        }
    return report


def _print(report: dict[str, Any]) -> None:
    table = Table("clients", "server", "requests/s", "TTFT p50 ms", "p95 ms", "inter-token p50 ms")
    for clients, rows in report["clients"].items():
        for name, row in rows.items():
            if isinstance(row, dict):
                table.add_row(
                    str(clients),
                    name,
                    rate(row),
                    f"{row['ttft_ms_p50']:.1f}",
                    f"{row['ttft_ms_p95']:.1f}",
                    f"{row['inter_token_ms_p50']:.2f}",
                )
    console.print(table)
    print(json.dumps(report))  # noqa: T201  # the last line, for programs


if __name__ == "__main__":
    main()
