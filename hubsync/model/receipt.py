"""What `put` returns: how far a batch is on its way, for any thread and any event loop.

A batch's fate after the spool is its segment's, so all receipts of a segment share one `Fate` and cost the worker
nothing: memory does not grow with the number of batches that wait for a commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Literal

import anyio

from hubsync._runtime.exceptions import fresh_copy
from hubsync._runtime.fork import after_fork_in_child
from hubsync._runtime.notifiers import OneShotEvent, threadsafe_callback
from hubsync.errors import HubsyncError, WaitTimeout

Wake = Callable[[], object]
Until = Literal["spooled", "committed"]
ReceiptState = Literal["queued", "spooled", "committed", "dropped", "refused"]

_lock = threading.Lock()  # guards every waiter list: taken only by those who wait, and once a segment or take


class SegmentOutcome:
    """What becomes of one segment: committed with a sha, or set aside."""

    __slots__ = ("_waiters", "abandoned", "error", "rows", "settled", "sha")

    def __init__(self, sha: str | None = None, settled: bool = False) -> None:
        self.sha = sha
        self.settled = settled
        self.rows = 0  # that were put here, and are to be committed
        self.error: HubsyncError | None = None
        self.abandoned: HubsyncError | None = None  # its uploader has ended before: another process settles it
        self._waiters: dict[Wake, None] = {}

    def settle(self, sha: str | None, error: HubsyncError | None = None) -> None:
        """Committed in `sha`, or set aside with `error`. Wakes all who wait."""
        with _lock:
            if self.settled:
                return
            self.sha, self.error, self.settled = sha, error, True
            waiters, self._waiters = self._waiters, {}
        for wake in waiters:
            wake()

    def abandon(self, error: HubsyncError) -> None:
        """Nobody here will learn what becomes of it: wakes all who wait, with the reason."""
        with _lock:
            self.abandoned = error
            waiters, self._waiters = self._waiters, {}
        for wake in waiters:
            wake()

    def _keep(self, wake: Wake) -> bool:
        """Under the lock: has `wake` called once when it is settled; False where it already is, or is abandoned."""
        waits = not self.settled and self.abandoned is None
        if waits:
            self._waiters[wake] = None
        return waits


class OutcomeGroup(SegmentOutcome):
    """Settled once all of `fates` are, with the first error among them. Waits for one after the other, so that it is as
    soon taken off as put on.
    """

    __slots__ = ("_fates", "_first", "_last")

    def __init__(self, fates: Iterable[SegmentOutcome]) -> None:
        super().__init__()
        self._fates = list(fates)
        self._last: str | None = self._fates[-1].sha if self._fates else None
        self._first: HubsyncError | None = None

    def go_on(self) -> None:
        """Waits for the next that is not settled, or is settled."""
        with _lock:
            while self._fates and not self._fates[-1]._keep(self.go_on):
                fate = self._fates.pop()
                self._last = self._last or fate.sha
                self._first = fate.error or fate.abandoned or self._first
            if self._fates:
                return
        self.settle(self._last, self._first)

    def let_go(self) -> None:
        """Nobody waits for it any more."""
        with _lock:
            if self._fates:
                self._fates[-1]._waiters.pop(self.go_on, None)


class Receipt:
    """Reports how far one batch is: *queued*, *spooled* (it survives the process) or *committed* (with a commit sha).

    Attributes:
        rows: Rows in the batch.
        bytes: Its encoded size, in bytes.
    """

    __slots__ = ("_error", "_fate", "_replayed", "_waiters", "bytes", "rows")

    def __init__(self, rows: int, size: int) -> None:
        self.rows = rows
        self.bytes = size
        self._fate: SegmentOutcome | None = None
        self._replayed = False
        self._error: HubsyncError | None = None
        self._waiters: dict[Wake, Until] = {}

    @property
    def state(self) -> ReceiptState:
        """One of "queued", "spooled", "committed", "dropped" (by a full queue) and "refused" (in the dead letter)."""
        if self._error is not None:
            return "dropped"
        if self._fate is None:
            return "queued"
        if self._fate.error is not None:
            return "refused"
        return "committed" if self._fate.settled else "spooled"

    @property
    def sha(self) -> str | None:
        """The sha of the commit that holds the batch; None before that, and for a batch without rows."""
        return self._fate.sha if self._fate is not None else None

    @property
    def replayed(self) -> bool:
        """Whether the key or the offset was accepted before, so that nothing was added. Known once it is spooled."""
        return self._replayed

    @property
    def error(self) -> HubsyncError | None:
        """Why the batch was dropped or refused; None otherwise."""
        return self._error or (self._fate.error if self._fate is not None else None)

    def wait(self, until: Literal["spooled", "committed"] = "committed", timeout: float | None = None) -> str | None:
        """Wait until the batch is spooled or committed. Blocks this thread.

        Args:
            until: The state to wait for.
            timeout: Seconds to wait; None waits forever.

        Returns:
            The commit's sha, or None if the batch is not committed yet.

        Raises:
            WaitTimeout: `timeout` seconds passed. It is a `TimeoutError`; the upload continues.
            HubsyncError: The batch was dropped, or rejected by the Hub, or the uploader ended before it was committed.
        """
        done = OneShotEvent()
        if self._subscribe(until, done.set):
            try:
                if not done.wait(timeout):
                    raise self._late(timeout)
            finally:
                self._unsubscribe(done.set)
        return self._outcome(until)

    async def wait_async(
        self, until: Literal["spooled", "committed"] = "committed", timeout: float | None = None
    ) -> str | None:
        """Like `Receipt.wait`, without blocking the event loop."""
        return await self._wait_for(self._watch(until), until, timeout)

    def _watch(self, until: Until) -> tuple[anyio.Event, Wake]:
        """What is set, in this event loop, once the batch is so far, or will never be; and what sets it."""
        done = anyio.Event()
        wake = threadsafe_callback(done.set)
        if not self._subscribe(until, wake):
            done.set()
        return done, wake

    async def _wait_for(self, watch: tuple[anyio.Event, Wake], until: Until, timeout: float | None) -> str | None:
        done, wake = watch
        try:
            if timeout is None:
                await done.wait()
            else:
                with anyio.move_on_after(timeout) as scope:
                    await done.wait()
                if scope.cancelled_caught:
                    raise self._late(timeout)
        finally:
            self._unsubscribe(wake)
        return self._outcome(until)

    def _late(self, timeout: float | None) -> WaitTimeout:
        is_queued = self._fate is None
        where = "waits in memory for the spool's disk, and is not accepted yet" if is_queued else "is safe in the spool"
        return WaitTimeout(
            f"the batch is still {self.state} after {timeout or 0:,.1f} s: it {where}. It goes on.", self
        )

    def __repr__(self) -> str:
        extra = f", sha={self.sha!r}" if self.sha else ""
        return f"Receipt(rows={self.rows}, state={self.state!r}{extra}{', replayed=True' if self._replayed else ''})"

    def _outcome(self, until: Until) -> str | None:
        if self._error is not None:
            raise fresh_copy(self._error)
        if until == "committed" and self._fate is not None and self._fate.error is not None:
            raise fresh_copy(self._fate.error)
        if until == "committed" and self._fate is not None and not self._fate.settled and self._fate.abandoned:
            raise fresh_copy(self._fate.abandoned)
        return self.sha

    # The worker's side.

    def _spooled(self, fate: SegmentOutcome, replayed: bool) -> None:
        with _lock:
            self._replayed = replayed
            self._fate = fate
            waiters, self._waiters = self._waiters, {}
            due = [wake for wake, until in waiters.items() if until == "spooled" or not fate._keep(wake)]
        for wake in due:
            wake()

    def _dropped(self, error: HubsyncError) -> None:
        with _lock:
            self._error = error
            waiters, self._waiters = self._waiters, {}
        for wake in waiters:
            wake()

    def _subscribe(self, until: Until, wake: Wake) -> bool:
        """Has `wake` called once the batch is so far, or will never be; False where it already is."""
        with _lock:
            if self._fate is None and self._error is None:
                self._waiters[wake] = until
                return True
            return self._error is None and until == "committed" and self._fate is not None and self._fate._keep(wake)

    def _unsubscribe(self, wake: Wake) -> None:
        """Who waits no longer, for whatever reason, is not kept."""
        with _lock:
            self._waiters.pop(wake, None)
            if self._fate is not None:
                self._fate._waiters.pop(wake, None)


@after_fork_in_child
def _let_go_in_child() -> None:
    """Another thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()
