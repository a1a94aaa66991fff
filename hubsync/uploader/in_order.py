"""Put batches that finish in any order in the order of their offsets.

The workers of a pool finish in any order, but the offsets of a source must rise. A batch that comes early waits in
memory, already encoded, until all before it have come. Whoever puts the next one also puts those that waited for it.
There are no locks: see `queue`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import anyio

from hubsync._runtime.clock import Deadline
from hubsync._runtime.formatting import count_text, seconds_text, word
from hubsync._runtime.notifiers import OneShotEvent, threadsafe_callback
from hubsync._runtime.validation import check_positive
from hubsync.encoding.rows import Encoded, Rows
from hubsync.errors import OffsetOrderError, QueueFull
from hubsync.policies import MIB

_log = logging.getLogger("hubsync")
MAX_BYTES, MAX_BATCHES = 64 * MIB, 10_000
_RECHECK_S = 1.0
_WARN_S = 50.0  # between two warnings of a put that waits


class _Uploader(Protocol):
    def encode(self, rows: Rows) -> Encoded: ...
    def put(self, rows: Rows, *, offset: int | None, source: str | None) -> object: ...


class _AsyncUploader(Protocol):
    def encode(self, rows: Rows) -> Encoded: ...
    async def put(self, rows: Rows, *, offset: int | None, source: str | None) -> object: ...


class Reorderer:
    """What the two faces share.

    Attributes:
        source: the source of the offsets.
        next: the lowest offset that is missing: where the job starts, and how far it is.
    """

    def __init__(self, source: str, following: int, max_batches: int, max_bytes: int) -> None:
        check_positive(int, max_batches=max_batches, max_bytes=max_bytes)
        self.source = source
        self.next = following
        self._max_batches = max_batches
        self._max_bytes = max_bytes
        self._early: dict[int, Encoded] = {}  # by offset
        self._turn = deque([None])  # whoever takes it puts; the others only add
        self._blocked: dict[Callable[[], object], None] = {}

    def __repr__(self) -> str:
        return f"<in order, source {self.source!r}: next is {self.next}, {len(self._early):,} wait for it>"

    def _add(self, encoded: Encoded, offset: int) -> bool:
        """Let a batch wait for its turn; return False if there is no room.

        Raises:
            OffsetOrderError: another batch with this offset waits.
        """
        if offset != self.next:
            early = list(self._early.values())
            if len(early) >= self._max_batches or sum(len(each.lines) for each in early) >= self._max_bytes:
                return False
        if self._early.setdefault(offset, encoded).lines != encoded.lines:
            why = f"two batches have the offset {offset} of source {self.source!r}. The second was not accepted."
            raise OffsetOrderError(self.source, offset, self.next - 1, why)
        return True

    def _take_turn(self) -> bool:
        """Return whether the next batch has come and no other caller puts it."""
        if self.next not in self._early:
            return False
        try:
            self._turn.pop()
        except IndexError:
            return False
        return True

    def _advance(self, offset: int) -> None:
        self._early.pop(offset, None)
        self.next = offset + 1
        for wake in list(self._blocked):
            wake()

    def _pause_s(self, offset: int, wait: Deadline) -> float:
        """Return how long a put waits before it looks for room again, in seconds; warn about a long wait.

        Raises:
            QueueFull: it has waited long enough.
        """
        if not (pause_s := wait.pause_s()):
            raise QueueFull(
                f"offset {self.next} of source {self.source!r} did not come within {seconds_text(wait.timeout or 0)}, "
                f"and no more batches may wait for it: the batch with offset {offset} was not accepted. Put "
                f"{self.next} first, with rows=[] if it has no rows."
            )
        if wait.is_due(_WARN_S):
            _log.warning(
                "The put of offset %d of source %r has waited %s for offset %d, as have %s, which is the limit. Put "
                "every offset, with rows=[] if it has no rows.",
                offset, self.source, seconds_text(wait.waited_s), self.next,
                count_text(len(self._early), "early batch"),
            )  # fmt: skip
        return pause_s

    def gap(self) -> OffsetOrderError | None:
        """Return an error if batches wait for one that never came."""
        early = list(self._early.values())
        if not early:
            return None
        rows = sum(each.rows for each in early)
        why = (
            f"offset {self.next} of source {self.source!r} was never put, so {count_text(rows, 'row')} with higher "
            f"offsets {word(rows, 'was', 'were')} not accepted. Everything before is safe. Run the job again: it "
            "resumes at this offset. An offset without rows must be put as well, with rows=[]."
        )
        return OffsetOrderError(self.source, self.next, self.next - 1, why)

    def _drop(self, offset: int, error: Exception) -> None:
        """Forget a batch that could not be put, and let the error name it."""
        self._early.pop(offset, None)
        error.add_note(f"It is the batch with offset {offset} of source {self.source!r}.")


class InOrder(Reorderer):
    """Puts batches that finish in any order; from `Uploader.in_order`. Any number of threads may use it."""

    def __init__(self, up: _Uploader, source: str, following: int, max_batches: int, max_bytes: int) -> None:
        super().__init__(source, following, max_batches, max_bytes)
        self._up = up

    def put(self, rows: Rows, offset: int, *, timeout: float | None = None) -> None:
        """Put a batch once all batches with lower offsets are put.

        It returns when the batch and those that waited for it are spooled or, if it comes early, when it waits in
        memory. A batch in memory is not accepted yet: after a crash, `next` is at or before its offset.

        Args:
            rows: What `Uploader.put` takes; an empty list for an offset without rows.
            offset: The batch's number. Every number from `next` on must be put once.
            timeout: Seconds to wait for room among the early batches; None waits forever, with a warning every minute.

        Raises:
            OffsetOrderError: Another batch has this offset.
            QueueFull: `timeout` passed. The batch was not accepted.
            HubsyncError: What `Uploader.put` raises, also for a batch that waited for this one: see its note.
        """
        encoded = self._up.encode(rows)
        if offset < self.next:
            self._up.put(encoded, offset=offset, source=self.source)
            return
        if not self._add(encoded, offset):
            self._wait_for_room(encoded, offset, timeout)
        while self._take_turn():
            try:
                while (waiting := self._early.get(at := self.next)) is not None:
                    try:
                        self._up.put(waiting, offset=at, source=self.source)
                    except Exception as error:
                        self._drop(at, error)
                        raise
                    self._advance(at)
            finally:
                self._turn.append(None)

    def _wait_for_room(self, encoded: Encoded, offset: int, timeout: float | None) -> None:
        room, wait = OneShotEvent(), Deadline(timeout, _RECHECK_S)
        self._blocked[room.set] = None
        try:
            while not self._add(encoded, offset):
                room.wait(self._pause_s(offset, wait))
                wait.note_time()
        finally:
            self._blocked.pop(room.set, None)


class AsyncInOrder(Reorderer):
    """Puts batches that finish in any order; from `AsyncUploader.in_order`. Any number of tasks may use it."""

    def __init__(self, up: _AsyncUploader, source: str, following: int, max_batches: int, max_bytes: int) -> None:
        super().__init__(source, following, max_batches, max_bytes)
        self._up = up

    async def put(self, rows: Rows, offset: int, *, timeout: float | None = None) -> None:
        """Like `InOrder.put`, without blocking the event loop."""
        encoded = self._up.encode(rows)
        if offset < self.next:
            await self._up.put(encoded, offset=offset, source=self.source)
            return
        if not self._add(encoded, offset):
            await self._wait_for_room(encoded, offset, timeout)
        while self._take_turn():
            try:
                while (waiting := self._early.get(at := self.next)) is not None:
                    try:
                        await self._up.put(waiting, offset=at, source=self.source)
                    except Exception as error:
                        self._drop(at, error)
                        raise
                    self._advance(at)
            finally:
                self._turn.append(None)

    async def _wait_for_room(self, encoded: Encoded, offset: int, timeout: float | None) -> None:
        room, wait = anyio.Event(), Deadline(timeout, _RECHECK_S)
        wake = threadsafe_callback(lambda: room.set())
        self._blocked[wake] = None
        try:
            while not self._add(encoded, offset):
                with anyio.move_on_after(self._pause_s(offset, wait)):
                    await room.wait()
                room = anyio.Event()
                wait.note_time()
        finally:
            self._blocked.pop(wake, None)
