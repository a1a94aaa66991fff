"""The uploader for threads."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import TracebackType
from typing import Self

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.logs import wait_for_logs
from hubsync._runtime.notifiers import OneShotEvent
from hubsync._runtime.threads import call_in_new_thread, own_thread
from hubsync._runtime.validation import check_type
from hubsync.encoding.rows import Encoded, Rows
from hubsync.errors import ReentrantCall
from hubsync.model.receipt import Receipt, mark_dropped
from hubsync.policies import Ack, check_wait
from hubsync.uploader.base import DROPPED, BaseUploader, dropped_if_full
from hubsync.uploader.closing import draining, seconds_after
from hubsync.uploader.engine import Engine
from hubsync.uploader.in_order import MAX_BATCHES, MAX_BYTES, InOrder
from hubsync.uploader.schema_guard import Admission


class Uploader(BaseUploader):
    """Upload rows to a dataset while the job runs.

        with Uploader("user/rollouts", split="train") as up:
            for batch in generate():
                up.put(batch)

    Any number of threads may call `put`. Any number of processes may open the same repo; they share one spool.
    """

    def open(self) -> Self:
        """Open the spool and start the engine. `with` calls this.

        The token and the repo are checked now, so that a job with a bad token fails in its first second.

        Returns:
            This uploader.

        Raises:
            SpoolError: The spool's directory cannot be used.
            BlockedError: The token may not write, or the repo cannot be created.
        """
        with self._opening:
            if self._is_opening:
                raise ReentrantCall(
                    f"the uploader of {self.repo} is being opened by the code that this call interrupts."
                )
            if self._engine is None and not self._closed:
                done = OneShotEvent()
                self._is_opening = True
                try:
                    opening = self._begin(done.set)
                    try:
                        done.wait()
                    except BaseException:
                        opening.abandon()
                        raise
                finally:
                    self._is_opening = False
                self._opened(opening)
            self._ready()
        return self

    def put(
        self,
        rows: Rows,
        *,
        offset: int | None = None,
        source: str | None = None,
        key: str | None = None,
        ack: Ack = "spooled",
        timeout: float | None = None,
    ) -> Receipt:
        """Accept a batch, or reject it as a whole.

        Args:
            rows: A list of dicts, dataclasses, msgspec Structs or pydantic models, or one of them; or a
                `datasets.Dataset`, a DataFrame or any other table of Arrow data, which keeps its types.
            offset: The batch's position in `source`. Offsets must rise within a run. A batch whose offset was accepted
                in an earlier run is a replay: nothing is added, and the receipt says so. It must have the same rows.
            source: The name of the sequence that `offset` counts; one open uploader at a time may use it. None for
                "default", or in a job of several ranks for one name a rank, such as "default-rank3" (from RANK,
                SLURM_PROCID and others; see docs/how-to/resume-after-a-crash.md).
            key: A unique name for the batch. A batch whose key was accepted before is a replay.
            ack: How far the batch must be before this returns: "queued" (in memory), "spooled" (it survives the
                process), or "committed" (on the Hub; its shard is sealed now, as by `flush`).
            timeout: Seconds to wait for the offsets in the dataset, for room in the queue and for `ack`; None for no
                limit.

        Returns:
            A receipt that reports how far the batch is.

        Raises:
            RowError: A row cannot be written. The batch was not accepted.
            TransformError: The uploader's `transform` raised. The batch was not accepted.
            SchemaConflict: A value does not fit its column. The batch was not accepted.
            BatchTooLarge: The batch is larger than the queue may be. It was not accepted.
            QueueFull: The queue is full and its policy is "raise", or `timeout` passed. The batch was not accepted.
            OffsetOrderError: The batch came after one with a higher offset, or an earlier run has put other rows with
                its offset, or (`SourceInUse`) another open uploader uses the source. The batch was not accepted. With
                `ack="queued"`, `flush` and `close` raise it.
            ClosedError: The uploader is not open. The batch was not accepted.
            ForkedError: This process was forked from the one that opened the uploader. The batch was not accepted.
            SpoolLost: The spool was deleted or is corrupt. The batch was not accepted.
            OffsetUnknown: The spool is new, and the offsets in the dataset did not become known in time: see `offset`.
                The batch was not accepted.
            ConfigError: An argument is invalid. The batch was not accepted.
            WaitTimeout: `timeout` seconds passed before `ack` was reached. hubsync goes on with the batch, and
                `error.receipt` reports on it.
            NotDrained: Another thread closed the uploader before the batch was committed. The rows are in the spool.
            BlockedError: With `ack="committed"`: an operator must act before the batch can be committed. The rows are
                in the spool.
            ShardsRefused: With `ack="committed"`: the Hub rejected the batch's shard. The rows are in the dead letter.
        """
        engine = self._ready()
        check_wait(ack, timeout)
        encoded = self._checked(rows, offset, source, key)
        place = self._familiar(engine, encoded, offset)
        if place is None:
            place = call_in_new_thread(self._admit_when_known, engine, encoded, offset, timeout)
        if own_thread.depth:
            ack = "queued"  # this thread must not wait for itself
        batch = self._batch(encoded, place, offset, source, key, ack)
        until = None if timeout is None else time.monotonic() + timeout
        if not engine.queue.put(batch, timeout):
            mark_dropped(batch.receipt, DROPPED)
            return batch.receipt
        failpoint(Failpoint.QUEUED)
        if ack != "queued":
            if ack == "committed" and engine.is_offline:
                ack = "spooled"  # as far as it can be
            flush = engine.flush_batch(batch.receipt) if ack == "committed" else nullcontext(batch.receipt)
            with dropped_if_full(engine), flush as told:
                told.wait(ack, None if until is None else max(0.0, until - time.monotonic()))
        return batch.receipt

    def _admit_when_known(
        self, engine: Engine, encoded: Encoded, offset: int | None, timeout: float | None
    ) -> Admission:
        if offset is not None:
            self._wait_for_offsets(timeout)
        return self._admit(engine, encoded)

    def _wait_for_offsets(self, timeout: float | None = None) -> None:
        until = None if timeout is None else time.monotonic() + timeout
        while wait_s := self._offsets_wait.poll(until):
            time.sleep(wait_s)
        self._knows_offsets = True

    def offset(self, source: str | None = None) -> int | None:
        """Return the highest offset that is accepted and durable, here or in the dataset.

        In a new spool, this waits until the watermarks in the dataset are read. That takes a few requests, but minutes
        if an earlier version left thousands of files. A warning then says every minute how far it is.

        Args:
            source: The name that was given to `put`; None for its default.

        Returns:
            The offset, or None if no batch of this source was accepted.

        Raises:
            OffsetUnknown: The spool is new, and the Hub has not answered for `RetryPolicy.open_timeout_s`.
            ClosedError: The uploader is not open.
        """
        engine = self._ready(waits=True)
        return call_in_new_thread(self._highest, engine, source or self._source)

    def _highest(self, engine: Engine, source: str) -> int | None:
        self._wait_for_offsets()
        return engine.spool.offsets.highest(source)

    def known(self, key: str) -> bool:
        """Return True if this spool accepted a batch with this key, so that it need not be generated again.

        This blocks while another process locks the spool's catalogue.

        Args:
            key: The key that was given to `put`.

        Raises:
            ClosedError: The uploader is not open.
        """
        check_type(str, "a string", key=key)
        return call_in_new_thread(self._ready(waits=True).spool_thread.writer.knows, key)

    def in_order(
        self, source: str | None = None, *, max_batches: int = MAX_BATCHES, max_bytes: int = MAX_BYTES
    ) -> InOrder:
        """Return a helper that puts batches in the order of their offsets, for a pool that finishes them in any order.

            ordered = up.in_order()
            with ThreadPoolExecutor(8) as pool:
                for n in range(ordered.next, len(prompts)):
                    pool.submit(lambda n=n: ordered.put(generate(prompts[n]), n))

        Its `next` is the first offset that is missing. `close` raises `OffsetOrderError` if an offset was left out.

        Args:
            source: The source of the offsets, as in `put`.
            max_batches: Batches that may wait in memory for an earlier one. Further ones block.
            max_bytes: Encoded bytes that may wait.

        Raises:
            OffsetUnknown: As for `offset`.
            ClosedError: The uploader is not open.
        """
        name = source or self._source
        highest = self.offset(name)
        ordered = InOrder(self, name, 0 if highest is None else highest + 1, max_batches, max_bytes)
        self._ordered.append(ordered)
        return ordered

    def flush(self, timeout: float | None = None) -> None:
        """Wait until everything accepted so far is committed.

        Args:
            timeout: Seconds to wait; None waits forever.

        Raises:
            NotDrained: `timeout` seconds passed. The rows are safe in the spool.
            BlockedError: An operator must act. The rows are safe in the spool.
            ShardsRefused: The Hub rejected shards, now or since the last flush. The rows are in the dead letter.
            ClosedError: The uploader is not open.
        """
        engine = self._ready(waits=True)
        with draining(engine, timeout), engine.flush() as flushed:
            flushed.wait("committed", timeout)
        wait_for_logs()

    def close(self, timeout: float | None = None, *, wait: bool = True) -> None:
        """Upload everything accepted so far, and end. `with` calls this; a second call does nothing.

        Whatever this raises, every accepted row is on the Hub or in the spool.

        Args:
            timeout: Seconds to wait; None for `RetryPolicy.close_timeout_s`, which is no limit by default.
            wait: False to end as soon as everything is in the spool, and leave the upload to the agent (see
                `committer`), or to the next job.

        Raises:
            NotDrained: `timeout` seconds passed. The rows are safe in the spool.
            BlockedError: An operator must act. The rows are safe in the spool.
            ShardsRefused: The Hub rejected shards, now or since the last flush. The rows are in the dead letter.
        """
        self._close(timeout, wait=wait)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        timeout = seconds_after(error, self._grace_s)
        with self._after_error(error, timeout):
            self.close(timeout)
