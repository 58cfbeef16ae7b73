"""Files of keys: changed whole or not at all, one change at a time, readable by the owner only."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def change(path: Path, new: Callable[[], str]) -> None:
    """Puts the text that ``new`` returns in a file's place; a link to it stays one.

    Args:
        path: the file; its folder is there.
        new: reads what it is made of. Of two changes at once, one waits for the other: it would
            undo it, and a revoked key would be back, or a new one lost.

    Raises:
        OSError: it cannot be read or written.
        whatever ``new`` raises: then nothing was changed.
    """
    path = path.resolve()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        text = new()
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # mode 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink()
            raise
        os.fsync(folder)
    finally:
        os.close(folder)
