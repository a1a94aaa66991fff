"""What happens where there is much of it: 1 to 64 processes on one spool, and 1 to 100,000 batches of one process.

The processes put batches of 50 rows of 3 kB, each as fast as it can, for some seconds; all of it is drained then. The
batches are of one row, so that what is measured is the cost of a batch and not of its bytes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from typing import Any

from benchmarks.ground import Ground, batches

_PROCESSES = (1, 2, 4, 8, 16, 32, 64)
_BATCHES = (1_000, 10_000, 100_000)


def run(*, quick: bool) -> list[dict[str, Any]]:
    """Throughput, put latency and commits by processes; microseconds a batch by batches."""
    figures: list[dict[str, Any]] = []
    with Ground() as ground:
        seconds = 1.0 if quick else 5.0
        figures += [_many(ground, processes, seconds) for processes in ((1, 4) if quick else _PROCESSES)]
        for count in (1_000, 5_000) if quick else _BATCHES:
            out = subprocess.run(
                [sys.executable, "-m", "benchmarks.scale", "batches", f"user/batches-{count}", str(count)],
                env=ground.environ(), stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            figures.append({"what": f"{count:,} batches", "processes": 1, **json.loads(out.stdout)})
    return figures


def _many(ground: Ground, processes: int, seconds: float) -> dict[str, Any]:
    repo = f"user/scale-{processes}"
    command = [sys.executable, "-m", "benchmarks.scale", "puts", repo, str(seconds)]
    jobs = [
        subprocess.Popen(command, env=ground.environ(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    for job in jobs:
        assert job.stdout is not None
        job.stdout.readline()
    began = time.perf_counter()
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("go\n")
        job.stdin.flush()
    found = [json.loads(job.communicate()[0]) for job in jobs]
    took = time.perf_counter() - began
    rows = sum(one["rows"] for one in found)
    times = sorted(at for one in found for at in one["times"])
    commits = sum(r["status"] == 200 for r in _requests(ground, repo, "commit"))
    return {
        "what": f"{processes} processes", "processes": processes, "rows": rows,
        "spooled_mb_per_s": sum(one["bytes"] for one in found) / seconds / 1e6,
        "committed_mb_per_s": sum(one["bytes"] for one in found) / took / 1e6,
        "put_p50_ms": statistics.median(times), "put_p99_ms": times[int(0.99 * len(times))], "commits": commits,
    }  # fmt: skip


def _requests(ground: Ground, repo: str, operation: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ground.control("GET", f"requests?operation={operation}")["requests"]
    return [request for request in found if request["repo"] in (repo, f"datasets/{repo}")]


def _puts(repo: str, seconds: float) -> None:
    from hubsync import CommitPolicy, Uploader

    stock = batches(50, 3_000)
    times: list[float] = []
    size = n = 0
    with Uploader(repo, commit=CommitPolicy(per_hour=100_000)) as up:
        print("open", flush=True)
        sys.stdin.readline()
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
        for _ in range(200):  # warm
            up.put(rows)
        began = time.perf_counter()
        for _ in range(count):
            up.put(rows)
        spooled = time.perf_counter() - began
    print(json.dumps({"put_p50_ms": spooled / count * 1e3, "all_committed_s": time.perf_counter() - began}))


if __name__ == "__main__":
    if sys.argv[1] == "puts":
        _puts(sys.argv[2], float(sys.argv[3]))
    else:
        _many_batches(sys.argv[2], int(sys.argv[3]))
