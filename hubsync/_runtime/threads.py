"""Run blocking work in worker threads, within a bound of our own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

T = TypeVar("T")
_THREADS = 40  # of hubsync's at once in one event loop; anyio's own bound is as large
_NO_THREAD_S = 0.5  # how often a machine that gives none is asked again
_limiters = anyio.lowlevel.RunVar[anyio.CapacityLimiter | None]("hubsync's threads")


async def run_in_thread(work: Callable[..., T], *args: object) -> T:
    """Work that may block, in a worker thread, and within hubsync's own bound: the job's calls may take all of anyio's.

    A machine that gives no thread for a moment (a container's pids.max) is waited for.
    """
    begun = False

    def run() -> T:
        nonlocal begun
        begun = True
        return work(*args)

    while True:
        try:
            return await anyio.to_thread.run_sync(run, limiter=_limiter())
        except RuntimeError as error:
            if begun or "start new thread" not in str(error):
                raise
        await anyio.sleep(_NO_THREAD_S)


def _limiter() -> anyio.CapacityLimiter:
    """This event loop's."""
    limiter = _limiters.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_THREADS)
        _limiters.set(limiter)
    return limiter
