"""Which library decodes which transfer syntax, as plug-ins of pydicom's decoders.

| transfer syntax | decoder | why this one |
|---|---|---|
| native, deflated | pydicom | nothing to decompress |
| RLE Lossless | pylibjpeg-rle | pydicom's own is pure Python |
| JPEG (baseline, extended, lossless) | imagecodecs: libjpeg-turbo 3 | 8 to 16 bits; 5x as fast |
| JPEG-LS | imagecodecs: CharLS | what pyjpegls wraps |
| JPEG 2000, HTJ2K | imagecodecs: OpenJPEG | takes several threads; OpenJPH crashed when fuzzed |

pylibjpeg-libjpeg (GPL-3.0) and python-gdcm are left out, and never picked up when they happen to be
installed: the decoder is always named. Measured in docs/imaging.md.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.common import PhotometricInterpretation
from pydicom.pixels.decoders.base import Decoder, get_decoder

from serve.errors import UnsupportedMedia, UnusableImage

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import DecodeRunner

PLUGIN = "imagecodecs"
# Threads of one JPEG 2000 decoding; its tiles and code blocks are independent of each other.
J2K_THREADS = 2
_MAX_SCANS = 200
_END = b"\xff\xd9"  # EOI (T.81 B.1.1.3), EOC (T.800 A.4.4)

_JPEG = (
    uid.JPEGBaseline8Bit,
    uid.JPEGExtended12Bit,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
)
_JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
_JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000)
_HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
_RLE = (uid.RLELossless,)
_NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
)
DECODED_BY = {
    **dict.fromkeys(_NATIVE, ""),
    **dict.fromkeys(_RLE, "pylibjpeg"),
    **dict.fromkeys((*_JPEG, *_JPEG_LS, *_JPEG_2000, *_HTJ2K), PLUGIN),
}

# pydicom asks a plug-in for these two names.
DECODER_DEPENDENCIES = {
    syntax: ("imagecodecs",) for syntax, plugin in DECODED_BY.items() if plugin == PLUGIN
}


def is_available(syntax: str) -> bool:
    """Whether the plug-in decodes this transfer syntax; pydicom's protocol."""
    return syntax in DECODER_DEPENDENCIES


def has_sign(syntax: uid.UID) -> bool:
    """Whether the codestream knows signed values: decoded ones are then complete."""
    return syntax in (*_JPEG_2000, *_HTJ2K)


def decode_frame(dataset: Dataset, syntax: uid.UID, index: int) -> tuple[np.ndarray, str]:
    """One frame, decoded, and its photometric interpretation, which is never YBR.

    Shape (Rows, Columns) or (Rows, Columns, 3). Native values are a view on the file's bytes, in
    its byte order. Unless ``has_sign``, values have all bits of their container, used or not.

    Raises:
        UnsupportedMedia: a transfer syntax that is not in DECODED_BY, private ones among them.
        Exception: whatever a decoder raises on a damaged file.
    """
    if syntax not in DECODED_BY:
        raise UnsupportedMedia(
            "The DICOM file's transfer syntax is not supported; docs/imaging.md lists those that "
            "are.",
            code="unsupported_transfer_syntax",
        )
    options: dict[str, Any] = {
        # The grey table takes the stored bits out of their container, for free (grey.py).
        "correct_unused_bits": False,
        # Frames beyond NumberOfFrames do not exist.
        "allow_excess_frames": False,
    }
    if not syntax.is_encapsulated:
        options["view_only"] = True
    array, properties = _decoder(syntax).as_array(
        dataset,
        index=index,
        decoding_plugin=DECODED_BY[syntax],
        **options,
    )
    return array, str(properties["photometric_interpretation"])


@cache
def _decoder(syntax: uid.UID) -> Decoder:
    decoder = get_decoder(syntax)
    if DECODED_BY[syntax] == PLUGIN and PLUGIN not in decoder.available_plugins:
        decoder.add_plugin(PLUGIN, (__name__, "decode_with_imagecodecs"))
    return decoder


def decode_with_imagecodecs(source: bytes, runner: DecodeRunner) -> memoryview:
    """Decompresses a frame; pydicom's protocol. Tells ``runner`` what came out.

    Raises:
        UnusableImage: the codestream's size is not Rows x Columns or it has too many scans (both
            checked before decoding), or part of it is missing.
    """
    import imagecodecs  # 20 ms, which only those pay who need it

    syntax = runner.transfer_syntax
    if codestream_size(source) != (runner.rows, runner.columns):
        raise UnusableImage("The DICOM file's image is not as large as its header says.")
    if syntax not in _JPEG_2000 and not source.rstrip(b"\0\xff").endswith(_END):
        # Cut short, JPEG and HTJ2K decode without complaint, to grey or black where something is
        # missing; CharLS 2.4 counts to 2^32 before it complains. OpenJPEG complains at once.
        raise UnusableImage("The DICOM file's image data is incomplete.")
    if syntax in _JPEG and has_too_many_scans(source):
        raise UnusableImage("The DICOM file's image has too many scans.")
    if syntax in _JPEG:
        array = _jpeg(source, runner)
    elif syntax in _JPEG_LS:
        array = imagecodecs.jpegls_decode(source)
    else:
        array = imagecodecs.jpeg2k_decode(source, numthreads=J2K_THREADS)
    runner.set_option("bits_allocated", 8 * array.dtype.itemsize)
    if runner.samples_per_pixel > 1:
        runner.set_option("planar_configuration", 0)
        if runner.photometric_interpretation in (
            PhotometricInterpretation.YBR_RCT,
            PhotometricInterpretation.YBR_ICT,
        ):
            runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _jpeg(source: bytes, runner: DecodeRunner) -> np.ndarray:
    import imagecodecs

    if runner.samples_per_pixel == 1:
        return imagecodecs.jpeg8_decode(source)
    # PhotometricInterpretation says what the samples are (PS3.5 8.2.1), corrected by pydicom where
    # the codestream's own markers say otherwise; libjpeg would guess from the markers alone.
    stored = "RGB" if runner.photometric_interpretation == "RGB" else "YCBCR"
    runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
    return imagecodecs.jpeg8_decode(source, colorspace=stored, outcolorspace="RGB")


def has_too_many_scans(source: bytes) -> bool:
    """Whether a JPEG has more scans than an encoder writes, which are ten or so.

    Each goes over the whole image, and may be of 20 bytes: 64 kB of them take 7 seconds for 4
    million pixels. Within entropy-coded data FF DA cannot occur (T.81 B.1.1.5); some may in
    segments and in what is appended.
    """
    return source.count(b"\xff\xda") > _MAX_SCANS


def codestream_size(source: bytes) -> tuple[int, int]:
    """(rows, columns) from the header of a JPEG, JPEG-LS or JPEG 2000 codestream.

    A file's own Rows and Columns may say 10 x 10 of a codestream that unpacks to gigabytes. Reads
    the very header that the decoders read: what merely looks like one, in a comment or in a box
    before it, would let such a codestream through.
    Markers: ITU-T T.81 B.1.1.3, B.2.2 (frame header), T.87 (SOF55), T.800 A.5.1 (SIZ), I.4 (boxes).

    Raises:
        UnusableImage: no such header.
    """
    start = _jp2_codestream(source) if source[4:8] == b"jP  " else 0
    if source[start : start + 4] == b"\xff\x4f\xff\x51":
        if len(source) >= start + 32:
            x1, y1, x0, y0, *tile = struct.unpack_from(">6I", source, start + 8)
            if y1 > y0 and x1 > x0 and all(tile):
                return y1 - y0, x1 - x0
    else:
        _, rows, columns = frame_header(source)
        return rows, columns
    raise UnusableImage("The DICOM file's image data is damaged.")


def frame_header(source: bytes) -> tuple[int, int, int]:
    """(marker, rows, columns) of a JPEG or JPEG-LS file's frame (T.81 B.2.2, T.87 C.2.2).

    Raises:
        UnusableImage: no such header.
    """
    at = 2 if source[:2] == b"\xff\xd8" else len(source)
    while at + 9 <= len(source) and source[at] == 0xFF:
        marker = source[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return marker, *struct.unpack_from(">2H", source, at + 5)
        elif marker < 0xC0 or 0xD0 <= marker <= 0xD9:
            break  # these have no length to go on by, and no place before a frame header
        else:
            at += 2 + struct.unpack_from(">H", source, at + 2)[0]
    raise UnusableImage("The image data is damaged.")


def _jp2_codestream(source: bytes) -> int:
    """Where the codestream begins in a JP2 file, which is not what DICOM has but what some write.

    The length of the file where it has none.
    """
    at = 0
    while at + 16 <= len(source):
        length, kind = struct.unpack_from(">I4s", source, at)
        header = 16 if length == 1 else 8
        if kind == b"jp2c":
            return at + header
        at += max(struct.unpack_from(">Q", source, at + 8)[0] if length == 1 else length, header)
    return len(source)
