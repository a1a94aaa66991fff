"""What every subject is given: a job, and a source of rows that keeps the clock.

The clock starts when a subject asks for its first batch and ends when it returns, with everything committed. A *step*
is the time from handing a batch out to being asked for the next one: how long the producer stood still, whether the
subject is pushed to or pulls. Rows are made before the clock starts, or outside the steps.
"""

from __future__ import annotations

import gc
import random
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

Batch = list[dict[str, Any]]

SHARD_BYTES = 64 << 20  # of files that are there already: hubsync's own default


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What a subject's process reads from its standard input.

    Attributes:
        repo: a dataset repo; the seed of the rows too, so that no two runs upload the same bytes.
        rows, row_bytes, batches: rows of a batch, bytes of a row's JSON (about), how many batches.
        think_s: seconds between batches; 0 for as fast as the subject takes them.
        directory: the process' own, for whatever it keeps on disk.
        lazy: makes each batch when it is asked for, so that memory shows the subject's and not the rows'.
        every_s: seconds between the uploads of a subject that goes by a schedule. 300 is CommitScheduler's default.
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
    """What it writes to its standard output: seconds, bytes, and the quantiles of its steps.

    `cpu_s` is user and system time of all threads and children, and `rss_peak` the largest resident set, both until
    everything was committed; `rss_start` is the largest until the clock started, with the rows and the imports in it.
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
    """The job's batches, in order. A subject may begin again from the start, as some do to look at the first row."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.bytes = 0
        self._steps: list[float] = []
        self._began: float | None = None
        self._ready = None if job.lazy else [self._make(n) for n in range(job.batches)]
        # A real job does not hold all its rows, so the garbage collector need not walk them again and again.
        gc.collect()
        gc.freeze()

    def __iter__(self) -> Iterator[Batch]:
        """The batches, by the clock."""
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
        """The batches as JSON Lines, before the clock: for subjects that begin with bytes."""
        for n in range(self.job.batches):
            yield _encoder.encode_lines(self._make(n) if self._ready is None else self._ready[n])

    def files(self) -> list[Path]:
        """Shards of JSON Lines, written before the clock: for subjects that begin with files."""
        folder = Path(self.job.directory, "ready", "data")
        folder.mkdir(parents=True)
        return write_shards(folder, self.encoded())

    def start(self) -> None:
        """Starts the clock, at the first call."""
        if self._began is None:
            self._rss_start = _rss()
            self._cpu_start = _cpu()
            self._began = time.perf_counter()

    def stop(self) -> Result:
        """Everything is committed."""
        wall = time.perf_counter() - (self._began or 0.0)
        cpu = _cpu() - self._cpu_start
        assert self._began is not None, "the subject has taken nothing"
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
    """`count` rows with the ids from `first` on, of text that compresses as text does: some hundred MB a second.

    No two runs of 64 kB are alike, which is what Xet deduplicates.
    """
    rng = random.Random(f"{seed} {first}")
    phrases = _phrases.made

    def text(size: int) -> str:
        if size < 2 * _PHRASE:  # a piece of a phrase, or all texts would be as long as one
            return (rng.choice(phrases) + rng.choice(phrases))[:size]
        return " ".join(rng.choices(phrases, k=size // _PHRASE))

    rest = max(40, row_bytes - 170)  # what the other columns take
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
    """Files of `SHARD_BYTES` at most; a batch is not torn apart."""
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


_PHRASE = 112  # characters of a phrase of 16 words, with the blank behind it


class _Phrases:
    """Made when they are first asked for, the same ones in every process."""

    @cached_property
    def made(self) -> list[str]:
        rng = random.Random(0)
        words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 10))) for _ in range(5_000)]
        return [" ".join(rng.choices(words, k=16)) for _ in range(20_000)]


_phrases = _Phrases()
_encoder = msgspec.json.Encoder()


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def _rss() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
