"""From a file's bytes to the square that the model sees: ms per image, three ways, same files.

    python -m tests.bench.imaging [--quick] [--rounds N] [--plot docs/images/imaging-speed.png]

ours             serve.imaging.intake.prepare: with limits, de-identification, and the digest
straightforward  what one writes first: pydicom's pixel_array (with the first of its own plug-ins
                 that is installed), apply_modality_lut, apply_voi_lut, lowest to highest value as
                 8 bits, MONOCHROME1 turned, Pillow's convert("RGB"), padding, resize; for PNG and
                 JPEG Pillow alone. Of several frames it too decodes one only.
dcmtk            dcmj2pnm (dcmdjpls first for JPEG-LS), with process start, file to file; it writes
                 the picture at full size, without padding or resize

The ways take turns on each file, so that other work on the machine disturbs all alike. Shown are
the median of all rounds, and the fastest and slowest. MB/s are of uncompressed pixels. Memory is
the peak that one image adds to a fresh process in which a small one was decoded before.

Prints a table; the last line is one JSON object. "n/a": that way cannot, here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydicom import dcmread, uid
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from rich.console import Console
from rich.progress import track
from rich.table import Table

from serve.imaging.decoders import DECODED_BY, PLUGIN
from serve.imaging.intake import Rules, prepare
from serve.imaging.sources import Wanted
from tests.bench.pictures import KINDS, Kind

SIDE = 336
RULES = Rules(
    side=SIDE,
    max_pixels=1 << 26,
    max_frames=1000,
    burned_in="flag",  # a rule that refuses would measure nothing
    ocr=False,
    known_regions=(),
    uid_key=b"k" * 32,
)
WAYS = ("ours", "straightforward", "dcmtk")
BACKGROUND = (122, 116, 104)


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured. A scale below 1 shrinks the pictures: for tests."""

    rounds: int = 9
    scale: float = 1.0


class NotHereError(Exception):
    """A way that cannot decode this kind, here."""


# --- the three ways ------------------------------------------------------------------------------


def ours(data: bytes) -> bytes:
    """The product's own."""
    return prepare(data, None, Wanted(), RULES).pixels


def stock_plugin(syntax: uid.UID) -> str:
    """The first of pydicom's own plug-ins that can; "" where none is needed."""
    if not syntax.is_encapsulated:
        return ""
    others = [name for name in get_decoder(syntax).available_plugins if name != PLUGIN]
    if not others:
        raise NotHereError
    return others[0]


def straightforward(data: bytes) -> bytes:
    """As it is written without much thought; right all the same, for most files."""
    if data[128:132] != b"DICM":
        image = Image.open(BytesIO(data)).convert("RGB")
        return _square(image)
    dataset = dcmread(BytesIO(data))
    plugin = stock_plugin(dataset.file_meta.TransferSyntaxUID)
    pixels = pixel_array(dataset, index=0, decoding_plugin=plugin)
    if dataset.SamplesPerPixel == 1:
        values = apply_voi_lut(apply_modality_lut(pixels, dataset), dataset).astype(float)
        values = (values - values.min()) / (values.max() - values.min()) * 255
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            values = 255 - values
        pixels = values.astype(np.uint8)
    return _square(Image.fromarray(pixels).convert("RGB"))


def _square(image: Image.Image) -> bytes:
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), BACKGROUND)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square.resize((SIDE, SIDE), Image.Resampling.BICUBIC).tobytes()


def dcmtk(path: Path, syntax: uid.UID | None) -> None:
    """Two processes for JPEG-LS, else one; what they write is thrown away."""
    lossless = uid.JPEGLSLossless
    unknown = {None, uid.JPEG2000Lossless, uid.HTJ2KLossless}
    if syntax in unknown or not (shutil.which("dcmj2pnm") and shutil.which("dcmdjpls")):
        raise NotHereError
    native = path.with_suffix(".native")
    if syntax == lossless:
        subprocess.run(["dcmdjpls", path, native], check=True)
    grey = [] if syntax == uid.JPEGBaseline8Bit else ["+Wi", "1"]
    source = native if syntax == lossless else path
    subprocess.run(["dcmj2pnm", "-O", "+op", *grey, source, path.with_suffix(".pnm")], check=True)


def _way(name: str, kind: Kind, path: Path) -> Callable[[], object]:
    if name == "dcmtk":
        return lambda: dcmtk(path, kind.syntax)
    data = path.read_bytes()
    work = ours if name == "ours" else straightforward
    return lambda: work(data)


# --- measuring -----------------------------------------------------------------------------------


def measure(kind: Kind, effort: Effort, folder: Path) -> dict[str, Any]:
    """One kind: every way's times, in turns, and what there is to know beside them."""
    path, small = folder / "picture", folder / "small"
    path.write_bytes(kind.make(effort.scale))
    small.write_bytes(kind.make(1 / 16))
    times: dict[str, list[float]] = {}
    ways = {name: _way(name, kind, path) for name in WAYS}
    for name, work in ways.items():  # the first time fills caches, and is not counted
        try:
            work()
            times[name] = []
        except NotHereError:
            continue
    for _ in range(effort.rounds):
        for name in times:
            begun = time.perf_counter()
            ways[name]()
            times[name].append(1000 * (time.perf_counter() - begun))
    pixels = kind.uncompressed * effort.scale**2 / 1e6
    return {
        "file_bytes": path.stat().st_size,
        "large": kind.large,
        **_plugins(kind),
        "ways": {
            name: _figures(values, pixels)
            | ({} if name == "dcmtk" else {"memory_mb": _memory(name, kind, small, path)})
            for name, values in times.items()
        },
        "speedup": _speedup(times),
        "difference": _difference(path.read_bytes()) if "straightforward" in times else None,
    }


def _figures(values: Sequence[float], pixels: float) -> dict[str, float]:
    middle = statistics.median(values)
    return {
        "ms": middle,
        "ms_min": min(values),
        "ms_max": max(values),
        "mb_per_s": 1000 * pixels / middle,
    }


def _speedup(times: dict[str, list[float]]) -> float | None:
    """The median, over the rounds, of the straightforward time in ours."""
    if "straightforward" not in times:
        return None
    pairs = zip(times["straightforward"], times["ours"], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def _difference(data: bytes) -> float:
    """How far the two squares are apart in the mean, of 255."""
    squares = [np.frombuffer(way(data), np.uint8).astype(int) for way in (ours, straightforward)]
    return float(np.abs(squares[0] - squares[1]).mean())


def _plugins(kind: Kind) -> dict[str, str]:
    if kind.syntax is None:
        return {"our_decoder": "pillow", "straightforward_decoder": "pillow"}
    try:
        theirs = stock_plugin(kind.syntax) or "pydicom"
    except NotHereError:
        theirs = "none installed"
    return {
        "our_decoder": DECODED_BY[kind.syntax] or "pydicom",
        "straightforward_decoder": theirs,
    }


def _memory(name: str, kind: Kind, small: Path, path: Path) -> float:
    """MB that a fresh process needs more, at its peak, for this image."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.bench.imaging", "--memory", name]
    told = subprocess.run(
        [*command, small, path], capture_output=True, check=True, cwd=Path(__file__).parents[2]
    )
    return float(told.stdout)


def _peak(work: Callable[[bytes], object], small: Path, path: Path) -> float:
    """In the fresh process. VmHWM, not ru_maxrss, which begins at the parent's size."""
    work(small.read_bytes())
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets VmHWM to what is in use now
    before = _high_water()
    work(data)
    return _high_water() - before


def _high_water() -> float:
    status = Path("/proc/self/status").read_text()
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


# --- telling -------------------------------------------------------------------------------------


def _print(report: dict[str, Any], console: Console) -> None:
    head = ("kind", "way", "ms (fastest to slowest)", "MB/s", "peak MB", "decoder", "speed-up")
    table = Table(*head, caption="Speed-up: of ours over the straightforward way, round by round")
    for name, row in report.items():
        faster = f"{row['speedup']:.1f}x" if row["speedup"] else "n/a"
        for way in WAYS:
            figures = row["ways"].get(way)
            decoder = {"ours": row["our_decoder"], "dcmtk": ""}.get(
                way, row["straightforward_decoder"]
            )
            if figures is None:
                table.add_row("", way, "n/a", "", "", decoder)
                continue
            memory = f"{figures['memory_mb']:.0f}" if "memory_mb" in figures else ""
            spread = f"{figures['ms']:.1f} ({figures['ms_min']:.1f} to {figures['ms_max']:.1f})"
            title, gain = (name, faster) if way == "ours" else ("", "")
            rate = f"{figures['mb_per_s']:.0f}"
            table.add_row(title, way, spread, rate, memory, decoder, gain)
        table.add_section()
    console.print(table)
    print(json.dumps(_rounded(report)))  # noqa: T201  # the last line, for programs


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return float(f"{value:.4g}") if isinstance(value, float) else value


def plot(report: dict[str, Any], path: Path) -> None:
    """Milliseconds an image, by kind and way, as a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    places = np.arange(len(report))
    for number, (way, colour) in enumerate(
        zip(WAYS, ("#1b6ca8", "#c2c7cc", "#e0a458"), strict=True)
    ):
        rows = [one["ways"].get(way) for one in report.values()]
        values = [row["ms"] if row else 1 for row in rows]
        bars = axes.barh(places + (number - 1) * 0.27, values, 0.25, label=way, color=colour)
        labels = [f"{row['ms']:.0f}" if row else "n/a" for row in rows]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_yticks(places, list(report))
    axes.invert_yaxis()
    axes.set_xscale("log")  # from 4 ms to seconds
    axes.set_xlim(left=1)
    axes.set_xlabel("ms per image, logarithmic (median; less is better)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="three rounds: about a minute")
    parser.add_argument("--rounds", type=int, default=Effort().rounds, help="default: %(default)s")
    parser.add_argument("--plot", type=Path, metavar="PATH", help="draw the times as a PNG there")
    parser.add_argument("--memory", nargs=3, help=argparse.SUPPRESS)  # for a child of our own
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.memory:
        name, small, path = arguments.memory
        work = {"ours": ours, "straightforward": straightforward}[name]
        print(_peak(work, Path(small), Path(path)))  # noqa: T201
        return
    effort = Effort(3 if arguments.quick else arguments.rounds)
    # Wide enough for the table where nobody says how wide it may be.
    console = Console(width=None if sys.stdout.isatty() else 120)
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in track(KINDS, "Decoding", console=Console(stderr=True)):
            report[kind.name] = measure(kind, effort, Path(folder))
    if arguments.plot:
        plot(report, arguments.plot)
    _print(report, console)


if __name__ == "__main__":
    main()
