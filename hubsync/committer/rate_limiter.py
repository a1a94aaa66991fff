"""When to try again, and when the next commit may go.

Commits are scarce: the Hub allows a user about 128 an hour, for all processes and hosts together, and says so only
when it refuses. The governor spends them evenly, keeps a quarter as a burst for those who flush, and remembers across
restarts. Nothing here waits: it says for how long, and the worker's clock does it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from hubsync._runtime.clock import Clock
from hubsync.policies import CommitPolicy

_HOUR = 3600.0
# What to wait where the commit quota refuses and names no time: it is counted by the hour.
_QUOTA_REFUSED_S = 900.0
# Others spend from the same quota, and nobody says how much: a refusal halves what this spool takes for its share, and
# every hour without one gives an eighth back (additive increase, multiplicative decrease, as TCP shares a line).
_LEAST_SHARE = 1 / 16
_SHARE_AN_HOUR = 1 / 8


class _State(msgspec.Struct):
    per_hour: int = 0  # the policy's
    spent: list[float] = []  # when commits went, the last hour's, in order
    not_before: float = 0.0
    refusals: int = 0
    share: float = 1.0
    share_at: float = 0.0  # the clock when it was last looked at


def last_policy(stored: str | None) -> CommitPolicy:
    """The policy of the job that last committed here, for who has none of its own."""
    per_hour = msgspec.json.decode(stored, type=_State).per_hour if stored else 0
    return CommitPolicy(per_hour=per_hour) if per_hour else CommitPolicy()


class RateLimiter:
    """Spends the commit quota: never more than it in any hour, a quarter at once where somebody waits, the rest evenly.

    Where the Hub refuses all the same, others spend too, and this spool takes a smaller share.
    """

    def __init__(
        self, policy: CommitPolicy, clock: Clock, stored: str | None = None, save: Callable[[str], None] | None = None
    ) -> None:
        self._clock = clock
        self._save = save
        self._per_hour = policy.per_hour
        now = clock.time()
        self._state = msgspec.json.decode(stored, type=_State) if stored else _State(share_at=now)
        self._state.per_hour = policy.per_hour
        self._follow_clock(now)

    def wait_s(self, *, urgent: bool) -> float:
        """Seconds until the next commit may go; 0 where it may now."""
        now, quota = self._look()
        spent = self._state.spent
        wait = max(0.0, self._state.not_before - now, self._until_free(now, quota))
        if spent and not (urgent and len(spent) < max(1, quota // 4)):
            wait = max(wait, spent[-1] + self._distance(quota) - now)
        return wait if wait > 1e-6 else 0.0

    @property
    def is_refused(self) -> bool:
        """Whether it is the Hub's word that no commit may go now, and not what this spool has spent."""
        return self._state.not_before > self._clock.time()

    def last_hour(self) -> tuple[int, int]:
        """Commits of the hour behind, and how many it may hold."""
        _, quota = self._look()
        return len(self._state.spent), quota

    def _until_free(self, now: float, quota: int) -> float:
        """Seconds until the hour behind has room for one more."""
        spent = self._state.spent
        return spent[len(spent) - quota] + _HOUR - now if len(spent) >= quota else 0.0

    def _distance(self, quota: int) -> float:
        """Seconds between commits that can go on evenly from the last one: they never meet a full hour.

        The i-th commit from now needs the hour behind it to have let go of all but `quota - 1` others; so after a burst
        the distance is longer, until the burst is an hour old.
        """
        spent = self._state.spent
        last = spent[-1]
        held = max(0, len(spent) - quota)
        needed = ((spent[n] + _HOUR - last) / (n + 1 + quota - len(spent)) for n in range(held, len(spent)))
        return max(_HOUR / quota, *needed)

    def spent(self) -> None:
        """A commit landed, or may have."""
        now, _ = self._look()
        self._state.spent.append(now)
        self._state.refusals = 0
        self._store()

    def refused(self, retry_after_s: float | None) -> float:
        """The quota is used up, by whomever. Answers the seconds that no commit goes now."""
        now, _ = self._look()
        state = self._state
        state.refusals += 1
        growth = 2.0 ** (state.refusals - 1)
        # Its word counts; but a clock that is off makes nothing of a date, and then it is refused again and again.
        wait = min(_HOUR, _QUOTA_REFUSED_S * growth) if retry_after_s is None else max(retry_after_s, min(growth, 60.0))
        state.not_before = now + wait
        state.share = max(_LEAST_SHARE, state.share / 2)
        self._store()
        return wait

    def _look(self) -> tuple[float, int]:
        """The time now, and what this spool may spend in an hour; forgets what is older."""
        state, now = self._state, self._clock.time()
        self._follow_clock(now)
        state.spent = [at for at in state.spent if at > now - _HOUR]
        state.share = min(1.0, state.share + max(0.0, now - state.share_at) / _HOUR * _SHARE_AN_HOUR)
        state.share_at = now
        return now, max(1, int(self._per_hour * state.share))

    def _follow_clock(self, now: float) -> None:
        """A clock that was set back must not stop commits for long: what was noted by it is moved as far."""
        state = self._state
        back = state.share_at - now
        if back > 0:
            state.spent = [at - back for at in state.spent]
            state.not_before -= back
            state.share_at = now

    def _store(self) -> None:
        if self._save is not None:
            self._save(msgspec.json.encode(self._state).decode())
