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

from serve.errors import ApiError, TooLarge, UnusableImage
from serve.imaging.decoders import codestream_size

Kind = Literal["PNG", "JPEG"]
# Pillow may open only these: every further format is attack surface (EPS, FITS, PSD, ...).
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


def declared_pixels(data: bytes) -> int:
    """Pixels that the header declares (PNG's IHDR, JPEG's frame header); 0 where it has none.

    Microseconds: to decide where the image is decoded. ``decode`` checks again for itself.
    """
    if data.startswith(PNG):
        width, height = struct.unpack_from(">II", data, 16) if len(data) >= 24 else (0, 0)
        return int(width * height)
    try:
        rows, columns = codestream_size(data)
    except UnusableImage:
        return 0
    return rows * columns


def decode(data: bytes, kind: Kind, *, max_pixels: int) -> Image.Image:
    """Decodes to mode L or RGB.

    16-bit greys are scaled by their full range, as PNG defines the sample (W3C PNG 13.12); Pillow's
    own conversion would clip every value above 255. An EXIF orientation is applied, so that left
    stays left. Transparency is dropped, as the authors' ``convert("RGB")`` drops it.

    Raises:
        TooLarge: more pixels than ``max_pixels``.
        UnusableImage: not decodable.
    """
    too_large = TooLarge(f"An image may have {max_pixels} pixels.")
    try:
        with warnings.catch_warnings():
            # Our own limit is checked below; Pillow's warnings would go to a log.
            warnings.simplefilter("ignore")
            image: Image.Image = Image.open(io.BytesIO(data), formats=(kind,))
            if image.width * image.height > max_pixels:
                raise too_large
            image.load()
            return _pixels(ImageOps.exif_transpose(image))
    except ApiError:
        raise
    except Image.DecompressionBombError:
        raise too_large from None
    except Exception:  # Pillow's parsers raise whatever a damaged chunk leads them to
        raise UnusableImage(f"The image is damaged and cannot be decoded as {kind}.") from None


def _pixels(image: Image.Image) -> Image.Image:
    """A fresh image of mode L or RGB: it carries pixels and nothing of the file it came from."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, dtype=np.float32)
        return Image.fromarray((grey * (255 / 65535) + 0.5).clip(0, 255).astype(np.uint8))
    mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
    pixels = image if image.mode == mode else image.convert(mode)
    return Image.frombytes(mode, pixels.size, pixels.tobytes())
