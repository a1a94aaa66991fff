"""Help for tests of your job: a clock that moves only when you advance it."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

import anyio
import anyio.lowlevel

from hubsync._runtime.notifiers import threadsafe_callback


class ManualClock:
    """A clock that moves only when `advance` is called, from any thread.

    Args:
        now: The time at the start, in seconds since the epoch.
    """

    def __init__(self, now: float = 1_000_000_000.0) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._sleepers: list[tuple[float, int, Callable[[], None]]] = []
        self._ids = itertools.count()

    def time(self) -> float:
        """Return the clock's time, in seconds since the epoch."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock forward and wake every sleeper whose time has come."""
        with self._lock:
            self._now += seconds
            due: list[Callable[[], None]] = []
            while self._sleepers and self._sleepers[0][0] <= self._now:
                due.append(heapq.heappop(self._sleepers)[2])
        for wake in due:
            wake()

    def sleepers(self) -> int:
        """Return how many tasks sleep."""
        with self._lock:
            return len(self._sleepers)

    async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
        """Sleep until `advance` has moved the clock by `seconds`, or until the event `until` is set."""
        if seconds <= 0:
            await anyio.lowlevel.checkpoint()
            return
        event = until or anyio.Event()
        wake = threadsafe_callback(event.set)
        with self._lock:
            entry = (self._now + seconds, next(self._ids), wake)
            heapq.heappush(self._sleepers, entry)
        try:
            await event.wait()
        finally:
            with self._lock:
                if entry in self._sleepers:
                    self._sleepers.remove(entry)
                    heapq.heapify(self._sleepers)
