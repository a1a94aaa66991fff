"""Measure how hubsync scales: 1 to 64 processes that share a spool, and 1,000 to 100,000 batches from one process.

The processes put batches of 50 rows of 3 kB as fast as they can for a few seconds, then drain. In the second part each
batch has one small row, so the cost per batch is measured and not the cost per byte.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from benchmarks.hub import BenchmarkHub, batches, wait_for_start
from benchmarks.report import Column, Report, lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PROCESSES = (1, 2, 4, 8, 16, 32, 64)
_BATCHES = (1_000, 10_000, 100_000)


def run(*, quick: bool) -> Report:
    """Report throughput, `put` latency and commits by number of processes, and the time per batch."""
    figures: list[dict[str, Any]] = []
    with BenchmarkHub() as hub:
        seconds = 1.0 if quick else 3.0
        figures += [_run_processes(hub, processes, seconds) for processes in ((1, 4) if quick else _PROCESSES)]
        for count in (1_000, 5_000) if quick else _BATCHES:
            out = subprocess.run(
                [sys.executable, "-m", "benchmarks.scale", "batches", f"user/batches-{count}", str(count)],
                env=hub.environ(), stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            figures.append({"what": f"{count:,} batches", "batches": count, **json.loads(out.stdout)})
    return Report(
        name="scale",
        title="Many processes on one spool, many batches from one process",
        figures=figures,
        columns=(
            Column("what", "what"), Column("rows", "rows", ",d"),
            Column("spooled_mb_per_s", "spooled (MB/s)", ",.0f"),
            Column("committed_mb_per_s", "committed (MB/s)", ",.0f"),
            Column("put_p50_ms", "put p50 (ms)", ".3f"), Column("put_p99_ms", "put p99 (ms)", ".1f"),
            Column("commits", "commits", "d"), Column("per_batch_ms", "ms per batch, committed", ".3f"),
        ),
        draw=lambda figure: _draw(figure, figures),
        note="Processes put batches of 50 rows of 3 kB as fast as they can; the other batches have one small row.",
    )  # fmt: skip


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    many = [f for f in figures if "processes" in f]
    long = [f for f in figures if "batches" in f]
    first, second, third = figure.subplots(1, 3)
    lines(
        first,
        {
            "spooled": [(f["processes"], f["spooled_mb_per_s"]) for f in many],
            "committed": [(f["processes"], f["committed_mb_per_s"]) for f in many],
        },
        x="processes", y="MB/s", log="x",
    )  # fmt: skip
    lines(
        second,
        {name: [(f["processes"], f[f"put_{name}_ms"]) for f in many] for name in ("p50", "p99")},
        x="processes", y="put, ms", log="xy",
    )  # fmt: skip
    lines(
        third,
        {
            "spooled": [(f["batches"], f["put_p50_ms"]) for f in long],
            "committed": [(f["batches"], f["per_batch_ms"]) for f in long],
        },
        x="batches", y="ms per batch", log="x",
    )  # fmt: skip


def _run_processes(hub: BenchmarkHub, processes: int, seconds: float) -> dict[str, Any]:
    repo = f"user/scale-{processes}"
    jobs = [hub.spawn("scale", "puts", repo, seconds) for _ in range(processes)]
    for job in jobs:
        job.read_line()
    began = time.perf_counter()
    for job in jobs:
        job.go()
    found = [json.loads(job.communicate()[0]) for job in jobs]
    took = time.perf_counter() - began
    rows = sum(one["rows"] for one in found)
    times = sorted(at for one in found for at in one["times"])
    commits = sum(r["status"] == 200 for r in _requests(hub, repo, "commit"))
    return {
        "what": f"{processes} process{'es' if processes > 1 else ''}", "processes": processes, "rows": rows,
        "spooled_mb_per_s": sum(one["bytes"] for one in found) / seconds / 1e6,
        "committed_mb_per_s": sum(one["bytes"] for one in found) / took / 1e6,
        "put_p50_ms": statistics.median(times), "put_p99_ms": times[int(0.99 * len(times))], "commits": commits,
    }  # fmt: skip


def _requests(hub: BenchmarkHub, repo: str, operation: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = hub.control("GET", f"requests?operation={operation}")["requests"]
    return [request for request in found if request["repo"] in (repo, f"datasets/{repo}")]


def _puts(repo: str, seconds: float) -> None:
    from hubsync import CommitPolicy, Uploader

    stock = batches(50, 3_000)
    times: list[float] = []
    size = n = 0
    with Uploader(repo, commit=CommitPolicy(per_hour=100_000)) as up:
        wait_for_start()
        until = time.perf_counter() + seconds
        while (before := time.perf_counter()) < until:
            size += up.put(stock[n % len(stock)]).bytes
            times.append((time.perf_counter() - before) * 1e3)
            n += 1
    print(json.dumps({"rows": 50 * n, "bytes": size, "times": times}))


def _many_batches(repo: str, count: int) -> None:
    from hubsync import CommitPolicy, Uploader

    rows = [{"id": 1, "text": "a small row"}]
    began = time.perf_counter()
    with Uploader(repo, commit=CommitPolicy(per_hour=100_000)) as up:
        for _ in range(200):  # warm-up
            up.put(rows)
        began = time.perf_counter()
        for _ in range(count):
            up.put(rows)
        spooled = time.perf_counter() - began
    took = time.perf_counter() - began
    print(json.dumps({"rows": count, "put_p50_ms": spooled / count * 1e3, "per_batch_ms": took / count * 1e3}))


if __name__ == "__main__":
    if sys.argv[1] == "puts":
        _puts(sys.argv[2], float(sys.argv[3]))
    else:
        _many_batches(sys.argv[2], int(sys.argv[3]))
