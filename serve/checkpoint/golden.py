"""Recorded outputs of the authors' code: the file ``expected.json`` and its images, typed.

The record was made by the code of microsoft/LLaVA-Med in float32. That code pads a non-square image
to a square and places it, at random, in the middle or one pixel further
(``llava/mm_utils.py: expand2square``). Which of the two a record has drawn shows in its pixels;
``drawn_square`` repeats it, so that a comparison does not hang on a coin toss.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from serve.checkpoint.config import read_json
from serve.checkpoint.errors import CorruptFile

IMAGE_ID = -200  # stands for an image in recorded token ids
NAME = "expected.json"


class Case(BaseModel):
    """One question about one image, and what the authors' code made of it."""

    model_config = ConfigDict(frozen=True)

    image: str
    question: str
    prompt: str
    input_ids: tuple[int, ...]
    pixel_mean: float
    pixel_std: float
    pixel_sample: tuple[float, ...]
    greedy_token_ids: tuple[int, ...]
    greedy_text: str
    first_token_top20_ids: tuple[int, ...]
    first_token_top20_logprobs: tuple[float, ...]

    @property
    def pixels(self) -> Pixels:
        """The preprocessed image."""
        return Pixels(self.pixel_mean, self.pixel_std, self.pixel_sample)


class Golden(BaseModel):
    """A record."""

    model_config = ConfigDict(frozen=True)

    source: str
    multi_turn_prompt: str
    multi_turn_ids: tuple[int, ...]
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class Pixels:
    """A preprocessed image, in brief: mean, standard deviation, and every 84th pixel both ways."""

    mean: float
    std: float
    sample: tuple[float, ...]

    def distance(self, other: Pixels) -> float:
        """The largest difference in any of it."""
        sample = zip(self.sample, other.sample, strict=True)
        return max(
            abs(self.mean - other.mean),
            abs(self.std - other.std),
            *(abs(mine - theirs) for mine, theirs in sample),
        )


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn of a recorded conversation; ``images`` counts those in front of the text."""

    role: str
    text: str
    images: int = 0


def read_golden(folder: Path) -> Golden:
    """The record in ``folder``.

    Raises:
        MissingFile, CorruptFile: it is not there or not a record.
    """
    path = folder / NAME
    try:
        golden = Golden.model_validate(read_json(path))
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors(include_url=False)[0]["loc"])
        raise CorruptFile(f"{path} is no record of golden outputs: {where}") from None
    for case in golden.cases:
        if not (folder / case.image).is_file():
            raise CorruptFile(f"{path} names {case.image}, which is not beside it")
    return golden


def parse_turns(prompt: str) -> tuple[Turn, ...]:
    """The conversation in a ``mistral_instruct`` prompt; the template's inverse."""
    turns: list[Turn] = []
    pattern = r"\[INST\] ((?:<image>\n)*)(.*?) \[/INST\](?: (.*?) </s>)?"
    for images, question, answer in re.findall(pattern, prompt, flags=re.DOTALL):
        turns.append(Turn("user", question, images.count("<image>")))
        if answer:
            turns.append(Turn("assistant", answer))
    return tuple(turns)


def expand_image(ids: tuple[int, ...], image_id: int, tokens: int) -> list[int]:
    """Recorded token ids with each image as ``tokens`` image tokens, as an engine counts them."""
    return [
        expanded
        for token in ids
        for expanded in ([image_id] * tokens if token == IMAGE_ID else [token])
    ]


def drawn_square(
    image: Image.Image,
    background: tuple[int, int, int],
    recorded: Pixels,
    measure: Callable[[Image.Image], Pixels],
) -> tuple[Image.Image, float]:
    """The square that the authors' code drew, of its two; and its distance from the record."""
    width, height = image.size
    if width == height:
        return image, recorded.distance(measure(image))
    side, margin = max(width, height), abs(width - height) // 2
    squares: list[Image.Image] = []
    for start in (margin, margin + 1):
        square = Image.new("RGB", (side, side), background)
        square.paste(image, (0, start) if width > height else (start, 0))
        squares.append(square)
    distances = [recorded.distance(measure(square)) for square in squares]
    best = distances.index(min(distances))
    return squares[best], distances[best]
