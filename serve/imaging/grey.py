"""Greyscale: stored values to 8-bit display values, as DICOM's grayscale pipeline has it.

stored value -> Modality LUT or rescale -> VOI LUT or window -> Presentation LUT Shape, MONOCHROME1
(DICOM PS3.4 N.2, PS3.3 C.11.1, C.11.2, C.7.6.3.1.2). 8- and 16-bit images, which is nearly all, go
through one table of 256 or 65,536 entries: the pipeline runs on the table, in double precision,
and costs one look-up a pixel whatever its steps are. The table is indexed by the container's bits,
so that unused bits (overlays in them, too), a high bit elsewhere, and the sign cost nothing either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from serve.errors import BadRequest, UnusableImage
from serve.imaging.sources import Wanted
from serve.imaging.windows import DEFAULT_CT, PRESETS, Window

_ROWS = 32  # looked up at a time: the indices, which numpy widens to 8 bytes, stay in the L2 cache
_SMALLEST_WIDTH = 1e-9

Origin = Literal["request", "file", "default"]


@dataclass(frozen=True, slots=True)
class Windowing:
    """How values became grey: a window, or (None) a VOI LUT or the whole range of values."""

    origin: Origin
    center: float | None = None
    width: float | None = None


def to_grey(
    frame: np.ndarray, header: Dataset, wanted: Wanted, *, container: bool
) -> tuple[np.ndarray, Windowing]:
    """One monochrome frame as display values.

    Args:
        frame: decoded values, shape (Rows, Columns), any integer or float type.
        header: the attributes that hold for this frame, functional groups merged in.
        wanted: what the request asks for.
        container: whether values still have all bits of their container (PS3.5 8.1.1), of which
            only some are stored ones.

    Returns:
        uint8, shape (Rows, Columns), 0 black; and the windowing.

    Raises:
        BadRequest: a window that this image does not have.
        UnusableImage: a rescale or LUT that is no number or no table.
    """
    if frame.dtype.kind not in "iu" or frame.dtype.itemsize > 2:
        values = frame.astype(np.float64)
        padding = _padding(values, header) | ~np.isfinite(values)
        grey, windowing = _pipeline(values, padding, np.asarray(True), header, wanted)
        return grey, windowing
    frame = frame.astype(frame.dtype.newbyteorder("="), copy=False)
    index = frame.view(f"u{frame.dtype.itemsize}")
    stored = _stored_values(frame.dtype, header, container=container)
    table, windowing = _pipeline(stored, _padding(stored, header), index, header, wanted)
    return look_up(table, index), windowing


def look_up(table: np.ndarray, index: np.ndarray) -> np.ndarray:
    """The table's entry for every index. uint8; the index has two dimensions, 8 or 16 bits."""
    grey = np.empty(index.shape, np.uint8)
    for row in range(0, len(index), _ROWS):
        # "clip" has numpy write into `out` directly; the table has an entry for every index.
        np.take(table, index[row : row + _ROWS], out=grey[row : row + _ROWS], mode="clip")
    return grey


def _stored_values(dtype: np.dtype[Any], header: Dataset, *, container: bool) -> np.ndarray:
    """The stored value of every pattern of bits that a container can have (PS3.5 8.1.1)."""
    bits = 8 * dtype.itemsize
    values = np.arange(1 << bits, dtype=np.int64)
    if container:
        bits = int(header.BitsStored)
        low = max(int(header.get("HighBit", bits - 1)) + 1 - bits, 0)
        values = (values >> low) & ((1 << bits) - 1)
    if dtype.kind == "i":
        values = np.where(values >= 1 << (bits - 1), values - (1 << bits), values)
    return values


def _padding(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Which values mean "no pixel here" (PS3.3 C.7.5.1.1.2)."""
    value = header.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = header.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _pipeline(
    stored: np.ndarray, padding: np.ndarray, index: np.ndarray, header: Dataset, wanted: Wanted
) -> tuple[np.ndarray, Windowing]:
    """Display values of stored values. ``index`` tells which of them the image has."""
    values = _modality(stored, header)
    voi, windowing = _voi(header, wanted)
    if voi is None and int(header.BitsStored) <= 8 and values is stored:
        # Bytes with no meaning of their own are shown as they are.
        bits = int(header.BitsStored)
        low = -(1 << (bits - 1)) if int(header.get("PixelRepresentation", 0)) else 0
        display = (values - low) / ((1 << bits) - 1)
    elif voi is None:
        display = _whole_range(values, padding, index)
    elif isinstance(voi, Dataset):
        table, first, bits = _lut(voi, header)
        display = table[np.clip(np.round(values) - first, 0, len(table) - 1).astype(int)]
        display = display / ((1 << bits) - 1)
    else:
        display = _window(values, *voi)
    shape = header.get("PresentationLUTShape") or ""
    # PS3.3 C.11.6.1.2: where a shape is given, it says all; INVERSE goes with MONOCHROME1.
    inverted = shape == "INVERSE" if shape else header.PhotometricInterpretation == "MONOCHROME1"
    if inverted:
        display = 1 - display
    grey = np.floor(255 * np.nan_to_num(display).clip(0, 1) + 0.5).astype(np.uint8)
    grey[padding] = 0  # background, whichever way values run
    return grey, windowing


def _modality(stored: np.ndarray, header: Dataset) -> np.ndarray:
    """Modality LUT or rescale (PS3.3 C.11.1); the same array where there is neither."""
    if sequence := header.get("ModalityLUTSequence"):
        table, first, _ = _lut(sequence[0], header)
        mapped: np.ndarray = table[np.clip(stored - first, 0, len(table) - 1).astype(int)]
        return mapped
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None and intercept is None:
        return stored
    slope = 1.0 if slope is None else float(slope)
    intercept = 0.0 if intercept is None else float(intercept)
    if not (math.isfinite(slope) and math.isfinite(intercept) and slope):
        raise UnusableImage("The DICOM file's rescale values are not usable numbers.")
    if (slope, intercept) == (1.0, 0.0):
        return stored
    return stored * slope + intercept


def _voi(header: Dataset, wanted: Wanted) -> tuple[Dataset | tuple[Window, str] | None, Windowing]:
    """The VOI LUT or the window and its function: the request's, the file's, the modality's."""
    windows = _file_windows(header)
    function = str(header.get("VOILUTFunction") or "LINEAR").upper()
    if wanted.center is not None and wanted.width is not None:
        asked = Window(wanted.center, wanted.width)
        return (asked, "LINEAR_EXACT"), Windowing("request", *asked)
    if wanted.window is not None and wanted.window.isdigit():
        number = int(wanted.window)
        if not 1 <= number <= len(windows):
            raise BadRequest(
                "The image has no window of this number.", code="invalid_image_parameter"
            )
        chosen = windows[number - 1]
        return (chosen, function), Windowing("request", *chosen)
    if wanted.window is not None:
        if header.get("Modality") != "CT":
            raise BadRequest(
                "Named windows are in Hounsfield units: for CT alone. Use center and width.",
                code="invalid_image_parameter",
            )
        preset = PRESETS[wanted.window]
        return (preset, "LINEAR"), Windowing("request", *preset)
    if sequence := header.get("VOILUTSequence"):
        return sequence[0], Windowing("file")
    if windows:
        return (windows[0], function), Windowing("file", *windows[0])
    if header.get("Modality") == "CT" and "RescaleIntercept" in header:
        return (PRESETS[DEFAULT_CT], "LINEAR"), Windowing("default", *PRESETS[DEFAULT_CT])
    return None, Windowing("default")


def _file_windows(header: Dataset) -> list[Window]:
    """The file's windows in order; those that are no numbers or have no width are left out."""
    centers, widths = (_numbers(header.get(name)) for name in ("WindowCenter", "WindowWidth"))
    return [
        Window(center, width)
        for center, width in zip(centers, widths, strict=False)
        if math.isfinite(center) and math.isfinite(width) and width > _SMALLEST_WIDTH
    ]


def _numbers(value: Any) -> list[float]:
    """An attribute of one or many values (pydicom: None, a number, or a MultiValue)."""
    items = [] if value is None else value if isinstance(value, MultiValue) else [value]
    try:
        return [float(item) for item in items]
    except (TypeError, ValueError):
        return []


def _window(values: np.ndarray, window: Window, function: str) -> np.ndarray:
    """A window's output, 0 to 1 (PS3.3 C.11.2.1.2 and .3)."""
    center, width = window
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR_EXACT" or width < 1:  # LINEAR is undefined below 1
        return ((values - center) / width + 0.5).clip(0, 1)
    if width == 1:
        return (values > center - 0.5).astype(np.float64)
    return ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def _whole_range(values: np.ndarray, padding: np.ndarray, index: np.ndarray) -> np.ndarray:
    """From the image's lowest value to its highest, padding aside."""
    if index.ndim:  # values is a table: which of its entries does the image use?
        present = np.zeros(values.shape, bool)
        present[index] = True
        seen = values[present & ~padding]
    else:
        seen = values[~padding]
    if not seen.size:
        return np.zeros(values.shape)
    low, high = float(seen.min()), float(seen.max())
    if high == low:
        return np.zeros(values.shape)
    return (values - low) / (high - low)


def _lut(item: Dataset, header: Dataset) -> tuple[np.ndarray, int, int]:
    """A lookup table: its entries as doubles, the first value mapped, bits an entry.

    LUT Descriptor and LUT Data: PS3.3 C.11.1.1. Data may be words, or bytes that are packed in
    words, little endian; 8-bit entries may lie in words of their own.
    """
    try:
        entries, first, bits = (int(value) for value in item.LUTDescriptor)
        entries = entries or 1 << 16
        if int(header.get("PixelRepresentation", 0)) and first >= 1 << 15:
            first -= 1 << 16
        data = item.LUTData
        if isinstance(data, bytes):
            packed = len(data) < 2 * entries
            order = ">" if header.original_encoding[1] is False else "<"
            data = np.frombuffer(data, np.uint8 if packed else f"{order}u2")
        table = np.atleast_1d(np.asarray(data, dtype=np.float64))[:entries]
    except (AttributeError, TypeError, ValueError):
        raise UnusableImage("The DICOM file has a damaged lookup table.") from None
    if not len(table) or not 1 <= bits <= 16:
        raise UnusableImage("The DICOM file has a damaged lookup table.")
    return table, first, bits
