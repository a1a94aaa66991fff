"""The bounded in-memory queue between producers and the spool thread.

Thread-safe, and bounded in bytes and batches. A producer hands its batch over without the event loop's turn; the spool
thread takes everything that waits at once. At a bound the policy applies, and each case is counted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import anyio

from hubsync._runtime.formatting import count_text, seconds_text
from hubsync._runtime.notifiers import OneShotEvent, threadsafe_callback
from hubsync.errors import BatchTooLarge, ClosedError, QueueFull
from hubsync.model.batch import Batch
from hubsync.model.stats import QueueDepth
from hubsync.policies import MIB, QueuePolicy

# A take is one write and one transaction. A larger one would save no time, and would hold its room until the last byte
# is written, so that producers and the spool thread would take turns at waiting.
_TAKE_BYTES, _TAKE_ITEMS = 4 * MIB, 1_000


@dataclass(frozen=True, slots=True)
class Order:
    """Work for the spool thread, such as sealing, after all batches that were put before it."""

    run: Callable[[], object]


class _Entry(NamedTuple):
    """An item, when it was put, and the totals of everything put so far, including it."""

    item: Batch | Order | None
    at: float
    batches: int
    rows: int
    bytes: int


Offer = Literal["accepted", "full", "dropped"]


class BoundedQueue:
    """Many producers, one consumer.

    A producer makes its only change by one append: in the main thread a signal may raise an exception between any two
    instructions, and must not leave half a batch. What waits is the difference of two totals.
    """

    def __init__(self, policy: QueuePolicy, now: Callable[[], float] = time.time) -> None:
        """Create a queue; `now` returns seconds since the epoch."""
        self._policy = policy
        self._now = now
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._items: deque[_Entry] = deque()
        self._taken = self._released = _Entry(None, 0.0, 0, 0, 0)  # the last entry
        self._held: deque[float] = deque()  # when each batch was put that was taken and not released
        self._blocked = self._raised = self._dropped = 0
        self._producers: dict[Callable[[], object], None] = {}  # producers that wait for room
        self._refuses = self._closed = False

    def put(self, batch: Batch, timeout: float | None = None) -> bool:
        """Put a batch; at the bound, block if the policy says so. Return False if the batch was dropped.

        Raises:
            BatchTooLarge: the batch is larger than the whole queue.
            ClosedError: the uploader is closed.
            QueueFull: the policy is "raise", or `timeout` seconds passed.
        """
        if (offer := self._offer(batch)) == "full":
            room, until = OneShotEvent(), None if timeout is None else time.monotonic() + timeout
            with self._blocking(room.set):
                while (offer := self._offer(batch)) == "full":
                    if not room.wait(None if until is None else max(0.0, until - time.monotonic())):
                        raise self._timed_out(timeout)
        return offer == "accepted"

    async def put_async(self, batch: Batch, timeout: float | None = None) -> bool:
        """Like `put`, without blocking the event loop."""
        if (offer := self._offer(batch)) == "full":
            room = anyio.Event()
            with self._blocking(threadsafe_callback(lambda: room.set())), anyio.move_on_after(timeout) as scope:
                while (offer := self._offer(batch)) == "full":
                    await room.wait()
                    room = anyio.Event()
            if scope.cancelled_caught:
                raise self._timed_out(timeout)
        return offer == "accepted"

    def order(self, order: Order) -> None:
        """Append an order after everything put so far. Bounds do not apply.

        Raises:
            ClosedError: the uploader is closed.
        """
        with self._lock:
            if self._closed:
                raise ClosedError("the uploader is closed.")
            self._items.append(self._last()._replace(item=order))
            self._filled.notify()

    def take(self) -> list[Batch | Order]:
        """Return what waits, in order, up to the size of one take; block while nothing waits.

        The result is empty once the queue is closed and drained. Batches count against the bounds until `release`,
        since they are still in memory.
        """
        with self._filled:
            while not self._items and not self._closed:
                self._filled.wait()
            items: list[Batch | Order] = []
            size = 0
            while self._items and size < _TAKE_BYTES and len(items) < _TAKE_ITEMS:
                self._taken = entry = self._items.popleft()
                if isinstance(entry.item, Batch):
                    size += len(entry.item.lines)
                    self._held.append(entry.at)
                if entry.item is not None:
                    items.append(entry.item)
            return items

    def release(self, batches: list[Batch]) -> None:
        """Free the room of batches that are spooled: the oldest ones, in the order they were taken."""
        with self._lock:
            for batch in batches:
                self._held.popleft()
                done = self._released
                self._released = done._replace(
                    batches=done.batches + 1, rows=done.rows + batch.rows, bytes=done.bytes + len(batch.lines)
                )
            blocked = list(self._producers)
        for wake in blocked:
            wake()

    def refuse(self) -> None:
        """Accept no more batches. Waiting ones are still taken, and orders are still accepted."""
        self._end(closed=False)

    def close(self) -> None:
        """Accept no more batches and no more orders."""
        self._end(closed=True)

    def _end(self, *, closed: bool) -> None:
        with self._lock:
            self._refuses, self._closed = True, self._closed or closed
            self._filled.notify_all()
            blocked = list(self._producers)
        for wake in blocked:
            wake()

    def depth(self) -> QueueDepth:
        """Return how much waits, and how often the bound was met."""
        with self._lock:
            waiting = (entry.at for entry in self._items if isinstance(entry.item, Batch))
            oldest_at = self._held[0] if self._held else next(waiting, None)
            return QueueDepth(*self._waiting(), self._blocked, self._raised, self._dropped, oldest_at)

    def _last(self) -> _Entry:
        return self._items[-1] if self._items else self._taken

    def _waiting(self) -> tuple[int, int, int]:
        """Return the batches, rows and bytes in memory."""
        last, done = self._last(), self._released
        return last.batches - done.batches, last.rows - done.rows, last.bytes - done.bytes

    def _offer(self, batch: Batch) -> Offer:
        policy, size = self._policy, len(batch.lines)
        with self._lock:
            if self._refuses:
                raise ClosedError("the uploader is closed; the batch was not accepted.")
            if size > policy.max_bytes:
                raise BatchTooLarge(
                    f"a batch of {count_text(batch.rows, 'row')} has {size:,} bytes, more than the whole queue "
                    f"({policy.max_bytes:,}). It was not accepted. Put smaller batches, or set "
                    f"queue=QueuePolicy(max_bytes={2 * size})."
                )
            last, done = self._last(), self._released
            if last.bytes - done.bytes + size > policy.max_bytes or last.batches - done.batches >= policy.max_batches:
                if policy.when_full == "raise":
                    raise self._full("the policy is 'raise'")
                if policy.when_full == "drop":
                    self._dropped += 1
                    return "dropped"
                return "full"
            self._items.append(_Entry(batch, self._now(), last.batches + 1, last.rows + batch.rows, last.bytes + size))
            self._filled.notify()
            return "accepted"

    @contextmanager
    def _blocking(self, wake: Callable[[], object]) -> Iterator[None]:
        """Call `wake` whenever there may be room, as long as the block lasts."""
        with self._lock:
            self._blocked += 1
            self._producers[wake] = None
        try:
            yield
        finally:
            with self._lock:
                del self._producers[wake]

    def _timed_out(self, timeout: float | None) -> QueueFull:
        with self._lock:
            return self._full(f"no room for {seconds_text(timeout or 0)}")

    def _full(self, why: str) -> QueueFull:
        self._raised += 1
        batches, _, size = self._waiting()
        return QueueFull(
            f"the queue is full ({batches:,} batches, {size:,} bytes; {why}): the batch was not "
            "accepted. The spool's disk is slower than the producer, or full: see the uploader's stats().state."
        )
