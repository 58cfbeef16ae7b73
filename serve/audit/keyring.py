"""Keys. A record is sealed with a data key of its own, and that one wrapped by a key of the ring.

AES-256-GCM throughout (NIST SP 800-38D): 12 random bytes of nonce, 16 of tag. The ring's first key
wraps; all of them unwrap, so that keys can be rotated while the service runs.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
ID_BYTES = 8
_NONCE_BYTES = 12


class WrongKeyError(Exception):
    """No key of the ring opens this."""


class AlteredError(Exception):
    """What was sealed is not what is here, or not where it was put."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """Seals what belongs to one exchange (or one image)."""

    secret: bytes = field(repr=False)

    @classmethod
    def new(cls) -> DataKey:
        """A random one."""
        return cls(os.urandom(KEY_BYTES))

    def seal(self, plain: bytes, place: bytes) -> bytes:
        """Encrypts; only ``open`` with the same ``place`` gives it back."""
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + AESGCM(self.secret).encrypt(nonce, plain, place)

    def open(self, sealed: bytes, place: bytes) -> bytes:
        """Decrypts.

        Raises:
            AlteredError: it was changed, or sealed for another place or by another key.
        """
        try:
            return AESGCM(self.secret).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place)
        except (InvalidTag, ValueError):
            raise AlteredError("sealed content does not open") from None


class Keyring:
    """Key-encryption keys, the current one first."""

    def __init__(self, secrets: Iterable[bytes]) -> None:
        """Takes keys of 32 bytes each.

        Raises:
            ValueError: none, or one of another length.
        """
        self._keys: dict[bytes, DataKey] = {}
        for secret in secrets:
            if len(secret) != KEY_BYTES:
                raise ValueError("a key of the audit store has 32 bytes")
            self._keys[_id(secret)] = DataKey(secret)
        if not self._keys:
            raise ValueError("the audit store needs a key")
        self.current: bytes = next(iter(self._keys))

    @property
    def ids(self) -> tuple[str, ...]:
        """What keys are known by: the beginning of their hash, as hex."""
        return tuple(key.hex() for key in self._keys)

    def wrap(self, key: DataKey, place: bytes) -> bytes:
        """The data key, sealed by the current key: key id, nonce, ciphertext."""
        return self.current + self._keys[self.current].seal(key.secret, place)

    def unwrap(self, wrapped: bytes, place: bytes) -> DataKey:
        """The data key.

        Raises:
            WrongKeyError: it was wrapped by a key that is not in this ring.
            AlteredError: it was changed.
        """
        key = self._keys.get(wrapped[:ID_BYTES])
        if key is None:
            raise WrongKeyError(
                f"the audit store is sealed by key {wrapped[:ID_BYTES].hex()}; "
                f"given: {', '.join(self.ids)}"
            )
        return DataKey(key.open(wrapped[ID_BYTES:], place))


def parse(text: str) -> Keyring:
    """A ring from base64 keys, one a line (or separated by commas), the current one first.

    Raises:
        ValueError: not such a text; the message says nothing of it.
    """
    try:
        lines = text.replace(",", "\n").split()
        return Keyring(base64.b64decode(line, validate=True) for line in lines)
    except binascii.Error:
        raise ValueError("a key of the audit store is base64 of 32 bytes") from None


def new_key() -> str:
    """A key for the ring, in the form that ``parse`` reads."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _id(secret: bytes) -> bytes:
    return sha256(b"llava-med key-encryption key\0" + secret).digest()[:ID_BYTES]
