"""The directory of rejected shards, which users know as the dead letter.

A shard gets there in one transaction: its file is linked into the directory, and its segment becomes dead. The
segment's own file is removed only afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import fsync_directory, is_raw
from hubsync.model.layout import format_of
from hubsync.model.shard import QuarantinedShard
from hubsync.spool.database import Catalogue
from hubsync.spool.segments import Segments


class Quarantine:
    """The rejected shards of one spool."""

    def __init__(self, directory: Path, catalogue: Catalogue, segments: Segments, *, fsync: bool) -> None:
        self.directory = directory / "dead-letter"
        self._catalogue = catalogue
        self._segments = segments
        self._fsync = fsync

    def add(self, segment: int, file: Path, why: str) -> Path:
        """Quarantine a sealed segment; return its file there. Within a transaction.

        Args:
            segment: a segment that has a path.
            file: the segment's file. Remove it once the transaction is committed.
            why: what is wrong with it, for the operator.
        """
        path = self._segments.get(segment).path
        assert path is not None
        name = os.path.basename(path)
        if is_raw(file.name):  # it was not compressed
            name = f"{name.removesuffix('.' + format_of(name))}{file.suffix}"
        target = self.directory / f"{segment:06d}-{name}"
        for stale in self.directory.glob(f"{segment:06d}-*"):
            if stale != target:
                stale.unlink()  # of a transaction that was rolled back: its id was given again
        if not (target.exists() and target.samefile(file)):
            new = target.with_suffix(".new")
            new.unlink(missing_ok=True)
            os.link(file, new)
            os.replace(new, target)  # which may hold the rows as they were before an operator edited them
            if self._fsync:
                fsync_directory(self.directory)
        failpoint(Failpoint.QUARANTINE_LINKED)
        self._segments.quarantine(segment, why)
        return target

    def shards(self) -> list[QuarantinedShard]:
        """Return the rejected shards, oldest first."""
        return self._segments.quarantined()

    def file_of(self, segment: int) -> Path | None:
        """Return the file of a rejected shard; None if there is no such file."""
        return next(self.directory.glob(f"{segment:06d}-*"), None)

    def sweep(self) -> None:
        """Remove files whose segment is not dead: the transaction was rolled back, or the shard has left."""
        with self._catalogue.transaction():
            dead = {f"{shard.id:06d}" for shard in self.shards()}
            for file in self.directory.glob("*-*.*"):
                if file.name.partition("-")[0] not in dead:
                    file.unlink(missing_ok=True)
