"""JSON Lines from a file descriptor to a dataset, so that a job in any language can use hubsync.

Lines are put in batches as they come: at once where the stream pauses, so that a slow job's rows are safe soon. A
line that is no JSON object is named by its number, and ends the stream or is set aside.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from hubsync.errors import HubsyncError, RowError
from hubsync.uploader import Uploader

_READ = 1 << 20
_BATCH_ROWS = 1_000
_PAUSE_S = 0.2  # a stream that is silent for so long has its lines put


class BadLine(HubsyncError, ValueError):
    """A line that is no JSON object. All lines before it are accepted."""

    def __init__(self, number: int, why: str) -> None:
        self.number, self.why = number, why
        super().__init__(f"line {number}: {why}")


@dataclass(slots=True)
class Piped:
    """What came of a stream, in lines."""

    read: int = 0
    rows: int = 0
    skipped: int = 0
    set_aside: int = 0


def pipe(
    fd: int,
    up: Uploader,
    *,
    source: str | None = None,
    bad_lines: Literal["fail", "set-aside"] = "fail",
    aside: Path | None = None,
) -> Piped:
    """Puts every line of `fd`. With `source`, lines that an earlier run brought already are passed over.

    Raises:
        BadLine: where `bad_lines` is "fail"; the lines before it are accepted.
    """
    done = Piped()
    known = (up.offset(source) or 0) if source else 0
    rows: list[dict[str, Any]] = []

    def put() -> None:
        if rows:
            up.put(rows, offset=done.read if source else None, source=source or "default")
            done.rows += len(rows)
            rows.clear()

    try:
        for line in _lines(fd):
            if line is None or len(rows) >= _BATCH_ROWS:
                put()
            if line is None:
                continue
            number = done.read + 1
            if number <= known:
                done.skipped += 1
            elif line.strip():
                try:
                    rows.append(_parse(number, line))
                except BadLine:
                    if bad_lines == "fail":
                        raise
                    done.set_aside += 1
                    _keep(aside or up.spool / "dead-letter" / "lines.txt", number, line)
            done.read = number
    finally:
        put()  # also where a signal ends it: what was read from the pipe is nowhere else
    return done


def _parse(number: int, line: bytes) -> dict[str, Any]:
    from hubsync.rows import encode

    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadLine(number, f"not JSON ({error}): {line[:60]!r}") from None
    if not isinstance(row, dict):
        raise BadLine(number, f"not a JSON object but {line[:60]!r}")
    try:
        encode([row])
    except RowError as error:
        raise BadLine(number, error.reason) from None
    return row


def _keep(aside: Path, number: int, line: bytes) -> None:
    fd = os.open(aside, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
    try:
        os.write(fd, b"%d\t%s\n" % (number, line.rstrip(b"\n")))
    finally:
        os.close(fd)


def _lines(fd: int) -> Iterator[bytes | None]:
    """The lines of a stream; None where it pauses."""
    rest = b""
    while True:
        ready, _, _ = select.select([fd], [], [], _PAUSE_S)
        if not ready:
            yield None
            continue
        data = os.read(fd, _READ)
        if not data:
            break
        *whole, rest = (rest + data).split(b"\n")
        yield from whole
    if rest:
        yield rest
