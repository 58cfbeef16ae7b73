"""A real store in a folder, and a recorder that writes to it."""

from __future__ import annotations

import atexit
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

from serve.audit import keyring
from serve.audit.opening import open_writer
from serve.audit.records import Model
from serve.audit.store import Store, open_store
from serve.audit.writer import Writer
from serve.recorder import Recorder
from serve.settings import Settings, load

MODEL = Model(id="llava-med", digest="0" * 64)


def settings_in(folder: Path, **audit: object) -> Settings:
    """Settings of a store in a folder, with keys of its own."""
    keys = {"key": keyring.new_key(), "signing_key": keyring.new_key()}
    return load(state_dir=folder, audit={**keys, **audit})


@contextmanager
def opened(settings: Settings) -> Iterator[tuple[Store, Writer]]:
    store = open_store(settings)
    writer = open_writer(store, settings, "replica", MODEL)
    try:
        yield store, writer
    finally:
        writer.close()
        store.engine.dispose()


@contextmanager
def recorder_in(folder: Path) -> Iterator[Recorder]:
    with opened(settings_in(folder)) as (store, writer):
        yield Recorder(store, writer, MODEL)


@cache
def any_recorder() -> Recorder:
    """One for tests that do not look at what is on record; gone when the tests end."""
    running = ExitStack()
    atexit.register(running.close)
    folder = running.enter_context(tempfile.TemporaryDirectory())
    return running.enter_context(recorder_in(Path(folder)))
