"""The uploader for threads."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from types import TracebackType
from typing import Self

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync.encoding.rows import Rows
from hubsync.model.receipt import Receipt
from hubsync.policies import (
    Ack,
    check_wait,
)
from hubsync.uploader.base import DROPPED, BaseUploader


class Uploader(BaseUploader):
    """Brings rows to a dataset while the job runs, for threads.

        with Uploader("user/rollouts", split="train") as up:
            for batch in generate():
                up.put(batch)

    Any number of threads may `put`. Any number of processes may open the same repo: they share one spool.
    """

    def open(self) -> Self:
        """Opens the spool and starts the worker. `with` does it.

        Raises:
            SpoolError: the spool's disk.
            BlockedError: the token may not write, or the repo can't be had: in the first second, not in the tenth hour.
        """
        with self._opening:
            if self._worker is None and not self._closed:
                done = threading.Event()
                opening = self._begin(done.set)
                try:
                    done.wait()
                except BaseException:
                    opening.give_up()
                    raise
                self._opened(opening)
            self._ready()
        return self

    def put(
        self,
        rows: Rows,
        *,
        offset: int | None = None,
        source: str = "default",
        key: str | None = None,
        ack: Ack = "spooled",
        timeout: float | None = None,
    ) -> Receipt:
        """Hands over a batch: accepted as a whole, or refused as a whole.

        Args:
            rows: a list of dicts, dataclasses, msgspec Structs or pydantic models; or a `datasets.Dataset`, a
                `pyarrow.Table` or `RecordBatch`.
            offset: the batch's position in `source`, rising. One that is not above the highest accepted is a replay:
                nothing is added, and the receipt says so.
            key: a name of the batch's own. One that was accepted before is a replay as well.
            ack: how far the batch is when this returns: "queued" (in memory), "spooled" (survives the process),
                "committed" (on the Hub; its shard is sealed for that, as by `flush`).
            timeout: seconds to wait for room in the queue and for `ack`.

        Raises:
            RowError (also TransformError, SchemaConflict), BatchTooLarge, QueueFull, ClosedError, OffsetUnknown: the
                batch was not accepted.
            WaitTimeout, NotDrained, BlockedError: it goes on, but is not as far as `ack` wants: time ran out (the error
                has the receipt), another thread closed the uploader, or a person is needed.
        """
        worker = self._ready()
        check_wait(ack, timeout)
        encoded = self._checked(rows, offset, source, key)
        batch = self._batch(encoded, self._place(worker, encoded, offset), offset, source, key)
        until = None if timeout is None else time.monotonic() + timeout
        if not worker.queue.put(batch, timeout):
            batch.receipt._dropped(DROPPED)
            return batch.receipt
        failpoint(Failpoint.QUEUED)
        if ack != "queued":
            if ack == "committed" and worker.offline:
                ack = "spooled"  # as far as it can be
            with worker.hurry(batch.receipt) if ack == "committed" else nullcontext(batch.receipt) as told:
                told.wait(ack, None if until is None else max(0.0, until - time.monotonic()))
        return batch.receipt

    def flush(self, timeout: float | None = None) -> None:
        """Returns when all that was accepted so far is committed.

        Raises:
            NotDrained: `timeout` seconds passed; everything is safe in the spool.
            BlockedError: a person is needed.
            ShardsRefused: the Hub refused single shards for good, now or since the last flush.
        """
        worker = self._ready()
        with self._drained(worker, timeout), worker.flush() as flushed:
            flushed.wait("committed", timeout)

    def close(self, timeout: float | None = None) -> None:
        """Drains and ends. Whatever happens, what was accepted is on the Hub or in the spool. Twice is once.

        Raises:
            NotDrained: `timeout` seconds passed.
            BlockedError: a person is needed.
            ShardsRefused: the Hub refused single shards for good, now or since the last flush.
        """
        self._close(timeout)

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        timeout = self._may_take(error)
        with self._behind(error, timeout):
            self.close(timeout)
