"""Jobs that use distilabel, in the interpreter of its own environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from hubsync.localhub import LocalHub
from tests.zygote import Python

JOBS = Path(__file__).parent / "jobs"
ENVIRONMENT = Path(__file__).parents[2] / ".venv-distilabel"
PATIENCE_S = 120  # much more than any step needs


@pytest.fixture(scope="session")
def distilabel() -> Iterator[Python]:
    """Start programs that have already imported distilabel, which takes seconds."""
    executable = ENVIRONMENT / "bin" / "python"
    assert executable.exists(), f"{ENVIRONMENT} is missing, the environment of distilabel: run `make test` once."
    with Python(executable, "import distilabel.pipeline, distilabel.steps, hubsync.integrations.distilabel") as python:
        yield python


class Job:
    """A process and all that distilabel forks from it, in one process group, as in a terminal."""

    def __init__(self, python: Python, arguments: list[object], directory: Path, environ: Mapping[str, str]) -> None:
        self.directory = directory
        self._output = directory / "output"
        given = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUBSYNC_"))}
        homes = {"HF_HOME": str(directory / "hf"), "HUBSYNC_HOME": str(directory / "state")}
        with self._output.open("ab") as output:
            self._process = python.start(
                *arguments, cwd=directory, env={**given, **homes, **environ},
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, new_session=True,
            )  # fmt: skip

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group, as a terminal does."""
        os.killpg(self._process.pid, number)

    def wait(self) -> int:
        return self._process.wait(PATIENCE_S)

    def end(self) -> Any:
        """Wait for a successful end; return the result that the job wrote."""
        assert self.wait() == 0, self.output
        return json.loads((self.directory / "result").read_text())

    def until(self, what: Callable[[], object]) -> None:
        """Wait for a condition while the job runs."""
        end = time.monotonic() + PATIENCE_S
        while not what():
            assert self._process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.01)

    def made(self, step: str = "first") -> list[int]:
        """Return the ids that a step has generated, in all runs."""
        file = self.directory / f"made-{step}"
        return [int(line) for line in file.read_text().splitlines()] if file.exists() else []

    def accepted(self) -> int:
        """Return the number of rows that the checkpointer has accepted, in all runs."""
        catalogue = f"file:{self.directory}/spool/catalogue.sqlite?mode=ro"
        try:
            with contextlib.closing(sqlite3.connect(catalogue, uri=True)) as db:
                return int(db.execute("SELECT coalesce(sum(rows), 0) FROM segments").fetchone()[0])
        except sqlite3.OperationalError:  # it does not exist yet
            return 0

    @property
    def output(self) -> str:
        """The end of what the job printed."""
        return self._output.read_text()[-20_000:]

    @property
    def log(self) -> str:
        """What distilabel logged, in all runs."""
        return "".join(file.read_text() for file in sorted(self.directory.rglob("pipeline.log")))

    def kill(self) -> None:
        """Kill the whole group."""
        with contextlib.suppress(ProcessLookupError):
            self.signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def start(hub: LocalHub, tmp_path: Path, distilabel: Python) -> Iterator[Callable[..., Job]]:
    """Start a pipeline (`jobs/pipeline.py`) against the test's Hub. All jobs of a test share a directory."""
    directory, jobs = tmp_path / "job", []
    directory.mkdir()

    def start(*, environ: Mapping[str, str] = MappingProxyType({}), **plan: Any) -> Job:
        arguments = [JOBS / "pipeline.py", json.dumps(plan)]
        jobs.append(Job(distilabel, arguments, directory, {**hub.environ(), **environ}))
        return jobs[-1]

    yield start
    for job in jobs:
        job.kill()


@pytest.fixture
def alone(hub: LocalHub, tmp_path: Path, distilabel: Python) -> Iterator[Callable[..., Any]]:
    """Run a scene of `jobs/alone.py`, a step without a pipeline, and return its result."""
    directory, jobs = tmp_path / "alone", []
    directory.mkdir()

    def run(scene: str, **environ: str) -> Any:
        jobs.append(Job(distilabel, [JOBS / "alone.py", scene], directory, {**hub.environ(), **environ}))
        return jobs[-1].end()

    yield run
    for job in jobs:
        job.kill()
