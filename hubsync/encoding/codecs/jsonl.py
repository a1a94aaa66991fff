"""JSON Lines, as the spool writes them: a segment's bytes are the shard's bytes."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from hubsync.encoding.codecs.base import Codec, read_pieces
from hubsync.schema.types import StructOf


class JsonlCodec(Codec):
    """No compression."""

    def compress(self, source: Path, target: IO[bytes], rows: int, columns: StructOf) -> None:
        """Copy the lines."""
        target.writelines(read_pieces(source))

    def open_lines(self, stream: IO[bytes], close: bool) -> IO[bytes]:
        """Return the stream itself."""
        return stream
