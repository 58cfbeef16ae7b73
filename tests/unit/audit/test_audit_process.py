"""The writer's process: on disk or refused, and whatever becomes of it, the replica goes on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
from sqlalchemy import text

from serve.audit import process
from serve.audit.entries import AuditUnavailableError, Blob, Entry
from serve.audit.keyring import DataKey
from serve.audit.process import WriterProcess
from serve.settings import Settings
from tests.unit.audit.conftest import Audited, Opener, exchange

_WAIT_S = 30.0
_LOCK_TIMEOUT_S = 1.0


def entry(body: bytes = b"{}") -> Entry:
    return Entry("rotate", str(uuid.uuid4()), body, None)


def asking_about(blob: Blob) -> Entry:
    return Entry("request", str(uuid.uuid4()), b"{}", DataKey.new(), new_key=True, blobs=(blob,))


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[WriterProcess]:
    """A process that is up: it has written one entry."""
    writer = WriterProcess(settings, "replica", None)
    await writer.start()
    try:
        await until(lambda: writes(writer))
        yield writer
    finally:
        writer.close()


async def writes(writer: WriterProcess) -> bool:
    """Whether it takes an entry now."""
    try:
        await writer.write(entry())
    except AuditUnavailableError:
        return False
    return True


@pytest.fixture
def audited(audited: Audited) -> Audited:
    """A store whose writers' processes may start slowly."""
    return waiting_for(audited, _WAIT_S)


@pytest.fixture
def impatient(tmp_path: Path, opened: Opener) -> Audited:
    """A store in a file, whose writers wait a second for a lock."""
    return waiting_for(opened(f"sqlite:///{tmp_path / 'audit.db'}"), _LOCK_TIMEOUT_S)


def waiting_for(audited: Audited, timeout_s: float, **audit: float) -> Audited:
    """The same store, for writers that wait so long."""
    changed = audited.settings.audit.model_copy(update={"timeout_s": timeout_s, **audit})
    audited.settings = audited.settings.model_copy(update={"audit": changed})
    return audited


def written(audited: Audited) -> int:
    with audited.store.reading() as connection:
        return connection.scalar(text("SELECT count(*) FROM records WHERE kind <> 'open'")) or 0


def processes(audited: Audited) -> list[int]:
    """The writers' processes, by what they wrote of themselves."""
    with audited.store.reading() as connection:
        bodies = connection.scalars(
            text("SELECT payload FROM records WHERE kind = 'open' ORDER BY at")
        ).all()
    return [json.loads(bytes(body))["writer"]["process"] for body in bodies]


def is_running(pid: int) -> bool:
    """Whether it is there, and not only to be reaped by whoever started it."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


async def until(true: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(_WAIT_S):
        while True:
            now = true()
            if await now if isinstance(now, Awaitable) else now:
                return
            await asyncio.sleep(0.02)


async def test_an_exchange_is_on_disk_with_all_that_belongs_to_it(audited: Audited) -> None:
    picture = os.urandom(2000)
    blob = Blob(audited.store.blob_name(picture), picture)
    request, answer = exchange(audited.store, urgent=True, blob=blob)
    async with running(audited.settings) as writer:
        await writer.write(request)
        await writer.write(answer)
        (pid,) = processes(audited)
    await until(lambda: not is_running(pid))
    report = audited.verify()  # opens what was sealed there, and looks for rows and image
    assert report.sound, report.problems
    assert (report.records, report.images, report.unfinished) == (4, 1, 0)


async def test_nobody_is_told_of_an_entry_before_it_is_there(audited: Audited) -> None:
    async with running(audited.settings) as writer:
        for number in range(1, 20):
            await writer.write(entry())
            assert written(audited) == 1 + number


async def test_what_comes_at_once_shares_transactions(audited: Audited) -> None:
    """A row's transaction shows in PostgreSQL as xmin; in SQLite all of a file's log does."""
    async with running(audited.settings) as writer:
        before = _commits(audited)
        await asyncio.gather(*(writer.write(entry()) for _ in range(50)))
        transactions = _commits(audited) - before
    assert written(audited) == 51
    assert 1 <= transactions <= 10


def _commits(audited: Audited) -> int:
    """Transactions so far that wrote records."""
    if audited.store.engine.dialect.name == "postgresql":
        with audited.store.reading() as connection:
            query = text("SELECT count(DISTINCT xmin::text) FROM records")
            return connection.scalar(query) or 0
    # Each commit ends with a frame that has the database's size; others have 0 there.
    log = Path(f"{audited.store.engine.url.database}-wal").read_bytes()
    page = int.from_bytes(log[8:12])
    salt, frame = log[16:24], 24 + page
    frames = (log[at : at + 24] for at in range(32, len(log) - page, frame))
    return sum(head[8:16] == salt and head[4:8] != bytes(4) for head in frames)


async def test_a_killed_process_refuses_what_waits_and_another_one_writes(
    audited: Audited, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(audited.settings) as writer:
        (first,) = processes(audited)
        os.kill(first, signal.SIGSTOP)  # so that something does wait
        waiting = [writer.write(entry()) for _ in range(20)]
        os.kill(first, signal.SIGKILL)
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, AuditUnavailableError)
        assert "another one is started" in caplog.text
        with pytest.raises(AuditUnavailableError):
            writer.write(entry())

        await until(lambda: writes(writer))
        second = processes(audited)[-1]
        assert second != first
    await until(lambda: not is_running(second))
    assert not is_running(first)
    report = audited.verify()
    assert report.sound, report.problems
    assert (report.chains, written(audited)) == (2, 2)


async def test_a_database_that_hangs_refuses_in_time_and_goes_on_later(impatient: Audited) -> None:
    async with running(impatient.settings) as writer:
        with closing(sqlite3.connect(impatient.store.engine.url.database or "")) as other:
            other.isolation_level = None
            other.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            with pytest.raises(AuditUnavailableError):
                await writer.write(entry())
            took = time.monotonic() - began
            other.execute("ROLLBACK")
        assert 0.8 * _LOCK_TIMEOUT_S <= took <= 4 * _LOCK_TIMEOUT_S
        await until(lambda: writes(writer))
        assert len(set(processes(impatient))) == 1  # it did not have to die for that


async def test_a_process_that_does_nothing_refuses_in_time(impatient: Audited) -> None:
    async with running(impatient.settings) as writer:
        (pid,) = processes(impatient)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(AuditUnavailableError):
            await writer.write(entry())
        took = time.monotonic() - began
        before = written(impatient)
        os.kill(pid, signal.SIGCONT)
        await until(lambda: writes(writer))
    assert _LOCK_TIMEOUT_S <= took <= 4 * _LOCK_TIMEOUT_S
    assert written(impatient) >= before + 2  # also what was refused


async def test_a_closed_one_writes_what_it_has_signs_and_ends(audited: Audited) -> None:
    rarely = waiting_for(audited, _WAIT_S, checkpoint_s=3600.0)
    async with running(rarely.settings) as writer:
        (pid,) = processes(audited)
        os.kill(pid, signal.SIGSTOP)
        waiting = [writer.write(entry()) for _ in range(20)]
        await asyncio.sleep(0.1)  # all of them are in its socket
        writer.close()
        os.kill(pid, signal.SIGCONT)
        with suppress(AuditUnavailableError):  # nobody hears of them any more
            await asyncio.gather(*waiting)
        await until(lambda: not is_running(pid))
    assert written(audited) == 21
    audited.sql("DELETE FROM records WHERE seq = 22")
    (problem,) = audited.verify().problems
    assert (problem.kind, problem.seq) == ("cut off", 22)  # a checkpoint names the last of them


async def test_a_closed_one_takes_nothing(audited: Audited) -> None:
    async with running(audited.settings) as writer:
        pass
    await asyncio.sleep(0.1)
    with pytest.raises(AuditUnavailableError):
        writer.write(entry())


async def test_whoever_stops_waiting_takes_no_record_along(audited: Audited) -> None:
    async with running(audited.settings) as writer:
        futures = [writer.write(entry()) for _ in range(20)]
        for future in futures:
            future.cancel()
        await writer.write(entry())
    assert written(audited) == 1 + 21


async def test_too_many_that_wait_are_refused_at_once(
    audited: Audited, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serve.audit.process.MAX_QUEUED", 3)
    async with running(audited.settings) as writer:
        waiting = [writer.write(entry()) for _ in range(3)]
        with pytest.raises(AuditUnavailableError):
            writer.write(entry())
        await asyncio.gather(*waiting)
        await writer.write(entry())


async def test_an_image_is_sent_once(audited: Audited) -> None:
    """Until the process is another: who knows what the former one has written."""
    picture = os.urandom(100_000)
    blob = Blob(audited.store.blob_name(picture), picture)

    async with running(audited.settings) as writer:
        transport = writer._transport
        assert transport is not None
        sent: list[int] = []
        send = transport.write

        def counted(data: bytes) -> None:
            sent.append(len(data))
            send(data)

        transport.write = counted  # type: ignore[method-assign,assignment]
        for _ in range(3):
            await writer.write(asking_about(blob))
    assert sent[0] > len(picture)
    assert max(sent[1:]) < 2000
    with audited.store.reading() as connection:
        assert audited.store.blob(connection, blob.name) == picture
        assert connection.scalar(text("SELECT count(*) FROM blobs")) == 1


async def test_an_image_that_was_refused_is_sent_again(impatient: Audited) -> None:
    picture = os.urandom(1000)
    blob = Blob(impatient.store.blob_name(picture), picture)

    async with running(impatient.settings) as writer:
        with closing(sqlite3.connect(impatient.store.engine.url.database or "")) as other:
            other.isolation_level = None
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(AuditUnavailableError):
                await writer.write(asking_about(blob))
            other.execute("ROLLBACK")
        await writer.write(asking_about(blob))
    with impatient.store.reading() as connection:
        assert impatient.store.blob(connection, blob.name) == picture


def test_a_checkpoint_that_is_due_now_does_not_end_the_process() -> None:
    """With a timeout of 0 a socket does not time out: it would block, which is another error."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert process._receive(theirs, bytearray(), timeout_s=0.0)
