"""Rows of a dataset to standard output, as JSON Lines: what `hubsync read` and `hubsync tail` do.

With a file for the cursor, it is written behind what was written out: started again, nothing is missing. What was
written in the last second before a SIGKILL may come again, since nobody can tell how much of it was taken.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import anyio

from hubsync._runtime.clock import SystemClock
from hubsync.errors import ConfigError, UnreadableRow
from hubsync.reader.reading import Rows, Shard, follow, rows, shards

_log = logging.getLogger("hubsync")

_SAVE_S = 1.0  # between two looks at the cursor's file, while rows come
_WRITE = 1 << 18  # bytes that are written at once, where nobody waits for single rows

BadLines = Literal["fail", "skip"]


def read(repo: str, *, kept: Path | None = None, bad_lines: BadLines = "fail", out: int = 1, **options: Any) -> None:
    """Writes the rows as they stand now; with `kept` those behind the cursor in that file. `options` as `rows`."""
    with _ends_with_its_reader():
        cursor = _cursor_in(kept) if kept is not None else None
        if cursor is not None:
            options["since"] = cursor
        with rows(repo, **options) as reader:
            is_any = _write(reader, out, kept, bad_lines, at_once=False)
        # Behind a cursor nothing may be new, and what a spool holds may be the config's first.
        if (
            not is_any
            and cursor is None
            and not options.get("spool")
            and (options.get("config") or options.get("split"))
        ):
            asked = {name: value for name, value in options.items() if name not in ("since", "spool")}
            must_hold(repo, list(shards(repo, **asked)), asked)


def must_hold(repo: str, found: Sequence[Shard], asked: Mapping[str, Any]) -> None:
    """None is an error where a config or a split was asked for, since it may be a slip of the pen."""
    place = " and ".join(f"{name} {asked[name]!r}" for name in ("config", "split") if asked.get(name))
    if place and not found:
        raise ConfigError(f"{repo} holds no shard of {place}.")


def tail(
    repo: str,
    *,
    count: int = 10,
    on: bool = False,
    kept: Path | None = None,
    bad_lines: BadLines = "fail",
    out: int = 1,
    poll_s: float = 10.0,
    spool: Path | None = None,
    **options: Any,
) -> None:
    """Writes the last `count` rows, by the time of their commits; with `on` also all that come later, for ever.

    With `kept`, where that file holds a cursor, what came behind it instead of the last ones.
    """
    with _ends_with_its_reader():
        cursor = _cursor_in(kept) if kept is not None else None
        if cursor is None:
            found = shards(repo, **options)
            last = sorted(found, key=lambda shard: shard.time.timestamp() if shard.time else 0.0)
            if not on and spool is None:
                must_hold(repo, last, options)
            for line in _last_lines(repo, last, count, bad_lines, options):
                _write_all(out, line)
            cursor = found.commit
        if on:
            clock = _Saving(kept)
            with follow(repo, cursor, poll_s=poll_s, spool=spool or False, clock=clock, **options) as reader:
                clock.reader = reader
                _write(reader, out, kept, bad_lines, at_once=True)
        elif kept is not None and cursor is not None:
            read(repo, kept=kept, bad_lines=bad_lines, out=out, spool=spool or False, **{"since": cursor, **options})


def _last_lines(
    repo: str, last: list[Shard], count: int, bad_lines: BadLines, options: dict[str, Any]
) -> Iterator[bytes]:
    parts: list[list[bytes]] = []
    left = count
    while left > 0 and last:
        with rows(repo, paths=[last.pop().path], **options) as reader:
            part = list(deque(_lines(reader, bad_lines), maxlen=left))
        parts.append(part)
        left -= len(part)
    for part in reversed(parts):
        yield from part


def _lines(reader: Rows, bad_lines: BadLines) -> Iterator[bytes]:
    while True:
        try:
            for _ in reader:
                yield reader.line if reader.line.endswith(b"\n") else reader.line + b"\n"
            return
        except UnreadableRow as error:
            if bad_lines == "fail":
                raise
            _log.warning("%s It was passed over.", error)


def _write(reader: Rows, out: int, kept: Path | None, bad_lines: BadLines, *, at_once: bool) -> bool:
    """Whether there was anything."""
    is_any = False
    waiting: list[bytes] = []
    size = 0
    saved_at = time.monotonic()
    try:
        for line in _lines(reader, bad_lines):
            is_any = True
            waiting.append(line)
            size += len(line)
            if at_once or size >= _WRITE:
                _write_all(out, b"".join(waiting))
                waiting, size = [], 0
                if kept is not None and time.monotonic() > saved_at + _SAVE_S:
                    _save(kept, reader.cursor)
                    saved_at = time.monotonic()
    finally:
        _write_all(out, b"".join(waiting))
        if kept is not None:
            _save(kept, reader.cursor)
    return is_any


def _write_all(out: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(out, rest) :]


class _Saving(SystemClock):
    """A clock that keeps the cursor before it sleeps: a follower that waits has nothing unsaved."""

    def __init__(self, kept: Path | None) -> None:
        self._kept = kept
        self._said = ""
        self.reader: Rows | None = None

    async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
        if self._kept is not None and self.reader is not None and self.reader.cursor != self._said:
            self._said = self.reader.cursor
            _save(self._kept, self._said)
        await super().sleep(seconds, until)


def _cursor_in(kept: Path) -> str | None:
    try:
        return kept.read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the cursor's file {kept} can't be read: {error}.") from error


def _save(kept: Path, cursor: str) -> None:
    """Replaces the file as a whole: it holds the old cursor or the new one."""
    new = kept.with_name(f"{kept.name}.new")
    new.write_text(cursor + "\n")
    os.replace(new, kept)


@contextmanager
def _ends_with_its_reader() -> Iterator[None]:
    """Whoever reads what is written may have enough, as `head` has: that ends it silently, as it ends `cat`."""
    before = None
    with contextlib.suppress(ValueError):  # not the main thread
        before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGPIPE, before)
