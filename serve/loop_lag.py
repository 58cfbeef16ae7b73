"""Watches the event loop: how long did something in this process keep it from running?

Every stream of a replica stands still while its event loop does. A loop that is late because other
processes have the CPU is not blocked, so what the kernel says this thread waited for a CPU
(``/proc/thread-self/schedstat``, Documentation/scheduler/sched-stats.rst) is taken off. What stays
is work on the loop itself, or in a thread that holds Python's lock.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress

from serve import metrics

INTERVAL_S = 0.005
_SCHEDSTAT = "/proc/thread-self/schedstat"


async def watch() -> None:
    """Measures every INTERVAL_S seconds, until it is cancelled. Costs some 20 us each time."""
    descriptor = _open()
    try:
        waited = _cpu_wait_s(descriptor)
        while True:
            due = time.perf_counter() + INTERVAL_S
            await asyncio.sleep(INTERVAL_S)
            late = time.perf_counter() - due
            before, waited = waited, _cpu_wait_s(descriptor)
            metrics.loop_late(max(0.0, late - (waited - before)))
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open() -> int | None:
    """A descriptor of the loop's own thread; None where the kernel keeps no such account."""
    with suppress(OSError):
        return os.open(_SCHEDSTAT, os.O_RDONLY)
    return None


def _cpu_wait_s(descriptor: int | None) -> float:
    """Seconds that the thread has waited for a CPU so far: the second number, in nanoseconds."""
    if descriptor is None:
        return 0.0
    return int(os.pread(descriptor, 128, 0).split()[1]) / 1e9
