"""Rows that a spool has not committed yet."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from hubsync._runtime.clock import Clock
from hubsync._runtime.files import is_raw
from hubsync.encoding.codecs import open_lines
from hubsync.model.layout import format_of
from hubsync.model.target import Target
from hubsync.reader.cursor import SEGMENT, Cursor, ReadRange
from hubsync.reader.selection import Selection
from hubsync.schema.types import EMPTY, json_columns
from hubsync.spool.opening import open_existing
from hubsync.spool.segments import Segment
from hubsync.spool.spool import Spool


class PendingSegment(NamedTuple):
    """A segment with uncommitted rows.

    Attributes:
        path: what a cursor calls it; unlike its id it is never used again.
        file, bytes: the rows are the first `bytes` of `file`.
        escaped: columns whose strings are written for a JSON column.
    """

    path: str
    id: int
    file: Path
    bytes: int
    escaped: frozenset[str] = frozenset()


class PendingSegments:
    """The uncommitted segments of one spool. Methods block on the disk."""

    def __init__(self, target: Target, directory: Path, clock: Clock) -> None:
        self._target = target
        self._directory = directory
        self._clock = clock

    def unread(self, cursor: Cursor, selection: Selection) -> list[PendingSegment]:
        """Return the segments with rows that the cursor has not read, and make the cursor forget committed ones.

        Call it before looking at the Hub: what is committed in between is then recognized by its rows.
        """
        with self._open() as spool:
            pending = {f"{SEGMENT}{row.id}@{row.opened_at}": row for row in spool.segments.waiting() if row.rows > 0}
            ranges = cursor.ranges
            done = [path for path, one in ranges.items() if one.is_segment and one.is_complete and path not in pending]
            if done:
                cursor.forget(done)
            return [
                PendingSegment(path, row.id, spool.file(row.file), row.bytes, _escaped(spool, row))
                for path, row in pending.items()
                if selection.includes(row.path, row.config, row.split)
                # It may have landed without the catalogue knowing yet.
                and row.path not in ranges
                and _has_more(ranges.get(path), row.rows)
            ]

    def open(self, segment: PendingSegment) -> IO[bytes] | None:
        """Return a segment's rows as JSON Lines; None if it is committed by now."""
        try:
            return segment_lines(segment.file, segment.bytes)
        except FileNotFoundError:  # compressed, which happens once at most, or committed
            file = self._file_of(segment.id)
        if file is None or file == segment.file:
            return None
        try:
            return segment_lines(file, segment.bytes)
        except FileNotFoundError:
            return None

    def _file_of(self, segment: int) -> Path | None:
        with self._open() as spool:
            name = spool.segments.pending_file(segment)
            return None if name is None else spool.file(name)

    @contextmanager
    def _open(self) -> Iterator[Spool]:
        spool = open_existing(self._target, self._directory, self._clock)
        try:
            yield spool
        finally:
            spool.close()


def _escaped(spool: Spool, row: Segment) -> frozenset[str]:
    if format_of(row.path or row.template) == "parquet":
        return frozenset()
    return json_columns(spool.schemas.known(row.config) or EMPTY)


def _has_more(read: ReadRange | None, rows: int) -> bool:
    return read is None or (not read.is_complete and read.rows < rows)


def segment_lines(file: Path, size: int) -> IO[bytes]:
    """Return the rows of a segment's file as JSON Lines; of one that is not compressed, the first `size` bytes."""
    if is_raw(file.name):
        with file.open("rb") as stream:
            return open_lines(io.BytesIO(stream.read(size)), file.name)
    return open_lines(file.open("rb"), file.name)
