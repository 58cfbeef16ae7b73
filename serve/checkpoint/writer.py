"""Writes the files of a converted checkpoint: hashed on the way out, all or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from serve.checkpoint.errors import NoSpace
from serve.checkpoint.manifest import FileRecord
from serve.checkpoint.tensors import Bytes, Tensor


class Folder:
    """A folder being written, and the record of each file written to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: dict[str, FileRecord] = {}

    def write_text(self, name: str, text: str) -> None:
        """Writes a small file."""
        with self.open(name) as file:
            file.write(text.encode("utf-8"))

    def write_json(self, name: str, value: object) -> None:
        """Writes ``value`` as JSON."""
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    @contextmanager
    def open(self, name: str) -> Iterator[HashingFile]:
        """A file to write to; on disk and in ``files`` when the block ends."""
        with (self.path / name).open("xb") as raw:
            file = HashingFile(raw)
            yield file
            raw.flush()
            os.fsync(raw.fileno())
        self.files[name] = FileRecord(bytes=file.size, sha256=file.digest())


class HashingFile:
    """Passes bytes on, counts and hashes them."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: Bytes) -> None:
        """Writes ``data``."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        self._raw.write(view)
        self.size += view.nbytes

    def digest(self) -> str:
        """SHA-256 of what was written, in hex."""
        return self._hash.hexdigest()


@contextmanager
def whole_or_nothing(destination: Path) -> Iterator[Folder]:
    """A temporary folder beside ``destination`` that takes its place when the block ends well.

    A killed process leaves the temporary folder; the next conversion to the same place removes it.

    Raises:
        NoSpace: the disk is full.
    """
    parent, prefix = destination.parent, f".{destination.name}.converting-"
    parent.mkdir(parents=True, exist_ok=True)
    for left_over in parent.glob(f"{prefix}*"):
        if not _is_running(left_over.name.removeprefix(prefix)):
            shutil.rmtree(left_over, ignore_errors=True)
    temporary = parent / f"{prefix}{os.getpid()}"
    try:
        temporary.mkdir()
        yield Folder(temporary)
        _sync(temporary)
        temporary.rename(destination)  # replaces an empty folder, nothing else
        _sync(parent)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{parent} is full; nothing was left behind") from None
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_space(destination: Path, needed: int) -> None:
    """Checks the destination's disk for ``needed`` bytes.

    Raises:
        NoSpace: too few are free.
    """
    place = destination
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise NoSpace(
            f"{place} has {free / 1e9:.1f} GB free; the converted checkpoint takes "
            f"{needed / 1e9:.1f} GB"
        )


def _is_running(pid: str) -> bool:
    if not pid.isdecimal():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def safetensors_head(tensors: tuple[Tensor, ...]) -> bytes:
    """The head of a safetensors file that holds ``tensors`` one after the other."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [end, end + tensor.nbytes],
        }
        end += tensor.nbytes
    head = json.dumps(entries, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # so that tensors begin at a multiple of 8
    return len(head).to_bytes(8, "little") + head
