"""What the rails cost: one running service, its policy swapped between rounds.

``on`` is the policy that ships; ``off`` has a preamble, a label and no rule or finding, which only
a benchmark should want. Same engine, same requests; the order changes every round.
"""

from __future__ import annotations

import json
import secrets
import signal
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from guardrails import policy
from serve.local import reload_policy
from tests.bench.load import (
    CLIENTS,
    drawings,
    on_and_off,
    rate,
    this_service,
)
from tests.running import free_port, start, wait_ready

ROUNDS = 7
console = Console()


def without_rules() -> str:
    """The smallest policy: the texts of the one that ships, and nothing that looks at an answer."""
    file = policy.load().file
    texts = {"name": "off", "version": 1, "preamble": file.preamble, "label": file.label}
    return json.dumps(texts)  # JSON is YAML


def main() -> None:
    """Starts the service, measures, prints a table and one JSON object."""
    folder = Path(tempfile.mkdtemp(prefix="llava-med-bench-"))
    rules = folder / "policy.yaml"
    texts = {"on": policy.read(), "off": without_rules()}
    rules.write_text(texts["on"])
    key, port = secrets.token_urlsafe(24), free_port()
    process = start(port, folder / "up.log", "--policy", str(rules), LLAVA_MED_API_KEY=key)
    server = this_service(port, key, process.pid)
    images = drawings()

    def use(name: str) -> None:
        rules.write_text(texts[name])
        reload_policy(port)

    try:
        wait_ready(f"{server.url}/ready", process, folder / "up.log")
        report: dict[str, Any] = {"rails": {}}
        for clients in CLIENTS:
            measured = on_and_off(server, images, clients, use, rounds=ROUNDS)
            on, off = measured["on"], measured["off"]
            report["rails"][clients] = {
                "on": on,
                "off": off,
                "requests_per_s_of_off": on["requests_per_s"] / off["requests_per_s"],
                "inter_token_p50_of_off": on["inter_token_ms_p50"] / off["inter_token_ms_p50"],
                "time_per_output_token_p50_of_off": on["time_per_output_token_ms_p50"]
                / off["time_per_output_token_ms_p50"],
                "ttft_p50_of_off": on["ttft_ms_p50"] / off["ttft_ms_p50"],
            }
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    _print(report)


def _print(report: dict[str, Any]) -> None:
    table = Table(
        "clients",
        "rails",
        "requests/s",
        "TTFT p50 ms",
        "between events p50 ms",
        "per output token p50 ms",
    )
    for clients, rows in report["rails"].items():
        for name in ("off", "on"):
            row = rows[name]
            table.add_row(
                str(clients),
                name,
                rate(row),
                f"{row['ttft_ms_p50']:.1f}",
                f"{row['inter_token_ms_p50']:.2f}",
                f"{row['time_per_output_token_ms_p50']:.2f}",
            )
    console.print(table)
    print(json.dumps(report))  # noqa: T201  # the last line, for programs


if __name__ == "__main__":
    main()
