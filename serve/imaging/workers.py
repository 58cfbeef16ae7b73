"""Decoding processes: each image in one, with bounded memory and time, none harmed by another's.

Decoders are C code that reads strangers' files. What they do wrong, from endless loops to crashes,
ends one process and one request; the next process is ready within milliseconds, because it is
forked from one that has imported everything and has decoded nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec, TypeVar

from pebble import ProcessExpired, ProcessPool
from pydicom import config as pydicom_config

from serve.errors import TooLarge, UnusableImage

P = ParamSpec("P")
T = TypeVar("T")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Workers:
    """A pool of decoding processes."""

    def __init__(self, *, workers: int, timeout_s: float, memory_mib: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["serve.imaging.intake"])
        self._timeout_s = timeout_s
        self._workers = workers
        self._pool = ProcessPool(
            max_workers=workers,
            context=context,
            initializer=_enter,
            initargs=(memory_mib << 20, os.getpid()),
        )

    def warm_up(self, work: Callable[[], object] = int) -> None:
        """Starts all processes now and has each do ``work``: the first image need not wait.

        Raises:
            Exception: what ``work`` raised.
        """
        for future in [self.submit(_slowly, work) for _ in range(self._workers)]:
            future.result()

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Has ``work`` done in one of the processes; see ``failure`` for what it may raise."""
        future: Future[T] = self._pool.schedule(
            work, args=args, kwargs=kwargs, timeout=self._timeout_s
        )
        return future

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The same, for coroutines. One that is cancelled has its process ended.

        Raises:
            ApiError: what ``work`` raised, or that its process did not survive it.
        """
        try:
            return await asyncio.wrap_future(self.submit(work, *args, **kwargs))
        except Exception as error:
            raise failure(error) from error

    def stop(self) -> None:
        """Ends the processes at once."""
        self._pool.stop()
        self._pool.join()


def _slowly(work: Callable[[], object]) -> None:
    """So that of as many pieces of work as there are processes, none gets two."""
    work()
    time.sleep(0.2)


def failure(error: Exception) -> Exception:
    """What a failed ``submit`` means for the image; other exceptions are themselves."""
    match error:
        case TimeoutError():
            return UnusableImage("The image takes too long to decode.", code="decoding_timeout")
        case MemoryError():
            return TooLarge("The image needs too much memory.")
        case ProcessExpired():
            return UnusableImage("The image is damaged and cannot be decoded.")
        case _:
            return error


def _enter(max_bytes: int, parent: int) -> None:
    """In each process, first: limits, and silence (a message may quote a file's header)."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == 1 or not _alive(parent):
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold the image
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    # Values are read as they are, and checked where they are used.
    pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
