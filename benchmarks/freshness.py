"""Measure how soon a row is readable: from its `put` until a reader on the same machine has it from the Hub.

A job puts a batch of 50 rows of 3 kB 1, 10 or 100 times per second. A reader in another process follows the dataset and
polls four times per second. One job uses the defaults: 120 commits per hour, 30 s apart, and rows linger for up to
60 s. Another flushes in a loop on a Hub without a quota, which shows the limit of the machine. Each row carries the
time of its `put`.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from itertools import count
from typing import Any

from benchmarks.hub import BenchmarkHub, batches
from benchmarks.report import OURS, Column, Report, bars

_ROWS, _ROW_BYTES = 50, 3_000
_POLL_S = 0.25
_RATES = (1, 10, 100)  # batches per second


def run(*, quick: bool) -> Report:
    """Report the seconds from `put` to readable, for each job and rate."""
    seconds = {"defaults": 100.0, "flushing": 2.0 if quick else 15.0}
    cases = [("flushing", rate) for rate in (_RATES[:2] if quick else _RATES)]
    if not quick:
        cases.append(("defaults", _RATES[1]))  # one rate is enough: the commit quota decides
    figures: list[dict[str, Any]] = []
    with BenchmarkHub() as hub:
        for way, rate in cases:
            ages = _measure_ages(hub, way, rate, seconds[way])
            figures.append(
                {
                    "way": way, "batches_per_s": rate, "rows": len(ages), "p50_s": statistics.median(ages),
                    "p99_s": sorted(ages)[int(0.99 * len(ages))], "max_s": max(ages),
                }
            )  # fmt: skip
    return Report(
        name="freshness",
        title="From put to readable on the Hub",
        figures=figures,
        columns=(
            Column("way", "job"), Column("batches_per_s", "batches/s", ",d"), Column("rows", "rows", ",d"),
            Column("p50_s", "p50 (s)", ".2f"), Column("p99_s", "p99 (s)", ".2f"), Column("max_s", "max (s)", ".2f"),
        ),
        draw=lambda figure: bars(
            figure.subplots(),
            [f"{f['way']}, {f['batches_per_s']}/s, {name}" for f in figures for name in ("p50", "p99")],
            [f[f"{name}_s"] for f in figures for name in ("p50", "p99")],
            colours=OURS, unit="seconds", log=True,
        ),
        note=f"The reader polls every {_POLL_S:g} s. The defaults are 120 commits per hour and a linger of 60 s.",
        section="way",
    )  # fmt: skip


def _measure_ages(hub: BenchmarkHub, way: str, rate: int, seconds: float) -> list[float]:
    """Return the age in seconds at which each row was read."""
    repo = f"user/fresh-{way}-{rate}"
    writer = hub.spawn("freshness", "write", repo, way, rate, seconds)
    writer.read_line()  # the repo exists
    reader = hub.spawn("freshness", "read", repo)
    ages: list[float] = json.loads(reader.communicate()[0])
    writer.communicate()
    return ages


def _write(repo: str, way: str, rate: int, seconds: float) -> None:
    from hubsync import CommitPolicy, Uploader

    stock = batches(_ROWS, _ROW_BYTES)
    commit = CommitPolicy() if way == "defaults" else CommitPolicy(per_hour=100_000)
    ended = threading.Event()
    with Uploader(repo, commit=commit) as up:
        print("open", flush=True)

        def flush_in_a_loop() -> None:
            while not ended.is_set():
                up.flush()
                ended.wait(0.01)

        if way == "flushing":
            flushing = threading.Thread(target=flush_in_a_loop)
            flushing.start()
        began = time.perf_counter()
        for n in count():
            wait_s = began + n / rate - time.perf_counter()
            if wait_s > 0:
                time.sleep(wait_s)
            if time.perf_counter() - began > seconds:
                break
            up.put([{**row, "at": time.time()} for row in stock[n % len(stock)]])
        up.put([{"at": None}])  # tells the reader to stop
        if way == "defaults":
            # `close` would upload the last rows at once, so wait until the commit pacing has uploaded them.
            while up.stats().spool.rows:
                time.sleep(0.1)
        ended.set()


def _read(repo: str) -> None:
    from hubsync.reader import follow

    ages: list[float] = []
    with follow(repo, poll_s=_POLL_S) as reader:
        for row in reader:
            if row["at"] is None:
                break
            ages.append(time.time() - row["at"])
    print(json.dumps(ages))


if __name__ == "__main__":
    if sys.argv[1] == "write":
        _write(sys.argv[2], sys.argv[3], int(sys.argv[4]), float(sys.argv[5]))
    else:
        _read(sys.argv[2])
