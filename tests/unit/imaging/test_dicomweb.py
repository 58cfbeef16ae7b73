"""Instances from a PACS: a real Orthanc, and servers that only say they are one."""

from __future__ import annotations

import io
import logging
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import trustme
from pydicom.data import get_testdata_file
from pydicom.uid import JPEGBaseline8Bit, generate_uid

from serve.errors import (
    ApiError,
    BadRequest,
    NotFound,
    SourceUnavailable,
    TooLarge,
    UnusableImage,
)
from serve.imaging.fetch import Fetcher
from serve.imaging.sources import Instance
from serve.settings import Dicomweb, Fetch, Imaging
from tests.orthanc import Orthanc, orthanc
from tests.unit.imaging.hosts import Answer, dripping_head, host, raw, respond, silence, stream

PARAM = "messages.0.content.0.image_url.url"
CT = Path(str(get_testdata_file("CT_small.dcm")))
CINE = Path(str(get_testdata_file("examples_ybr_color.dcm")))
# Not to be seen again in any message or log line.
PLANTED = Instance("1.2.77001", "1.2.77002", "1.2.77003")


@pytest.fixture(scope="module")
def pacs() -> Iterator[Orthanc]:
    with orthanc() as running:
        keep(running, CT, CINE)
        yield running


def keep(pacs: Orthanc, *paths: Path) -> None:
    for path in paths:
        pacs.store(path.read_bytes())


@asynccontextmanager
async def reader(
    pacs: Orthanc, fetch: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Fetcher]:
    credentials = {"username": pacs.username, "password": pacs.password}
    dicomweb = Dicomweb(**{"url": pacs.dicomweb} | credentials | settings)
    made = Fetcher(Imaging(dicomweb=dicomweb, fetch=Fetch(**(fetch or {}))))
    try:
        yield made
    finally:
        await made.aclose()


def named(dataset: pydicom.Dataset) -> Instance:
    return Instance(dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID)


def large(side: int) -> bytes:
    """CT_small with ``side`` x ``side`` pixels of 16 bits, as an instance of its own."""
    dataset = pydicom.dcmread(CT)
    dataset.Rows = dataset.Columns = side
    noise = np.random.default_rng(0).integers(0, 4096, (side, side), dtype=np.uint16)
    dataset.PixelData = noise.tobytes()
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


async def test_an_instance_comes_with_its_pixels(pacs: Orthanc) -> None:
    stored = pydicom.dcmread(CT)
    async with reader(pacs) as images:
        found = pydicom.dcmread(io.BytesIO(await images.get(named(stored), param=PARAM)))
    assert found.SOPInstanceUID == stored.SOPInstanceUID
    assert np.array_equal(found.pixel_array, stored.pixel_array)


async def test_a_compressed_multi_frame_comes_as_it_is_stored(pacs: Orthanc) -> None:
    stored = pydicom.dcmread(CINE)
    async with reader(pacs) as images:
        found = pydicom.dcmread(io.BytesIO(await images.get(named(stored), param=PARAM)))
    assert found.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    assert found.NumberOfFrames == 30
    assert found.PixelData == stored.PixelData


async def test_a_slash_behind_the_root_changes_nothing(pacs: Orthanc) -> None:
    async with reader(pacs, url=f"{pacs.dicomweb}/") as images:
        assert await images.get(named(pydicom.dcmread(CT)), param=PARAM)


@pytest.mark.parametrize("part", ["study", "series", "instance"])
async def test_an_unknown_instance_is_not_found(pacs: Orthanc, part: str) -> None:
    known = named(pydicom.dcmread(CT))
    unknown = {"study": known.study, "series": known.series, "instance": known.instance}
    async with reader(pacs) as images:
        with pytest.raises(NotFound) as missing:
            await images.get(Instance(**unknown | {part: "1.2.3.4"}), param=PARAM)
    assert (missing.value.code, missing.value.param) == ("image_not_found", PARAM)


@pytest.mark.parametrize(
    "credentials",
    [
        {"password": "wrong"},
        {"username": "nobody"},
        {"username": None, "password": None},
        {"username": None, "password": None, "token": "wrong"},
    ],
)
async def test_refused_credentials_are_for_the_operator_to_see(
    pacs: Orthanc, credentials: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with reader(pacs, **credentials) as images:
        with pytest.raises(SourceUnavailable) as failed:
            await images.get(named(pydicom.dcmread(CT)), param=PARAM)
    assert failed.value.code == "image_source_unavailable"
    assert "credential" not in failed.value.message
    logged = [(record.name, record.message) for record in caplog.records]
    assert ("llava_med", "The PACS: refuses our credentials (401)") in logged
    assert "wrong" not in caplog.text


async def test_an_instance_over_the_limit_is_refused_and_the_next_one_comes(pacs: Orthanc) -> None:
    dicom = large(1000)
    pacs.store(dicom)
    big = named(pydicom.dcmread(io.BytesIO(dicom), stop_before_pixels=True))
    async with reader(pacs, {"max_bytes": 1_000_000}) as images:
        with pytest.raises(TooLarge):
            await images.get(big, param=PARAM)
        assert await images.get(named(pydicom.dcmread(CT)), param=PARAM)


async def test_a_pacs_that_stops_is_unavailable(caplog: pytest.LogCaptureFixture) -> None:
    source = named(pydicom.dcmread(CT))
    with orthanc() as pacs:
        keep(pacs, CT)
        async with reader(pacs) as images:
            assert await images.get(source, param=PARAM)
            pacs.stop()
            for _ in range(2):  # with a connection from before, and without
                with pytest.raises(SourceUnavailable) as failed:
                    await images.get(source, param=PARAM)
    assert failed.value.headers()["retry-after"]
    assert "The PACS: no answer" in caplog.text


# What never reaches a PACS


@pytest.mark.parametrize(
    "uid", ["..", ".", "1..2", ".1", "1.", "", "1" * 65, "1/2", "1%2e", "１", "1\n"]
)
@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_uid_that_could_climb_in_a_path_is_refused(uid: str, place: int) -> None:
    uids = ["1.2", "1.3", "1.4"]
    uids[place] = uid
    async with host(respond(b"")) as server:
        pacs = Imaging(dicomweb=Dicomweb(url=f"http://127.0.0.1:{server.port}/deep/root"))
        with pytest.raises(BadRequest) as refused:
            await Fetcher(pacs).get(Instance(*uids), param=PARAM)
        assert server.connections == 0
    assert refused.value.code == "invalid_image_url"


async def test_without_a_pacs_a_reference_is_refused() -> None:
    with pytest.raises(BadRequest) as refused:
        await Fetcher(Imaging()).get(PLANTED, param=PARAM)
    assert (refused.value.code, refused.value.param) == ("invalid_image_url", PARAM)


@pytest.mark.parametrize(
    "settings",
    [
        {"username": "u"},
        {"password": "p"},
        {"username": "u:v", "password": "p"},
        {"username": "u", "password": "p", "token": "t"},
        {"password": "p", "token": "t"},
    ],
)
def test_credentials_that_cannot_be_meant_so_stop_the_start(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^imaging\.dicomweb"):
        Fetcher(Imaging(dicomweb=Dicomweb(url="http://pacs.example", **settings)))


# Servers that say they are a PACS


async def ask(answer: Answer, tls: ssl.SSLContext | None = None, **settings: Any) -> Any:
    """What a fetch from such a server gives, and what was asked of it."""
    bounds = {"max_bytes": 100_000, "timeout_s": 5.0} | settings.pop("fetch", {})
    async with host(answer, tls) as server:
        url = f"{'http' if tls is None else 'https'}://localhost:{server.port}/dicom-web"
        pacs = Imaging(dicomweb=Dicomweb(url=url, **settings), fetch=Fetch(**bounds))
        images = Fetcher(pacs)
        try:
            return await images.get(PLANTED, param=PARAM), server.requests
        finally:
            await images.aclose()


TYPE = 'Content-Type: multipart/related; type="application/dicom"; boundary=B'
PART = b"--B\r\nContent-Type: application/dicom\r\n\r\n"
END = b"\r\n--B--\r\n"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (PART + b"DICM" + END, b"DICM"),
        (PART + b"" + END, b""),
        (PART + b"a\r\n--b\r\n--\r\n" * 30_000 + END, None),
        (PART + b"a\r\n--b\r\n--\r\n" * 5000 + END, b"a\r\n--b\r\n--\r\n" * 5000),
        (b"preamble\r\n" + PART + b"DICM\r\n--B--", b"DICM"),
        (b"--B\r\nContent-Length: 9\r\n\r\nab\r\n--B\r\n" + END, b"ab\r\n--B\r\n"),
        (b"--B\r\nContent-Encoding: gzip\r\n\r\nDICM" + END, b"DICM"),
    ],
)
async def test_the_one_part_is_taken_as_it_is(body: bytes, found: bytes | None) -> None:
    if found is None:
        with pytest.raises(TooLarge):
            await ask(respond(body, TYPE))
        return
    assert (await ask(respond(body, TYPE)))[0] == found
    assert (await ask(stream(b"", TYPE, end=body)))[0] == found


async def test_the_standard_says_what_is_asked() -> None:
    _, requests = await ask(
        respond(PART + END, TYPE), username="ü", password="p:w", fetch={"timeout_s": 5}
    )
    lines = requests[0].split("\r\n")
    path = "/dicom-web/studies/1.2.77001/series/1.2.77002/instances/1.2.77003"
    assert lines[0] == f"GET {path} HTTP/1.1"
    assert 'Accept: multipart/related; type="application/dicom"; transfer-syntax=*' in lines
    assert "Authorization: Basic w7w6cDp3" in lines  # RFC 7617, in UTF-8
    _, requests = await ask(respond(PART + END, TYPE), token="secret")
    assert "Authorization: Bearer secret" in requests[0].split("\r\n")


UNUSABLE = [
    pytest.param(respond(b"", "Location: /77003", status=302), id="redirect"),
    pytest.param(respond(b"", status=204), id="no content"),
    pytest.param(respond(b"", status=406), id="does not like what we accept"),
    pytest.param(respond(b"", status=500), id="error"),
    pytest.param(respond(b"DICM", "Content-Type: application/dicom"), id="no multipart"),
    pytest.param(respond(b"DICM"), id="no type"),
    pytest.param(respond(PART + END, "Content-Type: multipart/related"), id="no boundary"),
    pytest.param(
        respond(b"", f"Content-Type: multipart/related; boundary={'B' * 71}"), id="long boundary"
    ),
    pytest.param(respond(b"", TYPE), id="nothing"),
    pytest.param(respond(b"--B--\r\n", TYPE), id="no part"),
    pytest.param(respond(PART + b"a\r\n" + PART + b"b" + END, TYPE), id="two parts"),
    pytest.param(
        respond(b"--B\r\nContent-Type: multipart/mixed; boundary=C\r\n\r\n--C--" + END, TYPE),
        id="parts in a part",
    ),
    pytest.param(respond(PART + b"DICM", TYPE), id="no end"),
    pytest.param(respond(b"77003" * 5000, TYPE), id="no beginning"),
    pytest.param(
        respond(b"--B\r\nContent-Length: 9999\r\n\r\nab" + END, TYPE), id="length beyond the end"
    ),
    pytest.param(respond(b"--B\r\nContent-Length: 1\r\n\r\nab" + END, TYPE), id="length too short"),
    pytest.param(respond(b"--B\r\nContent-Length: -1\r\n\r\nab" + END, TYPE), id="length below 0"),
    pytest.param(respond(b"--B\r\n\x00:\r\n\r\nab" + END, TYPE), id="no header"),
    pytest.param(respond(b"--B\r\n" + b"X: y\r\n" * 5000 + END, TYPE), id="too many headers"),
    pytest.param(
        respond(b"--B\r\nX: " + b"y" * 90_000 + b"\r\n\r\nab" + END, TYPE), id="a huge header"
    ),
    pytest.param(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"), id="cut short"),
    pytest.param(raw(b"77003\r\n\r\n"), id="no http"),
]


@pytest.mark.parametrize("answer", UNUSABLE)
async def test_an_answer_outside_the_standard_is_told_to_the_operator_without_uids(
    answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(SourceUnavailable) as failed:
        await ask(answer)
    assert any(each.name == "llava_med" for each in caplog.records)
    told = failed.value.message + caplog.text
    assert "7700" not in told
    assert "localhost" not in told
    assert "dicom-web" not in told


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(respond(PART + b"x" * 100_001 + END, TYPE), id="a length over the limit"),
        pytest.param(stream(b"x" * 5000, TYPE, start=PART), id="no end"),
        pytest.param(
            stream(b"", TYPE, end=b"--B\r\nContent-Length: 999999999999\r\n\r\n"),
            id="a huge part announced",
        ),
    ],
)
async def test_too_many_bytes_are_not_waited_for(answer: Answer) -> None:
    start = time.monotonic()
    with pytest.raises(TooLarge):
        await ask(answer)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(silence, id="no answer"),
        pytest.param(dripping_head, id="headers without end"),
        pytest.param(stream(b"x", TYPE, start=PART, pause=0.05), id="a byte a moment"),
        pytest.param(stream(b"x\r\n" * 999, TYPE), id="a preamble without end"),
    ],
)
async def test_slowness_ends_at_the_time_limit(answer: Answer) -> None:
    start = time.monotonic()
    with pytest.raises(SourceUnavailable):
        await ask(answer, fetch={"timeout_s": 0.5})
    assert 0.4 < time.monotonic() - start < 3


async def test_what_follows_the_last_boundary_is_not_waited_for() -> None:
    endless = stream(b"x\r\n", TYPE, start=PART + b"DICM" + END, pause=0.01)
    assert (await ask(endless))[0] == b"DICM"


async def test_a_body_in_a_content_encoding_is_not_unpacked() -> None:
    with pytest.raises(UnusableImage):
        await ask(respond(PART + END, TYPE, "Content-Encoding: gzip"))


async def test_no_error_of_the_fetch_has_a_uid(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for answer in (
        respond(b"", status=404),
        respond(b"", status=401),
        respond(PART + b"x" * 100_001 + END, TYPE),
        respond(PART + END, TYPE, "Content-Encoding: gzip", "Set-Cookie: 77003(=1"),
        silence,
    ):
        with pytest.raises(ApiError) as failed:
            await ask(answer, fetch={"timeout_s": 0.3})
        assert "7700" not in failed.value.message
    assert "7700" not in caplog.text


async def test_a_pacs_by_https_shows_a_certificate_of_the_given_ca(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(tls)
    for ca, trusted in ((authority, True), (other, False)):
        path = tmp_path / f"{trusted}.pem"
        ca.cert_pem.write_to_path(path)
        if trusted:
            found, _ = await ask(respond(PART + b"DICM" + END, TYPE), tls, ca_file=path)
            assert found == b"DICM"
        else:
            with pytest.raises(SourceUnavailable):
                await ask(respond(PART + END, TYPE), tls, ca_file=path)
