"""Drawings as the model sees them, with what training supervises: one pool, drawn once."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from serve.phantom.dialogue import random_phantom
from serve.phantom.draw import SIDES, ZONES, Phantom, render
from serve.phantom.model import GRID, IMAGE_SIZE

# What the throw-away head finds in a patch: findings with their side and zone.
LABELS = (
    *(f"pneumothorax {side}" for side in SIDES),
    *(f"consolidation {zone} {side}" for zone in ZONES for side in SIDES),
    "cardiomegaly",
    *(f"effusion {side}" for side in SIDES),
)
# CLIP's normalisation, and its mean colour as the authors' expand2square pads with it.
_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])
_PADDING = (122, 116, 104)


@dataclass(frozen=True, slots=True)
class Sample:
    """A phantom, its image of shape (336, 336, 3), its patch labels of shape (labels, 576)."""

    phantom: Phantom
    image: NDArray[np.uint8]
    patches: NDArray[np.uint8]  # 0 to 255: the share of the patch that a finding covers


def square(image: Image.Image) -> Image.Image:
    """Pads to a square in CLIP's mean colour and resizes to 336, as the authors' code does."""
    side = max(image.size)
    padded = Image.new("RGB", (side, side), _PADDING)
    padded.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return padded.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)


def pixels(images: list[NDArray[np.uint8]]) -> Tensor:
    """Normalised images, shape (batch, 3, 336, 336)."""
    scaled = torch.from_numpy(np.stack(images)).float().div_(255)
    return ((scaled - _MEAN) / _STD).permute(0, 3, 1, 2).contiguous()


def label_names(phantom: Phantom) -> dict[str, str]:
    """Finding -> its label, for the findings that are present."""
    names = {}
    if phantom.pneumothorax:
        names["pneumothorax"] = f"pneumothorax {phantom.pneumothorax}"
    if phantom.consolidation:
        names["consolidation"] = "consolidation {} {}".format(*phantom.consolidation)
    if phantom.cardiomegaly:
        names["cardiomegaly"] = "cardiomegaly"
    if phantom.effusion:
        names["effusion"] = f"effusion {phantom.effusion}"
    return names


def sample(seed: int) -> Sample:
    """The sample of a seed."""
    phantom = random_phantom(random.Random(seed))
    grey, masks = render(phantom, seed)
    image = Image.fromarray(grey).convert("RGB")
    patches = np.zeros((len(LABELS), GRID * GRID), np.uint8)
    for finding, name in label_names(phantom).items():
        side = max(image.size)
        mask = Image.new("F", (side, side))
        mask.paste(
            Image.fromarray(masks[finding]),
            ((side - image.width) // 2, (side - image.height) // 2),
        )
        shares = np.asarray(mask.resize((GRID, GRID), Image.Resampling.BOX))
        patches[LABELS.index(name)] = shares.ravel() * 255
    return Sample(phantom, np.asarray(square(image)), patches)


def samples(first_seed: int, count: int) -> Iterator[Sample]:
    """Samples of consecutive seeds, drawn on every core, in order."""
    with multiprocessing.Pool() as pool:
        yield from pool.imap(sample, range(first_seed, first_seed + count), chunksize=16)
