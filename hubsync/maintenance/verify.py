"""Whether the dataset holds what hubsync committed to it, whole and once: what `hubsync verify` does.

Compares the files of one commit with the writers' watermarks and with a spool's catalogue. Writes nothing, and leaves
mending to people. A job may go on meanwhile: what the catalogue calls committed is read before the head is asked for,
so it must stand there; what explains a gap is read after it. What is explained becomes a note, all else a difference.
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
from hubsync._runtime.exceptions import unwrapped_hub_errors
from hubsync._runtime.secret import Secret
from hubsync.destinations.hub.dataset import HubDataset, HubFile
from hubsync.destinations.resolve import online_destination, target_of, token_source
from hubsync.encoding.codecs import SUFFIXES
from hubsync.errors import BlockedError
from hubsync.model.commit import Watermark, watermark_path
from hubsync.model.target import Target, default_directory
from hubsync.policies import RetryPolicy
from hubsync.reader.snapshot import Content, Dataset, DatasetSnapshot, Series, series_of
from hubsync.spool.opening import open_existing
from hubsync.spool.segments import SegmentState
from hubsync.spool.spool import Spool

Kind = Literal["missing", "size", "oid", "watermark", "gap", "beyond", "repeat", "content", "rows"]

# The default layout's shards name their writer, and so tell when its watermark is gone. A day (20261231) is none.
_DEFAULT_NAME = re.compile(r"(?:.*[/-])?(?!(?:19|20)[0-9]{6})([0-9a-f]{8})-[0-9]+\.(?:jsonl(?:\.gz|\.zst)?|parquet)")
_RESTORE = "Restore it from the dataset's history, or a job with a new spool repeats rows or numbers."
_COPY = "Delete the copy, if nobody put it there on purpose."


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be.

    Attributes:
        kind: "missing", "size" and "oid" compare the catalogue's shard with the Hub's; "watermark" is one that is
            gone, unreadable or too low; "gap", "beyond" and "repeat" are numbers of a series that are missing, above
            its watermark, or there twice; "content" and "rows" are found by reading the shards.
        path: the shard's, the watermark's, or a series with `*` for the number.
        hint: what it may be, and what to do.
    """

    kind: Kind
    path: str
    expected: str
    found: str
    hint: str


# What is explained is a note.
Finding = Difference | str


@dataclass(frozen=True, slots=True)
class Report:
    """What was compared, and how it came out.

    Attributes:
        commit: the one commit at which everything was read.
        spool: the spool that was compared; None where the dataset was compared with itself alone.
        rows: counted where the content was read, else as the watermarks say.
        bytes: of the `shards` that stand in some writer's series.
        notes: what looks odd and is explained.
    """

    repo: str
    revision: str
    commit: str
    spool: str | None
    writers: int
    shards: int
    rows: int
    bytes: int
    content: bool
    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        return not self.differences


def default_spool(repo: str, *, revision: str = "main", endpoint: str | None = None) -> Path | None:
    """The spool that uploaders of `repo` use by default on this host; None where there is none."""
    directory = default_directory(target_of(repo, endpoint, revision))
    return directory if (directory / "catalogue.sqlite").exists() else None


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
    """Compares a dataset with itself, with the catalogue of `spool`, and with `content` reads every shard.

    Raises:
        ConfigError: no repo id, endpoint or branch.
        SpoolError: there is no such spool, or it belongs to another repo (`SpoolMismatch`).
        HubError: the Hub can't be read; what passes by itself was tried a few times.
    """
    secret = None if token is None else Secret(token)
    del token  # a crash report of what is raised below would show it
    target = target_of(repo, endpoint, revision)
    directory = Path(spool).expanduser().absolute() if spool is not None else None
    return anyio.run(_verify, target, directory, secret, content, progress, clock or SystemClock())


async def _verify(
    target: Target,
    directory: Path | None,
    token: Secret | None,
    content: bool,
    progress: Callable[[int, int], None],
    clock: Clock,
) -> Report:
    hub = online_destination(target, token, RetryPolicy())
    try:
        async with unwrapped_hub_errors():
            commit, before, after = await _head(hub, directory, token, clock)
            reader = DatasetSnapshot(hub, commit, clock)
            dataset = await reader.dataset()
            # Where a watermark is gone, the spool's own tells what belongs to its writer.
            marks = {**before.marks, **dataset.marks}
            series, others = series_of(marks, dataset.files.values())
            shards = [file for one in series for files in one.shards.values() for file in files]
            strangers = await reader.shown(others)
            contents = await reader.contents(shards, progress) if content else {}
    finally:
        with anyio.CancelScope(shield=True):
            await hub.aclose()
    findings: list[Finding] = [
        *_committed(before, dataset),
        *_watermarks(before, dataset),
        *_unmarked(dataset, others, alone=directory is None),
        *_strangers(strangers, shards),
        *_numbers(series, before, after),
        *_repeats(series, after),
        *_contents(shards, contents, after),
        *(_rows(series, marks, contents) if content else ()),
    ]
    counted = [read.rows for read in contents.values() if isinstance(read, Content)]
    return Report(
        repo=target.repo,
        revision=target.revision,
        commit=commit,
        spool=str(directory) if directory is not None else None,
        writers=len(dataset.marks),
        shards=len(shards),
        rows=sum(counted) if content else sum(mark.rows for mark in dataset.marks.values()),
        bytes=sum(file.size for file in shards),
        content=content,
        differences=tuple(finding for finding in findings if isinstance(finding, Difference)),
        notes=tuple(finding for finding in findings if isinstance(finding, str)),
    )


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
    """The catalogue at one moment: sealed segments by path, and the watermarks that were last committed."""

    segments: Mapping[str, _Segment] = field(default_factory=dict)
    marks: Mapping[str, Watermark] = field(default_factory=dict)


async def _head(
    hub: HubDataset, directory: Path | None, token: Secret | None, clock: Clock
) -> tuple[str, _Known, _Known]:
    """The branch's newest commit, and what the spool knew before and after that was asked."""
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
    # No transaction, so that no job waits for it: what is committed stays so.
    marks = spool.writers.committed_watermarks()
    sealed = [_Segment(*(getattr(row, name) for name in _Segment._fields)) for row in spool.segments.with_path()]
    return _Known({segment.path: segment for segment in sealed}, marks)


# What is found.


def _committed(before: _Known, dataset: Dataset) -> Iterator[Finding]:
    """What the spool has committed against what stands."""
    for segment in before.segments.values():
        if segment.state != "committed":
            continue
        file, path = dataset.files.get(segment.path), segment.path
        hint = f"The shard is in commit {segment.sha}: download it with that revision and put it back at its path."
        if file is None:
            was = f"{segment.rows:,} rows, {segment.bytes:,} bytes, committed with {segment.sha}"
            yield Difference("missing", path, was, "nothing", hint)
        elif file.size != segment.bytes:
            yield Difference("size", path, f"{segment.bytes:,} bytes", f"{file.size:,} bytes", hint)
        elif not segment.is_in(file):
            oid = segment.sha256 if file.is_large else segment.git_oid
            yield Difference("oid", path, f"{oid}", file.oid, hint)
        if segment.error is not None:
            yield f"{path}: {segment.error}"


def _watermarks(before: _Known, dataset: Dataset) -> Iterator[Finding]:
    """The watermarks against the spool's own."""
    for path, found in dataset.unreadable.items():
        yield Difference("watermark", path, "the watermark of its writer", found, _RESTORE)
    for writer, mark in before.marks.items():
        path = watermark_path(writer)
        expected, found = _lower(mark, dataset.marks.get(writer))
        if expected and path not in dataset.unreadable:
            yield Difference("watermark", path, f"at least {expected}", found, _RESTORE)


def _unmarked(dataset: Dataset, others: Sequence[HubFile], *, alone: bool) -> Iterator[Finding]:
    """Shards in no series whose watermark must be gone; where no spool tells, rows without any watermark at all."""
    rows = [file for file in others if file.path.endswith(SUFFIXES)]
    orphans: defaultdict[str, list[str]] = defaultdict(list)
    for file in rows:
        match = _DEFAULT_NAME.fullmatch(file.path)
        if match and watermark_path(match[1]) not in dataset.files:
            orphans[watermark_path(match[1])].append(file.path)
    for path, shards in orphans.items():
        expected = f"the watermark of {len(shards):,} shards, such as {shards[0]}"
        yield Difference("watermark", path, expected, "nothing", _RESTORE)
    if alone and rows and not (dataset.marks or dataset.unreadable or orphans):
        expected, found = "a watermark for each writer", f"none, beside {len(rows):,} files of rows"
        yield Difference("watermark", ".hubsync", expected, found, f"hubsync committed nothing here, or: {_RESTORE}")


def _strangers(shown: Sequence[HubFile], shards: Sequence[HubFile]) -> Iterator[Finding]:
    """What readers of the dataset get beside the writers' shards, among it rows that they get twice."""
    by_oid = {file.oid: file for file in shards}
    for file in shown:
        if (original := by_oid.get(file.oid)) is not None:
            same = f"the {file.size:,} bytes of {original.path}, so its rows are there twice"
            yield Difference("repeat", file.path, "content of its own", same, _COPY)
        else:
            yield f"{file.path} is no writer's, and the card shows it: its rows are read with the others"


def _lower(mark: Watermark, there: Watermark | None) -> tuple[str, str]:
    """What of the spool's watermark is not reached by the dataset's, and what that has instead; empty if all is."""
    if there is None:
        return f"{mark.rows:,} rows", "nothing"
    pairs = [("rows", mark.rows, there.rows)]
    pairs += [(f"next of {name}", number, there.next.get(name, 0)) for name, number in mark.next.items()]
    pairs += [(f"offset of {name}", number, there.offsets.get(name, -1)) for name, number in mark.offsets.items()]
    low = [pair for pair in pairs if pair[2] < pair[1]]
    return ", ".join(f"{what} {n}" for what, n, _ in low), ", ".join(f"{what} {n}" for what, _, n in low)


def _numbers(series: Sequence[Series], before: _Known, after: _Known) -> Iterator[Finding]:
    """Numbers that are missing, above the watermark, or there twice; and what the dead letter holds."""
    known: defaultdict[str, dict[int, _Segment]] = defaultdict(dict)
    for segment in after.segments.values():
        known[segment.series][segment.seq] = segment
        if segment.state == "dead" and segment.rows:
            yield f"{segment.path} ({segment.rows:,} rows) is in the dead letter: {segment.error}"
        elif segment.state == "dead":
            yield f"{segment.path} holds no rows any more: {segment.error}"
    for one in series:
        yield from _gaps(one, known[one.name], before)
        for number, files in sorted(one.shards.items()):
            for file in files if number >= one.next else ():
                hint = "hubsync did not commit it, or the watermark was put back: its history tells."
                yield Difference("beyond", file.path, f"no number from {one.next} on", f"{file.size:,} bytes", hint)
            for file in files[1:]:
                yield Difference("repeat", file.path, f"number {number} once", f"it as {files[0].path} as well", _COPY)


def _gaps(one: Series, known: Mapping[int, _Segment], before: _Known) -> Iterator[Finding]:
    waiting = []
    for number, segment in sorted(known.items()):
        if number >= one.next or number in one.shards or segment.state == "dead":
            continue
        earlier = before.segments.get(segment.path)
        if earlier is None or earlier.state != "committed":  # else it is missing, and said to be
            waiting.append(number)
    if waiting:
        shown = ", ".join(map(str, waiting[:10])) + (", …" if len(waiting) > 10 else "")
        yield f"{one.name}: not yet in this commit, but in the spool or a later one: {shown}"
    start = 0
    for number in [*sorted(n for n in one.shards.keys() | known.keys() if n < one.next), one.next]:
        if number > start:
            many = f"number {start}" if number == start + 1 else f"numbers {start} to {number - 1}"
            hint = "Deleted, or still in (or lost with) a spool: drain the spool that holds it, and name it here."
            yield Difference("gap", one.name, many, "nothing", hint)
        start = number + 1


def _repeats(series: Sequence[Series], after: _Known) -> Iterator[Finding]:
    """The same content under several numbers."""
    by_oid: defaultdict[str, list[tuple[bool, HubFile]]] = defaultdict(list)
    for one in series:
        for number, files in sorted(one.shards.items()):
            by_oid[files[0].oid].append((number >= one.next, files[0]))
    for found in by_oid.values():
        # What stands where it should is the original.
        files = [file for _, file in sorted(found, key=lambda pair: pair[0])]
        if len(files) == 1:
            continue
        known = [f for f in files if (s := after.segments.get(f.path)) is not None and s.is_in(f)]
        if len(known) == len(files):
            yield f"{files[1].path} holds the same as {files[0].path}: the job put the same rows more than once"
            continue
        original = (known or files)[0]
        for file in files:
            if file not in known and file is not original:
                same = f"the {file.size:,} bytes of {original.path}"
                yield Difference("repeat", file.path, "content of its own", same, _COPY)


def _contents(shards: Sequence[HubFile], contents: Mapping[str, Content | str], after: _Known) -> Iterator[Finding]:
    """What was read against what the Hub lists, and against the catalogue."""
    for file in shards if contents else ():
        read, path = contents[file.path], file.path
        if isinstance(read, Content) and (read.bytes, read.oid) != (file.size, file.oid):
            read = f"{read.bytes:,} bytes of {read.oid}"
        if isinstance(read, str):
            hint = "The Hub, or what is between, does not give what it lists: verify again, from elsewhere."
            yield Difference("content", path, f"{file.size:,} bytes of {file.oid}", read, hint)
            continue
        if read.bad:
            found = f"{read.bad:,} lines that are none, the first is line {read.first_bad}"
            yield Difference("content", path, "JSON objects", found, "hubsync writes no such line: see its history.")
        if read.long:
            yield f"{path}: {read.long:,} lines are too long to be parsed; they were counted"
        segment = after.segments.get(path)
        if segment is not None and segment.is_in(file) and segment.rows != read.rows:
            hint = "The bytes are right, so the catalogue is not."
            yield Difference("rows", path, f"{segment.rows:,} rows", f"{read.rows:,} rows", hint)


def _rows(
    series: Sequence[Series], marks: Mapping[str, Watermark], contents: Mapping[str, Content | str]
) -> Iterator[Finding]:
    """Rows against the watermarks, which count by writer: so over all series that writers share with each other."""
    leaders: dict[str, str] = {}

    def leader(writer: str) -> str:
        while (above := leaders.setdefault(writer, writer)) != writer:
            writer = above
        return writer

    for one in series:
        for writer in one.writers:
            leaders[leader(writer)] = leader(one.writers[0])
    groups: defaultdict[str, list[Series]] = defaultdict(list)
    for one in series:
        groups[leader(one.writers[0])].append(one)
    for group in groups.values():
        writers = {writer for one in group for writer in one.writers}
        expected = sum(marks[writer].rows for writer in writers)
        shards = [file for one in group for files in one.shards.values() for file in files]
        found = sum(read.rows for file in shards if isinstance(read := contents[file.path], Content))
        if found != expected:
            names = ", ".join(sorted(one.name for one in group))
            hint = "Another difference explains it, or somebody else's files stand in the series."
            yield Difference("rows", names, f"{expected:,} rows by the watermarks", f"{found:,} rows", hint)
