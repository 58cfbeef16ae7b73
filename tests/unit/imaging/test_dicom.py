"""DICOM to 8-bit pixels, against the formulas of the standard."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from serve.errors import ApiError, BadRequest, TooLarge, UnsupportedMedia, UnusableImage
from serve.imaging import dicom as dicom_intake
from serve.imaging.dicom import Rendered
from serve.imaging.sources import Wanted
from serve.imaging.windows import PRESETS
from tests.dicoms import dicom, written

RAMP = np.arange(-1024, 3072, dtype=np.int16).reshape(64, 64)
COUNTS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
HOUNSFIELD: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": 0}
COLOURS = np.stack([BYTES, BYTES.T, BYTES[::-1]], axis=-1)

LOSSLESS = [
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
    uid.RLELossless,
    uid.JPEGLossless,
    uid.JPEGLosslessSV1,
    uid.JPEGLSLossless,
    uid.JPEG2000Lossless,
    uid.HTJ2KLossless,
    uid.HTJ2KLosslessRPCL,
    uid.HTJ2K,
]


def render(data: bytes, **wanted: Any) -> Rendered:
    return dicom_intake.opened(data, max_pixels=1 << 20, max_frames=100).render(Wanted(**wanted))


def grey(data: bytes, **wanted: Any) -> np.ndarray:
    image = render(data, **wanted).image
    assert image.mode == "L"
    return np.asarray(image)


def linear(values: np.ndarray, center: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, to the letter, rounded to bytes."""
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    shown = ((values - (center - 0.5)) / (width - 1) + 0.5) * 255
    return np.floor(np.where(values <= low, 0, np.where(values > high, 255, shown)) + 0.5)


# --- transfer syntaxes ----------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda syntax: syntax.keyword)
@pytest.mark.parametrize(
    ("pixels", "attributes"),
    [
        (COUNTS, {"BitsStored": 12, "HighBit": 11}),
        (RAMP, {}),
        (RAMP, {"BitsStored": 13, "HighBit": 12}),
        (BYTES, {}),
        (COLOURS, {}),
    ],
    ids=["12 bits", "signed", "signed, 13 bits", "8 bits", "RGB"],
)
def test_the_same_pixels_are_the_same_in_every_lossless_syntax(
    syntax: uid.UID, pixels: np.ndarray, attributes: dict[str, Any]
) -> None:
    reference = render(dicom(pixels, Modality="MR", **attributes)).image
    image = render(dicom(pixels, syntax, Modality="MR", **attributes)).image
    assert image.mode == reference.mode
    assert np.array_equal(np.asarray(image), np.asarray(reference))


@pytest.mark.parametrize(
    ("syntax", "pixels", "tolerance"),
    [
        (uid.JPEGBaseline8Bit, BYTES, 8),
        (uid.JPEGExtended12Bit, COUNTS, 3),
        (uid.JPEGLSNearLossless, BYTES, 2),
        (uid.JPEG2000, BYTES, 4),
    ],
    ids=lambda value: getattr(value, "keyword", ""),
)
def test_lossy_syntaxes_lose_little(syntax: uid.UID, pixels: np.ndarray, tolerance: int) -> None:
    bits = {"BitsStored": 12, "HighBit": 11} if pixels is COUNTS else {}
    smooth = np.sort(pixels.reshape(-1)).reshape(pixels.shape)
    reference = grey(dicom(smooth, Modality="MR", **bits)).astype(int)
    assert abs(grey(dicom(smooth, syntax, Modality="MR", **bits)) - reference).max() <= tolerance


def test_overlays_in_unused_bits_are_not_seen() -> None:
    marked = COUNTS | (1 << 15)
    attributes = {"BitsStored": 12, "HighBit": 11, "WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(grey(dicom(marked, **attributes)), grey(dicom(COUNTS, **attributes)))


def test_a_high_bit_elsewhere_is_honoured() -> None:
    shifted = COUNTS << 4 | 7
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    assert np.array_equal(
        grey(dicom(shifted, BitsStored=12, HighBit=15, **window)),
        grey(dicom(COUNTS, BitsStored=12, HighBit=11, **window)),
    )


def test_an_overlay_plane_is_left_out() -> None:
    data = dicom(BYTES)
    dataset = pydicom.dcmread(BytesIO(data))
    dataset.add_new(0x60000010, "US", 16)
    dataset.add_new(0x60000011, "US", 16)
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60000050, "SS", [1, 1])
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60000102, "US", 0)
    dataset.add_new(0x60003000, "OW", b"\xff" * 32)
    assert np.array_equal(grey(written(dataset)), grey(data))


# --- grey: modality, VOI, presentation ------------------------------------------------------------


@pytest.mark.parametrize(("center", "width"), [(40, 400), (-600, 1500), (40.5, 80), (0, 1), (1, 2)])
def test_a_window_is_the_standards(center: float, width: float) -> None:
    data = dicom(RAMP, **HOUNSFIELD, WindowCenter=center, WindowWidth=width)
    expected = (
        linear(RAMP.astype(float), center, width) if width > 1 else 255 * (center - 0.5 < RAMP)
    )
    assert np.array_equal(grey(data), expected)


def test_linear_exact_is_the_standards() -> None:
    data = dicom(RAMP, WindowCenter=40, WindowWidth=400, VOILUTFunction="LINEAR_EXACT")
    expected = np.floor(255 * ((RAMP - 40.0) / 400 + 0.5).clip(0, 1) + 0.5)
    assert np.array_equal(grey(data), expected)


def test_sigmoid_is_the_standards() -> None:
    data = dicom(RAMP, WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID")
    expected = np.floor(255 / (1 + np.exp(-4 * (RAMP - 40.0) / 400)) + 0.5)
    assert np.array_equal(grey(data), expected)


def test_rescale_comes_before_the_window() -> None:
    data = dicom(COUNTS, RescaleSlope=2, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    assert np.array_equal(grey(data), linear(COUNTS * 2.0 - 1024, 40, 400))


def test_of_several_windows_the_first_is_used_and_the_request_may_choose_another() -> None:
    data = dicom(RAMP, WindowCenter=[40, -600], WindowWidth=[400, 1500])
    assert np.array_equal(grey(data), linear(RAMP.astype(float), 40, 400))
    assert np.array_equal(grey(data, window="2"), linear(RAMP.astype(float), -600, 1500))
    with pytest.raises(BadRequest):
        grey(data, window="3")


@pytest.mark.parametrize("name", PRESETS)
def test_a_window_by_name_wins_over_the_files(name: str) -> None:
    data = dicom(RAMP, **HOUNSFIELD, WindowCenter=1, WindowWidth=2)
    assert np.array_equal(grey(data, window=name), linear(RAMP.astype(float), *PRESETS[name]))
    assert render(data, window=name).windowing.origin == "request"


def test_a_window_by_name_is_for_ct_alone() -> None:
    with pytest.raises(BadRequest) as caught:
        render(dicom(COUNTS, Modality="CR"), window="lung")
    assert caught.value.code == "invalid_image_parameter"


def test_a_window_by_numbers_is_taken_as_is() -> None:
    data = dicom(RAMP, Modality="MR", WindowCenter=1, WindowWidth=2)
    expected = np.floor(255 * ((RAMP - 100.0) / 50 + 0.5).clip(0, 1) + 0.5)
    assert np.array_equal(grey(data, center=100, width=50), expected)


def test_a_ct_without_a_window_gets_the_mediastinal_one() -> None:
    rendered = render(dicom(RAMP, **HOUNSFIELD))
    assert np.array_equal(np.asarray(rendered.image), linear(RAMP.astype(float), 40, 400))
    assert rendered.windowing.origin == "default"


@pytest.mark.parametrize("modality", ["MR", "CR", "DX", "PT", "NM"])
def test_others_without_a_window_are_shown_from_lowest_to_highest(modality: str) -> None:
    shown = grey(dicom(COUNTS + 100, Modality=modality, BitsStored=14, HighBit=13))
    assert (shown.min(), shown.max()) == (0, 255)
    assert np.all(np.diff(shown.reshape(-1).astype(int)) >= 0)


def test_bytes_without_a_window_are_shown_as_they_are() -> None:
    narrow = np.full((8, 8), 100, np.uint8)
    narrow[0, 0] = 101
    assert np.array_equal(grey(dicom(narrow, Modality="OT")), narrow)


@pytest.mark.parametrize(
    ("center", "width"), [("nan", "400"), ("40", "0"), ("40", "-5"), ("", ""), ("40", None)]
)
def test_an_impossible_window_of_the_file_is_none(center: str, width: str | None) -> None:
    odd = {"WindowCenter": "1234", "WindowWidth": "1234" if width is not None else None}
    data = dicom(COUNTS, Modality="MR", **{k: v for k, v in odd.items() if v})
    data = data.replace(b"1234", center.encode().ljust(4), 1)
    data = data.replace(b"1234", (width or "").encode().ljust(4), 1)
    assert render(data).windowing.origin == "default"


def _lut(first: int, bits: int, entries: np.ndarray) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries.tolist())
    return item


def test_a_voi_lut_is_looked_up_and_clamped_at_both_ends() -> None:
    entries = (np.arange(1000) ** 2 // 250).astype(np.uint16)
    data = dicom(COUNTS, Modality="CR", VOILUTSequence=[_lut(1000, 12, entries)])
    index = np.clip(COUNTS.astype(int) - 1000, 0, 999)
    assert np.array_equal(grey(data), np.floor(255.0 * entries[index] / 4095 + 0.5))


def test_a_voi_lut_of_bytes_with_many_entries_is_looked_up() -> None:
    entries = (np.arange(4096) // 16).astype(np.uint16)
    data = dicom(COUNTS, Modality="CR", VOILUTSequence=[_lut(0, 8, entries)])
    assert np.array_equal(grey(data), COUNTS // 16)


def test_a_modality_lut_comes_before_the_window() -> None:
    entries = np.arange(4096, dtype=np.uint16)[::-1]
    lut = _lut(0, 16, entries)
    data = dicom(COUNTS, ModalityLUTSequence=[lut], WindowCenter=2048, WindowWidth=4096)
    assert np.array_equal(grey(data), linear(4095.0 - COUNTS, 2048, 4096))


def test_a_lut_that_begins_below_zero_is_looked_up() -> None:
    lut = _lut(-1024, 12, np.arange(4096, dtype=np.uint16))
    assert np.array_equal(
        grey(dicom(RAMP, Modality="MR", VOILUTSequence=[lut])),
        np.floor(255 * (RAMP + 1024.0) / 4095 + 0.5),
    )


def test_monochrome1_is_its_twin_in_monochrome2_the_other_way_round() -> None:
    window = {"Modality": "DX", "WindowCenter": 2048, "WindowWidth": 4096}
    twin = dicom(COUNTS, PhotometricInterpretation="MONOCHROME1", **window)
    assert np.array_equal(grey(twin).astype(int), 255 - grey(dicom(COUNTS, **window)).astype(int))


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
def test_the_presentation_lut_shape_says_it_once(
    photometric: str, shape: str | None, inverted: bool
) -> None:
    more = {"PresentationLUTShape": shape} if shape else {}
    shown = grey(dicom(BYTES, PhotometricInterpretation=photometric, Modality="DX", **more))
    assert np.array_equal(shown, 255 - BYTES if inverted else BYTES)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count_for_the_range(photometric: str) -> None:
    padded = COUNTS[:, :32] + np.uint16(1000)
    padded[:8] = 65535
    data = dicom(
        padded, Modality="CR", PhotometricInterpretation=photometric, PixelPaddingValue=65535
    )
    shown = grey(data)
    assert not shown[:8].any()
    assert (shown[8:].min(), shown[8:].max()) == (0, 255)


def test_padding_may_be_a_range() -> None:
    data = dicom(COUNTS, Modality="CR", PixelPaddingValue=0, PixelPaddingRangeLimit=2047)
    assert not grey(data)[:32].any()
    assert grey(data)[33:].all()


@given(
    slope=st.floats(-8, 8).filter(lambda value: abs(value) > 1e-3),
    intercept=st.floats(-5000, 5000),
    center=st.floats(-3000, 3000),
    width=st.floats(2, 6000),
    bits=st.integers(9, 16),
)
@settings(max_examples=60, deadline=None)
def test_the_table_does_what_the_formula_does(
    slope: float, intercept: float, center: float, width: float, bits: int
) -> None:
    slope, intercept, center, width = (round(v, 4) for v in (slope, intercept, center, width))
    pixels = COUNTS & np.uint16((1 << bits) - 1)
    data = dicom(
        pixels, Modality="MR", BitsStored=bits, HighBit=bits - 1, RescaleSlope=slope,
        RescaleIntercept=intercept, WindowCenter=center, WindowWidth=width,
    )  # fmt: skip
    assert np.array_equal(grey(data), linear(pixels * slope + intercept, center, width))


# --- frames, enhanced, geometry, colour -----------------------------------------------------------

FRAMES = np.stack([np.full((8, 8, 1), 10 * n, np.uint8) for n in range(1, 6)])


@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless, uid.JPEGLSLossless]
)
def test_the_first_frame_is_the_default_and_any_can_be_asked_for(syntax: uid.UID) -> None:
    data = dicom(FRAMES, syntax, Modality="US")
    assert np.all(grey(data) == 10)
    assert np.all(grey(data, frame=4) == 40)
    assert (render(data).frame, render(data).frames) == (1, 5)
    with pytest.raises(BadRequest):
        render(data, frame=6)


def test_the_representative_frame_is_the_default_where_a_file_names_one() -> None:
    assert np.all(grey(dicom(FRAMES, RepresentativeFrameNumber=3, Modality="US")) == 30)
    assert np.all(grey(dicom(FRAMES, RepresentativeFrameNumber=30, Modality="US")) == 10)


def _group(name: str, **attributes: Any) -> Dataset:
    groups, item = Dataset(), Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    setattr(groups, name, [item])
    return groups


def test_an_enhanced_file_has_its_rescale_and_windows_by_frame() -> None:
    frames = np.stack([RAMP[..., None]] * 2)
    shared = _group("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=10)
    per_frame = [
        _group("FrameVOILUTSequence", WindowCenter=center, WindowWidth=400) for center in (0, 500)
    ]
    data = dicom(
        frames,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=per_frame,
    )
    for number, center in ((1, 0), (2, 500)):
        assert np.array_equal(grey(data, frame=number), linear(RAMP * 2.0 + 10, center, 400))


@pytest.mark.parametrize(
    ("attributes", "aspect"),
    [
        ({}, 1),
        ({"PixelSpacing": [2.0, 1.0]}, 2),
        ({"ImagerPixelSpacing": [1.0, 2.0]}, 0.5),
        ({"PixelAspectRatio": [3, 2]}, 1.5),
        ({"PixelSpacing": [1.0, 1.0], "PixelAspectRatio": [3, 2]}, 1),
        ({"PixelSpacing": [0.0, 1.0]}, 1),
        ({"PixelAspectRatio": [1000, 1]}, 1),
    ],
)
def test_the_shape_of_a_pixel_is_read(attributes: dict[str, Any], aspect: float) -> None:
    assert render(dicom(COUNTS, **attributes)).aspect == aspect


def test_a_palette_is_looked_up() -> None:
    tables = [np.arange(256, dtype=np.uint16)[::step] << 8 for step in (1, -1)]
    data = dicom(
        BYTES,
        PhotometricInterpretation="PALETTE COLOR",
        RedPaletteColorLookupTableDescriptor=[256, 0, 16],
        GreenPaletteColorLookupTableDescriptor=[256, 0, 16],
        BluePaletteColorLookupTableDescriptor=[256, 0, 16],
        RedPaletteColorLookupTableData=tables[0].tobytes(),
        GreenPaletteColorLookupTableData=tables[1].tobytes(),
        BluePaletteColorLookupTableData=tables[0].tobytes(),
    )
    shown = np.asarray(render(data).image)
    assert abs(shown[..., 0].astype(int) - BYTES).max() <= 1
    assert abs(shown[..., 1].astype(int) - (255 - BYTES)).max() <= 1


def test_sixteen_bit_colour_keeps_its_range() -> None:
    deep = COLOURS.astype(np.uint16) * 257
    assert np.array_equal(np.asarray(render(dicom(deep)).image), COLOURS)


def test_a_window_is_refused_for_colours() -> None:
    with pytest.raises(BadRequest):
        render(dicom(COLOURS), center=1, width=2)


@pytest.mark.parametrize("name", ["examples_rgb_color.dcm", "examples_ybr_color.dcm"])
def test_colours_are_pydicoms(name: str) -> None:
    path = str(get_testdata_file(name))
    expected = pydicom.pixels.pixel_array(path, index=0)
    shown = np.asarray(render(Path(path).read_bytes()).image).astype(int)
    # pydicom decodes to YBR and converts after; the decoder rounds once, as dcmtk does.
    assert abs(shown - expected).max() <= 3


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["test-SR.dcm", "rtplan.dcm", "reportsi.dcm", "waveform_ecg.dcm", "DICOMDIR"]
)
def test_what_is_no_image_is_refused(name: str) -> None:
    data = Path(str(get_testdata_file(name))).read_bytes()
    with pytest.raises(UnusableImage) as caught:
        render(data)
    assert caught.value.code == "not_an_image"


def test_a_file_that_ends_before_its_pixels_is_damaged_and_no_report() -> None:
    data = dicom(COUNTS)
    with pytest.raises(UnusableImage) as caught:
        render(data[: data.index(b"\xe0\x7f\x10\x00")])
    assert caught.value.code == "unusable_image"


def _changed(data: bytes, **attributes: Any) -> bytes:
    dataset = pydicom.dcmread(BytesIO(data))
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return written(dataset)


@pytest.mark.parametrize(
    ("attributes", "error"),
    [
        ({"Rows": 20_000, "Columns": 20_000}, TooLarge),
        ({"Rows": 0}, UnusableImage),
        ({"Columns": 0}, UnusableImage),
        ({"Rows": 65}, UnusableImage),
        ({"NumberOfFrames": 2}, UnusableImage),
        ({"NumberOfFrames": 101}, TooLarge),
        ({"NumberOfFrames": -1}, UnusableImage),
        ({"SamplesPerPixel": 2}, UnusableImage),
        ({"SamplesPerPixel": 3}, UnusableImage),
        ({"BitsAllocated": 12}, UnusableImage),
        ({"BitsStored": 0}, UnusableImage),
        ({"BitsStored": 17}, UnusableImage),
        ({"HighBit": 40}, UnusableImage),
        ({"PhotometricInterpretation": "CMYK"}, UnsupportedMedia),
        ({"PhotometricInterpretation": "RGB"}, UnsupportedMedia),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, UnusableImage),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, UnusableImage),
        ({"PixelData": None}, UnusableImage),
        ({"PixelData": b""}, UnusableImage),
        ({"Rows": None}, UnusableImage),
        ({"ModalityLUTSequence": [Dataset()]}, UnusableImage),
    ],
)
def test_a_header_that_lies_is_refused(attributes: dict[str, Any], error: type[ApiError]) -> None:
    with pytest.raises(error):
        render(_changed(dicom(COUNTS), **attributes))


@pytest.mark.parametrize("value", [b"NAN", b"INF", b"1e999", b"abcd"])
def test_a_rescale_that_is_no_number_is_refused(value: bytes) -> None:
    data = dicom(COUNTS, RescaleSlope="12345", RescaleIntercept="0")
    with pytest.raises(UnusableImage):
        render(data.replace(b"12345", value.ljust(5)))


@pytest.mark.parametrize("syntax", [uid.JPEGLosslessSV1, uid.JPEG2000Lossless, uid.JPEGLSLossless])
def test_a_codestream_of_another_size_is_refused_undecoded(syntax: uid.UID) -> None:
    with pytest.raises(UnusableImage):
        render(_changed(dicom(np.zeros((512, 512), np.uint16), syntax), Rows=4, Columns=4))


@pytest.mark.parametrize(
    "syntax",
    ["1.2.840.113619.5.2", uid.MPEG2MPML, uid.HEVCMP51, "1.2.840.10008.1.2.4.94", "1.2.3.4.5"],
)
def test_private_and_moving_transfer_syntaxes_are_refused(syntax: str) -> None:
    dataset = pydicom.dcmread(BytesIO(dicom(BYTES)))
    data = written(dataset)
    old = str(uid.ExplicitVRLittleEndian).encode() + b"\0"
    new = str(syntax).encode()
    new += b"\0" * (len(new) % 2)
    at = data.index(old)
    length = len(new).to_bytes(2, "little")
    data = data[: at - 2] + length + new + data[at + len(old) :]
    with pytest.raises(UnsupportedMedia) as caught:
        render(data)
    assert caught.value.code == "unsupported_transfer_syntax"


def test_a_deflated_bomb_is_refused_after_its_limit() -> None:
    bomb = dicom(np.zeros((8000, 8000), np.uint8), uid.DeflatedExplicitVRLittleEndian)
    assert len(bomb) < 100_000
    with pytest.raises(TooLarge):
        dicom_intake.opened(bomb, max_pixels=1 << 16, max_frames=100)


def test_a_sequence_nested_a_thousand_deep_is_refused() -> None:
    # Of undefined length, in the shared functional groups, which have to be read.
    begin = b"SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    nested = b"\x00\x52\x29\x92" + begin + (b"\x08\x00\x40\x11" + begin) * 1200
    data = dicom(BYTES)
    at = data.index(b"\xe0\x7f\x10\x00")
    with pytest.raises(UnusableImage):
        render(data[:at] + nested + data[at:])


def test_what_stands_before_and_after_the_file_is_of_no_effect() -> None:
    data = dicom(BYTES)
    assert np.array_equal(grey(b"MZ" + data[2:] + b"PK\x03\x04" * 100), grey(data))


def test_no_identifier_is_ever_read() -> None:
    header = render(dicom(COUNTS)).header
    assert {"PatientName", "PatientID", "StudyDate", "StudyInstanceUID"}.isdisjoint(
        element.keyword for element in header
    )
    assert not any(element.tag.is_private for element in header)
