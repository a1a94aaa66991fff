"""Reading a dataset back, and following it while it grows: `shards`, `rows`, `follow`.

    for row in follow("user/rollouts", cursor=kept):
        ...
        kept = …cursor

What these return is iterated by `for` and by `async for`. Each row comes exactly once, and a cursor goes on behind the
last one, also where the history was squashed or the files were compacted in between.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar

import anyio
import anyio.to_thread

from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.secret import Secret
from hubsync.destinations.hub import card
from hubsync.destinations.hub.dataset import Commit, HubDataset, HubFile, parse_description
from hubsync.destinations.resolve import online_destination, target_of
from hubsync.encoding.codecs import DamagedShard
from hubsync.encoding.rows import decode_row
from hubsync.errors import ConfigError, UnreadableRow
from hubsync.model.target import default_directory
from hubsync.policies import RetryPolicy
from hubsync.reader.cursor import Cursor, fingerprint, fingerprint_of_bad
from hubsync.reader.file_stream import FileStream, Opened
from hubsync.reader.files import Files, Wanted, in_order, selected, shown
from hubsync.reader.snapshot import DatasetSnapshot, patiently, series_of

T = TypeVar("T")

Row = dict[str, Any]

_SHA = re.compile(r"[0-9a-f]{40}")
_PATHS = 100  # whose last commit is asked for at once


class Shard(NamedTuple):
    """A file of a dataset that holds rows.

    Attributes:
        path: Its path in the dataset.
        rows: Its number of rows; None if unknown: hubsync did not commit it, or the commit was squashed.
        bytes: Its size on the Hub, in bytes.
        writer: The writer that made it; None if it is not from one writer.
        sequence: Its number among the writer's shards; None if it is not from one writer.
        commit: The sha of the commit that added it.
        time: The time of that commit.
        config: Its config.
        split: Its split.
    """

    path: str
    rows: int | None
    bytes: int
    writer: str | None
    sequence: int | None
    commit: str | None
    time: datetime | None
    config: str
    split: str


def shards(
    repo: str,
    *,
    config: str | None = None,
    split: str | None = None,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
) -> Shards:
    """Return the dataset's shards, in the order of their paths.

    Args:
        repo: The dataset, "namespace/name".
        config: Only shards of this config; None for all.
        split: Only shards of this split; None for all.
        revision: A branch, tag or commit.
        endpoint: The Hub's address; None for HF_ENDPOINT.
        token: None for HF_TOKEN or the token that `hf auth login` stored.

    Raises:
        HubError: While iterating: the Hub cannot be read. Transient errors are retried a few times first.
    """
    return Shards(repo, Wanted(config, split), revision, endpoint, token, SystemClock())


def rows(
    repo: str,
    *,
    since: str | datetime | None = None,
    config: str | None = None,
    split: str | None = None,
    paths: Collection[str] | None = None,
    spool: str | Path | bool = False,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
    clock: Clock | None = None,
) -> Rows:
    """Return the dataset's rows lazily, fetching a few shards at a time.

    Args:
        repo: The dataset, "namespace/name".
        since: Only rows after this: a `Rows.cursor`, a commit's sha, or a time (a datetime, or ISO 8601 text).
        config: Only rows of this config; None for all.
        split: Only rows of this split; None for all.
        paths: Only rows of these shards, as `shards` names them.
        spool: Also read uncommitted rows, from this machine's spool of the repo (True) or from a directory. They come
            first, and are not repeated when they are committed.
        revision: A branch, tag or commit.
        endpoint: The Hub's address; None for HF_ENDPOINT.
        token: None for HF_TOKEN or the token that `hf auth login` stored.
        clock: The source of time, for tests.

    Raises:
        HubError: While iterating: the Hub cannot be read. Transient errors are retried a few times first.
        UnreadableRow: While iterating: a line is not a row. Continue iterating to skip it.
        DatasetRewritten: While iterating: files were rewritten so that the reader cannot tell which rows are new.
    """
    wanted = Wanted(config, split, None if paths is None else frozenset(paths))
    return Rows(repo, wanted, since, spool, revision, endpoint, token, clock or SystemClock(), poll_s=None)


def follow(
    repo: str,
    cursor: str | datetime | None = None,
    *,
    poll_s: float = 10.0,
    config: str | None = None,
    split: str | None = None,
    spool: str | Path | bool = False,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
    clock: Clock | None = None,
) -> Rows:
    """Return the dataset's rows, and then each new row as it arrives, forever.

    Args:
        repo: The dataset, "namespace/name".
        cursor: Like `since` of `rows`; None for the beginning.
        poll_s: Seconds between two polls. A poll costs one request, and one more per 1,000 files if there is something
            new, so a large dataset is polled less often.
        config: Only rows of this config; None for all.
        split: Only rows of this split; None for all.
        spool: Like `spool` of `rows`.
        revision: A branch.
        endpoint: The Hub's address; None for HF_ENDPOINT.
        token: None for HF_TOKEN or the token that `hf auth login` stored.
        clock: The source of time, for tests.

    Raises:
        ConfigError: `poll_s` is not positive.
        HubError: While iterating: the Hub cannot be read, and an operator must act. Transient errors are retried
            forever.
        UnreadableRow: While iterating: a line is not a row. Continue iterating to skip it.
        DatasetRewritten: While iterating: files were rewritten so that the reader cannot tell which rows are new.
    """
    if not poll_s > 0:
        raise ConfigError(f"poll_s is seconds above 0, not {poll_s!r}.")
    wanted = Wanted(config, split)
    return Rows(repo, wanted, cursor, spool, revision, endpoint, token, clock or SystemClock(), poll_s=poll_s)


class _Iterated(Generic[T]):
    """What is iterated by `for` and by `async for`. Ended or closed, it lets go of its connections."""

    _driver: _Driver | None = None
    _hub: HubDataset | None = None

    def __init__(self, repo: str, revision: str, endpoint: str | None, token: str | None, clock: Clock) -> None:
        self._target = target_of(repo, endpoint, revision)
        self._secret = None if token is None else Secret(token)
        del token  # a crash report of what is raised below would show it
        self._clock = clock

    def _take(self) -> T | None:
        """The next item of what is here."""
        raise NotImplementedError

    async def _more(self) -> bool:
        """Fetches more; False where there is no more."""
        raise NotImplementedError

    def _open_hub(self) -> HubDataset:
        if self._hub is None:
            self._hub = online_destination(self._target, self._secret, RetryPolicy())
        return self._hub

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        while (item := self._take()) is None:
            if self._driver is None:
                self._driver = _Driver()
            if not self._driver.run(self._more):
                self.close()
                raise StopIteration
        return item

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        while (item := self._take()) is None:
            if not await self._more():
                await self.aclose()
                raise StopAsyncIteration
        return item

    def close(self) -> None:
        """Close the connections, after `for`. A second call does nothing."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.run(self.aclose)
            driver.close()

    async def aclose(self) -> None:
        """Close the connections, after `async for`. A second call does nothing."""
        hub, self._hub = self._hub, None
        if hub is not None:
            with anyio.CancelScope(shield=True):
                await hub.aclose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if self._driver is not None:
            with suppress(Exception):  # the interpreter may be ending, and its sockets end with it
                self._driver.close()


class Rows(_Iterated[Row]):
    """Rows of a dataset, each once. Iterate with `for` or `async for`.

    Attributes:
        line: The JSON of the row that came last, in bytes.
    """

    def __init__(
        self,
        repo: str,
        wanted: Wanted,
        since: str | datetime | None,
        spool: str | Path | bool,
        revision: str,
        endpoint: str | None,
        token: str | None,
        clock: Clock,
        *,
        poll_s: float | None,
    ) -> None:
        super().__init__(repo, revision, endpoint, token, clock)
        self.line = b""
        self._since = since.isoformat() if isinstance(since, datetime) else since
        # What is no cursor is found on the Hub, once it is iterated.
        self._start = None if self._since is None else _time_or_sha(self._since)
        known = self._since is not None and self._start is None
        self._cursor = Cursor.decode(self._since or "", repo) if known else Cursor(repo)
        self._wanted = wanted
        if spool is True:
            usual = default_directory(self._target)
            self._spool: Path | None = usual if (usual / "catalogue.sqlite").exists() else None
        else:
            self._spool = Path(spool).expanduser().absolute() if spool else None
        self._poll_s = poll_s
        self._feed: FileStream | None = None
        self._turns: list[Callable[[], Awaitable[None]]] = []
        self._opened: Opened | None = None
        self._number = self._skip = 0

    @property
    def cursor(self) -> str:
        """The position after the row that came last, as text; about 20 bytes per shard."""
        if self._feed is None and self._since is not None:
            return self._since
        return self._cursor.encode()

    def _take(self) -> Row | None:
        opened = self._opened
        if opened is None:
            return None
        while line := self._line_of(opened):
            self._number += 1
            if not line.strip():
                continue
            if self._skip:
                self._skip -= 1
                continue
            row, why = None, ""
            try:
                row = decode_row(line)
                mark = fingerprint(row)
            except ValueError as error:
                mark, why = fingerprint_of_bad(line), str(error)
            opened.piece.add(mark)
            if self._cursor.again and self._cursor.passes(mark):
                continue
            if row is None:
                raise UnreadableRow(opened.path, self._number, why)
            self.line = line
            return row
        opened.piece.whole = opened.piece.whole or opened.is_whole
        opened.stream.close()
        self._opened = None
        return None

    def _line_of(self, opened: Opened) -> bytes:
        try:
            return opened.stream.readline()
        except DamagedShard as error:
            self._opened = None
            opened.piece.whole = opened.piece.whole or opened.is_whole
            opened.stream.close()
            raise UnreadableRow(opened.path, self._number + 1, f"the rest of the file is damaged: {error}") from None

    async def _more(self) -> bool:
        feed = self._feed or await self._begin()
        while True:
            self._opened = await feed.open_next()
            if self._opened is not None:
                self._number, self._skip = 0, self._opened.piece.rows
                return True
            if not self._turns:
                if self._poll_s is None:
                    return False
                await self._clock.sleep(max(self._poll_s, feed.rest_s))
                self._turns = [feed.look_at_hub, feed.look_at_spool]
            await self._turns.pop()()

    async def _begin(self) -> FileStream:
        hub = self._open_hub()
        files = Files(hub, self._clock, for_ever=self._poll_s is not None)
        feed = FileStream(self._target, files, self._cursor, self._wanted, spool=self._spool, clock=self._clock)
        if isinstance(self._start, str):
            await feed.begin_at(self._start)
        elif self._start is not None:
            commit = await _commit_before(hub, self._start, self._clock)
            if commit is not None:
                await feed.begin_at(commit)
        self._turns = [feed.look_at_hub, feed.look_at_spool]
        self._feed = feed
        return feed

    async def aclose(self) -> None:
        """Close the connections, after `async for`. A second call does nothing; `cursor` stays readable."""
        if self._opened is not None:
            self._opened.stream.close()
            self._opened = None
        if self._feed is not None:
            self._feed.close()
        await super().aclose()


class Shards(_Iterated[Shard]):
    """The shards of a dataset at one commit. Iterate with `for` or `async for`.

    Attributes:
        commit: The commit, read when the iteration starts; None before that, and for an empty repo.
    """

    def __init__(
        self,
        repo: str,
        wanted: Wanted,
        revision: str,
        endpoint: str | None,
        token: str | None,
        clock: Clock,
    ) -> None:
        super().__init__(repo, revision, endpoint, token, clock)
        self._wanted = wanted
        self._found: Iterator[Shard] | None = None
        self.commit: str | None = None  # where they stand

    def _take(self) -> Shard | None:
        return next(self._found, None) if self._found is not None else None

    async def _more(self) -> bool:
        if self._found is not None:
            return False
        hub = self._open_hub()
        self.commit = (await patiently(hub.head, self._clock)).sha
        self._found = iter(await _survey(hub, self.commit, self._wanted, self._clock) if self.commit else ())
        return True


async def _survey(hub: HubDataset, commit: str, wanted: Wanted, clock: Clock) -> Sequence[Shard]:
    dataset = await DatasetSnapshot(hub, commit, clock).dataset()
    content = await patiently(partial(hub.read_file, card.PATH, commit), clock)
    entries = await anyio.to_thread.run_sync(shown, content, hub.target.repo) if content is not None else ()
    chosen = selected(dataset.files.values(), entries, wanted)
    series, _ = series_of(dataset.marks, [file for file, _, _ in chosen])
    numbers = {
        file.path: (one.writers[0] if len(one.writers) == 1 else None, number)
        for one in series
        for number, files in one.shards.items()
        for file in files
    }
    told = await _told(hub, [file for file, _, _ in chosen], commit, clock)
    found = []
    for file, config, split in sorted(chosen, key=lambda item: in_order(item[0].path)):
        writer, number = numbers.get(file.path, (None, None))
        rows, last = told.get(file.path, (None, None))
        at = _time_of(last.date) if last else None
        found.append(
            Shard(file.path, rows, file.size, writer, number, last.id if last else None, at, config, split)
        )  # fmt: skip
    return found


async def _told(
    hub: HubDataset, files: Sequence[HubFile], at: str, clock: Clock
) -> dict[str, tuple[int | None, Commit]]:
    """The rows and the commit of each file: as hubsync's own commits tell, and for the rest as the Hub does."""
    wanted = {file.path: file.size for file in files}
    told: dict[str, tuple[int | None, Commit]] = {}
    page, more = 0, True
    while more and len(told) < len(wanted):
        commits, more = await patiently(partial(hub.list_commits, at, page), clock)
        page += 1
        for commit in commits:
            for path, (rows, size) in parse_description(commit.message).items():
                if wanted.get(path) == size and path not in told:
                    told[path] = (rows, commit)
    rest = [path for path in wanted if path not in told]
    for start in range(0, len(rest), _PATHS):
        last = await patiently(partial(hub.last_commits, rest[start : start + _PATHS], at), clock)
        told |= {path: (None, commit) for path, commit in last.items()}
    return told


async def _commit_before(hub: HubDataset, time: datetime, clock: Clock) -> str | None:
    """The newest commit that is not younger than `time`; None where all are, so far as the history goes back."""
    head = (await patiently(hub.head, clock)).sha
    page, more = 0, head is not None
    while more and head is not None:
        commits, more = await patiently(partial(hub.list_commits, head, page), clock)
        page += 1
        for commit in commits:
            at = _time_of(commit.date)
            if at is not None and at <= time:
                return commit.id
    return None


def _time_or_sha(since: str) -> datetime | str | None:
    """What `since` stands for, where it is no cursor."""
    if _SHA.fullmatch(since):
        return since
    return _time_of(since)


def _time_of(text: str) -> datetime | None:
    """ISO 8601; without an offset it is this machine's time."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return None


class _Driver:
    """Runs one coroutine after another in an event loop of its own; where one runs already in this thread, as in a
    notebook, in another thread. Between two of them nothing runs, so there is nothing to wait for at a process' end.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner()
        self._thread: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return self._beside(lambda: self._runner.run(work()))

    def close(self) -> None:
        self._beside(self._runner.close)
        if self._thread is not None:
            self._thread.shutdown()

    def _beside(self, work: Callable[[], T]) -> T:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return work()
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "hubsync reader")
        return self._thread.submit(work).result()
