"""What an operator can set of escalation, and when a failed message is tried again."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from serve.escalation.rules import Escalation, retry_s, signing_key
from tests.hooks import SECRET


def set_to(**values: Any) -> Escalation:
    return Escalation.model_validate({"secret": SECRET, **values})


def test_without_a_url_nothing_else_is_needed() -> None:
    assert Escalation().endpoint is None


@pytest.mark.parametrize(
    "url",
    [
        "https://pager.internal/hook",
        "https://pager.internal:8443/hook?route=7",
        "http://localhost:9000/hook",
        "http://127.0.0.1:9000/",
        "http://127.9.9.9/",
        "http://[::1]:9000/",
    ],
)
def test_https_goes_anywhere_and_http_stays_on_this_machine(url: str) -> None:
    assert str(set_to(url=url).endpoint) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://pager.internal/hook",
        "http://10.0.0.1/hook",
        "http://localhost.evil.example/hook",
        "http://127.0.0.1.evil.example/hook",
    ],
)
def test_http_leaves_this_machine_only_when_it_is_allowed_to(url: str) -> None:
    with pytest.raises(ValidationError, match="only https leaves this machine"):
        set_to(url=url)
    assert str(set_to(url=url, allow_http=True).endpoint) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pager.internal/hook",
        "//pager.internal/hook",
        "/hook",
        "ftp://pager.internal/PLANTED",
        "file:///etc/PLANTED",
        "https://",
        "https:///PLANTED",
        "https://user@pager.internal/PLANTED",
        "https://user:PLANTED@pager.internal/",
        "https://pager.internal/#PLANTED",
        "https://pager.internal:99999/PLANTED",
        "https://[PLANTED/",
        "https://pager.internal/PLANTED\r\nx-header: y",
    ],
)
@pytest.mark.parametrize("name", ["url", "console_url"])
def test_a_url_of_another_form_is_refused_and_not_repeated(name: str, url: str) -> None:
    with pytest.raises(ValidationError) as error:
        set_to(**{name: url, "allow_http": True})
    assert "without user, password or fragment" in str(error.value)
    assert "PLANTED" not in str(error.value)


def test_a_generic_hook_without_a_secret_is_refused() -> None:
    with pytest.raises(ValidationError, match="a generic hook is signed"):
        Escalation(url=SecretStr("https://pager.internal/"))


def test_alertmanager_needs_no_secret_and_is_posted_to_below_its_root() -> None:
    for root in ("https://alerts.internal/am", "https://alerts.internal/am/"):
        rules = Escalation(url=SecretStr(root), format="alertmanager")
        assert str(rules.endpoint) == "https://alerts.internal/am/api/v2/alerts"
    with pytest.raises(ValidationError, match="no query"):
        set_to(url="https://alerts.internal/?x=1", format="alertmanager")


@pytest.mark.parametrize("size", [24, 32, 64])
def test_a_secret_has_24_to_64_bytes(size: int) -> None:
    text = "whsec_" + base64.b64encode(b"k" * size).decode()
    assert signing_key(SecretStr(text)) == b"k" * size


@pytest.mark.parametrize(
    "secret",
    [
        "whsec_" + base64.b64encode(b"PLANTED" * 3).decode(),
        "whsec_" + base64.b64encode(b"PLANTED" * 10).decode(),
        base64.b64encode(b"PLANTED" * 5).decode(),
        "whsec_PLANTED not base64",
        "whsec_PLANTED-ü",
    ],
)
def test_another_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValidationError, match="24 to 64 bytes") as error:
        set_to(secret=secret)
    assert secret not in str(error.value)


def test_neither_url_nor_secret_shows_in_the_settings_text() -> None:
    text = repr(set_to(url="https://pager.internal/PLANTED"))
    assert "PLANTED" not in text
    assert SECRET not in text


@given(failed=st.integers(1, 10**9), jitter=st.floats(0, 1))
def test_a_failed_message_waits_at_least_a_second_and_at_most_five_minutes(
    failed: int, jitter: float
) -> None:
    assert 1 <= retry_s(failed, jitter) <= 300


@given(failed=st.integers(1, 100), first=st.floats(0, 1), second=st.floats(0, 1))
def test_waits_never_grow_shorter_with_more_failures_but_for_chance(
    failed: int, first: float, second: float
) -> None:
    assert retry_s(failed + 1, 0) >= retry_s(failed, 0)
    assert abs(retry_s(failed, first) - retry_s(failed, second)) <= retry_s(failed, 0)


def test_the_wait_doubles_until_it_is_five_minutes() -> None:
    waits = [retry_s(failed, 1) for failed in range(1, 11)]
    assert waits == [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
