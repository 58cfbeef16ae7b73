"""The file of key-encryption keys, written anew whole or not at all, readable by its owner only."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from serve.audit import keyring


def lines_of(path: Path) -> tuple[str, ...]:
    """The keys in a file as they stand there, the current one first.

    Raises:
        ValueError: it has none, or something else.
        OSError: it cannot be read.
    """
    text = path.read_text()
    keyring.parse(text)
    return tuple(text.replace(",", "\n").split())


def change(path: Path, new: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
    """Puts what ``new`` makes of a file's keys in its place; a link stays one.

    Raises:
        ValueError: it has no keys now, or would have none.
        OSError: it cannot be read or written.
    """
    path = path.resolve()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        # Of two at once, one would undo the other's change, and lose a key.
        fcntl.flock(folder, fcntl.LOCK_EX)
        text = "\n".join(new(lines_of(path))) + "\n"
        keyring.parse(text)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".audit-key-")  # mode 0600
        try:
            with os.fdopen(descriptor, "w") as file:
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
