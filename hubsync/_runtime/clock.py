"""Time as a dependency: the system's clock, and one that tests turn by hand.

Every wait of the worker goes through a `Clock`, so that a test of an hour's outage takes no time at all. The
time-outs that a caller gives (`put(timeout=…)`) and those of HTTP are real: they bound somebody's real waiting.
"""

from __future__ import annotations

import time
from typing import Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread


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
