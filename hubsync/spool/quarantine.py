"""The directory of rejected shards, which users know as the dead letter.

A shard gets there in one transaction: its file is linked into the directory, and its segment becomes dead. The
segment's own file is removed only afterwards.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import fsync_directory, is_raw
from hubsync.model.layout import format_of
from hubsync.model.shard import QuarantinedShard
from hubsync.spool.database import Catalogue
from hubsync.spool.segments import Segment, Segments


class Quarantine:
    """The rejected shards of one spool."""

    def __init__(self, directory: Path, catalogue: Catalogue, segments: Segments, *, fsync: bool) -> None:
        self.directory = directory / "dead-letter"
        self._catalogue = catalogue
        self._segments = segments
        self._fsync = fsync

    def add(self, segment: int, file: Path, why: str, *, is_linked: bool = True) -> Path:
        """Quarantine a sealed segment; return its file there. Within a transaction.

        Args:
            segment: a segment that has a path.
            file: the segment's file. Remove it once the transaction is committed.
            why: what is wrong with it, for the operator.
            is_linked: False if it may be a file that can't be linked, or no file at all; `take` must follow.
        """
        target = self._place(self._segments.get(segment)._replace(file=file.name))
        try:
            self._link(file, target)
        except OSError:
            if is_linked:
                raise
        failpoint(Failpoint.QUARANTINE_LINKED)
        self._segments.quarantine(segment, why)
        return target

    def _link(self, file: Path, target: Path) -> None:
        if not (target.exists() and target.samefile(file)):
            new = target.with_suffix(".new")
            new.unlink(missing_ok=True)
            os.link(file, new)
            os.replace(new, target)  # which may hold the rows as they were before an operator edited them
            if self._fsync:
                fsync_directory(self.directory)

    def take(self, segment: int, file: Path) -> None:
        """Remove the file of a rejected shard from where it was. If it could not be linked, move it here."""
        row = self._segments.get(segment)
        with suppress(OSError):  # a directory is in its place, or the disk refuses: it is in nobody's way
            if row.rows and not self._place(row).exists() and (file.is_symlink() or file.is_file()):
                os.replace(file, self._place(row))
            file.unlink(missing_ok=True)

    def _place(self, segment: Segment) -> Path:
        """Return where the file of a rejected shard is. From the catalogue alone: the directory may be large."""
        assert segment.path is not None
        name = os.path.basename(segment.path)
        if is_raw(segment.file):  # it was not compressed
            name = f"{name.removesuffix('.' + format_of(name))}{os.path.splitext(segment.file)[1]}"
        return self.directory / f"{segment.id:06d}-{name}"

    def shards(self) -> list[QuarantinedShard]:
        """Return the rejected shards, oldest first."""
        return self._segments.quarantined()

    def file_of(self, segment: int) -> Path | None:
        """Return the file of a rejected shard; None if there is no such file."""
        row = self._segments.find(segment)
        if row is not None and row.path is not None and (place := self._place(row)).exists():
            return place
        return next(self.directory.glob(f"{segment:06d}-*"), None)

    def sweep(self) -> None:
        """Remove files whose segment is not dead: the transaction was rolled back, or the shard has left."""
        with self._catalogue.transaction():
            dead = {f"{row.id:06d}": self._place(row) for row in self._segments.dead() if row.path is not None}
            for file in self.directory.glob("*-*.*"):
                place = dead.get(file.name.partition("-")[0])
                # A transaction that was rolled back may have linked another file under the same number.
                if place is None or (file != place and place.exists()):
                    with suppress(OSError):
                        file.unlink(missing_ok=True)
