"""Sealed segments as shards: their files checked, hashed, and picked for staging and for the next commit."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import file_size, is_complete
from hubsync.model.hashing import git_oid_of_file, hash_file
from hubsync.model.layout import Layout
from hubsync.model.shard import Mode, Shard
from hubsync.spool.lease import CommitterLease
from hubsync.spool.offsets import Offsets
from hubsync.spool.quarantine import Quarantine
from hubsync.spool.recovery import Recovery
from hubsync.spool.segments import Segment, Segments

_log = logging.getLogger("hubsync")

_SMALL = 16 << 20  # bytes, below which a Hub may keep a file as a regular one; its bound is about 10 MB


class Shards:
    """The committer's view of the sealed segments. Changes need its lease: without it they raise `LeaseLost`."""

    def __init__(
        self,
        directory: Path,
        segments: Segments,
        offsets: Offsets,
        quarantine: Quarantine,
        recovery: Recovery,
        lease: CommitterLease,
    ) -> None:
        self._directory = directory
        self._segments = segments
        self._offsets = offsets
        self._quarantine = quarantine
        self._recovery = recovery
        self._lease = lease
        self._inherited = 0  # segments up to this one may have met a crash or a power cut
        self._checked: set[int] = set()  # those of them whose files were read here and are intact

    def take_over(self) -> int:
        """Begin to check the files that other processes left; return the newest segment."""
        self._inherited = self._segments.newest_sealed()
        return self._segments.newest()

    def file(self, name: str) -> Path:
        """Return where a segment's bytes are."""
        return self._directory / "segments" / name

    def get(self, segment: int) -> Shard:
        """Return a sealed segment as a shard, hashed."""
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

    # Files that a power cut or a person may have damaged.

    def is_intact(self, segment: int) -> bool:
        """Return whether a sealed segment can be uploaded, after dealing with a damaged file.

        Of a file that is too short the whole rows are kept. One that has its length but other content is quarantined:
        an operator must look at it. So a damaged segment does not hold up the others.
        """
        row = self._segments.get(segment)
        file = self.file(row.file)
        if self._is_as_written(row, file):
            return True
        why = None
        with self._lease.transaction():
            if self._segments.state(segment) != "sealed":
                return False
            if is_complete(file, row.bytes):
                why = (
                    f"{file.name} does not have the sha256 that was written: the disk or someone changed it after its "
                    "rows were accepted"
                )
                self._quarantine.add(segment, file, why)
            else:
                self._recovery.keep_whole_rows(segment, file, row.bytes)
            is_dead = why is not None or not self._segments.get(segment).rows
            self._segments.reset_damaged(segment, is_dead=is_dead)
        if why is not None:
            file.unlink(missing_ok=True)
            _log.error("%s. Its %d rows are in the dead letter; to look at them: hubsync dead-letter list %s",
                       why, row.rows, self._directory)  # fmt: skip
        return not is_dead

    def _is_as_written(self, row: Segment, file: Path) -> bool:
        """Return whether a segment's file holds what its writer wrote.

        Its size tells for our own. A file that another process left is also read, once: what that process read may
        have been in memory only, and not on the disk.
        """
        size = file_size(file)
        if size is None or size < row.bytes:
            return False
        if row.id > self._inherited or row.sha256 is None or row.id in self._checked:
            return True
        sha256, git_oid = hash_file(file, row.bytes)
        if sha256 != row.sha256:
            return False
        self._checked.add(row.id)
        self._segments.set_hashes(row.id, sha256, git_oid)
        failpoint(Failpoint.HASHED)
        return True

    def damaged(self) -> list[Shard]:
        """Return the staged shards that travel inside the commit and whose file is no longer what it was."""
        rows = self._segments.staged_inline()
        return [self.get(row.id) for row in rows if not self._is_as_written(row, self.file(row.file))]

    def present(self) -> list[Shard]:
        """Return all sealed and staged shards whose file exists."""
        return [self.get(row.id) for row in self._segments.uploadable() if file_size(self.file(row.file)) is not None]

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
        for row in self._segments.to_stage(limit + len(besides)):
            if row.id in besides:
                continue
            held += row.bytes
            if shards and held > max_bytes:
                break
            if self.is_intact(row.id):
                shards.append(self.get(row.id))
        return shards

    def mark_staged(self, modes: Mapping[int, Mode]) -> None:
        """Record that shards are staged, by segment."""
        with self._lease.transaction():
            self._segments.stage(modes)
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

    def move(self, shard: Shard, layout: Layout, schema: str, also: Callable[[], object]) -> None:
        """Move a shard to another config, and stage it again. `also` runs in the same transaction."""
        with self._lease.transaction():
            also()
            self._segments.move(shard.segment, layout, schema)
        failpoint(Failpoint.RENUMBERED)

    def quarantine(self, shard: Shard, why: str) -> Path:
        """Quarantine a shard that can't be committed; return its file there."""
        with self._lease.transaction():
            kept = self._quarantine.add(shard.segment, shard.file, why)
        failpoint(Failpoint.QUARANTINED)
        remove_file(shard.file)
        return kept

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


def remove_file(file: Path) -> None:
    """Remove a segment's file that is no longer needed. If the disk refuses, the next start removes it."""
    try:
        file.unlink()
    except OSError:
        _log.debug("cannot remove %s now", file)
