"""What an operator sets of escalation, and when to try again. Pure; no I/O.

The hook's URL is the operator's own, so it may lead into a private network; it is its form that is
checked: where it leads must be readable from it, and nothing may travel in clear by accident.
"""

from __future__ import annotations

import base64
import binascii
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator
from yarl import URL

Format = Literal["generic", "alertmanager"]

RETRY_FIRST_S = 1.0
RETRY_MOST_S = 300.0
# Standard Webhooks, "Signature scheme": 24 to 64 random bytes.
_SECRET_PREFIX = "whsec_"  # noqa: S105 (what secrets begin with, not one)
_SECRET_BYTES = range(24, 65)


class Escalation(BaseModel):
    """Who is told of urgent findings, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: SecretStr | None = Field(
        default=None,
        description="Webhook that is told of urgent findings; for Alertmanager its root, such as "
        "`https://alerts.internal`. Default: none, and only queue and metrics show them.",
    )
    allow_http: bool = Field(
        default=False, description="Whether the URL may be http beyond this machine."
    )
    format: Format = Field(
        default="generic",
        description="Body: generic (Standard Webhooks) or alertmanager (its API v2).",
    )
    secret: SecretStr | None = Field(
        default=None,
        description="Key that generic hooks are signed with: `whsec_` and base64 of 24 to 64 "
        "bytes.",
    )
    remind_s: float = Field(
        default=300.0,
        ge=1,
        description="Seconds until the next reminder, while nobody has acknowledged.",
    )
    max_reminders: int = Field(
        default=12, ge=0, description="Reminders, after which a finding counts as unanswered."
    )
    ca_file: Path | None = Field(
        default=None, description="PEM file of the CAs to trust. Default: the system's."
    )
    timeout_s: float = Field(default=5.0, gt=0, description="For one delivery, in seconds.")
    console_url: str | None = Field(
        default=None, description="Where clinicians review; shown in the hook."
    )

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.console_url is not None:
            _parsed("console_url", self.console_url)
        if self.secret is not None:
            signing_key(self.secret)
        if self.url is None:
            return self
        url = _parsed("url", self.url.get_secret_value())
        if url.scheme == "http" and not (self.allow_http or _is_loopback(url.host or "")):
            raise ValueError("url: only https leaves this machine, unless allow_http is set")
        if self.format == "alertmanager" and url.query_string:
            raise ValueError("url: Alertmanager's root has no query")
        if self.format == "generic" and self.secret is None:
            raise ValueError("secret: a generic hook is signed; set one")
        return self

    @property
    def endpoint(self) -> URL | None:
        """Where messages are posted to."""
        if self.url is None:
            return None
        url = URL(self.url.get_secret_value())
        return url / "api/v2/alerts" if self.format == "alertmanager" else url


def signing_key(secret: SecretStr) -> bytes:
    """The bytes of a ``whsec_`` secret.

    Raises:
        ValueError: not one; the message says nothing of it.
    """
    text = secret.get_secret_value()
    problem = "secret: whsec_ and base64 of 24 to 64 bytes"
    if not text.startswith(_SECRET_PREFIX):
        raise ValueError(problem)
    try:
        key = base64.b64decode(text.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(problem) from None
    if len(key) not in _SECRET_BYTES:
        raise ValueError(problem)
    return key


def retry_s(failed: int, jitter: float) -> float:
    """How long to wait after ``failed`` failures in a row, in seconds.

    Doubles from 1 s to 5 min, the upper half of each at random, so that what failed together does
    not come back together ("equal jitter": AWS Architecture Blog, "Exponential Backoff And
    Jitter", 2015).

    Args:
        failed: at least 1.
        jitter: 0 to 1.
    """
    ceiling = min(RETRY_MOST_S, RETRY_FIRST_S * 2.0 ** min(failed, 16))
    return ceiling * (0.5 + 0.5 * jitter)


def _parsed(name: str, text: str) -> URL:
    problem = f"{name}: an absolute http or https URL without user, password or fragment"
    try:
        url = URL(text)
    except ValueError:
        raise ValueError(problem) from None
    unfit = (url.user, url.password, url.fragment)
    if url.scheme not in ("http", "https") or not url.host or any(unfit) or not text.isprintable():
        raise ValueError(problem)
    return url


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
