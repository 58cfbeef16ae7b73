"""Pictures for the record and for reviewers: the same pixels, and nothing but pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import struct
import threading
import time
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, PngImagePlugin
from pydicom import uid
from pydicom.dataset import Dataset

from serve.imaging.intake import Prepared, Rules, prepare
from serve.imaging.pictures import png, review_png
from serve.imaging.sources import Wanted
from serve.settings import load
from tests.dicoms import PATIENT, PATIENT_ID, dicom
from tests.unit.taking_images import RULES

SIDE = RULES.side


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


def opened(picture: bytes | None) -> Image.Image:
    assert picture is not None
    image = Image.open(io.BytesIO(picture), formats=("PNG",))
    image.load()
    return image


def chunks(picture: bytes) -> list[bytes]:
    """The types of a PNG's chunks, each checked against its sum, up to the very last byte."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    types, at = [], 8
    while at < len(picture):
        (length,) = struct.unpack_from(">I", picture, at)
        body = picture[at + 4 : at + 8 + length]
        assert picture[at + 8 + length : at + 12 + length] == struct.pack(">I", zlib.crc32(body))
        types.append(body[:4])
        at += 12 + length
    return types


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def prepared(data: bytes, **changed: Any) -> Prepared:
    return prepare(data, None, Wanted(), dataclasses.replace(RULES, **changed))


# --- the file ------------------------------------------------------------------------------------

SIZES = st.integers(1, 40)
GREY = st.tuples(SIZES, SIZES).flatmap(lambda size: arrays(np.uint8, size))
COLOUR = st.tuples(SIZES, SIZES).flatmap(lambda size: arrays(np.uint8, (*size, 3)))


@given(GREY | COLOUR)
def test_every_picture_decodes_to_its_pixels_in_two_other_decoders(pixels: np.ndarray) -> None:
    picture = png(pixels)
    whole = pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)
    assert np.array_equal(opened(picture).convert("RGB"), whole)
    strictly = imagecodecs.png_decode(picture)
    assert np.array_equal(strictly, pixels if strictly.ndim == pixels.ndim else pixels[:, :, 0])


@given(GREY | COLOUR)
def test_a_picture_has_pixels_and_no_other_chunk(pixels: np.ndarray) -> None:
    assert chunks(png(pixels)) == [b"IHDR", b"IDAT", b"IEND"]


@given(GREY)
def test_equal_channels_are_stored_as_grey_and_as_the_same_bytes(pixels: np.ndarray) -> None:
    as_colour = np.repeat(pixels[:, :, None], 3, axis=2)
    assert png(as_colour) == png(pixels)
    assert opened(png(as_colour)).mode == "L"


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_one_sample_that_differs_keeps_the_colours(channel: int) -> None:
    pixels = np.full((5, 7, 3), 9, np.uint8)
    pixels[4, 6, channel] = 10
    assert opened(png(pixels)).mode == "RGB"


def test_the_same_pixels_are_the_same_bytes_however_they_lie_in_memory() -> None:
    pixels = noise(30, 20, 3)
    turned = np.ascontiguousarray(pixels.swapaxes(0, 1)).swapaxes(0, 1)
    assert not turned.flags.c_contiguous
    assert png(turned) == png(pixels)
    assert png(np.asfortranarray(pixels[:, :, 0])) == png(pixels[:, :, 0])


def test_a_picture_keeps_its_name_from_release_to_release() -> None:
    """A picture is named by its bytes. If this changes, all are stored anew under other names."""
    pixels = (np.multiply.outer(np.arange(200), np.arange(300)) // 7 % 251).astype(np.uint8)
    assert hashlib.sha256(png(pixels)).hexdigest() == (
        "09281f9279c435caac3ee930011c5c21b81b6924a3ab7ef9ccd4e88945110e07"
    )


def test_python_goes_on_while_a_picture_is_made() -> None:
    pixels = noise(4096, 4096)
    thread = threading.Thread(target=png, args=(pixels,))
    began = last = time.perf_counter()
    longest_pause = 0.0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        now = time.perf_counter()
        longest_pause, last = max(longest_pause, now - last), now
    assert longest_pause < (last - began) / 3  # compressing alone takes more than half


# --- what reviewers see --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "reduced"),
    [
        ((1024, 900), (1024, 900)),
        ((900, 1024), (900, 1024)),
        ((2048, 2048), (1024, 1024)),
        ((2500, 2048), (1024, 839)),
        ((1100, 400), (1024, 372)),
        ((5000, 2), (1024, 1)),
        ((337, 1), (337, 1)),
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_longer_side_is_bounded_and_the_shape_kept(
    size: tuple[int, int], reduced: tuple[int, int], mode: str
) -> None:
    image = Image.fromarray(noise(size[1], size[0], 3)).convert(mode)
    picture = opened(review_png(image, longest=1024, square_side=SIDE))
    assert (picture.size, picture.mode) == (reduced, mode)


def test_an_image_that_fits_is_kept_bit_for_bit() -> None:
    pixels = noise(400, 1024)
    picture = review_png(Image.fromarray(pixels), longest=1024, square_side=SIDE)
    assert np.array_equal(opened(picture), pixels)


@pytest.mark.parametrize(
    ("size", "longest"), [((336, 336), 1024), ((336, 9), 1024), ((2000, 2000), 336), ((999, 9), 0)]
)
def test_there_is_none_where_the_square_shows_as_much(size: tuple[int, int], longest: int) -> None:
    assert review_png(Image.new("L", size), longest=longest, square_side=SIDE) is None


@given(
    st.integers(337, 1500), st.integers(1, 64), st.integers(0, 255), st.integers(0, 255), st.data()
)
def test_reducing_draws_no_halo(
    width: int, height: int, left: int, right: int, data: st.DataObject
) -> None:
    edge = data.draw(st.integers(1, width - 1))
    pixels = np.full((height, width), left, np.uint8)
    pixels[:, edge:] = right
    picture = np.asarray(opened(review_png(Image.fromarray(pixels), longest=340, square_side=SIDE)))
    assert picture.min() >= min(left, right)
    assert picture.max() <= max(left, right)


def test_reducing_by_whole_factors_takes_means() -> None:
    pixels = noise(1200, 800)
    picture = opened(review_png(Image.fromarray(pixels), longest=600, square_side=SIDE))
    means = pixels.reshape(600, 2, 400, 2).mean(axis=(1, 3))
    assert np.abs(np.asarray(picture) - means).max() <= 0.5


# --- intake --------------------------------------------------------------------------------------

FILES = {
    "grey PNG": saved(Image.fromarray(noise(500, 500))),
    "padded grey PNG": saved(Image.fromarray(noise(500, 300))),
    "colour JPEG": saved(Image.fromarray(noise(700, 500, 3)), "JPEG"),
    "small colour PNG": saved(Image.fromarray(noise(30, 20, 3))),
    "CT": dicom(noise(512, 512).astype(np.int16), WindowCenter=100, WindowWidth=200),
}


@pytest.mark.parametrize("name", FILES)
def test_the_square_is_what_the_model_sees_bit_for_bit(name: str) -> None:
    image = prepared(FILES[name])
    assert opened(image.square_png).convert("RGB").tobytes() == image.pixels


@pytest.mark.parametrize(
    ("name", "mode"), [("grey PNG", "L"), ("CT", "L"), ("padded grey PNG", "RGB")]
)
def test_the_square_is_grey_where_the_model_sees_grey(name: str, mode: str) -> None:
    assert opened(prepared(FILES[name]).square_png).mode == mode


@pytest.mark.parametrize(
    ("name", "size", "mode"),
    [
        ("grey PNG", (500, 500), "L"),
        ("padded grey PNG", (300, 500), "L"),
        ("colour JPEG", (500, 700), "RGB"),
        ("CT", (512, 512), "L"),
    ],
)
def test_reviewers_see_the_image_at_its_own_size(
    name: str, size: tuple[int, int], mode: str
) -> None:
    picture = opened(prepared(FILES[name]).review_png)
    assert (picture.size, picture.mode) == (size, mode)


def test_a_grey_image_in_a_colour_file_is_stored_as_grey() -> None:
    colour = Image.fromarray(noise(400, 400)).convert("RGB")
    image = prepared(saved(colour))
    assert opened(image.square_png).mode == "L"
    assert opened(image.review_png).mode == "L"


def test_reviewers_see_the_square_of_a_small_image() -> None:
    assert prepared(FILES["small colour PNG"]).review_png is None


def test_reviewers_see_the_square_where_the_setting_says_so() -> None:
    assert prepared(FILES["CT"], review_side=0).review_png is None


def test_the_setting_bounds_what_reviewers_see() -> None:
    rules = Rules.of(load(imaging={"review_side": 400}), side=SIDE)
    picture = prepare(FILES["colour JPEG"], None, Wanted(), rules).review_png
    assert opened(picture).size == (286, 400)
    with pytest.raises(ValueError, match="review_side"):
        load(imaging={"review_side": -1})


def test_reviewers_see_pixels_as_square_as_they_are_in_the_body() -> None:
    flat = dicom(noise(300, 600), Modality="DX", PixelSpacing=[2.0, 1.0])
    assert opened(prepared(flat).review_png).size == (600, 600)


def ultrasound(**scan: int) -> bytes:
    region = Dataset()
    for keyword, value in scan.items():
        setattr(region, keyword, value)
    pixels = np.full((500, 500), 200, np.uint8)
    return dicom(pixels, Modality="US", SequenceOfUltrasoundRegions=[region])


def test_what_is_blacked_out_is_black_for_reviewers_too() -> None:
    scan = ultrasound(
        RegionSpatialFormat=1,
        RegionLocationMinX0=0,
        RegionLocationMinY0=100,
        RegionLocationMaxX1=499,
        RegionLocationMaxY1=499,
    )
    image = prepared(scan)
    assert image.burned_in.action == "masked"
    picture = np.asarray(opened(image.review_png))
    assert not picture[:100].any()
    assert (picture[101:] == 200).all()


def test_nothing_of_a_files_header_gets_into_a_picture() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", f"{PATIENT} {PATIENT_ID}")
    exif = Image.Exif()
    exif[0x010E] = PATIENT
    profile = PATIENT.encode() * 20
    picture = Image.fromarray(noise(400, 500, 3))
    planted = (
        saved(picture, pnginfo=info, icc_profile=profile, dpi=(72, 72)) + PATIENT.encode(),
        saved(picture, "JPEG", exif=exif, comment=PATIENT.encode(), icc_profile=profile),
        dicom(noise(500, 500), uid.JPEG2000Lossless, Modality="DX") + PATIENT.encode(),
    )
    for data in planted:
        image = prepared(data)
        for made in (image.square_png, image.review_png):
            assert made is not None
            assert chunks(made) == [b"IHDR", b"IDAT", b"IEND"]
            assert not opened(made).info


@pytest.mark.parametrize("name", FILES)
def test_the_same_file_gives_the_same_pictures(name: str) -> None:
    assert prepared(FILES[name]) == prepared(FILES[name])
