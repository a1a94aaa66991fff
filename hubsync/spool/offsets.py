"""Keys and offsets: what makes a repeated batch known, so that it adds nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from hubsync.spool.database import Catalogue


class Offsets:
    """The keys and offsets of all batches that a spool accepted. What it records belongs in the batch's transaction."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def highest(self, source: str) -> int | None:
        """Return the highest offset accepted from a source, here or in the dataset; None before the first."""
        value: int | None = self._catalogue.value("SELECT offset FROM offsets WHERE source = ?", source)
        return value

    def advance(self, source: str, offset: int) -> None:
        """Record that all offsets of a source up to this one were accepted."""
        self._catalogue.run(
            "INSERT INTO offsets VALUES (?, ?) "
            "ON CONFLICT (source) DO UPDATE SET offset = max(offset, excluded.offset)",
            source, offset,
        )  # fmt: skip

    def assign(self, source: str, offset: int, segment: int) -> None:
        """Record that a segment holds the rows up to an offset of a source."""
        self._catalogue.run(
            "INSERT INTO segment_offsets VALUES (?, ?, ?) "
            "ON CONFLICT (segment, source) DO UPDATE SET offset = excluded.offset",
            source, offset, segment,
        )  # fmt: skip

    def segment_with(self, source: str, offset: int) -> int | None:
        """Return the segment that holds an accepted offset; None if it was accepted by another spool."""
        segment: int | None = self._catalogue.value(
            "SELECT segment FROM segment_offsets WHERE source = ? AND offset >= ? ORDER BY offset LIMIT 1",
            source, offset,
        )  # fmt: skip
        return segment

    def of_segment(self, segment: int) -> list[tuple[str, int]]:
        """Return the sources of a segment's rows, each with its highest offset there."""
        rows = self._catalogue.rows("SELECT source, offset FROM segment_offsets WHERE segment = ?", segment)
        return [(source, offset) for source, offset in rows]

    def expire(self, segments: Iterable[int], has_record: Callable[[int], bool]) -> None:
        """Forget which of these segments, whose records were just deleted, held which offsets of a source.

        Of segments without a record that follow each other in a source, the last one is kept: it tells that the offsets
        up to its own were committed.
        """
        for segment in segments:
            for source, offset in self.of_segment(segment):
                for neighbour, direction in (("<", "DESC"), (">", "ASC")):
                    row = self._catalogue.row(
                        "SELECT offset, segment FROM segment_offsets WHERE source = ? AND "
                        f"offset {neighbour} ? ORDER BY offset {direction} LIMIT 1",
                        source, offset,
                    )  # fmt: skip
                    if row is not None and not has_record(row[1]):
                        sql = "DELETE FROM segment_offsets WHERE source = ? AND offset = ?"
                        self._catalogue.run(sql, source, min(row[0], offset))
                        offset = max(row[0], offset)

    # Keys.

    def has_key(self, key: str) -> bool:
        """Return whether a batch with this key was accepted."""
        return self._catalogue.row("SELECT 1 FROM keys WHERE digest = ?", _digest(key)) is not None

    def find_key(self, key: str) -> tuple[int | None] | None:
        """Return the segment of the batch with this key, which is None if the batch was empty; None for a new key."""
        row = self._catalogue.row("SELECT segment FROM keys WHERE digest = ?", _digest(key))
        return None if row is None else (row[0],)

    def add_key(self, key: str, segment: int | None) -> None:
        """Record a batch's key, with the segment that holds its rows."""
        self._catalogue.run("INSERT INTO keys VALUES (?, ?)", _digest(key), segment)

    def forget_keys(self, segment: int) -> None:
        """Forget the keys of a segment that lost all its rows, so that its batches may be put again."""
        self._catalogue.run("DELETE FROM keys WHERE segment = ?", segment)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
