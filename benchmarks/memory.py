"""Measure an uploader's memory while the Hub is down: after gigabytes of rows, and with many shards in the spool.

The figure is the growth of the peak RSS since before the first `put` of the same process.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.hub import BenchmarkHub, batches, send_result, wait_for_start
from benchmarks.report import OURS, Column, Report, bars

_QUEUE_MB = 64  # the queue's default bound


def run(*, quick: bool) -> Report:
    """Report the growth in MB for each amount."""
    shards = [("shards", count) for count in (1_000, 10_000, 100_000)]
    cases = [("GB", 200), ("shards", 300)] if quick else [("GB", 5_000), *shards]
    figures: list[dict[str, Any]] = []
    with BenchmarkHub() as hub:
        for number, (kind, amount) in enumerate(cases):
            hub.set_condition("healthy")
            child = hub.spawn("memory", kind, amount, f"user/memory-{number}")
            child.read_line()
            hub.set_condition("down")
            child.go()
            found = json.loads(child.read_line())
            child.stop()
            figures.append(
                {
                    "produced": f"{amount / 1_000:g} GB" if kind == "GB" else f"{amount:,} shards",
                    "before_mb": found["before"], "peak_mb": found["peak"], "grown_mb": found["peak"] - found["before"],
                    "queue_bound_mb": _QUEUE_MB,
                }
            )  # fmt: skip
    return Report(
        name="memory",
        title="Memory while the Hub is down",
        figures=figures,
        columns=(
            Column("produced", "produced"), Column("before_mb", "before (MB)", ".0f"),
            Column("peak_mb", "peak (MB)", ".0f"), Column("grown_mb", "grown by (MB)", ".0f"),
            Column("queue_bound_mb", "queue bound (MB)", "d"),
        ),
        draw=lambda figure: bars(
            figure.subplots(), [f["produced"] for f in figures], [f["grown_mb"] for f in figures],
            colours=OURS, unit="growth of peak memory, MB",
        ),
        size=(8.0, 3.0),
    )  # fmt: skip


def _child(kind: str, amount: int, repo: str) -> None:
    from hubsync import ShardPolicy, SpoolPolicy, Uploader

    stock = batches(50, 3_000)
    one_row = [{"id": 1, "text": "a small row"}]
    shard = ShardPolicy(max_rows=1) if kind == "shards" else ShardPolicy()
    with Uploader(repo, shard=shard, spool=SpoolPolicy(max_bytes=1 << 40)) as up:
        before = _rss_mb()
        wait_for_start()
        if kind == "GB":
            done = n = 0
            while done < amount * 1_000_000:
                done += up.put(stock[n % len(stock)], ack="queued").bytes
                n += 1
        else:
            for _ in range(amount):
                up.put(one_row, ack="queued")
        up.put(one_row)  # returns when all earlier rows are spooled as well
        send_result({"before": before, "peak": _rss_mb()})  # the parent kills this process here


def _rss_mb() -> float:
    """Return the peak RSS; `ru_maxrss` is no good, because it starts with that of the parent process."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1_000


if __name__ == "__main__":
    _child(sys.argv[1], int(sys.argv[2]), sys.argv[3])
