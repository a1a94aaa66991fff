"""Stage shards: upload their bytes as blobs, several lots at a time. That uses no commit quota."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import anyio

from hubsync._runtime.formatting import count_text, size_text
from hubsync.committer.context import Context
from hubsync.committer.reconciler import Reconciler
from hubsync.committer.rejections import Rejections
from hubsync.errors import DefectError, HubError, UnreadableShard
from hubsync.model.shard import Shard, Staged
from hubsync.policies import MIB
from hubsync.telemetry.status import State

POLL_S = 0.5  # how soon segments that another process sealed are noticed
_LOT_SHARDS = 100  # shards of a lot: one preupload call, one Xet session
_LOT_BYTES = 256 * MIB
_LOTS = 3  # at once, so that a large upload does not hold up what is sealed after it
_SLOW_S = 30.0


class Stager:
    """Stages sealed shards."""

    def __init__(self, context: Context, reconciler: Reconciler, rejections: Rejections) -> None:
        self._spool = context.spool
        self._destination = context.destination
        self._retrier = context.retrier
        self._reconciler = reconciler
        self._rejections = rejections
        self._clock = context.clock
        self._status = context.status
        self._wakeups = context.wakeups
        self._unreadable = context.retrier.backoff()  # after a lot with a file that could not be read
        self._lots: list[frozenset[int]] = []  # the segments that are being uploaded

    async def run(self) -> None:
        """Stage what is sealed, until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                shards = await self._retrier.on_disk(self._next_lot) if len(self._lots) < _LOTS else []
                if shards:
                    lot = frozenset(shard.segment for shard in shards)
                    self._lots.append(lot)
                    tasks.start_soon(self._stage_lot, lot, shards)
                else:
                    await self._wakeups.stage.wait(POLL_S)

    def _next_lot(self) -> list[Shard]:
        self._spool.recovery.adopt()
        self._spool.catalogue.checkpoint(shrink=self._spool.disk.is_exhausted())
        self._spool.disk.reserve()
        return self._spool.shards.to_stage(_LOT_SHARDS, _LOT_BYTES, frozenset().union(*self._lots))

    async def _stage_lot(self, lot: frozenset[int], shards: Sequence[Shard]) -> None:
        try:
            await self._stage(shards)
        finally:
            self._lots.remove(lot)
        self._wakeups.stage.notify()

    async def _stage(self, shards: Sequence[Shard]) -> None:
        upload = partial(self._upload, shards)
        try:
            staged = await self._retrier.until_success("stage", upload, raises=(DefectError, UnreadableShard))
        except UnreadableShard as error:  # each is read before it is in a lot again, so one holds up no other
            self._spool.shards.suspect(shards)
            await self._retrier.back_off("stage", error, self._unreadable)
            return
        except DefectError as error:
            if len(shards) > 1:
                async with anyio.create_task_group() as tasks:  # alone, so that one bad shard holds up no other
                    for shard in shards:
                        tasks.start_soon(self._stage, [shard])
            elif not await self._rejections.may_retry(shards[0]):
                await self._rejections.give_up("stage", shards[0], error)
            return
        self._unreadable.reset()
        doubtful = [shard for shard, found in zip(shards, staged, strict=True) if found.remote_oid]
        done = await self._reconciler.compare_at_head("stage", doubtful) if doubtful else set()
        modes = {s.segment: found.mode for s, found in zip(shards, staged, strict=True) if s.segment not in done}
        await self._retrier.on_disk(self._spool.shards.mark_staged, modes)
        self._wakeups.all()

    async def _upload(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        """Upload shards. If that takes long, say so: hf_xet retries for minutes and reports nothing."""
        size = sum(shard.size for shard in shards)
        what = f"{count_text(len(shards), 'shard')} ({size_text(size)})"
        slow = State("ok", f"uploading {what} for over {_SLOW_S:g} s")

        async def report_slow() -> None:
            await self._clock.sleep(_SLOW_S)
            self._status.report("upload", slow)

        staged: Sequence[Staged] = ()
        failed: HubError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(report_slow)
            try:
                staged = await self._destination.stage(shards)
            except HubError as error:
                failed = error
            tasks.cancel_scope.cancel()
        self._status.report("upload", State())
        if failed is not None:
            raise failed
        return staged
