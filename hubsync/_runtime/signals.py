"""Ending in order: SIGTERM (from SLURM, Kubernetes, a spot machine) becomes `SystemExit(143)` in the main thread, so
that blocks are left and uploaders drain, as long as the grace allows. What was forgotten drains at the interpreter's
exit.

Only where nobody else handles the signal, and only while an uploader is open. A second signal ends the drain at once.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401  (for its hook at the interpreter's exit: see the end)
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

EXIT_CODE = 128 + signal.SIGTERM
_CTRL_C_CODE = 128 + signal.SIGINT

# `timeout`, `srun` and others send one signal to the process and to its group: that is no second one.
_SAME_S = 0.3

# What a forgotten uploader may take at the interpreter's exit, where no signal has set a grace.
_AT_EXIT_S = 10.0

Close = Callable[[float], object]  # of the seconds that it may take

_open: dict[Close, float | None] = {}  # the uploaders that are open: what closes a forgotten one, and its grace
_diverted: list[Callable[[], object]] = []  # what ends the blocks of those in an event loop
_deadline: float | None = None
_began_at = 0.0
_exit: SystemExit | None = None  # what the last signal has raised
_is_due = False  # whether that was dropped, and comes once more
_hear = sys.unraisablehook  # who hears of exceptions that are dropped, beside us
_hears = False  # whether we do


def can_catch() -> bool:
    """Whether SIGTERM is nobody else's, and this is the thread that may handle it."""
    ours = (signal.SIG_DFL, _on_sigterm)
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) in ours


def catch(close: Close, grace_s: float | None) -> None:
    """An uploader is open: from now on SIGTERM gives it `grace_s` seconds to drain (None: it wants none of that), and
    `close` is called at the interpreter's exit, with the seconds that it may take.
    """
    _open[close] = grace_s
    if grace_s is not None and can_catch():
        signal.signal(signal.SIGTERM, _on_sigterm)


def let_go(close: Close) -> None:
    """It is closed."""
    _open.pop(close, None)
    if not _graces() and can_catch():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _stop_hearing()


def _graces() -> list[float]:
    return [grace_s for grace_s in _open.values() if grace_s is not None]


def divert(wake: Callable[[], object]) -> None:
    """From now on SIGTERM calls `wake`, from anywhere in the main thread, and whoever is woken raises `SystemExit`: an
    event loop must not be left by an exception. Only where the signal is ours.
    """
    if can_catch() and _graces():
        _diverted.append(wake)


def rejoin(wake: Callable[[], object]) -> None:
    """Its block is left."""
    if wake in _diverted:
        _diverted.remove(wake)


def begin(grace_s: float) -> None:
    """The end has begun: somebody has seen the signal."""
    global _deadline, _began_at
    now = time.monotonic()
    if _deadline is None:
        _began_at = now
    _deadline = min(_deadline or float("inf"), now + grace_s)


def left() -> float | None:
    """Seconds of the grace that are left; None where no end has begun."""
    return None if _deadline is None else max(0.0, _deadline - time.monotonic())


def has_come() -> bool:
    """Whether the end has begun, and whoever is in the main thread has been told."""
    return _deadline is not None and not _is_due


def is_interrupted() -> bool:
    """Whether a task is cancelled because of Ctrl-C: asyncio makes a cancellation of it, and says so to nobody."""
    runner = getattr(getattr(signal.getsignal(signal.SIGINT), "func", None), "__self__", None)
    return isinstance(runner, asyncio.Runner) and getattr(runner, "_interrupt_count", 0) > 0


def _on_sigterm(number: int, frame: FrameType | None) -> None:
    if not _graces():  # closed by another thread, which could not take the handler away
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    global _is_due
    if not _is_due:
        if _deadline is not None and time.monotonic() < _began_at + _SAME_S:
            return
        # The second one wants it ended at once, wherever the first one's drain is, and be it not begun.
        begin(min(_graces()) if _deadline is None else 0.0)
    _is_due = False
    if not _diverted:
        _raise_exit()
    for wake in _diverted:
        wake()


def _raise_exit() -> NoReturn:
    """Python drops what is raised in a `__del__` or in the callback of a weak reference, with no more than a line on
    stderr, and the job would go on until it is killed: whoever hears of that has it raised once more.
    """
    global _exit, _hear, _hears
    if not _hears:
        _hear, sys.unraisablehook, _hears = sys.unraisablehook, _hear_of_dropped, True
    _exit = SystemExit(EXIT_CODE)
    raise _exit


def _hear_of_dropped(dropped: sys.UnraisableHookArgs) -> None:
    if _exit is None or dropped.exc_value is not _exit:
        _hear(dropped)
        return
    global _is_due
    _is_due = True
    # A little later, and not from here: it would be dropped again. By a signal, which also ends a wait.
    delay = random.uniform(0.001, 0.05)  # or it might meet the next `__del__` of a loop again and again
    again = threading.Timer(delay, signal.pthread_kill, [threading.main_thread().ident, signal.SIGTERM])
    again.daemon = True
    again.start()


def _stop_hearing() -> None:
    global _exit, _is_due, _hears
    _exit, _is_due = None, False
    if sys.unraisablehook is _hear_of_dropped:  # else somebody has it, and calls us
        sys.unraisablehook, _hears = _hear, False


def _forget_in_child() -> None:
    global _deadline
    _open.clear()
    _diverted.clear()
    _deadline = None
    _stop_hearing()
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_in_child)


def _close_forgotten() -> None:
    """What a signal raises here ends no process by itself: Python would drop it."""
    ended: KeyboardInterrupt | SystemExit | None = None
    while _open:
        close = next(iter(_open))
        seconds = left()
        try:
            close(_AT_EXIT_S if seconds is None else seconds)
        except (KeyboardInterrupt, SystemExit) as error:
            if isinstance(error, KeyboardInterrupt):
                begin(0.0)  # for the others as well
            ended = error
            continue  # it may not have begun; where it is closed by now, it does nothing
        except Exception:  # noqa: BLE001  (the others are closed all the same)
            sys.excepthook(*sys.exc_info())
        _open.pop(close, None)
    if ended is not None:
        _end(_CTRL_C_CODE if isinstance(ended, KeyboardInterrupt) else ended.code)


def _end(code: str | int | None) -> NoReturn:
    """As the interpreter would, whose own exit code is settled by now."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


# Before the interpreter ends its threads and executors, which the worker needs to drain: `atexit` is too late for
# that. The function is private, and what concurrent.futures uses for the same purpose since Python 3.9. The last one
# that was registered runs first, and asyncio asks for names in an executor, so that module is imported before.
getattr(threading, "_register_atexit", atexit.register)(_close_forgotten)
