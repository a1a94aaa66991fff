"""Wake a waiting thread or task from any other thread."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from hubsync._runtime.clock import Clock


class OneShotEvent:
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


class Notifier:
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


def threadsafe_callback(callback: Callable[[], object]) -> Callable[[], None]:
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
