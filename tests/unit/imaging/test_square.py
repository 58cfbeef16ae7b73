"""What the model sees, against the reference: the authors' padding, CLIP's resize and normalising.

The reference here is transformers' PIL image processor with ``do_pad``, which the golden record of
the authors' own code agrees with to 0.0001 (tests/e2e/test_parity.py). It pads into the middle.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import LlavaImageProcessorPil

from serve.checkpoint.golden import Pixels, drawn_square, read_golden
from serve.errors import TooLarge
from serve.imaging import raster
from serve.imaging.square import BACKGROUND, to_square, with_square_pixels

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "with-vision-tower"
SIDE = 336
RNG = np.random.default_rng(4)


@pytest.fixture(scope="module")
def processor() -> LlavaImageProcessorPil:
    config = json.loads(
        (GOLDEN / "clip-vit-tiny-patch14-336" / "preprocessor_config.json").read_text()
    )
    return LlavaImageProcessorPil(**config | {"do_pad": True})


def _values(processor: LlavaImageProcessorPil, image: Image.Image) -> np.ndarray:
    return np.asarray(processor(image, return_tensors="np")["pixel_values"][0])


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize(
    "size",
    [
        (336, 336),
        (512, 512),
        (100, 100),
        (512, 400),
        (401, 512),
        (2000, 3),
        (1, 1),
        (1, 900),
        (7, 336),
    ],
)
def test_a_square_is_what_the_reference_makes_of_the_image(
    processor: LlavaImageProcessorPil, mode: str, size: tuple[int, int]
) -> None:
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    image = Image.fromarray(RNG.integers(0, 256, shape, dtype=np.uint8))
    assert image.mode == mode
    square = to_square(image, SIDE)
    assert (square.mode, square.size) == ("RGB", (SIDE, SIDE))
    expected = _values(processor, image.convert("RGB"))
    assert np.array_equal(_values(processor, square), expected)


def test_sixteen_bits_are_scaled_to_eight_before(processor: LlavaImageProcessorPil) -> None:
    deep = RNG.integers(0, 65536, (300, 200), dtype=np.uint16)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    image = raster.decode(file.getvalue(), "PNG", max_pixels=1 << 20)
    eight = Image.fromarray(np.floor(deep / 257 + 0.5).astype(np.uint8)).convert("RGB")
    assert np.array_equal(_values(processor, to_square(image, SIDE)), _values(processor, eight))


def test_the_record_of_the_authors_own_code_is_met(processor: LlavaImageProcessorPil) -> None:
    def measure(image: Image.Image) -> Pixels:
        values = _values(processor, to_square(image, SIDE))
        step = values.shape[-1] // 4
        return Pixels(
            mean=float(values.mean(dtype="float64")),
            std=float(values.std(dtype="float64", ddof=1)),
            sample=tuple(values[:, ::step, ::step].ravel().tolist()),
        )

    cases = read_golden(GOLDEN).cases
    assert len(cases) > 3
    for case in cases:
        data = (GOLDEN / case.image).read_bytes()
        image = raster.decode(data, "PNG", max_pixels=1 << 22).convert("RGB")
        # Which of two squares the authors drew of a non-square image was a coin toss.
        _, distance = drawn_square(image, BACKGROUND, case.pixels, measure)
        assert distance < 1e-4


@pytest.mark.parametrize(
    ("aspect", "size"), [(1, (40, 30)), (2, (40, 60)), (0.5, (80, 30)), (1.5, (40, 45))]
)
def test_pixels_become_square(aspect: float, size: tuple[int, int]) -> None:
    image = Image.new("L", (40, 30))
    assert with_square_pixels(image, aspect, max_pixels=10_000).size == size
    if aspect != 1:
        with pytest.raises(TooLarge):
            with_square_pixels(image, aspect, max_pixels=1_300)
