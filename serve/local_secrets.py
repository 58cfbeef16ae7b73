"""Secrets of a local service: given, kept from last time, or generated once."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from pydantic import SecretStr

from serve.settings import Settings


def with_secrets(settings: Settings) -> tuple[Settings, str | None]:
    """The settings with an API key and a key for UIDs; a new API key is also returned, to show."""
    new_key = None
    if settings.api_key is None:
        key, is_new = _kept_or_new(settings.state_dir / "api-key")
        settings = settings.model_copy(update={"api_key": SecretStr(key)})
        new_key = key if is_new else None
    if settings.imaging.uid_key is None:
        uid_key, _ = _kept_or_new(settings.state_dir / "uid-key")
        imaging = settings.imaging.model_copy(update={"uid_key": SecretStr(uid_key)})
        settings = settings.model_copy(update={"imaging": imaging})
    return settings, new_key


def _kept_or_new(path: Path) -> tuple[str, bool]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip(), False
    key = secrets.token_urlsafe(32)
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
    return key, True
