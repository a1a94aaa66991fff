"""Read a dataset's rows, and follow it while it grows: `rows` and `follow`."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.paths import absolute
from hubsync.encoding.codecs import DamagedShard
from hubsync.errors import ConfigError, UnreadableRow
from hubsync.reader.cursor import Cursor, parse_line
from hubsync.reader.file_stream import FileStream, OpenFile
from hubsync.reader.iteration import HubIterator
from hubsync.reader.pending_segments import PendingSegments
from hubsync.reader.selection import Selection
from hubsync.reader.shard_listing import parse_time
from hubsync.reader.snapshot import SnapshotReader
from hubsync.schema.json_text import unescaped
from hubsync.spool.opening import existing_default_spool

Row = dict[str, Any]

_SHA = re.compile(r"[0-9a-f]{40}")


def rows(
    repo: str,
    *,
    since: str | datetime | None = None,
    config: str | None = None,
    split: str | None = None,
    paths: Collection[str] | None = None,
    spool: str | Path | bool = False,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
    clock: Clock | None = None,
) -> Rows:
    """Return the dataset's rows lazily, fetching a few shards at a time.

    Args:
        repo: The dataset, "namespace/name".
        since: Only rows after this: a `Rows.cursor`, a commit's sha, or a time (a datetime, or ISO 8601 text).
        config: Only rows of this config; None for all.
        split: Only rows of this split; None for all.
        paths: Only rows of these shards, as `shards` names them.
        spool: Also read uncommitted rows, from this machine's spool of the repo (True) or from a directory. They come
            first, and are not repeated when they are committed.
        revision: A branch, tag or commit.
        endpoint: The Hub's address; None for HF_ENDPOINT.
        token: None for HF_TOKEN or the token that `hf auth login` stored.
        clock: The source of time, for tests.

    Raises:
        HubError: While iterating: the Hub cannot be read. Transient errors are retried a few times first.
        UnreadableRow: While iterating: a line is not a row. Continue iterating to skip it.
        DatasetRewritten: While iterating: files were rewritten so that the reader cannot tell which rows are new.
    """
    selection = Selection(config, split, None if paths is None else frozenset(paths))
    return Rows(repo, selection, since, spool, revision, endpoint, token, clock or SystemClock(), poll_s=None)


def follow(
    repo: str,
    cursor: str | datetime | None = None,
    *,
    poll_s: float = 10.0,
    must_exist: bool = False,
    config: str | None = None,
    split: str | None = None,
    spool: str | Path | bool = False,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
    clock: Clock | None = None,
) -> Rows:
    """Return the dataset's rows, and then each new row as it arrives, forever.

    A follower may start before its producer: it waits until the dataset exists, and says so in the log.

    Args:
        repo: The dataset, "namespace/name".
        cursor: Like `since` of `rows`; None for the beginning.
        poll_s: Seconds between two polls. A poll costs one request, and one more per 1,000 files if there is something
            new, so a large dataset is polled less often.
        must_exist: Raise `RepoMissingError` if the dataset or branch does not exist, instead of waiting for it.
        config: Only rows of this config; None for all.
        split: Only rows of this split; None for all.
        spool: Like `spool` of `rows`.
        revision: A branch.
        endpoint: The Hub's address; None for HF_ENDPOINT.
        token: None for HF_TOKEN or the token that `hf auth login` stored.
        clock: The source of time, for tests.

    Raises:
        ConfigError: `poll_s` is not positive.
        RepoMissingError: While iterating: the dataset does not exist, and `must_exist` is True; or it was deleted.
        HubError: While iterating: the Hub cannot be read, and an operator must act. Transient errors are retried
            forever.
        UnreadableRow: While iterating: a line is not a row. Continue iterating to skip it.
        DatasetRewritten: While iterating: files were rewritten so that the reader cannot tell which rows are new.
    """
    if not poll_s > 0:
        raise ConfigError(f"poll_s must be a number of seconds above 0, not {poll_s!r}.")
    selection = Selection(config, split)
    return Rows(
        repo, selection, cursor, spool, revision, endpoint, token, clock or SystemClock(), poll_s=poll_s,
        must_exist=must_exist,
    )  # fmt: skip


class Rows(HubIterator[Row]):
    """Rows of a dataset, each once.

    Attributes:
        line: the JSON of the row that was returned last.
    """

    def __init__(
        self,
        repo: str,
        selection: Selection,
        since: str | datetime | None,
        spool: str | Path | bool,
        revision: str,
        endpoint: str | None,
        token: str | None,
        clock: Clock,
        *,
        poll_s: float | None,
        must_exist: bool = True,
    ) -> None:
        """Create the iterator; nothing is requested before the first row is. See `rows`; with `poll_s`, see `follow`.

        Raises:
            ConfigError: `since` is not a cursor of this repo, a commit sha or a time.
        """
        super().__init__(repo, revision, endpoint, token, clock)
        self.line = b""
        self._since = since.isoformat() if isinstance(since, datetime) else since
        # A commit or a time is looked up on the Hub, when the first row is requested.
        self._start = None if self._since is None else _commit_or_time(self._since)
        is_cursor = self._since is not None and self._start is None
        self._cursor = Cursor.decode(self._since or "", repo) if is_cursor else Cursor(repo)
        self._selection = selection
        if spool is True:
            self._spool = existing_default_spool(self._target)
        else:
            self._spool = absolute(spool, "spool") if spool else None
        self._poll_s = poll_s
        self._must_exist = must_exist or self._cursor.commit is not None  # else it was deleted
        self._stream: FileStream | None = None
        self._file: _FileRows | None = None

    @property
    def cursor(self) -> str:
        """Return the position after the row that was returned last, as text of about 50 bytes for each shard."""
        if self._stream is None and self._since is not None:
            return self._since
        return self._cursor.encode()

    def _take(self) -> Row | None:
        if self._file is not None:
            row = self._file.next_row()
            if row is not None:
                self.line = self._file.line
                return row
            self._file = None
        return None

    async def _fetch(self) -> bool:
        if self._stream is None:
            self._stream = await self._begin()
        while (opened := await self._stream.open_next()) is None:
            if self._poll_s is None:
                return False
            await self._clock.sleep(max(self._poll_s, self._stream.min_pause_s))
            self._stream.begin_pass()
        self._file = _FileRows(opened, self._cursor)
        return True

    async def _begin(self) -> FileStream:
        reader = SnapshotReader(
            self._open_hub(), self._clock, retry_forever=self._poll_s is not None, must_exist=self._must_exist
        )
        spool = None if self._spool is None else PendingSegments(self._target, self._spool, self._clock)
        stream = FileStream(reader, self._cursor, self._selection, spool)
        commit = await _commit_at(reader, self._start) if isinstance(self._start, datetime) else self._start
        if commit is not None:
            await stream.skip_commit(commit)
        return stream

    async def aclose(self) -> None:
        """Stop an iteration by `async for`; `cursor` stays valid. Closing twice is harmless."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._stream is not None:
            self._stream.close()
        await super().aclose()


class _FileRows:
    """The rows of one open file that were not read before; counts them in the cursor."""

    def __init__(self, file: OpenFile, cursor: Cursor) -> None:
        self.line = b""
        self._file = file
        self._cursor = cursor
        self._number = 0  # of the line
        self._skip = file.read.rows

    def next_row(self) -> Row | None:
        """Return the next row; None at the end, and the file is closed then."""
        while line := self._next_line():
            self._number += 1
            if not line.strip():
                continue
            if self._skip:
                self._skip -= 1
                continue
            parsed = parse_line(line)
            self._file.read.add(parsed.fingerprint)
            if self._cursor.skip_counts and self._cursor.was_read(parsed.fingerprint):
                continue
            if parsed.row is None:
                raise UnreadableRow(self._file.path, self._number, parsed.problem)
            row = unescaped(parsed.row, self._file.escaped)
            self.line = line if row is parsed.row else msgspec.json.encode(row) + b"\n"
            return row
        return None

    def _next_line(self) -> bytes:
        """Return the next line; empty at the end."""
        if self._file.lines.closed:
            return b""
        try:
            line = self._file.lines.readline()
        except DamagedShard as error:
            self._end()
            problem = f"the rest of the file is damaged: {error}"
            raise UnreadableRow(self._file.path, self._number + 1, problem) from None
        if not line:
            self._end()
        return line

    def _end(self) -> None:
        self._file.read.is_complete = self._file.read.is_complete or self._file.is_final
        self.close()

    def close(self) -> None:
        self._file.lines.close()


async def _commit_at(reader: SnapshotReader, time: datetime) -> str | None:
    """Return the newest commit that is not later than `time`; None if the history does not reach back that far."""
    head = await reader.head()
    if head is not None:
        async with aclosing(reader.history(head)) as history:
            async for commit in history:
                at = parse_time(commit.date)
                if at is not None and at <= time:
                    return commit.id
    return None


def _commit_or_time(since: str) -> str | datetime | None:
    """Return the commit sha or the time that `since` is; None if it is neither."""
    return since if _SHA.fullmatch(since) else parse_time(since)
