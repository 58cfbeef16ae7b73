"""One image, from a file's bytes to what the model sees. Pure: runs in a thread or in a worker.

sniff -> decode -> burned-in text -> square, pictures. Only pixels cross: what comes out is made of
8-bit pixels, and of facts about the decoding that say nothing about a patient.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset

from serve.errors import BadRequest, TooLarge, UnsupportedMedia, UnusableImage
from serve.imaging import dicom, ocr, raster
from serve.imaging.burned_in import BurnedIn, handle
from serve.imaging.grey import Windowing
from serve.imaging.pictures import png, review_png
from serve.imaging.regions import KnownRegion
from serve.imaging.sources import DICOM, Wanted
from serve.imaging.square import to_square, with_square_pixels
from serve.settings import Settings

MediaType = Literal["image/png", "image/jpeg", "application/dicom"]

# Of the square that an image is padded to; so one of four to one always passes.
_SQUARE_PIXELS_A_PIXEL = 4

# Formats that we know and do not take, by their first bytes.
_REFUSED = (
    b"GIF8", b"II*\0", b"MM\0*", b"RIFF", b"BM", b"<svg", b"<?xml", b"%PDF", b"%!PS",
    b"\xc5\xd0\xd3\xc6", b"8BPS", b"SIMPLE  =", b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51",
    b"\0\0\x01\0", b"\xd7\xcd\xc6\x9a", b"PK\x03\x04",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every image of a service."""

    side: int  # of the square, in pixels
    max_pixels: int
    max_frames: int
    burned_in: Literal["refuse", "mask", "flag"]
    ocr: bool
    known_regions: tuple[KnownRegion, ...]
    uid_key: bytes
    ocr_timeout_s: float = 5.0  # for one reading of one polarity
    review_side: int = 1024  # of the reviewers' picture, its longer one at most; 0: no picture

    @classmethod
    def of(cls, settings: Settings, *, side: int) -> Rules:
        """The operator's; ``side`` is the checkpoint's."""
        imaging = settings.imaging
        return cls(
            side=side,
            max_pixels=settings.limits.max_image_pixels,
            max_frames=imaging.max_frames,
            burned_in=imaging.burned_in,
            ocr=imaging.ocr,
            # Two polarities, and again after masking: all of it within an image's time.
            ocr_timeout_s=imaging.timeout_s / 4,
            known_regions=imaging.known_regions,
            review_side=imaging.review_side,
            uid_key=imaging.uid_key.get_secret_value().encode() if imaging.uid_key else b"",
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the model sees, and how it came about. Nothing in it names a patient or a study."""

    pixels: bytes  # RGB, side x side
    side: int
    digest: str  # SHA-256 of the pixels, as hex: names the image in the engine's caches
    media_type: MediaType
    burned_in: BurnedIn
    frame: int | None  # DICOM: from 1
    frames: int | None
    windowing: Windowing | None  # DICOM, greyscale
    instance: str | None  # keyed hash of SOPInstanceUID, for records alone
    square_png: bytes  # the same pixels, for records
    review_png: bytes | None  # the image at more of its own size; None: the square shows as much
    png_digests: tuple[bytes, ...]  # SHA-256 of these files, hashed once for all who ask

    @property
    def pngs(self) -> tuple[tuple[bytes, bytes], ...]:
        """The files, the square's first, each with its digest."""
        files = (self.square_png, *((self.review_png,) if self.review_png else ()))
        return tuple(zip(files, self.png_digests, strict=True))

    @property
    def image(self) -> Image.Image:
        """The square."""
        return Image.frombytes("RGB", (self.side, self.side), self.pixels)


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image at its own size, de-identified."""

    image: Image.Image  # L or RGB
    media_type: MediaType
    burned_in: BurnedIn
    rendered: dicom.Rendered | None  # DICOM


def sniff(data: bytes) -> MediaType:
    """What the bytes are, whatever anybody says they are.

    Raises:
        UnsupportedMedia: a format that this service does not take.
        UnusableImage: no image format that we know.
    """
    # DICOM first: its preamble may be anything, another format's header too (PS3.10 7.1).
    if dicom.is_dicom(data):
        return DICOM
    if data.startswith(raster.PNG):
        return "image/png"
    if data.startswith(raster.JPEG):
        return "image/jpeg"
    if data[:64].lstrip().startswith(_REFUSED):
        raise UnsupportedMedia("The bytes are of an image format that this service does not take.")
    raise UnusableImage("The bytes are no PNG, JPEG or DICOM file.")


def checked_type(data: bytes, declared: str | None) -> MediaType:
    """The type of the bytes, which must be the declared one where one is declared.

    Raises:
        UnsupportedMedia, UnusableImage: see ``sniff``; or the bytes are of another type.
    """
    media_type = sniff(data)
    if declared is not None and media_type != declared:
        raise UnusableImage(
            f"The data URL says {declared}, its bytes are {media_type}.", code="media_type_mismatch"
        )
    return media_type


def decode(data: bytes, declared: str | None, wanted: Wanted, rules: Rules) -> Decoded:
    """An image at its own size, with burned-in text handled.

    Raises:
        ApiError: it cannot or may not be used; its subclass and code say why.
    """
    media_type = checked_type(data, declared)
    if media_type == DICOM:
        file = dicom.opened(data, max_pixels=rules.max_pixels, max_frames=rules.max_frames)
        return decode_dicom(file, wanted, rules)
    if wanted.window or wanted.center is not None or wanted.frame is not None:
        raise BadRequest(
            "Only DICOM images have windows and frames to choose from.",
            code="invalid_image_parameter",
        )
    kind: raster.Kind = "PNG" if media_type == "image/png" else "JPEG"
    image = raster.decode(data, kind, max_pixels=rules.max_pixels)
    image, burned_in = _without_burned_in(image, None, rules)
    return Decoded(image, media_type, burned_in, None)


def decode_dicom(file: dicom.File, wanted: Wanted, rules: Rules) -> Decoded:
    """The same, for a frame of a DICOM file that is read already.

    Raises:
        ApiError: see ``decode``.
    """
    rendered = file.render(wanted)
    image, burned_in = _without_burned_in(rendered.image, rendered.header, rules)
    image = with_square_pixels(image, rendered.aspect, max_pixels=rules.max_pixels)
    return Decoded(image, DICOM, burned_in, rendered)


def _without_burned_in(
    image: Image.Image, header: Dataset | None, rules: Rules
) -> tuple[Image.Image, BurnedIn]:
    return handle(
        image,
        header,
        action=rules.burned_in,
        ocr=rules.ocr,
        known=rules.known_regions,
        ocr_timeout_s=rules.ocr_timeout_s,
    )


def prepare(data: bytes, declared: str | None, wanted: Wanted, rules: Rules) -> Prepared:
    """What the model sees of an image.

    Raises:
        ApiError: see ``decode``.
    """
    decoded = decode(data, declared, wanted, rules)
    if max(decoded.image.size) ** 2 > _SQUARE_PIXELS_A_PIXEL * rules.max_pixels:
        # A line of a million pixels is a small file, and its square a terabyte.
        raise TooLarge("The image is too long for its width, or too wide for its height.")
    rendered = decoded.rendered
    square = np.asarray(to_square(decoded.image, rules.side))
    pixels = square.tobytes()
    square_png = png(square)
    larger = review_png(decoded.image, longest=rules.review_side, square_side=rules.side)
    return Prepared(
        pixels=pixels,
        side=rules.side,
        digest=hashlib.sha256(pixels).hexdigest(),
        media_type=decoded.media_type,
        burned_in=decoded.burned_in,
        frame=rendered.frame if rendered else None,
        frames=rendered.frames if rendered else None,
        windowing=rendered.windowing if rendered else None,
        instance=instance_hash(rendered.header, rules.uid_key) if rendered else None,
        square_png=square_png,
        review_png=larger,
        png_digests=tuple(hashlib.sha256(one).digest() for one in (square_png, larger) if one),
    )


def ready(rules: Rules) -> None:
    """Loads what the first image would wait for.

    Raises:
        Unavailable: OCR is wanted and tesseract or its language data is not there.
    """
    if rules.ocr:
        ocr.find_text(Image.new("L", (64, 64)), timeout_s=rules.ocr_timeout_s)


def instance_hash(header: Dataset, key: bytes) -> str | None:
    """HMAC-SHA256 of SOPInstanceUID, as hex: tells that two records are of one instance.

    None without a key: a bare hash of a UID can be found by trying UIDs.
    """
    uid = header.get("SOPInstanceUID")
    return hmac.new(key, str(uid).encode(), "sha256").hexdigest() if uid and key else None
