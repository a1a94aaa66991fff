"""Wake a waiting thread or task from any other thread."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable
from typing import Any

import anyio

from hubsync._runtime.clock import Clock


class OneShotEvent:
    """A `threading.Event` for one waiter, reset by each wait, that a signal handler may interrupt at any point.

    `threading.Event` is written in Python: if a signal handler raises in its `wait`, its lock may be lost
    (RuntimeError: release unlocked lock).
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def set(self) -> None:
        """Wake the waiter, or let the next wait return at once."""
        with contextlib.suppress(RuntimeError):  # it is set already
            self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        """Return whether it was set within `timeout` seconds."""
        return self._lock.acquire(timeout=-1 if timeout is None else max(0.0, min(timeout, threading.TIMEOUT_MAX)))


class Notifier:
    """Wakes one task that otherwise sleeps by the clock. A notification is kept until the task's next wait."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._notified = anyio.Event()

    def notify(self) -> None:
        """Wake the task. Call it in the event loop's thread: see `threadsafe_callback`."""
        self._notified.set()

    async def wait(self, seconds: float) -> None:
        """Sleep until notified, for at most `seconds`."""
        await self._clock.sleep(seconds, self._notified)
        if self._notified.is_set():
            self._notified = anyio.Event()


def threadsafe_callback(callback: Callable[[], object]) -> Callable[[], None]:
    """Return a function that schedules `callback` in the running event loop and that any thread may call.

    It returns at once, unlike anyio's `from_thread.run_sync`, which waits for the loop: a producer must not wait for
    the worker. Once the loop has ended, it does nothing.
    """
    trio: Any = sys.modules.get("trio")
    token = None
    if trio is not None:
        with contextlib.suppress(RuntimeError):  # this loop is asyncio's
            token = trio.lowlevel.current_trio_token()
    if token is not None:

        def call_in_trio() -> None:
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(callback)

        return call_in_trio

    import asyncio

    loop = asyncio.get_running_loop()

    def call_in_asyncio() -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(callback)

    return call_in_asyncio
