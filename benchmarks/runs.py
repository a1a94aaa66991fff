"""Run subjects against a Hub, each in its own process, and count the requests that the Hub gets."""

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
    """One run of a subject.

    Attributes:
        subject: its name.
        job: what it did.
        result: what it measured.
        requests: how many requests reached the Hub, its CAS included, by operation.
        sent: bytes of request bodies.
        received: bytes of response bodies.
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
    """Run one subject until it exits.

    Each run has a new directory for the spool and for huggingface_hub's caches, so no run profits from an earlier one.

    Args:
        hub: where it uploads to.
        subject: a name in `SUBJECTS`.
        **job: fields of `Job`, other than `repo` and `directory`.

    Raises:
        RuntimeError: The subject failed; the message has the end of its stderr.
    """
    with tempfile.TemporaryDirectory(prefix="hubsync-subject-") as directory:
        spec = Job(repo=f"user/run-{time.time_ns()}", directory=directory, **job)
        process = start_subject(hub, subject, spec)
        hub.control("DELETE", "requests")
        out, error = process.communicate(msgspec.json.encode(spec) + b"\n")
        if process.returncode:
            raise RuntimeError(f"{subject} ended with {process.returncode}:\n{error.decode()[-4_000:]}")
        served = hub.control("GET", "requests")["requests"]
    return Run(
        subject=subject,
        job=spec,
        result=msgspec.json.decode(out.splitlines()[-1], type=Result),
        requests=dict(Counter(item["operation"] for item in served)),
        sent=sum(item["bytes_in"] for item in served),
        received=sum(item["bytes_out"] for item in served),
    )


def start_subject(hub: BenchmarkHub, subject: str, job: Job) -> subprocess.Popen[bytes]:
    """Start a subject's process; it waits for its job on standard input."""
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
