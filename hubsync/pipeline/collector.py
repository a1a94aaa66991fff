"""The rows of a leaf, collected in a local file."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hubsync.encoding.rows import encode
from hubsync.pipeline.channels import Chunk, Position, ReplayFilter


class Collector:
    """Append a leaf's rows to a JSON Lines file, and store next to it how far in the stream they reach.

    Attributes:
        file: The rows.
        position: The stored position in the leaf's stream.
    """

    def __init__(self, directory: Path, name: str) -> None:
        """Continue the files of an earlier run; a row whose position was not stored is cut off."""
        self.file = directory / f"{name}.jsonl"
        self._position_file = directory / f"{name}.position"
        size, offset = 0, None
        with suppress(OSError, ValueError):
            size, offset = map(int, self._position_file.read_text().split())
        self.file.touch(mode=0o600)
        os.truncate(self.file, size)
        self.position = Position.from_offset(offset)
        self._filter = ReplayFilter(-1, self.position)
        self._stream = self.file.open("ab")

    def begin(self, start: int) -> None:
        """Expect a stream that restarts after the mark `start`."""
        self._filter = ReplayFilter(start, self.position)

    def add(self, chunk: Chunk) -> None:
        """Append the new rows of a chunk, then replace the position's file atomically."""
        rows = self._filter.new_rows(chunk).rows
        if self._filter.position <= self.position:
            return
        if rows:
            self._stream.write(encode(rows).lines)
            self._stream.flush()
        self.position = position = self._filter.position
        new = self._position_file.with_suffix(".new")
        new.write_text(f"{self._stream.tell()} {position.offset()}")
        os.replace(new, self._position_file)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
