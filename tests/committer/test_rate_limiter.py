"""Backoff and rate limiter, on a manual clock."""

from __future__ import annotations

import random
from bisect import bisect_left

from hypothesis import given
from hypothesis import strategies as st

from hubsync import CommitPolicy
from hubsync._runtime.retry import Backoff
from hubsync.committer.rate_limiter import RateLimiter, last_policy
from hubsync.testing import ManualClock


def test_backoff_is_jittered_bounded_and_obeys_retry_after() -> None:
    backoff = Backoff(1, 8, random.Random(1))
    waits = [backoff.after_failure() for _ in range(200)]
    assert all(0 <= wait <= min(8, 2**n) for n, wait in enumerate(waits))
    assert len(set(waits)) == 200
    assert 30 <= backoff.after_failure(30.0) <= 34
    backoff.reset()
    assert backoff.after_failure() <= 1


def test_ordinary_commits_are_evenly_spaced_and_flushes_use_the_burst() -> None:
    clock = ManualClock()
    governor = RateLimiter(CommitPolicy(per_hour=120), clock)
    assert governor.wait_s(urgent=False) == 0
    governor.spent()
    assert governor.wait_s(urgent=False) == 30
    assert governor.wait_s(urgent=True) == 0
    clock.advance(30)
    assert governor.wait_s(urgent=False) == 0


@given(st.integers(1, 300), st.lists(st.tuples(st.floats(0, 400), st.booleans()), max_size=400))
def test_no_hour_has_more_commits_than_the_quota(per_hour: int, steps: list[tuple[float, bool]]) -> None:
    clock = ManualClock()
    governor = RateLimiter(CommitPolicy(per_hour=per_hour), clock)
    sent: list[float] = []
    for pause, urgent in steps:
        clock.advance(pause)
        clock.advance(governor.wait_s(urgent=urgent))
        if governor.wait_s(urgent=urgent) == 0:
            governor.spent()
            sent.append(clock.time())
    for start in sent:
        # Half-open: a commit at the very end of an hour belongs to the next one.
        assert bisect_left(sent, start + 3600 - 1e-3) - bisect_left(sent, start) <= per_hour


def test_a_quota_refusal_is_obeyed_and_survives_a_restart() -> None:
    clock = ManualClock()
    stored: list[str] = []
    governor = RateLimiter(CommitPolicy(), clock, save=stored.append)
    assert governor.refused(3600) == 3600
    again = RateLimiter(CommitPolicy(), clock, stored[-1])
    assert again.wait_s(urgent=True) == 3600
    clock.advance(3600)
    assert again.wait_s(urgent=True) == 0


def test_the_wait_grows_with_each_refusal_that_names_no_time() -> None:
    governor = RateLimiter(CommitPolicy(), ManualClock())
    assert [governor.refused(None) for _ in range(4)] == [900, 1800, 3600, 3600]


def test_a_refusal_with_a_zero_wait_still_backs_off() -> None:
    governor = RateLimiter(CommitPolicy(), ManualClock())
    assert [governor.refused(0.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff = Backoff(1, 100, random.Random(1))
    waits = [backoff.after_failure(0.0) for _ in range(8)]
    assert max(waits) > 10


def test_without_a_policy_the_pace_of_the_last_job_applies() -> None:
    stored: list[str] = []
    RateLimiter(CommitPolicy(per_hour=7), ManualClock(), save=stored.append).spent()
    assert last_policy(stored[-1]) == CommitPolicy(per_hour=7)
    assert last_policy(None) == CommitPolicy()
