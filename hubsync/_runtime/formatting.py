"""Numbers, sizes and times as people read them."""

from __future__ import annotations

import time as _time
from pathlib import Path


def clock_text(at: float) -> str:
    """A time for people: 14:05:30 in local time, with the day where it is not today's."""
    then = _time.localtime(at)
    is_today = then[:3] == _time.localtime()[:3]
    return _time.strftime("%H:%M:%S" if is_today else "%b %d %H:%M:%S", then)


def moment_text(at: float) -> str:
    """A day and time for people: 2026-11-25 14:05:30, in local time."""
    return _time.strftime("%Y-%m-%d %H:%M:%S", _time.localtime(at))


def count_text(number: int, what: str) -> str:
    """1 row, 12,400 rows."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def seconds_text(seconds: float) -> str:
    """0.2 s, 25 s, 3,600 s."""
    return f"{max(0.0, round(seconds, 1)):,.10g} s"


def size_text(size: float) -> str:
    """Bytes for people: 38.0 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1_000 or unit == "GB":
            break
        size /= 1_000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def waiting_text(rows: int, size: float) -> str:
    """12,400 rows (38.0 MB) wait."""
    return f"{count_text(rows, 'row')} ({size_text(size)}) {'waits' if rows == 1 else 'wait'}"


def full_text(spool: Path, most: int, dead: int) -> str:
    """A spool that holds all it may, `most` bytes; `dead` of them only a person can move."""
    return (
        f"the spool {spool} holds its {most:,} bytes"
        + (f", {size_text(dead)} of them in the dead letter" if dead else "")
        + "; it takes more as soon as some are committed"
        + (f", or put again or discarded (hubsync dead-letter list {spool})" if dead else "")
        + ". Raise SpoolPolicy(max_bytes=…) if the disk has room."
    )


def age_text(seconds: float) -> str:
    """A time span for people: 14 s, 3 min, 2 h 5 min."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 3:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if hours < 2 else f"{hours} h {minutes % 60} min"
