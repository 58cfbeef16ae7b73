"""The real review application on a loopback port, over a real store with drafts about phantoms."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image

from guardrails import policy
from guardrails.answers import Status, Template
from serve.audit import keyring, reading
from serve.audit.opening import open_writer
from serve.audit.records import ReviewRecord
from serve.audit.store import Store, open_store
from serve.audit.writer import Writer
from serve.phantom.draw import Phantom, draw
from serve.principals import KeyEntry, Principals, Role, keys_text
from serve.review import items
from serve.review.api import build_review_app
from serve.settings import load
from tests.exchanges import png, write_exchange
from tests.running import free_port

ROLES = {"jones": Role.REVIEWER, "smith": Role.REVIEWER, "caller": Role.CALLER}
KEYS = {name: f"key-of-{name}" for name in ROLES}

HEALTHY = Phantom()
QUESTION = "Describe the key findings."
REPORT = (
    "Findings: The heart is enlarged: cardiomegaly. No pneumothorax. "
    "A small pleural effusion cannot be excluded.\nImpression: Cardiomegaly."
)
REPORTED = {
    "cardiomegaly": Status.PRESENT,
    "effusion": Status.INDETERMINATE,
    "pneumothorax": Status.ABSENT,
}


@dataclass(frozen=True, slots=True)
class Desk:
    """A running review service."""

    url: str  # of the console
    store: Store
    writer: Writer
    database: Path

    def draft(self, **values: Any) -> str:
        """Writes an exchange (tests/exchanges.py), a report by default; gives its review's id."""
        report = {
            "question": QUESTION,
            "answers": (REPORT,),
            "findings": REPORTED,
            "template": Template.REPORT,
        }
        return write_exchange(self.store, self.writer, **report | values).review_id

    def state(self, review_id: str) -> str:
        """As it is on disk."""
        with self.store.reading() as connection:
            return items.find(connection, review_id).state

    def reviews(self, review_id: str) -> list[ReviewRecord]:
        """What reviewers did to an item, as it is on disk."""
        with self.store.reading() as connection:
            item = items.find(connection, review_id)
            key = self.store.data_key(connection, item.audit_id)
            return [
                reading.body_of(ReviewRecord, link, payload, key)
                for link, payload in reading.records_of(connection, item.audit_id)
                if link.kind == "review"
            ]

    @contextmanager
    def stuck(self) -> Iterator[None]:
        """The store takes no record meanwhile: somebody else holds its lock."""
        holder = sqlite3.connect(self.database, isolation_level=None)
        try:
            holder.execute("BEGIN IMMEDIATE")
            yield
        finally:
            holder.close()


@contextmanager
def desk_in(folder: Path) -> Iterator[Desk]:
    """Runs one whose keys are KEYS."""
    secrets = {"key": keyring.new_key(), "signing_key": keyring.new_key()}
    settings = load(state_dir=folder, audit={**secrets, "timeout_s": 1.0})
    store = open_store(settings)
    writer = open_writer(store, settings, "review")
    keys = folder / "keys.yaml"
    entries = (
        KeyEntry(
            name=name,
            roles=frozenset({role}),
            sha256=sha256(KEYS[name].encode()).hexdigest(),
        )
        for name, role in ROLES.items()
    )
    keys.write_text(keys_text(tuple(entries)))
    principals = Principals.of(api_key=None, admin_key=None, keys=keys)
    in_force = policy.load()
    app = build_review_app(store, writer, principals, lambda: in_force, timeout_s=5)
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, lifespan="off", ws="none", log_config=None)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        url = f"http://127.0.0.1:{port}/v1/reviews/console/"
        yield Desk(url, store, writer, folder / "audit.db")
    finally:
        server.should_exit = True
        thread.join()
        writer.close()
        store.engine.dispose()


def chest(phantom: Phantom = HEALTHY, size: int = 256) -> Image.Image:
    """A drawing of nobody."""
    return draw(phantom, seed=1).convert("L").resize((size, size), Image.Resampling.BICUBIC)


def file(phantom: Phantom = HEALTHY, size: int = 256) -> bytes:
    """The same as a PNG file."""
    return png(chest(phantom, size))
