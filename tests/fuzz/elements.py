"""DICOM files with one element damaged: its tag, VR, length or value, or what lies in it."""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import dataclass

from pydicom import uid
from pydicom.datadict import dictionary_VR, tag_for_keyword

from serve.imaging.dicom import ELEMENTS
from tests.fuzz.codestreams import segments
from tests.fuzz.damage import NUMBERS, damaged, text

_LONG_VR = tuple(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_VRS = (*_LONG_VR, *b"US SS UL DS IS CS UI LO PN FD FL AT DA ZZ".split(), b"\0\0")
_READ = [
    (tag, dictionary_VR(tag).split(" ")[0].encode())
    for tag in map(tag_for_keyword, ELEMENTS)
    if tag is not None
]


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


def mutated(data: bytes, rng: random.Random) -> bytes:
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
            return damaged(data, rng)
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
            length = rng.choice((*NUMBERS, one.length + 1, one.length - 1, one.length + 2))
            found[at] = Element(one.tag, one.vr, length, one.value)
        case 5 | 6:
            found.insert(at, _new(coding, rng))
        case 7 if one.length == 0xFFFFFFFF or one.vr == b"SQ" or one.tag >> 16 == 0xFFFE:
            found[at] = _nested(one, coding, rng, depth)
        case 8:
            value = damaged(one.value, rng)
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
        return Element(one.tag, one.vr, one.length, damaged(one.value, rng))
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
        numbers = [number & mask for number in rng.choices(NUMBERS, k=count)]
        return struct.pack(f"{coding.order}{count}{kind}", *numbers)
    value = text(rng)
    return value + b" " * (len(value) % 2 if rng.random() < 0.9 else 1)


def _pixel_data(value: bytes, rng: random.Random) -> bytes:
    """Damages the inside of compressed pixels, and keeps the fragments around it."""
    for begin in (b"\xff\x4f\xff\x51", b"\xff\xd8\xff"):
        if (at := value.find(begin)) >= 0:
            return value[:at] + segments(value[at:], rng)
    return damaged(value, rng)
