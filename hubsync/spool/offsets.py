"""Keys and offsets: what makes a repeated batch known, so that it adds nothing; and the order of offsets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from hubsync._runtime.file_lock import ByteLocks
from hubsync.encoding.fingerprint import fingerprint, may_be_equal
from hubsync.errors import OffsetOrderError, SourceInUse
from hubsync.model.batch import Batch
from hubsync.model.commit import Start
from hubsync.model.watermarks import merged_starts
from hubsync.spool.database import Catalogue

_STARTS = "starts:"  # and a source: a named value of the catalogue
_MOST_SOURCES = 1_000  # of which the starts are kept, so that watermarks stay small


class _StoredStart(NamedTuple):
    """Where a source starts, and the segment that holds the batch; None if another spool accepted it."""

    start: Start
    segment: int | None = None


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

    # Where sources start.

    def starts(self, source: str) -> list[Start]:
        """Return where a source starts, as far as this spool knows, by offset."""
        return [stored.start for stored in self._stored_starts(source)]

    def starts_in(self, segment: int, source: str) -> list[Start]:
        """Return where a source starts, if that is in a segment."""
        return [stored.start for stored in self._stored_starts(source) if stored.segment == segment]

    def add_start(self, source: str, start: Start, segment: int | None) -> None:
        """Record where a source starts, unless the spool knows of too many sources."""
        segments = {stored.start: stored.segment for stored in self._stored_starts(source)}
        if not segments and self._has_many_starts():
            return
        kept = merged_starts(segments, [start])
        segments[start] = segment
        stored = [_StoredStart(each, segments[each]) for each in kept]
        self._catalogue.set(f"{_STARTS}{source}", msgspec.json.encode(stored).decode())

    def learn_starts(self, starts: Mapping[str, Sequence[Start]]) -> None:
        """Record where sources start by the dataset's watermarks."""
        for source, found in starts.items():
            known = self.starts(source)
            for start in found:
                if start not in known:
                    self.add_start(source, start, None)

    def are_all_known(self) -> bool:
        """Return whether the offsets in the dataset are known: otherwise no batch is surely the first of its source."""
        return self._catalogue.get("seeded") is not None

    def _stored_starts(self, source: str) -> list[_StoredStart]:
        text = self._catalogue.get(f"{_STARTS}{source}")
        return [] if text is None else msgspec.json.decode(text, type=list[_StoredStart])

    def _has_many_starts(self) -> bool:
        sql = "SELECT count(*) FROM meta WHERE key >= ? AND key < ?"
        return int(self._catalogue.value(sql, _STARTS, _STARTS[:-1] + ";")) >= _MOST_SOURCES

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


@dataclass(slots=True)
class _Run:
    """What one uploader has put of a source.

    Attributes:
        first: the highest offset before this run; -1 if there was no batch.
        last: the last offset of this run, and `content` its batch's; -1 before the first batch.
        knows_start: where the source starts is recorded, as far as it is this run's to do.
        is_other: this run has put other rows than an earlier one with the same offsets.
    """

    first: int
    last: int = -1
    content: int = 0
    knows_start: bool = False
    is_other: bool = False


class OffsetOrder:
    """The offsets that one uploader puts: within its run they rise, and no other open uploader uses their sources.

    What was accepted before its first batch of a source is a replay, which a job repeats after a restart. But a run
    that starts the source with other rows, or puts an offset that earlier runs left out, is not their restart: it is
    another loop that counts for itself, and its rows would be lost.
    """

    def __init__(self, offsets: Offsets, locks: ByteLocks, others: Callable[[], Collection[int]]) -> None:
        """Claim nothing yet.

        Args:
            offsets: those of the spool.
            locks: one for each source.
            others: returns the processes that have the spool open.
        """
        self._offsets = offsets
        self._locks = locks
        self._others = others
        self._runs: dict[str, _Run] = {}

    def find(self, batch: Batch) -> tuple[int | None] | None:
        """Return the segment of a batch that was accepted before; None for a new one. Within a transaction.

        Raises:
            OffsetOrderError: this run has put a higher offset, or another batch with this one; or an earlier run has
                put other rows with this offset, or has left it out.
            SourceInUse: another open uploader puts offsets of this source.
        """
        source, offset = batch.source, batch.offset
        assert offset is not None
        if source not in self._runs and not self._locks.acquire(_source_number(source)):
            raise self._in_use(source, offset)
        highest = self._offsets.highest(source)
        run = self._runs.setdefault(source, _Run(-1 if highest is None else highest))
        if highest is None or offset > highest:
            run.last, run.content = offset, _content_of(batch)
            return None
        if offset > run.first and (offset < highest or (offset == run.last and run.content != _content_of(batch))):
            raise OffsetOrderError(source, offset, highest)
        if offset <= run.first and (why := self._why_no_replay(batch, run)):
            run.is_other = True
            raise _no_replay(source, offset, highest, why)
        return (self._offsets.segment_with(source, offset),)

    def _why_no_replay(self, batch: Batch, run: _Run) -> str:
        """Return why an offset of an earlier run is not that run's batch, in words; empty if it may be."""
        offset = batch.offset
        assert offset is not None
        later = [start for start in self._offsets.starts(batch.source) if start.offset >= offset]
        nearest = [start for start in later if start.offset == later[0].offset]
        if nearest and all(start.after < offset < start.offset for start in nearest):
            return "an earlier run left it out"
        contents = [start.content for start in nearest if start.offset == offset and start.content is not None]
        if contents:
            mine = fingerprint(batch.lines, batch.rows)
            if any(may_be_equal(mine, content) for content in contents):
                return ""
        return "an earlier run has put other rows with it" if contents or run.is_other else ""

    def accept(self, batch: Batch, segment: int | None) -> None:
        """Record where a source starts, if it is with this new batch, before the offset is. Within a transaction."""
        source, offset = batch.source, batch.offset
        assert offset is not None
        run = self._runs[source]
        if run.knows_start:
            return
        highest, starts = self._offsets.highest(source), self._offsets.starts(source)
        are_all_known = self._offsets.are_all_known()
        after = highest if highest is not None else -1 if are_all_known else offset - 1
        is_one_of_two = highest is None or [start.offset for start in starts] == [highest]
        if is_one_of_two:
            self._offsets.add_start(source, Start(offset, after, fingerprint(batch.lines, batch.rows)), segment)
        elif after == run.first and offset > after + 1 and are_all_known:
            self._offsets.add_start(source, Start(offset, after), segment)
        run.knows_start = not is_one_of_two

    def undo(self) -> None:
        """Forget what was accepted in a transaction that failed."""
        for run in self._runs.values():
            run.knows_start = False

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


def _no_replay(source: str, offset: int, highest: int, why: str) -> OffsetOrderError:
    return OffsetOrderError(
        source, offset, highest,
        f"offset {offset} of source {source!r} is no replay: {why}, so the batch was not accepted. Everything accepted "
        f"is safe. If this job continues that run, put only offsets after up.offset({source!r}), which is {highest}. "
        "If it does not, give it its own source=, such as the name of its part of the input.",
    )  # fmt: skip


def _content_of(batch: Batch) -> int:
    """Return a number that tells apart the batches that a job could confuse, in about a microsecond."""
    return hash((batch.rows, len(batch.lines), batch.lines[:1_000], batch.lines[-1_000:]))


def _source_number(source: str) -> int:
    return int.from_bytes(_digest(source)[:8], "big") >> 2


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
