"""Counts and depths: snapshots of a queue, a spool, an uploader."""

from __future__ import annotations

from typing import NamedTuple

import msgspec


class Counts(msgspec.Struct):
    """Totals since this process opened its uploader. A widened column has become JSON."""

    spooled_batches: int = 0
    spooled_rows: int = 0
    spooled_bytes: int = 0
    replayed_batches: int = 0
    commits: int = 0
    retries: int = 0
    refusals: int = 0
    committed_rows: int = 0
    committed_bytes: int = 0
    committed_shards: int = 0
    widened_columns: int = 0


class QueueDepth(NamedTuple):
    """What waits in the queue, and how often its policy has acted.

    Attributes:
        batches: Batches that wait.
        rows: Their rows.
        bytes: Their size, in bytes.
        blocked: Puts that had to wait for room.
        raised: Puts that raised `QueueFull`.
        dropped: Batches that were dropped.
        oldest_at: When the oldest of them was put, in seconds since the epoch; None if the queue is empty.
    """

    batches: int
    rows: int
    bytes: int
    blocked: int
    raised: int
    dropped: int
    oldest_at: float | None = None


class SpoolDepth(NamedTuple):
    """What a spool holds.

    `oldest_at` is when its oldest row was put, in seconds since the epoch. `dead` are shards, `dead_rows` their rows
    that are kept, and `lost_rows` accepted rows that are lost with a damaged file.
    """

    rows: int = 0
    bytes: int = 0
    open: int = 0
    sealed: int = 0
    staged: int = 0
    dead: int = 0
    oldest_at: float | None = None
    committed_rows: int = 0
    committed_bytes: int = 0
    committed_shards: int = 0
    dead_rows: int = 0
    lost_rows: int = 0

    def oldest_age_s(self, now: float, in_memory_since: float | None = None) -> float | None:
        """Return how many seconds the oldest row has waited, in the spool or in memory; None if no row waits.

        Args:
            now: the time, in seconds since the epoch.
            in_memory_since: when the oldest row in memory came, in seconds since the epoch; None if memory holds none.
        """
        since = [at for at in (self.oldest_at, in_memory_since) if at is not None]
        return max(0.0, now - min(since)) if since else None
