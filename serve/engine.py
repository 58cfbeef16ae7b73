"""What the request path asks of an engine: typed values in, typed steps out. Knows no vLLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image


@dataclass(frozen=True, slots=True)
class PromptImage:
    """An RGB image, and the name that the engine's caches know it by."""

    pixels: Image.Image
    digest: str


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of the conversation. The chat template puts images before text."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[PromptImage, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation. ``cache_salt`` keeps one principal's cached prefixes from another's."""

    turns: tuple[Turn, ...]
    cache_salt: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode. Names and meanings are vLLM's ``SamplingParams``; ``grammar`` is a regex."""

    max_tokens: int
    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    n: int
    seed: int | None
    stop: tuple[str, ...]
    grammar: str | None
    stream: bool  # False: one step at the end, which saves the work of every step between


@dataclass(frozen=True, slots=True)
class Output:
    """What one choice gained in a step: the new text, and at its end the reason."""

    index: int
    text: str
    tokens: int
    finish_reason: Literal["stop", "length"] | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the engine."""

    outputs: tuple[Output, ...]
    prompt_tokens: int


class Engine(Protocol):
    """The engine, as the request path sees it."""

    def generate(
        self, prompt: Prompt, sampling: Sampling, request_id: str, allowed: Awaitable[None]
    ) -> AsyncGenerator[Step, None]:
        """Generates. Closing the iterator aborts the request in the engine.

        The prompt may be made ready at once, but no token before ``allowed`` is done.

        Raises:
            whatever ``allowed`` raises: then nothing was generated.
            ContextTooLong, BadRequest: the prompt cannot be served.
            Unavailable: the engine is dead or failed.
        """
        ...

    async def check_health(self) -> None:
        """Raises Unavailable when the engine is dead."""
        ...

    def metrics(self) -> bytes:
        """The engine's counters in Prometheus' text format."""
        ...
