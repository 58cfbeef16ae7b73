"""The file of key-encryption keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from serve import secret_file
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

    def text() -> str:
        made = "\n".join(new(lines_of(path))) + "\n"
        keyring.parse(made)
        return made

    secret_file.change(path, text)
