"""Image files of the kinds and sizes that a hospital sends: drawn, with a detector's noise.

Nothing is constant: compression and decompression have the work that they have on real images. A
12-bit radiograph comes out at about half its size when compressed losslessly, as real ones do.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from pydicom import uid

from tests.dicoms import dicom

Make = Callable[[float], bytes]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file. Its sizes are for a scale of 1; smaller ones are for tests."""

    name: str
    rows: int
    columns: int
    pixel_bytes: int  # of one pixel, uncompressed
    syntax: uid.UID | None  # None: PNG or JPEG
    make: Make

    @property
    def uncompressed(self) -> int:
        """Bytes of the one frame that is shown."""
        return self.rows * self.columns * self.pixel_bytes

    @property
    def large(self) -> bool:
        """Whether it is of those that have to be faster by half at least."""
        return self.rows * self.columns >= 2048 * 2048


def body(rows: int, columns: int, *, noise: float, seed: int = 0) -> np.ndarray:
    """A chest in front: 0 to 1, with soft edges, ribs, and noise."""
    random = np.random.default_rng(seed)
    y, x = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    picture = 0.55 - 0.35 * x**2 - 0.1 * y
    for side in (-0.42, 0.42):
        lung = ((x - side) / 0.3) ** 2 + ((y + 0.05) / 0.62) ** 2
        picture = picture - 0.35 / (1 + np.exp(np.clip(18 * (lung - 1), -50, 50)))
        picture = picture + 0.05 * np.sin(22 * y + 5 * (x - side) ** 2) * (lung < 1)
    picture = picture + 0.3 / (1 + ((x / 0.13) ** 2 + (y / 3) ** 2))
    picture = picture + random.normal(0, noise, (rows, columns)).astype(np.float32)
    return picture.clip(0, 1)


def _grey(scale: float, rows: int, columns: int, bits: int, noise: float) -> np.ndarray:
    picture = body(int(rows * scale), int(columns * scale), noise=noise)
    return (picture * ((1 << bits) - 1)).astype(np.uint16)


def _colour(scale: float, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    picture = body(int(rows * scale), int(columns * scale), noise=0.02, seed=seed)
    tinted = np.stack([picture, picture**1.2, picture**0.9], axis=-1)
    return (255 * tinted).astype(np.uint8)


def _computed_tomography(scale: float) -> bytes:
    units = _grey(scale, 512, 512, 11, 0.01).astype(np.int16) - np.int16(1024)
    window = {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1, "RescaleIntercept": 0}
    return dicom(units, Modality="CT", **window)


def _radiograph(syntax: uid.UID, rows: int, columns: int, **attributes: Any) -> Make:
    def make(scale: float) -> bytes:
        return dicom(
            _grey(scale, rows, columns, 12, 0.003), syntax, BitsStored=12, HighBit=11,
            WindowCenter=2048, WindowWidth=3600, **attributes,
        )  # fmt: skip

    return make


def _ultrasound(scale: float) -> bytes:
    frames = np.stack([_colour(scale, 768, 1024, seed) for seed in range(20)])
    colours = {"PhotometricInterpretation": "YBR_FULL_422"}
    return dicom(frames, uid.JPEGBaseline8Bit, Modality="US", **colours)


def _raster(picture: Callable[[float], np.ndarray], kind: str, **options: Any) -> Make:
    def make(scale: float) -> bytes:
        file = io.BytesIO()
        Image.fromarray(picture(scale)).save(file, kind, **options)
        return file.getvalue()

    return make


def _computed_radiograph(name: str, syntax: uid.UID) -> Kind:
    inverted = {"Modality": "CR", "PhotometricInterpretation": "MONOCHROME1"}
    return Kind(
        f"CR 2k x 2k, {name}", 2048, 2048, 2, syntax, _radiograph(syntax, 2048, 2048, **inverted)
    )


def _digital_radiograph(name: str, syntax: uid.UID) -> Kind:
    make = _radiograph(syntax, 4096, 3072, Modality="DX")
    return Kind(f"DX 3k x 4k, {name}", 4096, 3072, 2, syntax, make)


KINDS = (
    Kind("CT 512 x 512, native", 512, 512, 2, uid.ExplicitVRLittleEndian, _computed_tomography),
    _computed_radiograph("native", uid.ExplicitVRLittleEndian),
    _computed_radiograph("JPEG Lossless", uid.JPEGLosslessSV1),
    _computed_radiograph("JPEG-LS", uid.JPEGLSLossless),
    _computed_radiograph("RLE", uid.RLELossless),
    _digital_radiograph("JPEG 2000", uid.JPEG2000Lossless),
    _digital_radiograph("HTJ2K", uid.HTJ2KLossless),
    Kind("US 1 of 20 frames, JPEG", 768, 1024, 3, uid.JPEGBaseline8Bit, _ultrasound),
    Kind(
        "PNG 2k x 2k, 8 bits", 2048, 2048, 1, None,
        _raster(lambda scale: (_grey(scale, 2048, 2048, 8, 0.01)).astype(np.uint8), "PNG"),
    ),
    Kind(
        "PNG 2k x 2k, 16 bits", 2048, 2048, 2, None,
        _raster(lambda scale: _grey(scale, 2048, 2048, 16, 0.003), "PNG"),
    ),
    Kind(
        "JPEG 2k x 2k, RGB", 2048, 2048, 3, None,
        _raster(lambda scale: _colour(scale, 2048, 2048), "JPEG", quality=90),
    ),
)  # fmt: skip
