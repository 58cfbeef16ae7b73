"""What the URL of an image part may be."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.body import whole
from serve.errors import ApiError, BadRequest, UnsupportedMedia
from serve.imaging import sources
from serve.imaging.sources import Inline, Instance, Remote, Source, Wanted

DATA = base64.b64encode(b"bytes").decode()


def parse(url: str, *, param: str) -> tuple[Source, Wanted]:
    return sources.parse(url, whole(b""), param=param)


def code(url: str) -> str:
    with pytest.raises(ApiError) as caught:
        parse(url, param="p")
    assert caught.value.param == "p"
    return caught.value.code


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg", "application/dicom"])
def test_a_data_url_is_its_type_and_its_bytes(media_type: str) -> None:
    assert parse(f"data:{media_type};base64,{DATA}", param="p") == (
        Inline(media_type, b"bytes"),
        Wanted(),
    )


def test_types_and_schemes_have_no_case() -> None:
    source, _ = parse(f"DATA:Image/PNG;BASE64,{DATA}", param="p")
    assert source == Inline("image/png", b"bytes")


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ("window=lung", Wanted(window="lung")),
        ("window=2", Wanted(window="2")),
        ("center=-600;width=1500", Wanted(center=-600, width=1500)),
        ("center=40.5;width=1e3", Wanted(center=40.5, width=1000)),
        ("frame=12;role=prior", Wanted(frame=12, role="prior")),
        ("role=current", Wanted(role="current")),
    ],
)
def test_parameters_say_what_is_wanted(parameters: str, wanted: Wanted) -> None:
    assert parse(f"data:application/dicom;{parameters};base64,{DATA}", param="p")[1] == wanted
    query = parameters.replace(";", "&")
    assert parse(f"dicomweb:1.2/1.3/1.4?{query}", param="p")[1] == wanted


@pytest.mark.parametrize(
    "parameters",
    [
        "window=belly", "window=0", "window=lung;window=lung", "center=40", "width=400",
        "center=nan;width=1", "center=1;width=0", "center=1;width=-1", "center=1;width=inf",
        "window=lung;center=1;width=2", "frame=0", "frame=-1", "frame=1.5", "frame=x",
        "frame=99999999999", "role=next", "name=x", "window=",
    ],
)  # fmt: skip
def test_other_parameters_are_refused(parameters: str) -> None:
    assert code(f"data:application/dicom;{parameters};base64,{DATA}") in (
        "invalid_image_parameter",
        "invalid_image_url",
    )


def test_a_reference_into_the_pacs_is_three_uids_and_perhaps_a_frame() -> None:
    source, wanted = parse("dicomweb:1.2.3/1.2.4/1.2.5/frames/7?window=bone", param="p")
    assert source == Instance("1.2.3", "1.2.4", "1.2.5")
    assert wanted == Wanted(frame=7, window="bone")


@pytest.mark.parametrize(
    "url",
    [
        "dicomweb:1.2/1.3", "dicomweb:1.2/1.3/1.4/", "dicomweb:1.2/1.3/1.4/frames/",
        "dicomweb:1.2/../1.4", "dicomweb:1.2/1.3/" + "1" * 65, "dicomweb://pacs/1.2/1.3/1.4",
        "dicomweb:1.2/1.3/1.4\n", "dicomweb:1.2/1.3/1.4#x", "dicomweb:1.2/1.3/1.4/frames/1,2",
    ],
)  # fmt: skip
def test_other_references_are_refused(url: str) -> None:
    if url == "dicomweb:1.2/../1.4":  # digits and dots: for the PACS client to refuse
        assert isinstance(parse(url, param="p")[0], Instance)
    else:
        assert code(url) == "invalid_image_url"


def test_a_frame_is_named_once() -> None:
    assert code("dicomweb:1.2/1.3/1.4/frames/7?frame=7") == "invalid_image_parameter"


def test_an_https_url_is_left_to_the_list_of_hosts() -> None:
    assert parse("https://host/a.png?x=1", param="p") == (
        Remote("https://host/a.png?x=1"),
        Wanted(),
    )


@pytest.mark.parametrize(
    "url",
    [
        "http://host/a.png", "file:///etc/passwd", "ftp://host/a", "", "a.png", "//host/a.png",
        "https://host/a b", "https://host/\n", "https://", " data:image/png;base64,AAAA",
        "data:image/png,AAAA", "data:image/png;base64", "data:;charset=x,AAAA", "data:,x",
    ],
)  # fmt: skip
def test_anything_else_is_refused(url: str) -> None:
    assert code(url) in ("invalid_image_url", "invalid_image_parameter")


@pytest.mark.parametrize(
    "media_type", ["image/gif", "image/tiff", "image/webp", "image/svg+xml", "text/html", ""]
)
def test_other_media_types_and_none_are_refused(media_type: str) -> None:
    with pytest.raises(UnsupportedMedia):
        parse(f"data:{media_type};base64,{DATA}", param="p")


@pytest.mark.parametrize(
    "text", ["!!!!", "abc", "ab=c", "YWJj\nYWJj", " YWJj", "YWJj ", "YW Jj", "=="]
)
def test_base64_with_white_space_or_errors_is_refused(text: str) -> None:
    assert code("data:image/png;base64," + text) == "invalid_base64"


@pytest.mark.parametrize("size", [786_433, 1_600_000, 3_000_000])
def test_long_base64_is_decoded_piece_by_piece_and_as_strictly(size: int) -> None:
    text = base64.b64encode(bytes(size)).decode()
    source, _ = parse(f"data:image/png;base64,{text}", param="p")
    assert source == Inline("image/png", bytes(size))
    for place in (1 << 20, 700_000):
        for bad in ("=", " ", "\n", "é"):
            wrong = text[: place - 1] + bad + text[place:]
            assert code(f"data:image/png;base64,{wrong}") == "invalid_base64"
    assert code(f"data:image/png;base64,{text[:-1]}") == "invalid_base64"


@given(st.text(max_size=200))
def test_no_text_makes_it_fall_over(text: str) -> None:
    for scheme in ("", "data:", "dicomweb:", "https:"):
        try:
            parse(f"{scheme}{text}planted", param="p")
        except (BadRequest, UnsupportedMedia) as error:
            assert "planted" not in error.message
