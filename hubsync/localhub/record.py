"""What was served: a bounded log of requests and counters by operation, for tests and benchmarks to look at."""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import NamedTuple

_KEPT = 100_000


class Served(NamedTuple):
    """One request. `status` is 0 where the connection ended without an answer; sizes are of bodies, in bytes."""

    operation: str
    method: str
    path: str
    status: int
    bytes_in: int
    bytes_out: int
    repo: str | None
    fault: str | None


class RequestLog:
    """The last 100,000 requests, and counters that forget nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: deque[Served] = deque(maxlen=_KEPT)
        self._counters: Counter[str] = Counter()

    def add(self, served: Served) -> None:
        with self._lock:
            self._served.append(served)
            self._counters[served.operation] += 1

    def served(self, operation: str | None = None) -> tuple[Served, ...]:
        """A snapshot, oldest first, of all requests or of one operation's."""
        with self._lock:
            return tuple(item for item in self._served if operation is None or item.operation == operation)

    def counters(self) -> dict[str, int]:
        """How many requests came in, by operation, whatever they were answered."""
        with self._lock:
            return dict(self._counters)

    def clear(self) -> None:
        with self._lock:
            self._served.clear()
            self._counters.clear()
