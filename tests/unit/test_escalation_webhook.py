"""One delivery to real HTTP receivers, good and bad ones."""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from serve.escalation.rules import Escalation
from serve.escalation.webhook import Webhook
from tests.hooks import SECRET, Behaviour, endless, hang_up, receiver, silence, status
from tests.running import free_port
from tests.unit.imaging.hosts import dripping_head, host

BODY = b'{"some":"json"}'
TIMEOUT_S = 0.3


@asynccontextmanager
async def webhook(url: str, **values: Any) -> AsyncIterator[Webhook]:
    values = {"url": url, "secret": SECRET, "timeout_s": TIMEOUT_S} | values
    hook = Webhook(Escalation.model_validate(values))
    try:
        yield hook
    finally:
        await hook.aclose()


async def deliver(url: str, **values: Any) -> int | None:
    async with webhook(url, **values) as hook:
        return await hook.post("id-1", int(time.time()), BODY)


async def test_a_message_arrives_as_it_is_signed_so_that_others_code_agrees() -> None:
    async with receiver() as hooks:
        assert await deliver(hooks.url) == 204
    [call] = hooks.calls
    assert (call.request.method, call.request.path) == ("POST", "/hook")
    assert call.request.headers["content-type"] == "application/json"
    assert (call.id, call.body, call.verified()) == ("id-1", BODY, {"some": "json"})


async def test_without_a_secret_there_is_no_signature() -> None:
    async with receiver() as hooks:
        assert await deliver(hooks.url, secret=None, format="alertmanager") == 204
    assert "webhook-signature" not in hooks.calls[0].request.headers
    assert hooks.calls[0].request.path == "/hook/api/v2/alerts"


@pytest.mark.parametrize("code", [200, 202, 400, 410, 429, 500, 503])
async def test_the_status_is_told_whatever_it_is(code: int) -> None:
    async with receiver(status(code)) as hooks:
        assert await deliver(hooks.url) == code


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(code: int) -> None:
    async with receiver() as elsewhere, receiver(status(code, Location=elsewhere.url)) as hooks:
        assert await deliver(hooks.url) == code
        assert elsewhere.calls == []


@pytest.mark.parametrize("behaviour", [silence, hang_up])
async def test_who_does_not_answer_in_time_has_not_taken_it(behaviour: Behaviour) -> None:
    async with receiver(behaviour) as hooks:
        start = time.monotonic()
        assert await deliver(hooks.url) is None
        assert time.monotonic() - start < TIMEOUT_S + 1
        assert len(hooks.calls) == 1


async def test_headers_that_never_end_are_waited_for_no_longer_than_any_answer() -> None:
    async with host(dripping_head) as state:
        start = time.monotonic()
        assert await deliver(f"http://localhost:{state.port}/") is None
        assert time.monotonic() - start < TIMEOUT_S + 1


async def test_a_closed_port_is_no_answer() -> None:
    assert await deliver(f"http://localhost:{free_port()}/") is None


async def test_an_endless_answer_is_not_read() -> None:
    async with receiver(endless) as hooks:
        start = time.monotonic()
        assert await deliver(hooks.url, timeout_s=30) == 200
        assert time.monotonic() - start < 5


async def test_a_certificate_is_checked_against_the_given_authority(tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(tls)
    files = {name: tmp_path / f"{name}.pem" for name in ("known", "unknown")}
    authority.cert_pem.write_to_path(files["known"])
    other.cert_pem.write_to_path(files["unknown"])
    async with receiver(tls=tls) as hooks:
        assert await deliver(hooks.url, ca_file=files["known"], timeout_s=5) == 204
        assert await deliver(hooks.url, ca_file=files["unknown"], timeout_s=5) is None
        named = hooks.url.replace("localhost", "127.0.0.1")
        assert await deliver(named, ca_file=files["known"], timeout_s=5) is None
    assert len(hooks.calls) == 1


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver() as proxy, receiver() as hooks:
        monkeypatch.setenv("http_proxy", proxy.url)
        monkeypatch.setenv("no_proxy", "")
        assert await deliver(hooks.url) == 204
        assert proxy.calls == []


async def test_neither_url_nor_answer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with receiver(status(500)) as hooks:
        await deliver(hooks.url + "/PLANTED-TOKEN")
        hooks.behaviour = hang_up
        await deliver(hooks.url + "/PLANTED-TOKEN")
        assert len(hooks.calls) == 2
    ours = [record for record in caplog.records if record.name == "llava_med"]
    assert [record.getMessage() for record in ours] == [
        "escalation: no answer (ServerDisconnectedError)"
    ]
    client = [r.getMessage() for r in caplog.records if not r.name.startswith("aiohttp.access")]
    assert not any("PLANTED" in message for message in client)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_without_a_certificate_is_an_error_at_the_start(
    content: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    rules = {"url": "https://pager.internal/", "secret": SECRET, "ca_file": file}
    with pytest.raises(OSError):  # noqa: PT011 (the system's own wording)
        Webhook(Escalation.model_validate(rules))
