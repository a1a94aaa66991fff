"""Delete the records of segments that were committed long ago, so that a catalogue does not grow with the dataset.

What still needs a settled segment: other processes read what became of it for their receipts and flushes, a replayed
batch gets its commit's sha, `verify` compares its bytes, the dashboard draws it, a leftover file is recognized by it.
So the newest are kept. Of an older one it is enough to know that it was committed, which the catalogue tells by its
absence; numbers, keys, offsets and what the card shows have tables of their own.
"""

from __future__ import annotations

from pathlib import Path

from hubsync._runtime.clock import Clock
from hubsync.spool.lease import CommitterLease
from hubsync.spool.offsets import Offsets
from hubsync.spool.schemas import Schemas
from hubsync.spool.segments import Segments

_KEPT = 1_000  # settled segments, about 1 MB
_KEPT_S = 60.0  # in which a process that follows has read what became of its segments many times
_AT_ONCE = 500  # deleted after a commit, which has 100 shards at most: an old spool shrinks while it is used


class Retention:
    """Which settled segments the catalogue keeps. For the committer."""

    def __init__(
        self,
        directory: Path,
        segments: Segments,
        offsets: Offsets,
        schemas: Schemas,
        lease: CommitterLease,
        clock: Clock,
    ) -> None:
        self._files = directory / "segments"
        self._segments = segments
        self._offsets = offsets
        self._schemas = schemas
        self._lease = lease
        self._clock = clock

    def expire(self) -> int:
        """Delete the records of the oldest settled segments, up to a bound; return how many.

        Raises:
            LeaseLost: another process commits.
        """
        found = self._segments.to_expire(keep=_KEPT, before=self._clock.time() - _KEPT_S, limit=_AT_ONCE)
        rows = [row for row in found if self._is_removed(row.file)]
        if rows:
            with self._lease.transaction():
                for config, schema in {(row.config, row.schema) for row in rows if row.schema is not None}:
                    self._schemas.add_committed(config, schema)
                self._segments.expire(rows)
                self._offsets.expire([row.id for row in rows], lambda n: self._segments.state(n) is not None)
        return len(rows)

    def _is_removed(self, file: str) -> bool:
        """Return whether a settled segment's file is gone, after removing what a crash left."""
        try:
            (self._files / file).unlink(missing_ok=True)
        except OSError:
            return False
        return True
