"""Write the rows of a dataset to standard output as JSON Lines: the logic behind `hubsync read` and `hubsync tail`.

With a cursor file, the cursor is saved after the rows are written, so a restart misses nothing. Rows written in the
last second before a SIGKILL may be written again, since nobody can know how many of them were read.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import anyio

from hubsync._runtime.clock import SystemClock
from hubsync.errors import ConfigError, RepoMissingError, UnreadableRow
from hubsync.reader import Rows, Shard, follow, rows, shards

_log = logging.getLogger("hubsync")

_SAVE_INTERVAL_S = 1.0  # between two saves of the cursor while rows come
_WRITE_BYTES = 1 << 18  # per write, unless rows must appear one by one
_STDOUT = 1

BadLines = Literal["fail", "skip"]


def write_rows(repo: str, *, cursor_file: Path | None = None, bad_lines: BadLines = "fail", **options: Any) -> None:
    """Write the rows that a dataset holds now.

    Args:
        repo: The dataset.
        cursor_file: Write only rows after the cursor in this file, if it exists, and save the new cursor there.
        bad_lines: Whether a line that is not a row is an error, or is skipped and logged.
        options: As for `hubsync.reader.rows`.

    Raises:
        ConfigError: The cursor file cannot be read, or there is no such config or split.
        UnreadableRow: A line is not a row, and `bad_lines` is "fail".
    """
    with _exit_silently_on_broken_pipe():
        cursor = _load_cursor(cursor_file) if cursor_file is not None else None
        if cursor is not None:
            options["since"] = cursor
        with rows(repo, **options) as reader:
            found = _write(reader, cursor_file, bad_lines, unbuffered=False)
        # After a cursor there may be nothing new, and a spool may hold the first rows of the config.
        is_config_named = options.get("config") or options.get("split")
        if not found and cursor is None and not options.get("spool") and is_config_named:
            asked = {name: value for name, value in options.items() if name not in ("since", "spool")}
            require_shards(repo, list(shards(repo, **asked)), asked)


def require_shards(repo: str, found: Sequence[Shard], asked: Mapping[str, Any]) -> None:
    """Fail if a config or split was named, but has no shards: it may be misspelled.

    Raises:
        ConfigError: It has no shards.
    """
    place = " and ".join(f"{name} {asked[name]!r}" for name in ("config", "split") if asked.get(name))
    if place and not found:
        raise ConfigError(f"{repo} has no shard in {place}.")


def write_last_rows(
    repo: str,
    *,
    count: int = 10,
    follow: bool = False,
    cursor_file: Path | None = None,
    bad_lines: BadLines = "fail",
    poll_s: float = 10.0,
    must_exist: bool = False,
    spool: Path | None = None,
    **options: Any,
) -> None:
    """Write the last rows of a dataset, by the time of their commits, and perhaps those that come later.

    Args:
        repo: The dataset.
        count: How many rows.
        follow: Whether to continue with new rows, until a signal.
        cursor_file: If this file exists, write the rows after its cursor instead of the last ones. Save the new cursor
            there.
        bad_lines: Whether a line that is not a row is an error, or is skipped and logged.
        poll_s: Seconds between two looks at the dataset.
        must_exist: With `follow`, whether a dataset that does not exist is an error, or is waited for.
        spool: Include the rows of this spool that are not committed yet.
        options: As for `hubsync.reader.shards`.

    Raises:
        ConfigError: The cursor file cannot be read, or there is no such config or split.
        UnreadableRow: A line is not a row, and `bad_lines` is "fail".
    """
    with _exit_silently_on_broken_pipe():
        cursor = _load_cursor(cursor_file) if cursor_file is not None else None
        if cursor is None:
            found = shards(repo, **options)
            try:
                newest_last = sorted(found, key=lambda shard: shard.time.timestamp() if shard.time else 0.0)
            except RepoMissingError:
                if not follow or must_exist:
                    raise
                newest_last = []
            if not follow and spool is None:
                require_shards(repo, newest_last, options)
            for line in _last_lines(repo, newest_last, count, bad_lines, options):
                _write_all(line)
            cursor = found.commit
        if follow:
            _follow(
                repo, cursor, cursor_file, bad_lines, spool, {**options, "poll_s": poll_s, "must_exist": must_exist}
            )
        elif cursor_file is not None and cursor is not None:
            given = {"since": cursor, **options}
            write_rows(repo, cursor_file=cursor_file, bad_lines=bad_lines, spool=spool or False, **given)


def _follow(
    repo: str,
    cursor: str | None,
    cursor_file: Path | None,
    bad_lines: BadLines,
    spool: Path | None,
    options: dict[str, Any],
) -> None:
    clock = _SavingClock(cursor_file)
    with follow(repo, cursor, spool=spool or False, clock=clock, **options) as reader:
        clock.reader = reader
        _write(reader, cursor_file, bad_lines, unbuffered=True)


def _last_lines(
    repo: str, newest_last: list[Shard], count: int, bad_lines: BadLines, options: dict[str, Any]
) -> Iterator[bytes]:
    parts: list[list[bytes]] = []
    missing = count
    while missing > 0 and newest_last:
        with rows(repo, paths=[newest_last.pop().path], **options) as reader:
            part = list(deque(_lines(reader, bad_lines), maxlen=missing))
        parts.append(part)
        missing -= len(part)
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
            _log.warning("%s Skipped.", error)


def _write(reader: Rows, cursor_file: Path | None, bad_lines: BadLines, *, unbuffered: bool) -> bool:
    """Write all rows of a reader; return whether it had any."""
    found = False
    buffer: list[bytes] = []
    size = 0
    saved_at = time.monotonic()
    try:
        for line in _lines(reader, bad_lines):
            found = True
            buffer.append(line)
            size += len(line)
            if unbuffered or size >= _WRITE_BYTES:
                _write_all(b"".join(buffer))
                buffer, size = [], 0
                if cursor_file is not None and time.monotonic() > saved_at + _SAVE_INTERVAL_S:
                    _save_cursor(cursor_file, reader.cursor)
                    saved_at = time.monotonic()
    finally:
        _write_all(b"".join(buffer))
        if cursor_file is not None:
            _save_cursor(cursor_file, reader.cursor)
    return found


def _write_all(data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(_STDOUT, rest) :]


class _SavingClock(SystemClock):
    """A clock that saves the cursor before it sleeps, so a follower that waits has nothing unsaved."""

    def __init__(self, cursor_file: Path | None) -> None:
        self._cursor_file = cursor_file
        self._saved = ""
        self.reader: Rows | None = None

    async def sleep(self, seconds: float, until: anyio.Event | None = None) -> None:
        """Save the cursor if it has changed, and sleep."""
        if self._cursor_file is not None and self.reader is not None and self.reader.cursor != self._saved:
            self._saved = self.reader.cursor
            _save_cursor(self._cursor_file, self._saved)
        await super().sleep(seconds, until)


def _load_cursor(file: Path) -> str | None:
    try:
        return file.read_text().strip() or None
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the cursor file {file}: {error}.") from error


def _save_cursor(file: Path, cursor: str) -> None:
    """Replace the file atomically."""
    new = file.with_name(f"{file.name}.new")
    new.write_text(cursor + "\n")
    os.replace(new, file)


@contextmanager
def _exit_silently_on_broken_pipe() -> Iterator[None]:
    """Let SIGPIPE end the process, as it ends `cat`, if the reader (such as `head`) has read enough."""
    before = None
    with suppress(ValueError):  # not in the main thread
        before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGPIPE, before)
