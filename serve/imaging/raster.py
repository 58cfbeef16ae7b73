"""PNG and JPEG to pixels: 8 bits a channel, grey or RGB.

Nothing but pixels goes on: EXIF, text chunks, colour profiles, thumbnails, trailing bytes and
further frames stay behind. Limits are checked on the header, before anything is decompressed.
"""

from __future__ import annotations

import io
import struct
import warnings
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from serve.errors import ApiError, UnusableImage, too_many_pixels
from serve.imaging.decoders import frame_header, has_too_many_scans
from serve.imaging.grey import look_up

# Pillow may open only these: every further format is attack surface (EPS, FITS, PSD, ...).
Kind = Literal["PNG", "JPEG"]
_BLOCK = 16 << 10  # bytes of a file that are decoded at a time
_LIGHT_PIXELS_A_BYTE = 20  # of a PNG; with colours, a block then has 1 MB of pixels at most
_SEQUENTIAL = (0xC0, 0xC1)  # ITU-T T.81 B.1.1.3: baseline, extended sequential
_SIXTEEN_BITS = (np.arange(1 << 16) / 257 + 0.5).astype(np.uint8)
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


def is_light(data: bytes, *, max_pixels: int) -> bool:
    """Whether decoding takes little, and never holds Python's lock for long; microseconds to tell.

    Pillow holds the lock while it decodes a block of the file. A block of a progressive JPEG may be
    the whole image, as may one of a PNG that compresses well: those are not light. Reads the header
    alone, which ``decode`` does not rely on.
    """
    if data.startswith(PNG):
        width, height = struct.unpack_from(">II", data, 16) if len(data) >= 24 else (0, 0)
        return bool(width * height <= min(max_pixels, _LIGHT_PIXELS_A_BYTE * len(data)))
    try:
        marker, rows, columns = frame_header(data)
    except UnusableImage:
        return False  # Pillow passes over bytes that we stop at, and may find a header behind them
    return marker in _SEQUENTIAL and rows * columns <= max_pixels


def decode(data: bytes, kind: Kind, *, max_pixels: int) -> Image.Image:
    """Decodes to mode L or RGB.

    16-bit greys are scaled by their full range, as PNG defines the sample (W3C PNG 13.12); Pillow's
    own conversion would clip every value above 255. An EXIF orientation is applied, so that left
    stays left. Transparency is dropped, as the authors' ``convert("RGB")`` drops it.

    Raises:
        TooLarge: more pixels than ``max_pixels``.
        UnusableImage: not decodable.
    """
    if kind == "JPEG" and has_too_many_scans(data):
        raise UnusableImage("The image has too many scans.")
    try:
        with warnings.catch_warnings():
            # Our own limit is checked below; Pillow's warnings would go to a log.
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data), formats=(kind,))
            _check_size(image, max_pixels)
            # Python's lock is held while a block is decoded, so blocks are small.
            image.decodermaxblock = _BLOCK  # type: ignore[attr-defined]
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _pixels(image)
    except ApiError:
        raise
    except Image.DecompressionBombError:
        raise too_many_pixels(max_pixels) from None
    except Exception:  # Pillow's parsers raise whatever a damaged chunk leads them to
        raise UnusableImage(f"The image is damaged and cannot be decoded as {kind}.") from None


def _check_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise too_many_pixels(max_pixels)


def _pixels(image: Image.Image) -> Image.Image:
    """A fresh image of mode L or RGB: it carries pixels and nothing of the file it came from."""
    if image.mode.startswith("I"):
        return Image.fromarray(look_up(_SIXTEEN_BITS, np.asarray(image).astype(np.uint16)))
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    pixels = image if image.mode == mode else image.convert(mode)
    fresh = Image.new(mode, pixels.size)
    fresh.paste(pixels)
    return fresh
