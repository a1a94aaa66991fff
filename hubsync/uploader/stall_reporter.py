"""Decide when a job that waits says so."""

from __future__ import annotations

from collections.abc import Callable, Hashable

_EVERY_S = 50.0  # so that it says so at least once a minute, however late it looks
_FIRST_S = 10.0  # while a caller waits, the first report comes sooner


class StallReporter:
    """Notices that rows wait and nothing progresses. Call it about twice a second."""

    def __init__(self, now: Callable[[], float]) -> None:
        """Begin without a stall; `now` returns seconds."""
        self._now = now
        self._progress: Hashable = None
        self._since = self._reported_at = now()
        self._is_reported = False

    def due(self, progress: Hashable, *, is_stuck: bool, someone_waits: bool) -> float | None:
        """Return how long nothing has progressed, in seconds, if that should be reported now; else None.

        Args:
            progress: changes whenever anything progresses.
            is_stuck: rows wait for something that is not planned, such as the Hub.
            someone_waits: rows wait, and a caller waits for them: a flush, a close, a put.
        """
        now = self._now()
        if progress != self._progress or not (is_stuck or someone_waits) or now < self._since:
            self._progress, self._since, self._is_reported = progress, now, False
            return None
        first_s = _FIRST_S if someone_waits else _EVERY_S
        last, every = (self._reported_at, _EVERY_S) if self._is_reported else (self._since, first_s)
        if 0 <= now - last < every:
            return None
        self._reported_at, self._is_reported = now, True
        return now - self._since
