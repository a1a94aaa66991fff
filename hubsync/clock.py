"""Time as a dependency: the system's clock, and one that tests turn by hand.

Every wait of the worker goes through a `Clock`, so that a test of an hour's outage takes no time at all. The
time-outs that a caller gives (`put(timeout=…)`) and those of HTTP are real: they bound somebody's real waiting.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

T = TypeVar("T")

_THREADS = 40  # of hubsync's at once in one event loop; anyio's own bound is as large
_NO_THREAD_S = 0.5  # how often a machine that gives none is asked again
_limiters = anyio.lowlevel.RunVar[anyio.CapacityLimiter | None]("hubsync's threads")


class Clock(Protocol):
    """What the worker needs of time."""

    def time(self) -> float:
        """Seconds since the epoch."""
        ...

    async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
        """Returns after `seconds`, or once `until` is set; may be cancelled."""
        ...


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        return time.time()

    async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
        if until is None:
            await anyio.sleep(seconds)
        else:
            with anyio.move_on_after(seconds):
                await until.wait()


class ManualClock:
    """A clock that stands still until `advance` is called, from any thread."""

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()

    def time(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Moves on by `seconds` and wakes all who slept until then."""
        with self._lock:
            self._now += seconds
            due: list[Callable[[], None]] = []
            while self._sleepers and self._sleepers[0][0] <= self._now:
                due.append(heapq.heappop(self._sleepers)[2])
        for wake in due:
            wake()

    def sleepers(self) -> int:
        """How many are asleep now."""
        with self._lock:
            return len(self._sleepers)

    async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
        """When its time has come, it sets `until` itself."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        event = until or anyio.Event()
        wake = loop_waker(event.set)
        entry = (0.0, next(self._ids), wake)
        with self._lock:
            entry = (self._now + seconds, entry[1], wake)
            heapq.heappush(self._sleepers, entry)
        try:
            await event.wait()
        finally:
            with self._lock:
                if entry in self._sleepers:
                    self._sleepers.remove(entry)
                    heapq.heapify(self._sleepers)


class Latch:
    """As `threading.Event`, for one waiter, who finds it unset again. A signal's exception may fall into any
    instruction of a wait: Event's is Python, and loses its lock then (RuntimeError: release unlocked lock).
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        with contextlib.suppress(RuntimeError):  # it is set
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it was set within `timeout` seconds."""
        return self._lock.acquire(timeout=-1 if timeout is None else max(0.0, min(timeout, threading.TIMEOUT_MAX)))


class Bell:
    """Wakes its one listener, who otherwise sleeps by the clock. A ring while nobody listens is not lost."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._rung = anyio.Event()

    def ring(self) -> None:
        self._rung.set()

    async def wait(self, seconds: float) -> None:
        """Until it rings, or for `seconds`."""
        await self._clock.sleep(seconds, self._rung)
        if self._rung.is_set():
            self._rung = anyio.Event()


async def in_thread(work: Callable[..., T], *args: object) -> T:
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


def loop_waker(callback: Callable[[], object]) -> Callable[[], None]:
    """A function that any thread may call, at once and without waiting, to have `callback` run in this event loop.

    anyio's own `from_thread.run_sync` waits for the loop's turn, and whoever wakes the worker must not. A loop that
    has ended in the meantime is no error: nobody is left to be woken.
    """
    trio: Any = sys.modules.get("trio")
    token = None
    if trio is not None:
        with contextlib.suppress(RuntimeError):  # this loop is asyncio's
            token = trio.lowlevel.current_trio_token()
    if token is not None:

        def wake_trio() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(callback)

        return wake_trio

    import asyncio

    loop = asyncio.get_running_loop()

    def wake_asyncio() -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(callback)

    return wake_asyncio
