"""Damage that knows no format, and the values that break things."""

from __future__ import annotations

import random

from pydicom import uid

from serve.imaging.decoders import DECODED_BY
from tests.dicoms import PATIENT, PATIENT_ID, ROOT

NUMBERS = (
    *(0, 1, 2, 3, 4, 7, 8, 11, 12, 15, 16, 17, 31, 32, 33, 64, 127, 128, 255, 256, 1000, 4095),
    *(0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF),
)
_TEXTS = (
    *(b"", b"\\", b"1", b"-1", b"0", b"2\\1", b"1\\2\\3", b"0.5\\0.05", b"10\\1", b"1_0", b" 7 "),
    *(b"NaN", b"inf", b"-inf", b"1e999", b"1e-320", b"9" * 30, b"\xff\xfe", b"\0\0", b"abc"),
    *(b"CT", b"MR", b"US", b"YES", b"SAVE", b"MONOCHROME1", b"MONOCHROME2", b"RGB", b"ARGB"),
    *(b"YBR_FULL", b"YBR_FULL_422", b"YBR_ICT", b"YBR_RCT", b"YBR_PARTIAL_420", b"PALETTE COLOR"),
    *(b"SIGMOID", b"LINEAR", b"LINEAR_EXACT", b"INVERSE", b"IDENTITY"),
    *(text.encode() for text in (PATIENT, PATIENT_ID, ROOT, *DECODED_BY, uid.MPEG2MPML)),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    at = rng.randrange(len(data) + 1)
    match rng.randrange(6):
        case 0 if at < len(data):
            changed[at] ^= 1 << rng.randrange(8)
        case 1:
            changed[at : at + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF))])
        case 2:
            del changed[at : at + rng.choice((1, 2, 4, 16, 300))]
        case 3:
            changed[at:at] = rng.choice((text(rng), rng.randbytes(rng.randrange(1, 9))))
        case 4:
            start = rng.randrange(len(data) + 1)
            changed[at:at] = data[start : start + rng.choice((1, 4, 60, 600))]
        case _:
            width = rng.choice((1, 2, 4))
            number = rng.choice(NUMBERS) & ((1 << 8 * width) - 1)
            changed[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
    return bytes(changed)


def text(rng: random.Random) -> bytes:
    return rng.choice(_TEXTS) * (200 if rng.random() < 0.02 else 1)
