"""JPEG, JPEG-LS and JPEG 2000 codestreams with one segment damaged."""

from __future__ import annotations

import random

from tests.fuzz.damage import damaged


def segments(data: bytes, rng: random.Random) -> bytes:
    """JPEG, JPEG-LS and JPEG 2000: segments of FF, marker, length (T.81 B.1.1, T.800 A.1)."""
    parts, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts.append(data[at:end])
        at = end
    parts.append(data[at:])
    at = rng.randrange(len(parts))
    part = parts[at]
    match rng.randrange(6):
        case 0:
            del parts[at]
        case 1:
            parts.insert(rng.randrange(len(parts) + 1), part)
        case 2 if len(part) > 2:
            parts[at] = part[:1] + bytes(
                [rng.choice((rng.randrange(0xC0, 256), rng.randrange(0x4F, 0x94)))]
            )
            parts[at] += part[2:]
        case 3 if len(part) > 4:
            value = damaged(part[4:], rng)
            parts[at] = part[:2] + ((len(value) + 2) & 0xFFFF).to_bytes(2, "big") + value
        case _:
            parts[at] = damaged(part, rng)
    return b"".join(parts)
