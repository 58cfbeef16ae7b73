"""Images for tests, and how a client turns them into a request."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut


def data_url(image: Image.Image, kind: str = "PNG") -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{encoded}"


def part(image: Image.Image, kind: str = "PNG") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(image, kind)}}


def file_part(data: bytes, media_type: str, **parameters: object) -> dict[str, Any]:
    """A file as it is, with parameters of the image: window, center, width, frame, role."""
    head = "".join(f";{name}={value}" for name, value in parameters.items())
    url = f"data:{media_type}{head};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def message(question: str, *parts: dict[str, Any]) -> list[dict[str, Any]]:
    """A user message: parts, then the question."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def ask(question: str, *images: Image.Image) -> list[dict[str, Any]]:
    """A user message: images, then the question."""
    return message(question, *map(part, images))


def noise(seed: int, size: tuple[int, int] = (512, 400)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def render_ct(dataset: Dataset, *, center: float, width: float) -> Image.Image:
    """A CT slice in Hounsfield units through a window to 8 bits (DICOM PS3.3 C.11.2.1.2)."""
    hounsfield = apply_modality_lut(dataset.pixel_array, dataset)
    grey = (hounsfield - (center - 0.5)) / (width - 1) + 0.5
    return Image.fromarray((np.clip(grey, 0, 1) * 255).round().astype(np.uint8))
