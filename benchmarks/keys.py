"""What a put with a key costs when millions of keys are known: time, memory, disk. Offline: only the spool is measured.

The keys are made in bulk; each case then runs in a process of its own, and reads them from the disk as a job would.
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
    """0, 1 and 10 million keys (quick: 0 and 100,000)."""
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
        title=f"put with a key: {_PUTS:,} new ones, then the same again",
        figures=figures,
        columns=(
            Column("keys", "keys known before", ",d"),
            *(Column(name, f"{name} (ms)", ",.3f") for name in _TIMES),
            Column("RSS grown MB", "RSS grown (MB)", ",.1f"),
            Column("catalogue MB", "catalogue (MB)", ",.1f"),
        ),
        draw=lambda figure: _draw(figure, figures),
        size=(7.0, 4.0),
    )


def _draw(figure: Figure, figures: list[dict[str, Any]]) -> None:
    series = {name: [(f["keys"], f[name]) for f in figures] for name in _TIMES}
    lines(figure.subplots(), series, x="keys known before", y="ms a put", log="x")


def fill(directory: Path, count: int) -> None:
    """Enters `count` keys, as `writer` does."""
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
        again = [_time(up, f"new-{puts}-{n}") for n in range(puts)]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    at = {"p50": 0.5, "p99": 0.99}
    told: dict[str, float] = {}
    for name, times in (("new", sorted(new)), ("replay", sorted(again))):
        told |= {f"{name} {quantile}": times[int(q * len(times))] for quantile, q in at.items()}
    print(json.dumps(told | {"RSS grown MB": round(grown / 1000, 1)}))


def _time(up: Any, key: str) -> float:
    before = time.perf_counter()
    up.put([{"key": key}], key=key)
    return (time.perf_counter() - before) * 1e3


if __name__ == "__main__":
    _produce(sys.argv[1], int(sys.argv[2]))
