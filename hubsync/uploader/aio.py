"""The uploader for tasks, on asyncio or trio. The engine runs in a thread, as that of `Uploader` does.

Names, arguments and errors are those of `Uploader`. No awaited method blocks the event loop: what touches the disk
does so in another thread.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NoReturn, Self

import anyio
from anyio.abc import TaskStatus

from hubsync._runtime import signals
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.logs import wait_for_logs_async
from hubsync._runtime.notifiers import threadsafe_callback
from hubsync._runtime.threads import run_in_thread
from hubsync._runtime.validation import check_type
from hubsync.encoding.rows import Rows
from hubsync.errors import ClosedError, HubsyncError
from hubsync.model.receipt import Receipt, ReceiptWaiter, Until, mark_dropped
from hubsync.model.stats import SpoolDepth
from hubsync.policies import Ack, check_wait
from hubsync.uploader.base import DROPPED, BaseUploader, dropped_if_full
from hubsync.uploader.closing import draining, seconds_after, seconds_after_start
from hubsync.uploader.engine import Engine
from hubsync.uploader.in_order import MAX_BATCHES, MAX_BYTES, AsyncInOrder

_log = logging.getLogger("hubsync")


class AsyncUploader(BaseUploader):
    """Upload rows to a dataset while the job runs, on asyncio or trio.

        async with AsyncUploader("user/rollouts") as up:
            async for batch in generate():
                await up.put(batch)

    Leaving the block uploads everything. Leaving it by cancellation does not (unless by Ctrl-C or SIGTERM): the rows
    stay in the spool.
    """

    _opens: anyio.Lock | None = None
    _body: anyio.CancelScope | None = None  # around the caller's block; SIGTERM cancels it
    _draining: anyio.CancelScope | None = None
    _wake: Callable[[], None]  # ends the block; called by a signal handler

    async def open(self) -> Self:
        """Do what `Uploader.open` does.

        Prefer `async with`, which ends in order on SIGTERM; without it, accepted rows are uploaded when the interpreter
        exits.
        """
        self._opens = self._opens or anyio.Lock()
        async with self._opens:
            if self._engine is None and not self._closed:
                done = anyio.Event()
                opening = self._begin(threadsafe_callback(done.set))
                try:
                    await done.wait()
                except BaseException:
                    opening.abandon()
                    raise
                self._opened(opening)
        self._ready()
        return self

    async def put(
        self,
        rows: Rows,
        *,
        offset: int | None = None,
        source: str | None = None,
        key: str | None = None,
        ack: Ack = "spooled",
        timeout: float | None = None,
    ) -> Receipt:
        """Like `Uploader.put`, without blocking the event loop.

        If it is cancelled, the batch may or may not have been accepted.
        """
        engine = self._ready()
        check_wait(ack, timeout)
        encoded = self._checked(rows, offset, source, key)
        place = self._familiar(engine, encoded, offset)
        if place is None:
            if offset is not None:
                await self._wait_for_offsets(timeout)
            place = await run_in_thread(self._admit, engine, encoded)
        batch = self._batch(encoded, place, offset, source, key, ack)
        until = None if timeout is None else time.monotonic() + timeout
        if ack == "committed" and engine.is_offline:
            ack = "spooled"  # offline, it gets no further
        # Before the batch is handed over, so that the spool thread then finds Python's lock free.
        waiter = ReceiptWaiter(batch.receipt, ack) if ack == "spooled" else None
        if not await engine.queue.put_async(batch, timeout):
            mark_dropped(batch.receipt, DROPPED)
            return batch.receipt
        failpoint(Failpoint.QUEUED)
        left = None if until is None else max(0.0, until - time.monotonic())
        with dropped_if_full(engine):
            if waiter is not None:
                await waiter.wait(left)
            elif ack == "committed":
                with engine.flush_batch(batch.receipt) as told:
                    await told.wait_async(ack, left)
        return batch.receipt

    async def _wait_for_offsets(self, timeout: float | None = None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            wait_s = await run_in_thread(self._offsets_wait.poll, until)
            if not wait_s:
                break
            await anyio.sleep(wait_s)  # in this process or another, the catalogue learns them
        self._knows_offsets = True

    async def offset(self, source: str | None = None) -> int | None:
        """Like `Uploader.offset`, without blocking the event loop."""
        engine = self._ready(waits=True)
        await self._wait_for_offsets()
        return await run_in_thread(engine.spool.offsets.highest, source or self._source)

    async def known(self, key: str) -> bool:
        """Like `Uploader.known`, without blocking the event loop."""
        check_type(str, "a string", key=key)
        return await run_in_thread(self._ready(waits=True).spool_thread.writer.knows, key)

    async def in_order(
        self, source: str | None = None, *, max_batches: int = MAX_BATCHES, max_bytes: int = MAX_BYTES
    ) -> AsyncInOrder:
        """Like `Uploader.in_order`, without blocking the event loop."""
        name = source or self._source
        highest = await self.offset(name)
        ordered = AsyncInOrder(self, name, 0 if highest is None else highest + 1, max_batches, max_bytes)
        self._ordered.append(ordered)
        return ordered

    async def flush(self, timeout: float | None = None) -> None:
        """Like `Uploader.flush`, without blocking the event loop."""
        engine = self._ready()
        with draining(engine, timeout), engine.flush() as flushed:
            await flushed.wait_async("committed", timeout)
        await run_in_thread(engine.monitor.refresh)
        await wait_for_logs_async()

    def _depth(self, engine: Engine) -> SpoolDepth:
        """Return the depth half a second ago: reading the disk could block the event loop."""
        return engine.monitor.depth()

    async def close(self, timeout: float | None = None, *, wait: bool = True) -> None:
        """Like `Uploader.close`, from any task. If it is cancelled, the uploader ends all the same."""
        if (engine := self._begin_close()) is None:
            return
        timeout = self._close_timeout_s if timeout is None else timeout
        try:
            with draining(engine, timeout):
                if engine.failure is None:
                    await self._drain_async(engine, timeout, "committed" if wait else "spooled")
                    failpoint(Failpoint.DRAINED)
        finally:
            await self._end(engine)
        self._raise_failure(engine)
        if not wait and self._final is not None:
            engine.report_left(self._final.spool.rows)

    async def _drain_async(self, engine: Engine, timeout: float | None, until: Until) -> None:
        try:
            drained = engine.flush(everything=until == "committed")
        except ClosedError:  # another task or thread is closing the uploader
            return
        began = time.monotonic()
        with drained, anyio.CancelScope() as self._draining:
            await drained.wait_async(until, timeout)
            if until == "committed":
                left = seconds_after_start(began, timeout)
                await run_in_thread(engine.merge_rest, left, abandon_on_cancel=True)
        if self._draining.cancelled_caught:  # SIGTERM during the drain starts the grace period
            await self._drain_before_the_end(engine, "SIGTERM", signals.shutdown.seconds_left())
            raise SystemExit(signals.EXIT_CODE)

    async def _end(self, engine: Engine) -> None:
        self._closed = True
        engine.stop()
        try:
            with anyio.CancelScope(shield=True):
                await run_in_thread(self._join, engine)
                await wait_for_logs_async()
        finally:
            signals.shutdown.unregister(self._at_exit)

    async def __aenter__(self) -> Self:
        await self.open()
        self._body = anyio.CancelScope()
        self._body.__enter__()
        self._wake = threadsafe_callback(self._end_block)
        if self._grace_s is not None:
            signals.shutdown.add_loop_callback(self._wake)
        return self

    def _end_block(self) -> None:
        for scope in (self._body, self._draining):
            if scope is not None:
                scope.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        engine, body, self._body = self._engine, self._body, None
        if engine is None or body is None:
            return
        with suppress(RuntimeError):  # another task leaves the block than entered it, as with pytest's fixtures
            body.__exit__(kind, error, trace)
        try:
            if body.cancel_called:
                await self._leave_by_signal(engine)
            elif error is None:
                await self.close()
            elif isinstance(error, anyio.get_cancelled_exc_class()):
                await self._leave_cancelled(engine)
            else:
                timeout = seconds_after(error, self._grace_s)
                with self._after_error(error, timeout):
                    await self.close(timeout)
        finally:
            signals.shutdown.remove_loop_callback(self._wake)

    async def _leave_by_signal(self, engine: Engine) -> NoReturn:
        if not self._closed:
            try:
                await self._drain_before_the_end(engine, "SIGTERM", signals.shutdown.seconds_left())
            finally:
                await self._end(engine)
        raise SystemExit(signals.EXIT_CODE)

    async def _leave_cancelled(self, engine: Engine) -> None:
        if self._closed:
            return
        try:
            if signals.is_interrupted():
                await self._drain_after_interrupt(engine)
        finally:
            await self._end(engine)

    async def _drain_after_interrupt(self, engine: Engine) -> None:
        """Handle the next Ctrl-C as well: asyncio would raise `KeyboardInterrupt` at any point of the loop."""

        async def watch(*, task_status: TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(signal.SIGINT) as signals:
                task_status.started()
                async for _ in signals:
                    if self._draining is not None:
                        self._draining.cancel()

        async with anyio.create_task_group() as tasks:
            await tasks.start(watch)
            await self._drain_before_the_end(engine, "Ctrl-C", self._grace_s)
            tasks.cancel_scope.cancel()

    async def _drain_before_the_end(self, engine: Engine, why: str, seconds: float | None) -> None:
        """Upload what is possible in time; a second signal ends it at once."""
        bound = "" if seconds is None else f", for up to {seconds:.0f} s"
        _log.warning("%s ended the job. Uploading the rest%s: %s.", why, bound, engine.waiting_text())
        try:
            with (
                anyio.CancelScope(shield=True) as self._draining,
                draining(engine, seconds),
                engine.flush(everything=True) as drained,
            ):
                await drained.wait_async("committed", seconds)
        except HubsyncError as error:
            _log.error("%s", error)
