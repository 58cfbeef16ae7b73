"""A run over a folder: finds the files, keeps decoding processes busy, names what they wrote.

The final name is given here, after the facts have arrived, so that a file is in OUT exactly if the
report says so, whenever the run ends. Names are numbers: file and folder names may be those of
patients.
"""

from __future__ import annotations

import os
import queue
import signal
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path

from serve.deidentify.one import Entry, Job, Row, convert
from serve.errors import ApiError, InternalError
from serve.imaging.intake import ready
from serve.imaging.workers import Workers, failure
from serve.settings import Imaging

PARTIAL = ".partial"  # folder inside OUT, for files that are being written
_POLL_S = 0.1  # how long a signal waits
_NO_PROCESSES = "the decoding processes do not run; imaging.worker_memory_mib may be too little"
_NO_OCR = "tesseract does not run here; docs/imaging.md has what imaging.ocr and --ocr need"


class CannotRunError(Exception):
    """The run cannot start or go on. Fixed wording: names options, never paths."""


def find(source: Path) -> list[Entry]:
    """Every file below a folder, or the one file, in the order of sorted paths.

    Symbolic links are listed and never followed: what they point at is either in IN anyway, or is
    not IN's.

    Raises:
        CannotRunError: there are none.
    """
    found = (
        list(_below(os.fspath(source))) if source.is_dir() else [Entry(0, os.path.realpath(source))]
    )
    if not found:
        raise CannotRunError("IN has no files")
    found.sort(key=lambda entry: Path(entry.path).parts)
    return [replace(entry, number=number) for number, entry in enumerate(found, start=1)]


def _below(folder: str) -> Iterator[Entry]:
    folders = [folder]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as items:
                for item in items:
                    if item.is_symlink():
                        yield Entry(0, item.path, "symbolic_link")
                    elif item.is_dir(follow_symlinks=False):
                        folders.append(item.path)
                    elif item.is_file(follow_symlinks=False):
                        yield Entry(0, item.path)
                    else:
                        yield Entry(0, item.path, "special_file")
        except OSError:
            yield Entry(0, folder, "unreadable_folder")


@contextmanager
def processes(job: Job, imaging: Imaging, *, workers: int) -> Iterator[Workers]:
    """Decoding processes, started; all are gone when the block ends.

    Raises:
        CannotRunError: they do not start, or OCR is wanted and there is no tesseract.
    """
    pool = Workers(
        workers=workers,
        timeout_s=imaging.timeout_s,
        memory_mib=imaging.worker_memory_mib,
        # Each process would import the command line's modules for itself else.
        modules=("serve.deidentify.one", "serve.__main__"),
    )
    try:
        with _ctrl_c_kept_from_children():
            pool.warm_up(partial(ready, job.rules))
    except Exception as error:
        pool.stop()
        reason = _NO_OCR if isinstance(error, ApiError) else _NO_PROCESSES
        raise CannotRunError(reason) from None
    try:
        yield pool
    finally:
        pool.stop()


@contextmanager
def _ctrl_c_kept_from_children() -> Iterator[None]:
    """Ctrl-C at a terminal goes to every process; those that start now will not see it.

    One in its first milliseconds would end with a traceback else. Blocking is inherited. The
    resource tracker comes first because starting it unblocks.
    """
    resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


@dataclass(frozen=True, slots=True)
class Finished:
    """A row, and how many the file has in all."""

    row: Row
    rows: int


def run(
    entries: list[Entry], out: Path, job: Job, workers: Workers, *, window: int,
    stopped: Callable[[], bool],
) -> Iterator[Finished]:  # fmt: skip
    """De-identifies the entries; rows come as they are finished.

    Args:
        entries: from ``find``.
        out: the folder, from ``opened``.
        job: what is wanted.
        workers: from ``processes``.
        window: how many images to submit at once.
        stopped: asked between images; once true, the run ends, without the images in hand.
    """
    return _Run(entries, out, job, workers).rows(window, stopped)


@dataclass(frozen=True, slots=True)
class _Task:
    entry: Entry
    frame: int | None
    frames: int | None = None  # of the file, once its first frame told


class _Run:
    def __init__(self, entries: list[Entry], out: Path, job: Job, workers: Workers) -> None:
        self._entries = iter(entries)
        self._digits = max(6, len(str(len(entries))))
        self._out = out
        self._job = job
        self._workers = workers
        self._frames: deque[Iterator[_Task]] = deque()  # of files whose first frame is done
        self._running: dict[Future[Row], _Task] = {}
        self._done: queue.SimpleQueue[Future[Row]] = queue.SimpleQueue()

    def rows(self, window: int, stopped: Callable[[], bool]) -> Iterator[Finished]:
        while not stopped():
            while len(self._running) < window and (task := self._next()):
                if task.entry.problem:
                    yield Finished(_not_read(task.entry), 1)
                else:
                    self._submit(task)
            if not self._running:
                return
            try:
                future = self._done.get(timeout=_POLL_S)
            except queue.Empty:
                continue
            yield self._finished(self._running.pop(future), future)

    def _next(self) -> _Task | None:
        while self._frames:
            if task := next(self._frames[0], None):
                return task
            self._frames.popleft()
        entry = next(self._entries, None)
        frame = None if self._job.frames == "representative" else 1
        return _Task(entry, frame) if entry else None

    def _submit(self, task: _Task) -> None:
        temporary = os.fspath(self._temporary(task))
        future = self._workers.submit(convert, task.entry, task.frame, self._job, temporary)
        self._running[future] = task
        future.add_done_callback(self._done.put)

    def _temporary(self, task: _Task) -> Path:
        return self._out / PARTIAL / f"{task.entry.number}-{task.frame or 0}"

    def _finished(self, task: _Task, future: Future[Row]) -> Finished:
        row = _result(task, future)
        if not row.sha256:
            self._temporary(task).unlink(missing_ok=True)  # of a process that did not survive
            return Finished(row, task.frames or 1)
        frames = task.frames or (row.frames if self._job.frames == "all" else None) or 1
        if frames > 1 and task.frames is None:
            numbers = range(2, frames + 1)
            self._frames.append(_Task(task.entry, number, frames) for number in numbers)
        suffix = f"-{row.frame:04d}" if frames > 1 else ""
        name = f"{row.number:0{self._digits}d}{suffix}.png"
        self._temporary(task).rename(self._out / name)
        return Finished(replace(row, output=name), frames)


def _result(task: _Task, future: Future[Row]) -> Row:
    try:
        return future.result()
    except Exception as error:
        reason = failure(error)
        code = reason.code if isinstance(reason, ApiError) else InternalError.code
        return Row(task.entry.number, frame=task.frame, code=code)


def _not_read(entry: Entry) -> Row:
    unreadable = entry.problem == "unreadable_folder"
    return Row(entry.number, outcome="failed" if unreadable else "skipped", code=entry.problem)
