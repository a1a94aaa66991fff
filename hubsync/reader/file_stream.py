"""A dataset's files, one after another, so that each row is met once, whatever becomes of the files meanwhile.

One look at the branch's head finds what is new there by path and oid. Only where something that was had is no longer
where it stood, or where a file turns up that no writer has made, are rows compared (`recognize.py`). A spool that is
read as well is looked at before the Hub: what is committed in between is then known again by its rows.
"""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import anyio
import anyio.to_thread

from hubsync._runtime.clock import Clock
from hubsync.destinations.hub import card
from hubsync.destinations.hub.dataset import HubFile
from hubsync.encoding.codecs import open_lines
from hubsync.errors import TransientError, one_line
from hubsync.model.target import Target
from hubsync.reader.cursor import SEGMENT, Cursor, ReadRange, short
from hubsync.reader.files import SUFFIXES, Files, Moved, Wanted, in_order, selected
from hubsync.reader.rewrites import RewriteDetector
from hubsync.spool.opening import open_existing

_log = logging.getLogger("hubsync")

_LOOKS = 5  # at a history that is squashed while it is read
_PAGE_S = 1.5  # seconds for a page of files: a fifth of the Hub's 1,000 requests in 5 minutes
_AHEAD = 4  # files that are fetched at once
_AHEAD_BYTES = 64 << 20


class Opened(NamedTuple):
    """A file to be read: `stream` begins with its first row, `piece` tells how many were had.

    `is_whole`: where the stream ends there are no further rows in it.
    """

    path: str
    stream: IO[bytes]
    piece: ReadRange
    is_whole: bool


class _Segment(NamedTuple):
    """What a spool holds and has not committed."""

    place: str
    number: int
    file: Path
    bytes: int
    rows: int


class FileStream:
    """What a reader of one dataset is to read next. `cursor` tells how far it is."""

    def __init__(
        self, target: Target, files: Files, cursor: Cursor, wanted: Wanted, *, spool: Path | None, clock: Clock
    ) -> None:
        """`spool`: what it still holds is read as well."""
        self.cursor = cursor
        self._target = target
        self._files = files
        self._wanted = wanted
        self._spool = spool
        self._clock = clock
        self._queue: deque[HubFile | _Segment] = deque()
        self._commit: str | None = None  # where the queue's files stand
        self._listed = 0  # files of the last listing
        self._told: set[str] = set()

    async def begin_at(self, commit: str) -> None:
        """Has everything that stands in a commit.

        Raises:
            RepoMissingError: there is no such commit.
        """
        try:
            files = await self._files.listed(commit)
            chosen = self._selected(files, await self._files.entries(files, commit))
        except Moved as moved:
            raise moved.why from None
        for file in chosen:
            self.cursor.pieces[file.path] = ReadRange(file.path, short(file.oid), rows=-1, whole=True)
        self.cursor.commit = commit

    async def look_at_spool(self) -> None:
        """Looks for what the spool has not committed. To be done before a look at the Hub, which finds it again."""
        if self._spool is not None:
            self._queue.extend(await anyio.to_thread.run_sync(self._pending))

    async def look_at_hub(self) -> None:
        """Looks for what is new at the branch's head."""
        for _ in range(_LOOKS):
            try:
                return await self._look_at_hub()
            except Moved:
                continue
        raise TransientError(f"the history of {self._target.repo} is rewritten again and again.")

    async def open_next(self) -> Opened | None:
        """The next file; None where all that was found is read."""
        while self._queue:
            item = self._queue[0]
            try:
                opened = self._segment(item) if isinstance(item, _Segment) else await self._file(item)
            except Moved:
                self._forget()
                await self.look_at_hub()
                continue
            self._queue.popleft()
            if opened is not None:
                return opened
        return None

    @property
    def rest_s(self) -> float:
        """Seconds that should pass before the next look: a listing costs a request for every 1,000 files."""
        return self._listed / 1000 * _PAGE_S

    def close(self) -> None:
        """Lets go of what was fetched."""
        self._forget()

    def _forget(self) -> None:
        self._queue.clear()
        self._files.drop()
        self._commit = None

    # The spool.

    def _pending(self) -> list[_Segment]:
        """What the spool has not committed and this reader has not had.

        Before the Hub is looked at: what is committed in between is then found again by its rows.
        """
        assert self._spool is not None
        spool = open_existing(self._target, self._spool, self._clock)
        try:
            rows = [row for row in spool.segments.waiting() if row.rows > 0]
            there = {f"{SEGMENT}{row.id}@{row.opened_at}": row for row in rows}
            pieces = self.cursor.pieces
            for place in [place for place, piece in pieces.items() if piece.is_segment and piece.whole]:
                if place not in there:
                    del pieces[place]
            return [
                _Segment(place, row.id, spool.file(row.file), row.bytes, row.rows)
                for place, row in there.items()
                if self._wanted.has(row.path, row.config, row.split)
                # Its commit may have landed, and the catalogue not know of it yet.
                and row.path not in pieces
                and (place not in pieces or (not pieces[place].whole and pieces[place].rows < row.rows))
            ]
        finally:
            spool.close()

    def _segment(self, segment: _Segment) -> Opened | None:
        stream = self._lines(segment)
        if stream is None:
            return None  # committed: it is found on the Hub
        piece = self.cursor.pieces.setdefault(segment.place, ReadRange(segment.place))
        return Opened(segment.place, stream, piece, is_whole=False)

    def _lines(self, segment: _Segment) -> IO[bytes] | None:
        """What a segment holds, whatever it has become in the meantime; None where it is committed."""
        try:
            if segment.file.suffix == ".jsonl":
                with segment.file.open("rb") as file:
                    return io.BytesIO(file.read(segment.bytes))
            return open_lines(segment.file.open("rb"), segment.file.name)
        except FileNotFoundError:
            assert self._spool is not None
            spool = open_existing(self._target, self._spool, self._clock)
            try:
                now = spool.segments.pending_file(segment.number)
                packed = None if now is None else spool.file(now)
            finally:
                spool.close()
            # Packed at most once: no file of the same name is looked for again.
            return None if packed in (None, segment.file) else self._lines(segment._replace(file=packed))

    # The Hub.

    async def _look_at_hub(self) -> None:
        commit = await self._files.head()
        if commit is None or commit == self._commit:
            return
        files = await self._files.listed(commit)
        self._listed = len(files)
        standing = {file.path: file.oid for file in files}
        cursor = self.cursor
        there: list[ReadRange] = []
        gone: list[ReadRange] = []
        for piece in cursor.pieces.values():
            stands = piece.is_segment or piece.is_at(standing.get(piece.place, ""))
            (there if stands else gone).append(piece)
        had = {piece.place for piece in there if piece.whole}
        fresh = [
            file for file in self._selected(files, await self._files.entries(files, commit)) if file.path not in had
        ]
        fresh.sort(key=lambda file: in_order(file.path))
        gone = [piece for piece in gone if piece.rows and not piece.twice]
        known = await RewriteDetector(self._files, cursor, there, gone).recognize(fresh, commit)
        # From here on nothing is waited for: a cursor that is kept meanwhile is the old one or the new one.
        cursor.pieces = {piece.place: piece for piece in there}
        cursor.lost = known.lost
        for piece in known.found:
            piece.whole = True  # of a segment that is on the Hub now
        for piece in known.twice:
            piece.twice = True
        cursor.pass_over(known.marks)
        cursor.commit = self._commit = commit
        self._queue.extend(fresh)

    def _selected(self, files: Iterable[HubFile], entries: Sequence[card.Entry]) -> list[HubFile]:
        """The files that hold the wanted rows: those that the card's patterns find, as `datasets` does."""
        found = []
        for file, _, _ in selected(files, entries, self._wanted):
            if file.path.endswith(SUFFIXES):
                found.append(file)
            else:
                self._tell(f"{one_line(file.path)} is of a kind that is not read ({', '.join(SUFFIXES)} are).")
        return found

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            _log.warning("%s", message)

    async def _file(self, file: HubFile) -> Opened:
        if not self._files.holds(file):
            await self._files.hold(self._next_few(), self._commit or "")
        piece = self.cursor.pieces.get(file.path)
        if piece is None:
            piece = self.cursor.pieces[file.path] = ReadRange(file.path, short(file.oid))
        return Opened(file.path, self._files.take(file), piece, is_whole=True)

    def _next_few(self) -> Sequence[HubFile]:
        few: list[HubFile] = []
        for item in self._queue:
            if isinstance(item, HubFile):
                few.append(item)
            if len(few) == _AHEAD or sum(file.size for file in few) > _AHEAD_BYTES:
                break
        return few
