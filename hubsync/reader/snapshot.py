"""What a dataset holds at one commit: its files, the writers' watermarks, the shards of each series, their contents.

Reads patiently (what passes by itself is tried again a few times), a few files at once, and holds one line of each:
never a shard. Judges nothing; `verify.py` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import random
import re
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, TypeVar

import anyio
import anyio.to_thread
import msgspec

from hubsync._runtime.clock import Clock
from hubsync._runtime.retry import Backoff
from hubsync.destinations.hub import card
from hubsync.destinations.hub.dataset import HubDataset, HubFile
from hubsync.encoding import codecs
from hubsync.errors import RateLimitedError, TransientError, one_line
from hubsync.model.commit import Watermark, watermark_path
from hubsync.policies import MIB, RetryPolicy

_log = logging.getLogger("hubsync")
T = TypeVar("T")
S = TypeVar("S")

_TRIES = 6  # of one request; a 429 names its own wait
_IN_MEMORY = 8 * MIB  # bytes of a packed file
_AT_ONCE = 4  # files that are read at once
_LINE_BYTES = 64 * MIB  # of a line that is parsed: the largest batch of a job with the default queue


@dataclass(frozen=True, slots=True)
class Dataset:
    """All files of one commit by path, the watermarks by writer, and what else stands at a watermark's path."""

    files: Mapping[str, HubFile]
    marks: Mapping[str, Watermark]
    unreadable: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Series:
    """One run of sequence numbers: its shards by number, of which there should be one each, all below `next`."""

    name: str
    next: int
    writers: Sequence[str]
    shards: dict[int, list[HubFile]]


@dataclass(frozen=True, slots=True)
class Content:
    """A file as it was read.

    Attributes:
        oid: of the kind that the Hub lists for it.
        bad: lines that are no JSON object; `first_bad` is the number of the first, from 1.
        long: lines too long to be parsed; they count as rows.
    """

    oid: str
    bytes: int
    rows: int
    bad: int
    first_bad: int
    long: int


def series_of(marks: Mapping[str, Watermark], files: Iterable[HubFile]) -> tuple[list[Series], list[HubFile]]:
    """Sorts files into the series that the watermarks name; answers those as well that belong to none."""
    writers: defaultdict[str, list[str]] = defaultdict(list)
    for writer, mark in marks.items():
        for name in mark.next:
            writers[name].append(writer)
    found = [Series(name, max(marks[w].next[name] for w in ws), ws, {}) for name, ws in writers.items()]
    by_prefix: defaultdict[str, list[tuple[Series, re.Pattern[str]]]] = defaultdict(list)
    for one in found:
        by_prefix[one.name.partition("*")[0]].append((one, _pattern(one.name)))
    others: list[HubFile] = []
    for file in files:
        # By what stands before a number: many writers times many files would be too many to try.
        starts = (file.path[:i] for i, char in enumerate(file.path) if "0" <= char <= "9")
        tries = (pair for start in starts for pair in by_prefix.get(start, ()))
        fits = [(one, int(match["n"])) for one, pattern in tries if (match := pattern.fullmatch(file.path))]
        if fits:
            # The paths of two templates may meet ("1*" and "*"): the one that knows the number has it.
            one, number = max(fits, key=lambda fit: (fit[1] < fit[0].next, len(fit[0].name)))
            one.shards.setdefault(number, []).append(file)
        else:
            others.append(file)
    return found, others


def _pattern(series: str) -> re.Pattern[str]:
    """Finds a series' paths, however their numbers are padded; a template may name its number several times."""
    first, *others = map(re.escape, series.split("*"))
    if not others:
        return re.compile(first)
    return re.compile(f"{first}0*(?P<n>0|[1-9][0-9]{{0,17}}){'0*(?P=n)'.join(others)}")


class DatasetSnapshot:
    """One commit of the dataset. Its methods raise a `HubError` where the Hub can't be read after all."""

    def __init__(self, hub: HubDataset, commit: str, clock: Clock) -> None:
        self._hub = hub
        self._commit = commit
        self._clock = clock

    async def dataset(self) -> Dataset:
        files = {file.path: file for file in await self._patiently(partial(self._hub.list_files, self._commit))}
        marks: dict[str, Watermark] = {}
        unreadable: dict[str, str] = {}

        async def read(path: str) -> None:
            content = await self._patiently(partial(self._hub.read_file, path, self._commit))
            try:
                mark = msgspec.json.decode(content or b"", type=Watermark)
            except (ValueError, RecursionError) as error:
                unreadable[path] = f"something else ({error})"
                return
            if path == watermark_path(mark.writer):
                marks[mark.writer] = mark
            else:
                unreadable[path] = f"the watermark of {mark.writer!r}"

        await _a_few_at_once([path for path in files if re.fullmatch(r"\.hubsync/[^/]+\.json", path)], read)
        return Dataset(files, dict(sorted(marks.items())), unreadable)

    async def shown(self, files: Iterable[HubFile]) -> list[HubFile]:
        """Those of `files` that the dataset's card shows as rows; none where it can't be read."""
        content = await self._patiently(partial(self._hub.read_file, card.PATH, self._commit))
        with contextlib.suppress(card.CardError):
            stands = await anyio.to_thread.run_sync(card.Card, content, self._hub.target.repo)
            patterns = [card.glob_pattern(entry.glob) for entry in stands.entries()]
            return [file for file in files if any(pattern.fullmatch(file.path) for pattern in patterns)]
        return []

    async def contents(
        self, shards: Sequence[HubFile], progress: Callable[[int, int], None]
    ) -> Mapping[str, Content | str]:
        """The shards' contents by path; for one that the Hub lists and does not give, why."""
        read: dict[str, Content | str] = {}

        async def content(file: HubFile) -> None:
            read[file.path] = await self._content(file)
            progress(len(read), len(shards))

        await _a_few_at_once(shards, content)
        return read

    async def _content(self, file: HubFile) -> Content | str:
        async def download() -> Content | str:
            lines = _Lines(file)
            with contextlib.suppress(_TooMuch):
                if not await self._hub.download(file.path, self._commit, lines.take):
                    return "the Hub does not have it"
            return await anyio.to_thread.run_sync(lines.content)

        try:
            return await self._patiently(download)
        except RateLimitedError:
            raise
        except TransientError as error:
            await self._hub.head()  # where the whole Hub is gone, that is not this file's fault
            return error.reason

    async def _patiently(self, operation: Callable[[], Awaitable[T]]) -> T:
        return await patiently(operation, self._clock)


async def patiently(operation: Callable[[], Awaitable[T]], clock: Clock, *, for_ever: bool = False) -> T:
    """Does what is safe to repeat, and what passes by itself again, a few times or for ever; says once that it does."""
    retry = RetryPolicy()
    backoff = Backoff(retry.initial_s, retry.max_s, random.Random())
    while True:
        try:
            return await operation()
        except TransientError as error:
            wait = backoff.after_failure(error.retry_after_s)
            if backoff.failures == _TRIES and not for_ever:
                raise
            level = logging.WARNING if backoff.failures == 1 or not for_ever else logging.DEBUG
            _log.log(level, "%s; tried again in %.0f s.", error, wait)
            await clock.sleep(wait)


async def _a_few_at_once(items: Iterable[S], work: Callable[[S], Awaitable[None]]) -> None:
    todo = iter(items)

    async def take() -> None:
        for item in todo:
            await work(item)

    async with anyio.create_task_group() as tasks:
        for _ in range(_AT_ONCE):
            tasks.start_soon(take)


class _TooMuch(Exception):
    pass


class _Object(msgspec.Struct):
    """Any JSON object: what is in it is checked and passed over."""


_decoder = msgspec.json.Decoder(_Object)


class _Lines:
    """Hashes a file as it comes, and looks at each line."""

    def __init__(self, file: HubFile) -> None:
        self._hash = hashlib.sha256() if file.is_large else hashlib.sha1(usedforsecurity=False)
        if not file.is_large:
            self._hash.update(b"blob %d\0" % file.size)
        self._most = file.size
        self._path = file.path
        # What is packed is looked through once it is whole.
        self._packed: IO[bytes] | None = None
        if not file.path.endswith((".jsonl", ".ndjson")):
            self._packed = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  (closed by `content`)
        self._line = bytearray()
        self._line_bytes = self._bytes = self._rows = self._bad = self._first_bad = self._long = 0

    def take(self, piece: bytes) -> None:
        self._hash.update(piece)
        self._bytes += len(piece)
        if self._bytes > self._most:  # whatever it is, it is not the file, and it may never end
            raise _TooMuch
        if self._packed is None:
            self._look_at(piece)
        else:
            self._packed.write(piece)

    def _look_at(self, piece: bytes) -> None:
        first, *others = piece.split(b"\n")
        self._hold(first)
        for part in others:
            self._end_line()
            self._hold(part)

    def _hold(self, part: bytes) -> None:
        self._line_bytes += len(part)
        if self._line_bytes <= _LINE_BYTES:
            self._line += part

    def _end_line(self) -> None:
        self._rows += 1
        if self._line_bytes > _LINE_BYTES:
            self._long += 1
        elif not _is_object(self._line):
            self._bad += 1
            self._first_bad = self._first_bad or self._rows
        self._line = bytearray()
        self._line_bytes = 0

    def content(self) -> Content | str:
        """To be called once, in a thread: what is packed is unpacked now."""
        if self._packed is not None:
            try:
                self._packed.seek(0)
                with contextlib.closing(codecs.open_lines(self._packed, self._path)) as lines:
                    while piece := lines.read(1 << 20):
                        self._look_at(piece)
            except codecs.DamagedShard as error:
                return one_line(f"what can't be unpacked: {error}")
        if self._line_bytes:
            self._end_line()
        return Content(self._hash.hexdigest(), self._bytes, self._rows, self._bad, self._first_bad, self._long)


def _is_object(line: bytearray) -> bool:
    try:
        _decoder.decode(line)
        return line.isascii() or bool(line.decode())  # msgspec does not look into text that it passes over
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
