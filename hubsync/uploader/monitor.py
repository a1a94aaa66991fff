"""What an uploader knows about itself without waiting for the disk, and what it shows to other processes."""

from __future__ import annotations

import copy
import logging
import os
from contextlib import suppress

from hubsync._runtime.formatting import duration_text, rows_text, safe_text
from hubsync._runtime.threads import run_in_thread
from hubsync.errors import SpoolError
from hubsync.model.stats import Counts, SpoolDepth
from hubsync.policies import ShardPolicy
from hubsync.spool.spool import Spool
from hubsync.telemetry.condition import Condition, SpoolFacts, condition_of
from hubsync.telemetry.heartbeat import Heartbeat, remove_heartbeat, write_heartbeat
from hubsync.telemetry.metrics import Source
from hubsync.telemetry.progress import Figures, Progress
from hubsync.telemetry.status import QUOTA, READING, State, Status, full_because, read_stored
from hubsync.uploader.queue import BoundedQueue
from hubsync.uploader.spool_thread import SpoolThread
from hubsync.uploader.stall_reporter import StallReporter

_log = logging.getLogger("hubsync")
_REFRESH_S = 0.5  # how old the spool's depth may be


class Monitor:
    """Refreshes the spool's depth, writes the heartbeat file, and feeds metrics and progress."""

    def __init__(
        self,
        spool: Spool,
        queue: BoundedQueue,
        spool_thread: SpoolThread,
        status: Status,
        shard: ShardPolicy,
        progress: bool | None,
    ) -> None:
        self._spool = spool
        self._queue = queue
        self._writer = writer = spool_thread.writer.name
        self._opened_at = spool_thread.opened_at
        self._status = status
        self._shard_policy = shard
        self._clock = clock = spool.clock
        self._since = clock.time()
        self._last = spool.depth(), Counts()  # read together
        self._committed_before = self._last[0].committed_rows
        self._committer_state: State | None = None  # another process's, while that commits for this uploader
        self.source = Source(spool.target.repo, writer, status, queue.depth, self.depth, clock.time)
        self._stall = StallReporter(clock.time)
        self.progress = Progress(self.figures, progress, clock.time)

    async def run(self) -> None:
        """Refresh until cancelled, also while the committer waits for the Hub or does not exist."""
        while True:
            await self._clock.sleep(_REFRESH_S)
            await run_in_thread(self._tick)

    def _tick(self) -> None:
        self._spool.catalogue.checkpoint()
        self.refresh()
        self.progress.tick()
        self._report_stall()

    def _report_stall(self) -> None:
        """Log at least once a minute that rows wait and nothing progresses: how many, why, and what to do."""
        depth, queue, condition = self.depth(), self._queue.depth(), self.condition()
        rows = depth.rows + queue.rows
        is_draining = self.progress.is_draining
        seconds = self._stall.due(
            (depth.committed_shards, depth.staged, depth.dead),
            is_stuck=rows > 0 and self._is_stuck(condition),
            someone_waits=rows > 0 and (is_draining or self._queue.waiting_producers() > 0),
        )
        if seconds is None:
            return
        where = safe_text(depth.rows, depth.bytes, self._spool.directory)
        if queue.rows:
            where += f", and {rows_text(queue.rows, queue.bytes)} only in memory"
        then = f"Uploads go on {'once that is fixed' if condition.kind == 'blocked' else 'as soon as possible'}."
        if is_draining:
            then += f" Press Ctrl-C to stop waiting. To upload them later: hubsync drain {self._spool.directory}"
        _log.warning("Nothing has been uploaded for %s: %s. %s. %s", duration_text(seconds), condition, where, then)

    def _is_stuck(self, condition: Condition) -> bool:
        """Return whether this process should report a wait that no caller notices: if it commits, or its spool is full.

        Waiting for linger or for the pace that `CommitPolicy` sets is no reason to report.
        """
        state = self._status.state
        if state.kind == "spool full":
            return True
        is_delayed = state.reason == QUOTA or state.reason.startswith(READING)
        has_problem = condition.kind in ("waiting", "blocked") or is_delayed or bool(self._status.activity)
        return has_problem and self._spool.lease.is_held

    def refresh(self) -> None:
        """Read the spool's depth. If the catalogue is busy, keep the last one."""
        with suppress(SpoolError), self._spool.catalogue.impatient():
            self._last = self._spool.depth(), copy.copy(self._status.counts)
            stored = None if self._spool.lease.is_held else self._spool.catalogue.get("status")
            self._committer_state = read_stored(stored) if stored else None

    def depth(self) -> SpoolDepth:
        """Return the spool's depth half a second ago, with what this uploader has spooled since. From memory."""
        (last, then), now = self._last, self._status.counts
        if now.spooled_rows == then.spooled_rows:
            return last
        return last._replace(
            rows=last.rows + now.spooled_rows - then.spooled_rows,
            bytes=last.bytes + now.spooled_bytes - then.spooled_bytes,
            oldest_at=self._opened_at() if last.oldest_at is None else last.oldest_at,
        )

    def figures(self) -> Figures:
        """Return what progress shows. From memory."""
        depth, state = self.depth(), self._status.state
        if (theirs := self._committer_state) is not None:
            state = theirs if state.kind == "ok" else full_because(state, theirs)
        done = depth.committed_rows - self._committed_before
        age = depth.oldest_age_s(self._clock.time(), self._queue.depth().oldest_at)
        return Figures(
            self._spool.target.repo, state,
            done + depth.rows, done, depth.rows, depth.bytes, age, depth.dead, depth.lost_rows,
        )  # fmt: skip

    def condition(self) -> Condition:
        """Return what the rows wait for; rejected ones wait for nothing. From memory, and the committer's lock."""
        lease, depth = self._spool.lease, self.depth()
        committer = None if lease.is_held else lease.holder_pid
        other = "" if committer is None else f"process {committer} commits for this spool"
        return condition_of(
            SpoolFacts(
                self._spool.directory, self.figures().state, rows=depth.rows, queued_rows=self._queue.depth().rows,
                is_open=True, committer="working" if lease.is_held or other else "none",
                activity=self._status.activity or other,
            )
        )  # fmt: skip

    def write_heartbeat(self) -> None:
        """Write this uploader's heartbeat file, for other processes."""
        queue = self._queue.depth()
        heartbeat = Heartbeat(
            pid=os.getpid(), at=self._clock.time(), since=self._since, state=self._status.state,
            activity=self._status.activity, counts=self._status.counts,
            queue_batches=queue.batches, queue_oldest_at=queue.oldest_at,
            queue_rows=queue.rows, queue_bytes=queue.bytes, queue_max_bytes=self._queue.policy.max_bytes,
            blocked=queue.blocked, raised=queue.raised, dropped=queue.dropped, linger_s=self._shard_policy.linger_s,
            shard_max_bytes=self._shard_policy.max_bytes, spool_max_bytes=self._spool.policy.max_bytes,
        )  # fmt: skip
        write_heartbeat(self._spool.directory, self._writer, heartbeat)

    def remove_heartbeat(self) -> None:
        """Remove the heartbeat file: the uploader ends in order."""
        remove_heartbeat(self._spool.directory, self._writer)
