"""Frames: batches of rows in a file that is only appended to, each with its length, its rows and a checksum.

JSON Lines need none of that: a line ends at its newline, and a block that a power cut zeroed is no JSON. Arrow data
has neither mark, so a segment that holds any consists of frames.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import IO, Literal, NamedTuple

SUFFIX = ".frames"
_MAGIC = b"\xffhsf"  # no line of JSON begins like this
_HEADER = struct.Struct("<4sc3xIQI")  # magic, kind, rows, bytes, checksum of the rows and the data
_PIECE = 1 << 20

Kind = Literal[b"A", b"J"]
"""What a frame holds: an Arrow IPC stream, or JSON Lines."""


class DamagedFrame(ValueError):
    """A frame is incomplete, or not what was written."""


class Frame(NamedTuple):
    """One batch."""

    kind: Kind
    rows: int
    data: bytes


def header(kind: Kind, rows: int, data: bytes | memoryview) -> bytes:
    """Return the bytes that precede a frame's data."""
    return _HEADER.pack(_MAGIC, kind, rows, len(data), zlib.crc32(data, rows))


def is_frame(data: bytes) -> bool:
    """Return whether encoded rows are a frame; otherwise they are JSON Lines."""
    return data.startswith(_MAGIC)


def read_frames(stream: IO[bytes]) -> Iterator[Frame]:
    """Yield the frames of a file.

    Raises:
        DamagedFrame: A frame is incomplete or damaged.
    """
    while head := stream.read(_HEADER.size):
        kind, rows, size, checksum = _unpack(head)
        data = stream.read(size)
        if len(data) < size or zlib.crc32(data, rows) != checksum:
            raise DamagedFrame("a frame is incomplete, or its checksum is wrong")
        yield Frame(kind, rows, data)


def whole_frames(stream: IO[bytes], limit: int) -> tuple[int, int]:
    """Return how many rows the whole frames hold with which the first `limit` bytes of a file begin, and their size."""
    rows = kept = 0
    while head := stream.read(_HEADER.size):
        try:
            _, more, size, checksum = _unpack(head)
        except DamagedFrame:
            break
        end = kept + _HEADER.size + size
        if end > limit or _checksum(stream, size, more) != checksum:
            break
        rows, kept = rows + more, end
    return rows, kept


def _unpack(head: bytes) -> tuple[Kind, int, int, int]:
    if len(head) < _HEADER.size:
        raise DamagedFrame("a frame's header is incomplete")
    magic, kind, rows, size, checksum = _HEADER.unpack(head)
    if magic != _MAGIC or kind not in (b"A", b"J"):
        raise DamagedFrame("a frame's header is damaged")
    return kind, rows, size, checksum


def _checksum(stream: IO[bytes], size: int, rows: int) -> int | None:
    """Return the checksum of a frame with `rows` and the next `size` bytes; None if there are fewer."""
    found = rows
    while size:
        piece = stream.read(min(size, _PIECE))
        if not piece:
            return None
        found = zlib.crc32(piece, found)
        size -= len(piece)
    return found
