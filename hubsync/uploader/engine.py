"""The uploader's worker: queue to spool in a thread of its own, spool to Hub in the event loop.

The thread takes what waits and spools it in one go, so a batch becomes safe without the event loop's turn. The
loop keeps time (linger), stages and commits. `flush` and `close` are orders in the queue: they see all that was put
before them. A cancelled worker leaves the spool consistent: everything taken is either in it or was never accepted.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import logging
import os
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import anyio
from anyio.abc import TaskStatus

from hubsync._runtime.clock import Clock
from hubsync._runtime.exceptions import root_cause, unwrapped_hub_errors
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.file_lock import HEARTBEAT_S
from hubsync._runtime.formatting import count_text
from hubsync._runtime.notifiers import Notifier, threadsafe_callback
from hubsync._runtime.retry import Backoff
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.committer import Committer
from hubsync.destinations.base import Destination
from hubsync.destinations.instrumented import instrumented
from hubsync.errors import (
    BlockedError,
    ClosedError,
    HubError,
    HubsyncError,
    NotDrained,
    SpoolError,
    SpoolLost,
    TransientError,
)
from hubsync.model.batch import Batch
from hubsync.model.layout import Layout
from hubsync.model.receipt import Receipt, mark_dropped, mark_spooled, outcome_of
from hubsync.model.stats import Counts, SpoolDepth
from hubsync.policies import MIB, CommitPolicy, QueuePolicy, RetryPolicy, ShardPolicy
from hubsync.spool.spool import Spool
from hubsync.spool.writer import Accepted, SpoolWriter
from hubsync.telemetry.heartbeat import Heartbeat, remove_heartbeat, write_heartbeat
from hubsync.telemetry.metrics import Source, register_source
from hubsync.telemetry.progress import Figures, Progress
from hubsync.telemetry.status import State, Status, read_stored
from hubsync.uploader.delivery import Delivery, Flush
from hubsync.uploader.queue import BoundedQueue, Order

_log = logging.getLogger("hubsync")
R = TypeVar("R")

_CONNECT_S = 15.0  # how long a start may wait for a Hub that hangs
_FOLLOW_S = 0.5  # how soon a writer sees what another process committed for it
_FULL_S = 0.5  # how often a full spool or disk is tried again
_LOOK_S = 0.5  # how often the catalogue's write-ahead log is looked at, and how the spool stands
_MOST_TOLD = 100  # reasons for which something was set aside
_TAKES = 16  # between two looks at the log's share of the disk
_QUOTA_STEP = 8 * MIB  # bytes spooled between two looks at the spool's quota


class Engine:
    """Everything behind the two faces. `put` side: any thread. `run`: one task, once."""

    def __init__(
        self,
        spool: Spool,
        destination: Destination | None,
        *,
        layout: Layout,
        queue: QueuePolicy,
        shard: ShardPolicy,
        commit: CommitPolicy,
        retry: RetryPolicy,
        clock: Clock,
        rng: random.Random,
        progress: bool | None = False,
    ) -> None:
        """Opens a writer in the spool. With no destination (offline), rows are only spooled."""
        self.spool = spool
        self.queue = BoundedQueue(queue, clock.time)
        self._seen = spool.depth(), Counts()
        self._committed_before = self._seen[0].committed_rows
        self.status = Status(
            self._save_status, spool.waiting_text, stored=spool.catalogue.get("status"), now=clock.time
        )
        if layout.format != "jsonl":
            shard = replace(shard, max_bytes=min(shard.max_bytes, spool.disk.keep_room_for(shard.max_bytes)))
        self.writer = SpoolWriter.open(spool, layout, shard)
        spool.disk.reserve()
        self._siblings: dict[Layout, SpoolWriter] = {}  # of other configs, where a schema conflict opened one
        self.failure: BaseException | None = None
        self.on_misfit: Callable[[], None] = lambda: None  # a shard did not go with what others brought
        self._shard = shard
        self._clock = clock
        self._committers: State | None = None  # the state of another process, where it commits for this one
        self._since = clock.time()
        self._queue_max_bytes = queue.max_bytes
        self.source = Source(spool.target.repo, self.writer.name, self.status, self.queue.depth, self.depth, clock.time)
        self.progress = Progress(self.figures, progress, clock.time)
        self._destination = None if destination is None else instrumented(destination, self.source.attributes)
        self._committing = (commit, retry, rng)
        self._committer: Committer | None = None
        self._fates = Delivery(spool)
        self._told: set[str] = set()  # why something was set aside
        self._in_hand: list[Batch | Order] = []  # what the spool's thread has taken
        self._unchecked = _QUOTA_STEP  # bytes spooled since the quota was looked at: look before the first
        self._takes = 0
        self._stopping = threading.Event()
        self._room = threading.Event()  # something was committed: a full spool may have room
        self._wake: Callable[[], None] = lambda: None
        self._nudge: Callable[[], None] = lambda: None
        self._wake_linger: Callable[[], None] = lambda: None
        self._give_up: Callable[[], None] = lambda: None  # the Hub that a start waits for

    def _save_status(self, text: str) -> None:
        """One of a spool's processes speaks for it: the one that commits."""
        if self.spool.lease.is_held or self.offline:
            self.spool.catalogue.set_if_idle("status", text)

    @property
    def offline(self) -> bool:
        return self._destination is None

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Works until `stop`. Reports started once access is checked, as far as the Hub can be reached.

        Raises:
            BlockedError: at the start, where the token or the repo is not good.
        """
        unwatch = register_source(self.source)
        try:
            linger_bell = Notifier(self._clock)
            self._wake_linger = threadsafe_callback(linger_bell.notify)
            if self._destination is not None:
                commit, retry, rng = self._committing
                self._committer = Committer(
                    self.spool, self._destination, commit=commit, retry=retry, clock=self._clock, rng=rng,
                    status=self.status, events=self,
                )  # fmt: skip
                self._wake = threadsafe_callback(self._committer.wake)
                self._nudge = threadsafe_callback(self._committer.hurry)
                async with unwrapped_hub_errors(), anyio.create_task_group() as tasks:
                    self._give_up = threadsafe_callback(tasks.cancel_scope.cancel)
                    if self._stopping.is_set():
                        tasks.cancel_scope.cancel()
                    tasks.start_soon(self._beat)
                    await self._connect(self._committer)
                    tasks.cancel_scope.cancel()
            else:
                self.status.report("commit", State("offline", "HF_HUB_OFFLINE is set; rows are only spooled"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._close_when_cancelled)
                tasks.start_soon(self._linger, linger_bell)
                tasks.start_soon(self._beat)
                tasks.start_soon(self._look_around)
                if self._committer is not None:
                    tasks.start_soon(self._committer.run)
                    tasks.start_soon(self._follow)
                task_status.started()
                await self._spool_in_thread()
                tasks.cancel_scope.cancel()
        except BaseException as error:
            self.failure = root_cause(error)
            raise
        finally:
            self._end()
            unwatch()
            self.progress.close()
            if self._destination is not None:
                with anyio.CancelScope(shield=True):
                    await self._destination.aclose()

    async def _connect(self, committer: Committer) -> None:
        """What fails is told as any trouble of the committer's, which goes on trying, and tells its end."""
        _, retry, rng = self._committing
        why, backoff = f"the Hub did not answer in {_CONNECT_S:g} s", Backoff(retry.initial_s, retry.max_s, rng)
        with anyio.move_on_after(_CONNECT_S):
            while True:
                try:
                    await committer.connect()
                    return
                except TransientError as error:
                    why = error.reason
                    if error.status is None or self.spool.is_seeded:  # it is away, or nothing depends on it
                        break
                    await self._clock.sleep(backoff.after_failure(error.retry_after_s))
        self.status.report("read", State("backing off", why))

    async def _spool_in_thread(self) -> None:
        try:
            await run_in_thread(self._spool_loop)
        except anyio.get_cancelled_exc_class():
            # Cancelled, perhaps before the thread had begun: what is queued was accepted, so it is spooled still.
            self.queue.close()
            with anyio.CancelScope(shield=True):
                await run_in_thread(self._spool_loop)
            raise

    async def _close_when_cancelled(self) -> None:
        """A part that fails cancels the others; the thread, which can't be cancelled, ends with its queue."""
        try:
            await anyio.sleep_forever()
        finally:
            self.stop()

    def stop(self) -> None:
        """No more batches. What is queued is still spooled; then `run` ends. From any thread."""
        self._stopping.set()
        self._give_up()
        self._room.set()
        self.queue.close()

    def _end(self) -> None:
        self.queue.close()
        if self.offline and self._seen[0].rows:
            where = self.spool.directory
            _log.info("offline: %s; bring them up with: hubsync drain %s", self.spool.waiting_text(), where)
        ended: HubsyncError = ClosedError(f"the uploader has ended{f' by {self.failure!r}' if self.failure else ''}.")
        if isinstance(self.failure, SpoolLost):
            ended = self.failure
            if rows := self.queue.depth().rows:
                ended.add_note(f"{rows:,} rows were in memory, on their way to it; they were not accepted.")
        # What has ended it may have struck in the middle of a take: who waits for that is told as well.
        for item in itertools.chain(self._in_hand, *iter(self.queue.take, [])):
            if isinstance(item, Batch) and item.receipt.state == "queued":
                mark_dropped(item.receipt, ended)
        if not isinstance(ended, SpoolLost):  # those who wait for a commit have their rows in the spool
            left = self.depth()
            ended = NotDrained(self.spool.directory, left.rows, left.bytes, str(ended))
        remove_heartbeat(self.spool.directory, self.writer.name)
        for writer in self._writers():
            writer.close()
        self._fates.end(ended)

    # The spool's thread.

    def _spool_loop(self) -> None:
        while items := self.queue.take():
            self._in_hand = items
            failpoint(Failpoint.TAKEN)
            self.spool_items(items)
            self._in_hand = []
        self._seal()
        self.see()
        self._wake()

    def _writers(self) -> list[SpoolWriter]:
        return [self.writer, *self._siblings.values()]

    def _writer_for(self, batch: Batch) -> SpoolWriter:
        if batch.layout is None:
            return self.writer
        if batch.layout not in self._siblings:
            opened = SpoolWriter.open(self.spool, batch.layout, self._shard)
            self._siblings = {**self._siblings, batch.layout: opened}  # the event loop reads it meanwhile
        return self._siblings[batch.layout]

    def _seal(self) -> None:
        for writer in self._writers():
            self._until_it_works(writer.seal)

    def spool_items(self, items: list[Batch | Order]) -> None:
        """Spools what was taken from the queue; an order is done after all that was put before it."""
        batches: list[Batch] = []
        for item in items:
            if isinstance(item, Batch):
                if batches and item.layout != batches[-1].layout:
                    self._spool(batches)
                    batches = []
                batches.append(item)
            else:
                self._spool(batches)
                batches = []
                item.run()
        self._spool(batches)

    def _spool(self, batches: list[Batch]) -> None:
        if not batches:
            return
        idle = self._opened_at() is None
        try:
            result = self._until_it_works(partial(self._append, batches))
        except SpoolLost as lost:
            self._drop(batches, lost)
            raise
        if result is None:
            error = SpoolError(f"the spool {self.spool.directory} takes no more, and the uploader was closed.")
            self._drop(batches, error)
            _log.error("%d rows in memory were not accepted: %s", sum(batch.rows for batch in batches), error)
        else:
            accepted, sealed = result
            for batch, (segment, replayed) in zip(batches, accepted, strict=True):
                rows = 0 if replayed or batch.set_aside is not None else batch.rows
                fate = self._fates.of(segment, rows, may_be_settled=replayed or segment in sealed)
                mark_spooled(batch.receipt, fate, replayed=replayed)
            failpoint(Failpoint.NOTIFIED)
            if sealed:
                self._wake()
            if idle or sealed:
                self._wake_linger()
            for writer in self._writers():
                writer.hash_written()
            self._bound_log()
        self.queue.release(batches)

    def _drop(self, batches: list[Batch], error: HubsyncError) -> None:
        for batch in batches:
            mark_dropped(batch.receipt, error)

    def _append(self, batches: list[Batch]) -> tuple[list[Accepted], list[int]]:
        if not self.spool.disk.is_there():
            raise self.spool.lost()
        if self.spool.disk.is_exhausted():
            # There may be room again, and no committer to see it; or as much of it as there will ever be.
            self.spool.disk.reserve(of_what_is_left=not self.spool.depth().rows)
        if self.spool.disk.is_exhausted():
            raise SpoolError(f"the disk of {self.spool.directory} is full; it takes more as soon as there is room.")
        if self._unchecked >= _QUOTA_STEP and (why := self.spool.full_text()):
            raise SpoolError(why)
        accepted, sealed = self._writer_for(batches[0]).append(batches)
        self._count(batches, accepted)
        return accepted, sealed

    def _count(self, batches: list[Batch], accepted: list[Accepted]) -> None:
        new = [batch for batch, found in zip(batches, accepted, strict=True) if not found.replayed]
        size = sum(len(batch.lines) for batch in new)
        self._unchecked = (0 if self._unchecked >= _QUOTA_STEP else self._unchecked) + size
        counts = self.status.counts
        counts.spooled_batches += len(new)
        counts.spooled_rows += sum(batch.rows for batch in new)
        counts.spooled_bytes += size
        counts.replayed_batches += len(batches) - len(new)
        for batch in new:
            if batch.set_aside is not None:
                counts.refusals += 1
                self._tell_set_aside(batch)

    def _tell_set_aside(self, batch: Batch) -> None:
        """Each reason once: a job that drifts goes on drifting, and the dead letter counts."""
        why = str(batch.set_aside).partition(" (line")[0]
        if why not in self._told and len(self._told) < _MOST_TOLD:
            self._told.add(why)
            _log.warning(
                "%s set aside in %s: %s. What else is like that follows without a word.",
                count_text(batch.rows, "row"), self.spool.directory / "dead-letter", why,
            )  # fmt: skip

    def _until_it_works(self, work: Callable[[], R]) -> R | None:
        """Tries again while the disk, the spool's quota or the table of open files refuses; None once it is closed."""
        while True:
            try:
                result = work()
            except SpoolLost:
                raise
            except (SpoolError, OSError) as error:
                self.status.report("spool thread", State("spool full", str(error)))
                if self._stopping.is_set():
                    return None
                with contextlib.suppress(SpoolError):
                    try:
                        self._make_room()
                    except SpoolError:
                        self.spool.disk.give_up_reserve()
                        if self.spool.disk.is_exhausted():
                            self._make_room()  # at once, before others take what was given up
                self._wake()
                self._room.clear()
                self._room.wait(_FULL_S)
            else:
                if self.status.troubled("spool thread"):
                    self.status.report("spool thread", State())
                return result

    def _make_room(self) -> None:
        """Only what is sealed can be committed and make room, and the producer waits for that."""
        self.spool.catalogue.checkpoint(shrink=True)  # then it writes where its log has room already
        for writer in self._writers():
            writer.seal()
            self.spool.mark_urgent(writer.name)

    def _bound_log(self) -> None:
        """The catalogue's log takes no more of the disk than it leaves."""
        self._takes += 1
        if self._takes % _TAKES == 0 and self.spool.disk.has_less_than(self.spool.catalogue.log_bytes()):
            self.spool.catalogue.checkpoint(shrink=True)

    # Flushing.

    def flush(self, *, everything: bool = False, of: Receipt | None = None) -> Flush:
        """A receipt that is committed once all that was put before is, or the batch `of` is; or that tells of what
        blocks. `everything`: other writers' shards as well. Who waits for it does so within its block.
        """
        flush = self._fates.flush(of)
        self.queue.order(Order(lambda: self._flush(flush, everything, of)))
        return flush

    def hurry(self, batch: Receipt) -> AbstractContextManager[Receipt]:
        """A flush of one batch, which was put just now."""
        try:
            return self.flush(of=batch)
        except ClosedError:  # by another thread, since: it is accepted, and spooled still
            return contextlib.nullcontext(batch)

    def _flush(self, flush: Flush, everything: bool, of: Receipt | None) -> None:
        self._seal()
        if self.offline:
            self._fates.begin(flush, [])
            return
        # At the very start nobody may commit yet: then it is as much this process' to do as anybody's.
        all_of_it = everything and self._until_it_works(lambda: self.spool.lease.is_held_by_others) is False
        if all_of_it:
            self._until_it_works(self.spool.recovery.adopt)  # what the dead left open would not be waited for
        pending: list[int] | None = []
        for name in [None] if all_of_it else [writer.name for writer in self._writers()]:
            urged = self._until_it_works(partial(self.spool.mark_urgent, name))
            pending = None if pending is None or urged is None else pending + urged
        if pending is None:
            return  # closed while the spool took no writes: `_end` tells
        fate = None if of is None else outcome_of(of)
        self._fates.begin(flush, self._fates.pending(pending) if fate is None else [fate])
        self._nudge()

    # The event loop's side.

    def _opened_at(self) -> float | None:
        """When the oldest row that is in an open segment came."""
        return min((at for writer in self._writers() if (at := writer.opened_at) is not None), default=None)

    async def _linger(self, bell: Notifier) -> None:
        while True:
            opened_at = self._opened_at()
            age = 0.0 if opened_at is None else self._clock.time() - opened_at
            wait = 3600.0 if opened_at is None else self._shard.linger_s - age
            if wait > 0 and age >= 0:  # where the clock was set back, nobody knows how old it is: sealed now
                await bell.wait(wait)
            else:
                with contextlib.suppress(ClosedError):
                    self.queue.order(Order(partial(self._seal_if_older, opened_at)))
                await bell.wait(1.0)

    def _seal_if_older(self, opened_at: float | None) -> None:
        if self._opened_at() == opened_at:
            self._seal()
            self._wake()
            self._wake_linger()

    async def _beat(self) -> None:
        while True:
            for writer in self._writers():
                writer.refresh()
            write_heartbeat(self.spool.directory, self.writer.name, self._live())
            if not self.spool.disk.is_there():
                raise self.spool.lost()
            await self._clock.sleep(HEARTBEAT_S)

    def _live(self) -> Heartbeat:
        queue = self.queue.depth()
        return Heartbeat(
            pid=os.getpid(), at=self._clock.time(), since=self._since, state=self.status.state,
            counts=self.status.counts, queue_batches=queue.batches, queue_oldest_at=queue.oldest_at,
            queue_rows=queue.rows, queue_bytes=queue.bytes, queue_max_bytes=self._queue_max_bytes,
            blocked=queue.blocked, raised=queue.raised, dropped=queue.dropped, linger_s=self._shard.linger_s,
            shard_max_bytes=self._shard.max_bytes, spool_max_bytes=self.spool.policy.max_bytes,
        )  # fmt: skip

    async def _look_around(self) -> None:
        """Also while the committer waits for the Hub, and where there is none."""
        while True:
            await self._clock.sleep(_LOOK_S)
            await run_in_thread(self._look)

    def _look(self) -> None:
        self.spool.catalogue.checkpoint()
        self.see()
        self.progress.tick()

    def see(self) -> None:
        """Reads how the spool stands, for who must not wait for the disk: the metrics, the bars, `AsyncUploader`."""
        with contextlib.suppress(SpoolError), self.spool.catalogue.impatient():
            self._seen = self.spool.depth(), copy.copy(self.status.counts)
            stored = None if self.spool.lease.is_held else self.spool.catalogue.get("status")
            self._committers = read_stored(stored) if stored else None

    def depth(self) -> SpoolDepth:
        """How the spool stood half a second ago at most, and what this uploader has spooled since."""
        (seen, then), now = self._seen, self.status.counts
        if now.spooled_rows == then.spooled_rows:
            return seen
        return seen._replace(
            rows=seen.rows + now.spooled_rows - then.spooled_rows,
            bytes=seen.bytes + now.spooled_bytes - then.spooled_bytes,
            oldest_at=self._opened_at() if seen.oldest_at is None else seen.oldest_at,
        )

    def figures(self) -> Figures:
        """How it stands, for people. From memory."""
        depth, state = self.depth(), self.status.state
        if state.kind == "ok" and self._committers is not None:
            state = self._committers
        done = depth.committed_rows - self._committed_before
        age = depth.oldest_age_s(self._clock.time(), self.queue.depth().oldest_at)
        return Figures(
            self.spool.target.repo, str(self.spool.directory), state,
            done + depth.rows, done, depth.rows, depth.bytes, age, depth.dead,
        )  # fmt: skip

    async def _follow(self) -> None:
        """While another process commits for this writer: sees in the catalogue what became of its segments."""
        alone = False
        while True:
            await self._clock.sleep(_FOLLOW_S)
            # Once more after it has become the committer: the last one may have settled something just before.
            alone, was_alone = self.spool.lease.is_held, alone
            if self._fates and (self._fates.unsure or not (alone and was_alone)):
                self._fates.unsure = False
                try:
                    await run_in_thread(self._look_up)
                except SpoolLost:
                    raise
                except (SpoolError, OSError):
                    self._fates.unsure = True

    def _look_up(self) -> None:
        if self._fates.look_up():
            self.on_misfit()
        self._room.set()
        state = read_stored(self.spool.catalogue.get("status"))
        is_old = state.until is not None and state.until < self._clock.time()  # the last job's: nobody tries again
        if state.kind == "blocked" and not is_old and self.spool.lease.is_held_by_others:
            self._fates.block(
                BlockedError(f"process {self.spool.lease.holder_pid}, which commits here, can't: {state.reason}")
            )

    # What the committer reports.

    def blocked(self, error: HubError) -> None:
        self._fates.block(error)

    def schema_mismatch(self) -> None:
        self.on_misfit()

    def settled(self, segment: int, sha: str | None, error: HubsyncError | None) -> None:
        self._room.set()
        self._fates.settle(segment, sha, error)
