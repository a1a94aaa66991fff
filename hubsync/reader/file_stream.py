"""The files that a reader has to read next, so that it sees each row once, however the files change.

A look at the branch's head finds new files by path and oid. Rows are compared only if a file that was read is gone or
changed, or if a new file was not made by a writer (see `rewrites`).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import IO, NamedTuple

import anyio
import anyio.to_thread

from hubsync.destinations.hub.dataset import HubFile
from hubsync.errors import TransientError, one_line
from hubsync.reader.cursor import Cursor, ReadRange, short_oid
from hubsync.reader.pending_segments import PendingSegment, PendingSegments
from hubsync.reader.rewrites import RewriteDetector
from hubsync.reader.selection import SUFFIXES, Selection, path_order, select_files
from hubsync.reader.snapshot import CommitGone, Snapshot, SnapshotReader

_log = logging.getLogger("hubsync")

_MAX_SQUASHES = 5  # in a row, each while the new history is read
_PAGE_S = 1.5  # pause for each page of files: a fifth of the Hub's 1,000 requests in 5 minutes
_PAGE_FILES = 1000
_FIRST_FILES = 4  # that are fetched at once; then twice as many each time,
_MOST_FILES = 32  # up to this many,
_AHEAD_BYTES = 64 << 20  # or of this size together


class OpenFile(NamedTuple):
    """A file to read.

    Attributes:
        path: its path in the dataset, or `segment/…`.
        lines: its content as JSON Lines, from the first row.
        read: what was read of it before.
        is_final: the file has no further rows after these.
        escaped: columns whose strings are written for a JSON column; see `hubsync.schema.json_text`.
    """

    path: str
    lines: IO[bytes]
    read: ReadRange
    is_final: bool
    escaped: frozenset[str] = frozenset()


class FileStream:
    """Finds the files of one dataset that `cursor` has not read."""

    def __init__(
        self, reader: SnapshotReader, cursor: Cursor, selection: Selection, segments: PendingSegments | None
    ) -> None:
        """Create a stream that begins with a pass over everything, first over the uncommitted `segments` of a spool."""
        self.cursor = cursor
        self._reader = reader
        self._selection = selection
        self._segments = segments
        self._queue: deque[HubFile | PendingSegment] = deque()
        self._ahead = _FIRST_FILES
        self._commit: str | None = None  # that of the queued files
        self._listed = 0  # files in the last listing
        self._escaped: dict[HubFile, frozenset[str]] = {}
        self._warned: set[str] = set()
        self._looks: list[Callable[[], Awaitable[None]]] = []
        self.begin_pass()

    def begin_pass(self) -> None:
        """Look for new rows again, first in the spool and then on the Hub."""
        self._looks = [self._look_at_hub] if self._segments is None else [self._look_at_hub, self._look_at_spool]

    async def skip_commit(self, commit: str) -> None:
        """Count everything in a commit as read.

        Raises:
            RepoMissingError: the commit does not exist.
        """
        snapshot = await self._reader.snapshot(commit)
        files = await self._select(snapshot)
        self.cursor.skip(ReadRange(file.path, short_oid(file.oid), rows=-1, is_complete=True) for file in files)
        self.cursor.commit = commit

    async def open_next(self) -> OpenFile | None:
        """Return the next file; None at the end of the pass."""
        while True:
            while self._queue:
                item = self._queue[0]
                try:
                    opened = self._open_segment(item) if isinstance(item, PendingSegment) else await self._open(item)
                except CommitGone:
                    self.close()
                    await self._look_at_hub()
                    continue
                self._queue.popleft()
                if opened is not None:
                    return opened
            if not self._looks:
                return None
            await self._looks.pop()()

    @property
    def min_pause_s(self) -> float:
        """Return the least pause before the next pass: a listing costs a request for every 1,000 files."""
        return self._listed / _PAGE_FILES * _PAGE_S

    def close(self) -> None:
        """Let go of what was fetched."""
        self._queue.clear()
        self._reader.drop()
        self._commit = None

    # The spool.

    async def _look_at_spool(self) -> None:
        assert self._segments is not None
        self._queue.extend(await anyio.to_thread.run_sync(self._segments.unread, self.cursor, self._selection))

    def _open_segment(self, segment: PendingSegment) -> OpenFile | None:
        assert self._segments is not None
        lines = self._segments.open(segment)
        if lines is None:
            return None  # committed: the next look at the Hub finds it
        read = self.cursor.range_of(segment.path)
        return OpenFile(segment.path, lines, read, is_final=False, escaped=segment.escaped)

    # The Hub.

    async def _look_at_hub(self) -> None:
        for _ in range(_MAX_SQUASHES):
            try:
                return await self._queue_new_files()
            except CommitGone:
                continue
        raise TransientError(f"The history of {self._reader.repo} was squashed again and again while it was read.")

    async def _queue_new_files(self) -> None:
        commit = await self._reader.head()
        if commit is None or commit == self._commit:
            return
        snapshot = await self._reader.snapshot(commit)
        self._listed = len(snapshot.files)
        cursor = self.cursor
        standing: list[ReadRange] = []
        gone: list[ReadRange] = []
        for one in cursor.ranges.values():
            file = snapshot.files.get(one.path)
            is_standing = one.is_segment or (file is not None and one.matches(file.oid))
            (standing if is_standing else gone).append(one)
        complete = {one.path for one in standing if one.is_complete}
        fresh = [file for file in await self._select(snapshot) if file.path not in complete]
        fresh.sort(key=lambda file: path_order(file.path))
        gone = [one for one in gone if one.rows and not one.is_duplicated]
        known = await RewriteDetector(self._reader, cursor, standing, gone).recognize(fresh, snapshot)
        # No await from here on: a cursor that is saved meanwhile is the old one or the new one.
        for one in known.found:
            one.is_complete = True  # a segment that is on the Hub now
        for one in known.duplicated:
            one.is_duplicated = True
        cursor.replace(standing, known.lost, [*known.found, *known.duplicated])
        cursor.expect_again(known.fingerprints)
        cursor.commit = self._commit = commit
        self._queue.extend(fresh)

    async def _select(self, snapshot: Snapshot) -> list[HubFile]:
        """Return the files with selected rows, and warn once about each that cannot be read."""
        found = []
        card = await self._reader.card(snapshot)
        for file, config, _ in select_files(snapshot.files.values(), card.entries, self._selection):
            if file.path.endswith(SUFFIXES):
                found.append(file)
                if (columns := card.json_columns.get(config)) and not file.path.endswith(".parquet"):
                    self._escaped[file] = columns
            elif file.path not in self._warned:
                self._warned.add(file.path)
                _log.warning("Not reading %s: its format is none of %s.", one_line(file.path), ", ".join(SUFFIXES))
        return found

    async def _open(self, file: HubFile) -> OpenFile:
        if not self._reader.holds(file):
            await self._reader.fetch(self._next_few(), self._commit or "")
            self._ahead = min(2 * self._ahead, _MOST_FILES)
        read = self.cursor.range_of(file.path, short_oid(file.oid))
        escaped = self._escaped.get(file, frozenset())
        return OpenFile(file.path, self._reader.take(file), read, is_final=True, escaped=escaped)

    def _next_few(self) -> Sequence[HubFile]:
        few: list[HubFile] = []
        size = 0
        for item in self._queue:
            if isinstance(item, HubFile):
                few.append(item)
                size += item.size
            if len(few) == self._ahead or size > _AHEAD_BYTES:
                break
        return few
