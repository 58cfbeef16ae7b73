"""What recording costs: one running service that records in every other round.

The store is SQLite on this machine's disk, with an fsync for each commit. Same engine, same
requests; the order changes every round. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.load import (
    CLIENTS,
    drawings,
    on_and_off,
    rate,
    this_service,
)
from tests.running import free_port, start, wait_ready

ROUNDS = 9
console = Console()


def main() -> None:
    """Starts the service, measures, prints a table and one JSON object."""
    folder = Path(tempfile.mkdtemp(prefix="llava-med-bench-"))
    flag = folder / "unrecorded"
    key, port = secrets.token_urlsafe(24), free_port()
    process = start(
        port,
        folder / "up.log",
        LLAVA_MED_API_KEY=key,
        LLAVA_MED_AUDIT__URL=f"sqlite:///{folder}/audit.db",
        LLAVA_MED_BENCH_UNRECORDED=str(flag),
        PYTHONPATH=os.pathsep.join([str(Path(__file__).with_name("unrecorded")), str(Path.cwd())]),
    )
    server = this_service(port, key, process.pid)
    images = drawings()

    def use(name: str) -> None:
        flag.touch() if name == "off" else flag.unlink(missing_ok=True)

    try:
        wait_ready(f"{server.url}/ready", process, folder / "up.log")
        report: dict[str, Any] = {"recording": {}}
        for clients in CLIENTS:
            measured = on_and_off(server, images, clients, use, rounds=ROUNDS)
            on, off = measured["on"], measured["off"]
            report["recording"][clients] = {
                "on": on,
                "off": off,
                "requests_per_s_of_off": on["requests_per_s"] / off["requests_per_s"],
                "latency_ms_p50_added": on["latency_ms_p50"] - off["latency_ms_p50"],
            }
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    _print(report)


def _print(report: dict[str, Any]) -> None:
    table = Table("clients", "recording", "requests/s", "latency p50 ms", "TTFT p50 ms")
    for clients, rows in report["recording"].items():
        for name in ("off", "on"):
            row = rows[name]
            table.add_row(
                str(clients),
                name,
                rate(row),
                f"{row['latency_ms_p50']:.1f}",
                f"{row['ttft_ms_p50']:.1f}",
            )
    console.print(table)
    print(json.dumps(report))  # noqa: T201  # the last line, for programs


if __name__ == "__main__":
    main()
