"""Ready means: a token was generated just now. A live engine can hang (CVE-2026-114051)."""

from __future__ import annotations

import asyncio
import time
import uuid

from guardrails.templates import PREAMBLE
from serve.engine import Engine, Prompt, Sampling, Turn
from serve.errors import Unavailable

TTL_S = 5.0
TIMEOUT_S = 30.0


class Readiness:
    """Proves readiness, at most every TTL_S seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = asyncio.Lock()
        self._proven_at = float("-inf")

    async def check(self) -> None:
        """Generates one token, at most every TTL_S seconds.

        Raises:
            Unavailable: no token within TIMEOUT_S.
        """
        async with self._lock:
            if time.monotonic() - self._proven_at < TTL_S:
                return
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    await generate_one_token(self._engine)
            except TimeoutError:
                raise Unavailable("The engine generates no tokens.") from None
            self._proven_at = time.monotonic()


async def generate_one_token(engine: Engine) -> None:
    """Proves that the engine answers.

    Raises:
        Unavailable: it does not.
    """
    prompt = Prompt((Turn("system", PREAMBLE), Turn("user", "Ready?")), cache_salt="ready")
    sampling = Sampling(
        max_tokens=1,
        temperature=0,
        top_p=1,
        frequency_penalty=0,
        presence_penalty=0,
        n=1,
        seed=None,
        stop=(),
        grammar=None,
        stream=False,
    )
    tokens = 0
    at_once: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    at_once.set_result(None)
    async for step in engine.generate(prompt, sampling, f"ready-{uuid.uuid4().hex}", at_once):
        tokens += sum(output.tokens for output in step.outputs)
    if tokens == 0:
        raise Unavailable("The engine generates no tokens.")
