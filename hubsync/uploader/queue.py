"""The bounded in-memory queue between producers and the spool thread.

It is bounded in bytes and batches. A producer hands its batch over without the event loop's turn; the spool thread
takes everything that waits at once. At a bound the policy applies, and each case is counted. Producers that must wait
wait in line: the queue admits them in the order of their arrival.

A signal handler, a `__del__` or a logging handler may call `put` at any instruction of a `put`, or raise there. So no
producer holds a lock. The items are a chain, to which one call of C appends, and an entry carries the totals of
everything before it: whoever appends after another entry than it has counted fails, and counts again.
"""

from __future__ import annotations

import time
from _thread import get_ident
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import anyio

from hubsync._runtime.clock import Deadline
from hubsync._runtime.formatting import count_text, seconds_text, size_text
from hubsync._runtime.notifiers import OneShotEvent, threadsafe_callback
from hubsync._runtime.threads import own_thread
from hubsync.errors import BatchTooLarge, ClosedError, QueueFull
from hubsync.model.batch import Batch
from hubsync.model.stats import QueueDepth
from hubsync.policies import MIB, QueuePolicy

# A take is one write and one transaction. A larger one would save no time, and would hold its room until the last byte
# is written, so that producers and the spool thread would take turns at waiting.
_TAKE_BYTES, _TAKE_ITEMS = 4 * MIB, 1_000
_RECHECK_S = 1.0  # how soon a wait notices what a signal handler kept from being notified, by raising before


@dataclass(frozen=True, slots=True)
class Order:
    """Work for the spool thread, such as sealing, after all batches that were put before it."""

    run: Callable[[], object]


class _Totals(NamedTuple):
    batches: int = 0
    rows: int = 0
    bytes: int = 0

    def plus(self, batch: Batch) -> _Totals:
        return _Totals(self.batches + 1, self.rows + batch.rows, self.bytes + len(batch.lines))


class _Entry:
    """An item, when it was put, and the totals of everything put so far, including it.

    Attributes:
        item: None in the first entry, and in those that refuse batches or close the queue.
        following: the next entry, under the key 0.
    """

    __slots__ = ("at", "closes", "following", "item", "refuses", "totals")

    def __init__(
        self, item: Batch | Order | None, at: float, totals: _Totals, *, refuses: bool = False, closes: bool = False
    ) -> None:
        self.item = item
        self.at = at
        self.totals = totals
        self.refuses = refuses
        self.closes = closes
        self.following: dict[int, _Entry] = {}


class _Waiter:
    """A producer in line. `thread` is None for a task."""

    __slots__ = ("thread", "wake")

    def __init__(self, wake: Callable[[], object], thread: int | None) -> None:
        self.wake = wake
        self.thread = thread


Offer = Literal["accepted", "full", "dropped"]


class BoundedQueue:
    """Many producers, one consumer."""

    def __init__(self, policy: QueuePolicy, now: Callable[[], float] = time.time) -> None:
        """Create a queue; `now` returns seconds since the epoch."""
        self.policy = policy
        self._now = now
        self._filled = OneShotEvent()
        self._tail = self._taken = _Entry(None, 0.0, _Totals())  # near the last entry; the last one that was taken
        self._released = _Totals()
        self._held: deque[float] = deque()  # when each batch was put that was taken and not released
        self._line: deque[_Waiter] = deque()
        self._blocked = self._raised = self._dropped = 0
        self.refusal: str | None = None  # why the spool takes nothing, while batches wait that must not be dropped

    def put(self, batch: Batch, timeout: float | None = None) -> bool:
        """Put a batch; at the bound, block if the policy says so. Return False if the batch was dropped.

        Raises:
            BatchTooLarge: the batch is larger than the whole queue.
            ClosedError: the uploader is closed.
            QueueFull: the policy is "raise", or `timeout` seconds passed; or this is a thread of hubsync itself, which
                must not wait.
        """
        if (offer := self._offer(batch)) != "full":
            return offer == "accepted"
        if own_thread.depth:
            raise self._full("the producer runs in a thread of hubsync itself, which cannot wait for room")
        room, wait = OneShotEvent(), Deadline(timeout, _RECHECK_S)
        waiter = _Waiter(room.set, get_ident())
        self._blocked += 1
        try:
            self._stand_in_line(waiter)
            while (offer := self._offer(batch, waiter)) == "full":
                room.wait(self._pause_s(wait))
                wait.note_time()
        finally:
            # Nothing may come before this call of C, such as `suppress`: a signal handler may raise after any call.
            try:  # noqa: SIM105
                self._line.remove(waiter)
            except ValueError:
                pass
            self._wake_first()
        return offer == "accepted"

    async def put_async(self, batch: Batch, timeout: float | None = None) -> bool:
        """Like `put`, without blocking the event loop."""
        if (offer := self._offer(batch)) != "full":
            return offer == "accepted"
        room, wait = anyio.Event(), Deadline(timeout, _RECHECK_S)
        waiter = _Waiter(threadsafe_callback(lambda: room.set()), None)
        self._blocked += 1
        try:
            self._line.append(waiter)
            while (offer := self._offer(batch, waiter)) == "full":
                with anyio.move_on_after(self._pause_s(wait)):
                    await room.wait()
                room = anyio.Event()
                wait.note_time()
        finally:
            try:  # noqa: SIM105  (as in `put`)
                self._line.remove(waiter)
            except ValueError:
                pass
            self._wake_first()
        return offer == "accepted"

    def order(self, order: Order) -> None:
        """Append an order after everything put so far. Bounds do not apply.

        Raises:
            ClosedError: the uploader is closed.
        """
        while True:
            last = self._last()
            if last.closes:
                raise ClosedError("the uploader is closed.")
            if self._append(last, _Entry(order, 0.0, last.totals, refuses=last.refuses)):
                return

    def take(self, *, wait: bool = True) -> list[Batch | Order]:
        """Return what waits, in order, up to the size of one take; block while nothing waits.

        The result is empty once the queue is closed and drained. Batches count against the bounds until `release`,
        since they are still in memory.

        Args:
            wait: False to return an empty list instead of blocking.
        """
        items: list[Batch | Order] = []
        size = 0
        while True:
            while size < _TAKE_BYTES and len(items) < _TAKE_ITEMS and (entry := self._taken.following.get(0)):
                item, entry.item, self._taken = entry.item, None, entry
                if isinstance(item, Batch):
                    size += len(item.lines)
                    self._held.append(entry.at)
                if item is not None:
                    items.append(item)
            if items or self._taken.closes or not wait:
                return items
            self._filled.wait(_RECHECK_S)

    def release(self, batches: list[Batch]) -> None:
        """Free the room of batches that are spooled: the oldest ones, in the order they were taken."""
        for batch in batches:
            self._held.popleft()
            self._released = self._released.plus(batch)
        self._wake_first()

    def refuse(self) -> None:
        """Accept no more batches. Waiting ones are still taken, and orders are still accepted."""
        self._end(closes=False)

    def close(self) -> None:
        """Accept no more batches and no more orders."""
        self._end(closes=True)

    def _end(self, *, closes: bool) -> None:
        while True:
            last = self._last()
            if last.closes or (last.refuses and not closes):
                break
            if self._append(last, _Entry(None, 0.0, last.totals, refuses=True, closes=closes)):
                break
        for waiter in list(self._line):
            waiter.wake()

    def depth(self) -> QueueDepth:
        """Return how much waits, and how often the bound was met."""
        last, done, oldest_at = self._last().totals, self._released, None
        try:
            oldest_at = self._held[0]
        except IndexError:
            entry = self._taken
            while oldest_at is None and (following := entry.following.get(0)):
                entry = following
                oldest_at = entry.at if isinstance(entry.item, Batch) else None
        batches, rows, size = (max(0, mine - theirs) for mine, theirs in zip(last, done, strict=True))
        return QueueDepth(batches, rows, size, self._blocked, self._raised, self._dropped, oldest_at)

    def waiting_producers(self) -> int:
        """Return how many producers wait in line."""
        return len(self._line)

    def count_given_back(self, batches: int) -> None:
        """Count batches that the spool thread gave back because the spool is full."""
        if self.policy.when_full == "raise":
            self._raised += batches
        else:
            self._dropped += batches

    # The chain.

    def _last(self) -> _Entry:
        entry = self._tail
        while following := entry.following.get(0):
            entry = following
        self._tail = entry  # perhaps another thread has gone further: then the next one takes more steps
        return entry

    def _append(self, last: _Entry, entry: _Entry) -> bool:
        """Append an entry; return False if another thread has appended to `last` meanwhile."""
        if last.following.setdefault(0, entry) is not entry:
            return False
        self._filled.set()
        return True

    def _offer(self, batch: Batch, waiter: _Waiter | None = None) -> Offer:
        """Append a batch if there is room and no one is ahead in line."""
        policy, size = self.policy, len(batch.lines)
        while True:
            last = self._last()
            if last.refuses:
                raise ClosedError("the uploader is closed; the batch was not accepted.")
            if size > policy.max_bytes:
                raise BatchTooLarge(
                    f"a batch of {count_text(batch.rows, 'row')} has {size:,} bytes, more than the whole queue "
                    f"({policy.max_bytes:,}). It was not accepted. Put smaller batches, or set "
                    f"queue=QueuePolicy(max_bytes={2 * size})."
                )
            used, done = last.totals, self._released
            is_full = (
                used.bytes - done.bytes + size > policy.max_bytes or used.batches - done.batches >= policy.max_batches
            )
            if policy.when_full == "block":
                if is_full or not (self._is_first(waiter) or own_thread.depth):
                    return "full"
            elif is_full or self.refusal is not None:
                if policy.when_full == "raise":
                    raise self._full("the policy is 'raise'")
                self._dropped += 1
                return "dropped"
            if self._append(last, _Entry(batch, self._now(), used.plus(batch), refuses=False)):
                return "accepted"

    # The line.

    def _is_first(self, waiter: _Waiter | None) -> bool:
        try:
            return self._line[0] is waiter
        except IndexError:
            return True

    def _stand_in_line(self, waiter: _Waiter) -> None:
        """Join at the end, or at the front if a signal handler interrupted this thread while it waited in line."""
        if any(other.thread == waiter.thread for other in list(self._line)):
            self._line.appendleft(waiter)
        else:
            self._line.append(waiter)

    def _wake_first(self) -> None:
        try:
            first = self._line[0]
        except IndexError:
            return
        first.wake()

    def _pause_s(self, wait: Deadline) -> float:
        """Return how long a producer waits before it looks for room again, in seconds.

        Raises:
            QueueFull: it has waited long enough.
        """
        if not (pause_s := wait.pause_s()):
            raise self._full(f"no room for {seconds_text(wait.timeout or 0)}")
        return pause_s

    def _full(self, why: str) -> QueueFull:
        self._raised += 1
        if self.refusal is not None:
            return QueueFull(f"the batch was not accepted: {self.refusal}")
        depth = self.depth()
        held = f"{count_text(depth.batches, 'batch')}, {size_text(depth.bytes)}"
        return QueueFull(
            f"the queue is full ({held}; {why}): the batch was not accepted. The spool's disk is slower than the "
            "producer, or full: see stats().state. Put the batch later."
        )
