"""The hash chain. Each writer has one: every record names the hash of the one before it.

A chain shows a record that was changed, taken out or moved. That its end was cut off shows only
against a checkpoint kept elsewhere (serve/audit/checkpoints.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

ORIGIN = bytes(32)  # what the first record of a chain names
_DOMAIN = b"llava-med audit record 1\n"


@dataclass(frozen=True, slots=True)
class Link:
    """Where a record stands. ``at``: microseconds since 1970; ``seq`` counts from 1."""

    writer: str
    seq: int
    at: int
    kind: str
    audit_id: str
    previous: bytes

    @property
    def place(self) -> bytes:
        """What its content is bound to when it is sealed: moved elsewhere, it does not open."""
        head = f"{self.writer}\n{self.seq}\n{self.at}\n{self.kind}\n{self.audit_id}\n"
        return _DOMAIN + head.encode() + self.previous

    def hash(self, digest: bytes) -> bytes:
        """The hash that the next record names; ``digest`` is the payload's SHA-256."""
        return sha256(self.place + digest).digest()
