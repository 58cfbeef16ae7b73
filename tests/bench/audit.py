"""What the audit store costs and how fast it answers: ``python -m tests.bench.audit``.

Writers in processes of their own, each with a chain, on SQLite and PostgreSQL; then a store of
many exchanges with pictures: size, verification, search. The last line is JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import text

from serve.audit import checkpoints, keyring
from serve.audit.chain import Link
from serve.audit.contents import Contents
from serve.audit.entries import Blob
from serve.audit.opening import checkpoint_folder, open_writer
from serve.audit.search import search
from serve.audit.store import Store, open_store
from serve.audit.verify import verify
from serve.settings import Settings, load
from tests.postgres import postgres
from tests.unit.audit.conftest import exchange

AHEAD = 256  # records that a writer is given before it is waited for
PRINCIPALS = [f"reader-{number}" for number in range(20)]
FINDINGS = ("pneumothorax", "pleural_effusion", "consolidation", "cardiomegaly", "nodule", "oedema")


def settings_of(folder: Path, url: str) -> Settings:
    keys = folder / "keys.json"
    if not keys.exists():
        keys.write_text(json.dumps([keyring.new_key(), keyring.new_key()]))
    key, signing_key = json.loads(keys.read_text())
    audit = {"url": url, "key": key, "signing_key": signing_key, "timeout_s": 60}
    return load(state_dir=folder, audit=audit)


def write(folder: Path, url: str, count: int, picture_bytes: int, seed: int) -> float:
    """One process: exchanges as a replica writes them; its seconds."""
    rng = random.Random(seed)
    settings = settings_of(folder, url)
    store = open_store(settings)
    writer = open_writer(store, settings, "replica")
    waiting: list[Future[Link]] = []
    started = time.perf_counter()
    for _ in range(count):
        picture = rng.randbytes(picture_bytes)
        finding = rng.choice(FINDINGS)
        request, answer = exchange(
            store,
            principal=rng.choice(PRINCIPALS),
            finding=finding,
            status=rng.choice(("present", "absent", "indeterminate")),
            urgent=rng.random() < 0.03,
            blob=Blob(store.blob_name(picture), picture),
        )
        waiting += [writer.write(request), writer.write(answer)]
        if len(waiting) >= AHEAD:
            for future in waiting:
                future.result()
            waiting = []
    for future in waiting:
        future.result()
    seconds = time.perf_counter() - started
    writer.close()
    store.engine.dispose()
    return seconds


def together(folder: Path, url: str, count: int, writers: int, picture_bytes: int) -> float:
    """Records a second that several processes write at once."""
    open_store(settings_of(folder, url)).engine.dispose()
    with ProcessPoolExecutor(writers, mp_context=get_context("spawn")) as pool:
        each = [
            pool.submit(write, folder, url, count // writers, picture_bytes, seed)
            for seed in range(writers)
        ]
        return 2 * count / max(future.result() for future in each)


def searches(store: Store, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds for a page of fifty, by what is searched for."""
    term = store.term
    wanted = {
        "everything": [("kind", "answer")],
        "principal": [("kind", "answer"), ("principal", PRINCIPALS[3])],
        "finding and status": [
            ("kind", "answer"),
            ("finding", FINDINGS[0]),
            ("status", "absent"),
        ],
        "four terms": [
            ("kind", "answer"),
            ("finding", FINDINGS[1]),
            ("status", "present"),
            ("principal", PRINCIPALS[5]),
        ],
        "urgent of a principal": [
            ("kind", "answer"),
            ("urgent", "yes"),
            ("principal", PRINCIPALS[7]),
        ],
        "nothing there": [("kind", "answer"), ("principal", "nobody")],
        "common, but never together": [("finding", FINDINGS[2]), ("finding", FINDINGS[3])],
    }
    found = {}
    for name, fields in wanted.items():
        took = []
        for _ in range(rounds):
            started = time.perf_counter()
            with store.reading() as connection:
                search(connection, [term(*field) for field in fields])
            took.append((time.perf_counter() - started) * 1000)
        found[name] = {"first": took[0], "median": statistics.median(took), "worst": max(took)}
    return found


def size_of(store: Store, folder: Path) -> int:
    if store.engine.dialect.name == "sqlite":
        return sum(path.stat().st_size for path in folder.glob("audit.db*"))
    with store.reading() as connection:
        return int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)


def large(
    folder: Path, url: str, exchanges: int, picture_bytes: int, writers: int
) -> dict[str, Any]:
    """A large store: how large, how fast to write, verify and search."""
    rate = together(folder, url, exchanges, writers, picture_bytes)
    settings = settings_of(folder, url)
    store = open_store(settings)
    size = size_of(store, folder)
    if store.engine.dialect.name == "postgresql":
        with store.engine.begin() as connection:
            connection.execute(text("ANALYZE"))
    found = searches(store, 20)
    signing_key = settings.audit.signing_key
    assert signing_key is not None
    public = checkpoints.signing_key(signing_key.get_secret_value()).public_key()

    def verified(contents: Contents | None) -> tuple[float, int]:
        lines = checkpoints.read(checkpoint_folder(settings), store.id, public)
        started, walked = time.perf_counter(), [0.0]

        def progress(done: int, total: int, what: str) -> None:
            if what == "records":
                walked[0] = time.perf_counter()

        report = verify(store.engine, lines, contents, progress)
        assert report.sound, report.problems
        return report.records / (walked[0] - started), report.records

    without, records = verified(None)
    opened, _ = verified(Contents(store))
    with store.reading() as connection:
        terms = connection.scalar(text("SELECT count(*) FROM terms"))
    store.engine.dispose()
    return {
        "exchanges": exchanges,
        "records": records,
        "terms": terms,
        "bytes": size,
        "bytes_a_record_without_pictures": (size - exchanges * picture_bytes) / records,
        "written_a_second": rate,
        "verified_a_second": without,
        "verified_and_opened_a_second": opened,
        "search_ms": found,
    }


def main(
    exchanges: Annotated[int, typer.Option(help="Of the large store.")] = 300_000,
    picture_bytes: Annotated[int, typer.Option(help="Of each exchange's picture.")] = 8_000,
    count: Annotated[int, typer.Option(help="Exchanges for each measurement of writers.")] = 4000,
    databases: Annotated[str, typer.Option(help="Of the large store.")] = "sqlite",
    folder: Annotated[Path | None, typer.Option(help="Where to; gone afterwards.")] = None,
) -> None:
    """Measure the audit store."""
    result: dict[str, Any] = {"cpus": os.cpu_count()}
    with ExitStack() as stack:
        server = stack.enter_context(postgres())
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        for writers in (1, 4):
            for name in ("sqlite", "postgresql"):
                at = root / f"{name}{writers}"
                at.mkdir()
                url = server.database() if name == "postgresql" else f"sqlite:///{at}/audit.db"
                rate = together(at, url, count, writers, picture_bytes)
                result[f"{name}, {writers} writers, records a second"] = rate
                typer.echo(f"{name}, {writers} writers: {rate:.0f} records/s")
                shutil.rmtree(at)
        for name in databases.split(","):
            at = root / f"large-{name}"
            at.mkdir()
            url = server.database() if name == "postgresql" else f"sqlite:///{at}/audit.db"
            result[f"large, {name}"] = large(at, url, exchanges, picture_bytes, 2)
            typer.echo(json.dumps(result[f"large, {name}"], indent=2))
    typer.echo(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
