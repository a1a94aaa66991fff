"""Retry transient errors with full-jitter exponential backoff."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hubsync._runtime.clock import Clock
from hubsync._runtime.formatting import seconds_text
from hubsync.errors import TransientError

_log = logging.getLogger("hubsync")
T = TypeVar("T")


class Backoff:
    """Full-jitter exponential backoff (AWS Architecture Blog, "Exponential Backoff And Jitter")."""

    def __init__(self, initial_s: float, max_s: float, rng: random.Random) -> None:
        self._initial_s = initial_s
        self._max_s = max_s
        self._rng = rng
        self.failures = 0

    def after_failure(self, retry_after_s: float | None = None) -> float:
        """Count a failure and return the seconds to wait, at least `retry_after_s`."""
        ceiling = min(self._max_s, self._initial_s * 2.0 ** min(self.failures, 40))
        self.failures += 1
        wait = self._rng.random() * ceiling
        # A little more than requested: clocks differ, and a whole fleet may have received the same second. A request
        # for 0 s, or for a time that has passed, contains no information.
        return retry_after_s + min(wait, 0.1 * retry_after_s + 1) if retry_after_s else wait

    def reset(self) -> None:
        """Start again with the shortest wait."""
        self.failures = 0


async def retry_transient(
    operation: Callable[[], Awaitable[T]], backoff: Backoff, clock: Clock, *, max_tries: int | None = None
) -> T:
    """Run an idempotent `operation` until it succeeds, and log that it is retried.

    Args:
        operation: Called again for each attempt.
        backoff: Decides how long to wait between attempts.
        clock: The clock to wait by.
        max_tries: How often it may fail; None retries forever.

    Raises:
        TransientError: The last of `max_tries` failures.
    """
    reason = None
    while True:
        try:
            return await operation()
        except TransientError as error:
            wait_s = backoff.after_failure(error.retry_after_s)
            if backoff.failures == max_tries:
                raise
            # The same failure is a warning once.
            level, reason = logging.DEBUG if error.reason == reason else logging.WARNING, error.reason
            _log.log(level, "%s; trying again in %s.", str(error).rstrip("."), seconds_text(wait_s))
            await clock.sleep(wait_s)
