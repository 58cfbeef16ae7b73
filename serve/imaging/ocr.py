"""Finds text that is burned into an image, with tesseract. The text itself is never handed out.

Burned-in text is thin, and far brighter or far darker than what it lies on. A morphological top-hat
(Serra 1982; Gonzalez & Woods, "Digital Image Processing", 9.6) keeps just that: strokes stay,
anatomy goes. What is left is a clean page, which tesseract reads in its sparse-text mode, once for
bright strokes and once for dark ones. Given a drawn chest as it is, tesseract misses nine in ten
white words of 20 pixels, and none after this (docs/imaging.md).

Laterality and projection markers (L, R, AP, PORTABLE, ...) are clinical, and identify nobody: they
are left alone.

tesserocr links tesseract itself: no process is started per image, and no patient's pixels or texts
go through temporary files, which is what pytesseract does.
"""

from __future__ import annotations

import csv
import functools
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serve.errors import Unavailable
from serve.imaging.regions import Box

if TYPE_CHECKING:
    import tesserocr

Plane = NDArray[np.uint8]

LANGUAGE = "eng"
# Where distributions keep tesseract's language data; TESSDATA_PREFIX comes first.
TESSDATA = (
    "/usr/share/tesseract-ocr/5/tessdata",
    "/usr/share/tessdata",
    "/usr/share/tesseract/tessdata",
    "/usr/local/share/tessdata",
)

# Words that say how the picture was taken. No word that is also a common surname.
_VIEWS = (
    "L R LT RT LEFT RIGHT A P H F S I AP PA LAT LATERAL LL RL LLAT RLAT OBL OBLIQUE LAO RAO LPO "
    "RPO CC MLO LCC RCC LMLO RMLO ML LM AXIAL CORONAL SAGITTAL"
)
_POSITIONS = (
    "ERECT UPRIGHT SUPINE PRONE SEMIERECT DECUB DECUBITUS PORTABLE MOBILE BEDSIDE INSP EXP "
    "INSPIRATION EXPIRATION"
)
CLINICAL = frozenset(f"{_VIEWS} {_POSITIONS}".split())

_MIN_HEIGHT = 5  # of a word, in pixels of the image; below, tesseract reads noise
_NARROWEST, _WIDEST = 0.2, 1.6  # of a letter, in heights of its word
_MARGIN = 3  # pixels around a box, and this share of its height:
_MARGIN_SHARE = 0.3
_REACH, _REACH_SHARE = 13, 80  # strokes are thinner: pixels at least, share of the longer side
_FLOOR = 40  # grey levels by which a stroke stands out, at least
_GAIN = 2
_MAX_SIDE = 4096

_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Word:
    """One word as tesseract read it, in pixels of the image."""

    line: tuple[str, ...]
    box: Box
    confidence: float
    text: str = ""

    @property
    def letters(self) -> int:
        """How many letters and digits it has."""
        return sum(character.isalnum() for character in self.text)

    def __repr__(self) -> str:
        return "Word(...)"  # what it says may name a patient


def find_text(image: Image.Image, *, timeout_s: float = 10.0) -> tuple[Box, ...]:
    """Where there is text that may identify somebody.

    Args:
        image: mode L or RGB.
        timeout_s: for reading one polarity. Layout analysis is not interrupted: whoever needs a
            hard limit ends the process.

    Returns:
        Boxes with a margin, within the image.

    Raises:
        Unavailable: tesseract is not installed, failed, or took too long.
    """
    pixels = np.asarray(image)
    bright, dark = (
        (pixels, 255 - pixels) if pixels.ndim == 2 else (pixels.max(2), 255 - pixels.min(2))
    )
    pages = [strokes(plane, _reach(plane)) for plane in (bright, dark)]
    readings = [_read(page, timeout_s) for page in pages]
    return tuple(
        whole(box, page < 128)
        for page, words, others in zip(pages, readings, readings[::-1], strict=True)
        for box in identifying(_unless_marked(words, others))
    )


def _unless_marked(words: list[Word], others: list[Word]) -> list[Word]:
    """Drops what is read between the strokes of a marker: the same place in the wrong polarity.

    Lone letters shield nothing: the holes of a name's letters can look like them.
    """
    markers = [
        other.box
        for other in others
        if other.letters > 1 and other.confidence >= 70 and _clinical(other)
    ]
    return [word for word in words if not any(_mostly_in(word.box, box) for box in markers)]


def _mostly_in(box: Box, other: Box) -> bool:
    width = min(box.right, other.right) - max(box.left, other.left)
    height = min(box.bottom, other.bottom) - max(box.top, other.top)
    area = (box.right - box.left) * (box.bottom - box.top)
    return width > 0 and height > 0 and width * height > 0.5 * area


def _reach(plane: Plane) -> int:
    return max(_REACH, int(max(plane.shape)) // _REACH_SHARE) | 1


def identifying(words: Iterable[Word]) -> list[Box]:
    """The boxes of words that may identify somebody.

    A line counts if one word in it is read with confidence, or if it holds seven letters at any
    confidence, four of them in one word: tesseract gives names with a caret (DOE^JANE, PS3.5 6.2.1)
    none at all. Then all of the line goes but its clinical words; a lone letter there is more
    likely an initial than a side. What is far too tall or too flat for its letters is no text, but
    anatomy read as such.
    """
    lines: dict[tuple[str, ...], list[Word]] = defaultdict(list)
    for word in words:
        if word.letters and _shaped(word):
            lines[word.line].append(word)
    return [
        word.box
        for line in lines.values()
        if _counts([word for word in line if not _clinical(word)])
        for word in line
        if word.letters == 1 or not _clinical(word)
    ]


def whole(box: Box, ink: NDArray[np.bool_]) -> Box:
    """The box with a margin, grown by up to half its height until no edge cuts through a stroke."""
    size = (ink.shape[1], ink.shape[0])
    height = box.bottom - box.top
    left, top, right, bottom = box.grown(_MARGIN + int(_MARGIN_SHARE * height)).within(size) or box
    for _ in range(height // 2 + 1):
        grown = (
            left - bool(left > 0 and ink[top:bottom, left - 1].any()),
            top - bool(top > 0 and ink[top - 1, left:right].any()),
            right + bool(right < size[0] and ink[top:bottom, right].any()),
            bottom + bool(bottom < size[1] and ink[bottom, left:right].any()),
        )
        if grown == (left, top, right, bottom):
            break
        left, top, right, bottom = grown
    return Box(left, top, right, bottom)


def _shaped(word: Word) -> bool:
    height = word.box.bottom - word.box.top
    pitch = (word.box.right - word.box.left) / (height * max(1, len(word.text)))
    return height >= _MIN_HEIGHT and _NARROWEST <= pitch <= _WIDEST


def _counts(line: list[Word]) -> bool:
    return any(
        (word.letters >= 3 and word.confidence >= 50)
        or (word.letters == 2 and word.confidence >= 85)
        for word in line
    ) or (
        max((word.letters for word in line), default=0) >= 4
        and sum(word.letters for word in line) >= 7
    )


def _clinical(word: Word) -> bool:
    return "".join(filter(str.isalnum, word.text)).upper() in CLINICAL


def strokes(plane: Plane, reach: int) -> Plane:
    """What is bright and thinner than ``reach`` pixels, dark on white.

    The floor follows the image: on noise or speckle every grain is a stroke, and half of all pixels
    stand out, whereas text covers few.
    """
    padded = np.pad(plane, reach, mode="edge")
    opened = _extreme(_extreme(padded, reach, np.minimum), reach, np.maximum)
    hat = (padded - np.minimum(padded, opened))[reach:-reach, reach:-reach]
    floor = max(_FLOOR, 3 * float(np.median(hat)))
    levels = np.clip(255 - (np.arange(256) - floor) * _GAIN, 0, 255).astype(np.uint8)
    return np.asarray(levels[hat])


def _extreme(plane: Plane, reach: int, of: np.ufunc) -> Plane:
    """Sliding minimum or maximum over squares; doubling makes it log(reach) passes a direction."""
    for axis in (0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (reach // 2, reach - 1 - reach // 2)
        plane = np.pad(plane, pad, mode="edge")
        covered = 1
        while covered < reach:
            step = min(covered, reach - covered)
            rest = plane.shape[axis] - step
            first, second = (
                (plane[:rest], plane[step:]) if axis == 0 else (plane[:, :rest], plane[:, step:])
            )
            plane = of(first, second)
            covered += step
    return plane


def _scale(side: int) -> float:
    """Tesseract wants letters of some 20 to 30 pixels; small matrices have small letters."""
    if side > _MAX_SIDE:
        return _MAX_SIDE / side
    return 3 if side <= 640 else 2 if side <= 1400 else 1


def _read(strokes: Plane, timeout_s: float) -> list[Word]:
    scale = _scale(max(strokes.shape))
    page = Image.fromarray(strokes)
    if scale != 1:
        page = page.resize(
            (max(1, round(page.width * scale)), max(1, round(page.height * scale))),
            Image.Resampling.BICUBIC,
        )
    with _lock:
        engine = _engine()
        started = time.monotonic()
        try:
            engine.SetImageBytes(page.tobytes(), page.width, page.height, 1, page.width)
            done = engine.Recognize(int(timeout_s * 1000))
            table = engine.GetTSVText(0) if done else ""
        except RuntimeError:
            raise _unavailable() from None
        finally:
            engine.Clear()
    if not done or time.monotonic() - started > timeout_s:
        raise _unavailable()
    return _words(table, scale)


def _words(table: str, scale: float) -> list[Word]:
    """Tesseract's TSV: level, page, block, paragraph, line, word, left, top, width, height, ..."""
    words = []
    for row in csv.reader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE):
        if len(row) == 12 and row[0] == "5":
            left, top, width, height = (int(value) / scale for value in row[6:10])
            box = Box(int(left), int(top), int(left + width + 1), int(top + height + 1))
            words.append(Word(tuple(row[1:5]), box, float(row[10]), row[11]))
    return words


@functools.cache
def _engine() -> tesserocr.PyTessBaseAPI:
    """Tesseract, loaded once a process (50 ms); used under the lock."""
    os.environ.setdefault("OMP_THREAD_LIMIT", "1")  # threads of its own cost more than they gain
    try:
        import tesserocr

        folder = next(
            folder
            for folder in (os.environ.get("TESSDATA_PREFIX"), *TESSDATA)
            if folder and (Path(folder) / f"{LANGUAGE}.traineddata").is_file()
        )
        engine = tesserocr.PyTessBaseAPI(path=folder, lang=LANGUAGE, psm=tesserocr.PSM.SPARSE_TEXT)
    except (ImportError, StopIteration, RuntimeError):
        raise _unavailable() from None
    engine.SetVariable("debug_file", os.devnull)  # it would write to standard error
    return engine


def _unavailable() -> Unavailable:
    return Unavailable(
        "The check for text in images is not available, so the image was not used.",
        code="ocr_unavailable",
    )
