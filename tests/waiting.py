"""How a test waits: for a condition, never for a duration."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

PATIENCE_S = 120  # two cores, three workers, and tests that use both


def until(
    condition: Callable[[], object],
    why: Callable[[], str] = lambda: "it never came true",
    *,
    every_s: float = 0.01,
    patience_s: float = PATIENCE_S,
) -> None:
    """Poll until `condition` is true.

    A condition that comes and goes may be over before anyone looks. So wait for one that, once true, stays true: a
    counter that only grows, a line in a log; or make the state last until the test has seen it, by a fault of the Hub
    that the test removes, an event, or a fuller disk.
    """
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, why()
        time.sleep(every_s)


async def until_async(condition: Callable[[], object], why: Callable[[], str] = lambda: "it never came true") -> None:
    """Poll in a task until `condition` is true; see `until` for what it may be."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, why()
        await anyio.sleep(0.001)
