"""What happens to an image that may have a patient's name burned into its pixels.

Three sources, from cheap to dear: the header (RULES), known regions (serve.imaging.regions), and
reading the pixels (serve.imaging.ocr). BurnedInAnnotation NO is never trusted, and a missing one
means unknown: few devices set it, and those that do set it for what they write themselves.

| action | the header suspects | a region is known | OCR | then |
|---|---|---|---|---|
| refuse | yes | any | any | refused |
| refuse | no | any | finds text | refused |
| refuse | no | any | off, or finds none | passes, `none` |
| mask | a face | any | any | refused: a box over text does not hide a face |
| mask | yes | no | off | refused: nobody knows where the text is |
| mask | any | yes | off, or finds none | regions blacked out, `masked` |
| mask | any | any | finds text | regions and text blacked out, `masked`; refused if still legible |
| mask | yes | no | finds none | passes, `flagged` |
| mask | no | no | off, or finds none | passes, `none` |
| flag | yes, or OCR finds text | any | any | passes untouched, `flagged` |
| flag | no | any | off, or finds none | passes, `none` |

OCR that was asked for and does not run stops the image, whatever the action.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw

from serve.errors import UnusableImage
from serve.imaging import ocr as reader
from serve.imaging.regions import Box, KnownRegion, scan_regions

if TYPE_CHECKING:
    import pydicom

Action = Literal["refuse", "mask", "flag"]

_READINGS = 3  # masking uncovers a word now and then; what is legible after that is refused
_LEAST_SHARE = 0.01  # scan regions that leave less of the image outside tell nothing

_CAPTURE_CLASSES = re.compile(r"1\.2\.840\.10008\.5\.1\.(4\.1\.1\.7(\.[1-4])?|1\.(29|30))")
_ULTRASOUND_OR_LIGHT = re.compile(
    r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.((3|6)(\.[12])?|77\.1\.[\d.]+)"
)
_WRITING_MODALITIES = {"US", "IVUS", "ES", "XC", "GM", "SM", "BMD", "DOC", "OT"}
_CAPTURE_ATTRIBUTES = (
    "SecondaryCaptureDeviceID",
    "SecondaryCaptureDeviceManufacturer",
    "SecondaryCaptureDeviceManufacturerModelName",
    "SecondaryCaptureDeviceSoftwareVersions",
    "DateOfSecondaryCapture",
    "TimeOfSecondaryCapture",
    "HardcopyCreationDeviceID",
    "HardcopyDeviceManufacturer",
    "HardcopyDeviceManufacturerModelName",
    "HardcopyDeviceSoftwareVersion",
    "VideoImageFormatAcquired",
    "DigitalImageFormatAcquired",
)
# What the rules and the tables of regions read of a header, beside SOPClassUID and Modality.
ELEMENTS = (
    "BurnedInAnnotation", "RecognizableVisualFeatures", "ImageType", "SeriesDescription",
    "ConversionType", "DetectorType", "Manufacturer", "ManufacturerModelName",
    "SequenceOfUltrasoundRegions", *_CAPTURE_ATTRIBUTES,
)  # fmt: skip
_SAVED_SCREEN = re.compile(r"SAVE|SCREEN[ _]?(SHOT|CAP|GRAB)")
_PAGE = re.compile(r"DOSE[ _]?(INFO|REPORT|RECORD|SHEET)|PATIENT[ _]PROTOCOL")


class Evidence(StrEnum):
    """Why an image may say who the patient is."""

    DECLARED = "declared"
    FACE = "recognizable_features"
    SECONDARY_CAPTURE = "secondary_capture"
    CAPTURE_DEVICE = "capture_device"
    CONVERTED = "converted"
    DIGITISED_FILM = "digitised_film"
    SCREEN_SAVE = "screen_save"
    REPORT_PAGE = "report_page"
    WRITING_MODALITY = "writing_modality"
    DERIVED_FLUOROSCOPY = "derived_fluoroscopy"
    TEXT_FOUND = "text_found"

    @property
    def meaning(self) -> str:
        """What it looks at and why, in one sentence."""
        rule = next(rule for rule in RULES if rule.evidence is self)
        return f"{rule.looks_at}: {rule.why}"


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of the table: when a header, or the pixels, speak for burned-in text."""

    evidence: Evidence
    looks_at: str
    why: str
    source: str
    holds: Callable[[pydicom.Dataset], bool]


@dataclass(frozen=True, slots=True)
class BurnedIn:
    """What was known about an image, and what was done about it."""

    evidence: tuple[Evidence, ...] = ()
    action: Literal["none", "masked", "flagged"] = "none"
    boxes: int = 0  # rectangles blacked out


def _values(header: pydicom.Dataset, *keywords: str) -> list[str]:
    """Every value of the attributes, in capitals; one that cannot be read raises."""
    found = []
    for keyword in keywords:
        value = header.get(keyword)
        parts = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
        found += [str(part).strip().upper() for part in parts if part not in (None, "")]
    return found


def _says(text: re.Pattern[str]) -> Callable[[pydicom.Dataset], bool]:
    names = ("ImageType", "SeriesDescription")
    return lambda header: any(text.search(value) for value in _values(header, *names))


RULES = (
    Rule(
        Evidence.DECLARED,
        "BurnedInAnnotation YES",
        "the device says so; NO proves nothing",
        "PS3.3 C.7.6.1 (General Image); PS3.15 E.3.1 (Clean Pixel Data)",
        lambda header: "YES" in _values(header, "BurnedInAnnotation"),
    ),
    Rule(
        Evidence.FACE,
        "RecognizableVisualFeatures YES",
        "a face identifies, and no box over text hides it",
        "PS3.3 C.7.6.1; PS3.15 E.3.2 (Clean Recognizable Visual Features)",
        lambda header: "YES" in _values(header, "RecognizableVisualFeatures"),
    ),
    Rule(
        Evidence.SECONDARY_CAPTURE,
        "SOPClassUID of Secondary Capture or Hardcopy",
        "a picture of a screen, page or film, with whatever was written there",
        "PS3.3 A.8; what RSNA CTP's pixel filter turns away",
        lambda header: any(map(_CAPTURE_CLASSES.fullmatch, _values(header, "SOPClassUID"))),
    ),
    Rule(
        Evidence.CAPTURE_DEVICE,
        "SecondaryCaptureDevice*, HardcopyDevice*, DateOfSecondaryCapture, ... present",
        "captured, though the SOP class says otherwise",
        "PS3.3 C.8.6.1 (SC Equipment); what RSNA CTP's pixel filter turns away",
        lambda header: any(name in header for name in _CAPTURE_ATTRIBUTES),
    ),
    Rule(
        Evidence.CONVERTED,
        "ConversionType DV, DI, DRW, SD, SI, WSD",
        "video, scans, drawings and workstation screens; SYN is computed and has no writer",
        "PS3.3 C.8.6.1",
        lambda header: bool(
            {"DV", "DI", "DRW", "SD", "SI", "WSD"} & set(_values(header, "ConversionType"))
        ),
    ),
    Rule(
        Evidence.DIGITISED_FILM,
        "ConversionType DF, DetectorType FILM or Modality RG",
        "films carry the patient's name, exposed in a corner or on a label",
        "PS3.3 C.8.6.1, C.8.11.4, C.7.3.1.1.1",
        lambda header: (
            "DF" in _values(header, "ConversionType")
            or "FILM" in _values(header, "DetectorType")
            or "RG" in _values(header, "Modality")
        ),
    ),
    Rule(
        Evidence.SCREEN_SAVE,
        "ImageType or SeriesDescription with SAVE, SCREENSHOT, SCREEN CAPTURE",
        "a workstation's screen, with the patient's banner",
        "what RSNA CTP's pixel filter turns away",
        _says(_SAVED_SCREEN),
    ),
    Rule(
        Evidence.REPORT_PAGE,
        "ImageType or SeriesDescription with DOSE INFO, DOSE REPORT, PATIENT PROTOCOL",
        "a CT's dose page, with the patient's name at its head, stored as an image",
        "vendors' practice",
        _says(_PAGE),
    ),
    Rule(
        Evidence.WRITING_MODALITY,
        "Modality US, IVUS, ES, XC, GM, SM, BMD, DOC, OT; SOP classes of ultrasound, visible light",
        "consoles and processors write name and date into the frame; photographs show wristbands "
        "and labels",
        "PS3.3 C.7.3.1.1.1, A.6, A.32; PS3.15 E.3.1 names ultrasound",
        lambda header: (
            bool(_WRITING_MODALITIES & set(_values(header, "Modality")))
            or any(map(_ULTRASOUND_OR_LIGHT.fullmatch, _values(header, "SOPClassUID")))
        ),
    ),
    Rule(
        Evidence.DERIVED_FLUOROSCOPY,
        "Modality RF, XA with ImageType DERIVED",
        "frames from the detector are clean; those a workstation exports have its annotations",
        "PS3.3 C.7.6.1.1.2, C.8.7.1.1.1",
        lambda header: (
            bool({"RF", "XA"} & set(_values(header, "Modality")))
            and "DERIVED" in _values(header, "ImageType")[:1]
        ),
    ),
    Rule(
        Evidence.TEXT_FOUND,
        "the pixels, with tesseract, where OCR is on",
        "text was read that is more than a side or projection marker",
        "PS3.15 E.3.1",
        lambda _header: False,
    ),
)


def rules_table() -> str:
    """RULES as a Markdown table, for the docs."""
    rows = [
        f"| `{rule.evidence}` | {rule.looks_at} | {rule.why} | {rule.source} |" for rule in RULES
    ]
    return "\n".join(["| evidence | looks at | why | source |", "|---|---|---|---|", *rows])


def suspects(header: pydicom.Dataset | None) -> tuple[Evidence, ...]:
    """What the header says for burned-in text. Nothing for PNG and JPEG, which have none."""
    if header is None:
        return ()
    return tuple(rule.evidence for rule in RULES if _holds(rule, header))


def _holds(rule: Rule, header: pydicom.Dataset) -> bool:
    try:
        return rule.holds(header)
    except Exception:  # a value that nobody can read does not speak for the image
        return True


def handle(
    image: Image.Image,
    header: pydicom.Dataset | None,
    *,
    action: Action,
    ocr: bool,
    known: tuple[KnownRegion, ...] = (),
    ocr_timeout_s: float = 10.0,
) -> tuple[Image.Image, BurnedIn]:
    """Decides by the table above, and does it.

    Args:
        image: mode L or RGB, at the file's own matrix. It is not changed.
        header: the DICOM header, or None for PNG and JPEG.
        action: what the operator wants done.
        ocr: whether to read the pixels.
        known: the operator's table of regions to black out.
        ocr_timeout_s: for one reading of one polarity.

    Raises:
        UnusableImage: refused, code ``burned_in_annotation``.
        Unavailable: OCR was asked for and did not run, code ``ocr_unavailable``.
    """
    evidence = suspects(header)
    if evidence and (action == "refuse" or (action == "mask" and Evidence.FACE in evidence)):
        raise _refusal(evidence)
    if action == "mask":
        return _masked(image, header, evidence, ocr, known, ocr_timeout_s)
    if ocr and reader.find_text(image, timeout_s=ocr_timeout_s):
        evidence = (*evidence, Evidence.TEXT_FOUND)
        if action == "refuse":
            raise _refusal(evidence)
    return image, BurnedIn(evidence, "flagged" if evidence else "none")


def _masked(
    image: Image.Image,
    header: pydicom.Dataset | None,
    evidence: tuple[Evidence, ...],
    ocr: bool,
    known: tuple[KnownRegion, ...],
    ocr_timeout_s: float,
) -> tuple[Image.Image, BurnedIn]:
    image, boxes = _black_regions(image, header, known)
    if evidence and not boxes and not ocr:
        raise _refusal(evidence)
    for reading in range(_READINGS if ocr else 0):
        found = reader.find_text(image, timeout_s=ocr_timeout_s)
        if not found:
            break
        if reading == 0:
            evidence = (*evidence, Evidence.TEXT_FOUND)
        if reading == _READINGS - 1:
            raise _refusal(evidence)
        image = _blacked(image, found)
        boxes += len(found)
    done: Literal["none", "masked", "flagged"] = "flagged" if evidence else "none"
    return image, BurnedIn(evidence, "masked" if boxes else done, boxes)


def _black_regions(
    image: Image.Image, header: pydicom.Dataset | None, known: tuple[KnownRegion, ...]
) -> tuple[Image.Image, int]:
    """Blacks out what lies outside of the scan, and the operator's boxes; how many rectangles."""
    count = 0
    if scans := scan_regions(header, image.size):
        outside = np.ones((image.height, image.width), bool)
        for left, top, right, bottom in scans:
            outside[top:bottom, left:right] = False
        if outside.mean() >= _LEAST_SHARE:
            pixels = np.array(image)
            pixels[outside] = 0
            image = Image.fromarray(pixels)
            count = 1
    boxes = [
        inside
        for region in known
        if region.matches(header, image.size)
        for box in region.boxes
        if (inside := box.within(image.size)) is not None
    ]
    return _blacked(image, boxes), count + len(boxes)


def _blacked(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    if not boxes:
        return image
    image = image.copy()
    draw = ImageDraw.Draw(image)
    for box in boxes:
        draw.rectangle((box.left, box.top, box.right - 1, box.bottom - 1), fill=0)
    return image


def _refusal(evidence: tuple[Evidence, ...]) -> UnusableImage:
    return UnusableImage(
        f"The image may say in its pixels who the patient is ({', '.join(evidence)}). Send one "
        "without text or faces. The operator decides what happens to such images "
        "(imaging.burned_in), can have text looked for and blacked out (imaging.ocr), and can name "
        "the regions where a device writes.",
        code="burned_in_annotation",
    )
