"""Measure how long `put` blocks the producer, for batches of 50 rows of 3 kB, one every 4 ms, and three Hub conditions.

Each case runs in its own process, and so does the Hub. The rounds interleave the cases. The case `encode` only encodes
the batch as JSON, without an uploader, so its tail shows the noise of the machine. The kernel may also preempt the
producer within a `put` (getrusage counts that), for hf_xet's threads or for the Hub, which in production runs on
another machine. The last column is the tail without preempted puts.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.hub import BenchmarkHub, HubCondition, batches, send_result, wait_for_start
from benchmarks.report import LIMIT, OURS, Column, Report, bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS, _ROW_BYTES, _THINK_S = 50, 3_000, 0.004
_QUANTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "max": 1.0}
_NOT_PREEMPTED = "p99.9, not preempted"
_CONDITIONS: tuple[HubCondition, ...] = ("healthy", "slow", "down")
_CASES: list[tuple[HubCondition | None, str]] = [
    (None, "encode"),
    *((condition, ack) for condition in _CONDITIONS for ack in ("queued", "spooled")),
]


def run(*, quick: bool) -> Report:
    """Run all cases; report the times in milliseconds."""
    rounds, puts = (1, 250) if quick else (3, 2_000)
    figures: list[dict[str, Any]] = []
    with BenchmarkHub() as hub:
        stalls: dict[tuple[str, str], list[dict[str, float]]] = {}
        for number, (condition, ack) in enumerate(_CASES * rounds):
            hub.set_condition("healthy")
            child = hub.spawn("stall", ack, puts, f"user/stall-{number}")
            child.read_line()  # the uploader is open
            hub.set_condition(condition or "healthy")
            child.go()
            stalls.setdefault((condition or "-", ack), []).append(_quantiles(json.loads(child.read_line())))
            child.stop()
        for (condition, ack), runs in stalls.items():
            medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
            figures.append({"hub": condition, "ack": ack, "puts": puts * rounds, **medians})
    return Report(
        name="stall",
        title=f"put, batches of {_ROWS} rows of {_ROW_BYTES:,} bytes, medians of {rounds} rounds",
        figures=figures,
        columns=(
            Column("hub", "Hub"),
            Column("ack", "ack"),
            Column("puts", "puts", ",d"),
            *(Column(name, f"{name} (ms)", ".3f") for name in (*_QUANTILES, _NOT_PREEMPTED)),
        ),
        draw=lambda figure: _draw(figure, figures),
        size=(13.0, 4.5),
    )


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    panels = figure.subplots(1, len(_QUANTILES), sharey=True)
    for axes, name in zip(panels, _QUANTILES, strict=True):
        bars(
            axes,
            ["encoding only" if f["ack"] == "encode" else f"{f['hub']}, {f['ack']}" for f in figures],
            [f[name] for f in figures],
            colours=[LIMIT if f["ack"] == "encode" else OURS for f in figures],
            unit="ms",
            log=True,
        )
        axes.set_title(name, fontsize=9.5)
    panels[0].set_ylim(len(figures) - 0.5, -0.5)


def _quantiles(puts: list[tuple[float, bool]]) -> dict[str, float]:
    found = {name: _quantile(q, [took for took, _ in puts]) for name, q in _QUANTILES.items()}
    return found | {_NOT_PREEMPTED: _quantile(_QUANTILES["p99.9"], [took for took, preempted in puts if not preempted])}


def _quantile(q: float, times: list[float]) -> float:
    return sorted(times)[min(len(times) - 1, int(q * len(times)))]


def _preemptions() -> int:
    """Return how often the kernel has preempted this thread; 0 except on Linux."""
    who = getattr(resource, "RUSAGE_THREAD", None)
    return 0 if who is None else resource.getrusage(who).ru_nivcsw


def _produce(ack: Any, puts: int, repo: str) -> None:
    from hubsync import ShardPolicy, Uploader
    from hubsync.encoding.rows import encode

    if ack == "encode":
        _time(encode, puts)
    with Uploader(repo, shard=ShardPolicy(linger_s=2.0)) as up:
        _time(partial(up.put, ack=ack), puts)


def _time(step: Callable[[Any], object], puts: int) -> None:
    stock = batches(_ROWS, _ROW_BYTES)
    wait_for_start()
    times = []
    for n in range(puts):
        time.sleep(_THINK_S)
        preemptions = _preemptions()
        before = time.perf_counter()
        step(stock[n % len(stock)])
        took_ms = (time.perf_counter() - before) * 1e3
        times.append((took_ms, _preemptions() > preemptions))
    send_result(times)  # the parent kills this process here, because the drain is not measured


if __name__ == "__main__":
    _produce(sys.argv[1], int(sys.argv[2]), sys.argv[3])
