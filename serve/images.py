"""The image stage of the request path: an image part's URL in, what the model sees out.

Decides where an image comes from and where it is decoded: light PNG and JPEG in a thread of this
process, everything else in ImageIntake.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import anyio

from serve import metrics
from serve.body import Body
from serve.errors import ApiError
from serve.imaging import raster, sources
from serve.imaging.fetch import Fetcher
from serve.imaging.intake import Prepared, Rules, prepare, sniff
from serve.imaging.sources import DICOM, Inline, Wanted
from serve.protocol import ImageNote, ImageWindow
from serve.recent_images import RecentImages
from serve.settings import Imaging

# Where in a request an image is: the message, and the part of its content, from 0.
Place = tuple[int, int]


class Intake(Protocol):
    """Where heavy images are decoded."""

    async def prepare(self, data: bytes, declared: str | None, wanted: Wanted) -> Prepared:
        """Decodes an image; raises ApiError where it cannot be used."""
        ...


@dataclass(frozen=True, slots=True)
class TakenImage:
    """An image, as the model will see it, and what the client asked of it."""

    prepared: Prepared
    wanted: Wanted

    @property
    def note(self) -> ImageNote:
        """What was done to it, as clients and records are told."""
        prepared, windowing = self.prepared, self.prepared.windowing
        return ImageNote(
            media_type=prepared.media_type,
            role=self.wanted.role,
            frame=prepared.frame,
            frames=prepared.frames,
            window=ImageWindow(
                origin=windowing.origin, center=windowing.center, width=windowing.width
            )
            if windowing
            else None,
            burned_in=prepared.burned_in.action,
            burned_in_evidence=[str(one) for one in prepared.burned_in.evidence],
        )


class Images:
    """Takes images in."""

    def __init__(self, settings: Imaging, rules: Rules, intake: Intake) -> None:
        self._settings = settings
        self._rules = rules
        self._intake = intake
        self._fetcher = Fetcher(settings)
        self._recent = RecentImages(settings.recent_images)

    async def take_all(
        self, urls: Mapping[Place, str], inline: Body, *, principal: str
    ) -> dict[Place, TakenImage]:
        """Takes in all images of a principal's request at once.

        Raises:
            ApiError: of the first one that cannot be used; the others are given up.
        """
        taken: dict[Place, TakenImage] = {}
        refused: list[ApiError] = []

        async def take(place: Place, url: str) -> None:
            message, part = place
            try:
                param = f"messages.{message}.content.{part}"
                taken[place] = await self.take(url, inline, principal=principal, param=param)
            except ApiError as error:  # kept out of the task group, which would wrap it
                refused.append(error)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for place, url in urls.items():
                tasks.start_soon(take, place, url)
        if refused:
            raise refused[0]
        return {place: taken[place] for place in urls}

    async def take(self, url: str, inline: Body, *, principal: str, param: str) -> TakenImage:
        """Gets, decodes and de-identifies one image.

        Raises:
            ApiError: it cannot be used; ``param`` says which one it is.
        """
        started = time.perf_counter()
        kind = "unknown"
        try:
            source, wanted = await asyncio.to_thread(sources.parse, url, inline, param=param)
            declared = source.media_type if isinstance(source, Inline) else None
            data = (
                source.data
                if isinstance(source, Inline)
                else await self._fetcher.get(source, param=param)
            )
            kind = sniff(data)
            name = await asyncio.to_thread(self._recent.name, data, declared, wanted, principal)
            prepared = await self._recent.get(
                name, lambda: self._decoded(data, kind, declared, wanted)
            )
        except ApiError as error:
            error.param = param
            metrics.image_refused(kind, error.code)
            raise
        metrics.image_taken(kind, time.perf_counter() - started)
        return TakenImage(prepared, wanted)

    async def _decoded(
        self, data: bytes, kind: str, declared: str | None, wanted: Wanted
    ) -> Prepared:
        light = (
            kind != DICOM
            and not self._rules.ocr
            and raster.is_light(data, max_pixels=self._settings.light_pixels)
        )
        if light:
            return await asyncio.to_thread(prepare, data, declared, wanted, self._rules)
        return await self._intake.prepare(data, declared, wanted)
