"""Download shards, and count and check their rows: `hubsync verify --content`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO

import anyio.to_thread

from hubsync.destinations.hub.dataset import HubFile
from hubsync.encoding import codecs
from hubsync.encoding.rows import decode_row
from hubsync.errors import RateLimitedError, TransientError, one_line
from hubsync.policies import MIB
from hubsync.reader.snapshot import Download, SnapshotReader, run_few_at_once

_MAX_LINE_BYTES = 64 * MIB  # of a line that is parsed: the largest batch of a job with the default queue


@dataclass(frozen=True, slots=True)
class ShardContent:
    """What the Hub sent for a shard.

    Attributes:
        oid: of the kind that the Hub lists for the file.
        bytes: the size of what was received.
        rows: lines, including those that are not rows.
        bad: lines that are not JSON objects.
        first_bad: the number of the first of them, from 1; 0 without any.
        long: lines that are too long to be parsed.
    """

    oid: str
    bytes: int
    rows: int
    bad: int
    first_bad: int
    long: int


async def read_contents(
    reader: SnapshotReader, shards: Sequence[HubFile], commit: str, progress: Callable[[int, int], None]
) -> Mapping[str, ShardContent | str]:
    """Return the contents of shards by path; for one that cannot be read, the reason.

    `progress` is called with the number of shards that were read, and of all.

    Raises:
        HubError: the Hub as a whole cannot be read.
    """
    found: dict[str, ShardContent | str] = {}

    async def read(file: HubFile) -> None:
        found[file.path] = await _read(reader, file, commit)
        progress(len(found), len(shards))

    await run_few_at_once(shards, read)
    return found


async def _read(reader: SnapshotReader, file: HubFile, commit: str) -> ShardContent | str:
    try:
        received = await reader.download(file, commit)
    except RateLimitedError:
        raise
    except TransientError as error:
        await reader.head()  # if the whole Hub is down, the file is not to blame
        return error.reason
    if received is None:
        return "the Hub does not have it"
    return await anyio.to_thread.run_sync(_check, received)


def _check(received: Download) -> ShardContent | str:
    received.stream.seek(0)
    try:
        with contextlib.closing(codecs.open_lines(received.stream, received.file.path)) as lines:
            return ShardContent(received.oid, received.size, *_count_lines(lines))
    except codecs.DamagedShard as error:
        return one_line(f"a file that cannot be decompressed: {error}")


def _count_lines(lines: IO[bytes]) -> tuple[int, int, int, int]:
    rows = bad = first_bad = long = 0
    while line := lines.readline(_MAX_LINE_BYTES + 1):
        rows += 1
        if len(line) > _MAX_LINE_BYTES and not line.endswith(b"\n"):
            long += 1
            while line and not line.endswith(b"\n"):
                line = lines.readline(_MAX_LINE_BYTES)
            continue
        try:
            decode_row(line)
        except ValueError:
            bad += 1
            first_bad = first_bad or rows
    return rows, bad, first_bad, long
