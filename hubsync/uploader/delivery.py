"""What becomes of the segments that this process has rows in, and who waits for that.

A fate is settled by the committer where that is in this process, else by what the catalogue says. What was refused is
kept until a flush, or the close, has told it. Safe for several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from hubsync._runtime.exceptions import fresh_copy
from hubsync.errors import HubsyncError, ShardsRefused, SpoolError, WaitTimeout
from hubsync.model.receipt import OutcomeGroup, Receipt, SegmentOutcome, Until, mark_dropped, mark_spooled, wait_timeout
from hubsync.spool.spool import Spool


class Flush(Receipt):
    """Committed once all that it waits for is. However its block is left, nothing of it is kept then."""

    __slots__ = ("_leave", "_of", "_untold")

    def __init__(
        self, leave: Callable[[Flush], object], untold: Callable[[], ShardsRefused | None], of: Receipt | None
    ) -> None:
        super().__init__(0, 0)
        self._leave = leave
        self._untold = untold
        self._of = of

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave(self)

    def _timeout_error(self, timeout: float | None) -> WaitTimeout:
        """Who waits for one batch is told how far that is."""
        return wait_timeout(self if self._of is None else self._of, timeout)

    def _result(self, until: Until) -> str | None:
        """What was refused before it began is told as well, by who still waits."""
        try:
            sha = super()._result(until)
        except ShardsRefused as error:
            raise (self._untold() or error) from None
        if (refused := self._untold()) is not None:
            raise refused
        return sha


class Delivery:
    """One worker's."""

    def __init__(self, spool: Spool) -> None:
        self.unsure = False  # one could not be read: to be looked up again
        self._spool = spool
        self._lock = threading.Lock()
        self._open: dict[int, SegmentOutcome] = {}  # by segment
        self._flushes: dict[Flush, OutcomeGroup | None] = {}  # None: still an order in the queue
        self._refused: ShardsRefused | None = None  # the first that no flush has told; counts those behind it

    def __len__(self) -> int:
        """How many are not settled."""
        return len(self._open)

    def of(self, segment: int | None, rows: int, *, may_be_settled: bool) -> SegmentOutcome:
        """The fate of a segment, to which so many rows came. One that may be sealed may have been committed before its
        fate was known here.
        """
        if segment is None:
            return SegmentOutcome(settled=True)
        with self._lock:
            fate = self._open.setdefault(segment, SegmentOutcome())
            fate.rows += rows
        if may_be_settled:
            self._read([segment])
        return fate

    def pending(self, segments: Sequence[int]) -> list[SegmentOutcome]:
        """The fates of what the catalogue says is to be committed still. Reads it for what is news to either side."""
        with self._lock:
            news = self._open.keys() ^ segments
            fates = [self._open.setdefault(segment, SegmentOutcome()) for segment in segments]
        self._read(news)
        return fates

    def look_up(self) -> bool:
        """Sees in the catalogue what another process has settled; whether it set any aside. Raises `SpoolError`."""
        with self._lock:
            segments = list(self._open)
        return "dead" in {self._settle_as(segment) for segment in segments}

    def settle(self, segment: int, sha: str | None, error: HubsyncError | None) -> None:
        """Committed in `sha`, or set aside with `error`."""
        with self._lock:
            fate = self._open.pop(segment, None)
            if fate is not None and fate.rows and isinstance(error, ShardsRefused):
                self._refused = self._refused or fresh_copy(error)
                self._refused.shards += 1
                self._refused.rows += fate.rows
        if fate is not None:
            fate.settle(sha, error)

    def _untold(self) -> ShardsRefused | None:
        """What was refused since this was asked before."""
        with self._lock:
            refused, self._refused = self._refused, None
        if refused is not None and refused.shards > 1:
            refused.add_note(
                f"That is the first of {refused.shards:,} shards ({refused.rows:,} rows) that were refused."
            )
        return refused

    def _read(self, segments: Iterable[int]) -> None:
        try:
            for segment in segments:
                self._settle_as(segment)
        except SpoolError:  # the rows are accepted, whatever can be read now
            self.unsure = True

    def _settle_as(self, segment: int) -> str | None:
        state, sha, error = self._spool.segments.outcome(segment) or (None, None, None)
        if state == "committed":
            self.settle(segment, sha, None)
        elif state == "dead":
            where = self._spool.directory
            why = f"it was set aside in the dead letter: {error}. See: hubsync dead-letter list {where}"
            self.settle(segment, None, ShardsRefused(why))
        return state

    # Who waits for many.

    def flush(self, of: Receipt | None) -> Flush:
        """A wait that is to `begin` in its turn; for all that was put, or the batch `of`."""
        flush = Flush(self._leave, self._untold if of is None else lambda: None, of)
        with self._lock:
            self._flushes[flush] = None
        return flush

    def begin(self, flush: Flush, fates: Iterable[SegmentOutcome]) -> None:
        """From now on it waits for these."""
        whole = OutcomeGroup(fates)
        with self._lock:
            if flush not in self._flushes:
                return
            self._flushes[flush] = whole
        whole.start()
        mark_spooled(flush, whole, replayed=False)

    def _leave(self, flush: Flush) -> None:
        with self._lock:
            whole = self._flushes.pop(flush, None)
        if whole is not None:
            whole.cancel()

    def block(self, error: HubsyncError) -> None:
        """Those who wait for a flush are told; everything accepted stays safe in the spool."""
        with self._lock:
            begun = [whole for whole in self._flushes.values() if whole is not None]
        for whole in begun:
            whole.settle(None, error)

    def end(self, error: HubsyncError) -> None:
        """Nobody here will learn any more: all who wait are told why."""
        with self._lock:
            flushes, fates = list(self._flushes.items()), list(self._open.values())
        for flush, whole in flushes:
            if whole is None:
                mark_dropped(flush, error)
            else:
                whole.settle(None, error)
        for fate in fates:
            fate.abandon(error)
