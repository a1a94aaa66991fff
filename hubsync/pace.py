"""When to try again, and when the next commit may go.

Commits are scarce: the Hub allows a user about 128 an hour, for all processes and hosts together, and says so only
when it refuses. The governor spends them evenly, keeps a quarter as a burst for those who flush, and remembers across
restarts. Nothing here waits: it says for how long, and the worker's clock does it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec

from hubsync.clock import Clock
from hubsync.policy import CommitPolicy, RetryPolicy

_HOUR = 3600.0
# What to wait where the commit quota refuses and names no time: it is counted by the hour.
_QUOTA_REFUSED_S = 900.0


class Backoff:
    """Full-jitter exponential backoff (AWS Architecture Blog, "Exponential Backoff And Jitter")."""

    def __init__(self, policy: RetryPolicy, rng: random.Random) -> None:
        self._policy = policy
        self._rng = rng
        self.failures = 0

    def after_failure(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait now; never less than the Hub asked for."""
        ceiling = min(self._policy.max_s, self._policy.initial_s * 2.0 ** min(self.failures, 40))
        self.failures += 1
        wait = self._rng.random() * ceiling
        # A little more than asked: clocks differ, and a whole fleet was told the same second.
        return wait if retry_after_s is None else retry_after_s + min(wait, 0.1 * retry_after_s + 1)

    def reset(self) -> None:
        self.failures = 0


class _State(msgspec.Struct):
    tokens: float
    at: float
    last: float = 0.0
    not_before: float = 0.0
    refusals: int = 0


class Governor:
    """A token bucket over the commit quota: a quarter of it may go at once, the rest comes back evenly.

    So no hour sees more than `per_hour` commits. Ordinary commits keep an even distance; an urgent one (a flush) may
    take from the burst.
    """

    def __init__(
        self, policy: CommitPolicy, clock: Clock, stored: str | None = None, save: Callable[[str], None] | None = None
    ) -> None:
        self._clock = clock
        self._save = save
        self._capacity = float(max(1, policy.per_hour // 4))
        steady = policy.per_hour - (self._capacity if self._capacity > 1 else 0)
        self._rate = steady / _HOUR
        self._interval = _HOUR / policy.per_hour
        now = clock.time()
        self._state = msgspec.json.decode(stored, type=_State) if stored else _State(self._capacity, now)
        self._state.at = min(self._state.at, now)  # a clock that was set back must not stop commits for long

    def wait_s(self, *, urgent: bool) -> float:
        """Seconds until the next commit may go; 0 where it may now."""
        self._refill()
        state, now = self._state, self._clock.time()
        waits = [state.not_before - now, 0.0]
        if state.tokens < 1:
            waits.append((1 - state.tokens) / self._rate)
        if not urgent and state.last <= now:
            waits.append(state.last + self._interval - now)
        wait = max(waits)
        return wait if wait > 1e-6 else 0.0

    def spent(self) -> None:
        """A commit landed, or may have."""
        self._refill()
        self._state.tokens = max(0.0, self._state.tokens - 1)
        self._state.last = self._clock.time()
        self._state.refusals = 0
        self._store()

    def refused(self, retry_after_s: float | None) -> float:
        """The quota is used up, by whomever. Answers the seconds that no commit goes now."""
        state = self._state
        state.refusals += 1
        wait = (
            retry_after_s if retry_after_s is not None else min(_HOUR, _QUOTA_REFUSED_S * 2.0 ** (state.refusals - 1))
        )
        state.not_before = self._clock.time() + wait
        state.tokens = min(state.tokens, 1.0)
        self._store()
        return wait

    def _refill(self) -> None:
        now = self._clock.time()
        self._state.tokens = min(self._capacity, self._state.tokens + max(0.0, now - self._state.at) * self._rate)
        self._state.at = now

    def _store(self) -> None:
        if self._save is not None:
            self._save(msgspec.json.encode(self._state).decode())
