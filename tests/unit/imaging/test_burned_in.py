"""What happens to an image whose pixels may say who the patient is: rules, decisions, masks."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from pydantic import ValidationError
from pydicom.data import get_testdata_file
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.sequence import Sequence

from serve.errors import UnusableImage
from serve.imaging import ocr
from serve.imaging.burned_in import RULES, BurnedIn, Evidence, handle, rules_table, suspects
from serve.imaging.regions import Box, KnownRegion, scan_regions
from serve.phantom.draw import Phantom, draw

CLEAN: dict[str, Any] = {
    "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",  # digital X-ray, for presentation
    "Modality": "DX",
    "ImageType": ["ORIGINAL", "PRIMARY"],
    "SeriesDescription": "Chest PA",
}
SECOND_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"


def header(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in {**CLEAN, **values}.items():
        setattr(dataset, keyword, value)
    return dataset


def ultrasound(*regions: tuple[int, int, int, int], **values: Any) -> Dataset:
    items = []
    for corners in regions:
        item = Dataset()
        for keyword, value in zip(("MinX0", "MinY0", "MaxX1", "MaxY1"), corners, strict=True):
            setattr(item, f"RegionLocation{keyword}", value)
        items.append(item)
    return header(Modality="US", SequenceOfUltrasoundRegions=Sequence(items), **values)


def scan(mode: str = "L", *, named: bool = False) -> Image.Image:
    """A drawn chest, with or without a patient's name beside it."""
    image = draw(Phantom(), 1).resize((512, 512)).convert(mode)
    if named:
        brush, font = ImageDraw.Draw(image), ImageFont.load_default(20)
        brush.text((8, 6), "Okonkwo, Ngozi", 255 if mode == "L" else "white", font)
        brush.text((8, 480), "MRN 00481516", 255 if mode == "L" else "white", font)
    return image


def run(image: Image.Image, of: Dataset | None, action: Any, **options: Any) -> Any:
    """What ``handle`` did, in one word, and the image it left."""
    try:
        left, done = handle(image, of, action=action, **{"ocr": False, **options})
    except UnusableImage as refusal:
        assert refusal.code == "burned_in_annotation"
        return "refused", None
    return done.action, left


# -- the header's rules


@pytest.mark.parametrize(
    ("values", "evidence"),
    [
        ({"BurnedInAnnotation": "YES"}, Evidence.DECLARED),
        ({"RecognizableVisualFeatures": "YES"}, Evidence.FACE),
        ({"SOPClassUID": SECOND_CAPTURE}, Evidence.SECONDARY_CAPTURE),
        ({"SOPClassUID": SECOND_CAPTURE + ".4"}, Evidence.SECONDARY_CAPTURE),
        ({"SOPClassUID": "1.2.840.10008.5.1.1.30"}, Evidence.SECONDARY_CAPTURE),
        ({"SecondaryCaptureDeviceManufacturer": "X"}, Evidence.CAPTURE_DEVICE),
        ({"DateOfSecondaryCapture": ""}, Evidence.CAPTURE_DEVICE),
        ({"ConversionType": "WSD"}, Evidence.CONVERTED),
        ({"ConversionType": "DF"}, Evidence.DIGITISED_FILM),
        ({"DetectorType": "FILM"}, Evidence.DIGITISED_FILM),
        ({"Modality": "RG"}, Evidence.DIGITISED_FILM),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, Evidence.SCREEN_SAVE),
        ({"SeriesDescription": "Screen Save"}, Evidence.SCREEN_SAVE),
        ({"SeriesDescription": "screenshot 3"}, Evidence.SCREEN_SAVE),
        ({"SeriesDescription": "Dose Report"}, Evidence.REPORT_PAGE),
        ({"ImageType": ["DERIVED", "SECONDARY", "DOSE_INFO"]}, Evidence.REPORT_PAGE),
        ({"SeriesDescription": "Patient Protocol"}, Evidence.REPORT_PAGE),
        ({"Modality": "US"}, Evidence.WRITING_MODALITY),
        ({"Modality": "US "}, Evidence.WRITING_MODALITY),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.3.1"}, Evidence.WRITING_MODALITY),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.4"}, Evidence.WRITING_MODALITY),
        ({"Modality": "XA", "ImageType": ["DERIVED", "PRIMARY"]}, Evidence.DERIVED_FLUOROSCOPY),
    ],
)
def test_each_rule_speaks_up(values: dict[str, Any], evidence: Evidence) -> None:
    assert suspects(header(**values)) == (evidence,)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"BurnedInAnnotation": "NO"},
        {"ConversionType": "SYN"},
        {"SeriesDescription": "Screening mammogram"},
        {"Modality": "RF"},
        {"ImageType": None, "SeriesDescription": None, "Modality": None, "SOPClassUID": None},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4", "Modality": "SEG"},
    ],
)
def test_clean_headers_are_not_suspected(values: dict[str, Any]) -> None:
    assert suspects(header(**values)) == ()


def test_a_no_does_not_outweigh_another_rule() -> None:
    assert suspects(header(BurnedInAnnotation="NO", Modality="US")) == (Evidence.WRITING_MODALITY,)


def test_a_png_has_no_header_to_suspect() -> None:
    assert suspects(None) == ()


def test_a_value_nobody_can_read_counts_against_the_image() -> None:
    class Unreadable(Dataset):
        def get(self, *_: Any, **__: Any) -> Any:
            raise ValueError

    everything_that_reads = {rule.evidence for rule in RULES} - {
        Evidence.TEXT_FOUND,
        Evidence.CAPTURE_DEVICE,  # is about presence
    }
    assert set(suspects(Unreadable())) == everything_that_reads


@given(
    st.sampled_from(
        ["BurnedInAnnotation", "ImageType", "SeriesDescription", "Modality", "SOPClassUID"]
    ),
    st.one_of(st.none(), st.text(), st.binary(), st.integers(), st.lists(st.text())),
)
def test_no_value_breaks_the_rules(keyword: str, value: Any) -> None:
    dataset = header()
    tag = pydicom.datadict.tag_for_keyword(keyword)
    assert tag is not None
    dataset[tag] = DataElement(tag, "UN", b"")
    dataset[tag]._value = value
    assert set(suspects(dataset)) <= set(Evidence)


def test_the_table_has_a_row_for_every_kind_of_evidence_and_each_says_what_it_means() -> None:
    assert [rule.evidence for rule in RULES] == list(Evidence)
    lines = rules_table().splitlines()
    assert len(lines) == 2 + len(Evidence)
    assert {line.count("|") for line in lines} == {5}
    assert all(evidence.meaning for evidence in Evidence)


def test_a_refusal_names_the_evidence_and_nothing_of_the_image() -> None:
    secret = header(BurnedInAnnotation="YES", SeriesDescription="Okonkwo SAVE", PatientID="4711")
    with pytest.raises(UnusableImage) as refusal:
        handle(scan(), secret, action="refuse", ocr=False)
    assert refusal.value.status == 422
    assert "declared, screen_save" in refusal.value.message
    assert "Okonkwo" not in refusal.value.message
    assert "4711" not in refusal.value.message


# -- the decision table: action, suspected, region known, OCR, text in the pixels -> outcome

OUTCOMES = {
    # refuse: any evidence
    **{("refuse", True, *rest): "refused" for rest in product((False, True), repeat=3)},
    ("refuse", False, False, False, False): "none",
    ("refuse", False, False, False, True): "none",
    ("refuse", False, False, True, False): "none",
    ("refuse", False, False, True, True): "refused",
    # mask: what is known, and what is read
    ("mask", True, False, False, False): "refused",
    ("mask", True, False, False, True): "refused",
    ("mask", True, False, True, False): "flagged",
    ("mask", True, False, True, True): "masked",
    **{("mask", True, True, *rest): "masked" for rest in product((False, True), repeat=2)},
    ("mask", False, False, False, False): "none",
    ("mask", False, False, False, True): "none",
    ("mask", False, False, True, False): "none",
    ("mask", False, False, True, True): "masked",
    # flag: nothing is touched
    **{("flag", True, *rest): "flagged" for rest in product((False, True), repeat=3)},
    ("flag", False, False, False, False): "none",
    ("flag", False, False, False, True): "none",
    ("flag", False, False, True, False): "none",
    ("flag", False, False, True, True): "flagged",
}


@pytest.mark.parametrize("case", OUTCOMES, ids=str)
def test_the_decision_table(case: tuple[str, bool, bool, bool, bool]) -> None:
    action, suspected, known, with_ocr, text = case
    image = scan(named=text)
    before = image.tobytes()
    of = header(BurnedInAnnotation="YES") if suspected else header()
    regions = (KnownRegion(modality="DX", boxes=(Box(0, 0, 300, 40),)),) if known else ()
    outcome, left = run(image, of, action, ocr=with_ocr, known=regions)
    assert outcome == OUTCOMES[case]
    assert image.tobytes() == before, "the image that came in is not changed"
    if outcome in ("none", "flagged"):
        assert left is image
    if outcome == "masked" and with_ocr:
        assert ocr.find_text(left) == ()


@pytest.mark.parametrize("with_ocr", [False, True])
def test_a_face_is_not_masked_but_refused(with_ocr: bool) -> None:
    face = header(RecognizableVisualFeatures="YES")
    known = (KnownRegion(modality="DX", boxes=(Box(0, 0, 9, 9),)),)
    assert run(scan(), face, "mask", ocr=with_ocr, known=known)[0] == "refused"
    assert run(scan(), face, "flag", ocr=with_ocr)[0] == "flagged"


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_png_with_a_name_leaves_without_it(mode: str) -> None:
    left, done = handle(scan(mode, named=True), None, action="mask", ocr=True)
    assert done.action == "masked"
    assert done.evidence == (Evidence.TEXT_FOUND,)
    assert done.boxes >= 2
    assert left.mode == mode
    assert ocr.find_text(left) == ()
    untouched = np.asarray(left)[60:440] == np.asarray(scan(mode))[60:440]
    assert untouched.all(), "the anatomy between is as it was"


def test_masking_leaves_the_side_marker() -> None:
    image = scan(named=True)
    ImageDraw.Draw(image).text((470, 6), "L", 255, ImageFont.load_default(30))
    left, done = handle(image, None, action="mask", ocr=True)
    assert done.action == "masked"
    marker = (465, 0, 512, 45)
    assert left.crop(marker).tobytes() == image.crop(marker).tobytes()


def test_what_stays_legible_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr, "find_text", lambda *_, **__: (Box(0, 0, 1, 1),))
    assert run(scan(), None, "mask", ocr=True)[0] == "refused"


@pytest.mark.parametrize(
    "name", ["examples_jpeg2k.dcm", "examples_rgb_color.dcm", "examples_ybr_color.dcm"]
)
def test_real_ultrasound_frames_leave_without_legible_text(name: str) -> None:
    dataset = pydicom.dcmread(str(get_testdata_file(name)))
    frame = pixel_array(dataset, index=0)
    left, done = handle(Image.fromarray(frame), dataset, action="mask", ocr=True)
    assert done.action == "masked"
    assert ocr.find_text(left) == ()


# -- regions


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_all_outside_of_the_scan_regions_is_black_and_all_inside_is_as_it_was(mode: str) -> None:
    image = scan(mode)
    left, done = handle(
        image,
        ultrasound((10, 50, 200, 300), (190, 20, 400, 90)),
        action="mask",
        ocr=False,
    )
    assert done == BurnedIn((Evidence.WRITING_MODALITY,), "masked", 1)
    inside = np.zeros((512, 512), bool)
    inside[50:301, 10:201] = inside[20:91, 190:401] = True
    assert np.array_equal(np.asarray(left)[inside], np.asarray(image)[inside])
    assert not np.asarray(left)[~inside].any()


@pytest.mark.parametrize(
    "regions",
    [
        [(0, 0, 511, 511)],  # leaves nothing outside
        [(0, 0, 511, 509)],
        [(10, 10, 900, 400)],  # calibrated for another matrix
        [(300, 300, 200, 400)],
        [(10, 10, 200, 200), (2**31 - 1, 0, 2**31 - 1, 9)],
        [(600, 600, 700, 700)],
        [],
    ],
)
def test_regions_that_cannot_be_right_do_not_count_as_known(regions: list[Any]) -> None:
    assert run(scan(), ultrasound(*regions), "mask")[0] == "refused"


def test_a_region_that_ends_at_the_matrix_size_is_forgiven() -> None:
    assert scan_regions(ultrasound((120, 60, 512, 512)), (512, 512)) == (Box(120, 60, 512, 512),)


@pytest.mark.parametrize("value", [None, "x", [1, 2]])
def test_a_malformed_region_makes_all_of_them_unknown(value: Any) -> None:
    dataset = ultrasound((1, 1, 100, 100), (1, 1, 50, 50))
    dataset.SequenceOfUltrasoundRegions[1]["RegionLocationMaxX1"]._value = value
    assert scan_regions(dataset, (512, 512)) == ()


@given(
    st.lists(st.tuples(*[st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 40)] * 4), max_size=4),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_scan_regions_always_lie_in_the_image(
    regions: list[tuple[int, int, int, int]], size: tuple[int, int]
) -> None:
    dataset = ultrasound(*[(0, 0, 0, 0)] * len(regions))
    for item, corners in zip(dataset.SequenceOfUltrasoundRegions, regions, strict=True):
        for element, corner in zip(item, corners, strict=True):
            element._value = corner  # as a hostile file has it: pydicom checks what is set
    for box in scan_regions(dataset, size):
        assert box.within(size) == box


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({"modality": "US"}, True),
        ({"modality": "us", "manufacturer": "acme"}, True),
        ({"model": "scan 3"}, True),
        ({"rows": 512, "columns": 512}, True),
        ({"modality": "CT"}, False),
        ({"manufacturer": "other"}, False),
        ({"modality": "US", "model": "Scan 4"}, False),
        ({"modality": "US", "rows": 480}, False),
    ],
)
def test_a_known_region_is_for_the_devices_it_names(fields: Any, matches: bool) -> None:
    of = header(Modality="US", Manufacturer="ACME Medical", ManufacturerModelName="Scan 3000")
    region = KnownRegion(boxes=((0, 0, 50, 512),), **fields)
    outcome, left = run(scan(), of, "mask", known=(region,))
    assert outcome == ("masked" if matches else "refused")
    if left is not None:
        assert not np.asarray(left)[:, :50].any()
        assert np.array_equal(np.asarray(left)[:, 50:], np.asarray(scan())[:, 50:])


def test_a_known_region_by_size_alone_is_for_png_too() -> None:
    of_size = KnownRegion(rows=512, columns=512, boxes=(Box(0, 0, 9999, 20),))
    outcome, left = run(scan(), None, "mask", known=(of_size,))
    assert outcome == "masked"
    assert not np.asarray(left)[:20].any()


@pytest.mark.parametrize(
    "fields",
    [
        {"boxes": [(0, 0, 1, 1)]},
        {"modality": None, "boxes": [(0, 0, 1, 1)]},
        {"modality": "US", "boxes": []},
        {"modality": "US", "boxes": [(5, 0, 5, 1)]},
        {"modality": "US", "boxes": [(-1, 0, 5, 1)]},
        {"modality": "US", "boxes": [(0, 0, 1)]},
        {"modality": "US", "boxes": [(0, 0, 1, 1)], "vendor": "x"},
        {"manufacturer": "", "boxes": [(0, 0, 1, 1)]},
    ],
)
def test_a_known_region_that_says_nothing_is_no_setting(fields: Any) -> None:
    with pytest.raises(ValidationError):
        KnownRegion(**fields)
