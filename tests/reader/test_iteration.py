"""Iterators of the reader: their event loop, and what a garbage collection does to it."""

from __future__ import annotations

import asyncio
import gc
import weakref

import anyio
import anyio.lowlevel

from hubsync._runtime.clock import SystemClock
from hubsync.reader import rows


class _NoWait(SystemClock):
    async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
        await anyio.lowlevel.checkpoint()


def test_an_unclosed_iterator_in_a_cycle_is_collected_inside_a_loop() -> None:
    """Closing its loop must not wait for a thread that the same collection has ended."""

    async def cell() -> weakref.ref[object]:
        reader = rows("user/rows", endpoint="http://127.0.0.1:9", clock=_NoWait())
        try:
            next(reader)  # starts its loop in a thread, since this one runs a loop
        except Exception as error:
            cycle = [reader, error]
            cycle.append(cycle)
        left = weakref.ref(reader)
        del reader, cycle
        gc.collect()
        return left

    assert asyncio.run(cell())() is None
