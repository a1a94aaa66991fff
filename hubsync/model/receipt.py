"""Receipts: what `put` returns, to report on a batch to any thread and any event loop.

Once a batch is spooled, its outcome is its segment's. All receipts of a segment share one `SegmentOutcome`, so the
worker's cost and memory do not grow with the number of batches that wait for a commit.

Users see `Receipt`. The uploader moves a receipt on with `mark_spooled` and `mark_dropped`.

A signal handler may interrupt a wait at any instruction and begin another one, so there are no locks. A waiter adds its
callback and then looks at the state; whoever changes the state does so first, and then removes and calls the callbacks.
A callback that both have seen belongs to the one who removes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal

import anyio

from hubsync._runtime.exceptions import fresh_copy
from hubsync._runtime.formatting import seconds_text
from hubsync._runtime.notifiers import OneShotEvent, threadsafe_callback
from hubsync.errors import HubsyncError, WaitTimeout

Callback = Callable[[], object]
Until = Literal["spooled", "committed"]
ReceiptState = Literal["queued", "spooled", "committed", "dropped", "refused"]

_GONE = object()


class SegmentOutcome:
    """What happened to one segment: pending, committed, or rejected into the dead letter.

    Attributes:
        abandoned: Why this process can no longer observe the outcome; another process may commit it.
        counts: Whether a flush raises if it is rejected: it holds rows of this uploader, or a flush waits for it.
    """

    __slots__ = ("_callbacks", "_outcome", "abandoned", "counts")

    def __init__(self, sha: str | None = None, settled: bool = False) -> None:
        self.counts = False
        self.abandoned: HubsyncError | None = None
        self._outcome: dict[int, tuple[str | None, HubsyncError | None]] = {0: (sha, None)} if settled else {}
        self._callbacks: dict[Callback, object] = {}

    @property
    def settled(self) -> bool:
        """Whether it is committed or rejected."""
        return bool(self._outcome)

    @property
    def sha(self) -> str | None:
        """The commit that contains it."""
        return self._outcome[0][0] if self._outcome else None

    @property
    def error(self) -> HubsyncError | None:
        """Why it was rejected."""
        return self._outcome[0][1] if self._outcome else None

    def settle(self, sha: str | None, error: HubsyncError | None = None) -> None:
        """Record that the segment is committed in `sha` or rejected with `error`, and notify all waiters.

        Only the first call has an effect.
        """
        self._outcome.setdefault(0, (sha, error))
        self._notify()

    def abandon(self, error: HubsyncError) -> None:
        """Fail all waiters with `error`: this process can no longer observe the outcome."""
        self.abandoned = error
        self._notify()

    def _notify(self) -> None:
        for callback in list(self._callbacks):
            if self._callbacks.pop(callback, _GONE) is not _GONE:
                callback()

    def subscribe(self, callback: Callback) -> bool:
        """Have `callback` called once, when the outcome is settled or abandoned.

        Returns:
            False if it already is: `callback` will not be called.
        """
        self._callbacks[callback] = None
        if not self._outcome and self.abandoned is None:
            return True
        return self._callbacks.pop(callback, _GONE) is _GONE

    def unsubscribe(self, callback: Callback) -> None:
        """Forget `callback`; do nothing if it is not subscribed."""
        self._callbacks.pop(callback, None)

    def subscribers(self) -> int:
        """Return how many callbacks are subscribed."""
        return len(self._callbacks)


class OutcomeGroup(SegmentOutcome):
    """Settled once all its members are, with the first error among them.

    It subscribes to one member at a time, so starting and cancelling take the same time however many there are.
    """

    __slots__ = ("_first_error", "_last_sha", "_pending")

    def __init__(self, members: Iterable[SegmentOutcome]) -> None:
        super().__init__()
        self._pending = list(members)
        self._last_sha: str | None = self._pending[-1].sha if self._pending else None
        self._first_error: HubsyncError | None = None

    def start(self) -> None:
        """Subscribe to the next member that is not settled; without one, settle the group."""
        while self._pending:
            if self._pending[-1].subscribe(self.start):
                return
            member = self._pending.pop()
            self._last_sha = self._last_sha or member.sha
            self._first_error = member.error or member.abandoned or self._first_error
        self.settle(self._last_sha, self._first_error)

    def cancel(self) -> None:
        """Unsubscribe from the members."""
        for member in self._pending[-1:]:
            member.unsubscribe(self.start)


class Receipt:
    """Reports how far one batch is: *queued*, *spooled* (it survives the process) or *committed* (with a commit sha).

    Attributes:
        rows: Rows in the batch.
        bytes: Its encoded size, in bytes.
    """

    __slots__ = ("_callbacks", "_error", "_outcome", "_replayed", "bytes", "rows")

    def __init__(self, rows: int, size: int) -> None:
        self.rows = rows
        self.bytes = size
        self._outcome: SegmentOutcome | None = None
        self._replayed = False
        self._error: HubsyncError | None = None
        self._callbacks: dict[Callback, Until] = {}

    @property
    def state(self) -> ReceiptState:
        """One of "queued", "spooled", "committed", "dropped" (by a full queue) and "refused" (in the dead letter)."""
        if self._error is not None:
            return "dropped"
        if self._outcome is None:
            return "queued"
        if self._outcome.error is not None:
            return "refused"
        return "committed" if self._outcome.settled else "spooled"

    @property
    def sha(self) -> str | None:
        """The sha of the commit that contains the batch; None until it is committed, and for a batch without rows.

        It is also None for a replay of a batch that was committed more than a thousand shards ago.
        """
        return self._outcome.sha if self._outcome is not None else None

    @property
    def replayed(self) -> bool:
        """Whether the key or the offset was accepted before, so nothing was added. Known once the batch is spooled."""
        return self._replayed

    @property
    def error(self) -> HubsyncError | None:
        """Why the batch was dropped or refused; None otherwise."""
        return self._error or (self._outcome.error if self._outcome is not None else None)

    def wait(self, until: Literal["spooled", "committed"] = "committed", timeout: float | None = None) -> str | None:
        """Wait until the batch is spooled or committed. Blocks this thread.

        Args:
            until: The state to wait for.
            timeout: Seconds to wait; None waits forever.

        Returns:
            The commit's sha, or None if the batch is not committed yet.

        Raises:
            WaitTimeout: `timeout` seconds passed. It is a `TimeoutError`; hubsync goes on with the batch.
            HubsyncError: The batch was dropped, or rejected by the Hub, or the uploader ended before it was committed.
        """
        done = OneShotEvent()
        if self._subscribe(until, done.set):
            try:
                # A signal handler may run beyond the deadline: what was reached meanwhile counts.
                if not (done.wait(timeout) or self._has_reached(until)):
                    raise self._timeout_error(timeout)
            finally:
                self._unsubscribe(done.set)
        return self._result(until)

    async def wait_async(
        self, until: Literal["spooled", "committed"] = "committed", timeout: float | None = None
    ) -> str | None:
        """Like `Receipt.wait`, without blocking the event loop."""
        return await ReceiptWaiter(self, until).wait(timeout)

    def __repr__(self) -> str:
        extra = f", sha={self.sha!r}" if self.sha else ""
        return f"Receipt(rows={self.rows}, state={self.state!r}{extra}{', replayed=True' if self._replayed else ''})"

    def _result(self, until: Until) -> str | None:
        """Return the sha, or raise what ended the wait."""
        if self._error is not None:
            raise fresh_copy(self._error)
        outcome = self._outcome
        if until == "committed" and outcome is not None:
            error = outcome.error or (None if outcome.settled else outcome.abandoned)
            if error is not None:
                raise fresh_copy(error)
        return self.sha

    def _timeout_error(self, timeout: float | None) -> WaitTimeout:
        return wait_timeout(self, timeout)

    def _has_reached(self, until: Until) -> bool:
        """Return whether the batch is as far as `until`, or never will be."""
        outcome = self._outcome
        if self._error is not None or outcome is None:
            return self._error is not None
        return until == "spooled" or outcome.settled or outcome.abandoned is not None

    def _subscribe(self, until: Until, callback: Callback) -> bool:
        """Have `callback` called once the batch is as far as `until`, or never will be; return False if it is."""
        self._callbacks[callback] = until
        if self._outcome is None and self._error is None:
            return True
        if self._callbacks.pop(callback, None) is None:
            return True
        return (
            self._error is None
            and until == "committed"
            and self._outcome is not None
            and self._outcome.subscribe(callback)
        )

    def _unsubscribe(self, callback: Callback) -> None:
        self._callbacks.pop(callback, None)
        if self._outcome is not None:
            self._outcome.unsubscribe(callback)


class ReceiptWaiter:
    """One wait for a receipt in the running event loop. It is registered when constructed; `wait` must follow."""

    __slots__ = ("_callback", "_done", "_receipt", "_until")

    def __init__(self, receipt: Receipt, until: Until) -> None:
        self._receipt = receipt
        self._until = until
        self._done = anyio.Event()
        self._callback = threadsafe_callback(self._done.set)
        if not receipt._subscribe(until, self._callback):
            self._done.set()

    async def wait(self, timeout: float | None) -> str | None:
        """Wait as `Receipt.wait` does."""
        try:
            if timeout is None:
                await self._done.wait()
            else:
                with anyio.move_on_after(timeout) as scope:
                    await self._done.wait()
                # What happened while the event loop was blocked beyond the deadline counts.
                if scope.cancelled_caught and not self._receipt._has_reached(self._until):
                    raise self._receipt._timeout_error(timeout)
        finally:
            self._receipt._unsubscribe(self._callback)
        return self._receipt._result(self._until)


def wait_timeout(receipt: Receipt, timeout: float | None) -> WaitTimeout:
    """Return the error for a wait that timed out: how far the batch is and whether it is safe."""
    where = "It is safe in the spool, and will be uploaded."
    if receipt.state == "queued":
        where = (
            "It is in memory only, and is spooled as soon as the spool takes it; until then, the end of the process "
            "loses it. Do not put it a second time: error.receipt tells what becomes of it."
        )
    return WaitTimeout(f"the batch is still {receipt.state} after {seconds_text(timeout or 0)}. {where}", receipt)


# The uploader's side.


def outcome_of(receipt: Receipt) -> SegmentOutcome | None:
    """Return the outcome that the receipt shares with its segment; None until the batch is spooled."""
    return receipt._outcome


def mark_spooled(receipt: Receipt, outcome: SegmentOutcome, *, replayed: bool) -> None:
    """Record that the batch is in the spool, in the segment that `outcome` describes, and notify its waiters."""
    receipt._replayed = replayed
    receipt._outcome = outcome
    for callback in list(receipt._callbacks):
        until = receipt._callbacks.pop(callback, None)
        if until == "spooled" or (until == "committed" and not outcome.subscribe(callback)):
            callback()


def mark_dropped(receipt: Receipt, error: HubsyncError) -> None:
    """Record that the batch was not accepted, and notify its waiters."""
    receipt._error = error
    for callback in list(receipt._callbacks):
        if receipt._callbacks.pop(callback, None) is not None:
            callback()
