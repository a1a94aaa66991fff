"""Jobs that only spool, and an agent that uploads for them, each in a process that is killed for real."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.inspect import inspect_spool
from hubsync.model.target import Target, default_directory
from hubsync.spool.agent_home import AgentHome
from tests.conftest import Dataset
from tests.e2e.conftest import Jobs, Start
from tests.waiting import until
from tests.zygote import Program

pytestmark = pytest.mark.slow("starts processes and kills them")


@pytest.fixture
def agent(start: Start) -> Callable[..., Program]:
    """Start an agent, and wait until it runs."""

    def run(point: str | None = None) -> Program:
        program = start("serving", point)
        until(lambda: AgentHome().agent_pid() == program.pid)
        return program

    return run


def read(job: Program, most: int) -> None:
    """Wait until a job has told that so many rows are accepted."""
    assert job.stdout is not None
    for _ in range(most):
        assert job.stdout.readline()


@pytest.fixture
def spool(hub: LocalHub, tmp_path: Path) -> Path:
    """The spool that all jobs share."""
    return default_directory(Target(hub.endpoint, "user/rows"), tmp_path / "state")


def is_empty(spool: Path) -> bool:
    """Return whether everything in a spool was uploaded."""
    return inspect_spool(spool).depth.rows == 0


def ids(dataset: Dataset) -> Counter[str]:
    return Counter(row["id"] for row in dataset.rows())


def rows(**jobs: int) -> Counter[str]:
    return Counter(f"{name}-{n}" for name, count in jobs.items() for n in range(count))


@pytest.mark.parametrize("point", ["PLANNED", "LANDED", "RESPONSE_READ"])
def test_an_agent_killed_within_a_commit_is_continued_by_the_next(
    start: Start, agent: Callable[..., Program], dataset: Dataset, point: str
) -> None:
    first = agent(point)
    jobs = [start("spooling", name, 90, True) for name in "ab"]
    assert first.wait() == -signal.SIGKILL
    agent()
    assert [job.wait() for job in jobs] == [0, 0]
    assert ids(dataset) == rows(a=90, b=90)


def test_the_rows_of_a_killed_job_are_uploaded(
    start: Start, agent: Callable[..., Program], spool: Path, dataset: Dataset
) -> None:
    agent()
    job = start("spooling", "a", 10**6, True)
    read(job, 50)
    job.kill()
    assert job.stdout is not None
    accepted = 50 + sum(line.endswith("\n") for line in job.stdout.readlines())
    until(lambda: is_empty(spool))
    found = ids(dataset)
    assert len(found) >= accepted
    assert found == rows(a=len(found))


def test_an_agent_that_is_started_later_uploads_what_ended_jobs_left(
    start: Start, agent: Callable[..., Program], spool: Path, dataset: Dataset
) -> None:
    jobs = [start("spooling", name, 50, False) for name in "ab"]
    assert [job.wait() for job in jobs] == [0, 0]
    agent()
    until(lambda: is_empty(spool))
    assert ids(dataset) == rows(a=50, b=50)


def test_sigterm_lets_the_running_commit_end_and_another_ends_it_at_once(
    hub: LocalHub, start: Start, agent: Callable[..., Program], spool: Path, dataset: Dataset, jobs: Jobs
) -> None:
    codes = []
    for number, name in enumerate("ab", 1):
        program = agent()
        hang = hub.faults.add(Fault.hang(on="commit", when="after", times=1))
        assert start("spooling", name, 10, False).wait() == 0
        until(lambda: hub.faults.held)
        program.terminate()
        until(lambda number=number: jobs.log.count("Finishing the running commits") == number)
        if name == "a":
            hub.faults.release()  # the response is lost: the agent reads what became of the commit
        else:
            program.terminate()
        codes.append(program.wait())
        hub.faults.remove(hang)
        hub.faults.release()
    assert codes == [0, 128 + signal.SIGTERM]
    agent()
    until(lambda: is_empty(spool))
    assert ids(dataset) == rows(a=10, b=10)


def test_of_many_jobs_that_start_an_agent_one_does(
    start: Start, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, jobs: Jobs
) -> None:
    jobs._environ["HUBSYNC_AGENT"] = "spawn"
    many = [start("spooling", name, 5, True) for name in "abcdefgh"]
    try:
        assert [job.wait() for job in many] == [0] * 8
        pid = AgentHome().agent_pid()
        assert pid is not None
        assert os.getsid(pid) == pid  # it is in no job's session, so it outlives them
        assert ids(dataset) == rows(**dict.fromkeys("abcdefgh", 5))
        log = Path(AgentHome().directory / "agent.log").read_text()
        assert "is already the agent" not in log
    finally:
        if (pid := AgentHome().agent_pid()) is not None:
            os.kill(pid, signal.SIGTERM)
            until(lambda: AgentHome().agent_pid() is None)
