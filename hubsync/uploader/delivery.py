"""Outcomes of segments, and the receipts and flushes that wait for them.

The committer settles them if it is in this process; otherwise the catalogue tells. A segment that is rejected in this
process, by whatever part, is settled once that transition is committed: see `Segments.on_refused`. Rejected shards are
remembered until a flush or the close has raised them. Safe for several threads, and without a lock: see
`model/receipt`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Self

from hubsync._runtime.formatting import count_text
from hubsync.errors import HubsyncError, ShardsRefused, SpoolError, WaitTimeout
from hubsync.model.receipt import OutcomeGroup, Receipt, SegmentOutcome, Until, mark_dropped, mark_spooled, wait_timeout
from hubsync.model.shard import QuarantinedShard, refusal
from hubsync.spool.spool import Spool


class Flush(Receipt):
    """Committed once everything that it waits for is. Leaving its block ends the wait."""

    __slots__ = ("_leave", "_of", "_take_failure", "has_left")

    def __init__(
        self, leave: Callable[[Flush], object], take_failure: Callable[[], HubsyncError | None], of: Receipt | None
    ) -> None:
        super().__init__(0, 0)
        self._leave = leave
        self._take_failure = take_failure
        self._of = of
        self.has_left = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.has_left = True
        self._leave(self)

    def _timeout_error(self, timeout: float | None) -> WaitTimeout:
        return wait_timeout(self if self._of is None else self._of, timeout)

    def _result(self, until: Until) -> str | None:
        """Return the sha, or raise; also for what went wrong before the flush began."""
        try:
            sha = super()._result(until)
        except ShardsRefused as error:
            raise (self._take_failure() or error) from None
        if (failure := self._take_failure()) is not None:
            raise failure
        return sha


class Delivery:
    """What one uploader waits for.

    Attributes:
        is_unsure: an outcome could not be read, and must be read again.
    """

    def __init__(self, spool: Spool) -> None:
        self.is_unsure = False
        self._spool = spool
        self._pending: dict[int, SegmentOutcome] = {}  # by segment
        self._flushes: dict[Flush, OutcomeGroup | None] = {}  # None: still an order in the queue
        self._failures: deque[HubsyncError] = deque()
        self._refused: deque[QuarantinedShard] = deque()  # since the last flush

    @property
    def pending_segments(self) -> int:
        """How many segments with rows of this uploader are not settled."""
        return len(self._pending)

    def outcome(self, segment: int | None, rows: int, *, may_be_settled: bool) -> SegmentOutcome:
        """Return the outcome of a segment that a batch went to.

        Args:
            segment: None for a batch without rows, which has nothing to wait for.
            rows: rows of the batch.
            may_be_settled: the segment was sealed, so another process may have committed it already.
        """
        if segment is None:
            return SegmentOutcome(settled=True)
        outcome = self._pending.setdefault(segment, SegmentOutcome())
        outcome.counts = outcome.counts or rows > 0
        if may_be_settled:
            self._read([segment])
        return outcome

    def pending(self, segments: Sequence[int]) -> list[SegmentOutcome]:
        """Return the outcomes of segments that the catalogue says are not committed, and settle those it dropped."""
        changed = set(self._pending).symmetric_difference(segments)
        outcomes = [self._pending.setdefault(segment, SegmentOutcome()) for segment in segments]
        for outcome in outcomes:
            outcome.counts = True
        self._read(changed)
        return outcomes

    def read_outcomes(self) -> bool:
        """Read from the catalogue what another process settled; return whether it quarantined anything.

        Raises:
            SpoolError: the catalogue can't be read now.
        """
        return "dead" in {self._read_one(segment) for segment in list(self._pending)}

    def committed(self, segment: int, sha: str | None) -> None:
        """Settle a segment that is committed in `sha`."""
        if (outcome := self._pending.pop(segment, None)) is not None:
            outcome.settle(sha)

    def refused(self, shard: QuarantinedShard) -> None:
        """Settle a segment that ended without all of its rows in the dataset."""
        if (outcome := self._pending.pop(shard.id, None)) is not None:
            if outcome.counts:
                self._refused.append(shard)
            outcome.settle(None, refusal(self._spool.directory, [shard]))

    def fail(self, error: HubsyncError) -> None:
        """Raise `error` from the next flush or the close: the caller of the `put` no longer waits for it."""
        self._failures.append(error)

    def _take_failure(self) -> HubsyncError | None:
        """Return what went wrong since the last call: a batch that was not accepted, or rejected shards."""
        try:
            failure = self._failures.popleft()
        except IndexError:
            return self._take_refused()
        if more := len(self._failures):
            self._failures.clear()
            failure.add_note(f"It is the first of {count_text(more + 1, 'batch')} that were not accepted.")
        return failure

    def _take_refused(self) -> ShardsRefused | None:
        shards: list[QuarantinedShard] = []
        with suppress(IndexError):  # another flush may take them as well
            while True:
                shards.append(self._refused.popleft())
        return refusal(self._spool.directory, shards) if shards else None

    def _read(self, segments: Iterable[int]) -> None:
        try:
            for segment in segments:
                self._read_one(segment)
        except SpoolError:  # the rows are accepted, whatever can be read now
            self.is_unsure = True

    def _read_one(self, segment: int) -> str | None:
        state, sha, _ = self._spool.segments.outcome(segment) or (None, None, None)
        if (shard := self._spool.segments.refused(segment)) is not None:
            self.refused(shard)
        elif state == "committed":
            self.committed(segment, sha)
        return state

    # Flushes.

    def flush(self, of: Receipt | None) -> Flush:
        """Return a wait for everything, or for one batch. `begin` starts it, in its turn."""
        flush = Flush(self.forget, self._take_failure if of is None else lambda: None, of)
        self._flushes[flush] = None
        return flush

    def begin(self, flush: Flush, outcomes: Iterable[SegmentOutcome]) -> None:
        """Let a flush wait for these outcomes."""
        if flush not in self._flushes:
            return
        group = self._flushes[flush] = OutcomeGroup(outcomes)
        if flush.has_left:
            self.forget(flush)
            return
        group.start()
        mark_spooled(flush, group, replayed=False)

    def forget(self, flush: Flush) -> None:
        """End a wait; do nothing if it has ended."""
        if (group := self._flushes.pop(flush, None)) is not None:
            group.cancel()

    def block(self, error: HubsyncError) -> None:
        """Raise `error` from every flush that has begun. Everything accepted stays safe in the spool."""
        for group in list(self._flushes.values()):
            if group is not None:
                group.settle(None, error)

    def end(self, error: HubsyncError) -> None:
        """Fail all pending waiters: this process can no longer observe the outcomes."""
        for flush, group in list(self._flushes.items()):
            if group is None:
                mark_dropped(flush, error)
            else:
                group.settle(None, error)
        for outcome in list(self._pending.values()):
            outcome.abandon(error)
