"""The writer: on disk or refused, never a gap, and never stopped for good by what happens."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from serve.audit import checkpoints, keyring, reading
from serve.audit.checkpoints import Checkpoints
from serve.audit.committing import ChainEnd
from serve.audit.entries import AuditUnavailableError, Entry, RefusedError
from serve.audit.opening import open_writer
from serve.audit.store import open_store
from serve.audit.writer import Writer
from serve.settings import load
from tests.postgres import postgres
from tests.unit.audit.conftest import DRAFT, QUESTION, Audited, Opener


def entry(**values: object) -> Entry:
    fields = {"kind": "rotate", "audit_id": "0" * 36, "body": b"{}", "key": None, **values}
    return Entry(**fields)  # type: ignore[arg-type]


def chains(audited: Audited) -> int:
    with audited.store.reading() as connection:
        return connection.scalar(text("SELECT count(*) FROM writers")) or 0


def test_an_exchange_is_read_as_it_was_written(audited: Audited) -> None:
    audit_id = audited.write()
    with audited.store.reading() as connection:
        found = reading.exchange(audited.store, connection, audit_id)
    assert found.request.question == QUESTION
    assert found.answer is not None
    assert found.answer.choices[0].sent == DRAFT


def test_nobody_is_told_of_a_record_before_it_is_there(audited: Audited) -> None:
    link = audited.writer.write(entry()).result(10)
    with audited.store.reading() as connection:
        rows = connection.execute(text("SELECT seq FROM records WHERE kind = 'rotate'")).all()
    assert [row.seq for row in rows] == [link.seq]


def test_a_chain_begins_with_who_writes_it(audited: Audited) -> None:
    audited.write()
    with audited.store.reading() as connection:
        body = connection.scalar(text("SELECT payload FROM records WHERE seq = 1"))
    assert json.loads(bytes(body))["writer"]["role"] == "replica"


def test_whoever_stops_waiting_does_not_stop_the_writer(audited: Audited) -> None:
    """A future that somebody cancels must not end the writer's thread."""
    waiting = [audited.writer.write(entry()) for _ in range(50)]
    assert not any(future.cancel() for future in waiting)
    audited.writer.write(entry()).result(10)
    assert all(future.result(10) for future in waiting)


async def test_a_task_that_is_cancelled_takes_no_record_along(audited: Audited) -> None:
    async def wait() -> None:
        await asyncio.wrap_future(audited.writer.write(entry()))

    tasks = [asyncio.create_task(wait()) for _ in range(50)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    await asyncio.wrap_future(audited.writer.write(entry()))
    with audited.store.reading() as connection:
        count = connection.scalar(text("SELECT count(*) FROM records WHERE kind = 'rotate'"))
    assert count == 51


def test_one_that_is_refused_leaves_nothing_and_the_others_are_written(audited: Audited) -> None:
    def refuse(_connection: Connection) -> None:
        raise RefusedError

    futures = [audited.writer.write(entry(within=refuse if n == 3 else None)) for n in range(6)]
    for number, future in enumerate(futures):
        if number == 3:
            with pytest.raises(RefusedError):
                future.result(10)
        else:
            future.result(10)
    report = audited.signed()
    assert report.sound, report.problems
    assert report.records == 1 + 5


def test_one_that_fails_takes_its_batch_along_and_a_new_chain_begins(audited: Audited) -> None:
    audited.writer.write(entry()).result(10)

    def fail(_connection: Connection) -> None:
        raise ZeroDivisionError

    with pytest.raises(AuditUnavailableError):
        audited.writer.write(entry(within=fail)).result(10)
    audited.writer.write(entry()).result(10)
    assert chains(audited) == 2
    report = audited.signed()
    assert report.sound, report.problems
    assert report.records == 4


def test_checkpoints_that_cannot_be_written_lose_no_record(
    audited: Audited, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is committed must not be called unavailable, and the thread must not spin."""
    (tmp_path / "in the way").write_text("a file, where a folder should be")
    signed = Checkpoints(
        tmp_path / "in the way", audited.store.id, _signing_key(audited), interval_s=0.05
    )
    writer = Writer(ChainEnd(audited.store, signed, lambda: b"{}"))
    try:
        writer.write(entry()).result(10)
        writer.write(entry()).result(10)
        assert chains(audited) == 1
        caplog.clear()
        time.sleep(0.5)
        assert 1 <= len(caplog.records) <= 12  # it tries again, every 50 ms
    finally:
        writer.close()


def _signing_key(audited: Audited) -> checkpoints.Ed25519PrivateKey:
    key = audited.settings.audit.signing_key
    assert key is not None
    return checkpoints.signing_key(key.get_secret_value())


def test_too_many_that_wait_are_refused_at_once(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.audit.writer.MAX_QUEUED", 3)
    writer = audited.second_writer()

    def slowly(_connection: Connection) -> None:
        time.sleep(0.5)

    try:
        futures = [writer.write(entry(within=slowly))]
        with pytest.raises(AuditUnavailableError):
            futures.extend(writer.write(entry()) for _ in range(10))
        assert all(future.result(10) for future in futures)
    finally:
        writer.close()


def test_the_database_file_shows_nothing_of_an_exchange(on_sqlite: Audited, tmp_path: Path) -> None:
    for _ in range(20):
        on_sqlite.write(urgent=True, principal="dr-fancourt")
    on_sqlite.look()
    files = {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {"audit.db", "audit.db-wal"} <= files.keys()
    hidden = [QUESTION, DRAFT, "left-sided", "dr-fancourt", "an-auditor", "pneumothorax", "tension"]
    hidden += ["urgent_finding", "present"]
    pictures = list(on_sqlite.pictures.values())
    for name, content in files.items():
        for secret in [*(word.encode() for word in hidden), *(p[:64] for p in pictures)]:
            assert secret not in content, (name, secret)
    assert any(b"request" in content for content in files.values())


def test_the_database_file_is_readable_by_its_owner_only(
    on_sqlite: Audited, tmp_path: Path
) -> None:
    on_sqlite.write()
    for path in tmp_path.rglob("audit.db*"):
        assert path.stat().st_mode & 0o077 == 0, path.name


_WRITES = """
import sys
from serve.audit.opening import open_writer
from serve.audit.store import open_store
from serve.audit.writer import Entry
from serve.settings import load
from tests.postgres import postgres

settings = load()
store = open_store(settings)
writer = open_writer(store, settings, "replica")
body = b"{}" + b" " * int(sys.argv[2])
for number in range(int(sys.argv[1])):
    writer.write(Entry("rotate", "0" * 36, body, None)).result(30)
    print(number, flush=True)
writer.close()
"""


def environment(audited_url: str, folder: Path, keys: tuple[str, str]) -> dict[str, str]:
    return os.environ | {
        "LLAVA_MED_STATE_DIR": str(folder),
        "LLAVA_MED_AUDIT__URL": audited_url,
        "LLAVA_MED_AUDIT__KEY": keys[0],
        "LLAVA_MED_AUDIT__SIGNING_KEY": keys[1],
    }


def test_processes_that_open_and_write_at_once_make_one_store(url: str, tmp_path: Path) -> None:
    keys = (keyring.new_key(), keyring.new_key())
    command = [sys.executable, "-c", _WRITES, "40", "0"]
    writers = [
        subprocess.Popen(command, env=environment(url, tmp_path, keys), stdout=subprocess.DEVNULL)
        for _ in range(3)
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    audited = _opened(url, tmp_path, keys)
    report = audited.signed()
    audited.store.engine.dispose()
    assert report.sound, report.problems
    assert (report.chains, report.records) == (3, 3 * 41)


def test_all_that_open_a_new_store_at_the_same_time_open_the_same(url: str, tmp_path: Path) -> None:
    keys = (keyring.new_key(), keyring.new_key())
    start = threading.Barrier(8)

    def open_it(_number: int) -> str:
        start.wait(30)
        audited = _opened(url, tmp_path, keys)
        audited.writer.close()
        audited.store.engine.dispose()
        return audited.store.id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(open_it, range(8)))) == 1


def test_what_a_killed_process_was_told_of_is_there(url: str, tmp_path: Path) -> None:
    keys = (keyring.new_key(), keyring.new_key())
    command = [sys.executable, "-c", _WRITES, "100000", "0"]
    env = environment(url, tmp_path, keys)
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for _ in range(30):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        told = 30 + len(process.stdout.readlines())
    audited = _opened(url, tmp_path, keys)
    report = audited.signed()
    audited.store.engine.dispose()
    assert report.sound, report.problems
    assert report.records >= 1 + told - 1  # the last line may be half of one


def _opened(url: str, folder: Path, keys: tuple[str, str]) -> Audited:
    settings = load(state_dir=folder, audit={"url": url, "key": keys[0], "signing_key": keys[1]})
    store = open_store(settings)
    return Audited(settings, store, open_writer(store, settings, "command"))


_FILLS = """
import resource, signal, sys
from serve.audit.opening import open_writer
from serve.audit.store import open_store
from serve.audit.writer import AuditUnavailableError, Entry
from serve.settings import load
from tests.postgres import postgres

settings = load()
store = open_store(settings)
writer = open_writer(store, settings, "replica")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

def write():
    writer.write(Entry("rotate", "0" * 36, b"{}" + b" " * 20000, None)).result(30)

write()
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))
failed = 0
for _ in range(60):
    try:
        write()
    except AuditUnavailableError:
        failed += 1
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write()
writer.close()
print(failed)
"""


def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    keys = (keyring.new_key(), keyring.new_key())
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    done = subprocess.run(
        [sys.executable, "-c", _FILLS],
        env=environment(url, tmp_path, keys),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert 0 < int(done.stdout) < 60
    audited = _opened(url, tmp_path, keys)
    report = audited.signed()
    audited.store.engine.dispose()
    assert report.sound, report.problems


def test_a_database_that_is_killed_refuses_and_recovers(opened: Opener) -> None:
    with postgres() as server:
        audited = opened(server.database())
        kept = [audited.write() for _ in range(3)]
        server.kill()
        with pytest.raises(AuditUnavailableError):
            audited.write()
        server.start()
        kept.append(audited.write())
        with audited.store.reading() as connection:
            for audit_id in kept:
                assert reading.exchange(audited.store, connection, audit_id).answer is not None
        report = audited.signed()
        assert report.sound, report.problems
        assert report.chains >= 2
        audited.store.engine.dispose()
