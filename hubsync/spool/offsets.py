"""Keys and offsets: what makes a repeated batch known, so that it adds nothing; and the order of offsets."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable

from hubsync._runtime.file_lock import ByteLocks
from hubsync.errors import OffsetOrderError, SourceInUse
from hubsync.model.batch import Batch
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


# What this process has put, by spool, source and offset, for the newest batches: a process that opens a second uploader
# and puts other rows with the same offsets has not been restarted.
_put_here: OrderedDict[tuple[str, str, int], int] = OrderedDict()
_REMEMBERED = 20_000


class OffsetOrder:
    """The offsets that one uploader puts: within its run they rise, and no other open uploader uses their sources.

    What was accepted before its first batch of a source is a replay, which a job repeats after a restart. But if this
    very process accepted other rows with that offset, and the source is the default one, two loops share the source.
    """

    def __init__(self, offsets: Offsets, locks: ByteLocks, others: Callable[[], Collection[int]], spool: str) -> None:
        """Claim nothing yet.

        Args:
            offsets: those of the spool.
            locks: one for each source.
            others: returns the processes that have the spool open.
            spool: its name within this process.
        """
        self._spool = spool
        self._offsets = offsets
        self._locks = locks
        self._others = others
        self._sources: dict[str, tuple[int, int, int]] = {}  # the highest before this run; the last, and its content

    def find(self, batch: Batch) -> tuple[int | None] | None:
        """Return the segment of a batch that was accepted before; None for a new one. Within a transaction.

        Raises:
            OffsetOrderError: this run has put a higher offset, or another batch with this one.
            SourceInUse: another open uploader puts offsets of this source.
        """
        source, offset = batch.source, batch.offset
        assert offset is not None
        if source not in self._sources and not self._locks.acquire(_source_number(source)):
            raise self._in_use(source, offset)
        highest = self._offsets.highest(source)
        first, last, content = self._sources.setdefault(source, (-1 if highest is None else highest, -1, 0))
        if highest is None or offset > highest:
            content = _content_of(batch)
            self._sources[source] = first, offset, content
            if batch.is_default_source:
                self._remember(offset, content, source)
            return None
        if offset > first and (offset < highest or (offset == last and content != _content_of(batch))):
            raise OffsetOrderError(source, offset, highest)
        if batch.is_default_source and self._put_other_rows(batch):
            raise self._put_twice(source, offset, highest)
        return (self._offsets.segment_with(source, offset),)

    def _remember(self, offset: int, content: int, source: str) -> None:
        _put_here[self._spool, source, offset] = content
        if len(_put_here) > _REMEMBERED:
            _put_here.popitem(last=False)

    def _put_other_rows(self, batch: Batch) -> bool:
        """Return whether this process has put a batch with the same offset and other rows."""
        assert batch.offset is not None
        content = _put_here.get((self._spool, batch.source, batch.offset))
        return content is not None and content != _content_of(batch)

    def _put_twice(self, source: str, offset: int, highest: int | None) -> OffsetOrderError:
        why = (
            f"this process has put offset {offset} of source {source!r} before, with other rows, so the batch was not "
            "accepted. Everything accepted is safe. To continue a loop, begin after offset(); give each loop of its "
            "own a source= of its own."
        )
        return OffsetOrderError(source, offset, highest, why)

    def release(self) -> None:
        """Let other uploaders use the sources."""
        self._locks.release()

    def _in_use(self, source: str, offset: int) -> SourceInUse:
        others = sorted(pid for pid in self._others() if pid != os.getpid())
        who = f"of process {', '.join(map(str, others))} " if others else "of this process "
        why = (
            f"another open uploader {who}puts offsets of source {source!r}, so the batch with offset {offset} was not "
            "accepted: one of the two would lose rows as replays. Everything accepted is safe. Give each of them its "
            "own source=, such as the name of its part of the input; or end the other one first."
        )
        return SourceInUse(source, offset, self._offsets.highest(source), why)


def _content_of(batch: Batch) -> int:
    """Return a number that tells apart the batches that a job could confuse, in about a microsecond."""
    return hash((batch.rows, len(batch.lines), batch.lines[:1_000], batch.lines[-1_000:]))


def _source_number(source: str) -> int:
    return int.from_bytes(_digest(source)[:8], "big") >> 2


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
