"""Clients of a chat server, and what they measure: requests per second and times between tokens."""

from __future__ import annotations

import asyncio
import json
import signal
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil
from rich.console import Console
from rich.progress import track

from serve import processes
from serve.local import run_dir
from serve.phantom.draw import Phantom, draw
from tests.e2e.images import data_url

CLIENTS = (1, 8)
REQUESTS = {1: 40, 8: 120}  # a round, by number of clients
QUESTION = "Describe the key findings."
# What every server is asked; greedy, so that the same question has the same answer.
REQUEST = {
    "model": "llava-med",
    "max_tokens": 32,
    "temperature": 0,
    "stream": True,
    "stream_options": {"include_usage": True},
}


@dataclass(frozen=True)
class Server:
    """A server to measure, and how to find its processes."""

    name: str
    url: str
    headers: dict[str, str]
    body: dict[str, Any]
    processes: Callable[[], list[psutil.Process]]

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all its processes."""
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def this_service(port: int, key: str, pid: int) -> Server:
    """The service that runs on a port, asked for free answers."""
    return Server(
        "this service",
        f"http://127.0.0.1:{port}",
        {"Authorization": f"Bearer {key}"},
        REQUEST | {"messages": [], "metadata": {"template": "free"}},
        lambda: [psutil.Process(pid), *processes.ours(run_dir(port))],
    )


def drawings() -> list[str]:
    """The images that are asked about, as data URLs."""
    return [data_url(draw(Phantom(), seed=seed).resize((512, 512)), "JPEG") for seed in range(16)]


@dataclass
class Round:
    """What one round measured; times in seconds."""

    requests_per_s: float
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    latency: list[float] = field(default_factory=list)
    per_token: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def _body(server: Server, image: str) -> bytes:
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": QUESTION}]
    messages = [*server.body["messages"], {"role": "user", "content": parts}]
    return json.dumps(server.body | {"messages": messages}).encode()


async def _one(session: aiohttp.ClientSession, server: Server, body: bytes, out: Round) -> None:
    begun = first = last = time.perf_counter()
    text: list[str] = []
    tokens = 0
    async with session.post(
        f"{server.url}/v1/chat/completions",
        data=body,
        headers=server.headers | {"Content-Type": "application/json"},
    ) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            choices = event["choices"]
            if not choices or not (content := choices[0]["delta"].get("content")):
                continue
            now = time.perf_counter()
            (out.gaps if text else out.ttft).append(now - (last if text else begun))
            first = first if text else now
            last = now
            text.append(content)
    out.latency.append(time.perf_counter() - begun)
    # Of the whole answer, as vLLM's benchmark has it: text may leave several tokens at a time.
    out.per_token.append((last - first) / max(tokens - 1, 1))
    out.texts.append("".join(text))


async def run_round(
    server: Server, images: list[str], clients: int, *, requests: int | None = None
) -> Round:
    """One round: so many clients at once, each asking as soon as it was answered."""
    out = Round(0)
    bodies = [_body(server, image) for image in images]  # encoded once, outside of the time
    queue = [bodies[number % len(bodies)] for number in range(requests or REQUESTS[clients])]
    async with aiohttp.ClientSession() as session:

        async def client() -> None:
            while queue:
                await _one(session, server, queue.pop(), out)

        begun = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        out.requests_per_s = len(out.latency) / (time.perf_counter() - begun)
    return out


def on_and_off(
    server: Server, images: list[str], clients: int, use: Callable[[str], None], *, rounds: int
) -> dict[str, dict[str, float]]:
    """Rounds of one service that are ``on`` or ``off`` by turns; who goes first changes each time.

    Args:
        server: that runs.
        images: asked about.
        clients: at once.
        use: makes the service one or the other.
        rounds: of each.
    """
    asyncio.run(run_round(server, images, clients))  # warm-up
    measured: dict[str, list[Round]] = {"on": [], "off": []}
    for number in track(range(rounds), f"{clients} clients", console=Console()):
        for name in ("on", "off") if number % 2 else ("off", "on"):
            use(name)
            measured[name].append(asyncio.run(run_round(server, images, clients)))
    return {name: summary(several) for name, several in measured.items()}


def _ms(seconds: list[float], quantile: float = 0.5) -> float:
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(quantile * len(ordered)))]


def summary(rounds: list[Round]) -> dict[str, float]:
    """Medians over all requests of some rounds; of rates, over the rounds."""
    ttft = [value for one in rounds for value in one.ttft]
    rates = [one.requests_per_s for one in rounds]
    return {
        "requests_per_s": statistics.median(rates),
        "requests_per_s_min": min(rates),
        "requests_per_s_max": max(rates),
        "ttft_ms_p50": _ms(ttft),
        "ttft_ms_p95": _ms(ttft, 0.95),
        "inter_token_ms_p50": _ms([value for one in rounds for value in one.gaps]),
        "time_per_output_token_ms_p50": _ms([value for one in rounds for value in one.per_token]),
        "latency_ms_p50": _ms([value for one in rounds for value in one.latency]),
    }


def rate(row: dict[str, float]) -> str:
    """Requests per second of a summary, with their spread over the rounds, for a table."""
    low, high = row["requests_per_s_min"], row["requests_per_s_max"]
    return f"{row['requests_per_s']:.1f} ({low:.1f} to {high:.1f})"
