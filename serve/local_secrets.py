"""Secrets of a local service: given, kept from last time, or generated once."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from serve.audit import keyring
from serve.principals import keys_text
from serve.settings import Settings

KEYS_FILE = "keys.yaml"


def with_secrets(settings: Settings) -> tuple[Settings, str | None]:
    """The settings with every key they need; a new API key is also returned, to show."""
    new_key = None
    given: dict[str, object] = {}
    if settings.api_key is None:
        key, is_new = _kept_or_new(settings.state_dir / "api-key")
        given["api_key"] = SecretStr(key)
        new_key = key if is_new else None
    if settings.admin_key is None:
        given["admin_key"] = SecretStr(_kept_or_new(settings.state_dir / "admin-key")[0])
    if settings.imaging.uid_key is None:
        uid_key, _ = _kept_or_new(settings.state_dir / "uid-key")
        given["imaging"] = settings.imaging.model_copy(update={"uid_key": SecretStr(uid_key)})
    audit: dict[str, object] = {}
    if settings.audit.key is None and settings.audit.key_file is None:
        audit["key_file"] = settings.state_dir / "audit-key"
        _kept_or_new(settings.state_dir / "audit-key", keyring.new_key)
    if settings.audit.signing_key is None:
        signing_key, _ = _kept_or_new(settings.state_dir / "signing-key", keyring.new_key)
        audit["signing_key"] = SecretStr(signing_key)
    given["audit"] = settings.audit.model_copy(update=audit)
    if settings.keys is None:
        # There from the start, so that a running service takes in the first key that is added.
        _kept_or_new(settings.state_dir / KEYS_FILE, lambda: keys_text(()))
    return _with_keys_file(settings.model_copy(update=given)), new_key


def with_kept_secrets(settings: Settings) -> Settings:
    """The same with the keys that are in ``state_dir`` already; makes none."""
    given: dict[str, object] = {}
    audit: dict[str, object] = {}
    if settings.admin_key is None and (key := _kept(settings.state_dir / "admin-key")):
        given["admin_key"] = SecretStr(key)
    key_file = settings.state_dir / "audit-key"
    if settings.audit.key is None and settings.audit.key_file is None and key_file.is_file():
        audit["key_file"] = key_file
    if settings.audit.signing_key is None and (key := _kept(settings.state_dir / "signing-key")):
        audit["signing_key"] = SecretStr(key)
    given["audit"] = settings.audit.model_copy(update=audit)
    return _with_keys_file(settings.model_copy(update=given))


def _with_keys_file(settings: Settings) -> Settings:
    """With the file that `llava-med keys` writes to where no other is named."""
    file = settings.state_dir / KEYS_FILE
    if settings.keys is not None or not file.is_file():
        return settings
    return settings.model_copy(update={"keys": file})


def _kept(path: Path) -> str | None:
    return path.read_text().strip() if path.is_file() else None


def _kept_or_new(
    path: Path, make: Callable[[], str] = lambda: secrets.token_urlsafe(32)
) -> tuple[str, bool]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip(), False
    key = make()
    with os.fdopen(descriptor, "w") as file:
        file.write(key + "\n")
    return key, True
