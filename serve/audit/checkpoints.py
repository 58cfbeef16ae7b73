"""Signed heads of chains, kept outside of the database.

A line of JSON each, appended to a file: where its folder is on other storage than the database, or
its lines are collected, whoever can change the database cannot make up a past.
Signatures are Ed25519 (RFC 8032).
"""

from __future__ import annotations

import base64
import errno
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_DOMAIN = "llava-med audit checkpoint 1"


@dataclass(frozen=True, slots=True)
class Head:
    """A chain's last record."""

    writer: str
    seq: int
    hash: bytes
    at: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A head that was signed; ``valid`` says whether by the key that it was read with."""

    head: Head
    valid: bool


class Checkpoints:
    """Signs one writer's heads, at most every ``interval_s`` seconds."""

    def __init__(
        self, folder: Path, store_id: str, key: Ed25519PrivateKey, *, interval_s: float
    ) -> None:
        self._file = _file(folder, store_id)
        self._store_id = store_id
        self._key = key
        self._interval_s = interval_s
        self._signed = Head("", 0, b"", 0)
        self._next = 0.0
        self._pending = False

    def due_s(self) -> float | None:
        """Seconds until there is something to sign; None while there is nothing."""
        return max(0.0, self._next - time.monotonic()) if self._pending else None

    def sign(self, head: Head, *, now: bool = False) -> None:
        """Signs a head if it is time to, or ``now``; a head that is signed already, not again."""
        self._pending = head.seq > 0 and head != self._signed
        if not self._pending or (not now and time.monotonic() < self._next):
            return
        self._next = time.monotonic() + self._interval_s  # also after a failure: no busy loop
        line = _line(self._store_id, head, self._key)
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(self._file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            if os.write(file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        finally:
            os.close(file)
        self._signed, self._pending = head, False


def read(folder: Path, store_id: str, key: Ed25519PublicKey) -> Iterator[Checkpoint]:
    """All checkpoints of a store, in the order they were signed; none where there is no file.

    A line that is no checkpoint (a crash may leave half of one) comes as not valid.
    """
    file = _file(folder, store_id)
    if file.is_file():
        with file.open("rb") as lines:
            yield from (_read(line, store_id, key) for line in lines if line.strip())


def signing_key(text: str) -> Ed25519PrivateKey:
    """The key whose 32 bytes are given as base64.

    Raises:
        ValueError: not such a text.
    """
    try:
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(text, validate=True))
    except ValueError:  # its own words tell of the text
        raise ValueError("a signing key of the audit store is base64 of 32 bytes") from None


def _message(store_id: str, head: Head) -> bytes:
    fields = (_DOMAIN, store_id, head.writer, str(head.seq), str(head.at), head.hash.hex())
    return "\n".join(fields).encode()


def _line(store_id: str, head: Head, key: Ed25519PrivateKey) -> bytes:
    signature = base64.b64encode(key.sign(_message(store_id, head))).decode()
    fields = {"writer": head.writer, "seq": head.seq, "at": head.at, "hash": head.hash.hex()}
    # A line of its own even behind one that a crash cut off.
    return b"\n" + json.dumps({**fields, "signature": signature}).encode() + b"\n"


def _file(folder: Path, store_id: str) -> Path:
    return folder.expanduser() / f"{store_id}.jsonl"


def _read(line: bytes, store_id: str, key: Ed25519PublicKey) -> Checkpoint:
    try:
        fields = json.loads(line)
        head = Head(
            str(fields["writer"]),
            int(fields["seq"]),
            bytes.fromhex(fields["hash"]),
            int(fields["at"]),
        )
        key.verify(base64.b64decode(fields["signature"]), _message(store_id, head))
    except (ValueError, KeyError, TypeError, OverflowError):
        return Checkpoint(Head("", 0, b"", 0), valid=False)
    except InvalidSignature:
        return Checkpoint(head, valid=False)
    return Checkpoint(head, valid=True)
