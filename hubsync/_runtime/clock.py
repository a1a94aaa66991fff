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
