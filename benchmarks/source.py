"""The input of every subject: a job, and a source of rows that measures the time.

The clock starts when the subject asks for its first batch, and stops when it returns with everything committed. A
*step* is the time from handing out a batch until the subject asks for the next one, so it shows how long the subject
blocks the producer, whether it pulls rows or they are pushed to it. Rows are made before the clock starts, or outside
the steps.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

Batch = list[dict[str, Any]]

SHARD_BYTES = 64 << 20  # size of finished files; hubsync's own default


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a subject's process reads from standard input.

    Attributes:
        repo: a dataset repo. It also seeds the rows, so no two runs upload the same bytes.
        rows: per batch.
        row_bytes: approximate size of a row as JSON.
        batches: how many.
        directory: for everything that the process stores.
        think_s: seconds between batches; 0 means as fast as the subject takes them.
        lazy: make each batch on demand, so the memory measured is the subject's and not that of the rows.
        every_s: seconds between the uploads of a scheduled subject. 300 is CommitScheduler's default.
    """

    repo: str
    rows: int
    row_bytes: int
    batches: int
    directory: str
    think_s: float = 0.0
    lazy: bool = False
    every_s: float = 300.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a subject's process writes to standard output, measured until everything is committed.

    Attributes:
        wall_s: from the first batch to the last commit.
        step_p50_s, step_p99_s, step_p999_s, step_max_s: quantiles of the steps.
        steps_s: sum of all steps.
        cpu_s: user and system time of all threads and child processes.
        rss_start: peak RSS in bytes when the clock started, which includes the rows and the imports.
        rss_peak: peak RSS in bytes.
        rows: that were uploaded.
        bytes: of their JSON Lines.
    """

    wall_s: float
    step_p50_s: float
    step_p99_s: float
    step_p999_s: float
    step_max_s: float
    steps_s: float
    cpu_s: float
    rss_start: int
    rss_peak: int
    rows: int
    bytes: int


class Source:
    """The job's batches, in order. A subject may iterate again, as some do after looking at the first row.

    Attributes:
        job: what it makes.
        bytes: size as JSON Lines of the batches made so far.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.bytes = 0
        self._steps: list[float] = []
        self._began: float | None = None
        self._ready = None if job.lazy else [self._make(n) for n in range(job.batches)]
        # A real job does not keep all its rows, so spare the garbage collector from scanning them.
        gc.collect()
        gc.freeze()

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches, and measure the time."""
        self.start()
        self._steps.clear()
        if self._ready is None:
            self.bytes = 0
        for n in range(self.job.batches):
            if self.job.think_s:
                time.sleep(self.job.think_s)
            batch = self._make(n) if self._ready is None else self._ready[n]
            before = time.perf_counter()
            yield batch
            self._steps.append(time.perf_counter() - before)

    def encoded(self) -> Iterator[bytes]:
        """Yield the batches as JSON Lines without starting the clock, for subjects that start with bytes."""
        for n in range(self.job.batches):
            yield _encoder.encode_lines(self._make(n) if self._ready is None else self._ready[n])

    def files(self) -> list[Path]:
        """Write JSON Lines shards without starting the clock, for subjects that start with files."""
        folder = Path(self.job.directory, "ready", "data")
        folder.mkdir(parents=True)
        return write_shards(folder, self.encoded())

    def start(self) -> None:
        """Start the clock, unless it is running."""
        if self._began is None:
            self._rss_start = _rss()
            self._cpu_start = _cpu()
            self._began = time.perf_counter()

    def stop(self) -> Result:
        """Stop the clock when everything is committed."""
        wall = time.perf_counter() - (self._began or 0.0)
        cpu = _cpu() - self._cpu_start
        assert self._began is not None, "the subject took no batch"
        steps = sorted(self._steps) or [0.0]
        p50, p99, p999 = (steps[min(len(steps) - 1, int(q * len(steps)))] for q in (0.5, 0.99, 0.999))
        return Result(
            wall_s=wall, cpu_s=cpu, rss_start=self._rss_start, rss_peak=_rss(),
            step_p50_s=p50, step_p99_s=p99, step_p999_s=p999, step_max_s=steps[-1], steps_s=sum(steps),
            rows=self.job.rows * self.job.batches, bytes=self.bytes,
        )  # fmt: skip

    def _make(self, n: int) -> Batch:
        job = self.job
        batch = rows_of(job.rows, job.row_bytes, first=n * job.rows, seed=job.repo)
        self.bytes += len(_encoder.encode_lines(batch))
        return batch


def rows_of(count: int, row_bytes: int, *, first: int, seed: str) -> Batch:
    """Make rows whose text compresses like natural text, at a few hundred MB/s.

    No two chunks of 64 kB are equal, so Xet has nothing to deduplicate.

    Args:
        count: how many rows.
        row_bytes: approximate size of a row as JSON.
        first: the id of the first row.
        seed: draws the text, together with `first`.
    """
    rng = random.Random(f"{seed} {first}")
    phrases = _phrases()

    def text(size: int) -> str:
        if size < 2 * _PHRASE:  # cut a phrase, or every text would be as long as one
            return (rng.choice(phrases) + rng.choice(phrases))[:size]
        return " ".join(rng.choices(phrases, k=size // _PHRASE))

    rest = max(40, row_bytes - 170)  # the other columns take 170 bytes
    return [
        {
            "id": first + n,
            "prompt": text(rest // 4),
            "completion": text(rest * 3 // 4),
            "model": "a-model-of-7b",
            "score": rng.random(),
            "tags": ["synthetic", "math"],
            "usage": {"prompt_tokens": rng.randint(1, 500), "completion_tokens": rng.randint(1, 2_000)},
        }
        for n in range(count)
    ]


def write_shards(folder: Path, encoded: Iterator[bytes] | Sequence[bytes]) -> list[Path]:
    """Write batches to files of at most `SHARD_BYTES`, without splitting a batch."""
    paths: list[Path] = []
    room, file = 0, None
    for lines in encoded:
        if file is None or len(lines) > room:
            if file is not None:
                file.close()
            paths.append(folder / f"train-{len(paths):05d}.jsonl")
            file, room = paths[-1].open("wb"), SHARD_BYTES
        file.write(lines)
        room -= len(lines)
    if file is not None:
        file.close()
    return paths


_PHRASE = 112  # characters in a phrase of 16 words and the space after it


@cache
def _phrases() -> list[str]:
    """Make the phrases, which are equal in every process."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(5_000)]
    return [" ".join(rng.choices(words, k=16)) for _ in range(20_000)]


_encoder = msgspec.json.Encoder()


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
