"""Decide when the next commit may be sent.

Commits are scarce: the Hub allows a user about 128 an hour, for all processes and hosts together, and says so only when
it refuses one. The rate limiter spreads them evenly, keeps a quarter as a burst for flushes, and survives restarts.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hubsync._runtime.clock import Clock
from hubsync.policies import CommitPolicy

_HOUR = 3600.0
_REFUSED_S = 900.0  # the wait if the quota refuses and names no time: it is counted by the hour
# Others spend from the same quota, and nobody says how much. A refusal halves this spool's share of it, and every hour
# without a refusal gives an eighth back (additive increase, multiplicative decrease, as TCP shares a line).
_LEAST_SHARE = 1 / 16
_SHARE_AN_HOUR = 1 / 8
_BURST = 4  # a flush may spend one part in so many at once


class _State(msgspec.Struct):
    """What is kept in the catalogue. Times are in seconds since the epoch.

    Attributes:
        per_hour: the policy's.
        spent: when commits were sent in the last hour, in order.
        not_before: until when the Hub refuses.
        refusals: in a row.
        share: of the quota, for this spool.
        share_at: when the share was last updated.
    """

    per_hour: int = 0
    spent: list[float] = []
    not_before: float = 0.0
    refusals: int = 0
    share: float = 1.0
    share_at: float = 0.0


def last_policy(stored: str | None) -> CommitPolicy:
    """Return the policy of the job that last committed for a spool, or the defaults."""
    per_hour = msgspec.json.decode(stored, type=_State).per_hour if stored else 0
    return CommitPolicy(per_hour=per_hour) if per_hour else CommitPolicy()


class Quota(_State):
    """What the rate limiters of several spools have spent from one account's quota, in one process."""

    def merge(self, other: _State) -> None:
        """Add what a spool's committers spent before."""
        self.spent = sorted({*self.spent, *other.spent})
        self.not_before = max(self.not_before, other.not_before)
        self.refusals = max(self.refusals, other.refusals)
        self.share_at = self.share_at or other.share_at
        self.share = min(self.share, other.share)


class RateLimiter:
    """Spends the commit quota: never more than it in any hour, a quarter at once for flushes, the rest evenly.

    If the Hub refuses all the same, others spend from the quota, too, and this spool takes a smaller share.
    """

    def __init__(
        self,
        policy: CommitPolicy,
        clock: Clock,
        stored: str | None = None,
        save: Callable[[str], None] = lambda state: None,
        quota: Quota | None = None,
    ) -> None:
        self._quota = quota  # shared with other rate limiters
        self._per_hour = policy.per_hour
        self._clock = clock
        self._save = save
        self._state = _State()
        self.load(stored, save)

    def load(self, stored: str | None, save: Callable[[str], None]) -> None:
        """Continue from the state that an earlier committer saved, None for a new one; call `save` with each new state.

        Before that, a new state must not be saved: it would replace the commits that others sent in the last hour.
        """
        self._save = save
        now = self._clock.time()
        self._state = msgspec.json.decode(stored, type=_State) if stored else _State(share_at=now)
        if self._quota is not None:
            self._quota.merge(self._state)
            self._state = self._quota
        self._follow_clock(now)

    def wait_s(self, *, urgent: bool) -> float:
        """Return the seconds until the next commit may be sent; 0 if it may be sent now."""
        now, quota = self._update()
        spent = self._state.spent
        wait = max(0.0, self._state.not_before - now, self._until_free(now, quota))
        if spent and not (urgent and len(spent) < max(1, quota // _BURST)):
            wait = max(wait, spent[-1] + self._distance(quota) - now)
        return wait if wait > 1e-6 else 0.0

    @property
    def is_refused(self) -> bool:
        """Whether the Hub refuses commits now, rather than our own pace."""
        return self._state.not_before > self._clock.time()

    def last_hour(self) -> tuple[int, int]:
        """Return the commits of the last hour, and how many it may contain."""
        _, quota = self._update()
        return len(self._state.spent), quota

    def spent(self) -> None:
        """Record that a commit landed, or may have landed."""
        now, _ = self._update()
        self._state.spent.append(now)
        self._state.refusals = 0
        self._store()

    def refused(self, retry_after_s: float | None) -> float:
        """Record that the Hub's quota refused a commit; return the seconds until the next attempt."""
        now, _ = self._update()
        state = self._state
        state.refusals += 1
        growth = 2.0 ** (state.refusals - 1)
        # A clock that is wrong turns a date into no wait at all, so the wait grows with each refusal.
        wait = min(_HOUR, _REFUSED_S * growth) if retry_after_s is None else max(retry_after_s, min(growth, 60.0))
        state.not_before = now + wait
        state.share = max(_LEAST_SHARE, state.share / 2)
        self._store()
        return wait

    def _until_free(self, now: float, quota: int) -> float:
        """Return the seconds until the last hour has room for one more commit."""
        spent = self._state.spent
        return spent[len(spent) - quota] + _HOUR - now if len(spent) >= quota else 0.0

    def _distance(self, quota: int) -> float:
        """Return the shortest even distance between commits, in seconds, that never meets a full hour.

        The i-th commit from now needs all but `quota - 1` others to be an hour old. So after a burst the distance is
        longer, until the burst is an hour old.
        """
        spent = self._state.spent
        last = spent[-1]
        held = max(0, len(spent) - quota)
        needed = ((spent[n] + _HOUR - last) / (n + 1 + quota - len(spent)) for n in range(held, len(spent)))
        return max(_HOUR / quota, *needed)

    def _update(self) -> tuple[float, int]:
        """Forget commits older than an hour; return the time and what this spool may spend in an hour."""
        state, now = self._state, self._clock.time()
        self._follow_clock(now)
        state.spent = [at for at in state.spent if at > now - _HOUR]
        state.share = min(1.0, state.share + max(0.0, now - state.share_at) / _HOUR * _SHARE_AN_HOUR)
        state.share_at = now
        return now, max(1, int(self._per_hour * state.share))

    def _follow_clock(self, now: float) -> None:
        """Shift all times if the clock was set back: that must not stop commits for long."""
        state = self._state
        back = state.share_at - now
        if back > 0:
            state.spent = [at - back for at in state.spent]
            state.not_before -= back
            state.share_at = now

    def _store(self) -> None:
        self._state.per_hour = self._per_hour
        self._save(msgspec.json.encode(self._state).decode())
