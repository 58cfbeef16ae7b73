"""One GET that cannot be led astray or kept busy: bounded in time and bytes, nothing followed.

No redirects, no proxy from the environment, no cookies, no decompression, certificates verified.
It knows nothing of hosts, lists or the PACS; those are for fetch.py and dicomweb.py.

No URL, host or UID goes into an error or a log line: a ``dicomweb:`` path names a patient's study.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from serve.errors import SourceUnavailable, TooLarge, UnusableImage
from serve.settings import Fetch

logger = logging.getLogger("llava_med")

# A fetch holds its bytes twice for a moment, so connections bound memory too. One slow host does
# not use up all of them.
CONNECTIONS = 16
CONNECTIONS_PER_HOST = 8
_BLOCK = 1 << 20


class Client:
    """An aiohttp session, made at its first use (a session belongs to the loop it is made in)."""

    def __init__(
        self,
        name: str,
        bounds: Fetch,
        *,
        ca_file: Path | None,
        headers: Mapping[str, str] | None = None,
        resolver: Callable[[], AbstractResolver] = aiohttp.ThreadedResolver,
    ) -> None:
        """``name`` says in errors and logs what this is a client of, without naming a host.

        Raises:
            OSError: ``ca_file`` cannot be read, or holds no certificate (ssl.SSLError).
        """
        self._name = name
        self._bounds = bounds
        # Reads the CAs from disk: here, at start-up, and not in the loop.
        self._tls = ssl.create_default_context(cafile=ca_file)
        # RFC 9110 12.5.3: identity says that we want no content coding.
        self._headers = {
            "Accept-Encoding": "identity",
            "User-Agent": "llava-med",
            **(headers or {}),
        }
        self._resolver = resolver
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def get(
        self, url: URL, *, accept: str, param: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, whatever its status. The time limit holds until the block is left.

        Raises:
            SourceUnavailable: it cannot be reached, is not who it should be, answers no HTTP, or
                takes too long. All may pass, so all may be tried again.
            TooLarge: it announces too many bytes.
            UnusableImage: it compressed the body, though asked not to. Undoing that would undo the
                limit on bytes too.
        """
        try:
            async with (
                asyncio.timeout(self._bounds.timeout_s),
                self._open().get(url, headers={"Accept": accept}, allow_redirects=False) as answer,
            ):
                yield answer
        # OSError has TimeoutError and ssl.SSLError.
        except (aiohttp.ClientError, OSError) as error:
            # The type says timeout, name, connection or certificate; the text would say which host.
            logger.warning("%s: no answer (%s)", self._name, type(error).__name__)
            raise SourceUnavailable(
                f"{self._name} does not answer, or not in time.", param=param
            ) from None

    async def read(
        self, answer: aiohttp.ClientResponse, chunks: AsyncIterable[bytes], *, param: str
    ) -> bytes:
        """Joins the body, or the part of it that ``chunks`` gives, unless it is too large."""
        if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise UnusableImage(f"{self._name} sent the image in a content encoding.", param=param)
        size = 0
        blocks: list[bytes] = []
        block = bytearray()
        async for chunk in chunks:
            size += len(chunk)
            self.bound(size, param=param)
            # One object a chunk would cost far more memory than the bytes, where chunks are tiny.
            block += chunk
            if len(block) >= _BLOCK:
                blocks.append(bytes(block))
                block.clear()
        blocks.append(bytes(block))
        # Copying 64 MB takes longer than the loop may stand still; join lets go of the interpreter.
        return await asyncio.to_thread(b"".join, blocks)

    def bound(self, size: int | None, *, param: str) -> None:
        """Refuses a size, read or announced, beyond the limit."""
        if size is not None and size > self._bounds.max_bytes:
            raise TooLarge(f"A fetched image may have {self._bounds.max_bytes} bytes.", param=param)

    async def aclose(self) -> None:
        """Closes the connections; the next get opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=self._tls,
                    resolver=self._resolver(),
                    limit=CONNECTIONS,
                    limit_per_host=CONNECTIONS_PER_HOST,
                ),
                headers=self._headers,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=self._bounds.timeout_s),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session
