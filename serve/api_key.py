"""The API key of a local service: given, kept from last time, or generated once."""

from __future__ import annotations

import os
import secrets

from pydantic import SecretStr

from serve.settings import Settings


def with_api_key(settings: Settings) -> tuple[Settings, str | None]:
    """The settings with a key: given, kept from last time, or generated (then also returned)."""
    if settings.api_key is not None:
        return settings, None
    path = settings.state_dir / "api-key"
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        key = path.read_text().strip()
        return settings.model_copy(update={"api_key": SecretStr(key)}), None
    key = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
    return settings.model_copy(update={"api_key": SecretStr(key)}), key
