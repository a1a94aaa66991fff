"""Xet's wire formats: xorbs (chunks packed into one object) and shards (the files made from chunks of xorbs).

The readers check every length and offset of a client's upload; they know nothing of HTTP or a database. The layouts
follow the public Xet protocol specification, as hf_xet 1.8 writes them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import lz4.frame

_CHUNK_HEADER_BYTES = 8
_FOOTER_IDENT = b"XETBLOB"
_SECTION_BYTES = 48
_BOOKEND = b"\xff" * 32
_SHARD_VERSION = 2
_WITH_VERIFICATION = 1 << 31
_WITH_METADATA = 1 << 30
_MAX_CHUNK_BYTES = 16 << 20


class XetFormatError(ValueError):
    """Bytes that are not the xorb or shard they claim to be."""


class Chunk(NamedTuple):
    """A chunk of a xorb: the offset at which its record ends, and how many bytes it holds unpacked."""

    end: int
    unpacked: int


class Term(NamedTuple):
    """A piece of a file: the chunks `start` to `end` (exclusive) of a xorb, `unpacked` bytes in all."""

    xorb: str
    start: int
    end: int
    unpacked: int


@dataclass(frozen=True)
class ShardFile:
    """A file that a shard describes; it has a `sha256` if the uploader wants to refer to it from a commit."""

    hash: str
    sha256: str | None
    terms: list[Term]

    @property
    def size(self) -> int:
        """The file's bytes."""
        return sum(term.unpacked for term in self.terms)


def hash_text(raw: bytes) -> str:
    """Return 32 bytes as Xet writes a hash: four little-endian words of 64 bits, each in hex."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", raw))


def read_xorb(file: BinaryIO, size: int) -> list[Chunk]:
    """Return the chunks of a serialized xorb of `size` bytes, from their headers; a footer is not needed."""
    chunks: list[Chunk] = []
    position = 0
    while position < size:
        header = file.read(_CHUNK_HEADER_BYTES)
        if header[: len(_FOOTER_IDENT)] == _FOOTER_IDENT:
            break
        packed, unpacked = _chunk_header(header)
        position += _CHUNK_HEADER_BYTES + packed
        if position > size:
            raise XetFormatError("the last chunk of the xorb is cut off")
        chunks.append(Chunk(position, unpacked))
        file.seek(packed, 1)
    if not chunks:
        raise XetFormatError("the xorb has no chunk")
    return chunks


def _chunk_header(header: bytes) -> tuple[int, int]:
    """Return the (packed bytes, unpacked bytes) of the chunk that follows."""
    if len(header) < _CHUNK_HEADER_BYTES or header[0] != 0 or header[4] > 2:
        raise XetFormatError("bad chunk header")
    packed, unpacked = int.from_bytes(header[1:4], "little"), int.from_bytes(header[5:8], "little")
    if not 0 < unpacked <= _MAX_CHUNK_BYTES or packed == 0:
        raise XetFormatError("bad chunk length")
    return packed, unpacked


def unpack_chunks(data: bytes) -> Iterator[bytes]:
    """Yield the contents of consecutive chunk records."""
    position = 0
    while position < len(data):
        header = data[position : position + _CHUNK_HEADER_BYTES]
        packed, unpacked = _chunk_header(header)
        position += _CHUNK_HEADER_BYTES
        content = _unpack(header[4], data[position : position + packed], unpacked)
        if len(content) != unpacked:
            raise XetFormatError("a chunk does not have the length that its header says")
        position += packed
        yield content


def _unpack(scheme: int, data: bytes, unpacked: int) -> bytes:
    if scheme == 0:
        return data
    try:
        plain: bytes = lz4.frame.decompress(data)
    except RuntimeError as error:
        raise XetFormatError(f"a chunk does not decompress: {error}") from None
    if scheme == 1:
        return plain
    # Byte-grouped: all first bytes of the 4-byte groups, then all second bytes, and so on.
    out = bytearray(unpacked)
    position = 0
    for lane in range(4):
        count = (unpacked + 3 - lane) // 4
        out[lane::4] = plain[position : position + count]
        position += count
    return bytes(out)


def read_shard(data: bytes) -> list[ShardFile]:
    """Return the files that a shard describes.

    Its xorb section is ignored: the Hub knows each xorb's chunks from the xorb.
    """
    if len(data) < _SECTION_BYTES:
        raise XetFormatError("the shard is shorter than its header")
    version = struct.unpack_from("<Q", data, 32)[0]
    if version != _SHARD_VERSION:
        raise XetFormatError(f"shard version {version} is unknown")
    position = _SECTION_BYTES
    files: list[ShardFile] = []
    while True:
        header = _section(data, position)
        position += _SECTION_BYTES
        if header[:32] == _BOOKEND:
            return files
        flags, count = struct.unpack_from("<II", header, 32)
        terms: list[Term] = []
        for _ in range(count):
            entry = _section(data, position)
            position += _SECTION_BYTES
            _, unpacked, start, end = struct.unpack_from("<IIII", entry, 32)
            terms.append(Term(hash_text(entry[:32]), start, end, unpacked))
        if flags & _WITH_VERIFICATION:
            position += count * _SECTION_BYTES
        sha256 = None
        if flags & _WITH_METADATA:
            sha256 = hash_text(_section(data, position)[:32])
            position += _SECTION_BYTES
        files.append(ShardFile(hash_text(header[:32]), sha256, terms))


def _section(data: bytes, position: int) -> bytes:
    section = data[position : position + _SECTION_BYTES]
    if len(section) < _SECTION_BYTES:
        raise XetFormatError("the shard is cut off")
    return section


def pack_index(chunks: list[Chunk]) -> bytes:
    """Return a xorb's chunk index as a compact blob."""
    return b"".join(struct.pack("<II", chunk.end, chunk.unpacked) for chunk in chunks)


def unpack_index(data: bytes) -> list[Chunk]:
    """Return the chunk index that `pack_index` wrote."""
    return [Chunk(*pair) for pair in struct.iter_unpack("<II", data)]
