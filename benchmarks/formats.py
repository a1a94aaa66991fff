"""Compare the formats: `python -m benchmarks.formats` prints the table of docs/how-to/choose-a-format.md.

Rows are about 3 kB (invented words, a few numbers), and shards 34 MB. The second shard is the first one without its
first tenth, with as many new rows at its end. "sent" is what hf_xet uploads for each.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from hubsync import CommitPolicy, ShardPolicy, Uploader
from hubsync.encoding import codecs
from hubsync.localhub import LocalHub
from hubsync.model.layout import FORMATS, Format

ROWS = 10_000


class Rows:
    """Make random rows; the same seed makes the same rows."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = random.Random(1)
        self._words = ["".join(words.choices(letters, k=words.randint(2, 9))) for _ in range(20_000)]
        self._weights = [1 / (n + 1) for n in range(20_000)]

    def _text(self, words: int) -> str:
        return " ".join(self._random.choices(self._words, self._weights, k=words))

    def make(self, count: int) -> list[dict[str, Any]]:
        """Make the next `count` rows."""
        draw = self._random
        return [
            {
                "id": draw.getrandbits(40),
                "prompt": self._text(120),
                "completion": self._text(380),
                "reward": draw.random(),
                "tokens": draw.randint(10, 900),
                "meta": {"model": f"m-{draw.randint(1, 3)}", "temperature": 0.7},
            }
            for _ in range(count)
        ]


def cost(lines: bytes, format: Format, where: Path) -> tuple[float, float]:
    """Compress JSON Lines.

    Args:
        lines: the rows.
        format: the format to compress them to.
        where: an empty directory.

    Returns:
        The compressed size as a fraction of the lines, and MB of lines per CPU second.
    """
    if format == "jsonl":
        return 1.0, 0.0
    source, target = where / "lines.jsonl", where / f"shard.{format}"
    source.write_bytes(lines)
    start = time.process_time()
    codecs.compress(source, target, ROWS)
    return target.stat().st_size / len(lines), len(lines) / 1e6 / (time.process_time() - start)


def sent(first: list[Any], second: list[Any], format: Format) -> tuple[float, float]:
    """Return the MB that are uploaded to Xet storage for each of two shards."""
    one = ShardPolicy(max_rows=ROWS, linger_s=3600)
    with tempfile.TemporaryDirectory() as scratch, LocalHub(Path(scratch, "hub")) as hub:
        os.environ["HF_HOME"] = str(Path(scratch, "hf"))
        spool = Path(scratch, "spool")
        with Uploader(
            "user/rows", endpoint=hub.endpoint, token=hub.token, spool=spool, format=format, shard=one,
            commit=CommitPolicy(per_hour=10_000),
        ) as up:  # fmt: skip
            up.put(first, ack="committed")
            before = _sent(hub)
            up.put(second, ack="committed")
            return before, _sent(hub) - before


def _sent(hub: LocalHub) -> float:
    return sum(request.bytes_in for request in hub.requests() if "/xorbs/" in request.path) / 1e6


def main() -> None:
    """Print the table."""
    rows = Rows(2)
    first, new = rows.make(ROWS), rows.make(ROWS // 10)
    second = [*first[len(new) :], *new]
    lines = msgspec.json.Encoder().encode_lines(first)
    print(f"{len(lines) / 1e6:.1f} MB of lines")
    print("| format | size | MB/s per core | sent | sent for the second shard |")
    print("| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as where:
        for format in FORMATS:
            size, speed = cost(lines, format, Path(where))
            one, two = sent(first, second, format)
            fast = f"{speed:.0f}" if speed else "–"
            print(f"| `{format}` | {size:.0%} | {fast} | {one:.1f} MB | {two:.1f} MB |", flush=True)


if __name__ == "__main__":
    main()
