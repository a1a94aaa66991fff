"""Verify that a dataset holds what hubsync committed, completely and once: `hubsync verify`.

Compares the files of one commit with the writers' watermarks and with a spool's catalogue. Nothing is changed. Jobs may
keep writing: what the catalogue calls committed is read before the head of the branch, so it must be in that commit;
what explains a gap is read after it. Explained oddities become notes, everything else a difference.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import anyio

from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.formatting import count_text
from hubsync._runtime.paths import absolute
from hubsync._runtime.secret import Secret
from hubsync.destinations.hub.dataset import HubDataset, HubFile
from hubsync.destinations.resolve import open_hub, target_of, token_source
from hubsync.encoding.codecs import SUFFIXES
from hubsync.errors import BlockedError
from hubsync.maintenance.shard_content import ShardContent, read_contents
from hubsync.model.commit import Watermark, watermark_path
from hubsync.model.layout import part_of
from hubsync.model.series import Series, series_of
from hubsync.model.target import Target
from hubsync.model.watermarks import RemoteWatermarks
from hubsync.reader.selection import Selection, select_files
from hubsync.reader.shard_listing import read_origins
from hubsync.reader.snapshot import Snapshot, SnapshotReader
from hubsync.spool.opening import existing_default_spool, open_existing
from hubsync.spool.segments import SegmentState
from hubsync.spool.spool import Spool

Kind = Literal["missing", "size", "oid", "watermark", "gap", "beyond", "repeat", "content", "rows"]

# Default paths name the writer, which shows when its watermark is gone. A date (20261231) is no writer.
_DEFAULT_NAME = re.compile(r"(?:.*[/-])?(?!(?:19|20)[0-9]{6})([0-9a-f]{8})-[0-9]+\.(?:jsonl(?:\.gz|\.zst)?|parquet)")
_RESTORE = "Restore it from the dataset's history; otherwise a job with a new spool repeats rows or numbers."
_DELETE_COPY = "Delete the copy, unless somebody put it there on purpose."
_MAX_NUMBERS = 10  # that a note lists


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be.

    Attributes:
        kind: "missing", "size" and "oid" compare a shard in the catalogue with the Hub's; "watermark" is one that is
            gone, unreadable or too low; "gap", "beyond" and "repeat" are numbers of a series that are missing, above
            its watermark, or there twice; "content" and "rows" are found by reading the shards.
        path: the path of the shard or watermark, or a series with `*` for the number.
        expected: what should be there.
        found: the actual state.
        hint: the likely cause, and what to do.
    """

    kind: Kind
    path: str
    expected: str
    found: str
    hint: str


Finding = Difference | str  # a note is text


@dataclass(frozen=True, slots=True)
class Report:
    """What was compared, and the result.

    Attributes:
        repo: the dataset.
        revision: its branch.
        commit: the commit at which everything was read.
        spool: the spool that was compared; None if the dataset was only checked for consistency.
        writers: the number of watermarks.
        shards: the number of files in writers' series.
        rows: the rows of these files: counted if the content was read; by the watermarks if nothing differs; else by
            the spool's catalogue and the commits' descriptions, or None if these do not tell.
        marked_rows: the rows that were committed, by the watermarks.
        bytes: the size of these files.
        content: whether every shard was downloaded and checked.
        differences: what is wrong.
        notes: what looks odd and is explained.
    """

    repo: str
    revision: str
    commit: str
    spool: str | None
    writers: int
    shards: int
    rows: int | None
    marked_rows: int
    bytes: int
    content: bool
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Return whether there are no differences."""
        return not self.differences


def default_spool(repo: str, *, revision: str = "main", endpoint: str | None = None) -> Path | None:
    """Return the spool that uploaders of `repo` use by default; None if it does not exist on this machine."""
    return existing_default_spool(target_of(repo, endpoint, revision))


def verify(
    repo: str,
    *,
    spool: str | Path | None = None,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
    content: bool = False,
    progress: Callable[[int, int], None] = lambda read, shards: None,
    clock: Clock | None = None,
) -> Report:
    """Check a dataset for consistency, and compare it with a spool.

    Args:
        repo: the dataset, such as "user/rollouts".
        spool: the spool to compare with; None for none.
        revision: the branch.
        endpoint: the Hub; by default HF_ENDPOINT, else huggingface.co.
        token: by default that of HF_TOKEN or `hf auth login`.
        content: download every shard, check its bytes and count its rows.
        progress: called with the number of shards that were downloaded, and of all.
        clock: waits between retries; for tests.

    Raises:
        ConfigError: the repo id, endpoint or revision is invalid.
        SpoolError: the spool does not exist, or belongs to another repo (`SpoolMismatch`).
        HubError: the Hub cannot be read after several tries.
    """
    secret = None if token is None else Secret(token)
    del token  # a crash report of an error raised below would show it
    target = target_of(repo, endpoint, revision)
    directory = absolute(spool, "spool") if spool is not None else None
    return anyio.run(_verify, target, directory, secret, content, progress, clock or SystemClock())


async def _verify(
    target: Target,
    directory: Path | None,
    token: Secret | None,
    content: bool,
    progress: Callable[[int, int], None],
    clock: Clock,
) -> Report:
    async with open_hub(target, token) as hub:
        reader = SnapshotReader(hub, clock)
        commit, before, after = await _head(hub, directory, token, clock)
        snapshot = await reader.snapshot(commit)
        found = await reader.watermarks(snapshot)
        # If a watermark is gone, the spool's copy tells which files belong to its writer.
        marks = {**before.marks, **found.by_writer}
        series, others = series_of(marks, snapshot.files.values())
        shards = [file for one in series for file in one.files]
        entries = await reader.entries(snapshot)
        strangers = [one.file for one in select_files(others, entries, Selection())] if entries else []
        contents = await read_contents(reader, shards, snapshot.commit, progress) if content else {}
        findings: list[Finding] = [
            *_committed(before, snapshot, series),
            *_watermarks(before, found),
            *_unmarked(snapshot, found, others, alone=directory is None),
            *_strangers(strangers, shards),
            *_numbers(series, before, after),
            *_repeats(series, after),
            *_contents(shards, contents, after),
            *(_rows(series, marks, contents) if content else ()),
        ]
        marked = sum(mark.rows for mark in found.by_writer.values())
        rows: int | None = marked
        if content:
            rows = sum(read.rows for read in contents.values() if isinstance(read, ShardContent))
        elif any(isinstance(finding, Difference) for finding in findings):
            rows = await _count_rows(reader, shards, snapshot.commit, after)
    return Report(
        repo=target.repo,
        revision=target.revision,
        commit=snapshot.commit,
        spool=str(directory) if directory is not None else None,
        writers=len(found.by_writer),
        shards=len(shards),
        rows=rows,
        marked_rows=marked,
        bytes=sum(file.size for file in shards),
        content=content,
        differences=tuple(finding for finding in findings if isinstance(finding, Difference)),
        notes=tuple(finding for finding in findings if isinstance(finding, str)),
    )


async def _count_rows(reader: SnapshotReader, shards: Sequence[HubFile], commit: str, after: _Known) -> int | None:
    """Return the rows of shards without reading them; None if it is unknown how many one of them has."""
    known = {file.path: s.rows for file in shards if (s := after.segments.get(file.path)) is not None and s.is_in(file)}
    others = [file for file in shards if file.path not in known]
    origins = await read_origins(reader, others, commit) if others else {}
    counts = [*known.values(), *(origins[file.path][0] if file.path in origins else None for file in others)]
    return None if None in counts else sum(count or 0 for count in counts)


# What the spool knows.


class _Segment(NamedTuple):
    path: str
    series: str
    seq: int
    state: SegmentState
    bytes: int
    rows: int
    sha256: str | None
    git_oid: str | None
    sha: str | None
    error: str | None

    def is_in(self, file: HubFile) -> bool:
        return file.oid == (self.sha256 if file.is_large else self.git_oid)


@dataclass(frozen=True, slots=True)
class _Known:
    """The catalogue at one moment.

    Attributes:
        segments: those with a path, by path, except for those that were committed long ago.
        marks: the watermarks that were committed last.
        expired: series of segments that were committed long ago, with the numbers below which they are.
    """

    segments: Mapping[str, _Segment] = field(default_factory=dict)
    marks: Mapping[str, Watermark] = field(default_factory=dict)
    expired: Mapping[str, int] = field(default_factory=dict)

    def has(self, file: HubFile, series: str, number: int) -> bool:
        """Return whether the spool committed this file at its path."""
        segment = self.segments.get(file.path)
        return number < self.expired.get(series, 0) if segment is None else segment.is_in(file)


async def _head(
    hub: HubDataset, directory: Path | None, token: Secret | None, clock: Clock
) -> tuple[str, _Known, _Known]:
    """Return the newest commit, and what the spool knew before and after the Hub was asked for it."""
    spool = open_existing(hub.target, directory, clock) if directory is not None else None
    try:
        before = _known(spool)
        commit = (await hub.head()).sha or ""
        return commit, before, _known(spool)
    except BlockedError as error:
        if not token_source(token)():
            error.add_note("No token was sent: all but public datasets need one (hf auth login, or set HF_TOKEN).")
        raise
    finally:
        if spool is not None:
            spool.close()


def _known(spool: Spool | None) -> _Known:
    if spool is None:
        return _Known()
    # Not in one transaction, which a job would wait for: what is committed stays committed.
    marks = spool.writers.committed_watermarks()
    sealed = [_Segment(*(getattr(row, name) for name in _Segment._fields)) for row in spool.segments.with_path()]
    return _Known({segment.path: segment for segment in sealed}, marks, spool.segments.expired_numbers())


# What differs.


def _committed(before: _Known, snapshot: Snapshot, series: Sequence[Series[HubFile]]) -> Iterator[Finding]:
    """Compare what the spool has committed with the files."""
    by_name = {one.name: one for one in series}
    for segment in before.segments.values():
        one = by_name.get(segment.series)
        is_merged = segment.path not in snapshot.files and one is not None and one.merged_with(segment.seq)
        if segment.state != "committed" or is_merged:
            continue
        file, path = snapshot.files.get(segment.path), segment.path
        hint = f"The shard is in commit {segment.sha}: download it from that revision and put it back at its path."
        if file is None:
            was = f"{count_text(segment.rows, 'row')}, {segment.bytes:,} bytes, committed with {segment.sha}"
            yield Difference("missing", path, was, "nothing", hint)
        elif file.size != segment.bytes:
            yield Difference("size", path, f"{segment.bytes:,} bytes", f"{file.size:,} bytes", hint)
        elif not segment.is_in(file):
            oid = segment.sha256 if file.is_large else segment.git_oid
            yield Difference("oid", path, f"{oid}", file.oid, hint)
        if segment.error is not None:
            yield f"{path}: {segment.error}"


def _watermarks(before: _Known, found: RemoteWatermarks) -> Iterator[Finding]:
    """Compare the watermarks with the spool's own."""
    for path, problem in found.unreadable.items():
        yield Difference("watermark", path, "the watermark of its writer", f"an unusable file ({problem})", _RESTORE)
    for writer, mark in before.marks.items():
        path = watermark_path(writer)
        expected, there = _lower(mark, found.by_writer.get(writer))
        if expected and path not in found.unreadable:
            yield Difference("watermark", path, f"at least {expected}", there, _RESTORE)


def _lower(mark: Watermark, there: Watermark | None) -> tuple[str, str]:
    """Return what the spool's watermark has and the dataset's does not reach, and what that has; empty if nothing."""
    if there is None:
        return count_text(mark.rows, "row"), "nothing"
    pairs = [("rows", mark.rows, there.rows)]
    pairs += [(f"next of {name}", number, there.next.get(name, 0)) for name, number in mark.next.items()]
    pairs += [(f"offset of {name}", number, there.offsets.get(name, -1)) for name, number in mark.offsets.items()]
    low = [pair for pair in pairs if pair[2] < pair[1]]
    return ", ".join(f"{what} {n}" for what, n, _ in low), ", ".join(f"{what} {n}" for what, _, n in low)


def _unmarked(
    snapshot: Snapshot, found: RemoteWatermarks, others: Sequence[HubFile], *, alone: bool
) -> Iterator[Finding]:
    """Find shards whose watermark must be gone; without a spool, also rows without any watermark at all."""
    rows = [file for file in others if file.path.endswith(SUFFIXES)]
    orphans: defaultdict[str, list[str]] = defaultdict(list)
    for file in rows:
        match = _DEFAULT_NAME.fullmatch(file.path)
        if match and match[1] not in found.by_writer and watermark_path(match[1]) not in snapshot.files:
            orphans[watermark_path(match[1])].append(file.path)
    for path, shards in orphans.items():
        expected = f"the watermark of {count_text(len(shards), 'shard')}, such as {shards[0]}"
        yield Difference("watermark", path, expected, "nothing", _RESTORE)
    if alone and rows and not (found.by_writer or found.unreadable or orphans):
        expected, there = "a watermark for each writer", f"none, and {len(rows):,} files of rows"
        yield Difference("watermark", ".hubsync", expected, there, f"hubsync committed nothing here, or: {_RESTORE}")


def _strangers(shown: Sequence[HubFile], shards: Sequence[HubFile]) -> Iterator[Finding]:
    """Report files that no writer made and that readers of the dataset get, and copies of shards among them."""
    by_oid = {file.oid: file for file in shards}
    for file in shown:
        if (original := by_oid.get(file.oid)) is not None:
            same = f"the {file.size:,} bytes of {original.path}, so its rows are there twice"
            yield Difference("repeat", file.path, "different content", same, _DELETE_COPY)
        else:
            yield f"{file.path} belongs to no writer, and the card shows it: its rows are part of the dataset"


def _numbers(series: Sequence[Series[HubFile]], before: _Known, after: _Known) -> Iterator[Finding]:
    """Find numbers that are missing, above the watermark, or there twice; and note what the dead letter holds."""
    known: defaultdict[str, dict[int, _Segment]] = defaultdict(dict)
    for segment in after.segments.values():
        known[segment.series][segment.seq] = segment
        if segment.state == "dead" and segment.rows:
            yield f"{segment.path} ({count_text(segment.rows, 'row')}) is in the dead letter: {segment.error}"
        elif segment.state == "dead":
            yield f"{segment.path} is not in the dataset: {segment.error}"
    for one in series:
        yield from _gaps(one, known[one.name], before)
        for number, files in sorted(one.shards.items()):
            for file in files if number >= one.next else ():
                hint = "hubsync did not commit it, or the watermark was reset: see its history."
                yield Difference("beyond", file.path, f"no number from {one.next} on", f"{file.size:,} bytes", hint)
            firsts = _one_for_each_part(files)
            for file in (file for file in files if file not in firsts):
                same = f"it also as {files[0].path}"
                yield Difference("repeat", file.path, f"number {number} once", same, _DELETE_COPY)
            for file in one.merged_with(number):
                same = f"it also as {files[0].path}"
                yield Difference("repeat", file.path, f"number {number} once", same, _DELETE_COPY)
        yield from _merged(one)


def _merged(one: Series[HubFile]) -> Iterator[Finding]:
    """Compare the merged files of a series with each other and with its watermark."""
    end, last_path = 0, ""
    for merged in sorted(one.merged):
        if merged.first < end:
            expected, found = f"numbers from {end} on", f"number {merged.first} as in {last_path}"
            yield Difference("repeat", merged.file.path, expected, found, _DELETE_COPY)
        if merged.last >= one.next:
            hint = "hubsync did not commit it, or the watermark was reset: see its history."
            yield Difference("beyond", merged.file.path, f"no number from {one.next} on", f"{merged.last}", hint)
        end, last_path = max(end, merged.last + 1), merged.file.path


def _one_for_each_part(files: Sequence[HubFile]) -> Sequence[HubFile]:
    """Return the first file of each part: machines that share a series may use a number once in each."""
    return list({part_of(file.path): file for file in reversed(files)}.values())


def _gaps(one: Series[HubFile], known: Mapping[int, _Segment], before: _Known) -> Iterator[Finding]:
    pending = []
    for number, segment in sorted(known.items()):
        if number >= one.next or number in one.shards or segment.state == "dead" or one.merged_with(number):
            continue
        earlier = before.segments.get(segment.path)
        if earlier is None or earlier.state != "committed":  # else it is reported as missing
            pending.append(number)
    if pending:
        shown = ", ".join(map(str, pending[:_MAX_NUMBERS])) + (", …" if len(pending) > _MAX_NUMBERS else "")
        yield f"{one.name}: not yet in this commit, but in the spool or a later one: {shown}"
    start = 0
    merged = {number for found in one.merged for number in range(found.first, min(found.last + 1, one.next))}
    for number in [*sorted(n for n in one.shards.keys() | known.keys() | merged if n < one.next), one.next]:
        if number > start:
            many = f"number {start}" if number == start + 1 else f"numbers {start} to {number - 1}"
            hint = "Deleted, or still in a spool, or lost with it. Drain the spool that holds it, and verify with it."
            yield Difference("gap", one.name, many, "nothing", hint)
        start = number + 1


def _repeats(series: Sequence[Series[HubFile]], after: _Known) -> Iterator[Finding]:
    """Find the same content under several numbers."""
    by_oid: defaultdict[str, list[tuple[bool, HubFile]]] = defaultdict(list)
    ours: set[HubFile] = set()
    for one in series:
        for number, files in sorted(one.shards.items()):
            for file in _one_for_each_part(files):
                by_oid[file.oid].append((number >= one.next, file))
                ours.update([file] if after.has(file, one.name, number) else ())
    for found in by_oid.values():
        # The original is a file below its watermark, if there is one.
        files = [file for _, file in sorted(found, key=lambda pair: pair[0])]
        if len(files) == 1:
            continue
        known = [file for file in files if file in ours]
        if len(known) == len(files):
            yield f"{files[1].path} holds the same as {files[0].path}: the job put the same rows more than once"
            continue
        original = (known or files)[0]
        for file in files:
            if file not in known and file is not original:
                same = f"the {file.size:,} bytes of {original.path}"
                yield Difference("repeat", file.path, "different content", same, _DELETE_COPY)


def _contents(
    shards: Sequence[HubFile], contents: Mapping[str, ShardContent | str], after: _Known
) -> Iterator[Finding]:
    """Compare what was downloaded with what the Hub lists, and with the catalogue."""
    for file in shards if contents else ():
        read, path = contents[file.path], file.path
        if isinstance(read, ShardContent) and (read.bytes, read.oid) != (file.size, file.oid):
            read = f"{read.bytes:,} bytes of {read.oid}"
        if isinstance(read, str):
            hint = "The Hub, or a proxy, does not send what the Hub lists: verify again, from another machine."
            yield Difference("content", path, f"{file.size:,} bytes of {file.oid}", read, hint)
            continue
        if read.bad:
            found = f"{read.bad:,} lines that are not, the first is line {read.first_bad}"
            yield Difference("content", path, "JSON objects", found, "hubsync writes no such line: see its history.")
        if read.long:
            yield f"{path}: {read.long:,} lines are too long to be parsed; they were counted"
        segment = after.segments.get(path)
        if segment is not None and segment.is_in(file) and segment.rows != read.rows:
            hint = "The bytes are right, so the catalogue is wrong."
            yield Difference("rows", path, f"{segment.rows:,} rows", f"{read.rows:,} rows", hint)


def _rows(
    series: Sequence[Series[HubFile]], marks: Mapping[str, Watermark], contents: Mapping[str, ShardContent | str]
) -> Iterator[Finding]:
    """Compare rows with the watermarks, which count by writer: over all series that the same writers share."""
    leaders: dict[str, str] = {}

    def leader(writer: str) -> str:
        while (above := leaders.setdefault(writer, writer)) != writer:
            writer = above
        return writer

    for one in series:
        for writer in one.writers:
            leaders[leader(writer)] = leader(one.writers[0])
    groups: defaultdict[str, list[Series[HubFile]]] = defaultdict(list)
    for one in series:
        groups[leader(one.writers[0])].append(one)
    for group in groups.values():
        writers = {writer for one in group for writer in one.writers}
        expected = sum(marks[writer].rows for writer in writers)
        shards = [file for one in group for file in one.files]
        found = sum(read.rows for file in shards if isinstance(read := contents[file.path], ShardContent))
        if found != expected:
            names = ", ".join(sorted(one.name for one in group))
            hint = "Another difference explains it, or somebody else's files are in the series."
            yield Difference("rows", names, f"{expected:,} rows by the watermarks", f"{found:,} rows", hint)
