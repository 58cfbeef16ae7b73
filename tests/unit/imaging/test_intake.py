"""From a file's bytes to what the model sees, and nothing else."""

from __future__ import annotations

import dataclasses
import io
import pickle
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom import uid

from serve.errors import ApiError, BadRequest, UnsupportedMedia, UnusableImage
from serve.imaging.intake import Prepared, prepare, sniff
from serve.imaging.sources import Wanted
from tests.dicoms import PATIENT, PATIENT_ID, ROOT, STUDY_DATE, dicom
from tests.unit.taking_images import RULES

CT = np.arange(-1024, 3072, dtype=np.int16).reshape(64, 64)
WINDOW: dict[str, Any] = {"WindowCenter": 40, "WindowWidth": 400}


def _file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _prepare(data: bytes, declared: str | None = None, **wanted: Any) -> Prepared:
    return prepare(data, declared, Wanted(**wanted), RULES)


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (_file(NOISE), "image/png"),
        (_file(NOISE, "JPEG"), "image/jpeg"),
        (dicom(CT), "application/dicom"),
        (b"MZ" + dicom(CT)[2:], "application/dicom"),
        (b"II*\0" + dicom(CT)[4:], "application/dicom"),  # two files in one, as PS3.10 7.1 allows
    ],
)
def test_a_files_type_is_what_its_bytes_are(data: bytes, media_type: str) -> None:
    assert sniff(data) == media_type
    prepared = _prepare(data, media_type)
    assert prepared.media_type == media_type
    assert len(prepared.pixels) == RULES.side**2 * 3
    assert prepared.image.size == (RULES.side, RULES.side)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "WEBP", "EPS", "JPEG2000", "ICO", "PDF"])
@pytest.mark.parametrize("declared", ["image/png", "image/jpeg", "application/dicom", None])
def test_formats_that_are_not_taken_are_refused_by_their_bytes(
    kind: str, declared: str | None
) -> None:
    with pytest.raises(UnsupportedMedia):
        _prepare(_file(NOISE, kind), declared)


@pytest.mark.parametrize(
    "data",
    [b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\n <?xml version='1.0'?><svg/>", b"PK\3\4"],
)
def test_svg_and_archives_are_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedMedia):
        _prepare(data, "image/png")


@pytest.mark.parametrize("data", [b"", b"hello", bytes(132), b"\x89PNG", bytes(128) + b"DIC"])
def test_bytes_that_are_nothing_are_unusable(data: bytes) -> None:
    with pytest.raises(UnusableImage):
        _prepare(data)


def test_a_wrong_declared_type_is_an_error_of_its_own() -> None:
    for data, declared in (
        (_file(NOISE), "image/jpeg"),
        (_file(NOISE, "JPEG"), "application/dicom"),
        (dicom(CT), "image/png"),
    ):
        with pytest.raises(UnusableImage) as caught:
            _prepare(data, declared)
        assert caught.value.code == "media_type_mismatch"


def test_windows_and_frames_are_refused_where_there_are_none() -> None:
    for wanted in ({"window": "lung"}, {"center": 1, "width": 2}, {"frame": 1}):
        with pytest.raises(BadRequest) as caught:
            _prepare(_file(NOISE), **wanted)
        assert caught.value.code == "invalid_image_parameter"
    assert _prepare(_file(NOISE), role="prior").frame is None


def test_the_same_picture_is_the_same_whatever_it_came_in() -> None:
    grey = np.random.default_rng(2).integers(0, 256, (60, 40), dtype=np.uint8)
    as_dicom = _prepare(dicom(grey, Modality="DX"))
    as_png = _prepare(_file(Image.fromarray(grey)))
    assert as_dicom.pixels == as_png.pixels
    assert as_dicom.digest == as_png.digest  # so that the engine's caches know it as one


def _planted() -> list[bytes]:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", f"{PATIENT} {PATIENT_ID} {STUDY_DATE}")
    exif = Image.Exif()
    exif[0x010E] = f"{PATIENT} {PATIENT_ID}"
    profile = PATIENT.encode() * 20
    return [
        dicom(CT, **WINDOW) + PATIENT.encode(),
        dicom(CT, uid.JPEG2000Lossless, **WINDOW),
        _file(NOISE, pnginfo=info, icc_profile=profile) + PATIENT.encode(),
        _file(NOISE, "JPEG", exif=exif, comment=PATIENT.encode(), icc_profile=profile),
    ]


@pytest.mark.parametrize("data", _planted(), ids=["dicom", "dicom, compressed", "png", "jpeg"])
def test_nothing_about_the_patient_comes_out(data: bytes) -> None:
    out = pickle.dumps(_prepare(data))
    for secret in (PATIENT, PATIENT.split("^")[0], PATIENT_ID, STUDY_DATE, ROOT):
        assert secret.encode() in data or secret in (ROOT, STUDY_DATE)
        assert secret.encode() not in out


def test_nothing_about_the_patient_comes_out_of_a_refusal() -> None:
    whole = dicom(CT, **WINDOW)
    for cut in range(200, len(whole), 97):
        try:
            _prepare(whole[:cut])
        except ApiError as error:
            said = pickle.dumps(error)
            assert not any(
                secret.encode() in said for secret in (PATIENT, PATIENT_ID, STUDY_DATE, ROOT)
            )


def test_what_a_record_keeps_of_an_instance_is_a_keyed_hash() -> None:
    data = dicom(CT, **WINDOW)
    one, again = _prepare(data), _prepare(data)
    assert one.instance == again.instance
    assert len(one.instance or "") == 64
    other = prepare(data, None, Wanted(), dataclasses.replace(RULES, uid_key=b"another key"))
    assert other.instance != one.instance
    without = prepare(data, None, Wanted(), dataclasses.replace(RULES, uid_key=b""))
    assert without.instance is None
    assert _prepare(_file(NOISE)).instance is None


def test_pixels_that_are_not_square_are_corrected_before_the_padding() -> None:
    square = np.random.default_rng(3).integers(0, 256, (64, 64), dtype=np.uint8)
    flat = np.ascontiguousarray(square[::2])
    prepared = _prepare(dicom(flat, Modality="DX", PixelSpacing=[2.0, 1.0]))
    # No padding: after correction the image is a square.
    assert prepared.image.getpixel((0, 0)) != (122, 116, 104)


def test_an_ultrasound_without_regions_is_refused_and_flagged_if_so_set() -> None:
    data = dicom(np.zeros((32, 32), np.uint8), Modality="US")
    with pytest.raises(UnusableImage) as caught:
        _prepare(data)
    assert caught.value.code == "burned_in_annotation"
    flagged = prepare(data, None, Wanted(), dataclasses.replace(RULES, burned_in="flag"))
    assert flagged.burned_in.action == "flagged"
