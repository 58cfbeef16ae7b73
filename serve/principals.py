"""Who owns which key, and which roles that gives: the settings' two keys and a file of digests.

Knows no HTTP and no routes. A file is followed while the service runs, so that revoking a key
needs no restart. No key and no digest gets into an error, a log or a ``repr``.
"""

from __future__ import annotations

import hmac
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from guardrails.document import Location, PolicyError, read_document

LOOK_EVERY_S = 1.0
DEFAULT = "default"
ADMIN = "admin"
_FIELDS = frozenset({"keys", "name", "roles", "sha256"})
_HEAD = "# Who may use the service: the SHA-256 of each key. Kept by `llava-med keys`.\n"
logger = logging.getLogger("llava_med")


class Role(StrEnum):
    """What a key is good for. No role includes another."""

    CALLER = "caller"
    REVIEWER = "reviewer"
    AUDITOR = "auditor"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody with a key. The name is for records, and keeps caches apart; it is no secret."""

    name: str
    roles: frozenset[Role]


class KeysFileError(ValueError):
    """A keys file that is not fit for use: one line for each problem, with file, line and field."""


class KeyEntry(BaseModel):
    """One key of the file. The key itself is nowhere kept."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str
    roles: Annotated[frozenset[Role], Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$", repr=False)]

    @field_validator("name")
    @classmethod
    def _fit(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
            raise ValueError(
                "a name has 1 to 64 of a-z, 0-9, `.`, `_`, `-`; first a letter or digit"
            )
        if name in (DEFAULT, ADMIN):
            raise ValueError(f"`{DEFAULT}` and `{ADMIN}` are the settings' own keys")
        return name

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        return bytes.fromhex(self.sha256)


class _KeysFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    keys: tuple[KeyEntry, ...]


class Principals:
    """Everybody with a key."""

    def __init__(self, fixed: Mapping[bytes, Principal], path: Path | None) -> None:
        self._fixed = fixed
        self._path = path
        self._known = fixed
        self._looked = monotonic()
        if path is not None:
            # Before it is read: a change in between is then seen at the next look.
            self._version = _version(path)
            self._known = _with_file(fixed, path)

    @classmethod
    def of(
        cls, *, api_key: SecretStr | None, admin_key: SecretStr | None, keys: Path | None
    ) -> Principals:
        """Those of the settings, and those of the file ``keys``, which is followed from now on.

        Raises:
            KeysFileError: the file cannot be read or used.
            ValueError: no key at all, or one key for two principals.
        """
        fixed = {}
        if api_key is not None:
            fixed[_digest(api_key)] = Principal(DEFAULT, frozenset({Role.CALLER}))
        if admin_key is not None:
            if _digest(admin_key) in fixed:
                raise ValueError("the admin key is the API key; each needs one of its own")
            fixed[_digest(admin_key)] = Principal(
                ADMIN, frozenset({Role.REVIEWER, Role.AUDITOR, Role.ADMIN})
            )
        principals = cls(fixed, keys.expanduser() if keys is not None else None)
        if not principals._known:
            raise ValueError("no API key: set LLAVA_MED_API_KEY, or start with `llava-med up`")
        return principals

    def find(self, key: bytes) -> Principal | None:
        """Whose key this is.

        Every digest is compared, each in constant time: how long it takes tells nothing about
        which one fitted, or how much of one.
        """
        self._follow()
        digest = sha256(key).digest()
        found = None
        for known, principal in self._known.items():
            if hmac.compare_digest(digest, known):
                found = principal
        return found

    def _follow(self) -> None:
        """Reads the file again if it is another one; looks at most once in LOOK_EVERY_S."""
        if self._path is None or monotonic() - self._looked < LOOK_EVERY_S:
            return
        self._looked = monotonic()
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._known = _with_file(self._fixed, self._path)
        except KeysFileError as error:
            logger.error("keys not read again, the former ones stay in force:\n%s", error)


def read_keys(path: Path) -> tuple[KeyEntry, ...]:
    """The entries of a keys file.

    Raises:
        KeysFileError: it cannot be read or used.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "not UTF-8 text"
        raise KeysFileError(f"{path}: {reason}") from None
    return parse_keys(text, source=str(path))


def parse_keys(text: str, *, source: str) -> tuple[KeyEntry, ...]:
    """The entries of a keys file's text.

    Raises:
        KeysFileError: it is not YAML of the closed schema, or a name or key is there twice.
    """
    try:
        data, lines = read_document(text, source)
    except PolicyError as error:  # its own words quote the file
        reason = "not a mapping in plain YAML with each field once"
        problems = [f"{source}:{problem.line}: {reason}" for problem in error.problems]
        raise KeysFileError("\n".join(problems)) from None
    try:
        entries = _KeysFile.model_validate(data).keys
        found = list(_problems(entries))
    except ValidationError as error:
        found = [
            (detail["loc"], detail["msg"])
            for detail in error.errors(include_url=False, include_input=False)
        ]
    if found:
        raise KeysFileError(
            "\n".join(_line(source, lines, where, message) for where, message in found)
        )
    return entries


def keys_text(entries: tuple[KeyEntry, ...]) -> str:
    """The text of a keys file with these entries."""
    items = [
        {"name": entry.name, "roles": sorted(map(str, entry.roles)), "sha256": entry.sha256}
        for entry in entries
    ]
    return _HEAD + yaml.safe_dump({"keys": items}, sort_keys=False)


def _problems(entries: tuple[KeyEntry, ...]) -> Iterator[tuple[Location, str]]:
    names: set[str] = set()
    digests = {sha256(b"").digest(): "is the digest of nothing: an empty key opens nothing"}
    for number, entry in enumerate(entries):
        if entry.name in names:
            yield ("keys", number, "name"), "is an earlier entry's name"
        if entry.digest in digests:
            yield ("keys", number, "sha256"), digests[entry.digest]
        names.add(entry.name)
        digests[entry.digest] = "is an earlier entry's key"


def _line(source: str, lines: Mapping[Location, int], where: Location, message: str) -> str:
    # A name that is none of ours is content of the file, and may be a key in the wrong place.
    field = ".".join(str(part) for part in where if isinstance(part, int) or part in _FIELDS)
    while where not in lines:  # what is missing has no line; what lacks it has
        where = where[:-1]
    return f"{source}:{lines[where]}: {field}: {message}" if field else f"{source}: {message}"


def _with_file(fixed: Mapping[bytes, Principal], path: Path) -> Mapping[bytes, Principal]:
    known = dict(fixed)
    for number, entry in enumerate(read_keys(path)):
        if entry.digest in fixed:
            owner = fixed[entry.digest].name
            raise KeysFileError(f"{path}: keys.{number}.sha256: is the key of `{owner}`")
        known[entry.digest] = Principal(entry.name, entry.roles)
    return known


def _version(path: Path) -> tuple[int, ...] | None:
    """What tells one state of a file from another; through symlinks, which a Secret mount swaps."""
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _digest(key: SecretStr) -> bytes:
    return sha256(key.get_secret_value().encode()).digest()
