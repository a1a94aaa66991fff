"""A clock for tests of jobs: it stands still until you advance it."""

from __future__ import annotations

import heapq
import itertools
import threading
from collections.abc import Callable

import anyio
import anyio.lowlevel
import anyio.to_thread

from hubsync._runtime.notifiers import threadsafe_callback


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
        wake = threadsafe_callback(event.set)
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
