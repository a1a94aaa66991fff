"""What stands in one commit of a dataset: its files, listed and fetched, its card, its watermarks.

A file comes whole and with the oid that the Hub lists, or not at all; one that is too large for the memory waits on
the disk. Where a commit is gone, because the history was squashed meanwhile, `Moved` is raised.
"""

from __future__ import annotations

import hashlib
import logging
import re
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import IO, NamedTuple, TypeVar

import anyio
import anyio.to_thread

from hubsync._runtime.clock import Clock
from hubsync._runtime.exceptions import unwrapped_hub_errors
from hubsync.destinations.hub import card
from hubsync.destinations.hub.dataset import HubDataset, HubFile
from hubsync.encoding import codecs
from hubsync.encoding.rows import decode_row
from hubsync.errors import RepoMissingError, TransientError
from hubsync.model.commit import Watermark, decode_watermark
from hubsync.reader.cursor import fingerprint, fingerprint_of_bad
from hubsync.reader.snapshot import patiently

_log = logging.getLogger("hubsync")
T = TypeVar("T")

_IN_MEMORY = 8 << 20  # bytes of a file
SUFFIXES = (*codecs.SUFFIXES, ".ndjson")  # of files whose rows are read


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


class Moved(Exception):
    """The commit that was looked at is no longer there: the history was squashed meanwhile."""

    def __init__(self, why: RepoMissingError) -> None:
        self.why = why


class Files:
    """The files of one dataset, in whatever commit is asked for. Fetched ones are held until they are taken."""

    def __init__(self, hub: HubDataset, clock: Clock, *, for_ever: bool) -> None:
        """`for_ever`: what passes by itself is waited out, however long it takes."""
        self.repo = hub.target.repo
        self._hub = hub
        self._clock = clock
        self._for_ever = for_ever
        self._held: dict[tuple[str, str], IO[bytes]] = {}  # by path and oid
        self._marks: dict[str, tuple[str, Watermark | None]] = {}  # by path, with the oid
        self._card: tuple[str, Sequence[card.Entry]] = ("", ())

    async def head(self) -> str | None:
        """The branch's newest commit; None for a branch without any."""
        return (await self._ask(self._hub.head)).sha

    async def listed(self, commit: str, folder: str = "") -> Sequence[HubFile]:
        """Every file of a commit, or below one of its folders."""
        return await self._in_commit(self._hub.list_files, commit, folder)

    async def entries(self, files: Iterable[HubFile], commit: str) -> Sequence[card.Entry]:
        """The configs that the card shows; read again only where it has changed."""
        listed = next((file for file in files if file.path == card.PATH), None)
        if listed is None:
            return ()
        if listed.oid != self._card[0]:
            content = await self._in_commit(self._hub.read_file, card.PATH, commit)
            self._card = (listed.oid, await anyio.to_thread.run_sync(shown, content or b"", self.repo))
        return self._card[1]

    async def watermarks(self, commit: str) -> Mapping[str, Watermark]:
        """By writer; read again only where they have changed. One that can't be read is left out."""
        found: dict[str, tuple[str, Watermark | None]] = {}
        for file in await self.listed(commit, ".hubsync"):
            if not file.path.endswith(".json"):
                continue
            known = self._marks.get(file.path)
            if known is None or known[0] != file.oid:
                content = await self._in_commit(self._hub.read_file, file.path, commit)
                try:
                    known = (file.oid, decode_watermark(content or b"", file.path))
                except ValueError:
                    known = (file.oid, None)
            found[file.path] = known
        self._marks = found
        return {mark.writer: mark for _, mark in found.values() if mark is not None}

    async def marks(self, file: HubFile, commit: str) -> list[int]:
        """The fingerprints of a file's rows. The file is held."""
        await self.hold([file], commit)
        stream = self._held[file.path, file.oid]
        stream.seek(0)
        return await anyio.to_thread.run_sync(marks_in, stream, file.path)

    async def hold(self, files: Sequence[HubFile], commit: str) -> None:
        """Fetches files, all at once."""
        moved: list[Moved] = []

        async def fetch(file: HubFile) -> None:
            try:
                self._held[file.path, file.oid] = await self._fetch(file, commit)
            except Moved as error:
                moved.append(error)

        async with unwrapped_hub_errors(), anyio.create_task_group() as tasks:
            for file in files:
                if not self.holds(file):
                    tasks.start_soon(fetch, file)
        if moved:
            raise moved[0]

    def holds(self, file: HubFile) -> bool:
        return (file.path, file.oid) in self._held

    def take(self, file: HubFile) -> IO[bytes]:
        """A file that is held, as JSON Lines, from its beginning. It is the caller's to close."""
        stream = self._held.pop((file.path, file.oid))
        stream.seek(0)
        return _lines(stream, file.path)

    def drop(self, file: HubFile | None = None) -> None:
        """Lets go of a file that is held, or of all."""
        for key in list(self._held) if file is None else [(file.path, file.oid)]:
            self._held.pop(key).close()

    async def _ask(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await patiently(operation, self._clock, for_ever=self._for_ever)

    async def _in_commit(self, operation: Callable[..., Awaitable[T]], *args: str) -> T:
        try:
            return await self._ask(partial(operation, *args))
        except RepoMissingError as error:
            if error.missing != "revision":
                raise
            raise Moved(error) from None

    async def _fetch(self, file: HubFile, commit: str) -> IO[bytes]:
        async def download() -> IO[bytes]:
            taken = _Taken(file)
            if not await self._hub.download(file.path, commit, taken.take):
                raise TransientError(f"the Hub lists {file.path} and does not give it.")
            return taken.checked()

        stream = await self._in_commit(download)
        if file.path.endswith(".parquet"):  # the only one that is not read from its beginning
            stream = await anyio.to_thread.run_sync(codecs.open_lines, stream, file.path)
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


def _lines(held: IO[bytes], path: str, *, close: bool = True) -> IO[bytes]:
    """The lines of a file as it is held: Parquet as lines already, all else as it came."""
    return held if path.endswith(".parquet") else codecs.open_lines(held, path, close=close)


def marks_in(stream: IO[bytes], path: str) -> list[int]:
    """The fingerprints of all rows of a file, which stays open."""
    marks = []
    for line in _lines(stream, path, close=False):
        if line.strip():
            try:
                marks.append(fingerprint(decode_row(line)))
            except ValueError:
                marks.append(fingerprint_of_bad(line))
    return marks


def shown(content: bytes, repo: str) -> Sequence[card.Entry]:
    """What a dataset's card shows; nothing, and a warning, where it can't be read."""
    try:
        return card.Card(content, repo).entries()
    except card.CardError as error:
        _log.warning("the card of %s can't be read (%s); all files of rows are.", repo, error)
        return ()


def selected(files: Iterable[HubFile], entries: Sequence[card.Entry], wanted: Wanted) -> list[tuple[HubFile, str, str]]:
    """The files of the wanted config and split, with theirs; of each the first that the card shows it in.

    Without a card that shows any, every file of rows that `datasets` would not pass over is of default/train.
    """
    patterns = [(entry.config, entry.split, card.glob_pattern(entry.glob)) for entry in entries]
    found = []
    for file in files:
        hidden = any(part.startswith((".", "__")) for part in file.path.split("/"))
        if patterns:
            place = next(((config, split) for config, split, p in patterns if p.fullmatch(file.path)), None)
        else:
            place = None if hidden or not file.path.endswith(SUFFIXES) else ("default", "train")
        if place is not None and wanted.has(file.path, *place):
            found.append((file, *place))
    return found


def in_order(path: str) -> list[tuple[int, str]]:
    """So that 99999 stands before 100000."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d{1,17})", path)]
