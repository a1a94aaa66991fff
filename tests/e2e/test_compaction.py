"""Merges that are killed at any moment, while jobs write and lose responses, and a reader follows."""

from __future__ import annotations

import random
import signal
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from hubsync import CompactPolicy, reader
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.compact import compact
from hubsync.maintenance.drain import drain
from hubsync.maintenance.verify import verify
from tests.conftest import Dataset
from tests.e2e.conftest import Jobs
from tests.e2e.test_many import accepted, until

pytestmark = pytest.mark.slow("starts processes and kills them")


def merges_served(dataset: Dataset, more_than: int = -1) -> int:
    """Return how many commits merged shards, or 0 if there are no more than a number of them."""
    commits = dataset.api.list_repo_commits(dataset.repo, repo_type="dataset")
    found = sum(commit.title.startswith("Merge ") for commit in commits)
    return found if found > more_than else 0


def test_merges_that_are_killed_while_jobs_write_leave_each_row_once(
    hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path
) -> None:
    spool, told, rng = tmp_path / "spool", tmp_path / "told", random.Random(7)
    hub.faults.add(Fault.reset(when="after", on="commit", probability=0.2))
    running = [jobs.start("telling", spool, told, 0.4) for _ in range(2)]
    until(lambda: hub.commits_served > 3, jobs)
    follower = Follower(hub)
    for _ in range(6):
        merge = jobs.start("merging")
        is_merged = partial(merges_served, dataset, more_than=merges_served(dataset))
        until(is_merged, jobs, every_s=0.1)
        enough = hub.commits_served + rng.randrange(4)
        until(lambda enough=enough: hub.commits_served >= enough, jobs)
        jobs.kill(merge)
        assert jobs.end(merge) == -signal.SIGKILL
        follower.read()
    for pid in running:
        jobs.kill(pid)
    hub.faults.clear()
    drain(spool, timeout=60)
    compact("user/rows", endpoint=hub.endpoint, token=hub.token, apply=True, min_age_s=0)
    follower.read()

    found = Counter(row["id"] for row in dataset.rows())
    assert [row for row, times in found.items() if times > 1] == []
    assert set(accepted(told)) <= set(found)
    assert follower.ids == found
    assert len(dataset.paths()) <= 4
    report = verify("user/rows", spool=spool, endpoint=hub.endpoint, token=hub.token, content=True)
    assert report.differences == ()


def test_jobs_that_merge_their_shards_and_are_killed_at_any_moment_leave_each_row_once(
    hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path
) -> None:
    spool, told, rng = tmp_path / "spool", tmp_path / "told", random.Random(11)
    hub.faults.add(Fault.reset(when="after", on="commit", probability=0.15))
    hub.faults.add(Fault.reset(when="before", on="commit", probability=0.1))
    follower, running = Follower(hub), list[int]()
    for _ in range(6):
        while len(running) < 2:  # of which one commits
            running.append(jobs.start("telling", spool, told, 0.4, None, 1.0, True))
        before = merges_served(dataset) if follower.cursor else -1
        until(partial(is_further, hub, dataset, hub.commits_served + rng.randrange(1, 6), before), jobs, every_s=0.1)
        victim = running.pop(rng.randrange(2))
        jobs.kill(victim)
        assert jobs.end(victim) == -signal.SIGKILL
        follower.read()
    for pid in running:
        jobs.kill(pid)
        jobs.end(pid)
    hub.faults.clear()
    drain(spool, timeout=120, compact=CompactPolicy(at_end=True))
    follower.read()

    assert merges_served(dataset) >= 5
    found = Counter(row["id"] for row in dataset.rows())
    assert [row for row, times in found.items() if times > 1] == []
    assert set(accepted(told)) <= set(found)
    assert follower.ids == found
    report = verify("user/rows", spool=spool, endpoint=hub.endpoint, token=hub.token, content=True)
    assert report.differences == ()


class Follower:
    """A reader that goes on from its cursor each time."""

    def __init__(self, hub: LocalHub) -> None:
        self._hub = hub
        self.ids: Counter[str] = Counter()
        self.cursor: str | None = None

    def read(self) -> None:
        rows = reader.rows("user/rows", since=self.cursor, endpoint=self._hub.endpoint, token=self._hub.token)
        self.ids.update(row["id"] for row in rows)
        self.cursor = rows.cursor


def is_further(hub: LocalHub, dataset: Dataset, commits: int, merges: int) -> bool:
    """Return whether there were so many commits, and a merge since."""
    return hub.commits_served >= commits and merges_served(dataset) > merges
