"""Read a dataset at any of its commits: files, card, watermarks, history and contents.

Requests are retried. A download is complete and has the oid that the Hub lists, or it fails; large ones are held on
disk. If a commit no longer exists because the history was squashed, `CommitGone` is raised.
"""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import anyio
import anyio.to_thread

from hubsync._runtime.clock import Clock
from hubsync._runtime.exceptions import unwrapped_hub_errors
from hubsync._runtime.retry import Backoff, retry_transient
from hubsync.destinations.hub import card
from hubsync.destinations.hub.dataset import Commit, HubDataset, HubFile
from hubsync.encoding import codecs
from hubsync.errors import DefectError, RepoMissingError, StaleParentError, TransientError
from hubsync.model.commit import Watermark
from hubsync.model.hashing import oid_hash
from hubsync.model.watermarks import RemoteWatermarks, is_watermark
from hubsync.policies import MIB, RetryPolicy
from hubsync.reader.cursor import parse_line
from hubsync.reader.selection import CardContent, card_content

T = TypeVar("T")
S = TypeVar("S")

_log = logging.getLogger("hubsync")

_LOG_INTERVAL_S = 60.0  # between two lines while the dataset does not exist
_MAX_TRIES = 6  # of one request; a 429 names its own wait
_MAX_PATHS = 100  # in one request for the last commits of files
_MEMORY_BYTES = 8 * MIB  # of a downloaded file; a larger one is held on disk
_CONCURRENCY = 4  # files that are read at once


class CommitGone(RepoMissingError):
    """The commit no longer exists: the history was squashed."""


class Snapshot(NamedTuple):
    """One commit of a dataset, with its files by path."""

    commit: str
    files: Mapping[str, HubFile]


class Download:
    """A file as it was received."""

    def __init__(self, file: HubFile) -> None:
        self.file = file
        self.stream: IO[bytes] = tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES)  # noqa: SIM115  (handed on)
        self.size = 0
        self._hash = oid_hash(file.oid, file.size)

    def write(self, piece: bytes) -> None:
        """Append a piece. Raises `_TooLarge` beyond the listed size: such a response may never end."""
        self.size += len(piece)
        self._hash.update(piece)
        self.stream.write(piece)
        if self.size > self.file.size:
            raise _TooLarge

    def save(self, path: Path) -> None:
        """Write what was received to a file, and let go of it."""
        self.stream.seek(0)
        with self.stream, path.open("wb") as file:
            shutil.copyfileobj(self.stream, file, MIB)

    @property
    def oid(self) -> str:
        """Return the oid of what was received, of the kind that the Hub lists for the file."""
        return self._hash.hexdigest()

    @property
    def is_as_listed(self) -> bool:
        """Return whether it is the file that the Hub lists."""
        return (self.size, self.oid) == (self.file.size, self.file.oid)


class SnapshotReader:
    """Reads one dataset at any of its commits; what was read is cached by oid.

    All methods raise `HubError` if the Hub cannot be read after several tries, or only if an operator must act when
    `retry_forever`; and `CommitGone` if the commit no longer exists.
    """

    def __init__(self, hub: HubDataset, clock: Clock, *, retry_forever: bool = False, must_exist: bool = True) -> None:
        self.repo = hub.target.repo
        self._hub = hub
        self._clock = clock
        self._max_tries = None if retry_forever else _MAX_TRIES
        self._must_exist = must_exist
        self._logged_at: float | None = None
        self._held: dict[HubFile, IO[bytes]] = {}
        self._watermarks: dict[HubFile, list[Watermark] | str] = {}
        self._card: tuple[HubFile | None, CardContent] = (None, CardContent())

    async def head(self) -> str | None:
        """Return the newest commit of the branch; None if it has no commits or, unless it must, does not exist yet."""
        try:
            tip = await self.retry(self._hub.head)
        except RepoMissingError as error:
            if self._must_exist:
                raise
            if self._logged_at is None or self._clock.time() - self._logged_at >= _LOG_INTERVAL_S:
                self._logged_at = self._clock.time()
                _log.warning("Waiting until %s exists (%s).", self.repo, error)
            return None
        self._must_exist = True  # from now on, its absence means that it was deleted
        return tip.sha

    async def snapshot(self, commit: str) -> Snapshot:
        """Return a commit with its files."""
        files = await self._at_commit(self._hub.list_files, commit)
        return Snapshot(commit, {file.path: file for file in files})

    async def entries(self, snapshot: Snapshot) -> Sequence[card.Entry]:
        """Return the configs and splits that the card shows; none if there is no readable card."""
        return (await self.card(snapshot)).entries

    async def card(self, snapshot: Snapshot) -> CardContent:
        """Return what the card says; nothing if there is no readable card."""
        listed = snapshot.files.get(card.PATH)
        if listed != self._card[0]:
            content: bytes | None = None
            if listed is not None:
                with contextlib.suppress(DefectError):  # too large for a card
                    content = await self._at_commit(self._hub.read_file, card.PATH, snapshot.commit)
            nothing = CardContent()
            parsed = await anyio.to_thread.run_sync(card_content, content, self.repo) if content else nothing
            self._card = (listed, parsed)
        return self._card[1]

    async def watermarks(self, snapshot: Snapshot) -> RemoteWatermarks:
        """Return the writers' watermarks."""
        files = [file for path, file in snapshot.files.items() if is_watermark(path)]
        known = {file: self._watermarks[file] for file in files if file in self._watermarks}

        async def read(file: HubFile) -> None:
            known[file] = await self._at_commit(partial(self._hub.read_watermark_file, file), snapshot.commit)

        await run_few_at_once([file for file in files if file not in known], read)
        self._watermarks = known
        return RemoteWatermarks.of({file.path: marks for file, marks in known.items()})

    async def history(self, commit: str) -> AsyncGenerator[Commit]:
        """Yield `commit` and those before it, the newest first."""
        page, more = 0, True
        while more:
            commits, more = await self.retry(partial(self._hub.list_commits, commit, page))
            page += 1
            for one in commits:
                yield one

    async def last_commits(self, paths: Sequence[str], commit: str) -> Mapping[str, Commit]:
        """Return the commit that last changed each of `paths`, as far as the Hub tells."""
        found: dict[str, Commit] = {}
        for start in range(0, len(paths), _MAX_PATHS):
            some = paths[start : start + _MAX_PATHS]
            found |= await self.retry(partial(self._hub.last_commits, some, commit))
        return found

    async def download(self, file: HubFile, commit: str) -> Download | None:
        """Return what the Hub sends for a file, which may not be what it lists; None if it sends nothing."""

        async def attempt(path: str, at: str) -> Download | None:
            received = Download(file)
            with contextlib.suppress(_TooLarge):
                if not await self._hub.download(path, at, received.write):
                    return None
            return received

        return await self._at_commit(attempt, file.path, commit)

    # Files that are fetched ahead, and held until they are taken.

    async def fetch(self, files: Sequence[HubFile], commit: str) -> None:
        """Download files concurrently and hold them."""

        async def fetch(file: HubFile) -> None:
            self._held[file] = await self._at_commit(partial(self._verified, file), commit)

        async with unwrapped_hub_errors(), anyio.create_task_group() as tasks:
            for file in files:
                if file not in self._held:
                    tasks.start_soon(fetch, file)

    async def _verified(self, file: HubFile, commit: str) -> IO[bytes]:
        received = Download(file)
        with contextlib.suppress(_TooLarge):
            if not await self._hub.download(file.path, commit, received.write):
                raise TransientError(f"The Hub lists {file.path} and does not send it.")
        if not received.is_as_listed:
            raise TransientError(f"{file.path}: the Hub sent something else than it lists.")
        received.stream.seek(0)
        if file.path.endswith(".parquet"):  # the only format that is not read from its beginning
            return await anyio.to_thread.run_sync(codecs.open_lines, received.stream, file.path)
        return received.stream

    async def fingerprints(self, file: HubFile, commit: str) -> list[int]:
        """Return the fingerprints of a file's rows; the file is held."""
        await self.fetch([file], commit)
        stream = self._held[file]
        stream.seek(0)
        return await anyio.to_thread.run_sync(_fingerprints, _lines(stream, file.path, close=False))

    def holds(self, file: HubFile) -> bool:
        """Return whether a file is held."""
        return file in self._held

    def take(self, file: HubFile) -> IO[bytes]:
        """Return a held file as JSON Lines, from its beginning. The caller closes it."""
        stream = self._held.pop(file)
        stream.seek(0)
        return _lines(stream, file.path)

    def drop(self, *files: HubFile) -> None:
        """Let go of held files; of all if none is named."""
        for file in files or tuple(self._held):
            self._held.pop(file).close()

    async def retry(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Return what an idempotent operation returns, repeating it after transient errors."""
        policy = RetryPolicy()
        backoff = Backoff(policy.initial_s, policy.max_s, random.Random())
        return await retry_transient(operation, backoff, self._clock, max_tries=self._max_tries)

    async def _at_commit(self, operation: Callable[..., Awaitable[T]], *args: str) -> T:
        async def attempt() -> T:
            try:
                return await operation(*args)
            except StaleParentError as error:  # it is transient for a committer, but a gone commit never comes back
                raise CommitGone(error.reason, status=error.status, missing="revision") from None
            except RepoMissingError as error:
                if error.missing != "revision":
                    raise
                raise CommitGone(error.reason, status=error.status, missing="revision") from None

        return await self.retry(attempt)


class _TooLarge(Exception):
    pass


def _lines(held: IO[bytes], path: str, *, close: bool = True) -> IO[bytes]:
    """Return the lines of a held file: Parquet is held as lines, everything else as received."""
    return held if path.endswith(".parquet") else codecs.open_lines(held, path, close=close)


def _fingerprints(lines: IO[bytes]) -> list[int]:
    return [parse_line(line).fingerprint for line in lines if line.strip()]


async def run_few_at_once(items: Iterable[S], work: Callable[[S], Awaitable[None]]) -> None:
    """Run `work` for each item, a few at a time."""
    remaining = iter(items)

    async def take() -> None:
        for item in remaining:
            await work(item)

    async with unwrapped_hub_errors(), anyio.create_task_group() as tasks:
        for _ in range(_CONCURRENCY):
            tasks.start_soon(take)
