"""JSON Lines, as the spool writes them: a segment's bytes are the shard's bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO

from hubsync.encoding.codecs.base import Codec, read_pieces
from hubsync.schema.types import StructOf


class JsonlCodec(Codec):
    """No compression."""

    def compress(self, source: Path, target: IO[bytes], rows: int, columns: StructOf) -> None:
        """Copy the lines."""
        target.writelines(read_pieces(source))

    def merge(self, sources: Iterable[Path], target: IO[bytes]) -> None:
        """Copy the lines; the last one of a file may lack its newline."""
        for source in sources:
            piece = b"\n"
            for piece in read_pieces(source):
                target.write(piece)
            if not piece.endswith(b"\n"):
                target.write(b"\n")

    def open_lines(self, stream: IO[bytes], close: bool) -> IO[bytes]:
        """Return the stream itself."""
        return stream
