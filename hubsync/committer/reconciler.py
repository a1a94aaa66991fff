"""Decide by the remote files what landed, settle it, and move shards away from paths that are taken.

After an unknown outcome, after someone else's commit and at a start, the committer reads what is at its paths before it
sends anything. A file with the shard's content is its own: it landed. No file: it is still to be sent, unless a
watermark says that its plan landed and the shard was compacted since. Any other file is someone else's, is never
overwritten, and the shard gets another number.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync.committer.card_updater import CardUpdater
from hubsync.committer.context import Context
from hubsync.committer.rejections import Rejections
from hubsync.committer.rollback import RollbackDetector
from hubsync.errors import StaleParentError
from hubsync.model.commit import Plan
from hubsync.model.hashing import git_blob_oid
from hubsync.model.shard import RemoteFile, Shard
from hubsync.model.watermarks import FIRST_FOLDED, decode_watermarks, is_watermark
from hubsync.telemetry.status import State

_log = logging.getLogger("hubsync")
T = TypeVar("T")

_PROBE = 100  # numbers that are looked up at once when a path is taken


class Reconciler:
    """Compares shards with the remote files. It is the only part that settles plans."""

    def __init__(
        self, context: Context, rollback: RollbackDetector, cards: CardUpdater, rejections: Rejections
    ) -> None:
        self._spool = context.spool
        self._destination = context.destination
        self._retrier = context.retrier
        self._head = context.head
        self._rollback = rollback
        self._cards = cards
        self._rejections = rejections
        self._status = context.status
        self._events = context.events
        self._wakeups = context.wakeups
        self._has_met_others = False

    async def at_head(self, part: str, look: Callable[[str], Awaitable[T]]) -> T:
        """Return what `look` finds at the branch's head, reading the head again if that commit is gone meanwhile."""
        backoff = self._retrier.backoff()
        while True:
            head = await self._retrier.until_success(part, self._destination.head)
            try:
                return await look(head.sha or "")
            except StaleParentError as error:
                await self._retrier.back_off(part, error, backoff)

    async def read_head(self) -> None:
        """Read the head, which someone else may have moved."""
        head = await self._retrier.until_success("read", self._destination.head)
        await self._moved(head.sha or "")

    async def _moved(self, sha: str) -> None:
        self._head.moved(sha, await self._retrier.on_disk(self._spool.segments.newest))

    async def compare_at_head(self, part: str, shards: Sequence[Shard]) -> set[int]:
        """Do the same as `compare`, at the branch's head."""
        return await self.at_head(part, partial(self.compare, shards))

    async def compare(self, shards: Sequence[Shard], at: str) -> set[int]:
        """Settle the shards that are in the commit `at`, and renumber those whose path another file has taken.

        Returns:
            The segments that were settled or renumbered.

        Raises:
            StaleParentError: the commit `at` is gone.
        """
        found = await self._files("stage", [shard.path for shard in shards], at)
        absent = (shard for shard in shards if shard.path not in found)
        ours = dict.fromkeys(await self._rollback.merged(absent, at), at)
        moved: set[int] = set()
        for shard in shards:
            file = found.get(shard.path)
            if file is None:
                continue
            if shard.matches(file) or await self._rollback.has_grown(shard, at):
                ours[shard.segment] = file.commit or at
            else:
                await self._renumber(shard, at)
                moved.add(shard.segment)
        if ours:
            await self.settle(Plan(0, shards), ours)
        return moved | ours.keys()

    async def reconcile(self, plan: Plan) -> bool:
        """Decide, shard by shard, whether a plan landed, and settle it. Return whether anything of it landed."""

        async def look(at: str) -> Mapping[int, str]:
            await self._moved(at)
            return await self._landed(plan, at)

        landed = await self.at_head("read", look)
        self._cards.reconsider()
        failpoint(Failpoint.RECONCILED)
        await self.settle(plan, landed)
        if landed:
            self._status.report("commit", State())
        return bool(landed)

    async def _landed(self, plan: Plan, at: str) -> Mapping[int, str]:
        """Return the commits of the plan's shards that are in the commit `at`, by segment, or were compacted since."""
        mark = next((file for file in plan.sidecars if is_watermark(file.path)), None)
        besides = [mark.path, FIRST_FOLDED] if mark is not None and plan.token else []
        found = await self._files("read", [*(shard.path for shard in plan.shards), *besides], at)
        here = {shard.segment: file for shard in plan.shards if (file := found.get(shard.path)) and shard.matches(file)}
        commits = {segment: file.commit or at for segment, file in here.items()}
        if mark is None or not besides or len(here) == len(plan.shards):
            return commits
        # A plan's files land together, and its watermark is like no other plan's.
        if mark.path in found:
            is_whole = found[mark.path].oid == git_blob_oid(mark.content)
        elif FIRST_FOLDED in found:  # which another spool may have done with it
            writer = decode_watermarks(mark.content, mark.path)[0].writer
            ask = partial(self._destination.read_watermarks, at, writers=[writer])
            marks = await self._retrier.until_success("read", ask, raises=(StaleParentError,))
            is_whole = plan.token in (mark.plan for mark in marks.by_writer.values())
        else:
            is_whole = False
        return {shard.segment: commits.get(shard.segment, at) for shard in plan.shards} if is_whole else commits

    async def settle(self, plan: Plan, landed: Mapping[int, str]) -> None:
        """Close a plan: record which of its shards are committed, and report them.

        Args:
            plan: the plan, or shards as a plan with the id 0.
            landed: the commits by segment; the other shards are free for the next plan.
        """
        await self._retrier.on_disk(self._spool.plans.settle, plan, landed)
        counts = self._status.counts
        counts.commits += len(set(landed.values()))
        self._rejections.committed(landed)
        for shard in plan.shards:
            if shard.segment in landed:
                counts.committed_rows += shard.rows
                counts.committed_bytes += shard.size
                counts.committed_shards += 1
                self._events.committed(shard.segment, landed[shard.segment])

    async def _renumber(self, shard: Shard, at: str) -> None:
        """Give a shard the next number whose path is free."""
        steps = 0
        while True:
            paths = await self._retrier.on_disk(self._spool.shards.next_paths, shard, steps, _PROBE)
            found = await self._files("stage", paths, at)
            free = next((n for n, path in enumerate(paths) if path not in found), None)
            steps += _PROBE if free is None else free
            if free is not None:
                break
        failpoint(Failpoint.PATH_TAKEN)
        await self._retrier.on_disk(self._spool.shards.renumber, shard, steps)
        # Two machines that share a series meet again and again: only the first time is news.
        level = logging.DEBUG if self._has_met_others else logging.WARNING
        _log.log(level, "%s is someone else's file and was not touched; our rows get the next free number.", shard.path)
        self._has_met_others = True
        self._wakeups.all()

    async def _files(self, part: str, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        ask = partial(self._destination.find_files, paths, at)
        return await self._retrier.until_success(part, ask, raises=(StaleParentError,))
