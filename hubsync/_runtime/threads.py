"""Run blocking work in worker threads, and know which threads are hubsync's own.

A signal handler, a `__del__` or a logging handler may call hubsync at any point of any thread. So no thread of the job
holds a lock that hubsync's threads need: what needs one runs in a thread of its own (`call_in_new_thread`). And in
hubsync's own threads, where a garbage collection may run the job's code as well, nothing waits for hubsync.
"""

from __future__ import annotations

import _thread
import threading
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from hubsync._runtime.notifiers import OneShotEvent

T = TypeVar("T")


class Marker(threading.local):
    """Marks what runs within its blocks, in the thread that entered them."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


own_thread = Marker()
"""Marks hubsync's threads."""


def call_in_new_thread(work: Callable[..., T], *args: object) -> T:
    """Return the result of `work`, or raise what it raises; meanwhile the calling thread holds no lock.

    It takes about 0.05 ms. In a thread of hubsync's own, `work` is called directly.
    """
    if own_thread.depth:
        return work(*args)
    done, results, errors = OneShotEvent(), list[T](), list[BaseException]()

    def run() -> None:
        try:
            with own_thread:
                results.append(work(*args))
        except BaseException as error:  # noqa: BLE001  (raised in the caller)
            errors.append(error)
        finally:
            done.set()

    try:
        # `Thread.start` takes locks, and this does not.
        _thread.start_new_thread(run, ())
    except RuntimeError:  # the machine cannot start a thread (a container's pids.max)
        return work(*args)
    done.wait()
    if errors:
        try:
            raise errors[0]
        finally:
            errors.clear()  # else the error's traceback would hold itself alive
    return results[0]


_MAX_THREADS = 40  # per event loop, as many as anyio's own limit
_NO_THREAD_S = 0.5  # until the next attempt to start a thread
_limiters = anyio.lowlevel.RunVar[anyio.CapacityLimiter | None]("hubsync's threads")


async def run_in_thread(work: Callable[..., T], *args: object, abandon_on_cancel: bool = False) -> T:
    """Run `work`, which may block, in a worker thread, and return its result.

    hubsync has its own limit, because the job's calls may use up all of anyio's. While the machine cannot start a
    thread (a container's pids.max), this waits.
    """
    started = False

    def run() -> T:
        nonlocal started
        started = True
        with own_thread:
            return work(*args)

    while True:
        try:
            return await anyio.to_thread.run_sync(run, limiter=_limiter(), abandon_on_cancel=abandon_on_cancel)
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
