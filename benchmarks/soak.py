"""Run an hour at a steady rate on a faulty Hub: does anything grow that should not?

A job puts ten batches per second. Every ten seconds the Hub gets another fault, or none. Memory, file handles, threads
and the spool's size are sampled every second; the report compares the medians of the first and the last fifth.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.hub import BenchmarkHub, batches
from benchmarks.report import Column, Report, lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FAULTS: list[dict[str, Any] | None] = [
    None,
    None,
    {"kind": "latency", "on": ["*"], "seconds": 0.5},
    {"kind": "status", "code": 503, "on": ["commit"], "probability": 0.5},
    {"kind": "reset", "when": "after", "on": ["commit"], "probability": 0.5},
    {"kind": "rate_limit", "shape": "retry-after", "seconds": 2, "on": ["*"], "probability": 0.3},
    {"kind": "hang", "seconds": 3.0, "on": ["*"], "probability": 0.1},
    {"kind": "outage", "on": ["*"]},
]
_FAULT_S = 10.0


def run(*, quick: bool, minutes: float = 60.0) -> Report:
    """Run the soak; report each resource at the beginning and at the end."""
    seconds = 20.0 if quick else minutes * 60
    rng = random.Random(1)
    with BenchmarkHub() as hub:
        job = hub.spawn("soak", "user/soak", seconds)
        job.read_line()
        until = time.monotonic() + seconds
        while time.monotonic() < until and job.poll() is None:
            hub.set_condition("healthy")
            fault = rng.choice(_FAULTS)
            if fault is not None:
                hub.control("POST", "faults", fault)
            time.sleep(min(_FAULT_S, seconds / 8))
        hub.set_condition("healthy")
        samples = json.loads(job.communicate()[0])
    fifth = max(1, len(samples) // 5)
    figures = [
        {
            "what": name,
            "first_fifth": statistics.median(sample[name] for sample in samples[:fifth]),
            "last_fifth": statistics.median(sample[name] for sample in samples[-fifth:]),
            "highest": max(sample[name] for sample in samples),
            "minutes": round(seconds / 60, 1),
        }
        for name in samples[0]
    ]
    return Report(
        name="soak",
        title=f"{seconds / 60:.0f} minutes of ten batches per second, with faults",
        figures=figures,
        columns=(
            Column("what", "what"), Column("first_fifth", "first fifth", ",.1f"),
            Column("last_fifth", "last fifth", ",.1f"), Column("highest", "highest", ",.1f"),
        ),
        draw=lambda figure: _draw(figure, samples),
        size=(13.0, 3.5),
    )  # fmt: skip


def _draw(figure: Figure, samples: list[dict[str, float]]) -> None:
    step = max(1, len(samples) // 600)  # a plot can't show one sample per second
    for axes, name in zip(figure.subplots(1, len(samples[0])), samples[0], strict=True):
        shown = [(n / 60, sample[name]) for n, sample in enumerate(samples)][::step]
        lines(axes, {name: shown}, x="minutes", y=name)


def _child(repo: str, seconds: float) -> None:
    from hubsync import CommitPolicy, RetryPolicy, ShardPolicy, Uploader

    stock = batches(50, 3_000)
    commit, retry = CommitPolicy(per_hour=100_000), RetryPolicy(initial_s=0.2, max_s=2.0, request_timeout_s=10)
    samples: list[dict[str, float]] = []
    with Uploader(repo, shard=ShardPolicy(linger_s=2.0), commit=commit, retry=retry) as up:
        print("open", flush=True)
        began = time.monotonic()
        n = 0
        while time.monotonic() - began < seconds:
            up.put(stock[n % len(stock)], key=f"batch {n}", offset=n)
            n += 1
            if n % 10 == 0:
                samples.append(_sample(up.spool))
            time.sleep(max(0.0, began + n / 10 - time.monotonic()))
    print(json.dumps(samples))


def _sample(spool: Path) -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "memory, MB": int(status["VmRSS"].split()[0]) / 1_000,
        "threads": int(status["Threads"]),
        "file handles": len(list(Path("/proc/self/fd").iterdir())),
        "catalogue, MB": sum(file.stat().st_size for file in spool.glob("catalogue.sqlite*")) / 1e6,
        "waiting in the spool, MB": sum(f.stat().st_size for f in (spool / "segments").iterdir() if f.exists()) / 1e6,
    }


if __name__ == "__main__":
    _child(sys.argv[1], float(sys.argv[2]))
