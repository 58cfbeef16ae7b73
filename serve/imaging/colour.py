"""Colour frames to 8-bit RGB: palettes, more than 8 bits a sample (DICOM PS3.3 C.7.6.3.1.2)."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from serve.errors import UnsupportedMedia, UnusableImage


def to_rgb(frame: np.ndarray, header: Dataset, photometric: str) -> np.ndarray:
    """One colour frame as uint8, shape (Rows, Columns, 3).

    Args:
        frame: decoded samples, (Rows, Columns, 3), or (Rows, Columns) indices into a palette.
        header: the file's attributes.
        photometric: what the samples are after decoding: RGB or PALETTE COLOR.

    Raises:
        UnsupportedMedia: retired photometric interpretations (HSV, ARGB, CMYK) and unknown ones.
        UnusableImage: a palette that is no table.
    """
    if photometric == "PALETTE COLOR" and frame.ndim == 2:
        try:
            frame = apply_color_lut(_in_range(frame, header), header)
        except Exception:
            raise UnusableImage("The DICOM file has a damaged palette.") from None
        bits = 8 * frame.dtype.itemsize
    elif photometric == "RGB" and frame.ndim == 3:
        bits = int(header.BitsStored)
    else:
        raise UnsupportedMedia(
            "The DICOM file's photometric interpretation is not supported; docs/imaging.md lists "
            "those that are.",
            code="unsupported_photometric_interpretation",
        )
    if bits > 8:
        # The full range of the samples, as for a 16-bit PNG.
        scale = 255 / ((1 << bits) - 1)
        return np.floor(frame * scale + 0.5).clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(frame, dtype=np.uint8)


def _in_range(frame: np.ndarray, header: Dataset) -> np.ndarray:
    """Indices without the bits that their container has beyond BitsStored."""
    bits = int(header.BitsStored)
    if bits >= 8 * frame.dtype.itemsize:
        return frame
    indices: np.ndarray = frame & frame.dtype.type((1 << bits) - 1)
    return indices
