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
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec

from hubsync.encoding.rows import decode_row
from hubsync.errors import ConfigError

SEGMENT = "segment/"  # the prefix of a `ReadRange.path` that is a segment in a spool, not a file in the dataset
MASK = (1 << 64) - 1  # sums of fingerprints have 64 bits
_VERSION = "hubsync-2:"
_OLD_VERSIONS = ("hubsync-1:",)
_SEPARATOR = "."  # between parts; base64 does not use it
_BLOCK = 64  # ranges of the smallest block,
_FANOUT = 8  # and how many blocks are merged into a larger one
_MAX_COUNTED_OFF = 1_000
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


@dataclass
class Cursor:
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
    ranges: dict[str, ReadRange] = field(default_factory=dict)
    lost: list[ReadRange] = field(default_factory=list)
    skip_counts: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Prepare the text."""
        self._text = _CursorText(self)

    def range_of(self, path: str, oid: str = "") -> ReadRange:
        """Return what was read of a file, before more of it is read."""
        one = self.ranges.setdefault(path, ReadRange(path, oid))
        self._text.touch(one)
        return one

    def skip(self, ranges: Iterable[ReadRange]) -> None:
        """Note ranges of files that are not read."""
        for one in ranges:
            self.ranges[one.path] = one
            self._text.touch(one)

    def replace(self, standing: Iterable[ReadRange], lost: list[ReadRange], changed: Iterable[ReadRange]) -> None:
        """Replace the ranges after a look at a commit.

        Args:
            standing: the ranges of files that still exist.
            lost: those of files that are gone.
            changed: those whose attributes were changed.
        """
        self.ranges, self.lost = {one.path: one for one in standing}, lost
        self._text.forget(changed)

    def forget(self, paths: Iterable[str]) -> None:
        """Forget what was read of files."""
        for path in paths:
            del self.ranges[path]
        self._text.forget(())

    def expect_again(self, fingerprints: Iterable[int]) -> None:
        """Note that these rows were read, and will appear again."""
        for fingerprint in fingerprints:
            self.skip_counts[fingerprint] = self.skip_counts.get(fingerprint, 0) + 1
        self._text.forget(())

    def was_read(self, fingerprint: int) -> bool:
        """Return whether a row was read before, and count it off."""
        count = self.skip_counts.pop(fingerprint, 0)
        if count > 1:
            self.skip_counts[fingerprint] = count - 1
        if count:
            self._text.count_off(fingerprint)
        return count > 0

    def encode(self) -> str:
        """Return the cursor as text, about 50 bytes for each file. Only what changed since the last call is encoded."""
        return self._text.encode()

    @classmethod
    def decode(cls, text: str, repo: str) -> Cursor:
        """Return the cursor that `encode` has written.

        Raises:
            ConfigError: `text` is not a cursor, or is that of a newer hubsync or of another repo.
        """
        version = next((version for version in (_VERSION, *_OLD_VERSIONS) if text.startswith(version)), None)
        if version is None:
            raise ConfigError(f"{text[:40]!r} is not a cursor of this hubsync, a commit sha or a time.")
        found, left = cls(repo), _MAX_BYTES
        try:
            for text_of_part in text[len(version) :].split(_SEPARATOR):
                unpack = zlib.decompressobj()
                packed = unpack.decompress(base64.urlsafe_b64decode(text_of_part), left)
                if unpack.unconsumed_tail or not unpack.eof:
                    raise ValueError("it is truncated or too long")
                left = max(1, left - len(packed))
                part = msgspec.msgpack.decode(packed, type=_Part)
                found.commit = part.commit
                found.ranges |= part.ranges
                found.lost = [*found.lost, *part.lost]
                found.skip_counts |= part.skip_counts
        except (ValueError, zlib.error, msgspec.DecodeError) as error:
            raise ConfigError(f"Cannot read the cursor {text[:20]!r}…: {error}.") from None
        if part.repo != repo:
            raise ConfigError(f"The cursor belongs to {part.repo}, not to {repo}.")
        left_over = Counter(found.skip_counts)
        left_over.subtract(part.counted_off)
        found.skip_counts = {fingerprint: count for fingerprint, count in left_over.items() if count > 0}
        found._text = _CursorText(found)
        return found


class _Part(msgspec.Struct, omit_defaults=True):
    """A part of a cursor's text. Later parts replace ranges of earlier ones; the last one names repo and commit."""

    # The names in the text keep cursors of earlier versions readable.
    repo: str = ""
    commit: str | None = None
    ranges: dict[str, ReadRange] = msgspec.field(default_factory=dict, name="pieces")
    lost: list[ReadRange] = []
    skip_counts: dict[int, int] = msgspec.field(default_factory=dict, name="again")
    counted_off: dict[int, int] = {}  # from `skip_counts`

    def encode(self) -> str:
        return base64.urlsafe_b64encode(zlib.compress(msgspec.msgpack.encode(self), 1)).decode()


class _Block(NamedTuple):
    level: int
    ranges: Sequence[ReadRange]
    text: str


class _CursorText:
    """The text of a cursor, in parts, so that a row changes only the last one.

    Ranges that no longer change are encoded in blocks. As in a log-structured merge tree, blocks of equal size are
    merged, so each range is encoded a few times, however many there are.
    """

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._blocks: list[_Block] = []
        self._recent = dict(cursor.ranges)  # that are in no block, or have changed since
        self._counted_off: Counter[int] = Counter()  # since the prefix was made
        self._prefix: str | None = None

    def touch(self, one: ReadRange) -> None:
        """Note that a range may change from now on; the others do not."""
        if len(self._recent) >= _BLOCK and one.path not in self._recent:
            self._make_block()
        self._recent[one.path] = one

    def count_off(self, fingerprint: int) -> None:
        """Note that a row was counted off."""
        self._counted_off[fingerprint] += 1
        if len(self._counted_off) > _MAX_COUNTED_OFF:
            self._prefix = None

    def forget(self, changed: Iterable[ReadRange]) -> None:
        """Encode again what has changed: these ranges, those that are gone, `lost` and `skip_counts`."""
        current, ids = self._cursor.ranges, {id(one) for one in changed}
        blocks, self._blocks, recent = self._blocks, [], [*self._recent.values()]
        for block in blocks:
            if all(current.get(one.path) is one and id(one) not in ids for one in block.ranges):
                self._blocks.append(block)
            else:
                recent += block.ranges
        self._recent = {one.path: one for one in recent if current.get(one.path) is one}
        self._prefix = None

    def _make_block(self) -> None:
        level = 0
        ranges = self._recent
        while (last := self._blocks[-_FANOUT + 1 :]) and len(last) == _FANOUT - 1 and last[0].level <= level:
            ranges = {one.path: one for block in last for one in block.ranges} | ranges
            del self._blocks[-_FANOUT + 1 :]
            level += 1
        while len(ranges) > _BLOCK * _FANOUT**level:
            level += 1
        self._blocks.append(_Block(level, [*ranges.values()], _Part(ranges=ranges).encode()))
        self._recent = {}
        self._prefix = None

    def encode(self) -> str:
        cursor = self._cursor
        if len(self._recent) > _BLOCK:
            self._make_block()
        if self._prefix is None:
            parts = [block.text for block in self._blocks]
            if cursor.lost or cursor.skip_counts:
                parts.append(_Part(lost=cursor.lost, skip_counts=cursor.skip_counts).encode())
            self._counted_off.clear()
            self._prefix = _VERSION + "".join(f"{part}{_SEPARATOR}" for part in parts)
        last = _Part(cursor.repo, cursor.commit, self._recent, counted_off=self._counted_off)
        return self._prefix + last.encode()
