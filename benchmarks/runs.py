"""Runs of subjects against one Hub: each in a process of its own, with what the Hub counted meanwhile."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

import msgspec

from benchmarks.hub import BenchmarkHub
from benchmarks.source import Job, Result


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run: what the subject told, and what reached the Hub from its start to its end, the CAS included.

    `requests` counts by operation, `sent` and `received` are bytes of bodies, to and from the Hub.
    """

    subject: str
    job: Job
    result: Result
    requests: dict[str, int]
    sent: int
    received: int

    @property
    def mb_per_s(self) -> float:
        return self.result.bytes / self.result.wall_s / 1e6

    @property
    def commits(self) -> int:
        return self.requests.get("commit", 0)


def run_subject(hub: BenchmarkHub, subject: str, **job: Any) -> Run:
    """Runs one subject to its end.

    What it keeps on disk, huggingface_hub's caches among it, is new for every run and gone afterwards: else what is
    remembered there would make the second run easier than the first.

    Raises:
        RuntimeError: the subject failed; with what it said.
    """
    with tempfile.TemporaryDirectory(prefix="hubsync-subject-") as directory:
        made = Job(repo=f"user/run-{time.time_ns()}", directory=directory, **job)
        process = start_subject(hub, subject, made)
        hub.control("DELETE", "requests")
        out, error = process.communicate(msgspec.json.encode(made) + b"\n")
        if process.returncode:
            raise RuntimeError(f"{subject} ended with {process.returncode}:\n{error.decode()[-4_000:]}")
        served = hub.control("GET", "requests")["requests"]
    return Run(
        subject=subject,
        job=made,
        result=msgspec.json.decode(out.splitlines()[-1], type=Result),
        requests=dict(Counter(item["operation"] for item in served)),
        sent=sum(item["bytes_in"] for item in served),
        received=sum(item["bytes_out"] for item in served),
    )


def start_subject(hub: BenchmarkHub, subject: str, job: Job) -> subprocess.Popen[bytes]:
    """The subject's process, which waits for its job: for those who kill it, or turn the weather, on the way."""
    environ = hub.environ() | {
        "HF_HOME": f"{job.directory}/hf",
        "HUBSYNC_HOME": f"{job.directory}/state",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.subjects", subject],
        env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
