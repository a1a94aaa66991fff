"""Fixtures of the tests of whole processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from hubsync.localhub import LocalHub
from tests.zygote import Program, Python

Start = Callable[..., Program]


class Jobs:
    """Start jobs of `tests.e2e.jobs`; what they write to stderr is in `log`. `close` kills those that are left."""

    def __init__(self, python: Python, environ: dict[str, str], log: Path) -> None:
        self._python, self._environ, self._log = python, environ, log
        self._jobs: dict[int, Program] = {}
        log.touch()

    def start(self, name: str, *args: Any) -> int:
        """Start a job and return its pid."""
        job = self.open(name, *args, stdout=subprocess.DEVNULL)
        self._jobs[job.pid] = job
        return job.pid

    def open(self, name: str, *args: Any, stdout: int) -> Program:
        """Start a job; the caller ends it."""
        words = json.dumps([name, *args], default=str)
        with self._log.open("a") as log:
            return self._python.start(
                "-m", "tests.e2e.jobs", words,
                env=self._environ, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log,
            )  # fmt: skip

    def end(self, pid: int) -> int:
        """Wait for a job's end and return its exit code, as `Popen.returncode`."""
        return self._jobs[pid].wait()

    def wait_until_it_stops(self, pid: int) -> None:
        self._jobs[pid].wait_until_it_stops()

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def describe(self) -> str:
        """Return the log, with what each thread of each job does now; a job that is stopped says nothing."""
        for pid, job in self._jobs.items():
            if job.returncode is None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR2)
        time.sleep(1)  # until they have written it
        return self.log

    def close(self) -> None:
        for job in self._jobs.values():
            with job:  # kills it
                pass


@pytest.fixture
def jobs(hub: LocalHub, tmp_path: Path, python: Python, monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    for name, value in hub.environ().items():
        monkeypatch.setenv(name, value)
    jobs = Jobs(python, {**os.environ, **hub.environ(), "HF_HOME": str(tmp_path / "hf")}, tmp_path / "log")
    try:
        yield jobs
    finally:
        jobs.close()


@pytest.fixture
def start(jobs: Jobs) -> Iterator[Start]:
    """Start a job that prints what it has put."""
    with ExitStack() as running:
        yield lambda *args: running.enter_context(jobs.open(*args, stdout=subprocess.PIPE))
