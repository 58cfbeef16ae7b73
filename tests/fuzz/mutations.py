"""Mutations that know a format: they damage one element, chunk or segment, and leave the rest.

Bytes changed at random mostly break a file's outermost structure, and everything behind it goes
untested. Deterministic: the same bytes and the same generator give the same mutant.
"""

from __future__ import annotations

import random
import struct
import zlib

from tests.fuzz import elements
from tests.fuzz.codestreams import segments
from tests.fuzz.damage import damaged
from tests.fuzz.seeds import LARGEST, chunk

_CHUNKS = (
    b"IHDR PLTE IDAT IEND tRNS eXIf iCCP zTXt iTXt tEXt acTL fcTL fdAT pHYs gAMA cHRM sRGB xxxx"
).split()
_TOKENS = (
    *(b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b'\\"', b"\\u0041", b"null", b"\xff", b"\n"),
    *(b'"data:image/png;base64,', b'"url":', b'"text":"', b'"user"', b"A" * 4200, b"="),
)


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four damages, mostly of the format's own structure."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.15:
            data = damaged(data, rng)
        elif data[128:132] == b"DICM":
            data = elements.mutated(data, rng)
        elif data[:4] == b"\x89PNG":
            data = _png(data, rng)
        elif data[:2] == b"\xff\xd8" or data[:4] == b"\xff\x4f\xff\x51":
            data = segments(data, rng)
        elif data[:1] == b"{":
            data = _json(data, rng)
        else:
            data = damaged(data, rng)
    return data[:LARGEST]


def _png(data: bytes, rng: random.Random) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return damaged(data, rng)
    at = rng.randrange(len(chunks))
    kind, value = chunks[at]
    match rng.randrange(6):
        case 0:
            del chunks[at]
        case 1:
            chunks.insert(rng.randrange(len(chunks) + 1), (kind, value))
        case 2:
            chunks[at] = (rng.choice(_CHUNKS), value)
        case 3 if kind == b"IDAT":
            try:
                chunks[at] = (kind, zlib.compress(damaged(zlib.decompress(value), rng)))
            except zlib.error:
                chunks[at] = (kind, damaged(value, rng))
        case _:
            chunks[at] = (kind, damaged(value, rng))
    return data[:8] + b"".join(chunk(kind, value) for kind, value in chunks)


def _json(data: bytes, rng: random.Random) -> bytes:
    """Moves and repeats a body's tokens."""
    marks = [at for at, byte in enumerate(data) if byte in b'"{}[],:;']
    at, one, other = rng.choices(marks or [0], k=3)
    start, end = sorted((one, other))
    match rng.randrange(4):
        case 0:
            return data[:at] + rng.choice(_TOKENS) + data[at:]
        case 1:
            return data[:at] + data[start:end] + data[at:]
        case 2:
            return data[:start] + data[end:] if end - start < 200 else data[:at] + data[at + 1 :]
        case _:
            return damaged(data, rng)
