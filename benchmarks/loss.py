"""Measure how much throughput a generator loses to an uploader in its loop, compared with the loop alone.

Each generator makes a batch of 50 rows of 3 kB every 100 ms. One sleeps, as if it called an API; one computes in
Python; one holds the GIL in C; one is an asyncio task. The Hub is healthy, slow, limited or down. The peer is what most
jobs start with: one `HfApi.upload_file` per batch. Each case runs in its own process, and so do its Hub and, for
"hubsync, agent", the agent.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.hub import BenchmarkHub, HubCondition, batches, send_result, wait_for_start
from benchmarks.report import OURS, PEER, Column, Report, bars
from benchmarks.subjects import batch_uploader

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hubsync.policies import CommitterPlace

_ROWS, _ROW_BYTES, _BATCH_S = 50, 3_000, 0.1
_OURS: dict[str, CommitterPlace] = {"hubsync": "thread", "hubsync, agent": "agent"}
GENERATORS = ("sleeping", "computing", "holding the GIL", "async")
CONDITIONS: tuple[HubCondition, ...] = ("healthy", "slow", "limited", "down")
# A peer waits for the Hub, so it would never finish on a Hub that is limited or down.
_PEER_CONDITIONS: tuple[HubCondition, ...] = ("healthy", "slow")


def run(*, quick: bool) -> Report:
    """Run all cases; report the percentage of its throughput that each generator keeps."""
    rounds, count, few = (1, 10, 1) if quick else (3, 30, 5)
    cases = [
        *((subject, condition, count) for subject in _OURS for condition in (CONDITIONS[:1] if quick else CONDITIONS)),
        *(("upload_file", condition, few) for condition in (_PEER_CONDITIONS[1:] if quick else _PEER_CONDITIONS)),
    ]
    sizes = {"computing": _calibrate(_compute, 1_000), "holding the GIL": _calibrate(_hold_the_gil, 1_000_000)}
    kept: dict[tuple[str, str, str], list[float]] = {}
    with BenchmarkHub() as hub:
        for number in range(rounds):
            for generator in GENERATORS[:2] if quick else GENERATORS:
                size = sizes.get(generator, 0)
                baseline_s = _run_case(hub, generator, "none", "healthy", count, size, f"{number}")
                for subject, condition, batches_ in cases:
                    name = f"{number}-{subject}-{condition}"
                    took_s = _run_case(hub, generator, subject, condition, batches_, size, name)
                    kept.setdefault((generator, subject, condition), []).append(baseline_s / took_s * 100)
    figures = [
        {
            "generator": generator, "uploader": subject, "hub": condition, "kept_percent": statistics.median(runs),
            "lowest_percent": min(runs), "highest_percent": max(runs),
        }
        for (generator, subject, condition), runs in kept.items()
    ]  # fmt: skip
    return Report(
        name="loss",
        title=f"Share of its throughput that a generator keeps with an uploader: medians of {rounds} rounds",
        figures=figures,
        columns=(
            Column("generator", "generator"), Column("uploader", "uploader"), Column("hub", "Hub"),
            Column("kept_percent", "kept (%)", ".1f", ("lowest_percent", "highest_percent")),
        ),
        draw=lambda figure: _draw(figure, figures),
        note=f"Batches of {_ROWS} rows of {_ROW_BYTES:,} bytes, one every {_BATCH_S * 1e3:g} ms.",
        section="generator",
        size=(13.0, 4.0),
    )  # fmt: skip


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    generators = list(dict.fromkeys(f["generator"] for f in figures))
    panels = figure.subplots(1, len(generators), sharey=True)
    for axes, generator in zip(panels, generators, strict=True):
        shown = [f for f in figures if f["generator"] == generator]
        bars(
            axes,
            [f"{f['uploader']}, {f['hub']}" for f in shown],
            [f["kept_percent"] for f in shown],
            spans=[(f["lowest_percent"], f["highest_percent"]) for f in shown],
            colours=[OURS if f["uploader"] in _OURS else PEER for f in shown],
            unit="% kept",
            spec=".1f",
        )
        axes.set_title(generator, fontsize=9.5)


def _run_case(
    hub: BenchmarkHub, generator: str, subject: str, condition: HubCondition, count: int, size: int, name: str
) -> float:
    """Return the seconds per batch."""
    hub.set_condition("healthy")
    hub.state = f"state-{generator}-{name}"  # of its own: no later agent uploads what this case leaves
    with hub.agent() if _OURS.get(subject) == "agent" else nullcontext():
        return _measure(hub, generator, subject, condition, count, size, name)


def _measure(
    hub: BenchmarkHub, generator: str, subject: str, condition: HubCondition, count: int, size: int, name: str
) -> float:
    child = hub.spawn("loss", generator, subject, count, size, f"user/loss-{generator.split()[0]}-{name}")
    child.read_line()  # the uploader is open
    hub.set_condition(condition)
    child.go()
    line = child.read_line()
    child.stop()
    return float(json.loads(line)) / count


def _child(generator: str, subject: str, count: int, size: int, repo: str) -> None:
    stock = batches(_ROWS, _ROW_BYTES)
    if generator == "async":
        asyncio.run(_generate_async(subject, stock, count, repo))
        return
    works: dict[str, Callable[[], object]] = {
        "sleeping": _sleep,
        "computing": partial(_compute, size),
        "holding the GIL": partial(_hold_the_gil, size),
    }
    work = works[generator]
    if subject in _OURS:
        from hubsync import ShardPolicy, Uploader

        with Uploader(repo, shard=ShardPolicy(linger_s=2.0), committer=_OURS[subject]) as up:
            _generate(work, up.put, stock, count)
    else:
        _generate(work, _peer(repo) if subject == "upload_file" else lambda rows: None, stock, count)


def _generate(work: Callable[[], object], put: Callable[[Any], object], stock: list[Any], count: int) -> None:
    wait_for_start()
    began = time.perf_counter()
    for n in range(count):
        work()
        put(stock[n % len(stock)])
    send_result(time.perf_counter() - began)


async def _generate_async(subject: str, stock: list[Any], count: int, repo: str) -> None:
    async def go(put: Callable[[Any], Awaitable[object]]) -> None:
        await asyncio.to_thread(wait_for_start)
        began = time.perf_counter()
        for n in range(count):
            await asyncio.sleep(_BATCH_S)
            await put(stock[n % len(stock)])
        send_result(time.perf_counter() - began)

    async def nothing(rows: Any) -> None:
        pass

    if subject in _OURS:
        from hubsync import AsyncUploader, ShardPolicy

        async with AsyncUploader(repo, shard=ShardPolicy(linger_s=2.0), committer=_OURS[subject]) as up:
            await go(up.put)
    elif subject == "upload_file":
        upload = _peer(repo)
        await go(lambda rows: asyncio.to_thread(upload, rows))
    else:
        await go(nothing)


def _peer(repo: str) -> Callable[[Any], object]:
    upload, number = batch_uploader(repo), itertools.count()
    return lambda rows: upload(next(number), rows)


def _sleep() -> None:
    time.sleep(_BATCH_S)


def _compute(size: int) -> None:
    for _ in range(size):
        sum([n * n for n in range(100)])


def _hold_the_gil(size: int) -> None:
    """Make one call into C that keeps all other threads waiting."""
    sum(range(size))


def _calibrate(work: Callable[[int], object], size: int) -> int:
    """Return the size at which `work` takes `_BATCH_S` on this machine when idle: measured once, for all cases.

    Args:
        work: the function to measure.
        size: the size to measure it with.
    """
    fastest_s = float("inf")
    for _ in range(20):
        before = time.perf_counter()
        work(size)
        fastest_s = min(fastest_s, time.perf_counter() - before)
    return int(size * _BATCH_S / fastest_s)


if __name__ == "__main__":
    _child(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
