"""How soon a row is readable: from its `put` to the moment a reader on the same machine has it from the Hub.

A job puts a batch of 50 rows of 3 kB 1, 10 or 100 times a second; a reader in another process follows the dataset and
looks four times a second. With the defaults, under which commits are scarce (120 an hour, 30 s apart) and rows linger
for up to 60 s; and with a job that flushes whenever the last flush has ended, on a Hub without a quota: the limit of
the machine. Each row carries the time at which it was put.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time
from itertools import count
from typing import TYPE_CHECKING, Any

from benchmarks.hub import BenchmarkHub, batches
from benchmarks.report import OURS, Column, Report, bars

if TYPE_CHECKING:
    pass

_ROWS, _ROW_BYTES = 50, 3_000
_LOOK_S = 0.25
_PACES = (1, 10, 100)  # batches a second


def run(*, quick: bool) -> Report:
    """For each pace and each way: seconds from put to readable."""
    seconds = {"defaults": 100.0, "flushing": 2.0 if quick else 15.0}
    cases = [("flushing", pace) for pace in (_PACES[:2] if quick else _PACES)]
    if not quick:
        cases.append(("defaults", _PACES[1]))  # whatever the pace: it is the quota's
    figures: list[dict[str, Any]] = []
    with BenchmarkHub() as hub:
        for way, pace in cases:
            ages = _ages(hub, way, pace, seconds[way])
            figures.append(
                {
                    "way": way, "batches_per_s": pace, "rows": len(ages), "p50_s": statistics.median(ages),
                    "p99_s": sorted(ages)[int(0.99 * len(ages))], "max_s": max(ages),
                }
            )  # fmt: skip
    return Report(
        name="freshness",
        title="From put to readable on the Hub",
        figures=figures,
        columns=(
            Column("way", "way"), Column("batches_per_s", "batches/s", ",d"), Column("rows", "rows", ",d"),
            Column("p50_s", "p50 (s)", ".2f"), Column("p99_s", "p99 (s)", ".2f"), Column("max_s", "max (s)", ".2f"),
        ),
        draw=lambda figure: bars(
            figure.subplots(),
            [f"{f['way']}, {f['batches_per_s']}/s, {name}" for f in figures for name in ("p50", "p99")],
            [f[f"{name}_s"] for f in figures for name in ("p50", "p99")],
            colours=OURS, unit="seconds", log=True,
        ),
        note=f"The reader looks every {_LOOK_S:g} s. The defaults keep to 120 commits an hour and a linger of 60 s.",
        section="way",
    )  # fmt: skip


def _ages(hub: BenchmarkHub, way: str, pace: int, seconds: float) -> list[float]:
    repo = f"user/fresh-{way}-{pace}"
    writer = hub.spawn("freshness", "write", repo, way, pace, seconds)
    writer.read_line()  # the repo is there
    reader = hub.spawn("freshness", "read", repo)
    ages: list[float] = json.loads(reader.communicate()[0])
    writer.communicate()
    return ages


def _write(repo: str, way: str, pace: int, seconds: float) -> None:
    from hubsync import CommitPolicy, Uploader

    stock = batches(_ROWS, _ROW_BYTES)
    commit = CommitPolicy() if way == "defaults" else CommitPolicy(per_hour=100_000)
    ended = threading.Event()
    with Uploader(repo, commit=commit) as up:
        print("open", flush=True)

        def flush_again_and_again() -> None:
            while not ended.is_set():
                up.flush()
                ended.wait(0.01)

        if way == "flushing":
            flushing = threading.Thread(target=flush_again_and_again)
            flushing.start()
        began = time.perf_counter()
        for n in count():
            wait = began + n / pace - time.perf_counter()
            if wait > 0:
                time.sleep(wait)
            if time.perf_counter() - began > seconds:
                break
            up.put([{**row, "at": time.time()} for row in stock[n % len(stock)]])
        up.put([{"at": None}])  # the last one
        if way == "defaults":
            # Closing uploads sooner than the pace that is measured, so wait for that pace.
            while up.stats().spool.rows:
                time.sleep(0.1)
        ended.set()


def _read(repo: str) -> None:
    from hubsync.reader import follow

    ages: list[float] = []
    with follow(repo, poll_s=_LOOK_S) as reader:
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
