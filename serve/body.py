"""Takes inline images out of a request body before anything reads it as JSON.

An image is megabytes of base64 in one JSON string. Parsed as such, it is scanned for escapes,
checked as UTF-8, copied into a string, and encoded again, all of which holds Python's lock, and
with it every stream of this replica. Here it stays where it is: the JSON parser sees a short
reference in its place, and the base64 decoder sees the bytes themselves.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

_BEGIN = b'"data:'
_HEAD = re.compile(rb"[\w/.+;=-]{0,256};base64,", re.IGNORECASE)
_SHORTEST = 4096  # bytes; below, a detour is not worth its while
_MOST_LOOKED_AT = 1000  # of a body made of beginnings, the rest is left to the JSON parser


@dataclass(frozen=True, slots=True)
class Body:
    """A body without its inline images."""

    json: bytes | bytearray
    mark: str
    payloads: tuple[memoryview, ...]

    def payload(self, text: str) -> memoryview | None:
        """What a reference stands for; None for a text that is no reference."""
        mark, _, number = text.partition(":")
        return self.payloads[int(number)] if mark == self.mark else None


def split(body: bytes | bytearray) -> Body:
    """Takes out the base64 of every JSON string that is a long data URL without escapes.

    A quote that no backslash precedes begins a JSON string or ends one; where it ends one, what
    follows is no JSON, with or without the payload. So the rest means what the whole meant.
    """
    mark = secrets.token_hex(8)  # no client can send a reference of its own
    view = memoryview(body)
    kept: list[bytes | memoryview] = []
    payloads: list[memoryview] = []
    done = at = 0
    for _ in range(_MOST_LOOKED_AT):
        if (at := body.find(_BEGIN, at)) < 0:
            break
        escaped = at > 0 and body[at - 1] == ord("\\")
        at += len(_BEGIN)
        head = _HEAD.match(body, at)
        if escaped or head is None:
            continue
        begin, end = head.end(), body.find(b'"', head.end())
        if end - begin < _SHORTEST or body.find(b"\\", begin, end) >= 0:
            continue
        kept += [view[done:begin], f"{mark}:{len(payloads)}".encode()]
        payloads.append(view[begin:end])
        done = at = end
    if not payloads:
        return Body(body, mark, ())
    return Body(b"".join([*kept, view[done:]]), mark, tuple(payloads))


def whole(body: bytes | bytearray) -> Body:
    """A body that keeps its images."""
    return Body(body, secrets.token_hex(8), ())
