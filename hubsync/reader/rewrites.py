"""Recognize rows that were read before, after their files were moved, merged or rewritten.

Ranges whose files are gone are looked for in the new files: each range as a block, then all of them together in any
order, then row by row if the history still has the old files. If none of these can tell which rows are new,
`DatasetRewritten` is raised.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hubsync.destinations.hub.dataset import HubFile
from hubsync.errors import DatasetRewritten, one_line
from hubsync.model.series import series_of
from hubsync.reader.cursor import MASK, Cursor, ReadRange
from hubsync.reader.snapshot import CommitGone, Snapshot, SnapshotReader


@dataclass
class RecognizedRows:
    """What the rows of new files show.

    Attributes:
        found: ranges whose rows are in the new files.
        duplicated: ranges whose rows are in the new files, while their own files still exist.
        lost: ranges whose rows were not found.
        fingerprints: the rows in the new files that were read before.
    """

    found: list[ReadRange] = field(default_factory=list)
    duplicated: list[ReadRange] = field(default_factory=list)
    lost: list[ReadRange] = field(default_factory=list)
    fingerprints: list[int] = field(default_factory=list)


class RewriteDetector:
    """Compares the rows of a snapshot's new files with what a cursor has read."""

    def __init__(
        self, reader: SnapshotReader, cursor: Cursor, standing: Sequence[ReadRange], gone: Sequence[ReadRange]
    ) -> None:
        """Prepare for a snapshot: the files of `standing` still exist unchanged, those of `gone` do not."""
        self._reader = reader
        self._cursor = cursor
        self._standing = {one.path: one for one in standing}
        self._gone = gone
        self._old_files: dict[str, HubFile] | None = None  # of the commit that the cursor looked at last

    async def recognize(self, fresh: Sequence[HubFile], snapshot: Snapshot) -> RecognizedRows:
        """Return what the rows of the new files `fresh` show.

        Raises:
            DatasetRewritten: it is impossible to tell which of them were read before.
        """
        known = RecognizedRows(lost=[*self._gone, *self._cursor.lost])
        foreign = await self._foreign_paths(fresh, snapshot)
        open_segments = any(one.is_segment and not one.is_complete for one in self._standing.values())
        if not fresh or not (known.lost or open_segments or foreign):
            return known
        gone, unreadable = await self._count_rows(self._gone)
        others = await self._match_blocks(fresh, foreign, snapshot.commit, gone, known)
        missing = _without(gone, known.found)
        if (missing or unreadable) and any(others):
            await self._match_rows(missing, unreadable, *others, known)
        known.lost = _without(known.lost, known.found)
        return known

    async def _foreign_paths(self, fresh: Sequence[HubFile], snapshot: Snapshot) -> set[str]:
        """Return those of `fresh` that no writer made: compactions, uploads by hand, changed shards."""
        changed = {one.path for one in self._gone}
        if not changed and not any(one.is_complete for one in self._standing.values()):
            return set()
        marks = (await self._reader.watermarks(snapshot)).by_writer
        series, strangers = series_of(marks, fresh) if marks else ([], [])
        others = {file.path for file in strangers} | {merged.file.path for one in series for merged in one.merged}
        return {file.path for file in fresh if file.path in changed | others and file.path not in self._standing}

    async def _match_blocks(
        self,
        fresh: Sequence[HubFile],
        foreign: set[str],
        commit: str,
        gone: Sequence[ReadRange],
        known: RecognizedRows,
    ) -> tuple[list[int], list[int]]:
        """Find ranges as blocks; return the remaining rows of foreign files and those of the writers' own."""
        lost = RangeMatcher([*gone, *self._cursor.lost])
        segments = RangeMatcher(one for one in self._standing.values() if one.is_segment and not one.is_complete)
        standing = RangeMatcher(one for one in self._standing.values() if one.is_complete and not one.is_segment)
        expected = Counter(self._cursor.skip_counts)
        others: tuple[list[int], list[int]] = ([], [])
        for file in sorted(fresh, key=lambda file: file.path not in foreign):
            is_foreign = file.path in foreign
            read = self._standing.get(file.path)
            rows = await self._reader.fingerprints(file, commit)
            _, rows = _split(rows[read.rows if read else 0 :], expected)
            # A segment becomes a whole shard, so its rows are at the beginning of a file.
            for matcher in [lost] if is_foreign else [segments, lost]:
                found, matched, rows = matcher.find(rows, at_start=matcher is segments)
                known.found += found
                known.fingerprints += matched
            if rows and is_foreign and not gone:
                # A compaction may come in two commits: first the new file, then the removal of the old ones.
                found, matched, rest = standing.find(rows)
                if not rest:
                    known.duplicated += found
                    known.fingerprints += matched
                    rows = rest
            others[0 if is_foreign else 1].extend(rows)
        return others

    async def _match_rows(
        self,
        missing: list[ReadRange],
        unreadable: Sequence[ReadRange],
        foreign: list[int],
        own: list[int],
        known: RecognizedRows,
    ) -> None:
        """Find ranges that were shuffled, or mixed with new rows."""
        for rows in (foreign, [*foreign, *own]):
            if not unreadable and rows and have_same_rows(missing, rows):
                known.found += missing
                known.fingerprints += rows
                return
        read: Counter[int] = Counter()
        unreadable = list(unreadable)
        for one in missing:
            rows_then = await self._rows_at_last_look(one)
            if rows_then is None:
                unreadable.append(one)
            else:
                read.update(rows_then)
                known.found.append(one)
        seen, foreign = _split(foreign, read)
        known.fingerprints += seen
        known.fingerprints += _split(own, read)[0]
        if unreadable and foreign:
            raise DatasetRewritten(
                f"{len(unreadable):,} files of {self._reader.repo} that were read before, such as "
                f"{one_line(unreadable[0].path)}, are gone from the dataset and from its history, and {len(foreign):,} "
                "rows of new files may be theirs, in another order. None of the new rows was read. Read from the "
                "beginning, or give the commit to continue after."
            )

    async def _count_rows(self, ranges: Iterable[ReadRange]) -> tuple[list[ReadRange], list[ReadRange]]:
        """Count ranges that never were, if the history still has them; return the counted ones and the others."""
        counted, unreadable = [], []
        for one in ranges:
            rows = await self._rows_at_last_look(one) if one.rows < 0 else []
            if rows is None:
                unreadable.append(one)
                continue
            if one.rows < 0:
                one.rows = 0
                for row in rows:
                    one.add(row)
            counted.append(one)
        return counted, unreadable

    async def _rows_at_last_look(self, one: ReadRange) -> list[int] | None:
        """Return a range's rows at the commit that the cursor looked at last; None if that is gone."""
        commit = self._cursor.commit
        if commit is None:
            return None
        try:
            if self._old_files is None:
                self._old_files = dict((await self._reader.snapshot(commit)).files)
            file = self._old_files.get(one.path)
            if file is None or not one.matches(file.oid):
                return None
            rows = await self._reader.fingerprints(file, commit)
        except CommitGone:
            self._old_files = {}
            return None
        self._reader.drop(file)
        return rows if one.rows < 0 else rows[: one.rows]


class RangeMatcher:
    """Finds ranges as blocks in the rows of files; each range once."""

    def __init__(self, ranges: Iterable[ReadRange]) -> None:
        # By their first row and then by count and checksum, the longest first.
        self._by_first: defaultdict[int, dict[tuple[int, int], list[ReadRange]]] = defaultdict(dict)
        for one in sorted((one for one in ranges if one.rows > 0), key=lambda one: -one.rows):
            self._by_first[one.first].setdefault((one.rows, one.checksum), []).append(one)

    def find(self, rows: Sequence[int], *, at_start: bool = False) -> tuple[list[ReadRange], list[int], list[int]]:
        """Return the ranges in a file's `rows`, which are fingerprints; their rows; and the other rows.

        With `at_start`, only find a range that the file begins with.
        """
        sums = [0]
        for row in rows:
            sums.append((sums[-1] + row) & MASK)
        found: list[ReadRange] = []
        matched: list[int] = []
        others: list[int] = []
        at = 0
        while at < len(rows):
            one = None if at_start and at else self._take(rows, sums, at)
            if one is None:
                others.append(rows[at])
                at += 1
            else:
                found.append(one)
                matched += rows[at : at + one.rows]
                at += one.rows
        return found, matched, others

    def _take(self, rows: Sequence[int], sums: Sequence[int], at: int) -> ReadRange | None:
        for (count, checksum), alike in self._by_first.get(rows[at], {}).items():
            if alike and at + count < len(sums) and (sums[at + count] - sums[at]) & MASK == checksum:
                return alike.pop()
        return None


def have_same_rows(ranges: Sequence[ReadRange], rows: Sequence[int]) -> bool:
    """Return whether `rows` are the rows of `ranges`, in any order."""
    checksum = sum(one.checksum for one in ranges) - sum(rows)
    return sum(one.rows for one in ranges) == len(rows) and checksum & MASK == 0


def _split(rows: Iterable[int], known: Counter[int]) -> tuple[list[int], list[int]]:
    """Split `rows` into those in `known`, which are counted off there, and the others."""
    matched: list[int] = []
    others: list[int] = []
    for row in rows:
        if known[row] > 0:
            known[row] -= 1
            matched.append(row)
        else:
            others.append(row)
    return matched, others


def _without(ranges: Iterable[ReadRange], found: Iterable[ReadRange]) -> list[ReadRange]:
    """Return those of `ranges` that are not among `found`; equal ranges are compared by identity."""
    ids = {id(one) for one in found}
    return [one for one in ranges if id(one) not in ids]
