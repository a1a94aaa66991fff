"""How the spool's thread wakes the event loop's tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _nothing() -> None:
    """No event loop runs yet."""


@dataclass(slots=True)
class Wakers:
    """Callbacks that any thread may call; they do nothing until the event loop runs.

    Attributes:
        wake: something was sealed.
        hurry: a flush waits.
        wake_linger: a segment was opened or sealed.
        cancel_start: the uploader is stopped before it is connected.
    """

    wake: Callable[[], None] = _nothing
    hurry: Callable[[], None] = _nothing
    wake_linger: Callable[[], None] = _nothing
    cancel_start: Callable[[], None] = _nothing
