"""``make bench``: the service with DICOM, beside PNG and JPEG of the same pictures.

One running service; rounds alternate between the files, so that whatever else the machine does
falls on all of them. Answers are the same, since the pixels are. Each file is asked about for the
first time (a few bytes at its end make it another one) and again. Prints a table; the last line is
one JSON object.
"""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
import json
import secrets
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import uid
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve.phantom.draw import Phantom, draw
from tests.bench.load import CLIENTS, Round, Server, rate, run_round, summary, this_service
from tests.dicoms import radiograph
from tests.running import free_port, start, wait_ready

ROUNDS = 3
PICTURES = 4
REQUESTS = {512: {1: 20, 8: 64}, 2048: {1: 10, 8: 32}}  # a round, by side and clients
# Wide enough for the table where nobody says how wide it may be.
console = Console(width=None if sys.stdout.isatty() else 120)


def _grey(side: int, seed: int) -> np.ndarray:
    """A drawn chest of 8 bits; noise as detectors have it, so that nothing compresses too well."""
    chest = draw(Phantom(pneumothorax="left"), seed=seed).convert("L").resize((side, side))
    noise = np.random.default_rng(seed).normal(0, 2, (side, side))
    return (np.asarray(chest) + noise).clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class File:
    """An image file."""

    media_type: str
    data: bytes

    def url(self, number: int | None = None) -> str:
        """As a data URL; with a number, a file that nobody has seen, of the same picture."""
        end = b"" if number is None else number.to_bytes(8, "little")
        return f"data:{self.media_type};base64,{base64.b64encode(self.data + end).decode()}"


def _raster(grey: np.ndarray, kind: str) -> File:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, kind)
    return File(f"image/{kind.lower()}", file.getvalue())


def _dicom(grey: np.ndarray, syntax: uid.UID) -> File:
    return File("application/dicom", radiograph(grey, syntax))


FILES = {
    "PNG": lambda grey: _raster(grey, "PNG"),
    "JPEG": lambda grey: _raster(grey, "JPEG"),
    "DICOM, native": lambda grey: _dicom(grey, uid.ExplicitVRLittleEndian),
    "DICOM, JPEG Lossless": lambda grey: _dicom(grey, uid.JPEGLosslessSV1),
    "DICOM, JPEG 2000": lambda grey: _dicom(grey, uid.JPEG2000Lossless),
}


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="llava-med-bench-"))
    key, port = secrets.token_urlsafe(24), free_port()
    console.print("starting the service")
    process = start(port, folder / "up.log", LLAVA_MED_API_KEY=key)
    server = this_service(port, key, process.pid)
    try:
        wait_ready(f"{server.url}/ready", process, folder / "up.log")
        report: dict[str, Any] = {"images": {}}
        for side, requests in REQUESTS.items():
            greys = [_grey(side, seed) for seed in range(PICTURES)]
            files = {name: [encode(grey) for grey in greys] for name, encode in FILES.items()}
            report["images"][side] = {
                name: {"bytes": len(several[0].data)} for name, several in files.items()
            }
            for clients in CLIENTS:
                rounds = _rounds(server, files, clients, requests[clients], f"{side}², {clients}")
                for (name, asked), some in rounds.items():
                    report["images"][side][name].setdefault(asked, {})[clients] = summary(some)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    _print(report)


def _rounds(
    server: Server, files: dict[str, list[File]], clients: int, requests: int, title: str
) -> dict[tuple[str, str], list[Round]]:
    rounds: dict[tuple[str, str], list[Round]] = {}
    serial = itertools.count(time.time_ns())
    for number in track(range(ROUNDS + 1), title, console=console):
        for name, several in files.items():
            new = [several[n % PICTURES].url(next(serial)) for n in range(requests)]
            known = [file.url() for file in several]
            for asked, urls in (("first", new), ("again", known)):
                one = asyncio.run(run_round(server, urls, clients, requests=requests))
                if number:  # the first one warms up
                    rounds.setdefault((name, asked), []).append(one)
    return rounds


def _print(report: dict[str, Any]) -> None:
    table = Table("picture", "file", "MB", "asked", "clients", "requests/s", "p50 ms", "of PNG")
    for side, files in report["images"].items():
        for name, rows in files.items():
            for asked, clients in itertools.product(("first", "again"), CLIENTS):
                row, png = rows[asked][clients], files["PNG"][asked][clients]
                table.add_row(
                    f"{side}²",
                    name,
                    f"{rows['bytes'] / 1e6:.2f}",
                    asked,
                    str(clients),
                    rate(row),
                    f"{row['latency_ms_p50']:.0f}",
                    f"{row['requests_per_s'] / png['requests_per_s']:.2f}",
                )
    console.print(table)
    print(json.dumps(report))  # noqa: T201  # the last line, for programs


if __name__ == "__main__":
    main()
