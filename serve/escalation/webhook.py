"""Delivers one message by HTTP POST. Knows neither the outbox nor what a message says.

No redirects, no proxy from the environment, no cookies, certificates verified. The answer's body is
not read at all: its status says everything. Neither URL nor answer goes into a log line; a hook's
path may be its password.
"""

from __future__ import annotations

import asyncio
import logging
import ssl

import aiohttp

from serve.escalation.messages import signature
from serve.escalation.rules import Escalation, signing_key

logger = logging.getLogger("llava_med")


class Webhook:
    """The operator's hook. Its session is made at the first delivery (it belongs to its loop)."""

    def __init__(self, rules: Escalation) -> None:
        """Takes the settings, of which ``url`` is given.

        Raises:
            ValueError: it is not.
            OSError: ``ca_file`` cannot be read, or holds no certificate (ssl.SSLError).
        """
        endpoint = rules.endpoint
        if endpoint is None:
            raise ValueError("no webhook is set")
        self._endpoint = endpoint
        self._timeout_s = rules.timeout_s
        self._key = signing_key(rules.secret) if rules.secret is not None else None
        # Reads the CAs from disk: here, at start-up, and not in the loop.
        self._tls = ssl.create_default_context(cafile=rules.ca_file)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, id: str, timestamp: int, body: bytes) -> int | None:
        """Delivers a message; gives the answer's status, or None where there was none in time.

        Args:
            id: the message's, the same each time that it is sent.
            timestamp: of this attempt, in seconds since 1970.
            body: JSON.
        """
        headers = {
            "Content-Type": "application/json",
            "webhook-id": id,
            "webhook-timestamp": str(timestamp),
        }
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, id, timestamp, body)
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._open().post(
                    self._endpoint, data=body, headers=headers, allow_redirects=False
                ) as answer,
            ):
                return answer.status
        # OSError has TimeoutError and ssl.SSLError.
        except (aiohttp.ClientError, OSError) as error:
            # The type says timeout, name, connection or certificate; the text would say which host.
            logger.warning("escalation: no answer (%s)", type(error).__name__)
            return None

    async def aclose(self) -> None:
        """Closes the connections; the next delivery opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # Deliveries are minutes apart: a connection kept that long may be dead.
                connector=aiohttp.TCPConnector(ssl=self._tls, force_close=True),
                headers={"User-Agent": "llava-med"},
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
            )
        return self._session
