"""The square that the model sees: padded in CLIP's mean colour, then resized, as it was trained.

Reference: microsoft/LLaVA-Med, ``llava/mm_utils.py``, ``expand2square`` and ``process_images``
(``image_aspect_ratio: pad``), with the bicubic resize of transformers' ``CLIPImageProcessor``. The
authors paste a non-square image into the middle or one pixel further, at random; we always take the
middle. Done here, once and exactly, the engine's own processor has nothing left to pad or resize:
it only normalises.
"""

from __future__ import annotations

from PIL import Image

from serve.errors import too_many_pixels

# CLIP's image mean (0.48145466, 0.4578275, 0.40821073) x 255, truncated as the authors do.
BACKGROUND = (122, 116, 104)


def to_square(image: Image.Image, side: int) -> Image.Image:
    """An image of mode L or RGB as RGB of ``side`` x ``side`` pixels."""
    width, height = image.size
    if width != height:
        larger = max(width, height)
        square = Image.new("RGB", (larger, larger), BACKGROUND)
        square.paste(image, ((larger - width) // 2, (larger - height) // 2))
        image = square
    # Channels are resized independently: grey needs it once, not three times.
    return image.resize((side, side), Image.Resampling.BICUBIC).convert("RGB")


def with_square_pixels(image: Image.Image, aspect: float, *, max_pixels: int) -> Image.Image:
    """Enlarges the shorter side of non-square pixels, as a viewer does.

    Args:
        image: at its own matrix.
        aspect: a pixel's height over its width.
        max_pixels: of the result.

    Raises:
        TooLarge: it would have more.
    """
    if aspect == 1:
        return image
    width, height = image.size
    size = (width, round(height * aspect)) if aspect > 1 else (round(width / aspect), height)
    if size[0] * size[1] > max_pixels:
        raise too_many_pixels(max_pixels)
    return image.resize(size, Image.Resampling.BICUBIC)
