"""Wait until the offsets in the dataset are known, which a new spool reads from the Hub."""

from __future__ import annotations

import logging
import time

from hubsync.errors import OffsetUnknown
from hubsync.telemetry.status import READING, State
from hubsync.uploader.engine import Engine

_log = logging.getLogger("hubsync")
_POLL_S = 0.05
_FIRST_WARNING_S = 10.0
_WARN_S = 50.0  # so that a waiting job says so at least once a minute
_ANOTHER_S = 5.0  # a call that polls so late began to wait just now


class OffsetsWait:
    """How long calls of one uploader wait. While the watermarks are being read, the time starts again with each file.

    The status tells how far that is, also if another process does it.
    """

    def __init__(self, engine: Engine, timeout_s: float, opened_at: float) -> None:
        """`opened_at` is a time of `time.monotonic`."""
        self._engine = engine
        self._timeout_s = timeout_s
        self._until = opened_at + timeout_s
        self._seen = State()
        self._polled_at, self._warn_at = opened_at, opened_at + _FIRST_WARNING_S

    def poll(self, until: float | None = None) -> float:
        """Return 0.0 if the offsets are known, else the seconds after which to call this again. It may read the disk.

        Args:
            until: a time of `time.monotonic` until which the caller waits; None for no limit.

        Raises:
            OffsetUnknown: nothing more is read for `timeout_s`, or an operator must act, or `until` has passed.
        """
        engine = self._engine
        if engine.is_offline or engine.spool.is_seeded:
            return 0.0
        now, state = time.monotonic(), engine.monitor.figures().state
        if state != self._seen and state.reason.startswith(READING):
            self._seen = state
            pause = 0.0 if state.until is None else max(0.0, state.until - engine.spool.clock.time())
            self._until = max(self._until, now + pause + self._timeout_s)
        left = min(self._until, self._until if until is None else until) - now
        if left <= 0 or state.kind == "blocked" or engine.spool_thread.is_stopping:
            raise OffsetUnknown(self._unknown(state))
        self._warn(now, state)
        return min(_POLL_S, left)

    def _unknown(self, state: State) -> str:
        spool, why, kept = self._engine.spool, self._why(state, self._engine.status.activity), ""
        if self._seen.reason:
            kept = " What was read is kept: the next attempt continues from there, and the next run from the last fold."
        return (
            f"the spool {spool.directory} is new, and the offsets that {spool.target.repo} contains are not known yet "
            f"({why}).{kept} The uploader goes on trying: repeat the call later, put without an offset, or set a "
            f"longer RetryPolicy(open_timeout_s=…) than {self._timeout_s:g}."
        )

    def _why(self, state: State, activity: str = "") -> str:
        if state.reason.startswith(READING):
            return "; ".join(text for text in (str(state).removeprefix("ok: "), activity) if text)
        read = f"{self._seen.reason}; then " if self._seen.reason else ""
        return f"{read}{self._engine.monitor.condition()}"

    def _warn(self, now: float, state: State) -> None:
        if now - self._polled_at > _ANOTHER_S:  # another call begins to wait
            self._warn_at = now + _FIRST_WARNING_S
        self._polled_at = now
        if now >= self._warn_at:
            self._warn_at = now + _WARN_S
            repo = self._engine.spool.target.repo
            _log.warning("Waiting for the offsets that %s contains, as the spool is new: %s.", repo, self._why(state))
