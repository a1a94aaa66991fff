"""Full-jitter exponential backoff."""

from __future__ import annotations

import random


class Backoff:
    """Full-jitter exponential backoff (AWS Architecture Blog, "Exponential Backoff And Jitter")."""

    def __init__(self, initial_s: float, max_s: float, rng: random.Random) -> None:
        self._initial_s = initial_s
        self._max_s = max_s
        self._rng = rng
        self.failures = 0

    def after_failure(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait now; never less than the Hub asked for."""
        ceiling = min(self._max_s, self._initial_s * 2.0 ** min(self.failures, 40))
        self.failures += 1
        wait = self._rng.random() * ceiling
        # A little more than asked: clocks differ, and a whole fleet was told the same second. Asked for 0 s, or by a
        # date that is over, it is the Hub that does not know.
        return retry_after_s + min(wait, 0.1 * retry_after_s + 1) if retry_after_s else wait

    def reset(self) -> None:
        self.failures = 0
