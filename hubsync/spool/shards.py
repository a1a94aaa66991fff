"""Sealed segments as shards: their files checked, hashed, and picked for staging and for the next commit."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from hubsync._runtime.clock import Clock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import is_raw, regular_size, whole_rows
from hubsync._runtime.formatting import count_text
from hubsync.model.hashing import git_oid_of_file, hash_file
from hubsync.model.layout import Layout
from hubsync.model.shard import Mode, Shard, refusal
from hubsync.spool.lease import CommitterLease
from hubsync.spool.offsets import Offsets
from hubsync.spool.quarantine import Quarantine
from hubsync.spool.recovery import cut_torn_tail
from hubsync.spool.segments import Segment, Segments
from hubsync.spool.unreadable import UnreadableFiles

_log = logging.getLogger("hubsync")

_AHEAD = 20  # segments looked at for the next one to compress
_SMALL = 16 << 20  # bytes, below which a Hub may keep a file as a regular one; its bound is about 10 MB


class Shards:
    """The committer's view of the sealed segments. Changes need its lease: without it they raise `LeaseLost`."""

    def __init__(
        self,
        directory: Path,
        segments: Segments,
        offsets: Offsets,
        quarantine: Quarantine,
        lease: CommitterLease,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._segments = segments
        self._offsets = offsets
        self._quarantine = quarantine
        self._lease = lease
        self._unreadable = UnreadableFiles(directory / "segments", clock)
        self._checked: set[int] = set()  # sealed segments whose files were read here and are intact

    def file(self, name: str) -> Path:
        """Return where a segment's bytes are."""
        return self._directory / "segments" / name

    def get(self, segment: int) -> Shard:
        """Return a sealed segment as a shard, hashed. One that was never hashed must be intact."""
        row = self._segments.get(segment)
        file = self.file(row.file)
        sha256, git_oid = row.sha256, row.git_oid
        if sha256 is None:
            sha256, git_oid = hash_file(file, row.bytes)
            self._segments.set_hashes(segment, sha256, git_oid)
            failpoint(Failpoint.HASHED)
        elif git_oid is None and (row.bytes < _SMALL or row.mode == "regular"):
            git_oid = git_oid_of_file(file, row.bytes)
            self._segments.set_hashes(segment, sha256, git_oid)
            failpoint(Failpoint.HASHED)
        assert row.path is not None
        return Shard(segment, row.writer, file, row.path, row.bytes, row.rows, sha256, git_oid, row.mode)

    # Files that a power cut, a disk or a person may have damaged.

    def is_intact(self, segment: int) -> bool:
        """Return whether a sealed segment can be uploaded now, after dealing with a damaged file.

        Of a file that is too short the whole rows are kept. One that has its length but other content is quarantined,
        and so is one that cannot be read, after a few attempts: an operator must look at it. So a damaged segment does
        not hold up the others.

        Raises:
            OSError: the disk is at fault, and not this file.
        """
        row = self._segments.get(segment)
        try:
            return self._is_as_written(row) or self._keep_what_is_left(row)
        except OSError as error:
            self._could_not_read(row, error)
            return False

    def _usable(self, segment: int) -> Shard | None:
        """Return a sealed segment as a shard if it is intact."""
        if not self.is_intact(segment):
            return None
        try:
            shard = self.get(segment)
        except OSError as error:
            self._could_not_read(self._segments.get(segment), error)
            return None
        self._unreadable.forget(segment)
        return shard

    def _is_as_written(self, row: Segment) -> bool:
        """Return whether a segment's file holds what its writer wrote. Each file is read as a whole once."""
        file = self.file(row.file)
        size = regular_size(file)
        if size is None or size < row.bytes:
            return False
        if size > row.bytes:  # a torn tail, or something else wrote to it
            cut_torn_tail(file, row.bytes)
        if row.id in self._checked and row.id not in self._unreadable:
            return True
        if row.sha256 is None:  # it was sealed for a writer that died
            if not self._is_complete(row):
                return False
        else:
            sha256, git_oid = hash_file(file, row.bytes)
            if sha256 != row.sha256:
                return False
            self._segments.set_hashes(row.id, sha256, git_oid)
            failpoint(Failpoint.HASHED)
        self._checked.add(row.id)
        return True

    def _is_complete(self, row: Segment) -> bool:
        """Return whether a file has all its bytes, and whole rows as far as that can be seen."""
        file = self.file(row.file)
        size = regular_size(file)
        if size is None or size < row.bytes:
            return False
        return not is_raw(file.name) or whole_rows(file, row.bytes) == (row.rows, row.bytes)

    def _keep_what_is_left(self, row: Segment) -> bool:
        """Keep the whole rows of a damaged file, or quarantine it; return whether rows are left to upload."""
        file = self.file(row.file)
        size = regular_size(file)
        if self._is_complete(row):
            why = (
                f"{file.name} does not have the sha256 that was written: the disk or someone changed it after its rows "
                "were accepted"
            )
            self._quarantine_file(row, why)
            return False
        # A compressed file has no part that is whole.
        rows, kept = whole_rows(file, row.bytes) if size is not None and is_raw(file.name) else (0, 0)
        why = (
            f"{_loss_text(row.rows - rows, row.rows)}: {row.bytes - kept:,} bytes of {file.name} are gone or damaged, "
            "by a power cut (durability='process') or by something else that writes to the spool"
        )
        with self._lease.transaction():
            if self._segments.state(row.id) != "sealed":
                return False
            if rows:
                os.truncate(file, kept)
            self._lose(row, size=kept, rows=rows, why=why)
        if not rows:
            self._unreadable.forget(row.id)
        rest = f" The other {count_text(rows, 'row')} will be uploaded." if rows else ""
        _log.error("%s: %s.%s", row.path, why, rest)
        return rows > 0

    def _lose(self, row: Segment, *, size: int, rows: int, why: str) -> None:
        if not rows:
            self._offsets.forget_keys(row.id)  # nothing of it is uploaded, so its batches may be put again
        self._segments.truncate(row.id, size=size, rows=rows, why=why)

    def _could_not_read(self, row: Segment, error: OSError) -> None:
        if self._unreadable.failed(row.id, error):
            self._quarantine_file(row, f"its file {self.file(row.file)} cannot be read ({error.strerror})")

    def _quarantine_file(self, row: Segment, why: str) -> None:
        """Quarantine a sealed segment whose file must not be uploaded. If it is no file of ours, its rows are lost."""
        file = self.file(row.file)
        is_kept = file.is_file() and not file.is_symlink() and file.stat().st_size >= row.bytes
        if not is_kept:
            why = f"{_loss_text(row.rows, row.rows)}: {why}"
        with self._lease.transaction():
            if self._segments.state(row.id) != "sealed":
                return
            if is_kept:
                self._quarantine.add(row.id, file, why, is_linked=False)
                self._segments.forget_hashes(row.id)
            else:
                self._lose(row, size=0, rows=0, why=why)
        self._unreadable.forget(row.id)
        self._quarantine.take(row.id, file)
        self._log_refused(row.id)

    def _log_refused(self, segment: int) -> None:
        if (shard := self._segments.refused(segment)) is not None:
            _log.error("%s", refusal(self._directory, [shard]))

    def suspect(self, shards: Iterable[Shard]) -> None:
        """Read the files of these shards as a whole before they are staged again: one of them could not be read."""
        self._unreadable.suspect(shard.segment for shard in shards)

    def is_readable(self, segment: int) -> bool:
        """Return whether a sealed segment's file can be read, reading it as a whole."""
        self._unreadable.suspect([segment])
        return self.is_intact(segment)

    def damaged(self) -> list[Shard]:
        """Return the staged shards that travel inside the commit and whose file is no longer what it was."""
        return [self.get(row.id) for row in self._segments.staged_inline() if not self._can_be_sent(row)]

    def _can_be_sent(self, row: Segment) -> bool:
        try:
            return self._is_as_written(row)
        except OSError:
            self._unreadable.suspect([row.id])
            return False

    def present(self) -> list[Shard]:
        """Return all sealed and staged shards whose file can be read."""
        shards = []
        for row in self._segments.uploadable():
            if row.state == "staged":
                shards.append(self.get(row.id))
            elif (shard := self._usable(row.id)) is not None:
                shards.append(shard)
        return shards

    # Compressing.

    def next_to_compress(self) -> Segment | None:
        """Return the oldest sealed segment that must be compressed and can be read now; None without one."""
        for row in self._segments.to_compress(_AHEAD + len(self._unreadable)):
            if not self._unreadable.is_resting(row.id) and self.is_intact(row.id):
                return self._segments.get(row.id)
        return None

    # Staging.

    def to_stage(self, limit: int, max_bytes: int, besides: Collection[int] = ()) -> list[Shard]:
        """Return the oldest shards to stage, up to a bound, but at least one if there is any.

        Args:
            limit: shards.
            max_bytes: bytes of all shards together.
            besides: segments that are being staged.
        """
        shards: list[Shard] = []
        held = 0
        for row in self._segments.to_stage(limit + len(besides) + len(self._unreadable)):
            if row.id in besides or self._unreadable.is_resting(row.id):
                continue
            held += row.bytes
            if len(shards) == limit or (shards and held > max_bytes):
                break
            if (shard := self._usable(row.id)) is not None:
                shards.append(shard)
        return shards

    def mark_staged(self, modes: Mapping[int, Mode]) -> None:
        """Record that shards are staged, by segment."""
        with self._lease.transaction():
            self._segments.stage(modes)
        self._checked.difference_update(modes)
        failpoint(Failpoint.STAGED)

    def unstage(self, shards: Iterable[Shard]) -> None:
        """Upload these shards again: the Hub lost their blobs."""
        with self._lease.transaction():
            self._segments.unstage(shard.segment for shard in shards)
        failpoint(Failpoint.UNSTAGED)

    # Paths that another file has taken.

    def may_share_paths(self, shards: Iterable[Shard]) -> bool:
        """Return whether another machine's shards may have the same paths: their template has no `{writer}`."""
        return any("{writer}" not in self._segments.get(shard.segment).template for shard in shards)

    def numbers(self, shards: Iterable[Shard]) -> dict[int, tuple[str, int]]:
        """Return the series and the number of each shard, by segment."""
        rows = {shard.segment: self._segments.get(shard.segment) for shard in shards}
        return {segment: (row.series or "", row.seq or 0) for segment, row in rows.items()}

    def next_paths(self, shard: Shard, skip: int, count: int) -> list[str]:
        """Return the paths of `count` further numbers of a shard's series, from `skip` after its own."""
        row = self._segments.get(shard.segment)
        assert row.seq is not None
        assert row.path is not None
        return [row.layout.like(row.path, row.writer, row.seq + n) for n in range(skip, skip + count)]

    def renumber(self, shard: Shard, steps: int) -> None:
        """Give a shard a number that is at least `steps` higher, and stage it again."""
        with self._lease.transaction():
            row = self._segments.get(shard.segment)
            assert row.seq is not None
            self._segments.renumber(shard.segment, row.seq + steps)
        failpoint(Failpoint.RENUMBERED)

    # Folders that are full.

    def layout_of(self, shard: Shard) -> Layout:
        """Return where a shard's rows belong."""
        return self._segments.get(shard.segment).layout

    def relocate(self, shards: Iterable[Shard], *, above: bool = False) -> None:
        """Move shards out of a full folder, under their numbers, and stage them again.

        Args:
            shards: sealed or staged shards of one layout's folder.
            above: that folder can't take even a folder more, so they go to one above it.
        """
        folders = self._segments.folders
        with self._lease.transaction():
            for shard in shards:
                layout = self._segments.get(shard.segment).layout
                if above and not folders.is_above(layout):
                    folders.move_above(layout)
                self._segments.relocate(shard.segment)
        failpoint(Failpoint.RENUMBERED)

    def found_in_folder(self, shard: Shard, files: int) -> None:
        """Record how many files the dataset has in the folder of a shard."""
        with self._lease.transaction():
            self._segments.folders.found(self.layout_of(shard), shard.path, files)

    def move(self, shard: Shard, layout: Layout, schema: str | None, also: Callable[[], object]) -> None:
        """Move a shard to another config, and stage it again. `also` runs in the same transaction."""
        with self._lease.transaction():
            also()
            self._segments.move(shard.segment, layout, schema)
        failpoint(Failpoint.RENUMBERED)

    def quarantine(self, shard: Shard, why: str) -> None:
        """Quarantine a shard that can't be committed."""
        with self._lease.transaction():
            self._quarantine.add(shard.segment, shard.file, why, is_linked=False)
        failpoint(Failpoint.QUARANTINED)
        self._quarantine.take(shard.segment, shard.file)
        self._log_refused(shard.segment)

    # The next commit.

    def ready(self, limit: int, max_inline_bytes: int) -> list[Shard]:
        """Return the oldest staged shards that fit one commit, but at least one if there is any.

        Args:
            limit: shards.
            max_inline_bytes: bytes of the shards that travel inside the commit.
        """
        shards: list[Shard] = []
        inline = 0
        for row in self._in_order(self._segments.ready(), self._segments.first_unready_offset):
            inline += row.bytes if row.mode == "regular" else 0
            if len(shards) == limit or (shards and inline > max_inline_bytes):
                break
            shards.append(self.get(row.id))
        return shards

    def in_order(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return those of `shards` that may be committed while all others wait, oldest first."""
        ours = {shard.segment: shard for shard in shards}
        rows = (self._segments.get(segment) for segment in sorted(ours))
        first_of_others = partial(self._segments.first_offset_besides, segments=ours)
        return [ours[row.id] for row in self._in_order(rows, first_of_others)]

    def _in_order(self, rows: Iterable[Segment], first_of_others: Callable[[str], int | None]) -> Iterator[Segment]:
        """Yield those of `rows` that overtake no other waiting segment of the same source.

        So the watermark's offset says that all rows before it are in the dataset, and none after it: a job that lost
        its disk and resumes from there neither skips a row nor repeats one.

        Args:
            rows: segments that may go, oldest first.
            first_of_others: the lowest offset of a source in a segment that must wait.
        """
        first: dict[str, float] = {}  # offset of each source that waits
        for row in rows:
            offsets = self._offsets.of_segment(row.id)
            for source, _ in offsets:
                if source not in first:
                    found = first_of_others(source)
                    first[source] = math.inf if found is None else found
            if all(offset < first[source] for source, offset in offsets):
                yield row
            else:
                for source, offset in offsets:
                    first[source] = min(first[source], offset)


def _loss_text(lost: int, rows: int) -> str:
    """Return how many rows are lost: "all its 3 rows are lost"."""
    if lost < rows:
        return f"{lost:,} of its {count_text(rows, 'row')} {'is' if lost == 1 else 'are'} lost"
    return "its only row is lost" if rows == 1 else f"all its {rows:,} rows are lost"


def remove_file(file: Path) -> None:
    """Remove a segment's file that is no longer needed. If the disk refuses, the next start removes it."""
    try:
        file.unlink()
    except OSError:
        _log.debug("cannot remove %s now", file)
