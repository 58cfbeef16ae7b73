"""Mutations that know a format: they damage one element, chunk or segment, and leave the rest.

Bytes changed at random mostly break a file's outermost structure, and everything behind it goes
untested. Deterministic: the same bytes and the same generator give the same mutant.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from pydicom import uid
from pydicom.datadict import dictionary_VR, tag_for_keyword

from serve.imaging.decoders import DECODED_BY
from serve.imaging.dicom import ELEMENTS
from tests.dicoms import PATIENT, PATIENT_ID, ROOT
from tests.fuzz.seeds import LARGEST, chunk

_LONG_VR = (
    b"OB",
    b"OD",
    b"OF",
    b"OL",
    b"OV",
    b"OW",
    b"SQ",
    b"SV",
    b"UC",
    b"UN",
    b"UR",
    b"UT",
    b"UV",
)
_VRS = (*_LONG_VR, b"US", b"SS", b"UL", b"DS", b"IS", b"CS", b"UI", b"LO", b"PN", b"FD", b"FL", b"AT",
        b"DA", b"\0\0", b"ZZ")  # fmt: skip
_READ = [(tag, dictionary_VR(tag).split(" ")[0].encode()) for tag in map(tag_for_keyword, ELEMENTS)
         if tag is not None]  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 11, 12, 15, 16, 17, 31, 32, 33, 64, 127, 128, 255, 256, 1000, 4095,
            0x7FFF, 0x8000, 0xFFFE, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)  # fmt: skip
_TEXTS = (
    b"", b"\\", b"1", b"-1", b"0", b"2\\1", b"1\\2\\3", b"NaN", b"inf", b"-inf", b"1e999", b"1e-320",
    b"9" * 30, b"1_0", b" 7 ", b"\xff\xfe", b"\0\0", b"abc", b"CT", b"MR", b"US", b"MONOCHROME1",
    b"MONOCHROME2", b"RGB", b"YBR_FULL", b"YBR_FULL_422", b"YBR_ICT", b"YBR_RCT", b"YBR_PARTIAL_420",
    b"PALETTE COLOR", b"ARGB", b"SIGMOID", b"LINEAR", b"LINEAR_EXACT", b"INVERSE", b"IDENTITY",
    PATIENT.encode(), PATIENT_ID.encode(), ROOT.encode(), b"0.5\\0.05", b"10\\1", b"YES", b"SAVE",
    *(syntax.encode() for syntax in (*DECODED_BY, uid.MPEG2MPML)),
)  # fmt: skip


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four damages, mostly of the format's own structure."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        if rng.random() < 0.15:
            data = _bytes(data, rng)
        elif data[128:132] == b"DICM":
            data = _dicom(data, rng)
        elif data[:4] == b"\x89PNG":
            data = _png(data, rng)
        elif data[:2] == b"\xff\xd8" or data[:4] == b"\xff\x4f\xff\x51":
            data = _segments(data, rng)
        elif data[:1] == b"{":
            data = _json(data, rng)
        else:
            data = _bytes(data, rng)
    return data[:LARGEST]


def _bytes(data: bytes, rng: random.Random) -> bytes:
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
            changed[at:at] = rng.choice((_text(rng), rng.randbytes(rng.randrange(1, 9))))
        case 4:
            start = rng.randrange(len(data) + 1)
            changed[at:at] = data[start : start + rng.choice((1, 4, 60, 600))]
        case _:
            width = rng.choice((1, 2, 4))
            number = rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)
            changed[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
    return bytes(changed)


def _text(rng: random.Random) -> bytes:
    return rng.choice(_TEXTS) * (200 if rng.random() < 0.02 else 1)


# --- DICOM ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Coding:
    """How a dataset's elements are written (PS3.5 7.1)."""

    implicit: bool
    order: str  # of struct

    def header(self, tag: int, vr: bytes, length: int) -> bytes:
        group = struct.pack(f"{self.order}2H", tag >> 16, tag & 0xFFFF)
        length &= 0xFFFFFFFF
        if self.implicit or tag >> 16 == 0xFFFE:
            return group + struct.pack(f"{self.order}I", length)
        if vr in _LONG_VR:
            return group + vr + b"\0\0" + struct.pack(f"{self.order}I", length)
        return group + vr + struct.pack(f"{self.order}H", length & 0xFFFF)


@dataclass(frozen=True, slots=True)
class Element:
    """One element; ``length`` is as written, and may be undefined, a sequence's among them."""

    tag: int
    vr: bytes
    length: int
    value: bytes


_META = Coding(implicit=False, order="<")


def elements(data: bytes, coding: Coding) -> list[Element]:
    """Top-level elements, as far as they can be told; the last takes the rest."""
    found, at = [], 0
    while at + 8 <= len(data):
        group, number = struct.unpack_from(f"{coding.order}2H", data, at)
        vr, size = b"", 8
        if coding.implicit or group == 0xFFFE:
            (length,) = struct.unpack_from(f"{coding.order}I", data, at + 4)
        else:
            vr = data[at + 4 : at + 6]
            size = 12 if vr in _LONG_VR else 8
            if at + size > len(data):
                break
            kind, width = ("I", 4) if size == 12 else ("H", 2)
            (length,) = struct.unpack_from(coding.order + kind, data, at + size - width)
        start = at + size
        at = min(start + length, len(data)) if length != 0xFFFFFFFF else len(data)
        found.append(Element(group << 16 | number, vr, length, data[start:at]))
    return found


def _written(found: list[Element], coding: Coding) -> bytes:
    return b"".join(coding.header(one.tag, one.vr, one.length) + one.value for one in found)


def _dicom(data: bytes, rng: random.Random) -> bytes:
    preamble, rest = data[:132], data[132:]
    everything = elements(rest, _META)
    meta = [one for one in everything if one.tag >> 16 == 2]
    body = rest[len(_written(meta, _META)) :]
    syntax = next(
        (one.value.rstrip(b"\0").decode("latin-1") for one in meta if one.tag == 0x20010), ""
    )
    coding = Coding(
        implicit=syntax == uid.ImplicitVRLittleEndian,
        order=">" if syntax == uid.ExplicitVRBigEndian else "<",
    )
    if rng.random() < 0.06 and meta:
        return preamble + _written(_mutated(meta, _META, rng), _META) + body
    deflated = syntax == uid.DeflatedExplicitVRLittleEndian
    if deflated:
        try:
            body = zlib.decompress(body, -zlib.MAX_WBITS)
        except zlib.error:
            return _bytes(data, rng)
    body = _written(_mutated(elements(body, coding), coding, rng), coding)
    if deflated:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = packer.compress(body) + packer.flush()
    return preamble + _written(meta, _META) + body


def _mutated(
    found: list[Element], coding: Coding, rng: random.Random, depth: int = 0
) -> list[Element]:
    if not found:
        return [_new(coding, rng)]
    found = list(found)
    # The elements that intake reads are few among those that it passes over.
    read = {tag for tag, _ in _READ}
    chosen = [at for at, one in enumerate(found) if one.tag in read or one.tag >> 16 in (2, 0xFFFE)]
    at = rng.choice(chosen) if chosen and rng.random() < 0.9 else rng.randrange(len(found))
    one = found[at]
    match rng.randrange(12):
        case 0:
            del found[at]
        case 1:
            found.insert(rng.randrange(len(found) + 1), one)
        case 2:
            tag, vr = rng.choice(_READ)
            found[at] = Element(tag, rng.choice((vr, one.vr)), one.length, one.value)
        case 3:
            found[at] = Element(one.tag, rng.choice(_VRS), one.length, one.value)
        case 4:
            length = rng.choice((*_NUMBERS, one.length + 1, one.length - 1, one.length + 2))
            found[at] = Element(one.tag, one.vr, length, one.value)
        case 5 | 6:
            found.insert(at, _new(coding, rng))
        case 7 if one.length == 0xFFFFFFFF or one.vr == b"SQ" or one.tag >> 16 == 0xFFFE:
            found[at] = _nested(one, coding, rng, depth)
        case 8:
            value = _bytes(one.value, rng)
            length = one.length if one.length == 0xFFFFFFFF else len(value)
            found[at] = Element(one.tag, one.vr, length, value)
        case _:
            value = _value(one.vr, coding, rng)
            if one.tag >> 16 == 0x7FE0 and one.tag & 0xFFFF == 0x10 and rng.random() < 0.7:
                value = _pixel_data(one.value, rng)
            length = one.length if one.length == 0xFFFFFFFF else len(value)
            found[at] = Element(one.tag, one.vr, length, value)
    return found


def _nested(one: Element, coding: Coding, rng: random.Random, depth: int) -> Element:
    """Damage inside of a sequence, an item, or the fragments of compressed pixels."""
    inner = elements(one.value, coding)
    if not inner or depth > 4:
        return Element(one.tag, one.vr, one.length, _bytes(one.value, rng))
    value = _written(_mutated(inner, coding, rng, depth + 1), coding)
    return Element(one.tag, one.vr, one.length if rng.random() < 0.2 else len(value), value)


def _new(coding: Coding, rng: random.Random) -> Element:
    tag, vr = rng.choice(_READ)
    if rng.random() < 0.15:
        vr = rng.choice(_VRS)
    value = _value(vr, coding, rng)
    return Element(tag, vr, len(value), value)


def _value(vr: bytes, coding: Coding, rng: random.Random) -> bytes:
    kinds = {b"US": "H", b"SS": "H", b"UL": "I", b"FL": "f", b"FD": "d", b"OW": "H", b"AT": "H"}
    if vr == b"SQ":
        inner = [_new(coding, rng)] if rng.random() < 0.8 else []
        value = _written(inner, coding)
        return coding.header(0xFFFEE000, b"", len(value)) + value
    if kind := kinds.get(vr):
        count = rng.choice((0, 1, 1, 1, 2, 3, 5))
        if kind in "fd":
            special = (0.0, 1.0, -1.0, float("nan"), float("inf"), 1e300 if kind == "d" else 1e30)
            return struct.pack(f"{coding.order}{count}{kind}", *rng.choices(special, k=count))
        mask = 0xFFFF if kind == "H" else 0xFFFFFFFF
        numbers = [number & mask for number in rng.choices(_NUMBERS, k=count)]
        return struct.pack(f"{coding.order}{count}{kind}", *numbers)
    text = _text(rng)
    return text + b" " * (len(text) % 2 if rng.random() < 0.9 else 1)


def _pixel_data(value: bytes, rng: random.Random) -> bytes:
    """Damages the inside of compressed pixels, and keeps the fragments around it."""
    for begin in (b"\xff\x4f\xff\x51", b"\xff\xd8\xff"):
        if (at := value.find(begin)) >= 0:
            inner = _segments(value[at:], rng)
            return value[:at] + inner
    return _bytes(value, rng)


# --- PNG, JPEG, JPEG 2000, JSON -------------------------------------------------------------------


def _png(data: bytes, rng: random.Random) -> bytes:
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    if not chunks:
        return _bytes(data, rng)
    at = rng.randrange(len(chunks))
    kind, value = chunks[at]
    match rng.randrange(6):
        case 0:
            del chunks[at]
        case 1:
            chunks.insert(rng.randrange(len(chunks) + 1), (kind, value))
        case 2:
            kinds = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf", b"iCCP", b"zTXt", b"iTXt",
                     b"tEXt", b"acTL", b"fcTL", b"fdAT", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"xxxx")  # fmt: skip
            chunks[at] = (rng.choice(kinds), value)
        case 3 if kind == b"IDAT":
            try:
                chunks[at] = (kind, zlib.compress(_bytes(zlib.decompress(value), rng)))
            except zlib.error:
                chunks[at] = (kind, _bytes(value, rng))
        case _:
            chunks[at] = (kind, _bytes(value, rng))
    return data[:8] + b"".join(chunk(kind, value) for kind, value in chunks)


def _segments(data: bytes, rng: random.Random) -> bytes:
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
            parts[at] = part[:4] + _bytes(part[4:], rng)
            parts[at] = (
                parts[at][:2] + ((len(parts[at]) - 2) & 0xFFFF).to_bytes(2, "big") + parts[at][4:]
            )
        case _:
            parts[at] = _bytes(part, rng)
    return b"".join(parts)


def _json(data: bytes, rng: random.Random) -> bytes:
    """Moves and repeats a body's tokens."""
    tokens = (b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b'"data:image/png;base64,', b'\\"', b"\\u0041",
              b"null", b'"url":', b'"text":"', b"\xff", b"\n", b"A" * 4200, b"=", b'"user"')  # fmt: skip
    marks = [at for at, byte in enumerate(data) if byte in b'"{}[],:;']
    at = rng.choice(marks) if marks else 0
    pick: Callable[[], int] = lambda: rng.choice(marks) if marks else 0  # noqa: E731
    match rng.randrange(4):
        case 0:
            return data[:at] + rng.choice(tokens) + data[at:]
        case 1:
            start, end = sorted((pick(), pick()))
            return data[:at] + data[start:end] + data[at:]
        case 2:
            start, end = sorted((pick(), pick()))
            return data[:start] + data[end:] if end - start < 200 else data[:at] + data[at + 1 :]
        case _:
            return _bytes(data, rng)
