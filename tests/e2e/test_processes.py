"""Whole jobs in processes of their own, killed for real: every accepted row is there once."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from hubsync.cli import demo as demo_module
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from tests.conftest import Commands, Dataset
from tests.e2e.conftest import Start
from tests.zygote import Program

pytestmark = pytest.mark.slow("starts processes and kills them")


def lines(process: Program, most: int) -> list[str]:
    """Read up to `most` complete lines of a job's output."""
    assert process.stdout is not None
    found = []
    for line in process.stdout:
        if line.endswith("\n"):
            found.append(line.strip())
        if len(found) >= most:
            break
    return found


def kill(process: Program) -> list[str]:
    """Kill a job with SIGKILL, and return the rest of its output."""
    process.kill()
    assert process.stdout is not None
    rest = [line.strip() for line in process.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
    process.wait()
    return rest


def ids(dataset: Dataset) -> Counter[str]:
    return Counter(row["id"] for row in dataset.rows())


def test_a_job_that_is_killed_again_and_again_uploads_every_row_once(
    hub: LocalHub, start: Start, dataset: Dataset, tmp_path: Path
) -> None:
    rng = random.Random(7)
    spool, rows = tmp_path / "spool", 600
    hub.faults.add(Fault.reset(when="after", on="commit", probability=0.2))
    hub.faults.add(Fault.status(503, on="*", probability=0.1))
    for _ in range(6):
        job = start("resuming", spool, "a", rows)
        lines(job, rng.randint(1, 90))
        kill(job)
    hub.faults.clear()
    job = start("resuming", spool, "a", rows)
    lines(job, rows)
    assert job.wait() == 0
    assert ids(dataset) == Counter(f"a-{n}" for n in range(rows))
    assert list((spool / "segments").iterdir()) == []


def test_many_processes_share_a_spool_while_the_committer_is_killed(
    hub: LocalHub, start: Start, dataset: Dataset, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    accepted: list[str] = []
    jobs = [start("endless", spool) for _ in range(4)]
    for job in jobs:
        accepted += lines(job, 30)
    while jobs:
        pid = int((spool / "committer.lock").read_text() or 0)
        victim = next((job for job in jobs if job.pid == pid), jobs[0])
        jobs.remove(victim)
        accepted += kill(victim)
        for job in jobs:
            accepted += lines(job, 20)
    assert drain(spool, timeout=60).rows == 0
    found = ids(dataset)
    assert [row for row, times in found.items() if times > 1] == []
    assert set(accepted) <= set(found)


@pytest.mark.parametrize("how", ["exit", "SIGTERM", "SIGINT"])
def test_a_job_that_ends_in_any_way_loses_nothing(start: Start, dataset: Dataset, tmp_path: Path, how: str) -> None:
    spool = tmp_path / "spool"
    if how == "exit":
        job = start("forgetful", spool, 200)
        assert job.wait() == 0
        assert ids(dataset) == Counter(range(200))
        return
    job = start("endless", spool)
    accepted = lines(job, 50)
    job.send_signal(getattr(signal, how))
    assert job.stdout is not None
    accepted += [line for line in job.stdout.read().splitlines() if line]
    assert job.wait() != 0
    drain(spool, timeout=60)
    assert set(accepted) <= set(ids(dataset))
    assert max(ids(dataset).values()) == 1


def test_the_demo_passes_all_its_checks(run: Commands) -> None:
    done = run("demo", "--rows", 600, "--crash", "--outage", 0.5, "--json")
    result = json.loads(done.stdout)
    assert result["passed"], (result, done.stderr)
    assert done.returncode == 0
    assert len(result["checks"]) >= 6


def test_the_demo_ends_if_its_job_fails(run: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_module, "_REPO", "not a repo")
    done = run("demo", "--rows", 10, "--json")
    assert done.returncode == 1
    assert [check["passed"] for check in json.loads(done.stdout)["checks"]] == [False]
