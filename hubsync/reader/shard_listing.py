"""List the shards of a dataset, with what is known of each: `shards`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from typing import NamedTuple

from hubsync._runtime.clock import Clock, SystemClock
from hubsync.destinations.hub.dataset import Commit, HubFile, parse_description
from hubsync.model.series import series_of
from hubsync.reader.iteration import HubIterator
from hubsync.reader.selection import Selection, path_order, select_files
from hubsync.reader.snapshot import SnapshotReader


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
    return Shards(repo, Selection(config, split), revision, endpoint, token, SystemClock())


class Shards(HubIterator[Shard]):
    """The shards of a dataset, as of the moment when the first one was requested.

    Attributes:
        commit: the sha of the dataset's commit at that moment; None before.
    """

    def __init__(
        self,
        repo: str,
        selection: Selection,
        revision: str,
        endpoint: str | None,
        token: str | None,
        clock: Clock,
    ) -> None:
        """Create the listing; nothing is requested before the first item is."""
        super().__init__(repo, revision, endpoint, token, clock)
        self._selection = selection
        self._found: Iterator[Shard] | None = None
        self.commit: str | None = None

    def _take(self) -> Shard | None:
        return next(self._found, None) if self._found is not None else None

    async def _fetch(self) -> bool:
        if self._found is not None:
            return False
        reader = SnapshotReader(self._open_hub(), self._clock)
        self.commit = await reader.head()
        self._found = iter(await _list(reader, self.commit, self._selection) if self.commit else ())
        return True


async def _list(reader: SnapshotReader, commit: str, selection: Selection) -> Sequence[Shard]:
    snapshot = await reader.snapshot(commit)
    marks = (await reader.watermarks(snapshot)).by_writer
    selected = select_files(snapshot.files.values(), await reader.entries(snapshot), selection)
    series, _ = series_of(marks, [one.file for one in selected])
    numbers: dict[str, tuple[str | None, int | None]] = {}
    for one in series:
        writer = one.writers[0] if len(one.writers) == 1 else None
        numbers |= {file.path: (writer, number) for number, files in one.shards.items() for file in files}
        numbers |= {merged.file.path: (writer, None) for merged in one.merged}
    origins = await read_origins(reader, [one.file for one in selected], commit)
    found = []
    for file, config, split in sorted(selected, key=lambda one: path_order(one.file.path)):
        writer, number = numbers.get(file.path, (None, None))
        rows, added = origins.get(file.path, (None, None))
        sha, time = (added.id, parse_time(added.date)) if added else (None, None)
        found.append(Shard(file.path, rows, file.size, writer, number, sha, time, config, split))
    return found


async def read_origins(
    reader: SnapshotReader, files: Sequence[HubFile], at: str
) -> Mapping[str, tuple[int | None, Commit]]:
    """Return the row count and the commit of each file: from hubsync's commit descriptions, else only the commit."""
    sizes = {file.path: file.size for file in files}
    found: dict[str, tuple[int | None, Commit]] = {}
    async with aclosing(reader.history(at)) as history:
        async for commit in history:
            if len(found) == len(sizes):
                break
            for path, (rows, size) in parse_description(commit.message).items():
                if sizes.get(path) == size and path not in found:
                    found[path] = (rows, commit)
    others = await reader.last_commits([path for path in sizes if path not in found], at)
    return found | {path: (None, commit) for path, commit in others.items()}


def parse_time(text: str) -> datetime | None:
    """Return the time that an ISO 8601 text names; without an offset it is local time. None if it is not one."""
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return None
