"""The examples, run as users run them: as processes, over real sockets, killed and run again."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hubsync import SpoolError
from hubsync._runtime.clock import SystemClock
from hubsync.localhub import LocalHub
from hubsync.maintenance.inspect import default_spools, inspect_spool
from hubsync.spool.opening import open_spool
from tests.conftest import Dataset
from tests.waiting import until
from tests.zygote import Program, Python

pytestmark = pytest.mark.slow("runs every example in processes of its own")

ROOT = Path(__file__).parents[1]
README = (ROOT / "examples" / "README.md").read_text()
COMMANDS = {Path(text.split()[1]).name: text for text in re.findall(r"(?:python|bash) examples/[^`\n]+", README)}
ANSWERS_AHEAD = 4 * 8  # of asyncio_llm.py: MAX_AHEAD * --at-once


@dataclass(frozen=True)
class Job:
    process: subprocess.Popen[bytes] | Program
    log: Path

    @property
    def said(self) -> str:
        return self.log.read_text()


Start = Callable[..., Job]


@pytest.fixture
def start(hub: LocalHub, tmp_path: Path, python_with_datasets: Python) -> Iterator[Start]:
    """Start an example by the README's command, with more arguments, in its own process group."""
    jobs: list[Job] = []
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

    def start(name: str, *args: object, server: str = "") -> Job:
        command = re.sub(r"http://\S+", server, re.sub(r"\buser/\w+", "user/rows", COMMANDS[name]))
        log = tmp_path / f"job-{len(jobs)}.log"
        interpreter, *words = [*shlex.split(command), *map(str, args)]
        given: dict[str, Any] = {"cwd": ROOT, "env": {**os.environ, **hub.environ(), "PATH": path}}
        with log.open("wb") as file:
            given |= {"stdout": file, "stderr": file}
            process = (
                python_with_datasets.start(*words, **given, new_session=True)
                if interpreter == "python"
                else subprocess.Popen([interpreter, *words], **given, start_new_session=True)
            )
        jobs.append(Job(process, log))
        return jobs[-1]

    yield start
    for job in jobs:
        kill(job)


@pytest.fixture
def server(start: Start) -> str:
    """Return the address of the stand-in for an OpenAI-compatible server."""
    job = start("openai_stand_in.py", "--port", 0)
    until(lambda: "running on http" in job.said or job.process.poll() is not None)
    found = re.search(r"running on (http://[\d.:]+)", job.said)
    assert found is not None, job.said
    return found[1]


def asked(server: str) -> Counter[str]:
    """Return how often the stand-in has worked on each prompt."""
    with urllib.request.urlopen(f"{server}/asked") as answer:
        return Counter(json.load(answer))


def end(job: Job) -> str:
    """Wait until a job ends successfully; return its output."""
    assert job.process.wait() == 0, job.said
    return job.said


def kill(job: Job) -> None:
    """Kill a job and everything that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(job.process.pid, signal.SIGKILL)
    job.process.wait()


def accepted() -> int:
    """Return the number of rows that the spool has accepted."""
    with suppress(SpoolError):  # it is being created
        for spool in default_spools():
            depth = inspect_spool(spool).depth
            return depth.rows + depth.committed_rows
    return 0


def until_accepted(rows: int, job: Job) -> None:
    until(lambda: accepted() >= rows or job.process.poll() is not None)
    assert job.process.poll() is None, job.said


def offset(source: str) -> int:
    """Return the highest offset of `source` that the spool has accepted."""
    (directory,) = default_spools()
    with closing(open_spool(None, directory, SystemClock())) as spool:
        known = spool.offsets.highest(source)
    assert known is not None
    return known


def kill_a_writer() -> None:
    """Kill one of the processes that write to the spool."""
    (directory,) = default_spools()
    pids = [int(lock.read_text()) for lock in sorted((directory / "writers").glob("*.lock"))]
    os.kill(pids[0], signal.SIGKILL)


def numbered(rows: int) -> Iterable[object]:
    return range(rows)


def scored(samples: int) -> Iterable[object]:
    summaries = [("arithmetic", None), ("spelling", None)]
    return [(task, n) for task, _ in summaries for n in range(samples)] + summaries


def check(dataset: Dataset, rows: Iterable[object]) -> None:
    """Assert that exactly these rows are in the dataset, and that the spool is empty."""
    found: Counter[Any] = Counter(
        row["id"] if "id" in row else (row["task"], row.get("sample")) for row in dataset.rows()
    )
    assert found == Counter(rows)
    assert [inspect_spool(spool).depth.rows for spool in default_spools()] == [0]


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("plain_loop.py", numbered(1000)),
        ("dataloader_workers.py", numbered(1000)),
        ("datasets_map.py", numbered(1000)),
        ("evaluation.py", scored(2000)),
        ("shell_job.sh", numbered(1000)),
    ],
)
def test_a_command_of_the_page_uploads_every_row(
    start: Start, dataset: Dataset, name: str, rows: Iterable[object]
) -> None:
    end(start(name))
    check(dataset, rows)


def test_the_command_that_asks_a_server_uploads_every_row(start: Start, server: str, dataset: Dataset) -> None:
    end(start("asyncio_llm.py", server=server))
    check(dataset, numbered(200))


@pytest.mark.parametrize(
    ("name", "args", "rows"),
    [
        ("plain_loop.py", ["--rows", 2000], numbered(2000)),
        ("dataloader_workers.py", ["--rows", 1500], numbered(1500)),
        ("datasets_map.py", ["--rows", 2000, "--batch-size", 2], numbered(2000)),
        ("evaluation.py", ["--samples", 10_000], scored(10_000)),
        ("shell_job.sh", [20_000], numbered(20_000)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_killed_job_that_runs_again_uploads_every_row_once(
    start: Start, dataset: Dataset, name: str, args: list[object], rows: Iterable[object]
) -> None:
    job = start(name, *args)
    until_accepted(100, job)
    kill(job)
    assert 100 <= accepted() < len(list(rows))
    end(start(name, *args))
    check(dataset, rows)


def test_a_job_killed_after_a_commit_resumes_after_it(start: Start, dataset: Dataset) -> None:
    job = start("plain_loop.py", "--rows", 2000)
    until_accepted(100, job)
    kill(job)
    first = accepted()
    job = start("plain_loop.py", "--rows", 8000)  # commits the first job's rows immediately
    until(
        lambda: job.process.poll() is not None or any(inspect_spool(at).depth.committed_rows for at in default_spools())
    )
    kill(job)
    second = accepted()
    assert 100 <= first < second < 8000
    assert len(dataset.rows()) >= first
    assert f"{second:,} existed already" in end(start("plain_loop.py", "--rows", 8000))
    check(dataset, numbered(8000))


def test_a_job_killed_while_asking_a_server_asks_only_for_the_rest(start: Start, server: str, dataset: Dataset) -> None:
    job = start("asyncio_llm.py", server=server)
    until_accepted(40, job)
    kill(job)
    done, before = offset("prompts"), asked(server)
    end(start("asyncio_llm.py", server=server))
    check(dataset, numbered(200))
    again = {row["prompt"] for row in dataset.rows() if row["id"] <= done} & set(asked(server) - before)
    assert again == set()
    times = Counter(asked(server).values())
    assert times[1] + times[2] == 200
    assert times[2] <= ANSWERS_AHEAD


@pytest.mark.parametrize(
    ("name", "args", "number", "code"),
    [
        ("plain_loop.py", [], signal.SIGTERM, 143),
        ("dataloader_workers.py", ["--start-method", "fork"], signal.SIGTERM, 143),
        ("dataloader_workers.py", ["--start-method", "spawn"], signal.SIGTERM, 143),
        ("dataloader_workers.py", ["--start-method", "spawn"], signal.SIGINT, -signal.SIGINT),
        ("datasets_map.py", ["--batch-size", 1], signal.SIGTERM, 143),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_terminated_job_uploads_its_rows(
    start: Start, dataset: Dataset, name: str, args: list[object], number: signal.Signals, code: int
) -> None:
    job = start(name, "--rows", 50_000, *args)
    until_accepted(200, job)
    if number is signal.SIGINT:
        os.killpg(job.process.pid, number)  # as a terminal does
    else:
        job.process.send_signal(number)
    assert job.process.wait() == code, job.said
    ids = dataset.ids()
    assert 200 <= len(ids) == len(set(ids)) == accepted() < 50_000, job.said


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_killed_worker_is_restarted_and_resumes(start: Start, dataset: Dataset, method: str) -> None:
    job = start("dataloader_workers.py", "--rows", 1500, "--start-method", method)
    until_accepted(200, job)
    kill_a_writer()
    assert "died and is restarted" in end(job)
    check(dataset, numbered(1500))


def test_every_example_is_on_the_page_and_runs_here() -> None:
    here = Path(__file__).read_text()
    for file in (ROOT / "examples").iterdir():
        if file.suffix in (".py", ".sh"):
            assert f"]({file.name})" in README, file
            assert f'"{file.name}"' in here, file
