"""What holds for whatever bytes come in. Each check raises ``Broken`` where it does not."""

from __future__ import annotations

import base64
import binascii
import json
import pickle
import re
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from serve.body import whole
from serve.errors import ApiError
from serve.imaging.decoders import codestream_size, decode_frame
from serve.imaging.intake import Rules, prepare
from serve.imaging.raster import is_light
from serve.imaging.sources import Inline, Wanted, parse
from serve.protocol import ChatCompletionRequest, _validated, parse_request
from tests.dicoms import PATIENT, PATIENT_ID, ROOT

MAX_PIXELS = 4_000_000
SECONDS = 5.0  # for an input of 64 kB, on a machine that has other things to do
MEMORY = 1_500 << 20
MARKERS = tuple(text.encode() for text in (PATIENT, PATIENT_ID, ROOT))
STATUSES = (400, 413, 415, 422)
SIDE = 336

_WANTED = (
    *[Wanted()] * 8,
    Wanted(window="lung"),
    Wanted(window="1"),
    Wanted(window="999"),
    Wanted(center=40, width=400),
    Wanted(center=1e308, width=5e-324),
    Wanted(center=-1e-300, width=1e308),
    Wanted(frame=1),
    Wanted(frame=2, window="2"),
    Wanted(frame=10**9),
)
_DECLARED = (*[None] * 60, "image/png", "image/jpeg", "application/dicom")
_ACTIONS: tuple[Any, ...] = ("flag", "flag", "flag", "mask", "refuse")


T = TypeVar("T")


class Broken(AssertionError):
    """A property does not hold. Its text names the property and the place, never the input."""


def image(data: bytes) -> str:
    """Every image is prepared, or refused in fixed words, in time and within memory."""
    choice = zlib.crc32(data)  # the input decides about the rest, so that a find can be repeated
    rules = Rules(
        side=SIDE,
        max_pixels=MAX_PIXELS,
        max_frames=100,
        burned_in=_ACTIONS[choice % len(_ACTIONS)],
        ocr=False,
        known_regions=(),
        uid_key=b"a key of the fuzzer",
    )
    wanted = _WANTED[choice // 7 % len(_WANTED)]
    declared = _DECLARED[choice // 131 % len(_DECLARED)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = _within_bounds(lambda: _prepared(data, declared, wanted, rules))
    if data[128:132] != b"DICM":  # DICOM is read in workers, which silence what libraries say
        _hold(not caught, f"warned: {caught[0].category.__name__ if caught else ''}")
    is_light(data, max_pixels=MAX_PIXELS)
    return outcome


def _prepared(data: bytes, declared: str | None, wanted: Wanted, rules: Rules) -> str:
    try:
        prepared = prepare(data, declared, wanted, rules)
    except ApiError as error:
        _hold(error.status in STATUSES, f"status {error.status}")
        _silent(error.body() + pickle.dumps(error) + repr(error.args).encode(), "error")
        return f"{error.status} {error.code}"
    _hold(len(prepared.pixels) == SIDE * SIDE * 3, "not a square")
    _silent(pickle.dumps(prepared) + repr(prepared)[-600:].encode(), "image")
    return "prepared"


def url(data: bytes) -> str:
    """A URL is parsed or refused; what base64 it has is what the standard library makes of it."""
    text = data.decode("utf-8", "replace")
    try:
        source, _ = _within_bounds(lambda: parse(text, whole(b""), param="p"))
    except ApiError as error:
        _hold(error.status in (400, 415), f"status {error.status}")
        return f"{error.status} {error.code}"
    if isinstance(source, Inline):
        _hold(
            source.data == _strict(re.split("base64,", text, maxsplit=1, flags=re.I)[1]),
            "other base64",
        )
    return type(source).__name__


def _strict(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (ValueError, binascii.Error):
        return None


def body(data: bytes) -> str:
    """A request is the same whether or not its images were taken out before JSON was read."""
    expected, wrong = _parsed(data)
    try:
        request, inline = parse_request(data)
    except ApiError as error:
        _hold(error.status == 400, f"status {error.status}")
        _hold(expected is None, "refused, though the whole is a request")
        return error.code
    values = request.model_dump(mode="json")
    for part in _image_urls(values):
        head, mark, reference = part["url"].partition(inline.mark)
        payload = inline.payload(mark + reference)
        if payload is None:
            continue
        try:
            parse(part["url"], inline, param="p")
        except ApiError as error:
            _hold(error.status in (400, 415), f"status {error.status}")
        if _strict(bytes(payload).decode("latin-1")) is None:
            return "refused later"  # no JSON perhaps, but no base64 either
        part["url"] = head + bytes(payload).decode("ascii")
    if expected is None:
        # What a repeated key overwrites is not looked at.
        _hold(_has_repeated_keys(inline.json), f"accepted, though the whole is {wrong}")
        return "request"
    _hold(values == expected.model_dump(mode="json"), "means something else")
    return "request"


def _image_urls(request: dict[str, Any]) -> list[dict[str, str]]:
    contents = [message["content"] for message in request["messages"]]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return [part["image_url"] for part in parts if part["type"] == "image_url"]


def _has_repeated_keys(text: bytes | bytearray) -> bool:
    repeated = []

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated.append(len(dict(found)) < len(found))
        return dict(found)

    json.loads(text, object_pairs_hook=pairs)
    return any(repeated)


def _parsed(data: bytes) -> tuple[ChatCompletionRequest | None, str]:
    try:
        return _validated(data), ""
    except ApiError as error:
        return None, error.code


def codestream(syntax: uid.UID) -> Callable[[bytes], str]:
    """A frame is decoded or refused by the decoder of this syntax, under a header that fits it."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax

    def check(data: bytes) -> str:
        dataset = Dataset()
        dataset.file_meta = meta
        try:
            rows, columns = (32, 32) if syntax == uid.RLELossless else codestream_size(data)
        except ApiError as error:
            return f"{error.status} {error.code}"
        if rows * columns > MAX_PIXELS or not 0 < rows < 1 << 16 or not 0 < columns < 1 << 16:
            return "413"
        choice = zlib.crc32(data)
        dataset.Rows, dataset.Columns = rows, columns
        dataset.SamplesPerPixel = 3 if choice % 4 == 0 else 1
        dataset.PhotometricInterpretation = "RGB" if choice % 4 == 0 else "MONOCHROME2"
        dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = dataset.BitsStored = 8 if choice % 3 == 0 else 16
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = 0
        dataset.PixelData = encapsulate([data])
        return _within_bounds(lambda: _decoded(dataset, syntax))

    return check


def _decoded(dataset: Dataset, syntax: uid.UID) -> str:
    try:
        array, _ = decode_frame(dataset, syntax, 0)
    except BaseException as error:  # serve.imaging.dicom makes one error of them all
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        return type(error).__name__
    _hold(array.shape[:2] == (dataset.Rows, dataset.Columns), "another size")
    return "decoded"


def _hold(condition: bool, what: str) -> None:
    if not condition:
        raise Broken(what)


def _silent(text: bytes, what: str) -> None:
    _hold(not any(marker in text for marker in MARKERS), f"the {what} quotes the input")


def _within_bounds(work: Callable[[], T]) -> T:
    before = _resident(reset=True)
    started = time.monotonic()
    try:
        return work()
    finally:
        seconds = time.monotonic() - started
        if seconds > SECONDS:
            raise Broken("takes too long")
        if _resident() - before > MEMORY:
            raise Broken("takes too much memory")


def _resident(*, reset: bool = False) -> int:
    """The most resident memory that this process has had, in bytes; since ``reset``."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def as_in_workers() -> None:
    """What decoding processes set for themselves (serve.imaging.workers)."""
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
