"""Decoding processes: each image in one, with bounded memory and time, none harmed by another's.

Decoders are C code that reads strangers' files. What they do wrong, from endless loops to crashes,
ends one process and one image; the next process is there within milliseconds, because it is forked
from one that has imported everything and has decoded nothing. A thread stands for each process and
has a pipe of its own to it: where processes share a queue, one that is killed at the wrong moment
leaves the queue locked for all (seen with pebble; concurrent.futures gives all of them up).
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any, ParamSpec, TypeVar

from pydicom import config as pydicom_config

from serve.errors import TooLarge, UnusableImage

P = ParamSpec("P")
T = TypeVar("T")
_ATTEMPTS = 3
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class ProcessDiedError(Exception):
    """A process ended before its work did."""


class NotTakenError(ProcessDiedError):
    """A process ended before it took the work, which is not to blame then."""


class Workers:
    """A pool of decoding processes."""

    def __init__(
        self,
        *,
        workers: int,
        timeout_s: float,
        memory_mib: int,
        modules: tuple[str, ...] = ("serve.imaging.intake",),
    ) -> None:
        """``modules`` are those of the work; every process begins with them imported."""
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(modules))
        self._workers = workers
        self._timeout_s = timeout_s
        self._max_bytes = memory_mib << 20
        self._threads = ThreadPoolExecutor(workers, "decoding")
        self._mine = threading.local()
        self._processes: set[_Process] = set()
        self._stopped = False

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Has ``work`` done in one of the processes; see ``failure`` for what it may raise."""
        return self._threads.submit(self._do, work, args, kwargs)

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, for coroutines.

        Raises:
            ApiError: what ``work`` raised, or that its process did not survive it.
        """
        try:
            return await asyncio.wrap_future(self.submit(work, *args, **kwargs))
        except Exception as error:
            raise failure(error) from error

    def warm_up(self, work: Callable[[], object] = int) -> None:
        """Starts all processes now and has each do ``work``: the first image need not wait.

        Raises:
            Exception: what ``work`` raised.
        """
        for future in [self.submit(_slowly, work) for _ in range(self._workers)]:
            future.result()

    def stop(self) -> None:
        """Ends the processes at once."""
        self._stopped = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes):
            process.kill()

    def _do(self, work: Callable[..., T], args: Any, kwargs: Any) -> T:
        """In a thread: hands ``work`` to the thread's process, a new one where that has ended."""
        for _ in range(_ATTEMPTS):
            process: _Process | None = getattr(self._mine, "process", None)
            if process is None or not process.is_alive():
                process = self._mine.process = _Process(self._context, self._max_bytes)
                self._processes.add(process)
            try:
                result: T = process.do((work, args, kwargs), self._timeout_s)
            except NotTakenError:
                if self._stopped:
                    break
            else:
                return result
            finally:
                if not process.is_alive():
                    self._processes.discard(process)
        raise ProcessDiedError


class _Process:
    """One process, and our end of the pipe to it."""

    def __init__(self, context: ForkServerContext, max_bytes: int) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, max_bytes), daemon=True)
        self._process.start()
        theirs.close()

    def do(self, message: tuple[Any, Any, Any], timeout_s: float) -> Any:
        """Has work done; the process does not survive its failure to answer.

        Raises:
            TimeoutError: no answer in time.
            NotTakenError, ProcessDiedError: it ended.
            Exception: what the work raised.
        """
        try:
            self._pipe.send(message)
            self._pipe.recv()
        except (EOFError, OSError):
            self.kill()
            raise NotTakenError from None
        try:
            answer = self._pipe.recv() if self._pipe.poll(timeout_s) else None
        except (EOFError, OSError):
            self.kill()
            raise ProcessDiedError from None
        if answer is None:
            self.kill()
            raise TimeoutError
        done, value = answer
        if done:
            return value
        raise value

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.join()


def failure(error: Exception) -> Exception:
    """What a failed ``submit`` means for the image; other exceptions are themselves."""
    match error:
        case TimeoutError():
            return UnusableImage("The image takes too long to decode.", code="decoding_timeout")
        case MemoryError():
            return TooLarge("The image needs too much memory.")
        case ProcessDiedError():
            return UnusableImage("The image is damaged and cannot be decoded.")
        case _:
            return error


def _serve(pipe: Connection, max_bytes: int) -> None:
    """A process: does one piece of work after the other, until the pipe is closed."""
    _enter(max_bytes)
    with suppress(EOFError, OSError):
        while True:
            work, args, kwargs = pipe.recv()
            pipe.send("taken")
            try:
                answer = True, work(*args, **kwargs)
            except Exception as error:  # it is the caller's
                answer = False, error
            pipe.send(answer)


def _enter(max_bytes: int) -> None:
    """Limits, and silence: a message may quote a file's header."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # with the process that forks
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the image
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    # Values are read as they are, and checked where they are used.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE


def _slowly(work: Callable[[], object]) -> None:
    """So that of as many pieces of work as there are processes, none gets two."""
    work()
    time.sleep(0.2)
