"""Draws chest phantoms: frontal radiographs of nobody.

Coordinates: u to the right and v down, both about -1 to 1 over the shorter side, before pose. As in
radiology, the patient's right is on the image's left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Side = Literal["left", "right"]
Zone = Literal["upper", "mid", "lower"]
Plane = NDArray[np.float32]

SIDES: tuple[Side, ...] = ("left", "right")
ZONES: tuple[Zone, ...] = ("upper", "mid", "lower")
FINDINGS = ("pneumothorax", "consolidation", "cardiomegaly", "effusion")

_SIGN = {"right": -1, "left": 1}
_ZONE_V = {"upper": -0.45, "mid": -0.08, "lower": 0.28}
_LUNG_U, _LUNG_V = 0.42, -0.08  # centre of a lung


@dataclass(frozen=True, slots=True)
class Phantom:
    """What is to be seen in a drawing: its ground truth."""

    pneumothorax: Side | None = None
    consolidation: tuple[Zone, Side] | None = None
    cardiomegaly: bool = False
    effusion: Side | None = None

    def has(self, finding: str) -> bool:
        """Whether one of FINDINGS is present."""
        return bool(getattr(self, finding))


def draw(phantom: Phantom, seed: int) -> Image.Image:
    """The phantom as an RGB image of 300 to 380 pixels a side; the same for the same arguments."""
    return Image.fromarray(render(phantom, seed)[0]).convert("RGB")


def render(phantom: Phantom, seed: int) -> tuple[NDArray[np.uint8], dict[str, Plane]]:
    """The drawing, and where its findings are.

    Returns:
        Grey levels, shape (height, width); and for each finding present a mask of that shape, 0 to
        1, that training supervises the vision tower with.
    """
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(300, 380)), int(rng.integers(300, 380)))
    u, v = _pose(rng, shape)
    masks: dict[str, Plane] = {}
    tissue = rng.uniform(0.50, 0.60)
    body = _step((1 - np.sqrt((u / 0.93) ** 2 + (v / 1.25) ** 4)) * 40)
    image = 0.04 + body * tissue
    image = _lungs(rng, phantom, image, u, v, masks)
    image = np.maximum(image, _step((0.12 + 0.03 * v - np.abs(u)) * 40) * body * (tissue + 0.12))
    image = _heart(rng, phantom, image, u, v, tissue, masks)
    image = image + np.exp(-((u / 0.05) ** 2)) * 0.05 * body  # spine
    image = image + _ribs(rng, u, v) * body
    exposure, gamma = rng.uniform(0.9, 1.12), rng.uniform(0.85, 1.2)
    noise = rng.standard_normal(shape, dtype=np.float32) * rng.uniform(0.008, 0.03)
    grey = np.clip(image * exposure, 0, 1) ** gamma + noise
    return np.clip(grey * 255, 0, 255).astype(np.uint8), masks


def _step(x: Any) -> Plane:
    """A soft edge: 0 far below zero, 1 far above."""
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -30, 30))), np.float32)


def _pose(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Plane, Plane]:
    """Coordinates of every pixel, for a chest that is shifted, turned and scaled a little."""
    height, width = shape
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    half = min(shape) / 2
    dx, dy = rng.uniform(-0.06, 0.06, 2).astype(np.float32)
    x, y = (columns - width / 2) / half - dx, (rows - height / 2) / half - dy
    angle, scale = rng.uniform(-0.07, 0.07), rng.uniform(0.88, 1.05)
    cosine, sine = np.float32(np.cos(angle) / scale), np.float32(np.sin(angle) / scale)
    return x * cosine + y * sine, y * cosine - x * sine


def _texture(rng: np.random.Generator, shape: tuple[int, ...], cell: int) -> Plane:
    """Smooth noise of unit variance whose grains are about ``cell`` pixels wide."""
    height, width = shape
    coarse = rng.standard_normal((height // cell + 3, width // cell + 3), dtype=np.float32)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _lungs(
    rng: np.random.Generator,
    phantom: Phantom,
    image: Plane,
    u: Plane,
    v: Plane,
    masks: dict[str, Plane],
) -> Plane:
    air = rng.uniform(0.14, 0.24)
    markings = 0.045 * _texture(rng, u.shape, 9) + 0.03 * _texture(rng, u.shape, 4)
    width, height = rng.uniform(0.29, 0.33), rng.uniform(0.62, 0.68)
    diaphragm = rng.uniform(0.48, 0.54)
    for side, sign in _SIGN.items():
        outward = (u - sign * _LUNG_U) / width * sign  # -1 at the mediastinum, 1 at the chest wall
        radius = np.sqrt(outward**2 + ((v - _LUNG_V) / height) ** 2)
        dome = diaphragm - 0.16 * np.maximum(0, 1 - outward**2)
        lung = _step((1 - radius) * 30) * _step((dome - v) * 60)
        inside = air + markings
        if phantom.pneumothorax == side:
            # Air without markings between the chest wall and the pleural line of a smaller lung.
            edge = rng.uniform(0.66, 0.80)
            lateral = _step((outward + 0.35 - 0.6 * (v + 0.1)) * 12)
            gap = _step((radius - edge) * 60) * lateral
            pleura = np.exp(-(((radius - edge) / 0.022) ** 2)) * lateral
            inside = inside * (1 - gap) + gap * (air * 0.35) + 0.22 * pleura
            masks["pneumothorax"] = gap * lung
        if phantom.consolidation is not None and phantom.consolidation[1] == side:
            centre_u = sign * (0.44 + rng.uniform(-0.07, 0.07))
            centre_v = _ZONE_V[phantom.consolidation[0]] + rng.uniform(-0.05, 0.05)
            size = rng.uniform(0.11, 0.16)
            distance = np.sqrt(((u - centre_u) / size) ** 2 + ((v - centre_v) / size) ** 2)
            opacity = _step((1 - distance + 0.25 * _texture(rng, u.shape, 14)) * 8)
            inside = inside + opacity * rng.uniform(0.26, 0.36)
            masks["consolidation"] = opacity * lung
        if phantom.effusion == side:
            # Fluid climbs the chest wall: the meniscus is highest at the outside.
            level = rng.uniform(0.14, 0.26)
            surface = level - 0.14 * np.clip(outward, -0.6, 1) * np.abs(np.clip(outward, -0.6, 1))
            fluid = _step((v - surface) * 35)
            inside = inside * (1 - fluid) + fluid * rng.uniform(0.62, 0.72)
            masks["effusion"] = fluid * lung
        image = image * (1 - lung) + inside * lung
    return image


def _heart(
    rng: np.random.Generator,
    phantom: Phantom,
    image: Plane,
    u: Plane,
    v: Plane,
    tissue: float,
    masks: dict[str, Plane],
) -> Plane:
    # The thorax is about 1.5 wide inside: a cardiothoracic ratio under 0.42, or over 0.53.
    width = rng.uniform(0.40, 0.47) if phantom.cardiomegaly else rng.uniform(0.24, 0.30)
    height = 0.24 + 0.25 * (width - 0.24)
    centre = 0.15 if phantom.cardiomegaly else 0.10
    heart = _step((1 - np.sqrt(((u - centre) / width) ** 2 + ((v - 0.26) / height) ** 2)) * 25)
    if phantom.cardiomegaly:
        masks["cardiomegaly"] = heart
    brightness = np.float32(tissue + rng.uniform(0.12, 0.18))
    return np.asarray(np.maximum(image, heart * brightness))


def _ribs(rng: np.random.Generator, u: Plane, v: Plane) -> Plane:
    ribs = np.zeros_like(u)
    for number in range(9):
        top = -0.75 + number * 0.155 + rng.uniform(-0.01, 0.01)
        course = top + 0.44 * (np.abs(u) - 0.35) ** 2 + 0.16 * np.abs(u)
        ribs += np.exp(-(((v - course) / 0.017) ** 2))
    return ribs * np.float32(rng.uniform(0.035, 0.075)) * (np.abs(u) < 0.82)
