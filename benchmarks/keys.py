"""Measure what `put` with a key costs when the spool knows millions of keys: time, memory, disk. Runs offline.

The keys are inserted in bulk. Each case then runs in its own process, and reads them from disk like any job.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import Column, Report, lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PUTS = 3_000
_TIMES = ("new p50", "new p99", "replay p50", "replay p99")


def run(*, quick: bool) -> Report:
    """Run the cases: 0, 1 and 10 million keys (quick: 0 and 100,000)."""
    figures: list[dict[str, Any]] = []
    for count in (0, 100_000) if quick else (0, 1_000_000, 10_000_000):
        with tempfile.TemporaryDirectory(prefix="hubsync-keys-") as directory:
            environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
            command = [sys.executable, "-m", "benchmarks.keys", directory]
            subprocess.run([*command, "1"], env=environ, check=True, stdout=subprocess.DEVNULL)
            fill(Path(directory), count)
            done = subprocess.run([*command, str(_PUTS)], env=environ, check=True, capture_output=True, text=True)
            size = sum(file.stat().st_size for file in Path(directory).glob("catalogue.sqlite*"))
            figures.append({"keys": count, **json.loads(done.stdout), "catalogue MB": round(size / 1e6, 1)})
    return Report(
        name="keys",
        title=f"put with a key: {_PUTS:,} new keys, then the same keys again",
        figures=figures,
        columns=(
            Column("keys", "known keys", ",d"),
            *(Column(name, f"{name} (ms)", ",.3f") for name in _TIMES),
            Column("RSS grown MB", "RSS growth (MB)", ",.1f"),
            Column("catalogue MB", "catalogue (MB)", ",.1f"),
        ),
        draw=lambda figure: _draw(figure, figures),
        size=(7.0, 4.0),
    )


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    series = {name: [(f["keys"], f[name]) for f in figures] for name in _TIMES}
    lines(figure.subplots(), series, x="known keys", y="ms per put", log="x")


def fill(directory: Path, count: int) -> None:
    """Insert `count` keys into the catalogue, the way `hubsync.spool.writer` stores them."""
    digests = (hashlib.blake2b(b"old-%d" % n, digest_size=16).digest() for n in range(count))
    with sqlite3.connect(directory / "catalogue.sqlite") as db:
        db.execute("PRAGMA cache_size = -1000000")
        db.executemany("INSERT INTO keys VALUES (?, 1)", ((digest,) for digest in sorted(digests)))
    db.close()


def _produce(directory: str, puts: int) -> None:
    from hubsync import Uploader

    with Uploader("user/keys", spool=directory, endpoint="http://127.0.0.1:1") as up:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        new = [_time(up, f"new-{puts}-{n}") for n in range(puts)]
        replayed = [_time(up, f"new-{puts}-{n}") for n in range(puts)]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    at = {"p50": 0.5, "p99": 0.99}
    result: dict[str, float] = {}
    for name, times in (("new", sorted(new)), ("replay", sorted(replayed))):
        result |= {f"{name} {quantile}": times[int(q * len(times))] for quantile, q in at.items()}
    print(json.dumps(result | {"RSS grown MB": round(grown / 1000, 1)}))


def _time(up: Any, key: str) -> float:
    """Return the milliseconds that one `put` takes."""
    before = time.perf_counter()
    up.put([{"key": key}], key=key)
    return (time.perf_counter() - before) * 1e3


if __name__ == "__main__":
    _produce(sys.argv[1], int(sys.argv[2]))
