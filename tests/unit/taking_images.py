"""The image stage for unit tests: everything is decoded in threads of the test's own process."""

from __future__ import annotations

import asyncio

from serve.images import Images
from serve.imaging.intake import Prepared, Rules, prepare
from serve.imaging.sources import Wanted
from serve.settings import Settings, load

RULES = Rules.of(load(imaging={"uid_key": "a key for unit tests"}), side=336)


class InThread:
    """serve.images.Intake without processes."""

    async def prepare(self, data: bytes, declared: str | None, wanted: Wanted) -> Prepared:
        return await asyncio.to_thread(prepare, data, declared, wanted, RULES)


def images(settings: Settings) -> Images:
    return Images(settings.imaging, RULES, InThread())
