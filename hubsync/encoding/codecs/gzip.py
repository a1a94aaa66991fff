"""JSON Lines, compressed with gzip."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO

from hubsync.encoding.codecs.base import decompressed, read_pieces
from hubsync.schema.types import StructOf

_LEVEL = 4  # a higher one saves a few per cent and takes twice the time: docs/how-to/choose-a-format.md


class GzipCodec:
    """Gzip, from the standard library."""

    def check_installed(self) -> None:
        """Needs nothing."""

    def compress(self, source: Path, target: IO[bytes], rows: int, columns: StructOf) -> None:
        """Compress the lines; the same lines give the same bytes, so neither a time nor a name is stored."""
        with gzip.GzipFile("", "wb", _LEVEL, target, mtime=0) as file:
            for piece in read_pieces(source):
                file.write(piece)

    def open_lines(self, stream: IO[bytes], close: bool) -> IO[bytes]:
        """Return the decompressed stream."""
        return decompressed(gzip.GzipFile(fileobj=stream, mode="rb"), stream, close)
