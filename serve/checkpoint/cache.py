"""Converts an original checkpoint once and reuses the result: a user may point at either."""

from __future__ import annotations

from pathlib import Path

from serve.checkpoint.convert import Progress, convert
from serve.checkpoint.errors import DestinationInUse, NotACheckpoint
from serve.checkpoint.manifest import NAME
from serve.checkpoint.source import is_original, open_source


def ensure_converted(path: Path, cache: Path, progress: Progress | None = None) -> Path:
    """``path`` itself if it is converted already, else its conversion in the folder ``cache``.

    The conversion's folder is named after the source and a fingerprint of its files, so that a
    changed source is converted anew.

    Raises:
        NotACheckpoint: neither an original nor a converted checkpoint.
        CheckpointError: the conversion failed.
    """
    if (path / NAME).is_file():
        return path
    if not is_original(path):
        raise NotACheckpoint(
            f"{path} is neither an original LLaVA-Med checkpoint nor a converted one"
        )
    destination = cache / f"{path.resolve().name}-{open_source(path).fingerprint[:16]}"
    try:
        convert(path, destination, progress=progress)
    except (DestinationInUse, OSError):
        # Another process was faster: its result is ours too, if it is this conversion.
        convert(path, destination, progress=progress)
    return destination
