"""Measure what merging shards while a job runs gives and costs: `CompactPolicy`, at two sizes of shards.

A simulated week: a job puts a batch that becomes one shard, waits until it is committed, and puts the next one, so that
each shard has a commit of its own, as with one-minute shards. The same job runs with and without merging, on a Hub
without a quota. Then `load_dataset` reads each dataset in a new process.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any

from benchmarks.hub import BenchmarkHub, batches
from benchmarks.report import OURS, Column, Report, bars

_ROW_BYTES = 1_000
_CASES = (("20 kB", 20, 10_080), ("11 MB", 11_000, 60))  # what a shard has: a name, rows; how many shards
_QUICK = (("20 kB", 20, 240), ("11 MB", 11_000, 12))


def run(*, quick: bool) -> Report:
    """Report files, bytes, latencies and CPU time for each size, without and with merging."""
    figures: list[dict[str, Any]] = []
    with BenchmarkHub() as hub:
        for name, rows, shards in _QUICK if quick else _CASES:
            plain, merged = (_measure(hub, rows, shards, merges) for merges in (0, 4 if rows > 1_000 else 16))
            for way, found in (("no", plain), ("yes", merged)):
                figures.append(
                    {
                        "shard": name, "shards": shards, "merges": way, **found,
                        "again": found["sent"] / plain["sent"] - 1,
                        "cpu_ratio": found["cpu_s"] / plain["cpu_s"],
                        "load_ratio": plain["load_s"] / found["load_s"],
                    }
                )  # fmt: skip
    return Report(
        name="compaction",
        title="Merging shards while a job runs",
        figures=figures,
        columns=(
            Column("shard", "shard"), Column("shards", "shards", ",d"), Column("merges", "merged"),
            Column("files", "files at the end", ",d"), Column("merge_commits", "merges", ",d"),
            Column("again", "sent again", ".1%"), Column("put_p50_ms", "put p50 (ms)", ".2f"),
            Column("put_p99_ms", "put p99 (ms)", ".2f"), Column("fresh_p50_s", "committed p50 (s)", ".3f"),
            Column("fresh_p99_s", "committed p99 (s)", ".3f"), Column("cpu_ratio", "CPU ratio", ".2f"),
            Column("load_s", "load_dataset (s)", ".1f"), Column("load_ratio", "times faster", ".1f"),
        ),
        draw=lambda figure: bars(
            figure.subplots(), [f"{f['shard']}, merged: {f['merges']}" for f in figures],
            [f["load_s"] for f in figures], colours=OURS, unit="load_dataset, seconds",
        ),
        note="Sent again: request bodies beyond those of the job without merging.",
        section="shard",
        size=(8.0, 3.0),
        passed=all(figure["rows"] == figure["shards"] * figure["rows_per_shard"] for figure in figures),
    )  # fmt: skip


def _measure(hub: BenchmarkHub, rows: int, shards: int, merges: int) -> dict[str, Any]:
    repo = f"user/compaction-{rows}-{merges}"
    job = hub.spawn("compaction", "write", repo, rows, shards, merges)
    job.read_line()
    hub.control("DELETE", "requests")
    job.go()
    found: dict[str, Any] = json.loads(job.communicate()[0].splitlines()[-1])
    served = hub.control("GET", "requests")["requests"]
    load = hub.spawn("compaction", "load", repo)
    load.read_line()
    load.go()
    found |= json.loads(load.communicate()[0].splitlines()[-1])
    return {**found, "rows_per_shard": rows, "sent": sum(item["bytes_in"] for item in served)}


def _write(repo: str, rows: int, shards: int, merges: int) -> None:
    from huggingface_hub import HfApi

    from hubsync import CommitPolicy, CompactPolicy, ShardPolicy, Uploader

    stock = batches(rows, _ROW_BYTES, kinds=2, seed=merges)  # other text, else Xet would have it from the other job
    puts, ages = [], []
    compact = CompactPolicy(min_shards=merges, at_end=True) if merges else None
    policies: Any = {"shard": ShardPolicy(max_rows=rows), "commit": CommitPolicy(per_hour=10_000_000)}
    with Uploader(repo, compact=compact, progress=False, **policies) as up:
        print("ready", flush=True)
        sys.stdin.readline()
        cpu = time.process_time()
        for n in range(shards):
            began = time.perf_counter()
            receipt = up.put([{**row, "shard": n} for row in stock[n % 2]])
            puts.append(time.perf_counter() - began)
            while receipt.state != "committed":
                time.sleep(0.002)
            ages.append(time.perf_counter() - began)
    api = HfApi()
    titles = [one.title for one in api.list_repo_commits(repo, repo_type="dataset")]
    figures = {
        "files": sum(path.endswith(".jsonl") for path in api.list_repo_files(repo, repo_type="dataset")),
        "merge_commits": sum(title.startswith("Merge ") for title in titles),
        "cpu_s": time.process_time() - cpu,
        **{f"put_p{p}_ms": 1_000 * _percentile(puts, p) for p in (50, 99)},
        **{f"fresh_p{p}_s": _percentile(ages, p) for p in (50, 99)},
    }
    print(json.dumps(figures), flush=True)


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _load(repo: str) -> None:
    import datasets

    datasets.disable_progress_bars()
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    found = datasets.load_dataset(repo, split="train")
    print(json.dumps({"load_s": time.perf_counter() - began, "rows": len(found)}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        _write(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        _load(sys.argv[2])
