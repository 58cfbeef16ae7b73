"""Text in the pixels is found and, once blacked out, gone; markers and anatomy are left alone.

Needs tesseract's language data, which CI installs; tesserocr brings tesseract itself.
"""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from pydicom.data import get_testdata_file

from serve.errors import Unavailable
from serve.imaging import ocr
from serve.imaging.ocr import Word, find_text, identifying, strokes, whole
from serve.imaging.regions import Box
from serve.phantom.draw import Phantom, draw

IDENTIFIERS = ("Okonkwo, Ngozi", "DOB 1957-03-14", "MRN 00481516", "DOE^JANE")


def chest(side: int, seed: int = 3) -> Image.Image:
    return draw(Phantom(effusion="left"), seed).convert("L").resize((side, side))


def write(image: Image.Image, corner: str, text: str, size: int, fill: int | str = 255) -> Box:
    """Burns text into a corner, and returns where its ink is."""
    font = ImageFont.load_default(size)
    brush = ImageDraw.Draw(image)
    left, top, right, bottom = brush.textbbox((0, 0), text, font=font)
    x = 6 if "left" in corner else image.width - 6 - right
    y = 6 if "top" in corner else image.height - 6 - bottom
    brush.text((x, y), text, fill=fill, font=font)
    return Box(int(x + left), int(y + top), int(x + right), int(y + bottom))


def covered(wanted: Box, boxes: tuple[Box, ...]) -> float:
    mask = np.zeros((wanted.bottom, wanted.right), bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return float(mask[wanted.top :, wanted.left :].mean())


@pytest.mark.parametrize(
    ("side", "size"), [(300, 10), (512, 12), (512, 20), (512, 40), (1024, 28), (2048, 24)]
)
@pytest.mark.parametrize("ink", ["white", "black"])
def test_a_name_a_date_and_a_number_in_the_corners_are_found(
    side: int, size: int, ink: str
) -> None:
    image = chest(side)
    if ink == "black":  # as on an inverted film, where the corners are bright
        image = image.point(lambda grey: min(255, grey // 2 + 120))
    corners = ("top left", "top right", "bottom left", "bottom right")
    written = [
        write(image, corner, text, size, fill=255 if ink == "white" else 0)
        for corner, text in zip(corners, IDENTIFIERS, strict=True)
    ]
    found = find_text(image)
    assert [
        text for box, text in zip(written, IDENTIFIERS, strict=True) if covered(box, found) < 0.9
    ] == []


def test_text_across_the_anatomy_is_found() -> None:
    image = chest(512)
    ImageDraw.Draw(image).text((150, 250), "SMITH JOHN 441203", 255, ImageFont.load_default(18))
    assert any(box.top < 262 < box.bottom for box in find_text(image))


def test_coloured_text_is_found_though_its_grey_is_dark() -> None:
    image = Image.new("RGB", (512, 256))
    written = write(image, "top left", "GARCIA MARIA", 24, fill="blue")
    assert covered(written, find_text(image)) > 0.9


@pytest.mark.parametrize("seed", range(6))
def test_a_drawn_chest_has_no_text(seed: int) -> None:
    assert (
        find_text(draw(Phantom(pneumothorax="right"), seed).convert("L").resize((768, 768))) == ()
    )


@pytest.mark.parametrize("name", ["693_J2KI.dcm", "CT_small.dcm", "MR_small.dcm"])
def test_a_real_slice_without_text_has_none(name: str) -> None:
    values = pydicom.dcmread(str(get_testdata_file(name))).pixel_array.astype(float)
    grey = (values - values.min()) / np.ptp(values) * 255
    assert find_text(Image.fromarray(grey.astype(np.uint8))) == ()


@pytest.mark.parametrize("deviation", [10, 30, 90])
def test_noise_is_not_read(deviation: int) -> None:
    noise = 110 + np.random.default_rng(0).standard_normal((512, 512)) * deviation
    assert find_text(Image.fromarray(noise.clip(0, 255).astype(np.uint8))) == ()


@pytest.mark.parametrize("size", [14, 28, 40])
@pytest.mark.parametrize(
    "marker", ["L", "R", "LEFT", "RIGHT", "PA ERECT", "AP PORTABLE", "AP SUPINE", "LAT", "R MLO"]
)
def test_markers_of_side_and_projection_are_left_alone(marker: str, size: int) -> None:
    image = chest(512)
    write(image, "top left", marker, size)
    assert find_text(image) == ()


def test_a_real_ultrasound_frame_gives_up_its_hospital() -> None:
    frame = pydicom.dcmread(str(get_testdata_file("examples_rgb_color.dcm"))).pixel_array
    hospital = Box(7, 12, 81, 20)  # "BAPTIST MED CTR"
    assert covered(hospital, find_text(Image.fromarray(frame))) > 0.9


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 3), (13, 40)])
def test_images_too_small_for_text_have_none(size: tuple[int, int]) -> None:
    assert find_text(Image.new("L", size, 128)) == ()


def word(text: str, confidence: float, *, line: str = "1", box: Box | None = None) -> Word:
    return Word((line,), box or Box(0, 0, 8 * len(text), 12), confidence, text)


def test_one_sure_word_takes_its_line_with_it_but_not_the_projection() -> None:
    line = [word("AP", 96), word("Smith", 90), word("J", 12), word("xyz", 3)]
    assert identifying(line) == [line[1].box, line[2].box, line[3].box]


def test_a_name_with_a_caret_counts_though_tesseract_is_not_sure() -> None:
    assert len(identifying([word("DOE“", 0), word("JANE", 0)])) == 2


@pytest.mark.parametrize(
    "unlikely",
    [
        word("NO", 81),
        word("ex:", 38),
        word("—.", 95),
        word("Smith", 96, box=Box(0, 0, 40, 4)),
        word("Smith", 96, box=Box(0, 0, 30, 200)),
        word("it", 96, box=Box(0, 0, 300, 12)),
    ],
)
def test_what_anatomy_is_misread_as_does_not_count(unlikely: Word) -> None:
    assert identifying([unlikely]) == []


def test_a_marker_shields_its_place_in_the_other_polarity_and_a_lone_letter_does_not() -> None:
    place = Box(0, 0, 60, 12)
    hole = [word("rect", 88, box=Box(1, 0, 59, 12))]
    assert ocr._unless_marked(hole, [word("ERECT", 95, box=place)]) == []
    assert ocr._unless_marked(hole, [word("L", 95, box=place)]) == hole
    assert ocr._unless_marked(hole, [word("ERECT", 20, box=place)]) == hole
    assert ocr._unless_marked(hole, [word("Erich", 95, box=place)]) == hole


def test_a_word_does_not_show_itself() -> None:
    assert "Smith" not in repr(word("Smith", 96))


@settings(deadline=None)  # the first call warms up
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 9, 13, 25]))
def test_strokes_are_what_a_top_hat_by_pillows_rank_filters_leaves(seed: int, reach: int) -> None:
    rng = np.random.default_rng(seed)
    plane = rng.integers(0, 256, (rng.integers(1, 40), rng.integers(1, 40))).astype(np.uint8)
    padded = np.pad(plane, reach, mode="edge")
    eroded = Image.fromarray(padded).filter(ImageFilter.MinFilter(reach))
    opened = np.asarray(eroded.filter(ImageFilter.MaxFilter(reach)))
    hat = (padded - np.minimum(padded, opened))[reach:-reach, reach:-reach]
    floor = max(40, 3 * float(np.median(hat)))
    expected = np.clip(255 - (hat.astype(int) - floor) * 2, 0, 255).astype(np.uint8)
    assert np.array_equal(strokes(plane, reach), expected)


@given(st.integers(0, 2**32 - 1))
def test_a_whole_box_holds_the_word_and_stays_in_the_image(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ink = rng.random((rng.integers(2, 50), rng.integers(2, 50))) < 0.2
    left, top = rng.integers(0, ink.shape[1] - 1), rng.integers(0, ink.shape[0] - 1)
    box = Box(
        left, top, rng.integers(left + 1, ink.shape[1] + 1), rng.integers(top + 1, ink.shape[0] + 1)
    )
    grown = whole(box, ink)
    assert grown.within((ink.shape[1], ink.shape[0])) == grown
    assert box.within((grown.right, grown.bottom)) == box, "its right and bottom are not beyond"
    assert (grown.left, grown.top) <= (box.left, box.top)
    assert grown.top <= box.top


def test_no_language_data_stops_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "TESSDATA", ("/nowhere",))
    monkeypatch.delenv("TESSDATA_PREFIX", raising=False)
    ocr._engine.cache_clear()
    try:
        with pytest.raises(Unavailable) as refusal:
            find_text(chest(64))
    finally:
        ocr._engine.cache_clear()
    assert refusal.value.code == "ocr_unavailable"


def test_a_reading_that_takes_too_long_stops_the_image() -> None:
    image = chest(2048)
    for corner in ("top left", "top right", "bottom left", "bottom right"):
        write(image, corner, "Okonkwo, Ngozi MRN 00481516", 40)
    with pytest.raises(Unavailable) as refusal:
        find_text(image, timeout_s=0.002)
    assert refusal.value.code == "ocr_unavailable"
    assert find_text(image), "the next reading is not harmed"
