"""The edge, the request path and the real recorder over an engine that takes no time to start.

For tests that kill the process again and again: ``python -m tests.scripted PORT``; settings come
from the environment, as the service's do.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Awaitable

import uvicorn
import yaml

from guardrails import policy
from serve.audit.process import WriterProcess
from serve.audit.records import Model
from serve.audit.store import open_store
from serve.edge import build_edge
from serve.engine import Output, Prompt, Sampling, Step
from serve.principals import Principals
from serve.recorder import Recorder
from serve.settings import load
from tests.unit.taking_images import images

ANSWER = " likely present, explanation: a tension pneumothorax on the left side of the chest."


class Engine:
    """Says the same thing each time, a word a step."""

    async def generate(
        self, _prompt: Prompt, _sampling: Sampling, _request_id: str, allowed: Awaitable[None]
    ) -> AsyncGenerator[Step, None]:
        await allowed
        words = ANSWER.split(" ")[1:]
        for number, word in enumerate(words, 1):
            await asyncio.sleep(0.001)
            end = "stop" if number == len(words) else None
            yield Step((Output(0, f" {word}", 1, end),), prompt_tokens=7)  # type: ignore[arg-type]

    async def check_health(self) -> None: ...

    def metrics(self) -> bytes:
        return b""


async def main() -> None:
    settings = load()
    store, model = open_store(settings), Model(id="llava-med", digest="0" * 64)
    writer = WriterProcess(settings, "replica", model)
    await writer.start()
    recorder = Recorder(store, writer, model)
    principals = Principals.of(api_key=settings.api_key, admin_key=None, keys=None)
    # Without rules a policy is compiled in no time, and the process starts as fast.
    rules = policy.parse(yaml.safe_dump(yaml.safe_load(policy.read()) | {"rules": []}))
    app = build_edge(Engine(), settings, lambda: rules, images(settings), principals, recorder)
    config = uvicorn.Config(app, port=int(sys.argv[1]), log_level="error", lifespan="off")
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(main())
