"""Everything behind the two faces: the spool's thread on one side, an event loop with the committer on the other.

    put -> queue -> spool thread -> spool -> committer -> Hub
                        delivery: receipts and flushes that wait

The event loop keeps time (linger), runs the committer and follows what other processes commit. A cancelled engine
leaves the spool consistent: everything taken from the queue is either in the spool or was never accepted.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import anyio
from anyio.abc import TaskGroup, TaskStatus

from hubsync._runtime.exceptions import root_cause, unwrapped_hub_errors
from hubsync._runtime.file_lock import HEARTBEAT_S
from hubsync._runtime.formatting import count_text, word
from hubsync._runtime.notifiers import Notifier, threadsafe_callback
from hubsync._runtime.retry import Backoff
from hubsync._runtime.threads import call_in_new_thread, run_in_thread
from hubsync.committer.committer import Committer
from hubsync.destinations.base import Destination
from hubsync.destinations.instrumented import InstrumentedDestination
from hubsync.encoding import codecs
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
from hubsync.model.layout import Format, Layout
from hubsync.model.receipt import Receipt
from hubsync.model.shard import QuarantinedShard
from hubsync.policies import Policies
from hubsync.spool.spool import Spool
from hubsync.telemetry.metrics import register_source
from hubsync.telemetry.status import READING, State, Status, read_stored
from hubsync.uploader.agent_link import AgentLink
from hubsync.uploader.delivery import Delivery, Flush
from hubsync.uploader.monitor import Monitor
from hubsync.uploader.queue import BoundedQueue, Order
from hubsync.uploader.spool_thread import SpoolThread
from hubsync.uploader.wakers import Wakers

Service = Callable[[], Coroutine[None, None, None]]


class Placement(NamedTuple):
    """Where the user wants the rows.

    Attributes:
        layout: where they go in a new dataset.
        format: the format that the user asked for; None to follow the dataset.
        is_custom: whether the user chose the paths.
        has_schema: whether rows are checked against the columns of the dataset.
    """

    layout: Layout
    format: Format | None = None
    is_custom: bool = False
    has_schema: bool = True


_log = logging.getLogger("hubsync")

_FOLLOW_S = 0.5  # how soon a writer notices what another process committed for it
_IDLE_S = 3600.0
_REST_POLL_S = 0.05


class Engine:
    """One open uploader's queue, spool thread, committer and monitor.

    `run` is one task, once. `flush`, `flush_batch` and `stop` may be called from any thread. It listens to the
    committer: see `DeliveryEvents`.
    """

    def __init__(
        self,
        spool: Spool,
        destination: Destination | None,
        placement: Placement,
        policies: Policies,
        rng: random.Random,
        *,
        uses_agent: bool = False,
        progress: bool | None = False,
        on_schema_mismatch: Callable[[], None] = lambda: None,
    ) -> None:
        """Open a writer in the spool.

        Args:
            spool: where the rows go first.
            destination: where the committer sends them; None (offline) to spool only.
            placement: where the rows belong in the dataset.
            policies: the bounds and paces.
            rng: randomness for the backoff.
            uses_agent: leave the commits to the agent of this host once access is checked.
            progress: when to show bars; see `Uploader`.
            on_schema_mismatch: called in the event loop when a shard did not fit what others committed.
        """
        self.spool = spool
        self.failure: BaseException | None = None
        self.is_ended_by_error = False  # of the job: only what was accepted is uploaded
        self._clock = clock = spool.clock
        self._retry = policies.retry
        self._rng = rng
        self._on_schema_mismatch = on_schema_mismatch
        self._placement, layout = placement, placement.layout
        self._is_placed = False
        self._shard = shard = policies.shard
        if layout.format != "jsonl":
            shard = replace(shard, max_bytes=min(shard.max_bytes, spool.disk.keep_room_for(shard.max_bytes)))
        self._linger_s = shard.linger_s
        stored = spool.catalogue.get("status")
        self.status = Status(self._save_status, self.waiting_text, stored=stored, now=clock.time)
        self._agent = AgentLink(spool, self.status) if uses_agent and destination is not None else None
        spool.commit_policy = policies.commit
        self.queue = BoundedQueue(policies.queue, clock.time)
        self.delivery = Delivery(spool)
        spool.segments.on_refused = self._refused
        self.wakers = Wakers()
        self.spool_thread = SpoolThread(
            spool, self.queue, layout, shard, self.delivery, self.status, self.wakers, is_offline=destination is None
        )
        spool.disk.reserve()
        self.monitor = Monitor(spool, self.queue, self.spool_thread, self.status, shard, progress)
        self._linger_wake = Notifier(clock)
        self._destination: Destination | None = None
        self._committer: Committer | None = None
        if destination is not None:
            self._destination = InstrumentedDestination(destination, self.status, self.monitor.source.attributes)
            self._committer = Committer(
                spool, self._destination, commit=policies.commit, retry=policies.retry, clock=clock, rng=rng,
                status=self.status, events=self, compact=policies.compact,
            )  # fmt: skip

    @property
    def writer_name(self) -> str:
        """This uploader's name among the writers of the dataset."""
        return self.spool_thread.writer.name

    @property
    def is_offline(self) -> bool:
        """Whether rows are only spooled."""
        return self._destination is None

    def _save_status(self, text: str) -> None:
        """Only the committer's process speaks for the spool."""
        if self.is_offline or not self.spool.lease.is_held_by_others:
            self.spool.catalogue.set_if_idle("status", text)

    def waiting_text(self) -> str:
        """Return what is not on the Hub yet, for people. From any thread."""
        in_memory = self.queue.depth().rows
        more = f", and {count_text(in_memory, 'row')} in memory" if in_memory else ""
        return call_in_new_thread(self.spool.waiting_text) + more

    # Running.

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Work until `stop`. Reports started once access is checked, as far as the Hub can be reached.

        Raises:
            BlockedError: at the start, the token or the repo needs an operator.
        """
        unregister = register_source(self.monitor.source)
        try:
            self.bind(threadsafe_callback)
            if self._committer is not None:
                await self._connect_until_stopped(self._committer)
                if self._agent is not None:
                    await self._leave_to_agent()
            else:
                self.status.report("commit", State("offline", "HF_HUB_OFFLINE is set; rows are only spooled"))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._stop_when_cancelled)
                for service in self.services():
                    tasks.start_soon(service)
                tasks.start_soon(self.monitor.run)
                task_status.started()
                await self._run_spool_thread()
                tasks.cancel_scope.cancel()
        except BaseException as error:
            self.failure = root_cause(error)
            raise
        finally:
            self._end()
            unregister()
            self.monitor.progress.close()
            if self._destination is not None:
                with anyio.CancelScope(shield=True):
                    await self._destination.aclose()

    def bind(self, wrap: Callable[[Callable[[], None]], Callable[[], None]]) -> None:
        """Let other threads wake this engine's tasks.

        Args:
            wrap: makes a callback of the event loop safe to call from any thread.
        """
        self.wakers.wake_linger = wrap(self._linger_wake.notify)
        if self._committer is not None and self._agent is None:
            self.wakers.wake = wrap(self._committer.wake)
            self.wakers.hurry = wrap(self._committer.hurry)

    def services(self) -> list[Service]:
        """Return what runs in the event loop until it is cancelled, apart from the monitor."""
        services: list[Service] = [self._linger, self._send_heartbeats]
        if self._agent is not None:
            services += [self._agent.watch, self._follow]
        elif self._committer is not None:
            services += [self._committer.run, self._follow]
        return services

    async def _leave_to_agent(self) -> None:
        """Use no network from now on, and let the agent commit."""
        self._committer = None
        await run_in_thread(self.spool.lease.release)
        if self._destination is not None:
            await self._destination.aclose()

    async def _connect_until_stopped(self, committer: Committer) -> None:
        async with unwrapped_hub_errors(), anyio.create_task_group() as tasks:
            self.wakers.cancel_start = threadsafe_callback(tasks.cancel_scope.cancel)
            if self.spool_thread.is_stopping:
                tasks.cancel_scope.cancel()
            tasks.start_soon(self._send_heartbeats)
            await self._connect(committer, tasks)
            tasks.cancel_scope.cancel()

    async def _connect(self, committer: Committer, tasks: TaskGroup) -> None:
        """Check access. If the Hub can't be reached, report it and go on: the committer keeps trying."""
        seconds = self._retry.open_timeout_s
        why = f"the Hub did not answer in {seconds:g} s"
        backoff = Backoff(self._retry.initial_s, self._retry.max_s, self._rng)

        async def give_up() -> None:
            nonlocal why
            await anyio.sleep(seconds)
            why = self.status.activity or why
            scope.cancel()

        with anyio.CancelScope() as scope:
            tasks.start_soon(give_up)
            while True:
                try:
                    await self._begin(committer)
                    return
                except BlockedError as error:  # whoever looks at the spool later must see why the job ended
                    self.status.report("read", State("blocked", error.reason), log=False)
                    raise
                except TransientError as error:
                    why = error.reason
                    if error.status is None or self.spool.is_seeded:  # it is away, or nothing depends on it
                        break
                    await self._clock.sleep(backoff.after_failure(error.retry_after_s))
        is_reading = self.status.state.reason.startswith(READING) or self.spool.lease.is_held_by_others
        if not (scope.cancelled_caught and is_reading):  # else the Hub answers, and the status says how far that is
            self.status.report("read", State("backing off", why))

    async def _begin(self, committer: Committer) -> None:
        head = await committer.check_access()
        if self.spool.is_seeded:  # it may have to learn what it forgot
            await committer.seed(head)
        if not self._is_placed:  # before a new spool reads the watermarks: that can take longer than `open` waits
            await self._place(committer)
            self._is_placed = True
        await committer.seed(head)

    async def _place(self, committer: Committer) -> None:
        """Choose the shards' paths and format for the dataset as it is, before any row is accepted."""
        _, format, is_custom, has_schema = self._placement
        layout = await committer.place(self.layout, format, is_custom=is_custom, has_schema=has_schema)
        if layout != self.layout:
            codecs.check_installed(layout.format)
            shard = self._shard
            if layout.format != "jsonl":
                shard = replace(shard, max_bytes=min(shard.max_bytes, self.spool.disk.keep_room_for(shard.max_bytes)))
            await run_in_thread(self.spool_thread.relocate, layout, shard)

    @property
    def layout(self) -> Layout:
        """Where this uploader's shards go."""
        return self.spool_thread.writer.layout

    async def _run_spool_thread(self) -> None:
        try:
            await run_in_thread(self._spool)
        except anyio.get_cancelled_exc_class():
            # Perhaps before the thread began. What is queued was accepted, so it is still spooled.
            self.queue.close()
            with anyio.CancelScope(shield=True):
                await run_in_thread(self._spool)
            raise

    def _spool(self) -> None:
        self.spool_thread.run()
        self.monitor.refresh()

    async def _stop_when_cancelled(self) -> None:
        """End the spool's thread when another part fails: it can't be cancelled, and ends with its queue."""
        try:
            await anyio.sleep_forever()
        finally:
            self.stop()

    def stop(self) -> None:
        """Accept no more batches, spool what is queued, then let `run` end. From any thread."""
        self.spool_thread.stop()
        self.wakers.cancel_start()

    def _end(self) -> None:
        self.queue.close()
        if self.is_offline and self.monitor.depth().rows:
            waiting = self.waiting_text()
            _log.info("Offline: %s. To upload them: hubsync drain %s", waiting, self.spool.directory)
        ended: HubsyncError = ClosedError(f"the uploader has ended{f' by {self.failure!r}' if self.failure else ''}.")
        if isinstance(self.failure, SpoolLost):
            ended = self.failure
            if rows := self.queue.depth().rows:
                were = f"{count_text(rows, 'row')} in memory {word(rows, 'was', 'were')}"
                ended.add_note(f"{were} not accepted: the spool was lost before.")
        self.spool_thread.fail_pending(ended)
        if not isinstance(ended, SpoolLost):  # rows that wait for a commit are in the spool
            left = self.monitor.depth()
            ended = NotDrained(self.spool.directory, left.rows, left.bytes, str(ended))
        self.monitor.remove_heartbeat()
        for writer in self.spool_thread.writers:
            writer.close()
        self.delivery.end(ended)

    def report_left(self, rows: int) -> None:
        """Log that an uploader that ended without waiting for the Hub leaves so many rows in the spool."""
        if rows:
            pid, spool = self._agent and self._agent.pid, self.spool.directory
            if pid is None:
                _log.warning("Closed without waiting: %s not on the Hub yet, and safe in %s. To upload them: hubsync "
                             "drain %s", count_text(rows, "row"), spool, spool)  # fmt: skip
            else:
                _log.info("The agent (process %d) uploads the last %s in %s.", pid, count_text(rows, "row"), spool)

    # Flushing, from any thread.

    def flush(self, *, everything: bool = False, of: Receipt | None = None) -> Flush:
        """Return a receipt that is committed once everything that was put before is. Wait for it within its block.

        Args:
            everything: wait for other writers' shards as well, if this process commits them.
            of: wait only for this batch.

        Raises:
            ClosedError: the uploader is closed.
        """
        everything = everything and self._agent is None
        flush = self.delivery.flush(of)
        try:
            self.queue.order(Order(lambda: self.spool_thread.start_flush(flush, everything, of)))
        except ClosedError:
            self.delivery.forget(flush)
            raise
        return flush

    def flush_batch(self, batch: Receipt) -> AbstractContextManager[Receipt]:
        """Return a flush of one batch that was just put."""
        try:
            return self.flush(of=batch)
        except ClosedError:  # another thread has closed the uploader since: the batch is accepted, and will be spooled
            return nullcontext(batch)

    def merge_rest(self, timeout: float | None) -> None:
        """Merge the small shards that are left, if the policy asks for it. It blocks, but waits out no trouble.

        Args:
            timeout: the longest time, in seconds; None for no limit.
        """
        committer = self._committer
        if committer is None or self.is_ended_by_error or not committer.merge_rest():
            return
        until = math.inf if timeout is None else time.monotonic() + timeout
        self.wakers.wake()
        while committer.is_merging_rest and self.failure is None and self.status.state.kind == "ok":
            if time.monotonic() > until or self.spool_thread.is_stopping:
                break
            time.sleep(_REST_POLL_S)

    # In the event loop.

    async def _linger(self) -> None:
        """Seal open segments once their oldest row has waited long enough."""
        while True:
            opened_at = self.spool_thread.opened_at()
            age = 0.0 if opened_at is None else self._clock.time() - opened_at
            wait = _IDLE_S if opened_at is None else self._linger_s - age
            if wait > 0 and age >= 0:  # if the clock was set back, the age is unknown: seal now
                await self._linger_wake.wait(wait)
            else:
                with suppress(ClosedError):
                    self.queue.order(Order(partial(self.spool_thread.seal_if_unchanged, opened_at)))
                await self._linger_wake.wait(1.0)

    async def _send_heartbeats(self) -> None:
        while True:
            for writer in self.spool_thread.writers:
                writer.refresh()
            self.monitor.write_heartbeat()
            if not self.spool.disk.is_there():
                raise self.spool.lost()
            await self._clock.sleep(HEARTBEAT_S)

    async def _follow(self) -> None:
        """Read from the catalogue what became of our segments, if another process commits."""
        is_alone = False
        while True:
            await self._clock.sleep(_FOLLOW_S)
            # Once more after this process became the committer: the last one may have settled something just before.
            is_alone, was_alone = self.spool.lease.is_held, is_alone
            if self.delivery.pending_segments and (self.delivery.is_unsure or not (is_alone and was_alone)):
                self.delivery.is_unsure = False
                try:
                    await run_in_thread(self._read_outcomes)
                except SpoolLost:
                    raise
                except (SpoolError, OSError):
                    self.delivery.is_unsure = True

    def _read_outcomes(self) -> None:
        if self.delivery.read_outcomes():
            self._on_schema_mismatch()
        self.spool_thread.notify_room()
        state = read_stored(self.spool.catalogue.get("status"))
        is_old = state.until is not None and state.until < self._clock.time()  # the last job's: no process retries
        if state.kind == "blocked" and not is_old and self.spool.lease.is_held_by_others:
            pid = self.spool.lease.holder_pid
            self.delivery.block(BlockedError(f"process {pid} commits for this spool, and is blocked: {state.reason}"))

    # What the committer reports.

    def committed(self, segment: int, sha: str) -> None:
        """A segment is in this commit."""
        self.spool_thread.notify_room()
        self.delivery.committed(segment, sha)

    def _refused(self, shard: QuarantinedShard) -> None:
        """A segment ended without all of its rows in the dataset."""
        self.status.counts.refusals += 1
        self.delivery.refused(shard)

    def blocked(self, error: HubError) -> None:
        """An operator must act."""
        self.delivery.block(error)

    def schema_mismatch(self) -> None:
        """A shard did not fit what others committed."""
        self._on_schema_mismatch()
