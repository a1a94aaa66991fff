"""A reader's position in a dataset, identified by row fingerprints.

For each file, a cursor stores how many rows were read and the sum of their fingerprints. A fingerprint does not depend
on how a row is written as JSON, so rows that were read are recognized in a file that moved, grew or was compacted, also
after the history was squashed. This module does no I/O.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec

from hubsync.encoding.rows import decode_row
from hubsync.errors import ConfigError

SEGMENT = "segment/"  # the prefix of a `ReadRange.path` that is a segment in a spool, not a file in the dataset
MASK = (1 << 64) - 1  # sums of fingerprints have 64 bits
_VERSION = "hubsync-1:"
_OID_DIGITS = 16  # hex digits of an oid that a cursor keeps: it is only compared with the oid at the same path
_MAX_BYTES = 1 << 28  # of a decompressed cursor; a range takes about 60
_WHOLE_FLOAT = re.compile(rb"(?<=\d)\.0(?=[,}\]])")  # also matches inside strings, where it does no harm
_encoder = msgspec.json.Encoder(order="sorted")


class ParsedLine(NamedTuple):
    """A line of JSON: its row, or None and the problem with it; and a fingerprint in both cases."""

    fingerprint: int
    row: dict[str, Any] | None
    problem: str = ""


def parse_line(line: bytes) -> ParsedLine:
    """Return the row of a line and its fingerprint."""
    try:
        row = decode_row(line)
        return ParsedLine(fingerprint(row), row)
    except ValueError as error:
        return ParsedLine(_hash(line), None, str(error))
    except RecursionError:
        return ParsedLine(_hash(line), None, "nested too deeply")


def fingerprint(row: Any) -> int:
    """Return 64 bits that identify a row's content.

    The order of keys, whitespace and nulls do not count: `datasets` and Parquet write null for a missing value and for
    an empty object, and 1.0 for a 1 in a column of floats.
    """
    data = _encoder.encode(row)
    if b"null" in data or b"{}" in data:
        data = _encoder.encode(_without_nulls(row))
    return _hash(_WHOLE_FLOAT.sub(b"", data) if b".0" in data else data)


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest())


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        items = ((key, _without_nulls(item)) for key, item in value.items())
        return {key: item for key, item in items if item is not None and item != {}}
    if isinstance(value, list):
        return [None if item == {} else item for item in map(_without_nulls, value)]
    return value


class ReadRange(msgspec.Struct, array_like=True):
    """The first `rows` rows of one file, all of which were read.

    Attributes:
        path: the file's path in the dataset, or `segment/…` for a segment in a spool.
        oid: the first digits of the file's oid, as the Hub lists it.
        rows: -1 if they were not counted: a reader that starts at a commit counts everything in it as read.
        checksum: the sum of the rows' fingerprints, in any order.
        first: the fingerprint of the first row.
        is_complete: the file has no further rows.
        is_duplicated: a copy of the rows was recognized elsewhere, so nothing is missing if this file disappears.
    """

    path: str
    oid: str = ""
    rows: int = 0
    checksum: int = 0
    first: int = 0
    is_complete: bool = False
    is_duplicated: bool = False

    def add(self, fingerprint: int) -> None:
        """Extend the range by one row."""
        if self.rows == 0:
            self.first = fingerprint
        self.rows += 1
        self.checksum = (self.checksum + fingerprint) & MASK

    @property
    def is_segment(self) -> bool:
        """Return whether the rows were read from a spool."""
        return self.path.startswith(SEGMENT)

    def matches(self, oid: str) -> bool:
        """Return whether the file at the range's path, with this oid, is the one that was read."""
        return self.oid == short_oid(oid)


def short_oid(oid: str) -> str:
    """Return the digits of an oid that a cursor keeps."""
    return oid[:_OID_DIGITS]


class Cursor(msgspec.Struct):
    """What a reader has read.

    Attributes:
        repo: the dataset.
        commit: the newest commit that the reader has looked at; None before the first.
        ranges: what was read of files that still exist, by path.
        lost: what was read of files that are gone, and was not recognized in another file.
        skip_counts: by fingerprint, how often a row that was read before will appear again in files not read yet.
    """

    repo: str
    commit: str | None = None
    # The names in the text keep cursors of earlier versions readable.
    ranges: dict[str, ReadRange] = msgspec.field(default_factory=dict, name="pieces")
    lost: list[ReadRange] = []
    skip_counts: dict[int, int] = msgspec.field(default_factory=dict, name="again")

    def expect_again(self, fingerprints: Iterable[int]) -> None:
        """Note that these rows were read, and will appear again."""
        for fingerprint in fingerprints:
            self.skip_counts[fingerprint] = self.skip_counts.get(fingerprint, 0) + 1

    def was_read(self, fingerprint: int) -> bool:
        """Return whether a row was read before, and count it off."""
        count = self.skip_counts.pop(fingerprint, 0)
        if count > 1:
            self.skip_counts[fingerprint] = count - 1
        return count > 0

    def encode(self) -> str:
        """Return the cursor as text, about 20 bytes for each file."""
        return _VERSION + base64.urlsafe_b64encode(zlib.compress(msgspec.msgpack.encode(self), 1)).decode()

    @classmethod
    def decode(cls, text: str, repo: str) -> Cursor:
        """Return the cursor that `encode` has written.

        Raises:
            ConfigError: `text` is not a cursor, or is that of a newer hubsync or of another repo.
        """
        if not text.startswith(_VERSION):
            raise ConfigError(f"{text[:40]!r} is not a cursor of this hubsync, a commit sha or a time.")
        try:
            unpack = zlib.decompressobj()
            packed = unpack.decompress(base64.urlsafe_b64decode(text[len(_VERSION) :]), _MAX_BYTES)
            if unpack.unconsumed_tail or not unpack.eof:
                raise ValueError("it is truncated or too long")
            found = msgspec.msgpack.decode(packed, type=cls)
        except (ValueError, zlib.error, msgspec.DecodeError) as error:
            raise ConfigError(f"Cannot read the cursor {text[:20]!r}…: {error}.") from None
        if found.repo != repo:
            raise ConfigError(f"The cursor belongs to {found.repo}, not to {repo}.")
        return found
