"""Images that were asked about lately: several questions about one image decode it once.

Kept per principal, so that nobody learns from timing what somebody else has asked about. An image
is known by a keyed hash of its file and of what is wanted of it; the key lives as long as the
process. What is kept is what the model sees and its pictures, never a file.
"""

from __future__ import annotations

import asyncio
import copy
import secrets
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from blake3 import blake3
from cachetools import LRUCache

from serve import metrics
from serve.errors import ApiError
from serve.imaging.intake import Prepared
from serve.imaging.sources import Wanted


class RecentImages:
    """The last ``size`` images, and those that are being decoded now."""

    def __init__(self, size: int) -> None:
        self._key = secrets.token_bytes(blake3.key_size)
        self._images: LRUCache[bytes, asyncio.Task[Prepared]] = LRUCache(size)

    def name(self, data: bytes, declared: str | None, wanted: Wanted, principal: str) -> bytes:
        """What an image is known by. 1 ms for 8 MB, without Python's lock."""
        # The role is of the prompt and changes no pixel.
        asked = wanted.model_copy(update={"role": None})
        context = f"{principal}\0{declared}\0{asked!r}\0".encode()
        return blake3(context, key=self._key).update(data).digest()

    async def get(
        self, name: bytes, decode: Callable[[], Coroutine[Any, Any, Prepared]]
    ) -> Prepared:
        """The image of this name; decoded if it is not here, once for all who wait for it.

        Raises:
            ApiError: what ``decode`` raised. Failures are not kept.
        """
        task = self._images.get(name)
        metrics.image_asked_for(known=task is not None)
        if task is None:
            task = asyncio.create_task(decode())
            if self._images.maxsize:
                self._images[name] = task
            task.add_done_callback(partial(self._forget_failure, name))
        try:
            # Whoever leaves does not take the image from those who wait for it, too.
            return await asyncio.shield(task)
        except ApiError as error:
            raise copy.copy(error) from None  # each caller names its own part of its request

    def _forget_failure(self, name: bytes, task: asyncio.Task[Prepared]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._images.pop(name, None)
