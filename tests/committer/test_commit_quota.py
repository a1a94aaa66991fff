"""The commit quota over simulated hours: frequent flushes, and others that spend from the same quota."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import anyio.to_thread
import pytest

from hubsync.destinations.hub import card
from hubsync.policies import CommitPolicy
from tests.test_model import _inline
from tests.world import World

pytestmark = pytest.mark.slow("simulates hours, second by second")

HOUR = 3600.0
QUOTA = 128


class Quota:
    """A sliding hour of commits, as the Hub counts them for one user; its message rounds the wait up to minutes."""

    def __init__(self) -> None:
        self.spent: deque[float] = deque()
        self.refused: list[float] = []
        self.all: list[float] = []
        self.most_refusals_in_a_row = self._in_a_row = 0

    def answer(self, now: float) -> str:
        while self.spent and self.spent[0] <= now - HOUR:
            self.spent.popleft()
        if len(self.spent) >= QUOTA:
            self.refused.append(now)
            self._in_a_row += 1
            self.most_refusals_in_a_row = max(self.most_refusals_in_a_row, self._in_a_row)
            minutes = -(-(self.spent[0] + HOUR - now) // 60)
            return f"quota {60 * (60 if minutes > 45 else minutes):g}"
        self._in_a_row = 0
        self.spent.append(now)
        self.all.append(now)
        return "ok"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    card.preload()
    monkeypatch.setattr(anyio.to_thread, "run_sync", _inline)
    world = World(tmp_path)
    world.commit = CommitPolicy()
    return world


def put_and_flush(world: World, quota: Quota, seconds: float) -> float:
    """Run a job for `seconds`; return the age of its oldest uncommitted row afterwards."""
    process = world.start(0)
    process.put(b'{"id":"row at %d"}\n' % world.clock.time())
    process.engine.flush()
    process._spool()
    world.run()
    while calls := world.calls():
        for call in calls:
            world.answer(call, "ok" if call.body is None else quota.answer(world.clock.time()))
        world.run()
    world.pass_time(seconds)
    oldest = process.spool.depth().oldest_at
    return 0.0 if oldest is None else world.clock.time() - oldest


def test_a_job_that_flushes_every_second_is_never_refused_and_stays_fresh(world: World) -> None:
    quota, begin = Quota(), world.clock.time()
    ages = [put_and_flush(world, quota, 1.0) for _ in range(120)]
    world.kill(0)  # the rate limiter's state survives the process
    ages += [put_and_flush(world, quota, 5.0) for _ in range(900)]
    assert quota.refused == []
    # A quarter of 120 an hour is spent at once, so the rest of this hour allows one in 40 s; later one in 30 s.
    assert max(ages[:25]) <= 2
    assert max(ages) <= 46
    assert sum(at < begin + HOUR for at in quota.all) in range(115, 121)
    assert sum(at >= begin + HOUR for at in quota.all) >= 30
    world.close()


def test_a_quota_shared_with_others_is_never_exceeded_twice_in_a_row(world: World) -> None:
    quota = Quota()
    for tick in range(1_080):
        if tick % 5 == 0 and len(quota.spent) < QUOTA:  # 72 an hour by somebody else
            quota.answer(world.clock.time())
        put_and_flush(world, quota, 10.0)
    assert quota.refused
    assert quota.most_refusals_in_a_row == 1
    assert len(quota.refused) < 10
    assert world.hub.ids.total() > 1_000
    world.close()
