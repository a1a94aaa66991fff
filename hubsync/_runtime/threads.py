"""Run blocking work in worker threads, within hubsync's own limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

T = TypeVar("T")
_MAX_THREADS = 40  # per event loop, as many as anyio's own limit
_NO_THREAD_S = 0.5  # until the next attempt to start a thread
_limiters = anyio.lowlevel.RunVar[anyio.CapacityLimiter | None]("hubsync's threads")


async def run_in_thread(work: Callable[..., T], *args: object) -> T:
    """Run `work`, which may block, in a worker thread, and return its result.

    hubsync has its own limit, because the job's calls may use up all of anyio's. While the machine cannot start a
    thread (a container's pids.max), this waits.
    """
    started = False

    def run() -> T:
        nonlocal started
        started = True
        return work(*args)

    while True:
        try:
            return await anyio.to_thread.run_sync(run, limiter=_limiter())
        except RuntimeError as error:
            if started or "start new thread" not in str(error):
                raise
        await anyio.sleep(_NO_THREAD_S)


def _limiter() -> anyio.CapacityLimiter:
    limiter = _limiters.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_MAX_THREADS)
        _limiters.set(limiter)
    return limiter
