"""Ending in order: SIGTERM (from SLURM, Kubernetes, a spot machine) becomes `SystemExit(143)` in the main thread, so
that blocks are left and uploaders drain, as long as the grace allows.

Only where nobody else handles the signal, and only while an uploader is open. A second signal ends the drain at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from types import FrameType
from typing import NoReturn

EXIT_CODE = 128 + signal.SIGTERM

_graces: list[float] = []  # of the uploaders that are open
_deadline: float | None = None


def can_catch() -> bool:
    """Whether SIGTERM is nobody else's, and this is the thread that may handle it."""
    ours = (signal.SIG_DFL, _on_sigterm)
    return threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) in ours


def catch(grace_s: float) -> None:
    """An uploader is open: from now on SIGTERM gives it `grace_s` seconds to drain."""
    _graces.append(grace_s)
    if can_catch():
        signal.signal(signal.SIGTERM, _on_sigterm)


def let_go(grace_s: float) -> None:
    """It is closed."""
    if grace_s in _graces:
        _graces.remove(grace_s)
    if not _graces and can_catch():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def begin(grace_s: float) -> None:
    """The end has begun: somebody has seen the signal."""
    global _deadline
    _deadline = min(_deadline or float("inf"), time.monotonic() + grace_s)


def left() -> float | None:
    """Seconds of the grace that are left; None where no end has begun."""
    return None if _deadline is None else max(0.0, _deadline - time.monotonic())


def is_interrupted() -> bool:
    """Whether a task is cancelled because of Ctrl-C: asyncio makes a cancellation of it, and says so to nobody."""
    runner = getattr(getattr(signal.getsignal(signal.SIGINT), "func", None), "__self__", None)
    return isinstance(runner, asyncio.Runner) and getattr(runner, "_interrupt_count", 0) > 0


def _on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    if not _graces:  # closed by another thread, which could not take the handler away
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    # The second one wants it ended at once, wherever the first one's drain is, and be it not begun.
    begin(min(_graces) if _deadline is None else 0.0)
    raise SystemExit(EXIT_CODE)


def _forget_in_child() -> None:
    global _deadline
    _graces.clear()
    _deadline = None
    if signal.getsignal(signal.SIGTERM) is _on_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_forget_in_child)
