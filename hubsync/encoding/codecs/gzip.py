"""JSON Lines, compressed with gzip."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO

from hubsync.encoding.codecs.base import Codec, decompressed, read_pieces
from hubsync.schema.types import StructOf

_LEVEL = 4  # a higher one saves a few per cent and takes twice the time: docs/how-to/choose-a-format.md


class GzipCodec(Codec):
    """Gzip, from the standard library."""

    def compress(self, source: Path, target: IO[bytes], rows: int, columns: StructOf) -> None:
        """Compress the lines without a time or a name: the same lines give the same bytes."""
        with gzip.GzipFile("", "wb", _LEVEL, target, mtime=0) as file:
            for piece in read_pieces(source):
                file.write(piece)

    def open_lines(self, stream: IO[bytes], close: bool) -> IO[bytes]:
        """Return a file that decompresses as it is read."""
        return decompressed(gzip.GzipFile(fileobj=stream, mode="rb"), stream, close)
