"""A writer in a thread: whoever writes gets a future. All that waits goes in one transaction."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future
from typing import Any

from serve.audit.chain import Link
from serve.audit.committing import ChainEnd
from serve.audit.entries import AuditUnavailableError, Entry

MAX_QUEUED = 10_000
MAX_BATCH = 512
_STOP = object()


class Writer:
    """A chain's only writer."""

    def __init__(self, end: ChainEnd) -> None:
        """Starts the thread. Nothing is written before the first entry."""
        self._end = end
        self._queue: queue.Queue[Any] = queue.Queue(MAX_QUEUED)
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)
        self._thread.start()

    def write(self, entry: Entry) -> Future[Link]:
        """Takes an entry; its future is done once it is on disk.

        The future raises AuditUnavailableError, or the RefusedError that ``within`` raised.

        Raises:
            AuditUnavailableError: too many wait already.
        """
        written: Future[Link] = Future()
        # So that it cannot be cancelled: whoever stops waiting takes no record along.
        written.set_running_or_notify_cancel()
        try:
            self._queue.put_nowait((entry, written))
        except queue.Full:
            raise AuditUnavailableError() from None
        return written

    def close(self) -> None:
        """Writes what waits, signs the head, and ends the thread."""
        self._queue.put(_STOP)
        self._thread.join()

    def _run(self) -> None:
        running = True
        while running:
            batch, running = self._next()
            if batch:
                links = self._end.commit([entry for entry, _ in batch])
                for (_, written), link in zip(batch, links, strict=True):
                    if isinstance(link, Exception):
                        written.set_exception(link)
                    else:
                        written.set_result(link)
            self._end.sign()
        self._end.close()

    def _next(self) -> tuple[list[tuple[Entry, Future[Link]]], bool]:
        """What waits; nothing, when a checkpoint is due before anything comes."""
        batch: list[tuple[Entry, Future[Link]]] = []
        try:
            first = self._queue.get(timeout=self._end.due_s())
            while first is not _STOP:
                batch.append(first)
                if len(batch) == MAX_BATCH:
                    return batch, True
                first = self._queue.get_nowait()
        except queue.Empty:
            return batch, True
        return batch, False
