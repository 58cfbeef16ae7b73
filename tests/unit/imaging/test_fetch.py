"""Images from https hosts: a real TLS server on loopback, and hostile ones."""

from __future__ import annotations

import asyncio
import datetime as dt
import gzip
import logging
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from serve.errors import (
    ApiError,
    BadRequest,
    NotFound,
    SourceUnavailable,
    TooLarge,
    UnusableImage,
)
from serve.imaging.fetch import Fetcher
from serve.imaging.sources import Remote
from serve.settings import Fetch, Imaging
from tests.unit.imaging.hosts import (
    Answer,
    Host,
    dripping_head,
    head,
    host,
    raw,
    respond,
    silence,
    stream,
)

BODY = bytes(range(256)) * 9000  # more than two blocks
PARAM = "messages.0.content.0.image_url.url"
# Not to be seen again in any message or log line.
PLANTED = "/studies/PLANTED-7/x.png?name=PLANTED-8"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    return context(authority.issue_cert("localhost"))


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


def context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(made)
    return made


@asynccontextmanager
async def fetcher(**settings: Any) -> AsyncIterator[Fetcher]:
    made = Fetcher(Imaging(fetch=Fetch(**settings)))
    try:
        yield made
    finally:
        await made.aclose()


async def fetch(
    answer: Answer, tls: ssl.SSLContext | None, ca_file: Path, **settings: Any
) -> tuple[bytes, Host]:
    async with host(answer, tls) as server:
        settings = {"allowed_hosts": [f"localhost:{server.port}"], "private_addresses": True} | (
            settings
        )
        async with fetcher(ca_file=ca_file, **settings) as images:
            url = f"https://localhost:{server.port}{PLANTED}"
            return await images.get(Remote(url), param=PARAM), server


CHUNKED = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        pytest.param(respond(BODY), BODY, id="with a length"),
        pytest.param(stream(b"", end=BODY), BODY, id="to the end of the connection"),
        pytest.param(stream(b"", "Transfer-Encoding: chunked", end=CHUNKED), b"abcde", id="chunks"),
        pytest.param(respond(b""), b"", id="nothing"),
        pytest.param(respond(b"x", "Content-Encoding: identity"), b"x", id="coded as nothing"),
    ],
)
async def test_a_listed_hosts_bytes_come_as_they_are(
    answer: Answer, body: bytes, tls: ssl.SSLContext, ca_file: Path
) -> None:
    found, server = await fetch(answer, tls, ca_file)
    assert found == body
    assert server.requests[0].startswith(f"GET {PLANTED} HTTP/1.1\r\n")


async def test_a_request_brings_neither_cookies_nor_a_wish_for_compression(
    tls: ssl.SSLContext, ca_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with host(respond(b"x", "Set-Cookie: a=b", "Set-Cookie: PLANTED(=b"), tls) as server:
        name = f"localhost:{server.port}"
        async with fetcher(ca_file=ca_file, allowed_hosts=[name], private_addresses=True) as images:
            for _ in range(2):
                await images.get(Remote(f"https://{name}/"), param=PARAM)
        assert len(server.requests) == 2
        assert server.connections == 1  # and the connection is kept
        for request in server.requests:
            assert "cookie" not in request.lower()
            assert "Accept-Encoding: identity\r\n" in request
            assert "Python" not in request
    assert "PLANTED" not in caplog.text


async def test_a_proxy_in_the_environment_is_not_used(
    tls: ssl.SSLContext, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert (await fetch(respond(b"x"), tls, ca_file))[0] == b"x"


async def test_a_fetcher_that_was_closed_opens_again(tls: ssl.SSLContext, ca_file: Path) -> None:
    async with host(respond(b"x"), tls) as server:
        name = f"localhost:{server.port}"
        async with fetcher(ca_file=ca_file, allowed_hosts=[name], private_addresses=True) as images:
            for _ in range(2):
                assert await images.get(Remote(f"https://{name}/"), param=PARAM) == b"x"
                await images.aclose()


# Which URLs are fetched


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example/x.png",
        "https://sub.images.example/x.png",
        "https://images.example.other.example/x.png",
        "https://xn--images-example/x.png",
        "http://images.example/x.png",
        "http://images.example:443/x.png",
        "wss://images.example/x.png",
        "ftp://images.example/x.png",
        "file:///etc/passwd",
        "//images.example/x.png",
        "https:images.example/x.png",
        "https:///images.example/x.png",
        "https://",
        "",
        "https://user@images.example/",
        "https://user:word@images.example/",
        "https://:word@images.example/",
        "https://images.example@other.example/",
        "https://images.example:443@other.example/",
        "https://images.example%40other.example/",
        "https://images.example%2f@other.example/",
        "https://other.example\\@images.example/",
        "https://images.example\\@other.example/",
        "https://images.example\\.other.example/",
        "https://images.example/\\x",
        "https:\\\\images.example/",
        " https://images.example/",
        "https://images.example /",
        "https://images.example\t/",
        "https://images.example\r\nHost: other.example/",
        "https://images.example\n",
        "https://images.example\x00.other.example/",
        "https://images.example%00.other.example/",
        "https://ima%67es.example/",
        "https://images.example./",
        "https://images.example:8443/",
        "https://images.example:80/",
        "https://images.example:0/",
        "https://images.example:99999/",
        "https://images.example:4 43/",
        "https://ports.example/",
        "https://ports.example:443/",
        "https://127.0.0.1/",
        "https://127.1/",
        "https://2130706433/",
        "https://017700000001/",
        "https://0177.0.0.1/",
        "https://0x7f000001/",
        "https://①②⑦.⓪.⓪.①/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[fe80::1%25eth0]/",
        "https://[images.example]/",
        "https://xn--/",
        "https://bücher.example/",  # a URL is ASCII: xn--bcher-kva.example
    ],
)
async def test_a_url_of_any_other_host_or_spelling_is_refused(url: str) -> None:
    async with fetcher(allowed_hosts=["images.example", "ports.example:8443"]) as images:
        with pytest.raises(BadRequest) as refused:
            await images.get(Remote(url), param=PARAM)
    assert (refused.value.code, refused.value.param) == ("invalid_image_url", PARAM)


@pytest.mark.parametrize(
    "url",
    [
        "https://images.example/x.png",
        "HTTPS://IMAGES.Example/x.png",
        "https://images.example:443/x.png",
        "https://images.example?@other.example/",
        "https://images.example#@other.example/",
        "https://ports.example:8443/x",
        "https://xn--bcher-kva.example/x",
    ],
)
async def test_a_url_of_a_listed_host_is_tried(url: str) -> None:
    hosts = ["Images.example", "ports.example:8443", "BÜCHER.example"]
    async with fetcher(allowed_hosts=hosts, timeout_s=5) as images:
        # No name under .example resolves (RFC 6761): it was tried, and is not there.
        with pytest.raises(SourceUnavailable):
            await images.get(Remote(url), param=PARAM)


async def test_without_a_list_nothing_is_fetched() -> None:
    async with fetcher() as images:
        with pytest.raises(BadRequest):
            await images.get(Remote("https://images.example/x.png"), param=PARAM)


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "https://h.example",
        "h.example/x",
        "h.example?x",
        "user@h.example",
        "*.example",
        "*",
        "h.example.",
        "h example",
        "h.example:x",
        "10.0.0.7",
        "127.1",
        "0x7f000001",
        "2130706433",
        "[::1]",
    ],
)
def test_an_entry_that_means_more_than_a_host_stops_the_start(entry: str) -> None:
    with pytest.raises(ValueError, match="entry 2 is no host name"):
        Fetcher(Imaging(fetch=Fetch(allowed_hosts=("images.example", entry))))


def test_a_ca_file_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Fetcher(Imaging(fetch=Fetch(ca_file=tmp_path / "none.pem")))


# Where a name leads


async def test_a_listed_name_that_leads_to_loopback_is_refused_and_not_connected_to(
    tls: ssl.SSLContext, ca_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with host(respond(b"secret"), tls) as server:
        name = f"localhost:{server.port}"
        async with fetcher(ca_file=ca_file, allowed_hosts=[name]) as images:
            with pytest.raises(BadRequest) as refused:
                await images.get(Remote(f"https://{name}{PLANTED}"), param=PARAM)
        assert server.connections == 0
    assert refused.value.code == "invalid_image_url"
    assert "private_addresses" in caplog.text  # the operator learns what would allow it


# What hosts may answer


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308])
@pytest.mark.parametrize("target", ["/y.png", "https://127.0.0.1/", "http://localhost/"])
async def test_no_redirect_is_followed(
    status: int, target: str, tls: ssl.SSLContext, ca_file: Path
) -> None:
    async with host(respond(b"", f"Location: {target}", status=status), tls) as server:
        name = f"localhost:{server.port}"
        async with fetcher(ca_file=ca_file, allowed_hosts=[name], private_addresses=True) as images:
            with pytest.raises(BadRequest) as refused:
                await images.get(Remote(f"https://{name}/x.png"), param=PARAM)
        assert len(server.requests) == 1
    assert refused.value.code == "invalid_image_url"


@pytest.mark.parametrize(
    ("status", "error", "again"),
    [
        (401, NotFound, False),
        (403, NotFound, False),
        (404, NotFound, False),
        (410, NotFound, False),
        (400, NotFound, False),
        (408, SourceUnavailable, True),
        (429, SourceUnavailable, True),
        (500, SourceUnavailable, True),
        (503, SourceUnavailable, True),
        (206, SourceUnavailable, True),
        (204, SourceUnavailable, True),
    ],
)
async def test_only_what_may_pass_is_to_be_tried_again(
    status: int, error: type[ApiError], again: bool, tls: ssl.SSLContext, ca_file: Path
) -> None:
    with pytest.raises(error) as failed:
        await fetch(respond(b"", status=status), tls, ca_file)
    assert ("retry-after" in failed.value.headers()) == again
    assert failed.value.code == ("image_source_unavailable" if again else "image_not_found")


async def test_a_file_of_just_the_limit_passes_and_one_byte_more_does_not(
    tls: ssl.SSLContext, ca_file: Path
) -> None:
    for end in (respond(b"x" * 1000), stream(b"", end=b"x" * 1000)):
        assert len((await fetch(end, tls, ca_file, max_bytes=1000))[0]) == 1000
    for end in (respond(b"x" * 1001), stream(b"", end=b"x" * 1001)):
        with pytest.raises(TooLarge):
            await fetch(end, tls, ca_file, max_bytes=1000)


async def test_an_announced_length_over_the_limit_is_refused_before_any_byte(
    tls: ssl.SSLContext, ca_file: Path
) -> None:
    async def announce(writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, "Content-Length: 1001"))
        await silence(writer)

    with pytest.raises(TooLarge):
        await fetch(announce, tls, ca_file, max_bytes=1000)


async def test_a_stream_without_end_is_cut_at_the_limit(tls: ssl.SSLContext, ca_file: Path) -> None:
    with pytest.raises(TooLarge):
        await fetch(stream(b"x" * 65536), tls, ca_file, max_bytes=3 << 20, timeout_s=60)


async def test_a_stream_of_tiny_chunks_is_cut_at_the_limit(
    tls: ssl.SSLContext, ca_file: Path
) -> None:
    endless = stream(b"1\r\nx\r\n" * 500, "Transfer-Encoding: chunked")
    with pytest.raises(TooLarge):
        await fetch(endless, tls, ca_file, max_bytes=20_000, timeout_s=60)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(silence, id="no answer"),
        pytest.param(dripping_head, id="headers without end"),
        pytest.param(stream(b"x", pause=0.05), id="a byte a moment"),
        pytest.param(
            stream(b"1\r\nx\r\n", "Transfer-Encoding: chunked", pause=0.05), id="a chunk a moment"
        ),
    ],
)
async def test_slowness_ends_at_the_time_limit(
    answer: Answer, tls: ssl.SSLContext, ca_file: Path
) -> None:
    start = time.monotonic()
    with pytest.raises(SourceUnavailable):
        await fetch(answer, tls, ca_file, timeout_s=0.5)
    assert 0.4 < time.monotonic() - start < 5


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "GZIP", "gzip, gzip", "unknown"])
async def test_a_compressed_bomb_is_not_unpacked(
    coding: str, tls: ssl.SSLContext, ca_file: Path
) -> None:
    bomb = gzip.compress(bytes(50_000_000), 9)
    with pytest.raises(UnusableImage):
        await fetch(respond(bomb, f"Content-Encoding: {coding}"), tls, ca_file)


async def test_compression_that_is_not_announced_stays_what_it_is(
    tls: ssl.SSLContext, ca_file: Path
) -> None:
    packed = gzip.compress(b"x" * 1000)
    found, _ = await fetch(respond(packed, "Content-Type: application/gzip"), tls, ca_file)
    assert found == packed


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(raw(b""), id="nothing"),
        pytest.param(raw(b"SSH-2.0-OpenSSH\r\n"), id="another protocol"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"), id="cut short"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), id="length below 0"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50_000), id="too many headers"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000), id="a huge header"),
        pytest.param(
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"), id="bad chunk"
        ),
    ],
)
async def test_an_answer_that_is_no_http_is_no_answer(
    answer: Answer, tls: ssl.SSLContext, ca_file: Path
) -> None:
    with pytest.raises(SourceUnavailable):
        await fetch(answer, tls, ca_file)


# Who the host is


async def test_certificates_are_verified(authority: trustme.CA, ca_file: Path) -> None:
    past = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
    for wrong in (
        trustme.CA().issue_cert("localhost"),
        authority.issue_cert("other.example"),
        authority.issue_cert("localhost", not_before=past, not_after=past.replace(year=2021)),
    ):
        async with host(respond(b"secret"), context(wrong)) as server:
            name = f"localhost:{server.port}"
            async with fetcher(
                ca_file=ca_file, allowed_hosts=[name], private_addresses=True
            ) as images:
                with pytest.raises(SourceUnavailable):
                    await images.get(Remote(f"https://{name}/"), param=PARAM)
            assert server.requests == []


async def test_without_a_ca_file_a_certificate_of_ones_own_is_not_trusted(
    tls: ssl.SSLContext, ca_file: Path
) -> None:
    with pytest.raises(SourceUnavailable):
        await fetch(respond(b"secret"), tls, ca_file=None)  # type: ignore[arg-type]


async def test_a_host_that_speaks_no_tls_is_not_talked_to(ca_file: Path) -> None:
    with pytest.raises(SourceUnavailable):
        await fetch(respond(b"x"), None, ca_file, timeout_s=1)


# What is told


@pytest.mark.parametrize(
    "answer",
    [
        respond(b"", status=404),
        respond(b"", status=500),
        respond(b"", "Location: /PLANTED", status=302),
        respond(b"", "Content-Encoding: PLANTED"),
        respond(b"x" * 2000),
        raw(b"PLANTED\r\n\r\n"),
        raw(b"HTTP/1.1 200 PLANTED\r\nPLANTED\r\n\r\n"),
        silence,
    ],
)
async def test_no_url_goes_into_an_error_or_a_log(
    answer: Answer, tls: ssl.SSLContext, ca_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ApiError) as failed:
        await fetch(answer, tls, ca_file, max_bytes=1000, timeout_s=0.5)
    told = failed.value.message + caplog.text
    assert "PLANTED" not in told
    assert "localhost" not in told
    assert "127.0.0.1" not in told


async def test_who_stops_waiting_stops_the_fetch(tls: ssl.SSLContext, ca_file: Path) -> None:
    task = asyncio.ensure_future(fetch(silence, tls, ca_file))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
