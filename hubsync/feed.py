"""A dataset's files, one after another, so that each row is met once, whatever becomes of the files meanwhile.

One look at the branch's head finds what is new there by path and oid. Only where something that was had is no longer
where it stood, or where a file turns up that no writer has made, are rows compared (`cursor.py`): then the new files
are read twice, once to know their rows and once to hand them out. Files come whole and checked, or not at all.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import tempfile
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import msgspec

from hubsync import card
from hubsync.clock import Clock
from hubsync.connect import spool_of
from hubsync.cursor import Account, Cursor, Piece, are_the_same, fingerprint, fingerprint_of_bad, short, split
from hubsync.errors import DatasetRewritten, RepoMissingError, TransientError, plain
from hubsync.hub import HubDataset, HubFile, flat_errors, watermark_of
from hubsync.plan import Watermark
from hubsync.rows import encode
from hubsync.survey import patiently, series_of

_log = logging.getLogger("hubsync")
T = TypeVar("T")

_LOOKS = 5  # at a history that is squashed while it is read
_PAGE_S = 1.5  # seconds for a page of files: a fifth of the Hub's 1,000 requests in 5 minutes
_AHEAD = 4  # files that are fetched at once
_AHEAD_BYTES = 64 << 20
_IN_MEMORY = 8 << 20  # bytes of a file; what is larger waits on the disk
_SEGMENT = "segment/"
_SUFFIXES = (".jsonl", ".ndjson", ".parquet")


class Wanted(NamedTuple):
    """Which rows of a dataset are read: None stands for all."""

    config: str | None = None
    split: str | None = None
    paths: frozenset[str] | None = None

    def has(self, path: str | None, config: str, split: str) -> bool:
        """Whether the rows of a file are wanted."""
        return (
            self.config in (None, config)
            and self.split in (None, split)
            and (self.paths is None or path in self.paths)
        )  # fmt: skip


class Opened(NamedTuple):
    """A file to be read: `stream` begins with its first row, `piece` tells how many were had.

    `is_whole`: where the stream ends there are no further rows in it.
    """

    path: str
    stream: IO[bytes]
    piece: Piece
    is_whole: bool


class _Segment(NamedTuple):
    """What a spool holds and has not committed."""

    place: str
    file: Path
    bytes: int
    rows: int


@dataclass
class _Known:
    """What the rows of new files tell: pieces that were found in them, and rows that will be met again."""

    found: list[Piece] = field(default_factory=list)
    twice: list[Piece] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)


class Moved(Exception):
    """The commit that was looked at is no longer there: the history was squashed meanwhile."""

    def __init__(self, why: RepoMissingError) -> None:
        self.why = why


class Feed:
    """What a reader of one dataset is to read next. `cursor` tells how far it is."""

    def __init__(
        self,
        hub: HubDataset,
        cursor: Cursor,
        wanted: Wanted,
        *,
        spool: Path | None,
        clock: Clock,
        for_ever: bool,
    ) -> None:
        """`spool`: what it still holds is read as well. `for_ever`: what passes by itself is waited out."""
        self.cursor = cursor
        self._hub = hub
        self._wanted = wanted
        self._spool = spool
        self._clock = clock
        self._for_ever = for_ever
        self._queue: deque[HubFile | _Segment] = deque()
        self._held: dict[str, IO[bytes]] = {}  # fetched and not yet handed out
        self._commit: str | None = None  # where the queue's files stand
        self._listed = 0  # files of the last listing
        self._marks: dict[str, tuple[str, Watermark | None]] = {}  # by path, with the oid
        self._card: tuple[str, Sequence[card.Entry]] = ("", ())
        self._told: set[str] = set()

    async def begin_at(self, commit: str) -> None:
        """Has everything that stands in a commit.

        Raises:
            RepoMissingError: there is no such commit.
        """
        try:
            files = await self._files(commit)
            chosen = self._selected(files, await self._entries(files, commit))
        except Moved as moved:
            raise moved.why from None
        for file in chosen:
            self.cursor.pieces[file.path] = Piece(file.path, short(file.oid), rows=-1, whole=True)
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
        raise TransientError(f"the history of {self._hub.target.repo} is rewritten again and again.")

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
        for stream in self._held.values():
            stream.close()
        self._held.clear()
        self._commit = None

    async def _ask(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await patiently(operation, self._clock, for_ever=self._for_ever)

    # The spool.

    def _pending(self) -> list[_Segment]:
        """What the spool has not committed and this reader has not had.

        Before the Hub is looked at: what is committed in between is then found again by its rows.
        """
        assert self._spool is not None
        spool = spool_of(self._hub.target, self._spool, self._clock)
        try:
            rows = spool.catalogue.rows(
                "SELECT * FROM segments WHERE state IN ('open', 'sealed', 'staged') AND rows > 0 ORDER BY id"
            )
            there = {f"{_SEGMENT}{row['id']}@{row['opened_at']}": row for row in rows}
            pieces = self.cursor.pieces
            for place in [place for place, piece in pieces.items() if place.startswith(_SEGMENT) and piece.whole]:
                if place not in there:
                    del pieces[place]
            return [
                _Segment(place, spool.file(row["file"]), row["bytes"], row["rows"])
                for place, row in there.items()
                if self._wanted.has(row["path"], row["config"], row["split"])
                # Its commit may have landed, and the catalogue not know of it yet.
                and row["path"] not in pieces
                and (place not in pieces or (not pieces[place].whole and pieces[place].rows < row["rows"]))
            ]
        finally:
            spool.close()

    def _segment(self, segment: _Segment) -> Opened | None:
        try:
            with segment.file.open("rb") as file:
                stream = io.BytesIO(file.read(segment.bytes))
        except FileNotFoundError:
            return None  # committed: it is found on the Hub
        piece = self.cursor.pieces.setdefault(segment.place, Piece(segment.place))
        return Opened(segment.place, stream, piece, is_whole=False)

    # The Hub.

    async def _look_at_hub(self) -> None:
        commit = (await self._ask(self._hub.head)).sha
        if commit is None or commit == self._commit:
            return
        files = await self._files(commit)
        self._listed = len(files)
        standing = {file.path: file.oid for file in files}
        cursor = self.cursor
        there: list[Piece] = []
        gone: list[Piece] = []
        for piece in cursor.pieces.values():
            stands = piece.place.startswith(_SEGMENT) or piece.is_at(standing.get(piece.place, ""))
            (there if stands else gone).append(piece)
        had = {piece.place for piece in there if piece.whole}
        fresh = [file for file in self._selected(files, await self._entries(files, commit)) if file.path not in had]
        fresh.sort(key=lambda file: in_order(file.path))
        gone = [piece for piece in gone if piece.rows and not piece.twice]
        known, lost = await self._recognize(fresh, there, gone, commit)
        # From here on nothing is waited for: a cursor that is kept meanwhile is the old one or the new one.
        cursor.pieces = {piece.place: piece for piece in there}
        cursor.lost = [piece for piece in lost if not any(piece is one for one in known.found)]
        for piece in known.found:
            piece.whole = True  # of a segment that is on the Hub now
        for piece in known.twice:
            piece.twice = True
        cursor.pass_over(known.marks)
        cursor.commit = self._commit = commit
        self._queue.extend(fresh)

    async def _recognize(
        self, fresh: Sequence[HubFile], there: Sequence[Piece], gone: list[Piece], commit: str
    ) -> tuple[_Known, list[Piece]]:
        """Which rows of `fresh` were had already; and the pieces of which that is not known."""
        known, lost = _Known(), [*gone, *self.cursor.lost]
        segments = [piece for piece in there if piece.place.startswith(_SEGMENT) and not piece.whole]
        foreign = await self._foreign(fresh, there, gone, commit)
        is_foreign = {file.path for file in foreign}
        if not fresh or not (lost or segments or foreign):
            return known, lost
        gone, unreadable = await self._measured(gone)
        account = Account([*gone, *self.cursor.lost])
        local = Account(segments)
        doubles = Account(piece for piece in there if piece.whole and not piece.place.startswith(_SEGMENT))
        met = Counter(self.cursor.again)
        others: dict[bool, list[int]] = {True: [], False: []}
        for file in [*foreign, *(file for file in fresh if file.path not in is_foreign)]:
            _, marks = split(await self._marks_of(file, there, commit), met)
            # A segment is a whole shard; what a person has made may hold a copy of what stands elsewhere as well.
            tries = [account, doubles] if file.path in is_foreign else [local, account]
            for one in tries:
                found, ours, marks = one.find(marks, at_start=one is local)
                (known.twice if one is doubles else known.found).extend(found)
                known.marks += ours
            others[file.path in is_foreign] += marks
        missing = [piece for piece in gone if not any(piece is one for one in known.found)]
        if (missing or unreadable) and (others[True] or others[False]):
            await self._search(missing, unreadable, others[True], others[False], known)
        return known, lost

    async def _search(
        self, missing: list[Piece], unreadable: list[Piece], foreign: list[int], ours: list[int], known: _Known
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
                f"{len(unreadable):,} files of {self._hub.target.repo} that this reader has had, such as "
                f"{plain(unreadable[0].place)}, are gone, and {len(foreign):,} rows of new files may be theirs: their "
                "bytes differ, and the history is gone too. Nothing of them was read. Read from the beginning, or give "
                "the commit behind which to go on."
            )

    async def _foreign(
        self, fresh: Sequence[HubFile], there: Sequence[Piece], gone: Sequence[Piece], commit: str
    ) -> list[HubFile]:
        """Those of `fresh` that no writer has made: a compaction, an upload by hand, a shard that has changed."""
        before = {piece.place for piece in gone}
        partly = {piece.place for piece in there}
        if not before and not any(piece.whole for piece in there):
            return []
        marks = await self._watermarks(commit)
        others = {file.path for file in series_of(marks, fresh)[1]} if marks else set()
        return [file for file in fresh if file.path not in partly and (file.path in before or file.path in others)]

    async def _watermarks(self, commit: str) -> Mapping[str, Watermark]:
        found: dict[str, tuple[str, Watermark | None]] = {}
        for file in await self._files(commit, ".hubsync"):
            if not file.path.endswith(".json"):
                continue
            known = self._marks.get(file.path)
            if known is None or known[0] != file.oid:
                content = await self._there(self._hub.read, file.path, commit)
                try:
                    known = (file.oid, watermark_of(content or b"", file.path))
                except (ValueError, RecursionError):
                    known = (file.oid, None)
            found[file.path] = known
        self._marks = found
        return {mark.writer: mark for _, mark in found.values() if mark is not None}

    # Rows, by their fingerprints.

    async def _marks_of(self, file: HubFile, there: Sequence[Piece], commit: str) -> list[int]:
        """The rows of a file that were not handed out. It is kept until they are."""
        stream = self._held[file.path] = self._held.get(file.path) or await self._fetch(file, commit)
        had = next((piece.rows for piece in there if piece.place == file.path), 0)
        marks = await anyio.to_thread.run_sync(marks_in, stream)
        stream.seek(0)
        return marks[had:]

    async def _measured(self, pieces: Iterable[Piece]) -> tuple[list[Piece], list[Piece]]:
        """Pieces whose rows were never counted, counted where the history has them; and those of which it has not."""
        measured, unreadable = [], []
        for piece in pieces:
            marks = await self._as_it_was(piece) if piece.rows < 0 else None
            if piece.rows < 0 and marks is None:
                unreadable.append(piece)
                continue
            if marks is not None:
                piece.rows = 0
                for mark in marks:
                    piece.add(mark)
            measured.append(piece)
        return measured, unreadable

    async def _as_it_was(self, piece: Piece) -> list[int] | None:
        """The rows of a piece as they stood when the dataset was looked at last; None where that is gone."""
        before = self.cursor.commit
        if before is None:
            return None
        try:
            file = next((file for file in await self._files(before) if file.path == piece.place), None)
            if file is None or not piece.is_at(file.oid):
                return None
            with await self._fetch(file, before) as stream:
                marks = await anyio.to_thread.run_sync(marks_in, stream)
        except Moved:
            return None
        return marks if piece.rows < 0 else marks[: piece.rows]

    # Files.

    async def _files(self, commit: str, folder: str = "") -> Sequence[HubFile]:
        return await self._there(self._hub.files, commit, folder)

    async def _there(self, operation: Callable[..., Awaitable[T]], *args: str) -> T:
        """Asks for what stands in a commit. Raises `Moved` where that commit is gone."""
        try:
            return await self._ask(lambda: operation(*args))
        except RepoMissingError as error:
            if "RevisionNotFound" not in error.reason:
                raise
            raise Moved(error) from None

    async def _entries(self, files: Iterable[HubFile], commit: str) -> Sequence[card.Entry]:
        """The configs that the card shows; read again only where it has changed."""
        listed = next((file for file in files if file.path == card.PATH), None)
        if listed is None:
            return ()
        if listed.oid != self._card[0]:
            content = await self._there(self._hub.read, card.PATH, commit)
            self._card = (listed.oid, await anyio.to_thread.run_sync(shown, content or b"", self._hub.target.repo))
        return self._card[1]

    def _selected(self, files: Iterable[HubFile], entries: Sequence[card.Entry]) -> list[HubFile]:
        """The files that hold the wanted rows: those that the card's patterns find, as `datasets` does."""
        found = []
        for file, _, _ in selected(files, entries, self._wanted):
            if file.path.endswith(_SUFFIXES):
                found.append(file)
            else:
                self._tell(f"{plain(file.path)} is of a kind that is not read ({', '.join(_SUFFIXES)} are).")
        return found

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            _log.warning("%s", message)

    async def _file(self, file: HubFile) -> Opened:
        if file.path not in self._held:
            await self._fetch_ahead()
        piece = self.cursor.pieces.get(file.path)
        if piece is None:
            piece = self.cursor.pieces[file.path] = Piece(file.path, short(file.oid))
        return Opened(file.path, self._held.pop(file.path), piece, is_whole=True)

    async def _fetch_ahead(self) -> None:
        """Fetches the next few files at once."""
        wanted: list[HubFile] = []
        for item in self._queue:
            if isinstance(item, HubFile) and item.path not in self._held:
                wanted.append(item)
            if len(wanted) == _AHEAD or sum(file.size for file in wanted) > _AHEAD_BYTES:
                break
        commit = self._commit or ""
        moved: list[Moved] = []

        async def fetch(file: HubFile) -> None:
            try:
                self._held[file.path] = await self._fetch(file, commit)
            except Moved as error:
                moved.append(error)

        async with flat_errors(), anyio.create_task_group() as tasks:
            for file in wanted:
                tasks.start_soon(fetch, file)
        if moved:
            raise moved[0]

    async def _fetch(self, file: HubFile, commit: str) -> IO[bytes]:
        """The file as JSON Lines, whole and with the oid that the Hub lists."""

        async def download() -> IO[bytes]:
            taken = _Taken(file)
            if not await self._hub.download(file.path, commit, taken.take):
                raise TransientError(f"the Hub lists {file.path} and does not give it.")
            return taken.checked()

        stream = await self._there(download)
        if file.path.endswith(".parquet"):
            stream = await anyio.to_thread.run_sync(_lines_of_parquet, stream)
        return stream


class _Taken:
    """A file as it comes."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self._stream: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (handed on)
        self._size = 0
        self._hash = hashlib.sha256() if file.is_large else hashlib.sha1(usedforsecurity=False)
        if not file.is_large:
            self._hash.update(b"blob %d\0" % file.size)

    def take(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._file.size:  # whatever it is, it may never end
            raise TransientError(f"{self._file.path}: what came is larger than what the Hub lists there.")
        self._hash.update(piece)
        self._stream.write(piece)

    def checked(self) -> IO[bytes]:
        if self._hash.hexdigest() != self._file.oid:
            raise TransientError(f"{self._file.path}: what came is not what the Hub lists there.")
        self._stream.seek(0)
        return self._stream


def _lines_of_parquet(stream: IO[bytes]) -> IO[bytes]:
    from pyarrow import parquet

    lines: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (handed on)
    with stream:
        for batch in parquet.ParquetFile(stream).iter_batches():
            lines.write(encode(batch).lines)
    lines.seek(0)
    return lines


def row_of(line: bytes) -> dict[str, object] | str:
    """The row that a line is; or why it is none."""
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return row if isinstance(row, dict) else f"a {type(row).__name__}, not an object"


def marks_in(stream: IO[bytes]) -> list[int]:
    """The fingerprints of all rows of a file."""
    marks = []
    for line in stream:
        if line.strip():
            row = row_of(line)
            marks.append(fingerprint(row) if isinstance(row, dict) else fingerprint_of_bad(line))
    return marks


def shown(content: bytes, repo: str) -> Sequence[card.Entry]:
    """What a dataset's card shows; nothing, and a warning, where it can't be read."""
    try:
        return card.entries(content)
    except card.CardError as error:
        _log.warning("the card of %s can't be read (%s); all files of rows are.", repo, error)
        return ()


def selected(files: Iterable[HubFile], entries: Sequence[card.Entry], wanted: Wanted) -> list[tuple[HubFile, str, str]]:
    """The files of the wanted config and split, with theirs; of each the first that the card shows it in.

    Without a card that shows any, every file of rows that `datasets` would not pass over is of default/train.
    """
    patterns = [(entry.config, entry.split, card.pattern(entry.glob)) for entry in entries]
    found = []
    for file in files:
        hidden = any(part.startswith((".", "__")) for part in file.path.split("/"))
        if patterns:
            place = next(((config, split) for config, split, p in patterns if p.fullmatch(file.path)), None)
        else:
            place = None if hidden or not file.path.endswith(_SUFFIXES) else ("default", "train")
        if place is not None and wanted.has(file.path, *place):
            found.append((file, *place))
    return found


def in_order(path: str) -> list[tuple[int, str]]:
    """So that 99999 stands before 100000."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,17})", path)]
