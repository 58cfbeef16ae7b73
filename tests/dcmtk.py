"""Our pictures of DICOM files against those of dcmtk, and the table of it in the docs.

    python -m tests.dcmtk      # renders the table in docs/dicom-conformance.md anew

dcmtk shares no code with pydicom or with our decoders, except for what it lacks: JPEG 2000, which
is decoded by Pillow first. JPEG-LS it decodes with a tool of its own (dcmdjpls).
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import cache
from io import BytesIO
from itertools import groupby
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames

from serve.errors import ApiError
from serve.imaging import dicom
from serve.imaging.dicom import Rendered
from serve.imaging.sources import Wanted

TOOLS = ("dcmj2pnm", "dcmdjpls")
FILES = Path(pydicom.__file__).parent / "data" / "test_files"
DOCS = Path(__file__).parent.parent / "docs" / "dicom-conformance.md"
MARKERS = ("<!-- table: python -m tests.dcmtk -->", "<!-- end of table -->")
_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_DEEP = 65535  # dcmtk's white in 16 bits
_COLUMNS = (
    "file", "transfer syntax", "photometric interpretation", "bits", "window",
    "largest difference", "pixels that differ", "after rounding", "remark",
)  # fmt: skip

# What differs by more than rounding, or has no twin to compare with; each is asserted in
# tests/unit/imaging/test_against_dcmtk.py. The last are refused by dcmtk, pydicom and us.
_ONE_BIT = "dcmtk fills bits up with zeros: the 1 of a one-bit image becomes 128; we show it white"
_SWAPPED = (
    "dcmtk swaps 32-bit big-endian values as if they were of 16 bits, so that their halves change "
    "places; ours equals the little-endian twin"
)
_WHOLE = "dcmtk cuts rescaled values to whole numbers (here the slope is 0.684); we do not"
_NO_ROWS = "refused: two bytes of pixel data, and no Rows or Columns"
REMARKS = {
    "liver_1frame.dcm": _ONE_BIT,
    "liver_expb_1frame.dcm": _ONE_BIT,
    "rtdose_expb.dcm": _SWAPPED,
    "rtdose_expb_1frame.dcm": _SWAPPED,
    "dicomdirtests/77654033/CR1/6154": _WHOLE,
    "dicomdirtests/77654033/CR2/6247": _WHOLE,
    "dicomdirtests/77654033/CR3/6278": _WHOLE,
    "SC_ybr_full_422_uncompressed.dcm": "rounding of the conversion from YBR",
    "examples_palette.dcm": "dcmtk drops the lower byte of 16-bit entries; we round",
    "SC_rgb_jpeg.dcm": "dcmtk cannot read it: says explicit VR, is implicit; as its twin `_dcmd`",
    "GDCMJ2K_TextGBR.dcm": "Pillow takes its data for broken",
    "badVR.dcm": "NumberOfFrames is `1A`: refused; dcmtk takes the first frame",
    "JPEG2000-embedded-sequence-delimiter.dcm": "refused: its codestream was overwritten",
    "MR_truncated.dcm": "refused: part of the pixel data is missing",
    "meta_missing_tsyntax.dcm": _NO_ROWS,
    "nested_priv_SQ.dcm": _NO_ROWS,
}


class UnableError(Exception):
    """dcmtk, or Pillow where it goes first, makes no picture of a file."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One file: what it is, and how far its two pictures are apart. None: there are not two."""

    name: str
    syntax: str
    photometric: str
    bits: str
    window: str
    ours: bool
    theirs: bool
    largest: int | None = None  # dcmtk writing 8 bits, which it truncates to
    percent: float | None = None  # pixels that differ
    rounded: int | None = None  # dcmtk writing 16 bits, which we round as we round ours


def available() -> bool:
    """Whether dcmtk is installed."""
    return all(shutil.which(tool) for tool in TOOLS)


def version() -> str:
    """Of the tools, such as 3.6.7."""
    told = subprocess.run([TOOLS[0], "--version"], capture_output=True, text=True, check=True)
    return told.stdout.split()[2].removeprefix("v")


def image_files() -> list[Path]:
    """The files that pydicom ships in which it, or dcmtk, finds pixel data."""
    return [path for path in sorted(FILES.rglob("*")) if path.is_file() and _has_pixels(path)]


@cache
def _has_pixels(path: Path) -> bool:
    dumped = subprocess.run(["dcmdump", "-q", "+P", "7fe0,0010", path], capture_output=True)
    return b"PixelData" in dumped.stdout or "PixelData" in _header(path, "PixelData")


def ours(path: Path, wanted: Wanted = Wanted()) -> Rendered:  # noqa: B008
    """Our picture.

    Raises:
        ApiError: there is none.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in the worker
        return dicom.opened(path.read_bytes(), max_pixels=1 << 24, max_frames=1000).render(wanted)


def theirs(path: Path, options: Sequence[str] = (), *, deep: bool = False) -> np.ndarray:
    """The picture that dcmtk makes, without overlays: 8 bits grey or RGB, or 16 bits grey.

    Raises:
        UnableError: there is none.
    """
    with tempfile.TemporaryDirectory() as folder, _decodable(path, Path(folder)) as source:
        out = Path(folder, "picture")
        _run("dcmj2pnm", "-O", "+on2" if deep else "+op", *options, source, out)
        if not out.exists():
            raise UnableError
        with Image.open(out) as image:
            return np.asarray(image)


@contextmanager
def _decodable(path: Path, folder: Path) -> Iterator[Path]:
    syntax = _header(path).file_meta.get("TransferSyntaxUID", "")
    native = folder / "native.dcm"
    if syntax in _LS:
        _run("dcmdjpls", path, native)
    elif syntax in uid.JPEG2000TransferSyntaxes:
        _by_pillow(path).save_as(native)
    yield native if native.exists() else path


def _run(*command: str | Path) -> None:
    if subprocess.run(command, capture_output=True).returncode:
        raise UnableError


def _by_pillow(path: Path) -> Dataset:
    """The file with its first JPEG 2000 frame in place of its pixels, decoded by Pillow."""
    dataset = pydicom.dcmread(path)
    (codestream, *_) = generate_frames(dataset.PixelData, number_of_frames=1)
    try:
        with Image.open(BytesIO(codestream), formats=["JPEG2000"]) as image:
            pixels = np.asarray(image)
    except (OSError, Image.DecompressionBombError) as error:
        raise UnableError from error
    if dataset.SamplesPerPixel == 3:
        dataset.PhotometricInterpretation = "RGB"
        dataset.PlanarConfiguration = 0
    elif dataset.BitsAllocated == 16:
        # Pillow shifts values to the left to fill 16 bits, and signed ones above zero. The
        # codestream says of how many bits they are, and whether signed (ITU-T T.800 A.5.1, Ssiz).
        told = codestream[codestream.index(b"\xff\x4f\xff\x51") + 42]
        precision = (told & 0x7F) + 1
        values = pixels.astype(np.int64) >> (16 - precision)
        values -= 1 << (precision - 1) if told >> 7 else 0
        pixels = (values & ((1 << dataset.BitsStored) - 1)).astype("<u2")
        dataset.HighBit = dataset.BitsStored - 1
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def options(rendered: Rendered) -> list[str]:
    """What makes dcmtk show the frame as we say that we have shown it.

    It finds the file's own window or VOI LUT by itself; one of the request's, or a default, it is
    told.
    """
    chosen = ["+F", str(rendered.frame)]
    windowing, header = rendered.windowing, rendered.header
    if windowing is None:
        return chosen
    function = str(header.get("VOILUTFunction", "LINEAR"))
    if windowing.center is None or windowing.width is None:
        named = ["+Wl", "1"] if windowing.origin == "file" else _without_window(header)
    elif function == "LINEAR_EXACT":
        # dcmtk has no such function; LINEAR with these is the same (PS3.3 C.11.2.1.2.1, .3.2).
        named = ["+Ww", str(windowing.center + 0.5), str(windowing.width + 1)]
    elif windowing.origin == "file":
        named = ["+Wi", "1"]
    else:
        named = ["+Ww", str(windowing.center), str(windowing.width)]
    return chosen + named + (["+Wfs"] if function == "SIGMOID" else [])


def _without_window(header: Dataset) -> list[str]:
    meaning = {"RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"}
    as_is = header.BitsStored <= 8 and not any(name in header for name in meaning)
    return ["-W"] if as_is else ["+Wm"]


def rounded(deep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and highest 8-bit values that dcmtk's truncated 16 bits can be rounded to."""
    low, high = (np.floor(255 * (deep + step) / _DEEP + 0.5) for step in (0.0, 1.0))
    return low, np.minimum(high, 255)


def apart(rendered: Rendered, path: Path) -> tuple[int, float, int | None]:
    """Largest difference in 8 bits, percentage of pixels that differ, largest when rounded.

    Raises:
        UnableError: dcmtk makes no picture.
    """
    chosen, mine = options(rendered), np.asarray(rendered.image).astype(int)
    differences = np.abs(mine - theirs(path, chosen))
    pixels = differences if mine.ndim == 2 else differences.max(axis=-1)
    # Without a window, and after a VOI LUT, dcmtk fills 16 bits up with zeros: nothing to round.
    if mine.ndim == 3 or {"-W", "+Wl"} & set(chosen):
        return int(differences.max()), 100 * float((pixels > 0).mean()), None
    low, high = rounded(theirs(path, chosen, deep=True))
    beyond = np.maximum(low - mine, mine - high).clip(0)
    return int(differences.max()), 100 * float((pixels > 0).mean()), int(beyond.max())


@cache
def compare(path: Path) -> Comparison:
    """A file's default frame, and its last."""
    header = _header(path)
    about = (
        path.relative_to(FILES).as_posix(),
        uid.UID(header.file_meta.get("TransferSyntaxUID", "")).keyword or "none",
        header.get("PhotometricInterpretation", "none"),
        f"{header.get('BitsStored', '?')} of {header.get('BitsAllocated', '?')}",
    )
    try:
        first = ours(path)
    except ApiError:
        return Comparison(*about, "", ours=False, theirs=_shown(path))
    try:
        last = [ours(path, Wanted(frame=first.frames))] if first.frames > first.frame else []
        found = [apart(rendered, path) for rendered in (first, *last)]
    except UnableError:
        return Comparison(*about, _window(first), ours=True, theirs=False)
    deep = [one[2] for one in found if one[2] is not None]
    return Comparison(
        *about,
        _window(first),
        ours=True,
        theirs=True,
        largest=max(one[0] for one in found),
        percent=max(one[1] for one in found),
        rounded=max(deep) if deep else None,
    )


def _header(path: Path, *tags: str) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path, force=True, specific_tags=list(tags) or None)


def _shown(path: Path) -> bool:
    try:
        theirs(path)
    except UnableError:
        return False
    return True


def _window(rendered: Rendered) -> str:
    chosen = options(rendered)[2:3]
    origins = {"+Wi": "the file's", "+Wl": "the file's LUT", "+Wm": "lowest to highest"}
    if chosen == ["+Ww"] and rendered.windowing:
        return f"default {rendered.windowing.center:g}/{rendered.windowing.width:g}"
    return origins.get(chosen[0], "none") if chosen else "none"


def table() -> str:
    """Every image file in Markdown; those of one folder that are alike share a row."""
    rows = [f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    compared = [compare(path) for path in image_files()]
    for _, group in groupby(compared, key=_alike):
        rows.append(_row(list(group)))
    return "\n".join(rows)


def _alike(one: Comparison) -> tuple[object, ...]:
    folder, _, name = one.name.rpartition("/")
    described = [value for value in astuple(one)[1:] if not isinstance(value, float)]
    return (folder or name, *described, REMARKS.get(one.name))


def _row(group: list[Comparison]) -> str:
    one = group[0]
    name = f"`{one.name}`"
    if len(group) > 1:
        name = f"`{one.name.rpartition('/')[0]}/` ({len(group)} files)"
    shares = sorted(other.percent for other in group if other.percent is not None)
    percent = " to ".join(dict.fromkeys(f"{share:.1f} %" for share in (shares[:1] + shares[-1:])))
    figures = ["" if value is None else str(value) for value in (one.largest, one.rounded)]
    cells = [
        name, one.syntax, one.photometric, one.bits, one.window, figures[0], percent, figures[1],
        REMARKS.get(one.name, ""),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Writes the table between its markers."""
    logging.disable(logging.CRITICAL)
    before, rest = DOCS.read_text().split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    DOCS.write_text(f"{before}{MARKERS[0]}\n\n{table()}\n\n{MARKERS[1]}{after}")


if __name__ == "__main__":
    main()
