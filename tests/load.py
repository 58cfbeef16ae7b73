"""Load, with a list of what was delivered whole: every one of these must be on record."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Load:
    """Clients that ask until they are told to stop, half of them streaming."""

    url: str
    key: str
    delivered: list[str] = field(default_factory=list)  # audit ids
    refused: Counter[str] = field(default_factory=Counter)  # by error code
    broken: int = 0  # connections that ended early
    _stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, client: httpx.Client, *, stream: bool, number: int) -> None:
        """Asks once; notes what came of it."""
        body: dict[str, Any] = {
            "model": "llava-med",
            "messages": [
                {"role": "user", "content": f"Is there a tension pneumothorax? ({number})"}
            ],
            "max_tokens": 40,
            "stream": stream,
        }
        try:
            response = client.post(f"{self.url}/v1/chat/completions", json=body)
        except httpx.HTTPError:
            self.broken += 1
            return
        text = response.text
        if response.status_code != 200:
            self.refused[_code(text)] += 1
        elif not stream:
            self.delivered.append(json.loads(text)["guardrails"]["audit_id"])
        elif "data: [DONE]" not in text:
            self.broken += 1
        else:
            events = [json.loads(line[6:]) for line in text.splitlines() if line[:7] == "data: {"]
            ends = [event["guardrails"]["audit_id"] for event in events if "guardrails" in event]
            if ends:
                self.delivered += ends
            else:
                self.refused[_code(json.dumps(events[-1]))] += 1

    def _run(self, number: int) -> None:
        headers = {"Authorization": f"Bearer {self.key}"}
        with httpx.Client(headers=headers, timeout=30) as client:
            asked = 0
            while not self._stop.is_set():
                before = len(self.delivered)
                self.ask(client, stream=number % 2 == 0, number=asked)
                asked += 1
                if len(self.delivered) == before:
                    self._stop.wait(0.05)  # nobody is there: do not spin

    @contextmanager
    def running(self, clients: int = 4) -> Iterator[None]:
        """Runs the clients meanwhile."""
        threads = [threading.Thread(target=self._run, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()


def _code(text: str) -> str:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "not an OpenAI error"
