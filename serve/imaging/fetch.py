"""Images that do not come with the request: from https hosts on the operator's list, or the PACS.

A URL is read by one parser, yarl, which is the one that aiohttp connects by: two that disagree on
where the host begins are how allow-lists are passed (CVE-2025-6242, CVE-2026-24779).
"""

from __future__ import annotations

import logging
import re

import aiohttp
from yarl import URL

from serve.errors import BadRequest, NotFound, SourceUnavailable
from serve.imaging.addresses import NotPublicError, PublicResolver
from serve.imaging.dicomweb import Pacs
from serve.imaging.sources import Instance, Remote
from serve.imaging.transport import Client
from serve.settings import Fetch, Imaging

logger = logging.getLogger("llava_med")

_ACCEPT = "image/png, image/jpeg, application/dicom"
# What a URL may hold anywhere. yarl drops tabs and line ends; other readers do not.
_PRINTABLE = re.compile(r"[!-\[\]-~]+")  # no backslash
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
# The last label begins with a letter: nothing that any resolver takes for an IP address passes.
_HOST = re.compile(rf"(?:{_LABEL}\.)*(?=[a-z]){_LABEL}")
_TRY_AGAIN = frozenset({408, 425, 429})


class Fetcher:
    """Gets the bytes of a source. Made once; to be used in one event loop."""

    def __init__(self, settings: Imaging) -> None:
        """Opens nothing yet.

        Raises:
            ValueError: a setting that cannot be right.
            OSError: a CA file that cannot be read.
        """
        self._hosts = Hosts(settings.fetch)
        self._pacs = Pacs(settings.dicomweb, settings.fetch)

    async def get(self, source: Remote | Instance, *, param: str) -> bytes:
        """The bytes as they are stored there; whether they are an image is not looked at.

        Raises:
            BadRequest: from there nothing is fetched.
            NotFound: it is not there.
            TooLarge: more bytes than the settings allow.
            UnusableImage: it came in a content encoding.
            SourceUnavailable: no answer in time, or none that can be used.
        """
        if isinstance(source, Remote):
            return await self._hosts.get(source, param=param)
        return await self._pacs.get(source, param=param)

    async def aclose(self) -> None:
        """Closes all connections."""
        await self._hosts.aclose()
        await self._pacs.aclose()


class Hosts:
    """The https hosts on the operator's list."""

    def __init__(self, settings: Fetch) -> None:
        self._allowed = frozenset(
            _allowed(entry, place) for place, entry in enumerate(settings.allowed_hosts, 1)
        )
        self._client = Client(
            "The image's host",
            settings,
            ca_file=settings.ca_file,
            resolver=aiohttp.ThreadedResolver if settings.private_addresses else PublicResolver,
        )

    async def get(self, source: Remote, *, param: str) -> bytes:
        """Fetches a URL.

        A redirect is refused, even to the same host: whoever can place one on an allowed host
        would choose what is fetched next.

        Of the other answers, those are an error that may be tried again (503) which may be
        different next time: 408, 425, 429, 5xx, and what is no answer at all. 4xx says that the
        host will not give this image; a signed URL that has run out looks so (404 to the client).
        """
        url = self._vetted(source.url, param)
        try:
            async with self._client.get(url, accept=_ACCEPT, param=param) as answer:
                if 300 <= answer.status < 400:
                    raise _refusal(param)
                if 400 <= answer.status < 500 and answer.status not in _TRY_AGAIN:
                    raise NotFound(
                        "The image's host does not give it to this service.",
                        param=param,
                        code="image_not_found",
                    )
                if answer.status != 200:
                    raise SourceUnavailable("The image's host answers with an error.", param=param)
                self._client.bound(answer.content_length, param=param)
                return await self._client.read(answer, answer.content.iter_any(), param=param)
        except NotPublicError:
            logger.warning(
                "The image's host: its name leads to an address that is not public "
                "(imaging.fetch.private_addresses allows it)"
            )
            raise _refusal(param) from None

    async def aclose(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    def _vetted(self, text: str, param: str) -> URL:
        if not _PRINTABLE.fullmatch(text):
            raise _refusal(param)
        try:
            url = URL(text)
        except ValueError:
            raise _refusal(param) from None
        if (
            url.scheme != "https"
            or url.raw_user is not None
            or url.raw_password is not None
            or (url.raw_host, url.port) not in self._allowed
        ):
            raise _refusal(param)
        return url


def _allowed(entry: str, place: int) -> tuple[str, int]:
    """An entry of the list, ``host`` or ``host:port``, as yarl reads the host of a URL."""
    try:
        url = URL(f"https://{entry}")
    except ValueError:
        url = URL()
    host, port = url.raw_host, url.port
    # Nothing but host and port: else the entry means something that would not be kept.
    if host is None or port is None or not _HOST.fullmatch(host) or url != url.origin():
        raise ValueError(
            f"imaging.fetch.allowed_hosts: entry {place} is no host name, nor host:port "
            "(no scheme, path, wildcard or IP address)"
        )
    return host, port


def _refusal(param: str) -> BadRequest:
    # One wording for all: which check failed is nobody's business but ours.
    return BadRequest(
        "This image URL is not fetched. Only https URLs of hosts that the operator has listed are, "
        "without user name and without redirects.",
        param=param,
        code="invalid_image_url",
    )
