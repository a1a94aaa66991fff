"""What a reader has had of a dataset, told by its content.

A row counts by a fingerprint that no writing of it in JSON changes, and a file by its rows' fingerprints. So what was
had is known again wherever it comes to stand: in a shard that has moved or grown, or in a file that a compaction has
made of many, also where the history that could tell of it is squashed. Pure: knows of no Hub and no disk.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from hubsync.errors import ConfigError

_VERSION = "hubsync-1:"
_MASK = (1 << 64) - 1
SEGMENT = "segment/"  # how the place of what a spool holds begins
_OID = 16  # hex digits that are kept of one: it is compared at one path only
_LONGEST = 1 << 28  # bytes of a cursor, unpacked; a piece has about 60
_WHOLE = re.compile(rb"(?<=\d)\.0(?=[,}\]])")  # of a float; within a text it does no harm
_encoder = msgspec.json.Encoder(order="sorted")


def fingerprint(row: Any) -> int:
    """64 bits of a row's content: the order of its keys, spaces and what is null in it make no difference.

    `datasets` and Parquet write a null for what is missing and for an object without fields, and 1.0 for a 1 among
    floats, so each of these are the same here.
    """
    data = _encoder.encode(row)
    if b"null" in data or b"{}" in data:
        data = _encoder.encode(_without_nulls(row))
    return _hash(_WHOLE.sub(b"", data) if b".0" in data else data)


def fingerprint_of_bad(line: bytes) -> int:
    """The same for a line that is no row."""
    return _hash(line)


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
    """The first `rows` rows of one file, which the reader has had.

    Attributes:
        place: the file's path in the dataset; for a spool's segment `segment/…`.
        oid: how the oid begins that the Hub lists for the file.
        rows: -1 where they were never counted: a reader that began at a commit has had what stood there.
        total: the sum of the rows' fingerprints, in any order; `first` is the first one.
        whole: there are no further rows in it.
        twice: a copy of it is accounted for, so nothing is missing where it vanishes.
    """

    place: str
    oid: str = ""
    rows: int = 0
    total: int = 0
    first: int = 0
    whole: bool = False
    twice: bool = False

    def add(self, mark: int) -> None:
        """One more row was had."""
        if self.rows == 0:
            self.first = mark
        self.rows += 1
        self.total = (self.total + mark) & _MASK

    @property
    def is_segment(self) -> bool:
        """Whether it is a spool's, and not committed as far as was seen."""
        return self.place.startswith(SEGMENT)

    def is_at(self, oid: str) -> bool:
        """Whether the file with this oid is still the one that it was a piece of."""
        return self.oid == short(oid)


def short(oid: str) -> str:
    """As much of an oid as a cursor keeps."""
    return oid[:_OID]


class Cursor(msgspec.Struct):
    """How far a reader is.

    Attributes:
        commit: where the dataset was looked at last; None before the first look.
        pieces: what it has had and what stands there still, by place.
        lost: what it has had and what stands nowhere now.
        again: how often it will meet rows again that it has had, by fingerprint: in files that a rewrite has made.
    """

    repo: str
    commit: str | None = None
    pieces: dict[str, ReadRange] = {}
    lost: list[ReadRange] = []
    again: dict[int, int] = {}

    def passes(self, mark: int) -> bool:
        """Whether the row that is met is one that was had before; counts it off."""
        left = self.again.get(mark)
        if left is None:
            return False
        if left == 1:
            del self.again[mark]
        else:
            self.again[mark] = left - 1
        return True

    def pass_over(self, marks: Iterable[int]) -> None:
        """These rows were had, and will be met again."""
        for mark in marks:
            self.again[mark] = self.again.get(mark, 0) + 1

    def encode(self) -> str:
        """As text, to be kept wherever the reader keeps its own state."""
        return _VERSION + base64.urlsafe_b64encode(zlib.compress(msgspec.msgpack.encode(self), 1)).decode()

    @classmethod
    def decode(cls, text: str, repo: str) -> Cursor:
        """The cursor that `encode` has written.

        Raises:
            ConfigError: it is none, a newer hubsync's, or another repo's.
        """
        if not text.startswith(_VERSION):
            raise ConfigError(f"{text[:40]!r} is no cursor that this hubsync reads, no commit's sha, and no time.")
        try:
            unpack = zlib.decompressobj()
            packed = unpack.decompress(base64.urlsafe_b64decode(text[len(_VERSION) :]), _LONGEST)
            if unpack.unconsumed_tail or not unpack.eof:
                raise ValueError("it is cut, or too long")
            found = msgspec.msgpack.decode(packed, type=cls)
        except (ValueError, zlib.error, msgspec.DecodeError) as error:
            raise ConfigError(f"the cursor {text[:20]!r}… can't be read: {error}.") from None
        if found.repo != repo:
            raise ConfigError(f"the cursor is of {found.repo}, not of {repo}.")
        return found


class RangeMatcher:
    """Finds pieces again in the rows of files that a rewrite has made."""

    def __init__(self, pieces: Iterable[ReadRange]) -> None:
        # By their first row, then alike ones together, the longest first.
        self._by_first: defaultdict[int, dict[tuple[int, int], list[ReadRange]]] = defaultdict(dict)
        for piece in sorted((piece for piece in pieces if piece.rows > 0), key=lambda piece: -piece.rows):
            self._by_first[piece.first].setdefault((piece.rows, piece.total), []).append(piece)

    def find(self, marks: Sequence[int], *, at_start: bool = False) -> tuple[list[ReadRange], list[int], list[int]]:
        """Answers the pieces that were found, each of which is found once; the rows that are theirs; and the others.

        With `at_start` only a piece that the file begins with.
        """
        sums = [0]
        for mark in marks:
            sums.append((sums[-1] + mark) & _MASK)
        found: list[ReadRange] = []
        known: list[int] = []
        others: list[int] = []
        at = 0
        while at < len(marks):
            piece = None if at_start and at else self._take(marks, sums, at)
            if piece is None:
                others.append(marks[at])
                at += 1
            else:
                found.append(piece)
                known += marks[at : at + piece.rows]
                at += piece.rows
        return found, known, others

    def _take(self, marks: Sequence[int], sums: Sequence[int], at: int) -> ReadRange | None:
        for (rows, total), alike in self._by_first.get(marks[at], {}).items():
            if alike and at + rows < len(sums) and (sums[at + rows] - sums[at]) & _MASK == total:
                return alike.pop()
        return None


def are_the_same(pieces: Iterable[ReadRange], marks: Sequence[int]) -> bool:
    """Whether `marks` are the rows of `pieces`, in whatever order."""
    pieces = list(pieces)
    return sum(p.rows for p in pieces) == len(marks) and (sum(p.total for p in pieces) - sum(marks)) & _MASK == 0


def split(marks: Iterable[int], known: Counter[int]) -> tuple[list[int], list[int]]:
    """Parts `marks` into those that are in `known`, which are counted off there, and the others."""
    ours: list[int] = []
    others: list[int] = []
    for mark in marks:
        if known[mark] > 0:
            known[mark] -= 1
            ours.append(mark)
        else:
            others.append(mark)
    return ours, others
