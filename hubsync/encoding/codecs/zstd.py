"""JSON Lines, compressed with Zstandard: by Python itself from 3.14 on, before that by the package `zstandard`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import IO, Any

from hubsync.encoding.codecs.base import Codec, decompressed, missing_package, read_pieces
from hubsync.schema.types import StructOf

LEVEL = 3  # a higher one saves a few per cent and takes twice the time: docs/how-to/choose-a-format.md


class ZstdCodec(Codec):
    """Zstandard, with the size and a checksum in the file."""

    def check_installed(self) -> None:
        """Import the package that Python needs before 3.14."""
        if sys.version_info < (3, 14):
            _zstandard()

    def compress(self, source: Path, target: IO[bytes], rows: int, columns: StructOf) -> None:
        """Compress the lines."""
        compressor = _compressor(source.stat().st_size)
        for piece in read_pieces(source):
            target.write(compressor.compress(piece))
        target.write(compressor.flush())

    def open_lines(self, stream: IO[bytes], close: bool) -> IO[bytes]:
        """Return a file that decompresses as it is read."""
        if sys.version_info >= (3, 14):  # pragma: no cover  (depends on the Python that runs the tests)
            from compression import zstd

            return decompressed(zstd.ZstdFile(stream), stream, close)
        zstandard, start = _zstandard(), stream.tell()
        size = zstandard.frame_content_size(stream.read(32))
        stream.seek(start)
        reader = zstandard.ZstdDecompressor().stream_reader(stream, read_across_frames=True, closefd=False)
        return decompressed(_CompleteReader(reader, size), stream, close)


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise missing_package("zstd", "jsonl.zst", "zstandard", error) from None
    return zstandard


def _compressor(size: int) -> Any:
    if sys.version_info >= (3, 14):  # pragma: no cover
        from compression import zstd

        options = {zstd.CompressionParameter.compression_level: LEVEL, zstd.CompressionParameter.checksum_flag: 1}
        compressor = zstd.ZstdCompressor(options=options)
        compressor.set_pledged_input_size(size)
        return compressor
    return _zstandard().ZstdCompressor(level=LEVEL, write_checksum=True).compressobj(size=size)


class _CompleteReader:
    """Refuse a file that ends early, which zstandard takes for a complete one. A negative `size` is unknown."""

    def __init__(self, reader: Any, size: int) -> None:
        self._reader = reader
        self._missing = size

    def readinto(self, buffer: Any) -> int:
        read = int(self._reader.readinto(buffer))
        self._missing -= read
        if not read and self._missing > 0:
            raise EOFError(f"{self._missing:,} bytes are missing at the end")
        return read
