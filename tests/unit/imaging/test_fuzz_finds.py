"""What fuzzing found, each as a small file of its own; and a few seconds of fuzzing itself."""

from __future__ import annotations

import io
import json
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid
from pydicom.encaps import encapsulate, generate_frames

from serve.errors import TooLarge, UnusableImage
from serve.imaging import raster
from serve.imaging.decoders import codestream_size
from serve.imaging.dicom import opened
from serve.imaging.intake import Prepared, Rules, prepare
from serve.imaging.sources import Wanted
from serve.imaging.workers import Workers
from serve.protocol import TextPart, parse_request
from tests.dicoms import dicom, written
from tests.fuzz import properties, seeds
from tests.fuzz.mutations import mutate

BYTES = np.arange(256, dtype=np.uint8).reshape(16, 16)
RULES = Rules(
    side=336, max_pixels=4_000_000, max_frames=100, burned_in="flag", ocr=False,
    known_regions=(), uid_key=b"",
)  # fmt: skip


def prepared(data: bytes) -> Prepared:
    return prepare(data, None, Wanted(), RULES)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def compressed(pixels: np.ndarray, syntax: uid.UID) -> bytes:
    dataset = pydicom.dcmread(io.BytesIO(dicom(pixels, syntax)))
    return bytes(next(generate_frames(dataset.PixelData, number_of_frames=1)))


def with_frame(pixels: np.ndarray, syntax: uid.UID, frame: bytes) -> bytes:
    """A file that is whole, around a compressed frame that may not be."""
    dataset = pydicom.dcmread(io.BytesIO(dicom(pixels, syntax)))
    dataset.PixelData = encapsulate([frame])
    return written(dataset)


# --- PNG and JPEG ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 3_000_000), (3_000_000, 1), (65_000, 60)])
def test_a_line_of_pixels_is_refused_before_its_square_is_made(size: tuple[int, int]) -> None:
    bomb = saved(Image.new("1", size), "PNG")
    assert len(bomb) < 10_000
    with pytest.raises(TooLarge):
        prepared(bomb)


@pytest.mark.parametrize("size", [(1000, 4000), (4000, 1000), (2000, 3)])
def test_an_image_four_times_as_long_as_wide_is_taken(size: tuple[int, int]) -> None:
    assert len(prepared(saved(Image.new("L", size), "PNG")).pixels) == 336 * 336 * 3


def test_a_damaged_chunk_after_the_pixels_of_a_png_is_refused() -> None:
    data = saved(Image.fromarray(BYTES), "PNG")
    end = data.index(b"IEND") - 4
    with pytest.raises(UnusableImage):
        prepared(data[:end] + seeds.chunk(b"iCCP", b"name\0") + data[end:])


def test_a_palette_with_transparency_gives_no_warning() -> None:
    data = saved(Image.fromarray(BYTES).convert("P"), "PNG", transparency=bytes(256))
    assert prepared(data).media_type == "image/png"  # warnings are errors here


def test_a_jpeg_of_thousands_of_scans_is_refused_undecoded() -> None:
    image = Image.new("L", (2000, 2000))
    data = saved(image, "JPEG", progressive=True)
    assert prepared(data).media_type == "image/jpeg"
    last = data[data.rindex(b"\xff\xda") : -2]
    bomb = data[:-2] + last * 2000 + data[-2:]
    started = time.monotonic()
    with pytest.raises(UnusableImage):
        prepared(bomb)
    frame = with_frame(np.zeros((2000, 2000), np.uint8), uid.JPEGBaseline8Bit, bomb)
    file = opened(frame, max_pixels=4_000_000, max_frames=1)
    with pytest.raises(UnusableImage):
        file.render(Wanted())
    assert time.monotonic() - started < 2


# --- the size of a codestream ---------------------------------------------------------------------


def _siz(rows: int, columns: int, *, tile: int = 64, left: int = 0) -> bytes:
    """Begins a JPEG 2000 codestream (T.800 A.5.1)."""
    sizes = (columns, rows, left, 0, tile, tile, 0, 0)
    return b"\xff\x4f\xff\x51" + struct.pack(">HH8IH3B", 41, 0, *sizes, 1, 7, 1, 1)


def _sof(rows: int, columns: int) -> bytes:
    return b"\xff\xc0" + struct.pack(">HBHHB3B", 11, 8, rows, columns, 1, 1, 0x11, 0)


def test_a_comment_that_looks_like_another_header_does_not_hide_the_size_of_a_jpeg() -> None:
    comment = _siz(2, 2)
    data = b"\xff\xd8\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + _sof(500, 400)
    assert not raster.is_light(data, max_pixels=100_000)
    assert codestream_size(data) == (500, 400)


@pytest.mark.parametrize("junk", [b"\xff\x00", b"\xff\xd0", b"\xff\xff\x00"])
def test_a_jpeg_whose_header_only_pillow_finds_is_not_light(junk: bytes) -> None:
    data = saved(Image.new("L", (64, 64)), "JPEG", progressive=True)
    data = data[:2] + junk + data[2:]
    assert raster.decode(data, "JPEG", max_pixels=4096).size == (64, 64)
    assert not raster.is_light(data, max_pixels=1 << 20)


@pytest.mark.parametrize("marker", [0x00, 0x01, 0xD0, 0xD8, 0xD9])
def test_a_marker_without_a_length_does_not_hide_the_frame_header(marker: int) -> None:
    # A decoder goes on at the large header; who reads a length there arrives at the small one.
    hidden = _sof(60_000, 60_000)
    skipped = 0xFFC0
    data = (b"\xff\xd8\xff" + bytes([marker]) + hidden).ljust(4 + skipped, b"\0") + _sof(16, 16)
    with pytest.raises(UnusableImage):
        codestream_size(data)


def test_the_codestream_of_a_jp2_is_the_one_in_its_box() -> None:
    def box(kind: bytes, value: bytes) -> bytes:
        return struct.pack(">I4s", len(value) + 8, kind) + value

    start = box(b"jP  ", b"\r\n\x87\n") + box(b"ftyp", b"jp2 \0\0\0\0jp2 ")
    data = start + box(b"xml ", _siz(2, 2)) + box(b"jp2c", _siz(500, 400))
    assert codestream_size(data) == (500, 400)
    whole = imagecodecs.jpeg2k_encode(BYTES, level=0, codecformat="JP2", reversible=True)
    assert codestream_size(bytes(whole)) == (16, 16)
    with pytest.raises(UnusableImage):
        codestream_size(start + box(b"xml ", _siz(2, 2)))


@pytest.mark.parametrize(
    "codestream",
    [_siz(16, 16, tile=0), _siz(16, 16, left=0xFFFFFFF0), _siz(0, 16), _siz(16, 16)[:20]],
    ids=["tiles of nothing", "from the right", "no rows", "cut short"],
)
def test_an_impossible_jpeg_2000_never_reaches_its_decoder(codestream: bytes) -> None:
    with pytest.raises(UnusableImage):
        codestream_size(codestream)


# --- compressed frames ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "syntax",
    [uid.JPEGBaseline8Bit, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless,
     uid.HTJ2KLossless, uid.RLELossless],
    ids=lambda syntax: syntax.keyword,
)  # fmt: skip
@pytest.mark.parametrize("share", [0.6, 0.8, 0.95])
def test_a_frame_that_is_cut_short_is_refused_not_filled_up(syntax: uid.UID, share: float) -> None:
    noise = np.random.default_rng(4).integers(0, 200, (64, 64), dtype=np.uint8)
    frame = compressed(noise, syntax)
    assert prepared(with_frame(noise, syntax, frame)).frame == 1
    started = time.monotonic()
    with pytest.raises(UnusableImage):
        prepared(with_frame(noise, syntax, frame[: int(len(frame) * share)]))
    assert time.monotonic() - started < 1.5  # CharLS takes longer for the like of it


def test_a_damaged_htj2k_frame_is_refused_not_filled_up() -> None:
    frame = bytearray(compressed(BYTES, uid.HTJ2KLossless))
    frame[-85] = 0
    with pytest.raises(UnusableImage):
        prepared(with_frame(BYTES, uid.HTJ2KLossless, bytes(frame)))


def _overlong_rle() -> bytes:
    """Two segments for 16 pixels of 16 bits, the second one value too long."""
    header = struct.pack("<16I", 2, 64, 66, *[0] * 13)
    frame = header + bytes([257 - 16, 7]) + bytes([257 - 17, 7])
    return with_frame(np.zeros((4, 4), np.uint16), uid.RLELossless, frame)


def test_a_decoder_that_panics_is_a_damaged_image() -> None:
    with pytest.raises(UnusableImage):
        prepared(_overlong_rle())


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    pool = Workers(workers=1, timeout_s=5, memory_mib=2048)
    yield pool
    pool.stop()


def _htj2k(data: bytes) -> tuple[int, ...]:
    shape: tuple[int, ...] = imagecodecs.htj2k_decode(data).shape
    return shape


def _short_quantisation() -> bytes:
    """Steps for one of the bands that the codestream has (QCD, T.800 A.6.4)."""
    frame = compressed(BYTES, uid.HTJ2KLossless)
    at = frame.index(b"\xff\x5c")
    length = int.from_bytes(frame[at + 2 : at + 4], "big")
    return frame[:at] + b"\xff\x5c\x00\x03" + frame[at + 4 : at + 5] + frame[at + 2 + length :]


def _without_tiles() -> bytes:
    frame = bytearray(compressed(BYTES, uid.HTJ2KLossless).rstrip(b"\0"))
    frame[24:32] = bytes(8)
    return bytes(frame)


@pytest.mark.parametrize(
    ("work", "data"),
    [
        (prepared, _overlong_rle()),
        (prepared, with_frame(BYTES, uid.HTJ2KLossless, _without_tiles())),
        # OpenJPH, which is not used for this reason: it divides by zero, and reads out of bounds.
        (_htj2k, _without_tiles()),
        (_htj2k, _short_quantisation()),
    ],
    ids=["panic", "no tiles", "division by zero", "segmentation fault"],
)
async def test_what_crashes_a_decoder_costs_one_image(
    workers: Workers, work: Callable[[bytes], object], data: bytes
) -> None:
    with pytest.raises(UnusableImage):
        await workers.run(work, data)
    assert await workers.run(abs, -1) == 1


def test_a_million_items_in_a_small_deflated_file_are_refused_unread() -> None:
    syntax = uid.DeflatedExplicitVRLittleEndian
    data = dicom(BYTES, syntax)
    length = struct.unpack_from("<I", data, 140)[0]  # of the meta group, which begins at 132
    start = 144 + length
    items = b"\xfe\xff\x00\xe0\0\0\0\0" * 1_000_000
    sequence = struct.pack("<2H2sHI", 0x5200, 0x9229, b"SQ", 0, len(items)) + items
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    inner = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    at = inner.index(b"\xe0\x7f\x10\x00")
    packed = packer.compress(inner[:at] + sequence + inner[at:]) + packer.flush()
    started = time.monotonic()
    with pytest.raises(TooLarge):
        prepared(data[:start] + packed)
    assert len(packed) < 20_000
    assert time.monotonic() - started < 3


# --- request bodies -------------------------------------------------------------------------------


def test_a_text_that_looks_like_an_image_stays_text_beside_an_image_elsewhere() -> None:
    look_alike = f"data:image/png;base64,{'A' * 5000}"
    remote = {"type": "image_url", "image_url": {"url": "https://images.example/1.png"}}
    content = [remote, {"type": "text", "text": look_alike}]
    body = {"model": "m", "messages": [{"role": "user", "content": content}]}
    request, _ = parse_request(json.dumps(body).encode())
    part = request.messages[0].content[1]
    assert isinstance(part, TextPart)
    assert part.text == look_alike


# --- a little of everything -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # the properties look at warnings themselves
@pytest.mark.parametrize("first", range(4))
def test_every_kind_of_file_survives_mutation(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # In-process: what can end a process is not among the mutants of these seeds.
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.IGNORE)
    rng = random.Random(first)
    outcomes = set()
    for data in list(seeds.images().values())[first::4]:
        outcomes.add(properties.image(data))
        outcomes |= {properties.image(mutate(data, rng)) for _ in range(8)}
    assert "prepared" in outcomes
    assert "422 unusable_image" in outcomes


def test_urls_survive_mutation() -> None:
    rng = random.Random(4)
    for data in seeds.urls().values():
        assert {properties.url(mutate(data, rng)) for _ in range(200)} != {"Inline"}


def test_bodies_survive_mutation() -> None:
    rng = random.Random(4)
    for data in seeds.bodies().values():
        assert "invalid_json" in {properties.body(mutate(data, rng)) for _ in range(60)}
