"""A DICOM file to one frame of 8-bit pixels. Reads the elements it needs and no others.

What identifies a patient is not removed: it is never read (``ELEMENTS``). Overlays (60xx), icons,
curves, private elements, the preamble and trailing bytes are not among them. Limits are checked on
the header, before pixels are unpacked. Runs in a worker process with bounded memory and time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from serve.errors import ApiError, BadRequest, TooLarge, UnusableImage, too_many_pixels
from serve.imaging import burned_in
from serve.imaging.colour import to_rgb
from serve.imaging.decoders import decode_frame, has_sign
from serve.imaging.grey import Windowing, to_grey
from serve.imaging.sources import Wanted

# By keyword (DICOM PS3.6). Those of the burned-in rules are theirs to name.
PIXEL_ELEMENTS = (
    "SOPClassUID", "SOPInstanceUID", "Modality",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "RepresentativeFrameNumber",
    "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "FloatPixelData", "DoubleFloatPixelData", "PixelData",
)  # fmt: skip
ELEMENTS = (*PIXEL_ELEMENTS, *burned_in.ELEMENTS)

# Functional groups whose attributes stand in for the same ones at the top (PS3.3 C.7.6.16.2).
_GROUPS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
    "PixelMeasuresSequence",
)
# What turns stored values into grey, and tells a pixel's shape.
_PER_FRAME = frozenset({
    "Modality", "PhotometricInterpretation", "PresentationLUTShape",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "RescaleIntercept", "RescaleSlope", "ModalityLUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence",
    "PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio",
})  # fmt: skip
_PREAMBLE = 128
# Of a deflated file: the largest there are, twice over (RGB of 16 bits; one frame of 64).
_INFLATED_BYTES_A_PIXEL = 16
# Empty items cost pydicom 2 kB and 16 us each, and deflate to nothing: 13 kB of file were 17 s.
_ITEM = b"\xfe\xff\x00\xe0"
_MAX_INFLATED_ITEMS = 200_000
# Pixels further from square than this come from a damaged header, not from a scanner.
_MAX_ASPECT = 10.0


@dataclass(frozen=True, slots=True)
class Rendered:
    """One frame at its own matrix, and where it comes from."""

    image: Image.Image  # mode L or RGB
    header: Dataset  # the elements of ELEMENTS that the file has
    frame: int  # from 1
    frames: int
    windowing: Windowing | None  # None: colour
    aspect: float  # a pixel's height over its width


def is_dicom(data: bytes) -> bool:
    """Whether these bytes are a DICOM file (PS3.10 7.1)."""
    return data[_PREAMBLE : _PREAMBLE + 4] == b"DICM"


@dataclass(frozen=True, slots=True)
class File:
    """A DICOM file, read and found plausible. Its frames are decoded one at a time."""

    header: Dataset
    syntax: UID
    frames: int

    def render(self, wanted: Wanted) -> Rendered:
        """Decodes the frame that is wanted.

        Raises:
            BadRequest: a frame or window that the image does not have.
            TooLarge: it takes too much memory.
            UnsupportedMedia: a transfer syntax or photometric interpretation that is not supported.
            UnusableImage: damaged.
        """
        with _as_our_errors():
            number = _frame_number(self.header, wanted, self.frames)
            pixels, photometric = decode_frame(self.header, self.syntax, number - 1)
            attributes = _attributes(self.header, number - 1)
            windowing = None
            if photometric.startswith("MONOCHROME"):
                container = not has_sign(self.syntax)
                pixels, windowing = to_grey(pixels, attributes, wanted, container=container)
            elif wanted.window or wanted.center is not None:
                raise BadRequest(
                    "A window is for greyscale images; this one has colours.",
                    code="invalid_image_parameter",
                )
            else:
                pixels = to_rgb(pixels, self.header, photometric)
            return Rendered(
                image=Image.fromarray(pixels),
                header=self.header,
                frame=number,
                frames=self.frames,
                windowing=windowing,
                aspect=_pixel_aspect(attributes),
            )


def opened(data: bytes, *, max_pixels: int, max_frames: int) -> File:
    """Reads a file, without its pixels.

    Raises:
        TooLarge: more pixels or frames than allowed, or more bytes when inflated.
        UnusableImage: no image (reports, structure sets, documents), or damaged.
    """
    with _as_our_errors():
        header, syntax = _read(data, max_bytes=_INFLATED_BYTES_A_PIXEL * max_pixels)
        return File(header, syntax, _check(header, max_pixels=max_pixels, max_frames=max_frames))


@contextmanager
def _as_our_errors() -> Iterator[None]:
    """Whatever a damaged file has a parser or decoder raise."""
    try:
        yield
    except ApiError:
        raise
    except MemoryError:
        raise TooLarge("The DICOM file needs too much memory.") from None
    except BaseException as error:
        # pydicom wraps what its plug-ins raise, ours among them, into one RuntimeError. A panic of
        # Rust code (pylibjpeg-rle) is no Exception, cannot be imported, and cannot be pickled.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise UnusableImage("The DICOM file is damaged and cannot be decoded.") from error


def _read(data: bytes, *, max_bytes: int) -> tuple[Dataset, UID]:
    if not is_dicom(data):
        raise UnusableImage("The bytes are not a DICOM file (PS3.10): no DICM after the preamble.")
    file = BytesIO(data)
    file.seek(_PREAMBLE + 4)
    # File meta information is always explicit little endian (PS3.10 7.1).
    meta = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag.group != 2)
    syntax = UID(meta.TransferSyntaxUID)
    if syntax != DeflatedExplicitVRLittleEndian:
        header: Dataset = dcmread(BytesIO(data), specific_tags=list(ELEMENTS))
        return header, syntax
    # pydicom would inflate without a limit: 0.5 MB of zeros become gigabytes.
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = inflater.decompress(data[file.tell() :], max_bytes)
    if inflater.unconsumed_tail:
        raise TooLarge("The DICOM file is too large when inflated.")
    if inflated.count(_ITEM) > _MAX_INFLATED_ITEMS:
        raise TooLarge("The DICOM file has too many items when inflated.")
    tags: list[BaseTag | int] = [Tag(keyword) for keyword in ELEMENTS]
    header = read_dataset(BytesIO(inflated), False, True, specific_tags=tags)
    header.file_meta = FileMetaDataset(meta)
    header.set_original_encoding(False, True)
    return header, syntax


def _check(header: Dataset, *, max_pixels: int, max_frames: int) -> int:
    """Limits and plausibility, on the header alone; returns the number of frames."""
    if not any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        if "Rows" in header:
            raise UnusableImage("The DICOM file ends before its pixels.")
        raise UnusableImage(
            "The DICOM file has no pixels: reports, structure sets and documents are no images.",
            code="not_an_image",
        )
    rows, columns = int(header.Rows), int(header.Columns)
    samples, allocated = int(header.SamplesPerPixel), int(header.BitsAllocated)
    frames = int(header.get("NumberOfFrames", 1) or 1)
    if rows * columns > max_pixels:
        raise too_many_pixels(max_pixels)
    if frames > max_frames:
        raise TooLarge(f"A DICOM file may have {max_frames} frames.")
    if "PixelData" not in header:
        header.BitsStored = allocated  # float pixels have no such attribute
    plausible = (
        rows > 0
        and columns > 0
        and frames > 0
        and samples in (1, 3)
        and allocated in (1, 8, 16, 32, 64)
        and 1 <= int(header.BitsStored) <= allocated
        and int(header.get("HighBit", 0)) < allocated
    )
    if not plausible:
        raise UnusableImage("The DICOM file's header describes no possible image.")
    return frames


def _frame_number(header: Dataset, wanted: Wanted, frames: int) -> int:
    if wanted.frame is None:
        representative = int(header.get("RepresentativeFrameNumber") or 1)
        return representative if 1 <= representative <= frames else 1
    if wanted.frame > frames:
        raise BadRequest("The image has no frame of this number.", code="invalid_image_parameter")
    return wanted.frame


def _attributes(header: Dataset, index: int) -> Dataset:
    """The header with what a multi-frame file says of this frame, or of all, in its place."""
    merged = Dataset()
    merged.update({element.tag: element for element in header if element.keyword in _PER_FRAME})
    shared = list(header.get("SharedFunctionalGroupsSequence") or ())[:1]
    own = list(header.get("PerFrameFunctionalGroupsSequence") or ())[index : index + 1]
    for groups in (*shared, *own):
        for name in _GROUPS:
            if sequence := groups.get(name):
                merged.update(sequence[0])
    merged.set_original_encoding(*header.original_encoding)
    return merged


def _pixel_aspect(header: Dataset) -> float:
    """A pixel's height over its width: of the spacing where given, else of the ratio.

    PS3.3 10.7.1.3 (spacing: between rows, between columns), C.7.6.3.1.7 (vertical, horizontal).
    """
    for name in ("PixelSpacing", "ImagerPixelSpacing", "PixelAspectRatio"):
        value = header.get(name)
        if isinstance(value, MultiValue) and len(value) == 2:
            vertical, horizontal = map(float, value)
            if vertical > 0 and horizontal > 0:
                aspect = vertical / horizontal
                return aspect if 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT else 1.0
    return 1.0
