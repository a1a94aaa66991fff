"""Compress sealed segments whose shards have another format than JSON Lines.

The lines stay until the compressed shard is whole, on disk and in the catalogue, in one transaction; only then are they
removed. So after a crash at any instant the segment is compressed again, and what is sent never changes.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync.committer.context import Context
from hubsync.committer.rejections import Rejections
from hubsync.committer.stager import POLL_S
from hubsync.encoding import codecs
from hubsync.errors import BlockedError, ConfigError, DefectError, SpoolError
from hubsync.model.hashing import hash_file
from hubsync.model.layout import format_of
from hubsync.model.shard import Shard
from hubsync.spool.segments import Segment
from hubsync.spool.shards import remove_file


class Incompressible(NamedTuple):
    """A shard whose lines can't be written in its format, and why."""

    shard: Shard
    error: DefectError


class Compressor:
    """Compresses one segment after another: that costs a core, and the job needs the others.

    zlib, Zstandard and pyarrow release Python's lock while they work.
    """

    def __init__(self, context: Context, rejections: Rejections) -> None:
        self._spool = context.spool
        self._retrier = context.retrier
        self._rejections = rejections
        self._wakeups = context.wakeups

    async def run(self) -> None:
        """Compress what is sealed, until cancelled."""
        compress = partial(self._retrier.on_disk, self._compress_next)
        while True:
            outcome = await self._retrier.until_success("pack", compress)
            if outcome == "idle":
                await self._wakeups.compress.wait(POLL_S)
                continue
            if isinstance(outcome, Incompressible):
                await self._rejections.quarantine(outcome.shard, outcome.error)
            self._wakeups.stage.notify()

    def _compress_next(self) -> Literal["idle", "done"] | Incompressible:
        """Compress the oldest sealed segment that needs it. "idle" if there is no such segment.

        Raises:
            SpoolError: the disk refuses; nothing is changed.
            OSError: the same.
            LeaseLost: another process commits.
            BlockedError: a package is missing here.
        """
        row = self._spool.shards.next_to_compress()
        if row is None:
            return "idle"
        assert row.path is not None
        lines = self._spool.file(row.file)
        # The committer's term is in the name, so one that stalled never overwrites the file of its successor.
        stem = lines.name.partition(".")[0]
        target = lines.with_name(f"{stem}.{self._spool.lease.term or 0}.{format_of(row.path)}")
        try:
            codecs.compress(lines, target, row.rows, self._spool.schemas.columns(row.config))
        except ConfigError as error:
            raise BlockedError(f"{row.path} can't be compressed here: {error}") from None
        except DefectError as error:
            return Incompressible(self._spool.shards.get(row.id), error)
        except OSError:
            if self._spool.shards.is_readable(row.id):
                raise  # the disk does not take the compressed file
            return "done"
        try:
            failpoint(Failpoint.COMPRESSED)
            self._record(row, target)
        except BaseException:
            with suppress(OSError):
                target.unlink()
            raise
        failpoint(Failpoint.COMPRESSED_RECORDED)
        remove_file(lines)
        return "done"

    def _record(self, row: Segment, file: Path) -> None:
        size = file.stat().st_size
        sha256, git_oid = hash_file(file, size)
        with self._spool.lease.transaction():
            if self._spool.segments.get(row.id).file != row.file:
                raise SpoolError(f"{row.file} was compressed by another process.")
            self._spool.segments.compress(row.id, file=file.name, size=size, sha256=sha256, git_oid=git_oid)
            failpoint(Failpoint.COMPRESSED_COUNTED)
