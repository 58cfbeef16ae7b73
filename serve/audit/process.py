"""A writer in a process of its own, for processes whose event loop must not wait.

A replica's streams stand still while another thread of it has Python's lock, and a transaction
takes and gives that lock some twenty times. Here all of it, encryption and SQL, is elsewhere: the replica
sends an entry through a socket and gets a few bytes back once it is on disk.

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
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any

from cachetools import LRUCache

from serve.audit import schema
from serve.audit.chain import Link
from serve.audit.keyring import DataKey
from serve.audit.opening import Role, open_writer
from serve.audit.records import Model
from serve.audit.store import open_store
from serve.audit.writer import MAX_QUEUED, NOTED_US, AuditUnavailableError, Blob, Entry
from serve.settings import Settings

_LENGTH = struct.Struct("<Q")
_DONE = struct.Struct("<Q?")
_RESTART_S = 1.0
logger = logging.getLogger("llava_med")


class WriterProcess(asyncio.Protocol):
    """The replica's end. ``write`` is a Writer's, for entries without ``within``."""

    def __init__(self, settings: Settings, role: Role, model: Model | None) -> None:
        self._start_with = pickle.dumps((settings, role, model))
        self._waiting: dict[int, tuple[asyncio.Future[None], Entry]] = {}
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
            await asyncio.to_thread(subprocess.Popen, command, pass_fds=[theirs.fileno()])
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
        written = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = (written, entry)
        self._transport.write(_framed(pickle.dumps(self._sent(self._number, entry))))
        return written

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
            written, entry = self._waiting.pop(number)
            if durable:
                self._noted.update((blob.name, time.monotonic()) for blob in entry.blobs)
            _settle(written, durable=durable)
        self._received = self._received[whole:]

    def connection_lost(self, _error: Exception | None) -> None:
        """asyncio.Protocol: the process has died, or was told to end."""
        self._transport, self._received = None, b""
        waiting, self._waiting = self._waiting, {}
        for written, _ in waiting.values():
            _settle(written, durable=False)
        if not self._closed:
            logger.error("the audit writer's process has ended; another one is started")
            loop = asyncio.get_running_loop()
            self._restarting = loop.create_task(self._restart())

    async def _restart(self) -> None:
        await asyncio.sleep(_RESTART_S)
        await self.start()

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
    """Writes what comes, until the other end closes."""
    messages = _messages(connection)
    settings, role, model = pickle.loads(next(messages))  # noqa: S301  # our own parent's
    store = open_store(settings)
    writer = open_writer(store, settings, role, model)
    lock = threading.Lock()

    def answer(number: int, written: Future[Link]) -> None:
        try:
            with lock:
                connection.sendall(_DONE.pack(number, written.exception() is None))
        except OSError:
            return  # nobody waits any more

    for message in messages:
        number, entry = _entry(pickle.loads(message))  # noqa: S301
        try:
            written = writer.write(entry)
        except AuditUnavailableError as error:
            written = Future()
            written.set_exception(error)
        written.add_done_callback(partial(answer, number))
    writer.close()


def _messages(connection: socket.socket) -> Iterator[bytes]:
    with connection.makefile("rb") as stream:
        while len(head := stream.read(_LENGTH.size)) == _LENGTH.size:
            (length,) = _LENGTH.unpack(head)
            message = stream.read(length)
            if len(message) < length:
                return
            yield message


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
    main(socket.socket(fileno=int(sys.argv[1])))
