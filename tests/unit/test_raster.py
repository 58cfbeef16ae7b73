"""PNG and JPEG intake."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from serve.errors import ApiError, BadRequest, TooLarge, UnsupportedMedia, UnusableImage
from serve.imaging import raster

PIXELS = 1 << 20


def _encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def _read(data: bytes, media_type: str = "image/png") -> Image.Image:
    encoded = raster.parse_data_url(_url(data, media_type), param="p")
    return raster.decode(encoded, max_pixels=PIXELS, param="p")


def _gradient(width: int = 40, height: int = 30) -> Image.Image:
    grey = np.linspace(0, 255, width * height).reshape(height, width).astype(np.uint8)
    return Image.fromarray(np.stack([grey, grey[::-1], grey[:, ::-1]], axis=-1))


def test_a_png_arrives_pixel_by_pixel() -> None:
    image = _gradient()
    assert np.array_equal(np.asarray(_read(_encode(image))), np.asarray(image))


def test_a_jpeg_arrives_as_rgb() -> None:
    assert _read(_encode(_gradient(), "JPEG"), "image/jpeg").mode == "RGB"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_every_png_mode_becomes_rgb(mode: str) -> None:
    assert _read(_encode(_gradient().convert(mode))).mode == "RGB"


def test_sixteen_bit_grey_keeps_its_range() -> None:
    grey = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    read = np.asarray(_read(_encode(Image.fromarray(grey))))[0, :, 0]
    assert read.tolist() == [0, 1, 128, 255]


def test_nothing_but_pixels_is_left_of_the_file() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", "Doe^Jane")
    image = _read(_encode(_gradient(), pnginfo=info, icc_profile=b"x" * 200))
    assert image.info == {}


def test_an_exif_orientation_is_applied_and_left_behind() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    image = _read(_encode(_gradient(), "JPEG", exif=exif), "image/jpeg")
    assert image.size == (30, 40)
    assert len(image.getexif()) == 0


@pytest.mark.parametrize("url", ["https://example.org/a.png", "file:///etc/passwd", "", "data:,x"])
def test_a_remote_or_odd_url_is_refused_unfetched(url: str) -> None:
    with pytest.raises(BadRequest):
        raster.parse_data_url(url, param="p")


@pytest.mark.parametrize("media_type", ["image/gif", "image/tiff", "image/svg+xml", "text/html"])
def test_other_media_types_are_refused(media_type: str) -> None:
    with pytest.raises(UnsupportedMedia):
        raster.parse_data_url(_url(b"x", media_type), param="p")


@pytest.mark.parametrize("text", ["!!!!", "abc", "ab=c", "YWJj\nYWJj"])
def test_invalid_base64_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        raster.parse_data_url("data:image/png;base64," + text, param="p")


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "WEBP", "EPS"])
def test_another_format_under_a_png_label_is_unusable(kind: str) -> None:
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
    kind, media_type = data.draw(st.sampled_from([("PNG", "image/png"), ("JPEG", "image/jpeg")]))
    whole = bytearray(_encode(_gradient(), kind))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(whole)))
    try:
        assert _read(bytes(whole[:cut]), media_type).mode == "RGB"
    except ApiError as error:
        assert error.status in (413, 422)


def test_the_digest_names_the_bytes() -> None:
    one, other = (raster.EncodedImage("image/png", data) for data in (b"a", b"b"))
    assert one.digest != other.digest
    assert len(one.digest) == 64
