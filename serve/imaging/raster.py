"""PNG and JPEG data URLs to RGB images.

Nothing but pixels goes on: EXIF, text chunks, colour profiles, thumbnails, trailing bytes and
further frames stay behind. Limits are checked on the header, before anything is decompressed.
"""

from __future__ import annotations

import binascii
import hashlib
import io
import re
import warnings
from base64 import b64decode
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from serve.errors import BadRequest, TooLarge, UnsupportedMedia, UnusableImage

# Pillow may open only these: every further format is attack surface (EPS, FITS, PSD, ...).
FORMATS = {"image/png": "PNG", "image/jpeg": "JPEG"}
_DATA_URL = re.compile(r"data:([a-z0-9.+/-]{1,64});base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes of one image as the client sent them, and what it says they are."""

    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, as hex: names the image in the engine's caches."""
        return hashlib.sha256(self.data).hexdigest()


def parse_data_url(url: str, *, param: str) -> EncodedImage:
    """Reads a ``data:`` URL (RFC 2397) in base64.

    Raises:
        BadRequest: a remote URL (refused: nothing is ever fetched), or not valid base64.
        UnsupportedMedia: a media type other than those of FORMATS.
    """
    match = _DATA_URL.match(url)
    if match is None:
        raise BadRequest(
            "Images are taken as base64 data URLs (data:image/png;base64,... or "
            "data:image/jpeg;base64,...). Remote URLs are not fetched.",
            param=param,
            code="invalid_image_url",
        )
    media_type = match[1].lower()
    if media_type not in FORMATS:
        raise UnsupportedMedia(
            f"This service takes images as {' or '.join(sorted(FORMATS))}.", param=param
        )
    try:
        data = b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(
            "The image's data URL is not valid base64.", param=param, code="invalid_base64"
        ) from None
    return EncodedImage(media_type, data)


def decode(encoded: EncodedImage, *, max_pixels: int, param: str) -> Image.Image:
    """Decodes to an RGB image of 8 bits a channel.

    16-bit greys are scaled by their full range, as PNG defines the sample (W3C PNG 13.12); Pillow's
    own conversion would clip every value above 255. An EXIF orientation is applied, so that left
    stays left.

    Raises:
        TooLarge: more pixels than ``max_pixels``.
        UnusableImage: not decodable as what it says it is.
    """
    try:
        with warnings.catch_warnings():
            # Our own limit is checked below; Pillow's warning would go to a log.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(
                io.BytesIO(encoded.data), formats=(FORMATS[encoded.media_type],)
            )
        if image.width * image.height > max_pixels:
            raise TooLarge(f"An image may have {max_pixels} pixels.", param=param)
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):
            grey = np.asarray(image, dtype=np.float32)
            image = Image.fromarray((grey * (255 / 65535) + 0.5).clip(0, 255).astype(np.uint8))
        # A fresh image: it carries pixels and nothing of the file it came from.
        return Image.frombytes("RGB", image.size, image.convert("RGB").tobytes())
    except Image.DecompressionBombError:
        raise TooLarge(f"An image may have {max_pixels} pixels.", param=param) from None
    except (OSError, SyntaxError, ValueError, EOFError, KeyError, MemoryError):
        raise UnusableImage(
            f"The image cannot be decoded as {encoded.media_type}.", param=param
        ) from None
