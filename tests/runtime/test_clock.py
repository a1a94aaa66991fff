"""The clock is set back by an hour: nothing waits until it has caught up."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
import pytest

from hubsync import CommitPolicy
from hubsync._runtime.file_lock import FileLock, HeartbeatMonitor
from hubsync.committer.rate_limiter import RateLimiter
from hubsync.destinations.hub import card
from hubsync.testing import ManualClock
from tests.test_model import _inline
from tests.world import World


def test_rows_are_sealed_in_time_after_the_clock_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card.preload()
    monkeypatch.setattr(anyio.to_thread, "run_sync", _inline)
    world = World(tmp_path)
    world.start(0)

    def pass_time(seconds: float) -> None:
        for _ in range(int(seconds * 2)):
            for call in world.calls():
                world.answer(call, "ok")
            world.run()
            world.pass_time(0.5)

    pass_time(3)
    process = world.start(0)
    receipt = process.put(b'{"id":"a"}\n')
    pass_time(1)
    clock = world.clock
    clock._now -= 3600  # sleepers wake as before: an event loop's time does not jump
    clock._sleepers = [(at - 3600, n, wake) for at, n, wake in clock._sleepers]
    pass_time(60)
    assert receipt.state == "committed"
    world.close()


def test_commits_continue_after_the_clock_was_set_back() -> None:
    clock = ManualClock()
    stored: list[str] = []
    governor = RateLimiter(CommitPolicy(per_hour=120), clock, save=stored.append)
    governor.spent()
    assert governor.wait_s(urgent=False) == 30
    clock._now -= 3600
    assert governor.wait_s(urgent=False) == 30
    governor.refused(60.0)
    assert governor.wait_s(urgent=True) == 60
    clock._now -= 86400
    assert governor.wait_s(urgent=True) == 60
    clock._now -= 86400
    assert RateLimiter(CommitPolicy(per_hour=120), clock, stored[-1]).wait_s(urgent=True) <= 60


def test_a_stalled_committer_is_noticed_after_the_clock_was_set_back(tmp_path: Path) -> None:
    clock = ManualClock()
    lock = FileLock(tmp_path / "lock")
    assert lock.acquire()
    pulse = HeartbeatMonitor(lock.path, clock)
    assert not pulse.stalled()
    clock._now -= 3600
    for _ in range(20):
        clock.advance(0.5)
        stalled = pulse.stalled()
    assert stalled
