"""Simulate a month in minutes: does anything grow with the dataset, or with an outage?

64 writers seal five shards per minute for 30 days on a manual clock. One commit per minute takes up to 100 shards.
Three times, nothing is committed for twelve hours. Outside the outages all curves must be flat; during one, only the
catalogue may grow, because it records the pending shards. A second table measures a backlog of up to 100,000 shards.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Column, Report, lines
from hubsync.model.batch import Batch
from hubsync.model.layout import Layout
from hubsync.model.receipt import Receipt
from hubsync.model.target import Target
from hubsync.policies import ShardPolicy
from hubsync.spool.spool import Spool
from hubsync.spool.writer import SpoolWriter
from hubsync.testing import ManualClock

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TARGET = Target("http://127.0.0.1:1", "user/month")
_LINES = b'{"id":1,"text":"' + b"x" * 200 + b'"}\n'
_SHARDS_PER_MINUTE = 5
_SHARDS_PER_COMMIT = 100
_NEW = "put in a new spool, us"  # at the same moment: what the machine's other work adds
_NAMES = ("catalogue, MB", "memory, MB", "put, us", _NEW, "ready(), us", "open, ms")


class Month:
    """A spool, its writers, and a committer whose Hub responds at once."""

    def __init__(self, directory: Path, writers: int) -> None:
        self.directory = directory
        self.clock = ManualClock()
        self.spool = Spool(directory, target=_TARGET, clock=self.clock)
        policy = ShardPolicy(max_rows=1)
        self.writers = [SpoolWriter.open(self.spool, Layout(), policy) for _ in range(writers)]
        assert self.spool.lease.acquire()
        self.puts_s: list[float] = []
        self._count = 0

    def put(self) -> None:
        """Seal one shard."""
        writer = self.writers[self._count % len(self.writers)]
        offset, self._count = self._count, self._count + 1
        batch = Batch(_LINES, 1, Receipt(1, len(_LINES)), offset=offset, source=writer.name)
        began = time.perf_counter()
        writer.append([batch])
        self.puts_s.append(time.perf_counter() - began)

    def commit(self) -> None:
        """Stage and commit up to a hundred shards."""
        shards = self.spool.shards
        shards.mark_staged({shard.segment: "lfs" for shard in shards.to_stage(_SHARDS_PER_COMMIT, 1 << 30)})
        if ready := shards.ready(_SHARDS_PER_COMMIT, 1 << 30):
            plan = self.spool.plans.write(ready, None, "parent", "Add")
            self.spool.plans.settle(plan, {shard.segment: "0" * 40 for shard in ready})
        self.spool.catalogue.checkpoint()

    def sample(self) -> dict[str, float]:
        """Return the current figures."""
        puts, self.puts_s = self.puts_s, []
        value = self.spool.catalogue.value
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        figures = (
            value("PRAGMA page_count") * value("PRAGMA page_size") / 1e6,
            int(status["VmRSS"].split()[0]) / 1_000,
            statistics.median(puts) * 1e6 if puts else 0.0,
            1e6 * self._put_in_a_new_spool(),
            1e6 * _seconds(lambda: self.spool.shards.ready(_SHARDS_PER_COMMIT, 1 << 30)),
            1e3 * _seconds(self._open),
        )
        return dict(zip(_NAMES, figures, strict=True))

    def _open(self) -> None:
        Spool(self.directory, target=_TARGET, clock=self.clock).close()

    def _put_in_a_new_spool(self) -> float:
        with tempfile.TemporaryDirectory(dir=self.directory.parent) as directory:
            new = Month(Path(directory) / "new", 1)
            for _ in range(50):
                new.put()
            new.close()
        return statistics.median(new.puts_s)

    def close(self) -> None:
        """Close the writers and the spool."""
        for writer in self.writers:
            writer.close()
        self.spool.close()


def _seconds(work: Any) -> float:
    took = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


@contextmanager
def month(writers: int) -> Iterator[Month]:
    """Yield a `Month` in a temporary directory."""
    in_memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=in_memory, prefix="hubsync-month-") as directory:
        one = Month(Path(directory) / "spool", writers)
        try:
            yield one
        finally:
            one.close()


def simulate(
    days: float, *, writers: int = 64, outage_h: float = 12.0, sample_h: float = 4.0
) -> list[dict[str, float]]:
    """Simulate some days with three outages.

    Args:
        days: simulated days.
        writers: how many writers share the spool.
        outage_h: hours that each outage lasts.
        sample_h: hours between two samples.

    Returns:
        The samples. `hour` is when a sample was taken; `away` is 1.0 during an outage.
    """
    minutes, samples = int(days * 1440), []
    starts = [minutes * n // 4 for n in (1, 2, 3)]
    with month(writers) as one:
        for minute in range(minutes):
            for _ in range(_SHARDS_PER_MINUTE):
                one.put()
            one.clock.advance(60)
            is_away = any(start <= minute < start + outage_h * 60 for start in starts)
            if not is_away:
                one.commit()
            if (minute + 1) % int(sample_h * 60) == 0:
                samples.append({"hour": (minute + 1) / 60, "away": float(is_away), **one.sample()})
    return samples


def backlog(sizes: tuple[int, ...]) -> list[dict[str, float]]:
    """Build up a backlog of sealed shards; return the figures at each size."""
    found = []
    with month(64) as one:
        for size in sizes:
            while one._count < size:
                one.put()
                if one._count % 5_000 == 0:
                    one.spool.catalogue.checkpoint()
            one.puts_s.clear()
            for _ in range(300):
                one.put()
            found.append({"waiting": size, **one.sample()})
    return found


def run(*, quick: bool) -> Report:
    """Compare the first days with the last, and a spool without a backlog with one of 100,000 shards."""
    days = 2.0 if quick else 30.0
    samples = simulate(days, outage_h=2.0 if quick else 12.0, sample_h=0.5 if quick else 4.0)
    calm = [sample for sample in samples if not sample["away"]]
    tenth = max(1, len(calm) // 10)
    figures: list[dict[str, Any]] = [
        {
            "what": name,
            "first": statistics.median(sample[name] for sample in calm[tenth : 2 * tenth]),
            "last": statistics.median(sample[name] for sample in calm[-tenth:]),
            "highest": max(sample[name] for sample in samples),
        }
        for name in _NAMES
    ]
    sizes = (0, 1_000, 4_000, 10_000) if quick else (0, 10_000, 40_000, 100_000)
    held = backlog(sizes)
    figures += [
        {
            "what": f"{sample['waiting']:,.0f} pending shards: put and ready(), us",
            "first": sample["put, us"],
            "last": sample["ready(), us"],
            "highest": sample["put, us"] / held[0]["put, us"],
        }
        for sample in held
    ]
    return Report(
        name="month",
        title=f"{days:.0f} days of {_SHARDS_PER_MINUTE} shards per minute from 64 writers, with three outages",
        figures=figures,
        columns=(
            Column("what", "what"), Column("first", "second tenth", ",.1f"), Column("last", "last tenth", ",.1f"),
            Column("highest", "highest (ratio of put)", ",.1f"),
        ),
        draw=lambda figure: _draw(figure, samples),
        size=(15.0, 3.2),
    )  # fmt: skip


def _draw(figure: Figure, samples: list[dict[str, float]]) -> None:
    panels = [(name,) for name in _NAMES if name not in ("put, us", _NEW)]
    panels.insert(2, ("put, us", _NEW))
    for axes, names in zip(figure.subplots(1, len(panels)), panels, strict=True):
        shown = {name: [(sample["hour"] / 24, sample[name]) for sample in samples] for name in names}
        lines(axes, shown, x="days", y=names[0])
