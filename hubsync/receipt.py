"""What `put` returns: how far a batch is on its way, for any thread and any event loop.

A batch's fate after the spool is its segment's, so all receipts of a segment share one `Fate` and cost the worker
nothing: memory does not grow with the number of batches that wait for a commit.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Literal

import anyio

from hubsync.clock import loop_waker
from hubsync.errors import HubsyncError, once_more

ReceiptState = Literal["queued", "spooled", "committed", "dropped", "refused"]

_lock = threading.Lock()  # guards every waiter list: taken only by those who wait, and once a segment or take


class Fate:
    """What becomes of one segment: committed with a sha, or set aside."""

    __slots__ = ("_waiters", "abandoned", "error", "settled", "sha")

    def __init__(self, sha: str | None = None, settled: bool = False) -> None:
        self.sha = sha
        self.settled = settled
        self.error: HubsyncError | None = None
        self.abandoned: HubsyncError | None = None  # its uploader has ended before: another process settles it
        self._waiters: list[Callable[[], object]] = []

    def settle(self, sha: str | None, error: HubsyncError | None = None) -> None:
        """Committed in `sha`, or set aside with `error`. Wakes all who wait."""
        with _lock:
            if self.settled:
                return
            self.sha, self.error, self.settled = sha, error, True
            waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()

    def abandon(self, error: HubsyncError) -> None:
        """Nobody here will learn what becomes of it: wakes all who wait, with the reason."""
        with _lock:
            self.abandoned = error
            waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()

    def subscribe(self, wake: Callable[[], object]) -> bool:
        """Has `wake` called once when it is settled; False where it already is, or is abandoned."""
        with _lock:
            waits = not self.settled and self.abandoned is None
            if waits:
                self._waiters.append(wake)
            return waits


def all_of(fates: list[Fate]) -> Fate:
    """A fate that is settled once all of `fates` are, with the first error among them."""
    whole = Fate()
    left = [len(fates)]
    lock = threading.Lock()

    def one_more() -> None:
        with lock:
            left[0] -= 1
            done = left[0] <= 0
        if done:
            errors = [error for fate in fates if (error := fate.error or fate.abandoned) is not None]
            whole.settle(fates[-1].sha if fates else None, errors[0] if errors else None)

    for fate in fates:
        if not fate.subscribe(one_more):
            one_more()
    if not fates:
        one_more()
    return whole


class Receipt:
    """How far one batch is: *queued*, *spooled* (it survives the process) or *committed* (with the commit's sha).

    Attributes:
        rows: rows of the batch.
        bytes: its encoded size.
    """

    __slots__ = ("_error", "_fate", "_replayed", "_waiters", "bytes", "rows")

    def __init__(self, rows: int, size: int) -> None:
        self.rows = rows
        self.bytes = size
        self._fate: Fate | None = None
        self._replayed = False
        self._error: HubsyncError | None = None
        self._waiters: list[Callable[[], object]] = []

    @property
    def state(self) -> ReceiptState:
        """ "queued", "spooled" or "committed"; "dropped" by a full queue, "refused" by the Hub (in the dead letter)."""
        if self._error is not None:
            return "dropped"
        if self._fate is None:
            return "queued"
        if self._fate.error is not None:
            return "refused"
        return "committed" if self._fate.settled else "spooled"

    @property
    def sha(self) -> str | None:
        """The commit that holds the batch; None before that, and for a batch without rows."""
        return self._fate.sha if self._fate is not None else None

    @property
    def replayed(self) -> bool:
        """True where the key or the offset was accepted before: nothing was added. Known once it is spooled."""
        return self._replayed

    @property
    def error(self) -> HubsyncError | None:
        """Why the batch was dropped or refused."""
        return self._error or (self._fate.error if self._fate is not None else None)

    def wait(self, until: Literal["spooled", "committed"] = "committed", timeout: float | None = None) -> str | None:
        """Blocks this thread until the batch is that far; answers the commit's sha (None before it is committed).

        Raises:
            TimeoutError: `timeout` seconds passed.
            HubsyncError: the batch was dropped, or refused by the Hub.
        """
        done = threading.Event()
        if self._subscribe(until, done.set) and not done.wait(timeout):
            raise self._late(timeout)
        return self._outcome(until)

    async def wait_async(
        self, until: Literal["spooled", "committed"] = "committed", timeout: float | None = None
    ) -> str | None:
        """As `Receipt.wait`, for a task: waits without blocking its event loop."""
        return await self._wait_for(self._watch(until), until, timeout)

    def _watch(self, until: Literal["spooled", "committed"]) -> anyio.Event:
        """What is set, in this event loop, once the batch is so far, or will never be."""
        done = anyio.Event()
        if not self._subscribe(until, loop_waker(done.set)):
            done.set()
        return done

    async def _wait_for(self, done: anyio.Event, until: str, timeout: float | None) -> str | None:
        if timeout is None:
            await done.wait()
        else:
            with anyio.move_on_after(timeout) as scope:
                await done.wait()
            if scope.cancelled_caught:
                raise self._late(timeout)
        return self._outcome(until)

    def _late(self, timeout: float | None) -> TimeoutError:
        where = "in memory" if self._fate is None else "safe in the spool"
        return TimeoutError(f"the batch is still {self.state} after {timeout or 0:,.1f} s: it is {where}, and goes on.")

    def __repr__(self) -> str:
        extra = f", sha={self.sha!r}" if self.sha else ""
        return f"Receipt(rows={self.rows}, state={self.state!r}{extra}{', replayed=True' if self._replayed else ''})"

    def _outcome(self, until: str) -> str | None:
        if self._error is not None:
            raise once_more(self._error)
        if until == "committed" and self._fate is not None and self._fate.error is not None:
            raise once_more(self._fate.error)
        if until == "committed" and self._fate is not None and not self._fate.settled and self._fate.abandoned:
            raise once_more(self._fate.abandoned)
        return self.sha

    # The worker's side.

    def _spooled(self, fate: Fate, replayed: bool) -> None:
        with _lock:
            self._replayed = replayed
            self._fate = fate
            waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()

    def _dropped(self, error: HubsyncError) -> None:
        with _lock:
            self._error = error
            waiters, self._waiters = self._waiters, []
        for wake in waiters:
            wake()

    def _subscribe(self, until: str, wake: Callable[[], object]) -> bool:
        """Has `wake` called once the batch is so far, or will never be; False where it already is."""

        def then() -> None:
            if self._error is not None or until == "spooled" or not self._committed_later(wake):
                wake()

        with _lock:
            if self._fate is None and self._error is None:
                self._waiters.append(then)
                return True
        return self._error is None and until == "committed" and self._committed_later(wake)

    def _committed_later(self, wake: Callable[[], object]) -> bool:
        return self._fate is not None and self._fate.subscribe(wake)


def _let_go_in_child() -> None:
    """Another thread of the parent may have held it."""
    global _lock
    _lock = threading.Lock()


os.register_at_fork(after_in_child=_let_go_in_child)
