"""Our pictures against dcmtk's: every image file that pydicom ships, and what those lack.

dcmtk truncates to 8 bits where we round. So its 8 bits may be one below ours; and its 16 bits,
rounded, must be ours exactly.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from serve.errors import ApiError
from serve.imaging.decoders import DECODED_BY
from serve.imaging.sources import Wanted
from serve.imaging.square import with_square_pixels
from serve.imaging.windows import PRESETS
from tests import dcmtk
from tests.dicoms import dicom

pytestmark = pytest.mark.skipif(
    not dcmtk.available() and "CI" not in os.environ, reason="dcmtk is not installed"
)

# Refused by us: and by dcmtk, but for one whose number of frames it overlooks.
REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "MR_truncated.dcm",
    "badVR.dcm",
    "meta_missing_tsyntax.dcm",
    "nested_priv_SQ.dcm",
}
OVERLOOKED = {"badVR.dcm"}
# Shown by us alone.
ALONE = {"SC_rgb_jpeg.dcm", "GDCMJ2K_TextGBR.dcm"}
# Further apart than 1 in 8 bits; and, rounded from 16 bits, than 0. Each has its own test below.
FURTHER = {
    "liver_1frame.dcm": 127,
    "liver_expb_1frame.dcm": 127,
    "rtdose_expb.dcm": 254,
    "rtdose_expb_1frame.dcm": 248,
}
CUT_TO_WHOLE = {f"dicomdirtests/77654033/{name}" for name in ("CR1/6154", "CR2/6247", "CR3/6278")}

RAMP = np.arange(-1024, 3072, dtype=np.int16).reshape(64, 64)
COUNTS = np.arange(4096, dtype=np.uint16).reshape(64, 64)
BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
COLOURS = np.stack([BYTES, BYTES.T, BYTES[::-1]], axis=-1)
TWELVE: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
WINDOW: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}


def test_dcmtk_is_installed_where_ci_runs() -> None:
    assert dcmtk.available()


# --- the files that pydicom ships -----------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "image_file" in metafunc.fixturenames:
        files = dcmtk.image_files() if dcmtk.available() else []
        names = [path.relative_to(dcmtk.FILES).as_posix() for path in files]
        metafunc.parametrize("image_file", files, ids=names)


def test_a_file_is_shown_as_dcmtk_shows_it(image_file: Path) -> None:
    found = dcmtk.compare(image_file)
    name = found.name
    assert found.ours == (name not in REFUSED)
    assert found.theirs == (name not in (REFUSED - OVERLOOKED) | ALONE)
    if found.ours and found.theirs:
        assert found.largest is not None
        assert found.largest == FURTHER.get(name, found.largest)
        assert found.largest <= FURTHER.get(name, 1)
        if name not in FURTHER:
            assert found.rounded in ((1,) if name in CUT_TO_WHOLE else (0, None))


def test_every_remark_is_about_a_file_that_is_there() -> None:
    names = {path.relative_to(dcmtk.FILES).as_posix() for path in dcmtk.image_files()}
    assert names >= {*dcmtk.REMARKS, *REFUSED, *ALONE, *FURTHER, *CUT_TO_WHOLE}
    assert dcmtk.REMARKS.keys() >= {*REFUSED, *ALONE, *FURTHER, *CUT_TO_WHOLE}


def test_the_other_files_are_no_images_and_refused() -> None:
    images = set(dcmtk.image_files())
    others = [path for path in dcmtk.FILES.rglob("*") if path.is_file() and path not in images]
    assert len(others) > 20
    for path in others:
        with pytest.raises(ApiError):
            dcmtk.ours(path)


def test_the_table_in_the_docs_is_current() -> None:
    text = dcmtk.DOCS.read_text()
    told = re.search(r"Made with dcmtk (\d+\.\d+\.\d+)", text)
    assert told
    if told[1] != dcmtk.version():
        pytest.skip("another version of dcmtk than the table is of")
    assert dcmtk.table() in text


# --- the exceptions, one by one -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # pydicom's, of damaged headers
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_refused_file_is_unusable_for_pydicom_too(name: str) -> None:
    with pytest.raises((ValueError, RuntimeError, AttributeError)):
        pixel_array(dcmtk.FILES / name)


@pytest.mark.parametrize("name", ["liver_1frame.dcm", "liver_expb_1frame.dcm"])
def test_a_bit_is_white_where_dcmtk_fills_up_with_zeros(name: str) -> None:
    path = dcmtk.FILES / name
    mine, theirs = np.asarray(dcmtk.ours(path).image), dcmtk.theirs(path, ["-W"])
    assert np.array_equal(mine == 255, theirs == 128)
    assert np.array_equal(mine == 0, theirs == 0)
    assert set(np.unique(mine)) == {0, 255}


@pytest.mark.parametrize("name", ["rtdose_expb.dcm", "rtdose_expb_1frame.dcm"])
def test_big_endian_32_bit_values_equal_their_twin_and_dcmtk_swaps_their_halves(
    name: str, tmp_path: Path
) -> None:
    big, twin = dcmtk.FILES / name, dcmtk.FILES / name.replace("_expb", "")
    shown = np.asarray(dcmtk.ours(big).image)
    assert np.array_equal(shown, np.asarray(dcmtk.ours(twin).image))
    swapped = pydicom.dcmread(twin)
    halves = np.frombuffer(swapped.PixelData, "<u2").reshape(-1, 2)
    swapped.PixelData = np.ascontiguousarray(halves[:, ::-1]).tobytes()
    path = tmp_path / "swapped.dcm"
    swapped.save_as(path)
    assert np.array_equal(dcmtk.theirs(path, ["+Wm"]), dcmtk.theirs(big, ["+Wm"]))
    assert dcmtk.apart(dcmtk.ours(path), big)[2] == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(CUT_TO_WHOLE))
def test_a_broken_slope_is_cut_to_whole_numbers_by_dcmtk_alone(name: str) -> None:
    path = dcmtk.FILES / name
    header = pydicom.dcmread(path)
    rescaled = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
    left = header.WindowCenter - 0.5 - (header.WindowWidth - 1) / 2
    for values, shown in (
        (np.trunc(rescaled), dcmtk.theirs(path, ["+Wi", "1"], deep=True).astype(float)),
        (rescaled, np.asarray(dcmtk.ours(path).image) * 257.0),
    ):
        exact = 65535 * (1 - ((values - left) / (header.WindowWidth - 1)).clip(0, 1))
        limit = (1 if values is not rescaled else 257 / 2) + 1e-6
        assert np.abs(exact - shown).max() <= limit


def test_a_file_that_dcmtk_cannot_read_equals_its_decompressed_twin() -> None:
    twin = dcmtk.theirs(dcmtk.FILES / "SC_rgb_jpeg_dcmd.dcm")
    assert np.array_equal(np.asarray(dcmtk.ours(dcmtk.FILES / "SC_rgb_jpeg.dcm").image), twin)


def test_a_file_that_pillow_cannot_read_equals_pylibjpegs() -> None:
    pytest.importorskip("openjpeg")
    path = dcmtk.FILES / "GDCMJ2K_TextGBR.dcm"
    expected = pixel_array(path, decoding_plugin="pylibjpeg")
    assert np.array_equal(np.asarray(dcmtk.ours(path).image), expected)


def test_jpeg_2000_equals_its_twin_that_was_never_compressed() -> None:
    path = dcmtk.FILES / "MR_small_jp2klossless.dcm"
    assert dcmtk.apart(dcmtk.ours(path), dcmtk.FILES / "MR_small.dcm")[2] == 0


@pytest.mark.filterwarnings("ignore")  # pydicom's, of just that
def test_the_markers_of_a_jpeg_are_believed_where_the_header_says_otherwise(tmp_path: Path) -> None:
    # A JFIF marker stands for YBR; dicom() says RGB unless told.
    mine = np.asarray(dcmtk.ours(_file(tmp_path, COLOURS, uid.JPEGBaseline8Bit)).image)
    right = {"PhotometricInterpretation": "YBR_FULL"}
    assert np.array_equal(
        mine, dcmtk.theirs(_file(tmp_path, COLOURS, uid.JPEGBaseline8Bit, **right))
    )


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.RLELossless])
def test_ybr_is_converted_more_exactly_than_by_dcmtk(syntax: uid.UID, tmp_path: Path) -> None:
    ybr = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    path = _file(tmp_path, ybr, syntax, PhotometricInterpretation="YBR_FULL", Modality="US")
    y, cb, cr = (
        channel - offset for channel, offset in zip(ybr.T * 1.0, (0, 128, 128), strict=True)
    )
    exact = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    exact = exact.clip(0, 255).T
    assert np.abs(np.asarray(dcmtk.ours(path).image) - exact).max() <= 0.5 + 1e-4
    assert 1 < np.abs(dcmtk.theirs(path) - exact).max() < 2
    assert dcmtk.apart(dcmtk.ours(path), path)[0] == 2


def test_padding_is_black_and_out_of_the_range_where_dcmtk_shows_its_value(tmp_path: Path) -> None:
    pixels = np.where(COUNTS < 1000, np.uint16(4095), COUNTS // 2)
    path = _file(tmp_path, pixels, Modality="CR", PixelPaddingValue=4095, **TWELVE)
    mine = np.asarray(dcmtk.ours(path).image)
    inside = pixels < 4095
    low, high = int(pixels[inside].min()), int(pixels[inside].max())
    # The window that is lowest to highest: LINEAR, of that many values, around their middle.
    options = ["+Ww", str((low + high + 1) / 2), str(high - low + 1)]
    bounds = dcmtk.rounded(dcmtk.theirs(path, options, deep=True))
    assert np.all((bounds[0] <= mine) & (mine <= bounds[1]) | ~inside)
    assert not mine[~inside].any()
    assert np.all(dcmtk.theirs(path, options)[~inside] == 255)


# --- what pydicom's files lack --------------------------------------------------------------------


def _file(folder: Path, pixels: np.ndarray, syntax: uid.UID | None = None, **more: Any) -> Path:
    path = folder / "made.dcm"
    path.write_bytes(dicom(pixels, syntax or uid.ExplicitVRLittleEndian, **more))
    return path


def _lut(first: int, bits: int, entries: np.ndarray) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries.astype(np.uint16).tolist())
    return item


CURVE = _lut(1000, 12, np.arange(1000) ** 2 // 250)
BACKWARDS = _lut(0, 16, np.arange(4096)[::-1])
GREY = {
    "VOI LUT, 12 bits": (COUNTS, {"VOILUTSequence": [CURVE], **TWELVE}),
    "VOI LUT, 8 bits": (COUNTS, {"VOILUTSequence": [_lut(0, 8, COUNTS.ravel() // 16)], **TWELVE}),
    "VOI LUT, 16 bits": (COUNTS, {"VOILUTSequence": [_lut(0, 16, COUNTS.ravel() * 16)], **TWELVE}),
    "VOI LUT from below zero": (RAMP, {"VOILUTSequence": [_lut(-1024, 12, COUNTS.ravel())]}),
    "VOI LUT after a rescale": (
        COUNTS, {"RescaleSlope": 2, "RescaleIntercept": 0, "VOILUTSequence": [CURVE], **TWELVE},
    ),
    "Modality LUT": (COUNTS, {"ModalityLUTSequence": [BACKWARDS], **WINDOW, **TWELVE}),
    "Modality LUT shorter than the values": (
        COUNTS, {"ModalityLUTSequence": [_lut(100, 12, np.arange(3000))], **WINDOW, **TWELVE},
    ),
    "Modality LUT, VOI LUT": (
        COUNTS, {"ModalityLUTSequence": [BACKWARDS], "VOILUTSequence": [CURVE], **TWELVE},
    ),
    "SIGMOID": (RAMP, {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "SIGMOID"}),
    "LINEAR_EXACT": (
        RAMP, {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"},
    ),
    "a window of one": (RAMP, {"WindowCenter": 40, "WindowWidth": 1}),
    "a window of fractions": (RAMP, {"WindowCenter": 40.5, "WindowWidth": 80.25}),
    "a falling rescale": (
        COUNTS, {"RescaleSlope": -2, "RescaleIntercept": 1000, **WINDOW, **TWELVE},
    ),
    "a CT without a window": (RAMP, {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -9}),
    "MONOCHROME1": (COUNTS, {"PhotometricInterpretation": "MONOCHROME1", **WINDOW, **TWELVE}),
    "MONOCHROME1, INVERSE": (
        COUNTS,
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE", **WINDOW},
    ),
    "MONOCHROME1, IDENTITY": (
        COUNTS,
        {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "IDENTITY", **WINDOW},
    ),
    "MONOCHROME2, IDENTITY": (COUNTS, {"PresentationLUTShape": "IDENTITY", **WINDOW}),
    "MONOCHROME2, INVERSE": (COUNTS, {"PresentationLUTShape": "INVERSE", **WINDOW}),
    "MONOCHROME1, bytes": (BYTES, {"PhotometricInterpretation": "MONOCHROME1"}),
    "MONOCHROME1, no window": (COUNTS, {"PhotometricInterpretation": "MONOCHROME1", **TWELVE}),
    "signed, 8 bits": (BYTES.view(np.int8), {}),
    "signed, 8 bits, window": (BYTES.view(np.int8), {"WindowCenter": 0, "WindowWidth": 100}),
    "signed, 12 bits": (RAMP // 2, TWELVE),
    "a high bit elsewhere": (COUNTS << 4 | 7, {"BitsStored": 12, "HighBit": 15}),
    "overlays in unused bits": (COUNTS | 1 << 15, {**WINDOW, **TWELVE}),
    "bytes with a rescale": (BYTES, {"RescaleSlope": 2, "RescaleIntercept": 0}),
    "one value": (COUNTS * 0 + 7, TWELVE),
    "32 bits": (COUNTS.astype(np.uint32) * 1000003, {}),
}  # fmt: skip


@pytest.mark.parametrize(("pixels", "attributes"), GREY.values(), ids=GREY.keys())
def test_grey_is_dcmtks(pixels: np.ndarray, attributes: dict[str, Any], tmp_path: Path) -> None:
    path = _file(tmp_path, pixels, **{"Modality": "MR", **attributes})
    largest, _, rounded = dcmtk.apart(dcmtk.ours(path), path)
    assert largest <= 1
    assert rounded in (0, None)


@pytest.mark.parametrize(
    "wanted",
    [Wanted(window="2"), Wanted(center=100, width=50), *(Wanted(window=name) for name in PRESETS)],
    ids=lambda wanted: wanted.window or "center and width",
)
def test_a_window_of_the_request_is_dcmtks(wanted: Wanted, tmp_path: Path) -> None:
    two = {"WindowCenter": [0, -600], "WindowWidth": [1, 1500]}
    path = _file(tmp_path, RAMP, **two, RescaleSlope=1, RescaleIntercept=0)
    rendered = dcmtk.ours(path, wanted)
    assert rendered.windowing is not None
    center, width = rendered.windowing.center, rendered.windowing.width
    assert center is not None
    assert width is not None
    if wanted.center is not None:
        center, width = center + 0.5, width + 1  # LINEAR_EXACT
    options = ["+Wi", "2"] if wanted.window == "2" else ["+Ww", str(center), str(width)]
    low, high = dcmtk.rounded(dcmtk.theirs(path, options, deep=True))
    shown = np.asarray(rendered.image)
    assert np.all((low <= shown) & (shown <= high))


def test_bits_are_stretched_to_white_where_dcmtk_fills_up_with_zeros(tmp_path: Path) -> None:
    path = _file(tmp_path, BYTES & 63, BitsStored=6, HighBit=5, Modality="OT")
    assert np.array_equal(dcmtk.theirs(path, ["-W"]), (BYTES & 63) << 2)
    assert np.array_equal(
        np.asarray(dcmtk.ours(path).image), np.floor((BYTES & 63) * (255 / 63) + 0.5)
    )


TABLE = np.arange(256, dtype=np.uint16) * 257
PALETTE = {
    f"{colour}PaletteColorLookupTable{part}": value
    for colour, table in (("Red", TABLE), ("Green", TABLE[::-1]), ("Blue", TABLE // 2))
    for part, value in (("Descriptor", [256, 0, 16]), ("Data", table.tobytes()))
}


@pytest.mark.parametrize(
    ("pixels", "attributes"),
    [
        (COLOURS.astype(np.uint16) * 257, {}),
        (COLOURS.astype(np.uint16) * 16, TWELVE),
        (BYTES, {"PhotometricInterpretation": "PALETTE COLOR", **PALETTE}),
    ],
    ids=["RGB, 16 bits", "RGB, 12 bits", "PALETTE COLOR, 16 bits"],
)
def test_colours_are_dcmtks(pixels: np.ndarray, attributes: dict[str, Any], tmp_path: Path) -> None:
    path = _file(tmp_path, pixels, Modality="OT", **attributes)
    assert dcmtk.apart(dcmtk.ours(path), path)[0] <= 1


HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
KINDS: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
    "12 bits": (COUNTS, TWELVE),
    "8 bits": (BYTES, {}),
    "RGB": (COLOURS, {}),
    "signed": (RAMP, {}),
    "signed, 13 bits": (RAMP, {"BitsStored": 13, "HighBit": 12}),
}
# What a syntax can hold, where that is not everything. JPEG-LS knows no sign: near the change of
# sign, a loss of one is one of 65,535.
HOLDS = {
    uid.JPEGBaseline8Bit: ("8 bits", "RGB"),
    uid.JPEGExtended12Bit: ("12 bits",),
    uid.JPEGLSNearLossless: ("12 bits", "8 bits", "RGB"),
}
PAIRS = [(uid.UID(syntax), kind) for syntax in DECODED_BY for kind in HOLDS.get(syntax, KINDS)]


@pytest.mark.parametrize(
    ("syntax", "kind"), PAIRS, ids=[f"{syntax.keyword}, {kind}" for syntax, kind in PAIRS]
)
def test_every_transfer_syntax_is_dcmtks(syntax: uid.UID, kind: str, tmp_path: Path) -> None:
    pixels, attributes = KINDS[kind]
    if syntax == uid.JPEGBaseline8Bit and kind == "RGB":
        attributes = {"PhotometricInterpretation": "YBR_FULL"}  # as the encoder stores it
    rendered = dcmtk.ours(_file(tmp_path, pixels, syntax, Modality="MR", **attributes))
    # dcmtk has no HTJ2K, nor has Pillow; lossless as they are here, the native twin is the same.
    twin = uid.ExplicitVRLittleEndian if syntax in HTJ2K else syntax
    path = _file(tmp_path, pixels, twin, Modality="MR", **attributes)
    largest, _, rounded = dcmtk.apart(rendered, path)
    assert largest <= 1
    assert rounded in (0, None)


def test_a_picture_of_pixels_that_are_not_square_has_dcmtks_shape(tmp_path: Path) -> None:
    y, x = np.mgrid[:60, :80]
    smooth = (127 + 120 * np.sin(x / 9) * np.cos(y / 7)).astype(np.uint8)
    for spacing, option in (([2.0, 1.0], ["+Sxv", "80"]), ([1.0, 2.0], ["+Syv", "60"])):
        path = _file(tmp_path, smooth, Modality="OT", PixelSpacing=spacing)
        rendered = dcmtk.ours(path)
        shown = with_square_pixels(rendered.image, rendered.aspect, max_pixels=1 << 20)
        expected = dcmtk.theirs(path, ["-W", "+a", "+i", "4", *option])
        assert np.asarray(shown).shape == expected.shape
        assert np.abs(np.asarray(shown).astype(int) - expected).mean() < 2
