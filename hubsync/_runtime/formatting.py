"""Numbers, sizes and times as text for people."""

from __future__ import annotations

import time as _time
from pathlib import Path


def time_text(at: float) -> str:
    """Return a local time: 14:05:30, or Nov 25 14:05:30 if it is not today."""
    then = _time.localtime(at)
    is_today = then[:3] == _time.localtime()[:3]
    return _time.strftime("%H:%M:%S" if is_today else "%b %d %H:%M:%S", then)


def datetime_text(at: float) -> str:
    """Return a local date and time: 2026-11-25 14:05:30."""
    return _time.strftime("%Y-%m-%d %H:%M:%S", _time.localtime(at))


def count_text(number: int, what: str) -> str:
    """Return a count: 1 row, 12,400 rows, 2 batches."""
    plural = f"{what}es" if what.endswith("ch") else f"{what}s"
    return f"{number:,} {word(number, what, plural)}"


def word(number: int, one: str, many: str) -> str:
    """Return the word that goes with a count: is or are, it or them."""
    return one if number == 1 else many


def seconds_text(seconds: float) -> str:
    """Return seconds: 0.2 s, 25 s, 3,600 s."""
    return f"{max(0.0, round(seconds, 1)):,.10g} s"


def duration_text(seconds: float) -> str:
    """Return a rounded duration: 14 s, 3 min, 2 h 5 min."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 3:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if hours < 2 else f"{hours} h {minutes % 60} min"


def size_text(size: float) -> str:
    """Return a number of bytes: 38.0 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1_000 or unit == "GB":
            break
        size /= 1_000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def rows_text(rows: int, size: float) -> str:
    """Return an amount of rows: 12,400 rows (38.0 MB)."""
    return f"{count_text(rows, 'row')} ({size_text(size)})"


def rejected_text(shards: int, rows: int, lost_rows: int) -> str:
    """Return what is not in the dataset although it was accepted: 30 rows in 2 shards; or 30 rows kept, 5 rows lost."""
    if not lost_rows:
        return f"{count_text(rows, 'row')} in {count_text(shards, 'shard')}"
    kept = f"{count_text(rows, 'row')} kept, " if rows else ""
    return f"{kept}{count_text(lost_rows, 'row')} lost"


def waiting_text(rows: int, size: float) -> str:
    """Return what is not committed yet: 12,400 rows (38.0 MB) wait."""
    return f"{rows_text(rows, size)} {word(rows, 'waits', 'wait')}"


def safe_text(rows: int, size: float, spool: Path) -> str:
    """Return what is on disk and not committed yet: 12,400 rows (38.0 MB) are safe in /spool."""
    return f"{rows_text(rows, size)} {word(rows, 'is', 'are')} safe in {spool}"


def spool_full_text(spool: Path, max_bytes: int, dead_bytes: int) -> str:
    """Return why a full spool takes no more rows, and what an operator can do about the bytes in its dead letter."""
    dead = f", {size_text(dead_bytes)} of them in the dead letter" if dead_bytes else ""
    or_dead = f", or resubmitted or discarded (hubsync dead-letter list {spool})" if dead_bytes else ""
    return (
        f"the spool {spool} holds its {max_bytes:,} bytes{dead}; it takes more as soon as some are committed{or_dead}. "
        "If the disk has room, you can raise SpoolPolicy(max_bytes=…)."
    )
