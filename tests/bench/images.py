"""``make bench``: the service with DICOM, beside PNG and JPEG of the same pictures.

One running service; rounds alternate between the files, so that whatever else the machine does
falls on all of them. Answers are the same, since the pixels are. Prints a table; the last line is
one JSON object.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import secrets
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import uid
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve.phantom.draw import Phantom, draw
from tests.bench.load import CLIENTS, Round, rate, run_round, summary, this_service
from tests.dicoms import dicom
from tests.running import free_port, start, wait_ready

ROUNDS = 5
PICTURES = 4
REQUESTS = {512: {1: 20, 8: 64}, 2048: {1: 10, 8: 32}}  # a round, by side and clients
console = Console()


def _grey(side: int, seed: int) -> np.ndarray:
    """A drawn chest of 8 bits; noise as detectors have it, so that nothing compresses too well."""
    chest = draw(Phantom(pneumothorax="left"), seed=seed).convert("L").resize((side, side))
    noise = np.random.default_rng(seed).normal(0, 2, (side, side))
    return (np.asarray(chest) + noise).clip(0, 255).astype(np.uint8)


def _url(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _raster(grey: np.ndarray, kind: str) -> str:
    file = io.BytesIO()
    Image.fromarray(grey).save(file, kind)
    return _url(file.getvalue(), f"image/{kind.lower()}")


def _dicom(grey: np.ndarray, syntax: uid.UID) -> str:
    """The same picture in 12 bits: a window takes it back to the same 8."""
    data = dicom(
        grey.astype(np.uint16) << 4,
        syntax,
        Modality="DX",
        BitsStored=12,
        HighBit=11,
        WindowCenter=2040,
        WindowWidth=4080,
        VOILUTFunction="LINEAR_EXACT",
    )
    return _url(data, "application/dicom")


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
            images = {name: [encode(grey) for grey in greys] for name, encode in FILES.items()}
            rounds: dict[tuple[int, str], list[Round]] = {}
            for clients in CLIENTS:
                for number in track(range(ROUNDS + 1), f"{side}², {clients}", console=console):
                    for name, urls in images.items():
                        one = asyncio.run(
                            run_round(server, urls, clients, requests=requests[clients])
                        )
                        if number:  # the first one warms up
                            rounds.setdefault((clients, name), []).append(one)
            report["images"][side] = {
                name: {
                    "bytes": len(urls[0]) * 3 // 4,
                    **{clients: summary(rounds[clients, name]) for clients in CLIENTS},
                }
                for name, urls in images.items()
            }
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
    _print(report)


def _print(report: dict[str, Any]) -> None:
    table = Table("picture", "file", "MB", "clients", "requests/s", "latency p50 ms", "of PNG")
    for side, files in report["images"].items():
        for name, rows in files.items():
            for clients in CLIENTS:
                row, png = rows[clients], files["PNG"][clients]
                table.add_row(
                    f"{side}²",
                    name,
                    f"{rows['bytes'] / 1e6:.2f}",
                    str(clients),
                    rate(row),
                    f"{row['latency_ms_p50']:.0f}",
                    f"{row['requests_per_s'] / png['requests_per_s']:.2f}",
                )
    console.print(table)
    print(json.dumps(report))  # noqa: T201  # the last line, for programs


if __name__ == "__main__":
    main()
