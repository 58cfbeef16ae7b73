"""What the search for burned-in text finds, misreads and costs: ``python -m tests.bench.ocr``.

Identifiers with random letters and digits are burned into the corners of drawn chests, in four
typefaces (Pillow's own, and those that matplotlib ships), bright and dark. The last line is JSON.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from serve.errors import UnusableImage
from serve.imaging.burned_in import handle
from serve.imaging.ocr import find_text
from serve.imaging.regions import Box
from serve.phantom.draw import FINDINGS, Phantom, draw

SIZES = {512: (10, 14, 20), 1024: (12, 20, 40), 2048: (24, 40, 80)}  # two texts fit side by side
NAMES = (
    "Adeyemi Bauer Castillo Dubois Eriksen Fischer Hoang Iyer Kowalski Lindqvist Nakamura Petrov"
)
FONTS = ("DejaVuSans.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSerif.ttf", None)


def chest(side: int, seed: int) -> Image.Image:
    """A drawn chest that no test and no tuning has seen."""
    phantom = Phantom(**{FINDINGS[seed % 2 * 2]: ("left", True)[seed % 2]})  # type: ignore[arg-type]
    return draw(phantom, 10_000 + seed).convert("L").resize((side, side), Image.Resampling.BICUBIC)


def identifiers(rng: random.Random) -> list[str]:
    """Name, date of birth, record number and name as DICOM writes it: one for each corner."""
    first, last = rng.sample(NAMES.split(), 2)
    year, month, day = rng.randrange(1930, 2010), rng.randrange(1, 13), rng.randrange(1, 29)
    date = rng.choice([f"{year}-{month:02}-{day:02}", f"{day:02}.{month:02}.{year}"])
    number = rng.randrange(10**7, 10**8)
    return [f"{last}, {first}", f"DOB {date}", f"MRN {number}", f"{last}^{first}".upper()]


def burn(image: Image.Image, texts: list[str], size: int, font: str | None, fill: int) -> list[Box]:
    """Writes a text into each corner; where the ink of each is."""
    folder = Path(mpl.get_data_path()) / "fonts/ttf"
    face = ImageFont.truetype(folder / font, size) if font else ImageFont.load_default(size)
    brush, boxes = ImageDraw.Draw(image), []
    for corner, text in enumerate(texts):
        left, top, right, bottom = brush.textbbox((0, 0), text, font=face)
        x = image.width - 8 - right if corner % 2 else 8
        y = image.height - 8 - bottom if corner // 2 else 8
        brush.text((x, y), text, fill=fill, font=face)
        boxes.append(Box(int(x + left), int(y + top), int(x + right), int(y + bottom)))
    return boxes


def covered(wanted: Box, boxes: tuple[Box, ...], size: tuple[int, int]) -> bool:
    """Whether 90 % of a text's box is going to be black."""
    mask = np.zeros(size[::-1], bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return bool(mask[wanted.top : wanted.bottom, wanted.left : wanted.right].mean() > 0.9)


def measure(side: int, rounds: int) -> dict[str, float]:
    """Recall, false alarms and time on images of one size."""
    rng = random.Random(side)
    hits: list[bool] = []
    free_ms, written_ms, mask_ms = [], [], []
    alarms = refused = 0
    for seed in range(rounds):
        image = chest(side, seed)
        started = time.perf_counter()
        alarms += bool(find_text(image))
        free_ms.append(1000 * (time.perf_counter() - started))
        for size in SIZES[side]:
            dark = rng.random() < 0.5
            page = image.point(lambda grey: min(255, grey // 2 + 120)) if dark else image.copy()
            boxes = burn(page, identifiers(rng), size, FONTS[seed % 4], 0 if dark else 255)
            started = time.perf_counter()
            found = find_text(page)
            written_ms.append(1000 * (time.perf_counter() - started))
            hits += [covered(box, found, page.size) for box in boxes]
            started = time.perf_counter()
            try:
                handle(page, None, action="mask", ocr=True)
            except UnusableImage:
                refused += 1
            mask_ms.append(1000 * (time.perf_counter() - started))
    return {
        "texts": len(hits),
        "recall": round(statistics.fmean(hits), 4),
        "free_images": rounds,
        "false_alarms": alarms,
        "masked_images": len(mask_ms),
        "refused_after_masking": refused,
        "ms_free": round(statistics.median(free_ms)),
        "ms_written": round(statistics.median(written_ms)),
        "ms_masked": round(statistics.median(mask_ms)),
    }


def main() -> None:
    """Measures every size."""
    find_text(chest(512, 0))  # loads tesseract
    print(json.dumps({str(side): measure(side, 24 if side < 2000 else 12) for side in SIZES}))  # noqa: T201


if __name__ == "__main__":
    main()
