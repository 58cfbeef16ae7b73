"""The image stage for unit tests: everything is decoded in threads of the test's own process."""

from __future__ import annotations

import asyncio

from serve.images import Images
from serve.imaging.intake import Prepared, Rules, prepare
from serve.imaging.sources import Wanted
from serve.settings import Settings

RULES = Rules(
    side=336,
    max_pixels=50_000_000,
    max_frames=100,
    burned_in="mask",
    ocr=False,
    known_regions=(),
    uid_key=b"a key for unit tests",
)


class InThread:
    """serve.images.Intake without processes."""

    async def prepare(self, data: bytes, declared: str | None, wanted: Wanted) -> Prepared:
        return await asyncio.to_thread(prepare, data, declared, wanted, RULES)


def images(settings: Settings) -> Images:
    return Images(settings.imaging, RULES, InThread())
