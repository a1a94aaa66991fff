"""The thread between the queue and the spool: it blocks on the disk, and on nothing else.

It takes everything that waits and spools it at once, so a batch becomes safe without the event loop's turn. `flush`,
`close` and lingering reach it as orders in the queue, so they see all batches that were put before them.
"""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.formatting import count_text, word
from hubsync._runtime.notifiers import OneShotEvent
from hubsync.errors import HubsyncError, QueueFull, SpoolError, SpoolLost
from hubsync.model.batch import Batch
from hubsync.model.layout import Layout
from hubsync.model.receipt import Receipt, mark_dropped, mark_spooled, outcome_of
from hubsync.policies import ShardPolicy
from hubsync.spool.spool import Spool
from hubsync.spool.writer import Accepted, SpoolWriter
from hubsync.telemetry.status import State, Status
from hubsync.uploader.delivery import Delivery, Flush
from hubsync.uploader.queue import BoundedQueue, Order
from hubsync.uploader.wakers import Wakers

_log = logging.getLogger("hubsync")
R = TypeVar("R")

_FULL_S = 0.5  # how often a full spool or disk is tried again
_MOST_REASONS = 100  # for which rejected batches are logged
_LOG_CHECK_TAKES = 16  # takes between two checks of the write-ahead log's share of the disk


class SpoolThread:
    """Owns the writers of one uploader. `run` is the thread; everything else runs in it unless it says otherwise."""

    def __init__(
        self,
        spool: Spool,
        queue: BoundedQueue,
        layout: Layout,
        shard: ShardPolicy,
        delivery: Delivery,
        status: Status,
        wakers: Wakers,
        *,
        is_offline: bool,
    ) -> None:
        self.writer = SpoolWriter.open(spool, layout, shard)
        self._spool = spool
        self._queue = queue
        self._shard = shard
        self._delivery = delivery
        self._status = status
        self._wakers = wakers
        self._is_offline = is_offline
        self._siblings: dict[Layout, SpoolWriter] = {}  # writers of other configs, opened by schema conflicts
        self._in_hand: Sequence[Batch] = ()  # taken from the queue, and being written
        self._backlog: deque[Batch | Order] = deque()  # taken from the queue, to be processed next
        self._reported: set[str] = set()  # why batches were quarantined
        self._takes = 0
        self.is_stopping = False  # `stop` was called
        self._has_room = OneShotEvent()

    def relocate(self, layout: Layout, shard: ShardPolicy) -> None:
        """Write to other paths from now on. Nothing may have been put yet."""
        self._shard = shard
        self.writer.relocate(layout, shard)

    # From any thread.

    @property
    def writers(self) -> list[SpoolWriter]:
        """The writers of this uploader, its own first."""
        return [self.writer, *self._siblings.values()]

    def opened_at(self) -> float | None:
        """Return when the oldest row in an open segment came; None if no segment is open."""
        return min((at for writer in self.writers if (at := writer.opened_at) is not None), default=None)

    def notify_room(self) -> None:
        """Retry now if the spool was full: something was committed."""
        self._has_room.set()

    def stop(self) -> None:
        """Spool what is queued, then end. A full disk is not waited for any more."""
        self.is_stopping = True
        self._has_room.set()
        self._queue.close()

    def fail_pending(self, error: HubsyncError) -> None:
        """Drop the batches that did not reach the spool. Call it after the thread has ended."""
        for item in itertools.chain(self._in_hand, self._backlog, *iter(self._queue.take, [])):
            if isinstance(item, Batch) and item.receipt.state == "queued":
                mark_dropped(item.receipt, error)

    # In the thread.

    def run(self) -> None:
        """Spool until the queue is closed and empty."""
        while items := self._queue.take():
            failpoint(Failpoint.TAKEN)
            self.process(items)
        self.seal_all()
        self._wakers.wake()

    def process(self, items: Iterable[Batch | Order]) -> None:
        """Spool what was taken from the queue; run each order after the batches before it."""
        self._backlog.extend(items)
        while self._backlog:
            item = self._backlog.popleft()
            if isinstance(item, Order):
                item.run()
                continue
            batches = [item]
            while self._backlog and isinstance(more := self._backlog[0], Batch) and more.layout == item.layout:
                batches.append(more)
                self._backlog.popleft()
            self._write(batches)

    def _write(self, batches: list[Batch]) -> None:
        while batches:  # the spool's quota may end a take
            self._in_hand = batches
            batches = batches[self._write_some(batches) :]
        self._in_hand = ()

    def _write_some(self, batches: list[Batch]) -> int:
        """Spool the first of these batches, as many as the spool takes at once; return how many."""
        was_idle = self.opened_at() is None
        try:
            result = self._retry(partial(self._append, batches), partial(self._give_back, batches))
        except SpoolLost as lost:
            _drop(batches, lost)
            raise
        if not batches:
            return 0  # all were given back
        self._queue.refusal = None
        if result is None:
            error = SpoolError(f"the spool {self._spool.directory} takes no more rows, and the uploader was closed.")
            _drop(batches, error)
            rows = sum(batch.rows for batch in batches)
            _log.error("%s in memory %s not accepted: %s", count_text(rows, "row"), word(rows, "was", "were"), error)
        else:
            accepted, sealed = result
            batches = batches[: len(accepted)]
            for batch, (segment, replayed, refused) in zip(batches, accepted, strict=True):
                if refused is not None:
                    self._refuse(batch, refused)
                    continue
                rows = 0 if replayed or batch.set_aside is not None else batch.rows
                outcome = self._delivery.outcome(segment, rows, may_be_settled=replayed or segment in sealed)
                mark_spooled(batch.receipt, outcome, replayed=replayed)
            failpoint(Failpoint.NOTIFIED)
            if sealed:
                self._wakers.wake()
            if was_idle or sealed:
                self._wakers.wake_linger()
            for writer in self.writers:
                writer.hash_written()
            self._bound_write_ahead_log()
        self._queue.release(batches)
        return len(batches)

    def _refuse(self, batch: Batch, error: HubsyncError) -> None:
        """Give a batch back to the caller; if that no longer waits, to the next flush or the close."""
        mark_dropped(batch.receipt, error)
        if not batch.waits:
            self._delivery.fail(error)
            _log.error("A batch of %s was not accepted: %s", count_text(batch.rows, "row"), error)

    def _give_back(self, batches: list[Batch], why: str) -> bool:
        """Apply the queue's policy while the spool is full: give back what may be, and keep the rest in `batches`.

        With "raise", a batch whose caller no longer waits is kept: it was accepted, and nothing would raise.

        Returns:
            Whether nothing is left.
        """
        when_full = self._queue.policy.when_full
        if when_full == "block":
            return False
        self._queue.refusal = why
        self._backlog.extend(self._queue.take(wait=False))
        given: list[Batch] = []

        def is_given_back(item: Batch | Order) -> bool:
            if isinstance(item, Batch) and (item.waits or when_full == "drop"):
                given.append(item)
                return True
            return False

        batches[:] = [batch for batch in batches if not is_given_back(batch)]
        self._backlog = deque(item for item in self._backlog if not is_given_back(item))
        _drop(given, QueueFull(f"the batch was not accepted: {why}"))
        self._queue.count_given_back(len(given))
        self._queue.release(given)
        if not batches:
            self._queue.refusal = None
        return not batches

    def _append(self, batches: list[Batch]) -> tuple[list[Accepted], list[int]]:
        spool = self._spool
        if not spool.disk.is_there():
            raise spool.lost()
        if spool.disk.is_exhausted():
            # There may be room again, and no committer to notice; or this is all the room there will ever be.
            spool.disk.reserve(of_what_is_left=not spool.depth().rows)
        if spool.disk.is_exhausted():
            raise SpoolError(f"the disk of {spool.directory} is full. It takes more rows as soon as it has room.")
        accepted, sealed = self._writer_for(batches[0]).append(batches)
        self._count(batches[: len(accepted)], accepted)
        return accepted, sealed

    def _writer_for(self, batch: Batch) -> SpoolWriter:
        if batch.layout is None:
            return self.writer
        if batch.layout not in self._siblings:
            opened = SpoolWriter.open(self._spool, batch.layout, self._shard, self.writer.order)
            self._siblings = {**self._siblings, batch.layout: opened}  # a new dict: the event loop reads the old one
        return self._siblings[batch.layout]

    def _count(self, batches: list[Batch], accepted: list[Accepted]) -> None:
        new = [batch for batch, found in zip(batches, accepted, strict=True) if not (found.replayed or found.error)]
        size = sum(len(batch.lines) for batch in new)
        counts = self._status.counts
        counts.spooled_batches += len(new)
        counts.spooled_rows += sum(batch.rows for batch in new)
        counts.spooled_bytes += size
        counts.replayed_batches += sum(found.replayed for found in accepted)
        for batch in new:
            if batch.set_aside is not None:
                self._report_quarantined(batch)

    def _report_quarantined(self, batch: Batch) -> None:
        """Log each reason once: a job whose rows drift goes on drifting."""
        why = str(batch.set_aside).partition(" (line")[0]
        if why not in self._reported and len(self._reported) < _MOST_REASONS:
            self._reported.add(why)
            _log.warning(
                "%s rejected: %s. They are kept in %s. Further batches rejected for this reason are not logged.",
                count_text(batch.rows, "row"), why, self._spool.quarantine.directory,
            )  # fmt: skip

    # A disk or a spool that is full.

    def _retry(self, work: Callable[[], R], give_up: Callable[[str], bool] = lambda why: False) -> R | None:
        """Return the result of `work`, retried while the disk, the quota or the table of open files refuses.

        None once the uploader is being closed, or once `give_up`, called with the reason, returns True.
        """
        while True:
            try:
                result = work()
            except SpoolLost:
                raise
            except (SpoolError, OSError) as error:
                self._status.report("spool thread", State("spool full", str(error)))
                if self.is_stopping:
                    return None
                with suppress(SpoolError):
                    self._make_room()
                self._wakers.wake()
                if give_up(self._status.state.reason):
                    return None
                self._has_room.wait(_FULL_S)
            else:
                if self._status.troubled("spool thread"):
                    self._status.report("spool thread", State())
                return result

    def _make_room(self) -> None:
        """Seal what is open: only that can be committed and make room, and the producer waits for it."""
        try:
            self._seal_for_room()
        except SpoolError:
            self._spool.disk.give_up_reserve()
            if self._spool.disk.is_exhausted():
                self._seal_for_room()  # at once, before others take what was given up

    def _seal_for_room(self) -> None:
        self._spool.catalogue.checkpoint(shrink=True)  # so that the catalogue writes where its log has room
        for writer in self.writers:
            writer.seal()
            self._spool.mark_urgent(writer.name)

    def _bound_write_ahead_log(self) -> None:
        """Keep the catalogue's log smaller than what it leaves of the disk."""
        self._takes += 1
        catalogue = self._spool.catalogue
        if self._takes % _LOG_CHECK_TAKES == 0 and self._spool.disk.has_less_than(catalogue.log_bytes()):
            catalogue.checkpoint(shrink=True)

    # Orders.

    def seal_all(self) -> None:
        """Seal every open segment."""
        for writer in self.writers:
            self._retry(writer.seal)

    def seal_if_unchanged(self, opened_at: float | None) -> None:
        """Seal if the oldest open segment is still the one that was opened then: its rows have waited long enough."""
        if self.opened_at() == opened_at:
            self.seal_all()
            self._wakers.wake()
            self._wakers.wake_linger()

    def start_flush(self, flush: Flush, everything: bool, of: Receipt | None) -> None:
        """Seal, mark what is not committed as urgent, and let `flush` wait for it.

        Args:
            flush: what the caller waits for.
            everything: wait for other writers' shards as well, unless another process commits them.
            of: wait only for this batch.
        """
        if of is not None and of.state == "dropped":
            assert of.error is not None
            mark_dropped(flush, of.error)
            return
        self.seal_all()
        if self._is_offline:
            self._delivery.begin(flush, [])
            return
        # At the very start no process may commit yet: then it is this one's job as much as anyone's.
        everything = everything and self._retry(lambda: self._spool.lease.is_held_by_others) is False
        if everything:
            self._retry(self._spool.recovery.adopt)  # else what dead writers left open would not be waited for
        pending: list[int] = []
        for name in [None] if everything else [writer.name for writer in self.writers]:
            urgent = self._retry(partial(self._spool.mark_urgent, name))
            if urgent is None:
                return  # closed while the spool took no writes: the engine's end notifies the waiters
            pending += urgent
        outcome = None if of is None else outcome_of(of)
        self._delivery.begin(flush, self._delivery.pending(pending) if outcome is None else [outcome])
        self._wakers.hurry()


def _drop(batches: list[Batch], error: HubsyncError) -> None:
    for batch in batches:
        mark_dropped(batch.receipt, error)
