"""Time as a dependency, so that a test of an hour's outage takes no time.

Every wait of the worker goes through a `Clock`. Timeouts that a caller gives (`put(timeout=…)`) and HTTP timeouts use
real time, because somebody really waits.
"""

from __future__ import annotations

import time
from typing import Protocol

import anyio


class Clock(Protocol):
    """What the worker needs of time. `hubsync.testing.ManualClock` implements it for tests."""

    def time(self) -> float:
        """Return the seconds since the epoch."""
        ...

    async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
        """Sleep for `seconds`, or until the event `until` is set."""
        ...


class SystemClock:
    """The system's clock."""

    def time(self) -> float:
        """Return the seconds since the epoch."""
        return time.time()

    async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
        """Sleep for `seconds`, or until the event `until` is set."""
        if until is None:
            await anyio.sleep(seconds)
        else:
            with anyio.move_on_after(seconds):
                await until.wait()


class Deadline:
    """The end of a caller's wait, which is made in pieces so that it notices what no one notified it of.

    What is reached by the deadline counts, even if a signal handler runs beyond it: so the time is noted after each
    piece, before the caller looks whether it may stop waiting.

    Attributes:
        timeout: The longest wait, in seconds; None for no limit.
        waited_s: How long it has waited, in seconds, when the time was last noted.
    """

    __slots__ = ("_began", "_piece_s", "_reports", "timeout", "waited_s")

    def __init__(self, timeout: float | None, piece_s: float) -> None:
        """Begin to wait, for at most `piece_s` seconds at a time."""
        self.timeout = timeout
        self.waited_s = 0.0
        self._piece_s = piece_s
        self._began = time.monotonic()
        self._reports = 0

    def note_time(self) -> None:
        """Note how long it has waited, after a piece."""
        self.waited_s = time.monotonic() - self._began

    def pause_s(self) -> float:
        """Return how long to wait next, in seconds; 0 if the time is over."""
        left_s = self._piece_s if self.timeout is None else self.timeout - self.waited_s
        return max(0.0, min(left_s, self._piece_s))

    def is_due(self, every_s: float) -> bool:
        """Return whether a report on the wait is due, as one is every so many seconds."""
        before, self._reports = self._reports, int(self.waited_s / every_s)
        return self._reports > before
