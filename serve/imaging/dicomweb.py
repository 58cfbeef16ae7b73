"""One DICOM instance from the one PACS in the settings: WADO-RS, DICOM PS3.18 10.4.

What the PACS sends is passed on as it is stored (``transfer-syntax=*``): a PACS that decodes for
us would cost it time, and the transfer more.

The operator named the host, so it may have a private address and speak plain http. UIDs go into the
request's path and nowhere else.
"""

from __future__ import annotations

import logging
import re
from base64 import b64encode
from collections.abc import AsyncIterator

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from serve.errors import BadRequest, NotFound, SourceUnavailable
from serve.imaging.sources import Instance
from serve.imaging.transport import Client
from serve.settings import Dicomweb, Fetch

logger = logging.getLogger("llava_med")

_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
# Components without content would be "." and "..", which climb in a path. Leading zeros are
# against PS3.5 9.1, but found in archives.
_UID = re.compile(r"(?=.{1,64}\Z)[0-9]+(?:\.[0-9]+)*")
_CHUNK = 256 << 10


class Pacs:
    """The PACS, or that there is none."""

    def __init__(self, settings: Dicomweb, bounds: Fetch) -> None:
        self._root = None if settings.url is None else URL(settings.url)
        self._client = Client(
            "The PACS", bounds, ca_file=settings.ca_file, headers=_credentials(settings)
        )

    async def get(self, source: Instance, *, param: str) -> bytes:
        """Retrieves an instance as a DICOM file.

        Whatever is wrong between us and the PACS is the operator's to mend and no fault of the
        request: refused credentials, a redirect, an answer other than one part. The client is told
        503, the operator's log what it was.
        """
        uids = (source.study, source.series, source.instance)
        if self._root is None or not all(_UID.fullmatch(uid) for uid in uids):
            raise BadRequest(
                "Only where a PACS is configured are instances fetched, by three UIDs: "
                "dicomweb:STUDY/SERIES/INSTANCE.",
                param=param,
                code="invalid_image_url",
            )
        study, series, instance = uids
        url = self._root / "studies" / study / "series" / series / "instances" / instance
        async with self._client.get(url, accept=_ACCEPT, param=param) as answer:
            if answer.status in (404, 410):
                raise NotFound(
                    "The PACS has no such instance.", param=param, code="image_not_found"
                )
            if answer.status != 200:
                if answer.status in (401, 403):
                    logger.warning("The PACS: refuses our credentials (%d)", answer.status)
                raise _unusable(f"status {answer.status}", param)
            if answer.content_type != "multipart/related":
                raise _unusable("not multipart/related", param)
            try:
                return await self._client.read(answer, self._only_part(answer, param), param=param)
            # What aiohttp's reader raises on a body that is not the multipart it says it is.
            except (ValueError, HttpProcessingError):
                raise _unusable("malformed multipart", param) from None

    async def _only_part(self, answer: aiohttp.ClientResponse, param: str) -> AsyncIterator[bytes]:
        reader = aiohttp.MultipartReader.from_response(answer)
        part = await reader.next()
        if not isinstance(part, aiohttp.BodyPartReader):
            raise _unusable("no part", param)
        length = part.headers.get("Content-Length", "")
        self._client.bound(int(length) if length.isdecimal() else None, param=param)
        while not part.at_eof():
            yield await part.read_chunk(_CHUNK)
        # Also: a body that breaks off has no closing boundary.
        if await reader.next() is not None:
            raise _unusable("more than one part", param)

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()


def _unusable(why: str, param: str) -> SourceUnavailable:
    logger.warning("The PACS: answer not usable (%s)", why)
    return SourceUnavailable("The PACS answers, but not with the instance.", param=param)


def _credentials(settings: Dicomweb) -> dict[str, str]:
    """The Authorization header: Bearer (RFC 6750) or Basic (RFC 7617)."""
    basic = settings.username is not None or settings.password is not None
    if settings.token is not None and basic:
        raise ValueError("imaging.dicomweb: a token, or username and password, not both")
    if settings.token is not None:
        return {"Authorization": f"Bearer {settings.token.get_secret_value()}"}
    if not basic:
        return {}
    if settings.username is None or settings.password is None or ":" in settings.username:
        raise ValueError(
            "imaging.dicomweb: username and password go together, and a username has no colon"
        )
    pair = f"{settings.username}:{settings.password.get_secret_value()}"
    return {"Authorization": f"Basic {b64encode(pair.encode()).decode()}"}
