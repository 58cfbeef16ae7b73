"""PNG and JPEG intake."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from serve.errors import ApiError, TooLarge, UnusableImage
from serve.imaging import raster

PIXELS = 1 << 20


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _read(data: bytes, kind: raster.Kind = "PNG") -> Image.Image:
    return raster.decode(data, kind, max_pixels=PIXELS)


def _gradient(width: int = 40, height: int = 30) -> Image.Image:
    grey = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    return Image.fromarray(np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1))


def test_a_png_arrives_pixel_by_pixel() -> None:
    image = _gradient()
    assert np.array_equal(np.asarray(_read(_encode(image))), np.asarray(image))


def test_a_jpeg_arrives_as_rgb() -> None:
    assert _read(_encode(_gradient(), "JPEG"), "JPEG").mode == "RGB"


@pytest.mark.parametrize(
    ("mode", "read"), [("1", "L"), ("L", "L"), ("LA", "L"), ("P", "RGB"), ("RGBA", "RGB")]
)
def test_every_png_mode_becomes_grey_or_rgb(mode: str, read: str) -> None:
    image = _gradient().convert(mode)
    found = _read(_encode(image))
    assert found.mode == read
    assert np.array_equal(np.asarray(found), np.asarray(image.convert(read)))


def test_sixteen_bit_grey_keeps_its_range() -> None:
    grey = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    read = np.asarray(_read(_encode(Image.fromarray(grey))))[0]
    assert read.tolist() == [0, 1, 128, 255]


def test_nothing_but_pixels_is_left_of_the_file() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", "Doe^Jane")
    image = _read(_encode(_gradient(), pnginfo=info, icc_profile=b"x" * 200))
    assert image.info == {}


def test_an_exif_orientation_is_applied_and_left_behind() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image = _read(_encode(_gradient(), "JPEG", exif=exif), "JPEG")
    assert image.size == (30, 40)
    assert len(image.getexif()) == 0


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "WEBP", "EPS"])
def test_another_format_than_png_is_unusable(kind: str) -> None:
    with pytest.raises(UnusableImage):
        _read(_encode(_gradient(), kind))


def test_a_pixel_bomb_is_refused_by_its_header_alone() -> None:
    bomb = _encode(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    with pytest.raises(TooLarge):
        _read(bomb)


@given(st.binary(max_size=200))
def test_random_bytes_are_unusable_never_a_crash(data: bytes) -> None:
    with pytest.raises(UnusableImage):
        _read(data)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_is_read_or_refused_never_a_crash(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "JPEG"]))
    whole = bytearray(_encode(_gradient(), kind))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(whole)))
    try:
        assert _read(bytes(whole[:cut]), kind).mode in ("L", "RGB")
    except ApiError as error:
        assert error.status in (413, 422)


@pytest.mark.parametrize(
    ("image", "kind", "options", "light"),
    [
        (_gradient(300, 20), "PNG", {}, True),
        (_gradient(301, 20), "PNG", {}, False),
        (Image.new("L", (300, 20)), "PNG", {}, False),  # a few bytes, and it could be any size
        (_gradient(300, 20), "JPEG", {}, True),
        (_gradient(300, 20).convert("L"), "JPEG", {}, True),
        (_gradient(301, 20), "JPEG", {}, False),
        (_gradient(300, 20), "JPEG", {"progressive": True}, False),
    ],
)
def test_what_is_light_shows_in_the_header(
    image: Image.Image, kind: str, options: dict[str, object], light: bool
) -> None:
    data = _encode(image, kind, **options)
    assert raster.is_light(data, max_pixels=6000) is light


@given(st.binary(max_size=300))
def test_judging_by_the_header_takes_any_bytes(data: bytes) -> None:
    for begin in (b"", raster.PNG, raster.JPEG):
        assert raster.is_light(begin + data, max_pixels=1) in (True, False)


def test_a_text_bomb_in_a_png_is_refused_or_left_out() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "x" * (64 << 20), zip=True)
    bomb = _encode(_gradient(), pnginfo=info)
    assert len(bomb) < 100_000
    with pytest.raises(UnusableImage):
        _read(bomb)


def test_a_jpeg_that_lies_about_its_size_is_refused_undecoded() -> None:
    data = bytearray(_encode(_gradient(), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xff\xff\xff"
    with pytest.raises(TooLarge):
        _read(bytes(data), "JPEG")


def test_of_an_animation_only_the_first_picture_is_seen() -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    file = io.BytesIO()
    first.save(file, "PNG", save_all=True, append_images=[second])
    assert np.array_equal(np.asarray(_read(file.getvalue())), np.asarray(first))


def test_what_is_appended_to_a_file_is_of_no_effect() -> None:
    for kind in ("PNG", "JPEG"):
        data = _encode(_gradient(), kind)
        polyglot = data + b"PK\x03\x04" + b"<script>" * 100
        assert np.array_equal(np.asarray(_read(polyglot, kind)), np.asarray(_read(data, kind)))
