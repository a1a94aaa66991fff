"""Shut down in order when the process ends.

SIGTERM (from SLURM, Kubernetes, a spot instance) becomes `SystemExit(143)` in the main thread, so blocks are left and
uploaders drain, within their grace period. A second signal ends the drain at once. Uploaders that nobody closed drain
at interpreter exit. SIGTERM is handled only while an uploader is open, and only if no other code handles it.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401  (for its hook at interpreter exit: see the end)
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from hubsync._runtime.fork import after_fork_in_child

EXIT_CODE = 128 + signal.SIGTERM
_CTRL_C_CODE = 128 + signal.SIGINT

# `timeout`, `srun` and others signal both the process and its group. Two signals this close count as one.
_SAME_SIGNAL_S = 0.3

# How long an uploader that was not closed may drain at interpreter exit, if no signal has set a grace period.
_AT_EXIT_S = 10.0

Close = Callable[[float], object]  # takes the seconds that it may need


class _RepeatedExit:
    """Raises `SystemExit`, and raises it again if Python drops it.

    Python only reports an exception that is raised in a `__del__` or in a weak reference's callback, and the job would
    continue until it is killed.
    """

    def __init__(self) -> None:
        self.is_pending = False  # dropped, and about to be raised again
        self._raised: SystemExit | None = None
        self._previous_hook = sys.unraisablehook
        self._is_hooked = False

    def raise_exit(self) -> NoReturn:
        if not self._is_hooked:
            self._previous_hook, sys.unraisablehook, self._is_hooked = sys.unraisablehook, self._on_unraisable, True
        self._raised = SystemExit(EXIT_CODE)
        raise self._raised

    def _on_unraisable(self, dropped: sys.UnraisableHookArgs) -> None:
        if self._raised is None or dropped.exc_value is not self._raised:
            self._previous_hook(dropped)
            return
        self.is_pending = True
        # Raised here, it would be dropped again. A signal a little later also ends a blocking wait; the delay is random
        # because a fixed one could hit the next `__del__` of a loop each time.
        main_thread = threading.main_thread().ident
        timer = threading.Timer(random.uniform(0.001, 0.05), signal.pthread_kill, [main_thread, signal.SIGTERM])
        timer.daemon = True
        timer.start()

    def reset(self) -> None:
        self._raised, self.is_pending = None, False
        if sys.unraisablehook == self._on_unraisable:  # else another hook replaced it, and calls this one
            sys.unraisablehook, self._is_hooked = self._previous_hook, False


class Shutdown:
    """How this process ends: which uploaders are open, and how long they may still drain."""

    def __init__(self) -> None:
        self._open: dict[Close, float | None] = {}  # what closes each open uploader, and its grace period
        self._loop_callbacks: list[Callable[[], object]] = []
        self._deadline: float | None = None
        self._began_at = 0.0
        self._exit = _RepeatedExit()

    def can_handle_sigterm(self) -> bool:
        """Return whether this is the main thread and no other code handles SIGTERM."""
        ours = (signal.SIG_DFL, self.on_sigterm)
        return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) in ours

    def register(self, close: Close, grace_s: float | None) -> None:
        """Register an open uploader.

        Args:
            close: Called at interpreter exit, with the seconds that it may take, unless it was unregistered before.
            grace_s: Seconds that the uploader may drain after SIGTERM; None leaves SIGTERM alone.
        """
        self._open[close] = grace_s
        if grace_s is not None and self.can_handle_sigterm():
            signal.signal(signal.SIGTERM, self.on_sigterm)

    def unregister(self, close: Close) -> None:
        """Forget an uploader that is closed; after the last one, restore SIGTERM."""
        self._open.pop(close, None)
        if not self._grace_periods() and self.can_handle_sigterm():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            self._exit.reset()

    def add_loop_callback(self, callback: Callable[[], object]) -> None:
        """On SIGTERM, call `callback` in the main thread instead of raising `SystemExit` there.

        An exception must not tear down a running event loop: the callback cancels a scope in the loop, and whatever is
        cancelled raises `SystemExit`. Ignored if other code handles SIGTERM.
        """
        if self.can_handle_sigterm() and self._grace_periods():
            self._loop_callbacks.append(callback)

    def remove_loop_callback(self, callback: Callable[[], object]) -> None:
        """Forget a callback; do nothing if it was not added."""
        if callback in self._loop_callbacks:
            self._loop_callbacks.remove(callback)

    def begin(self, grace_s: float) -> None:
        """Start the grace period, or shorten one that has started."""
        now = time.monotonic()
        if self._deadline is None:
            self._began_at = now
        self._deadline = min(self._deadline or float("inf"), now + grace_s)

    def seconds_left(self) -> float | None:
        """Return the seconds left of the grace period; None if no shutdown has begun."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def has_begun(self) -> bool:
        """Return whether a shutdown has begun and its `SystemExit` was not dropped."""
        return self._deadline is not None and not self._exit.is_pending

    def _grace_periods(self) -> list[float]:
        return [grace_s for grace_s in self._open.values() if grace_s is not None]

    def on_sigterm(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM."""
        if not self._grace_periods():  # closed by another thread, which could not remove the handler
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.raise_signal(signal.SIGTERM)
        if not self._exit.is_pending:
            if self._deadline is not None and time.monotonic() < self._began_at + _SAME_SIGNAL_S:
                return
            # A second signal ends the grace period, even before the first one's drain has started.
            self.begin(min(self._grace_periods()) if self._deadline is None else 0.0)
        self._exit.is_pending = False
        if not self._loop_callbacks:
            self._exit.raise_exit()
        for callback in self._loop_callbacks:
            callback()

    def reset_in_child(self) -> None:
        """In a forked child: forget the parent's uploaders and restore SIGTERM."""
        self._open.clear()
        self._loop_callbacks.clear()
        self._deadline = None
        self._exit.reset()
        if signal.getsignal(signal.SIGTERM) == self.on_sigterm:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def close_open(self) -> None:
        """At interpreter exit: close every open uploader; then end the process if a signal asked for it.

        Python drops what a signal raises here, so it would not end the process.
        """
        ended: KeyboardInterrupt | SystemExit | None = None
        while self._open:
            close = next(iter(self._open))
            seconds = self.seconds_left()
            try:
                close(_AT_EXIT_S if seconds is None else seconds)
            except (KeyboardInterrupt, SystemExit) as error:
                if isinstance(error, KeyboardInterrupt):
                    self.begin(0.0)  # for the other uploaders as well
                ended = error
                continue  # `close` may not have begun; if it has finished, calling it again does nothing
            except Exception:  # noqa: BLE001  (the others are closed all the same)
                sys.excepthook(*sys.exc_info())
            self._open.pop(close, None)
        if ended is not None:
            _end_process(_CTRL_C_CODE if isinstance(ended, KeyboardInterrupt) else ended.code)


def is_interrupted() -> bool:
    """Return whether the current cancellation comes from Ctrl-C, which asyncio turns into a plain cancellation."""
    runner = getattr(getattr(signal.getsignal(signal.SIGINT), "func", None), "__self__", None)
    return isinstance(runner, asyncio.Runner) and getattr(runner, "_interrupt_count", 0) > 0


def _end_process(code: str | int | None) -> NoReturn:
    """End as the interpreter would; its own exit code can no longer be changed."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


shutdown = Shutdown()
after_fork_in_child(shutdown.reset_in_child)

# Run before the interpreter ends its threads and executors, which the uploader needs to drain; `atexit` is too late.
# The function is private; concurrent.futures has used it for the same purpose since Python 3.9. The last function
# registered runs first, and asyncio resolves names in an executor, so that module is imported above.
getattr(threading, "_register_atexit", atexit.register)(shutdown.close_open)
