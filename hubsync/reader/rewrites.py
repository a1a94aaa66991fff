"""Which rows of a dataset's new files a reader has had already, where files that it has had are gone or have changed.

Pieces that are gone are looked for in the rows of the new files: each as a whole, then all together in any order, then
row by row, as long as the history still has what they were. What can be told in none of these ways is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from hubsync.destinations.hub.dataset import HubFile
from hubsync.errors import DatasetRewritten, one_line
from hubsync.reader.cursor import Cursor, RangeMatcher, ReadRange, are_the_same, split
from hubsync.reader.files import Files, Moved
from hubsync.reader.snapshot import series_of


@dataclass
class Recognized:
    """What the rows of new files tell.

    Attributes:
        found: pieces that are among them.
        twice: pieces of which a copy is among them, while they stand where they stood.
        lost: pieces of which it is not known where their rows are.
        marks: rows that were had, and will be met again.
    """

    found: list[ReadRange] = field(default_factory=list)
    twice: list[ReadRange] = field(default_factory=list)
    lost: list[ReadRange] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)


class RewriteDetector:
    """One look at a dataset: the pieces that still stand `there`, and those that are `gone`."""

    def __init__(self, files: Files, cursor: Cursor, there: Sequence[ReadRange], gone: Sequence[ReadRange]) -> None:
        self._files = files
        self._cursor = cursor
        self._there = {piece.place: piece for piece in there}
        self._gone = gone
        self._before: dict[str, HubFile] | None = None  # what stood at the last look

    async def recognize(self, fresh: Sequence[HubFile], commit: str) -> Recognized:
        """What the rows of `fresh` tell, as they stand in `commit`.

        Raises:
            DatasetRewritten: it can't be told which of them were had.
        """
        known = Recognized(lost=[*self._gone, *self._cursor.lost])
        segments = [piece for piece in self._there.values() if piece.is_segment and not piece.whole]
        foreign = await self._foreign(fresh, commit)
        if not fresh or not (known.lost or segments or foreign):
            return known
        gone, unreadable = await self._measured(self._gone)
        others = await self._find(fresh, foreign, commit, known, segments, gone)
        found = {id(piece) for piece in known.found}
        missing = [piece for piece in gone if id(piece) not in found]
        if (missing or unreadable) and any(others):
            await self._search(missing, unreadable, *others, known)
        found = {id(piece) for piece in known.found}
        known.lost = [piece for piece in known.lost if id(piece) not in found]
        return known

    async def _find(
        self,
        fresh: Sequence[HubFile],
        foreign: set[str],
        commit: str,
        known: Recognized,
        segments: Sequence[ReadRange],
        gone: Sequence[ReadRange],
    ) -> tuple[list[int], list[int]]:
        """Finds pieces as wholes; answers the other rows, of foreign files and of the writers' own."""
        account = RangeMatcher([*gone, *self._cursor.lost])
        local = RangeMatcher(segments)
        doubles = RangeMatcher(piece for piece in self._there.values() if piece.whole and not piece.is_segment)
        met = Counter(self._cursor.again)
        others: tuple[list[int], list[int]] = ([], [])
        for file in sorted(fresh, key=lambda file: file.path not in foreign):
            is_foreign = file.path in foreign
            had = self._there.get(file.path)
            marks = await self._files.marks(file, commit)
            _, marks = split(marks[had.rows if had else 0 :], met)
            # A segment becomes a whole shard, so it is at its start.
            for one in [account] if is_foreign else [local, account]:
                found, ours, marks = one.find(marks, at_start=one is local)
                known.found += found
                known.marks += ours
            if marks and is_foreign and not gone:
                # A compaction may come first, and what it was made of go later.
                twice, ours, rest = doubles.find(marks)
                if not rest:
                    known.twice += twice
                    known.marks += ours
                    marks = rest
            others[0 if is_foreign else 1].extend(marks)
        return others

    async def _search(
        self,
        missing: list[ReadRange],
        unreadable: list[ReadRange],
        foreign: list[int],
        ours: list[int],
        known: Recognized,
    ) -> None:
        """Finds rows of pieces that are nowhere as a whole, in files that hold more than what was had."""
        for marks in (foreign, [*foreign, *ours]):
            if not unreadable and marks and are_the_same(missing, marks):
                known.found += missing
                known.marks += marks
                return
        rows: Counter[int] = Counter()
        unreadable = list(unreadable)
        for piece in missing:
            there = await self._as_it_was(piece)
            if there is None:
                unreadable.append(piece)
            else:
                rows.update(there)
                known.found.append(piece)
        again, foreign = split(foreign, rows)
        known.marks += again
        known.marks += split(ours, rows)[0]
        if unreadable and foreign:
            raise DatasetRewritten(
                f"{len(unreadable):,} files of {self._files.repo} that this reader has had, such as "
                f"{one_line(unreadable[0].place)}, are gone, and {len(foreign):,} rows of new files may be theirs: "
                "they are in another order, and the history is gone too. None of the new rows was read. Read from the "
                "beginning, or give the commit behind which to go on."
            )

    async def _foreign(self, fresh: Sequence[HubFile], commit: str) -> set[str]:
        """Those of `fresh` that no writer has made: a compaction, an upload by hand, a shard that has changed."""
        before = {piece.place for piece in self._gone}
        if not before and not any(piece.whole for piece in self._there.values()):
            return set()
        marks = await self._files.watermarks(commit)
        others = {file.path for file in series_of(marks, fresh)[1]} if marks else set()
        return {file.path for file in fresh if file.path in before | others and file.path not in self._there}

    async def _measured(self, pieces: Iterable[ReadRange]) -> tuple[list[ReadRange], list[ReadRange]]:
        """Pieces whose rows were never counted, counted where the history has them; and those of which it has not."""
        measured, unreadable = [], []
        for piece in pieces:
            if piece.rows >= 0:
                measured.append(piece)
                continue
            marks = await self._as_it_was(piece)
            if marks is None:
                unreadable.append(piece)
                continue
            piece.rows = 0
            for mark in marks:
                piece.add(mark)
            measured.append(piece)
        return measured, unreadable

    async def _as_it_was(self, piece: ReadRange) -> list[int] | None:
        """The rows of a piece as they stood when the dataset was looked at last; None where that is gone."""
        commit = self._cursor.commit
        if commit is None:
            return None
        try:
            if self._before is None:
                self._before = {file.path: file for file in await self._files.listed(commit)}
            file = self._before.get(piece.place)
            if file is None or not piece.is_at(file.oid):
                return None
            marks = await self._files.marks(file, commit)
        except Moved:
            self._before = {}
            return None
        self._files.drop(file)
        return marks if piece.rows < 0 else marks[: piece.rows]
