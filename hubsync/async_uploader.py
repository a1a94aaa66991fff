"""The uploader's face for tasks: the worker runs in the caller's event loop, in a task group of its own.

Names, arguments and errors are those of `Uploader`. No method holds the event loop up: what touches the disk does so
in the worker's thread.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread
from anyio.abc import TaskStatus

from hubsync import shutdown
from hubsync.clock import loop_waker
from hubsync.crashpoints import CrashPoint, reach
from hubsync.errors import HubsyncError, QueueFull
from hubsync.policy import Ack
from hubsync.receipt import Receipt
from hubsync.rows import Rows
from hubsync.spool import SpoolDepth
from hubsync.uploader import DROPPED, BaseUploader
from hubsync.worker import Worker

_log = logging.getLogger("hubsync")


class AsyncUploader(BaseUploader):
    """The same for tasks: the worker runs in the caller's event loop (asyncio or trio), in a task group of its own.

        async with AsyncUploader("user/rollouts") as up:
            async for batch in generate():
                await up.put(batch)

    Leaving the block drains. A cancelled block does not, but for Ctrl-C and SIGTERM: its rows are in the spool.
    """

    _stack: AsyncExitStack | None = None
    _body: anyio.CancelScope | None = None  # around the caller's block: SIGTERM ends it
    _watching: anyio.CancelScope | None = None
    _draining: anyio.CancelScope | None = None
    _terminated = False

    async def open(self) -> Self:
        """As `Uploader.open`. Prefer `async with`, which gives the worker's tasks an owner."""
        if self._worker is not None or self._closed:
            self._ready()
            return self
        worker = await self._build_in_thread()
        stack = AsyncExitStack()
        try:
            tasks = await stack.enter_async_context(anyio.create_task_group())
            await tasks.start(worker.run)
            if self._grace_s is not None and shutdown.can_catch():
                await tasks.start(self._end_on_sigterm, self._grace_s)
        except BaseException:
            await stack.aclose()
            worker.writer.close()  # a worker that was cancelled before it began has not
            worker.spool.close()
            raise
        self._stack, self._worker, self._pid = stack, worker, os.getpid()
        self._body = stack.enter_context(anyio.CancelScope())
        return self

    async def _build_in_thread(self) -> Worker:
        """Where a task is cancelled, the thread goes on: what it opens for nobody, it closes."""
        lock, built, given_up = threading.Lock(), list[Worker](), threading.Event()

        def build() -> None:
            worker = self._build()
            with lock:
                built.append(worker)
                if given_up.is_set():
                    discard()

        def discard() -> None:
            for worker in built:
                worker.writer.close()
                worker.spool.close()

        try:
            await anyio.to_thread.run_sync(build)
        except BaseException:
            with lock:
                given_up.set()
                discard()
            raise
        return built[0]

    async def _end_on_sigterm(self, grace_s: float, *, task_status: TaskStatus[None]) -> None:
        with anyio.CancelScope() as self._watching, anyio.open_signal_receiver(signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                shutdown.begin(0.0 if self._terminated else grace_s)
                self._terminated = True
                for scope in (self._body, self._draining):
                    if scope is not None:
                        scope.cancel()

    async def put(
        self,
        rows: Rows,
        *,
        offset: int | None = None,
        source: str = "default",
        key: str | None = None,
        ack: Ack = "spooled",
        timeout: float | None = None,
    ) -> Receipt:
        """As `Uploader.put`; waits without blocking the event loop. Cancelled, the batch may have been accepted."""
        worker = self._ready()
        batch = self._batch(worker, rows, offset, source, key)
        until = None if timeout is None else time.monotonic() + timeout
        if ack == "committed" and worker.offline:
            ack = "spooled"  # as far as it can be
        # Before it is handed over: the spool's thread then finds Python's lock free.
        done = batch.receipt._watch(ack) if ack == "spooled" else None
        offer = worker.queue.offer(batch)
        while offer == "full":
            room = anyio.Event()
            offer = worker.queue.offer(batch, loop_waker(room.set))
            if offer == "full":
                with anyio.move_on_after(None if until is None else until - time.monotonic()) as scope:
                    await room.wait()
                if scope.cancelled_caught:
                    raise QueueFull(f"the queue had no room for {timeout} s: the batch was not accepted.")
        if offer == "dropped":
            batch.receipt._dropped(DROPPED)
            return batch.receipt
        reach(CrashPoint.QUEUED)
        left = None if until is None else max(0.0, until - time.monotonic())
        if done is not None:
            await batch.receipt._wait_for(done, ack, left)
        elif ack == "committed":
            await worker.hurry(batch.receipt).wait_async(ack, left)
        return batch.receipt

    async def flush(self, timeout: float | None = None) -> None:
        """As `Uploader.flush`."""
        worker = self._ready()
        with self._drained(worker, timeout):
            await worker.flush().wait_async("committed", timeout)
        await anyio.to_thread.run_sync(worker.see)

    def _depth(self, worker: Worker) -> SpoolDepth:
        """Half a second old at most, but for a flush's end: to ask the disk could hold the event loop up."""
        return worker.depth()

    async def close(self, timeout: float | None = None) -> None:
        """As `Uploader.close`."""
        worker = self._worker
        if worker is None or self._closed or os.getpid() != self._pid:
            self._closed = True
            return
        try:
            with self._drained(worker, timeout):
                if worker.failure is None:
                    await worker.flush(everything=True).wait_async("committed", timeout)
                    reach(CrashPoint.DRAINED)
        finally:
            await self._end(worker)

    async def _end(self, worker: Worker, *ended: Any) -> None:
        """Ends the worker and its tasks; `ended` is what has ended the block, where that was an exception."""
        self._closed = True
        worker.stop()
        if self._watching is not None:
            self._watching.cancel()
        stack, self._stack = self._stack, None
        try:
            if stack is not None:
                await stack.__aexit__(*(ended or (None, None, None)))
        finally:
            worker.spool.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        worker = self._worker
        if worker is None or self._stack is None:
            return
        if self._terminated:
            await self._drain_before_the_end(worker, "SIGTERM", shutdown.left())
            await self._end(worker, kind, error, trace)
            raise SystemExit(shutdown.EXIT_CODE)
        if error is None:
            await self.close()
        elif isinstance(error, anyio.get_cancelled_exc_class()):
            try:
                if shutdown.is_interrupted():
                    await self._drain_after_interrupt(worker)
            finally:
                await self._end(worker, kind, error, trace)
        else:
            timeout = self._may_take(error)
            with self._behind(error, timeout):
                await self.close(timeout)

    async def _drain_after_interrupt(self, worker: Worker) -> None:
        """The next Ctrl-C is ours as well: asyncio would raise `KeyboardInterrupt` wherever the loop is just then."""

        async def watch(*, task_status: TaskStatus[None]) -> None:
            with anyio.open_signal_receiver(signal.SIGINT) as signals:
                task_status.started()
                async for _ in signals:
                    if self._draining is not None:
                        self._draining.cancel()

        async with anyio.create_task_group() as tasks:
            await tasks.start(watch)
            await self._drain_before_the_end(worker, "Ctrl-C", self._grace_s)
            tasks.cancel_scope.cancel()

    async def _drain_before_the_end(self, worker: Worker, why: str, seconds: float | None) -> None:
        """What can be brought up in time; a second signal ends it at once."""
        bound = "" if seconds is None else f" for up to {seconds:.0f} s"
        _log.warning("%s: draining%s; %s.", why, bound, worker.spool.waiting())
        try:
            with anyio.CancelScope(shield=True) as self._draining, self._drained(worker, seconds):
                await worker.flush(everything=True).wait_async("committed", seconds)
        except HubsyncError as error:
            _log.error("%s", error)
