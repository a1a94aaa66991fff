"""The throughput that a generator loses to an uploader in its loop, compared with the same loop without one.

Each generator makes a batch of 50 rows of 3 kB every 100 ms: one sleeps as if it called an API, one computes in Python,
one holds the GIL in C, one is a task of asyncio. The Hub is healthy, slow, limited or down. The peer is what most jobs
begin with: `HfApi.upload_file` for every batch. Each case runs in a process of its own, and so does its Hub.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.hub import BenchmarkHub, HubCondition, batches, send_result, wait_for_start
from benchmarks.report import OURS, PEER, Column, Report, bars
from benchmarks.subjects import batch_uploader

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROWS, _ROW_BYTES, _BATCH_S = 50, 3_000, 0.1
KINDS = ("sleeping", "computing", "holding the GIL", "async")
CONDITIONS: tuple[HubCondition, ...] = ("healthy", "slow", "limited", "down")
# A peer that waits for the Hub is only run where it ends; so long a case may take.
_PEER_CONDITIONS: tuple[HubCondition, ...] = ("healthy", "slow")


def run(*, quick: bool) -> Report:
    """All cases: how much of its throughput without an uploader a generator keeps, in percent."""
    rounds, count, few = (1, 10, 1) if quick else (3, 30, 5)
    cases = [
        *(("hubsync", condition, count) for condition in (CONDITIONS[:1] if quick else CONDITIONS)),
        *(("upload_file", condition, few) for condition in (_PEER_CONDITIONS[1:] if quick else _PEER_CONDITIONS)),
    ]
    sizes = {"computing": _sized(_compute, 1_000), "holding the GIL": _sized(_hold_the_gil, 1_000_000)}
    kept: dict[tuple[str, str, str], list[float]] = {}
    with BenchmarkHub() as hub:
        for number in range(rounds):
            for kind in KINDS[:2] if quick else KINDS:
                size = sizes.get(kind, 0)
                alone = _one(hub, kind, "none", "healthy", count, size, f"{number}")
                for subject, condition, batches_ in cases:
                    took = _one(hub, kind, subject, condition, batches_, size, f"{number}-{subject}-{condition}")
                    kept.setdefault((kind, subject, condition), []).append(alone / took * 100)
    figures = [
        {
            "generator": kind, "uploader": subject, "hub": condition, "kept_percent": statistics.median(runs),
            "lowest_percent": min(runs), "highest_percent": max(runs),
        }
        for (kind, subject, condition), runs in kept.items()
    ]  # fmt: skip
    return Report(
        name="loss",
        title=f"Throughput that a generator keeps, of that without an uploader: medians of {rounds} rounds",
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
    kinds = list(dict.fromkeys(f["generator"] for f in figures))
    panels = figure.subplots(1, len(kinds), sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        ours = [f for f in figures if f["generator"] == kind]
        bars(
            axes,
            [f"{f['uploader']}, {f['hub']}" for f in ours],
            [f["kept_percent"] for f in ours],
            spans=[(f["lowest_percent"], f["highest_percent"]) for f in ours],
            colours=[OURS if f["uploader"] == "hubsync" else PEER for f in ours],
            unit="% kept",
            spec=".1f",
        )
        axes.set_title(kind, fontsize=9.5)


def _one(
    hub: BenchmarkHub, kind: str, subject: str, condition: HubCondition, count: int, size: int, name: str
) -> float:
    """Seconds a batch."""
    hub.set_condition("healthy")
    child = hub.spawn("loss", kind, subject, count, size, f"user/loss-{kind.split()[0]}-{name}")
    child.read_line()  # it is open: now the weather may turn
    hub.set_condition(condition)
    child.go()
    line = child.read_line()
    child.stop()
    return float(json.loads(line)) / count


def _work(kind: str, subject: str, count: int, size: int, repo: str) -> None:
    stock = batches(_ROWS, _ROW_BYTES)
    if kind == "async":
        asyncio.run(_generate_async(subject, stock, count, repo))
        return
    think = {"sleeping": _sleep, "computing": partial(_compute, size), "holding the GIL": partial(_hold_the_gil, size)}[
        kind
    ]
    if subject == "hubsync":
        from hubsync import ShardPolicy, Uploader

        with Uploader(repo, shard=ShardPolicy(linger_s=2.0)) as up:
            _generate(think, up.put, stock, count)
    else:
        _generate(think, _peer(repo) if subject == "upload_file" else lambda rows: None, stock, count)


def _generate(think: Callable[[], object], put: Callable[[Any], object], stock: list[Any], count: int) -> None:
    wait_for_start()
    began = time.perf_counter()
    for n in range(count):
        think()
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

    if subject == "hubsync":
        from hubsync import AsyncUploader, ShardPolicy

        async with AsyncUploader(repo, shard=ShardPolicy(linger_s=2.0)) as up:
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
    """One call into C, within which no other thread gets its turn."""
    sum(range(size))


def _sized(work: Callable[[int], object], some: int) -> int:
    """So much work as takes this machine, undisturbed, the time of a batch: measured once, for all cases."""
    quickest = float("inf")
    for _ in range(20):
        before = time.perf_counter()
        work(some)
        quickest = min(quickest, time.perf_counter() - before)
    return int(some * _BATCH_S / quickest)


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
