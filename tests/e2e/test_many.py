"""Many processes on one spool, many spools on one repo, processes that stop and go on, disks that are lost."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from tests import waiting
from tests.conftest import Dataset
from tests.e2e.conftest import Jobs
from tests.e2e.test_failpoints import shards_ever_changed

pytestmark = pytest.mark.slow("starts processes and kills them")

_PLAN = re.compile(r"hubsync plan (\d+) of term (\d+)")


def accepted(told: Path) -> list[str]:
    text = told.read_text() if told.exists() else ""
    return text[: text.rfind("\n") + 1].split()


def until(what: Callable[[], object], jobs: Jobs, every_s: float = 0.01) -> None:
    """Wait for something that a healthy system brings about; see `tests.waiting.until`."""
    waiting.until(what, jobs.describe, every_s=every_s)


def committer_of(spool: Path) -> int:
    try:
        return int((spool / "committer.lock").read_text() or 0)
    except FileNotFoundError:
        return 0


def check(dataset: Dataset, rows: list[str]) -> None:
    """Each row that was accepted is there once; what more is there came from puts whose answer nobody heard."""
    found = Counter(row["id"] for row in dataset.rows())
    assert [row for row, times in found.items() if times > 1] == []
    assert set(rows) <= set(found)
    assert shards_ever_changed(dataset) == []


def check_one_committer_at_a_time(dataset: Dataset) -> None:
    """The terms and plans that the commits tell of never go back, so no two committers of the spool overlapped."""
    commits = dataset.api.list_repo_commits(dataset.repo, repo_type="dataset")
    plans = [tuple(map(int, found.groups())) for c in reversed(commits) if (found := _PLAN.search(c.message))]
    assert len(plans) > 3
    assert [plan for plan, _ in plans] == sorted({plan for plan, _ in plans})
    assert [term for _, term in plans] == sorted(term for _, term in plans)


def test_eight_processes_put_at_once_while_the_committer_is_killed_again_and_again(
    hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path
) -> None:
    spool, told = tmp_path / "spool", tmp_path / "told"
    hub.faults.add(Fault.reset(when="after", on="commit", probability=0.2))
    running = {jobs.start("telling", spool, told, 0.3) for _ in range(8)}
    for _ in range(8):
        until(lambda: committer_of(spool) in running, jobs)
        before = hub.commits_served
        until(lambda before=before: hub.commits_served > before, jobs)
        victim = committer_of(spool)
        if victim in running:
            jobs.kill(victim)
            assert jobs.end(victim) == -signal.SIGKILL
            running.remove(victim)
            running.add(jobs.start("telling", spool, told, 0.3))
    for pid in running:
        jobs.kill(pid)
    hub.faults.clear()
    assert drain(spool, timeout=60).rows == 0
    check(dataset, accepted(told))
    check_one_committer_at_a_time(dataset)


@pytest.mark.parametrize(
    "point",
    ["NOTIFIED", "PLANNED", "HALF_SENT", "LANDED", "SETTLED"],  # the others are in no other case than these
)
def test_a_process_that_stops_is_taken_over_and_brings_nothing_twice_when_it_goes_on(
    dataset: Dataset, jobs: Jobs, tmp_path: Path, point: str
) -> None:
    spool, told = tmp_path / "spool", tmp_path / "told"
    zombie = jobs.start("stopping", spool, told, point)
    jobs.wait_until_it_stops(zombie)
    other = jobs.start("telling", spool, told, 0.005, None, 1.0)
    mine = lambda pid: [row for row in accepted(told) if row.startswith(f"{pid}-")]  # noqa: E731
    before = mine(zombie)
    until(lambda: committer_of(spool) == other, jobs)
    # The other one uploads what the stopped one had accepted, its open segment included.
    until(lambda: set(before) <= {r["id"] for r in dataset.rows()}, jobs, every_s=0.2)
    jobs.kill(zombie, signal.SIGCONT)
    until(lambda: len(mine(zombie)) > len(before) + 20, jobs)
    for pid in (zombie, other):
        jobs.kill(pid)
        assert jobs.end(pid) == -signal.SIGKILL
    drain(spool, timeout=60)
    check(dataset, accepted(told))
    check_one_committer_at_a_time(dataset)


@pytest.mark.parametrize("path", [None, "data/{split}-{seq:05d}.jsonl"], ids=["a name each", "one series"])
def test_two_machines_share_a_repo(
    hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path, path: str | None
) -> None:
    hub.faults.add(Fault.conflict(on="commit", probability=0.1))
    hub.faults.add(Fault.reset(when="after", on="commit", probability=0.1))
    spools = [tmp_path / "one", tmp_path / "two"]
    told = [tmp_path / "told one", tmp_path / "told two"]
    for kills in range(3):
        running = [jobs.start("telling", spool, tell, 0.005, path) for spool, tell in zip(spools, told, strict=True)]
        for tell in told:
            until(lambda tell=tell, kills=kills: len(accepted(tell)) > 60 * (kills + 1), jobs)
        for pid in running:
            jobs.kill(pid)
            assert jobs.end(pid) == -signal.SIGKILL
    hub.faults.clear()
    for spool in spools:
        drain(spool, timeout=60)
    check(dataset, accepted(told[0]) + accepted(told[1]))
    files = dataset.api.list_repo_files(dataset.repo, repo_type="dataset")
    assert len([file for file in files if file.startswith(".hubsync/")]) == 2


@pytest.mark.parametrize("path", [None, "data/{split}-{seq:05d}.jsonl"], ids=["a name each", "one series"])
def test_a_job_whose_disk_is_lost_goes_on_from_the_dataset(
    hub: LocalHub, dataset: Dataset, jobs: Jobs, tmp_path: Path, path: str | None
) -> None:
    rows, spool = 600, tmp_path / "spool"
    deaths = [
        ("SETTLED", 1),
        ("RESPONSE_READ", 1),
        ("STAGED", 2),
        ("NOTIFIED", 30),
        ("FILE_REMOVED", 9),
        ("PLANNED", 1),
    ]
    for point, nth in deaths:
        assert jobs.end(jobs.start("crashing", spool, rows, path, point, nth, signal.SIGKILL)) == -signal.SIGKILL
        shutil.rmtree(spool)
    assert jobs.end(jobs.start("crashing", spool, rows, path, None, 0, 0)) == 0, jobs.log
    assert Counter(row["id"] for row in dataset.rows()) == Counter(range(rows))
    assert shards_ever_changed(dataset) == []


def test_a_writer_that_stops_in_the_middle_of_a_transaction_holds_the_others_up_only_until_it_ends(
    dataset: Dataset, jobs: Jobs, tmp_path: Path
) -> None:
    spool, told = tmp_path / "spool", tmp_path / "told"
    other = jobs.start("telling", spool, told, 0.005)
    until(lambda: len(accepted(told)) > 20, jobs)
    stopped = jobs.start("stopping", spool, told, "COUNTED")
    jobs.wait_until_it_stops(stopped)
    os.kill(stopped, signal.SIGKILL)
    assert jobs.end(stopped) == -signal.SIGKILL
    so_far = len(accepted(told))
    until(lambda: len(accepted(told)) > so_far + 20, jobs)
    jobs.kill(other)
    assert jobs.end(other) == -signal.SIGKILL
    drain(spool, timeout=60)
    check(dataset, accepted(told))
