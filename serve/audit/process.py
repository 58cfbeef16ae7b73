"""A writer in a process of its own, for processes whose event loop must not wait.

A replica's streams stand still while another thread of it has Python's lock, and a transaction
takes and gives that lock some twenty times. Here all of it, encryption and SQL, is elsewhere: the
replica sends an entry through a socket and gets a few bytes back once it is on disk.

The process ends when the other end of its socket closes: it writes what it was given and signs its
chain's head. If it dies, whoever waits is refused, and another one is started.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NamedTuple

from cachetools import LRUCache

from serve.audit import schema
from serve.audit.committing import NOTED_US, ChainEnd
from serve.audit.entries import AuditUnavailableError, Blob, Entry
from serve.audit.keyring import DataKey
from serve.audit.opening import Role, open_chain
from serve.audit.records import Model
from serve.audit.store import open_store
from serve.audit.writer import MAX_BATCH, MAX_QUEUED
from serve.settings import Settings

_LENGTH = struct.Struct("<Q")
_DONE = struct.Struct("<Q?")
_RESTART_S = 1.0
_LOOK_S = 0.5
_CHUNK = 1 << 18
logger = logging.getLogger("llava_med")


class _Sent(NamedTuple):
    """An entry that waits for its answer."""

    written: asyncio.Future[None]
    deadline: float  # time.monotonic()
    blobs: list[bytes]


class WriterProcess(asyncio.Protocol):
    """The replica's end. ``write`` is a Writer's, for entries without ``within``."""

    def __init__(self, settings: Settings, role: Role, model: Model | None) -> None:
        self._start_with = pickle.dumps((settings, role, model))
        self._timeout_s = settings.audit.timeout_s
        self._waiting: dict[int, _Sent] = {}
        self._looking = False  # whether the next look at what has waited too long is set
        self._number = 0
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._noted: LRUCache[bytes, float] = LRUCache(4096)
        self._closed = False

    async def start(self) -> None:
        """Starts the process. Entries may be written at once; they wait until it is up."""
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "serve.audit.process", str(theirs.fileno())]
        with theirs:
            child = await asyncio.to_thread(subprocess.Popen, command, pass_fds=[theirs.fileno()])
        # So that it is nobody's zombie, whenever it ends.
        threading.Thread(target=child.wait, name="audit-writer-end", daemon=True).start()
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: self, sock=ours)
        transport.write(_framed(self._start_with))
        self._transport = transport

    def write(self, entry: Entry) -> asyncio.Future[None]:
        """Sends an entry; the future is done once it is on disk, or has AuditUnavailableError.

        Raises:
            AuditUnavailableError: there is no process, or too many wait already.
        """
        if self._transport is None or len(self._waiting) >= MAX_QUEUED:
            raise AuditUnavailableError()
        self._number += 1
        loop = asyncio.get_running_loop()
        written = loop.create_future()
        names = [blob.name for blob in entry.blobs]
        self._waiting[self._number] = _Sent(written, time.monotonic() + self._timeout_s, names)
        self._transport.write(_framed(pickle.dumps(self._sent(self._number, entry))))
        if not self._looking:
            self._look(loop)
        return written

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuses what has waited too long, with one timer for all. It may yet be written."""
        now = time.monotonic()
        for sent in self._waiting.values():
            if sent.deadline > now:
                break  # they are in order
            _settle(sent.written, durable=False)
        self._looking = bool(self._waiting)
        if self._looking:
            loop.call_later(_LOOK_S, self._look, loop)

    def close(self) -> None:
        """Lets the process write what it has, and end."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    def data_received(self, data: bytes) -> None:
        """asyncio.Protocol."""
        self._received += data
        whole = len(self._received) // _DONE.size * _DONE.size
        for number, durable in _DONE.iter_unpack(self._received[:whole]):
            sent = self._waiting.pop(number)
            if durable:
                self._noted.update(dict.fromkeys(sent.blobs, time.monotonic()))
            _settle(sent.written, durable=durable)
        self._received = self._received[whole:]

    def connection_lost(self, _error: Exception | None) -> None:
        """asyncio.Protocol: the process has died, or was told to end."""
        self._transport, self._received = None, b""
        waiting, self._waiting = self._waiting, {}
        for sent in waiting.values():
            _settle(sent.written, durable=False)
        if not self._closed:
            logger.error("the audit writer's process has ended; another one is started")
            loop = asyncio.get_running_loop()
            self._restarting = loop.create_task(self._restart())

    async def _restart(self) -> None:
        while self._transport is None and not self._closed:
            await asyncio.sleep(_RESTART_S)
            try:
                await self.start()
            except OSError as error:  # no memory, or no process, to be had just now
                logger.error("no audit writer: %s", type(error).__name__)

    def _sent(self, number: int, entry: Entry) -> tuple[Any, ...]:
        """An entry as it is sent: tables by name, and no image that is there already."""
        noted_since = time.monotonic() - NOTED_US / 2e6  # the writer itself has the other half
        blobs = [
            (blob.name, blob.content)
            for blob in entry.blobs
            if blob.name not in self._noted or self._noted[blob.name] < noted_since
        ]
        rows = [(table.name, values) for table, values in entry.rows]
        secret = None if entry.key is None else entry.key.secret
        head = (entry.kind, entry.audit_id, entry.body, secret, entry.new_key, entry.terms)
        return number, head, blobs, rows


def _settle(written: asyncio.Future[None], *, durable: bool) -> None:
    if written.done():
        return  # whoever waited has left
    if durable:
        written.set_result(None)
    else:
        written.set_exception(AuditUnavailableError())
        written.exception()  # nobody has to have waited


def _framed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


# --- in the process ----------------------------------------------------------------------------


def main(connection: socket.socket) -> None:
    """Writes what comes, until the other end closes. All that has come goes in one transaction."""
    received = bytearray()
    while not (first := _take(received, most=1)):
        if not _receive(connection, received, timeout_s=None):
            return
    settings, role, model = pickle.loads(first[0])  # noqa: S301  # our own parent's
    end = open_chain(open_store(settings), settings, role, model)
    going_on = True
    while going_on:
        if messages := _take(received, most=MAX_BATCH):
            _write(end, messages, connection)
        else:
            going_on = _receive(connection, received, timeout_s=end.due_s())
        end.sign()
    end.close()


def _write(end: ChainEnd, messages: list[bytes], connection: socket.socket) -> None:
    numbers, entries = zip(
        *(_entry(pickle.loads(message)) for message in messages),  # noqa: S301
        strict=True,
    )
    links = zip(numbers, end.commit(entries), strict=True)
    done = (_DONE.pack(number, not isinstance(link, Exception)) for number, link in links)
    with suppress(OSError):  # nobody waits any more
        connection.settimeout(None)
        connection.sendall(b"".join(done))


def _receive(connection: socket.socket, into: bytearray, *, timeout_s: float | None) -> bool:
    """Waits for more; False: there will be none."""
    # With 0 a socket does not time out: it would block, which is another error.
    connection.settimeout(None if timeout_s is None else max(timeout_s, 0.001))
    try:
        data = connection.recv(_CHUNK)
    except TimeoutError:
        return True
    into += data
    return bool(data)


def _take(received: bytearray, *, most: int) -> list[bytes]:
    """Takes whole messages out of what was received."""
    messages: list[bytes] = []
    at = 0
    while len(received) >= at + _LENGTH.size:
        (length,) = _LENGTH.unpack_from(received, at)
        begin = at + _LENGTH.size
        if len(received) < begin + length or len(messages) == most:
            break
        messages.append(bytes(received[begin : begin + length]))
        at = begin + length
    del received[:at]
    return messages


def _entry(sent: tuple[Any, ...]) -> tuple[int, Entry]:
    number, (kind, audit_id, body, secret, new_key, terms), blobs, rows = sent
    tables = schema.metadata.tables
    return number, Entry(
        kind,
        audit_id,
        body,
        None if secret is None else DataKey(secret),
        new_key=new_key,
        terms=terms,
        blobs=tuple(Blob(name, content) for name, content in blobs),
        rows=tuple((tables[table], values) for table, values in rows),
    )


if __name__ == "__main__":
    try:
        main(socket.socket(fileno=int(sys.argv[1])))
    except Exception as failure:  # its text may say where the database is, and who we are there
        sys.exit(f"the audit writer failed: {type(failure).__name__}")
