"""The Xet content-addressed store: xorbs on disk, the files that shards put together from them, and reading both.

A file is registered only when every chunk it names is stored and their content has the sha256 that the shard declares;
only then can a commit refer to it. Files are never materialized: `read` takes their bytes from the xorbs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

from hubsync.localhub.storage.blobs import BlobStore, Upload
from hubsync.localhub.storage.store import Store
from hubsync.localhub.xet import formats
from hubsync.localhub.xet.formats import Chunk, ShardFile, Term, XetFormatError

_PIECE_BYTES = 1 << 20
_CACHED_INDEXES = 256


class UnknownXorbError(ValueError):
    """A shard refers to a xorb that was never uploaded."""


class ContentStore:
    """Xorbs and files, by their Xet hashes."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._indexes: dict[str, list[Chunk]] = {}  # of xorbs, which never change

    def add_xorb(self, name: str, upload: Upload) -> bool:
        """Store an uploaded xorb; return False if it was stored before.

        Raises:
            XetFormatError: The upload is not a xorb.
        """
        upload.close()
        with upload.path.open("rb") as file:
            chunks = formats.read_xorb(file, upload.size)
        inserted = self._blobs.add(upload, "xorb", name)
        row = (name, upload.size, formats.pack_index(chunks))
        self._store.write("INSERT OR IGNORE INTO xorb VALUES (?, ?, ?)", *row)
        return inserted

    def check(self, file: ShardFile) -> None:
        """Check that every chunk is stored, the lengths are true, and the content has the declared sha256.

        Raises:
            UnknownXorbError: A xorb was never uploaded.
            XetFormatError: Something else about the file is wrong.
        """
        for term in file.terms:
            index = self._index(term.xorb)
            if not 0 <= term.start < term.end <= len(index):
                raise XetFormatError(f"xorb {term.xorb} has no chunks {term.start} to {term.end}")
            if sum(chunk.unpacked for chunk in index[term.start : term.end]) != term.unpacked:
                raise XetFormatError(f"a segment of xorb {term.xorb} does not have {term.unpacked} bytes")
        if file.sha256 is None:
            return
        digest = hashlib.sha256()
        for term in file.terms:
            for piece in self._read_term(term):
                digest.update(piece)
        if digest.hexdigest() != file.sha256:
            raise XetFormatError(f"the content of {file.hash} has sha256 {digest.hexdigest()}, not {file.sha256}")

    def add_file(self, file: ShardFile) -> None:
        """Register a file that was checked; with a sha256, also as a large object."""
        terms = json.dumps([list(term) for term in file.terms])
        self._store.write("INSERT OR IGNORE INTO xetfile VALUES (?, ?, ?)", file.hash, file.size, terms)
        if file.sha256 is not None:
            self._store.add_large(file.sha256, file.size, xet_hash=file.hash)

    def file(self, file_hash: str) -> ShardFile | None:
        """Return a registered file, without its sha256, or None."""
        row = self._store.row("SELECT terms FROM xetfile WHERE hash = ?", file_hash)
        return None if row is None else ShardFile(file_hash, None, [Term(*term) for term in json.loads(row[0])])

    def read(self, file_hash: str, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes `start` to `end` (exclusive) of a registered file, in pieces of about 1 MiB."""
        file = self.file(file_hash)
        assert file is not None, f"file {file_hash} is not registered"
        skip, kept = self.cut(file.terms, start, end)
        left = end - start
        for term in kept:
            for piece in self._read_term(term):
                part = piece[skip : skip + left]
                skip = max(0, skip - len(piece))
                left -= len(part)
                if part:
                    yield part

    def cut(self, terms: list[Term], start: int, end: int) -> tuple[int, list[Term]]:
        """Cut terms down to the chunks that hold the bytes `start` to `end` (exclusive).

        Returns:
            The offset of `start` in the first of the remaining terms, and these terms.
        """
        kept: list[Term] = []
        offset = position = 0
        for term in terms:
            index = self._index(term.xorb)
            chosen: list[int] = []
            for number in range(term.start, term.end):
                size = index[number].unpacked
                if position < end and position + size > start:
                    if not kept and not chosen:
                        offset = start - position
                    chosen.append(number)
                position += size
            if chosen:
                unpacked = sum(index[number].unpacked for number in chosen)
                kept.append(Term(term.xorb, chosen[0], chosen[-1] + 1, unpacked))
        return offset, kept

    def extent(self, term: Term) -> tuple[int, int]:
        """Return the first byte, and the one after the last, of a term's chunks in its xorb."""
        index = self._index(term.xorb)
        return (index[term.start - 1].end if term.start else 0), index[term.end - 1].end

    def _index(self, xorb: str) -> list[Chunk]:
        index = self._indexes.get(xorb)
        if index is None:
            row = self._store.row("SELECT chunks FROM xorb WHERE hash = ?", xorb)
            if row is None:
                raise UnknownXorbError(f"Xorb {xorb} was never uploaded")
            if len(self._indexes) >= _CACHED_INDEXES:
                self._indexes.clear()
            index = self._indexes[xorb] = formats.unpack_index(row[0])
        return index

    def _read_term(self, term: Term) -> Iterator[bytes]:
        index = self._index(term.xorb)
        position = term.start
        begin, _ = self.extent(term)
        with self._blobs.open("xorb", term.xorb) as file:
            file.seek(begin)
            while position < term.end:
                stop = position + 1
                while stop < term.end and index[stop].end - begin <= _PIECE_BYTES:
                    stop += 1
                end = index[stop - 1].end
                yield b"".join(formats.unpack_chunks(file.read(end - begin)))
                position, begin = stop, end
