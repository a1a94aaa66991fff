"""The commit loop: wait for the rate limiter, plan, commit, and act on the outcome."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import anyio

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.retry import Backoff
from hubsync.committer.card_updater import CardUpdate, CardUpdater
from hubsync.committer.context import Context
from hubsync.committer.folder_guard import FolderGuard
from hubsync.committer.merger import Merger
from hubsync.committer.reconciler import Reconciler
from hubsync.committer.rejections import Rejections
from hubsync.committer.schema_check import SchemaChecker, SchemaMismatch
from hubsync.committer.seeding import Seeding
from hubsync.committer.stager import POLL_S
from hubsync.destinations.base import FolderFull, Landed, NotSent, Rejected, Unknown
from hubsync.errors import (
    AmbiguousError,
    BlockedError,
    DatasetConflict,
    DefectError,
    FolderFullError,
    StaleParentError,
    TransientError,
    UnreadableShard,
)
from hubsync.model.commit import LastCommit, Plan, commit_summary
from hubsync.model.shard import Shard
from hubsync.model.watermarks import FOLDER
from hubsync.policies import CommitPolicy
from hubsync.telemetry.status import QUOTA, State

_log = logging.getLogger("hubsync")


class CommitLoop:
    """Commits staged shards, one plan at a time."""

    def __init__(
        self,
        context: Context,
        policy: CommitPolicy,
        reconciler: Reconciler,
        rejections: Rejections,
        cards: CardUpdater,
        schemas: SchemaChecker,
        folders: FolderGuard,
        seeding: Seeding,
        merger: Merger,
    ) -> None:
        self._spool = context.spool
        self._destination = context.destination
        self._policy = policy
        self._rate_limiter = context.rate_limiter
        self._head = context.head
        self._retrier = context.retrier
        self._reconciler = reconciler
        self._rejections = rejections
        self._cards = cards
        self._schemas = schemas
        self._folders = folders
        self._seeding = seeding
        self._merger = merger
        self._clock = context.clock
        self._status = context.status
        self._events = context.events
        self._wakeups = context.wakeups
        self._turn = anyio.Lock(fast_acquire=True)  # held while a commit is made; and from `finish` on

    async def finish(self) -> None:
        """Begin no further commit, and return once the running one is settled."""
        await self._turn.acquire()

    async def run(self) -> None:
        """Commit what is staged, until cancelled."""
        backoff = self._retrier.backoff()
        while True:
            shards, is_urgent = await self._retrier.on_disk(self._ready)
            if await self._is_turn_of_merge(shards):
                if self._head.sha is None:
                    await self._reconciler.read_head()
                async with self._turn:
                    await self._merger.commit()
            elif not shards:
                if self._status.troubled("commit"):  # the shards it was about are gone
                    self._status.report("commit", State())
                await self._wakeups.commit.wait(POLL_S)
            elif wait := self._rate_limiter.wait_s(urgent=is_urgent):
                self._report_pace(wait)
                await self._wakeups.commit.wait(wait if is_urgent else min(wait, POLL_S))
            else:
                self._status.report("pace", State())
                async with self._turn:
                    await self._commit(shards, backoff)

    async def _is_turn_of_merge(self, shards: Sequence[Shard]) -> bool:
        """Return whether to send a merge now. A flush comes first, wherever its rows are."""
        if not self._merger.may_commit(is_idle=not shards):
            return False
        if self._rate_limiter.wait_s(urgent=self._merger.is_finishing):
            return False
        return not await self._retrier.on_disk(self._spool.segments.has_urgent)

    def _ready(self) -> tuple[list[Shard], bool]:
        """Return what the next commit may contain, and whether a flush waits for any of it."""
        shards = self._spool.shards.ready(self._policy.max_files, self._policy.max_inline_bytes)
        return shards, bool(shards) and self._spool.segments.has_urgent_staged()

    def _report_pace(self, wait: float) -> None:
        until = round(self._clock.time() + wait)
        if self._rate_limiter.is_refused:  # perhaps in an earlier process
            state = State("backing off", QUOTA, until)
        else:
            state = State("ok", f"commits keep to {self._policy.per_hour:,} an hour", until)
        self._status.report("pace", state)

    async def _commit(self, shards: Sequence[Shard], backoff: Backoff) -> None:
        """Plan and send one commit, and act on its outcome."""
        try:
            shards = await self._committable(shards)
            if not shards:
                return
            card = await self._cards.next(shards, self._head.sha or "")
        except StaleParentError as error:  # the head is gone: the history was squashed
            self._head.forget()
            await self._retrier.back_off("commit", error, backoff)
            return
        except DatasetConflict as error:
            self._head.forget()
            await self._retrier.wait_for_operator("commit", error)
            return
        if card is None:  # shards were moved: they are staged again
            self._wakeups.all()
            return
        if isinstance(card, SchemaMismatch):
            await self._resolve_mismatch(card)
            return
        await self._send(shards, card, backoff)

    async def _send(self, shards: Sequence[Shard], card: CardUpdate, backoff: Backoff) -> None:
        write = self._spool.plans.write
        plan = await self._retrier.on_disk(write, shards, card.file, self._head.sha, commit_summary(shards))
        match await self._destination.commit(plan):
            case Landed(sha):
                await self._landed(plan, sha, card, backoff)
            case Unknown(error):
                await self._unknown(plan, error, backoff)
            case NotSent(BlockedError() as error):
                await self._reconciler.settle(plan, {})
                self._head.forget()
                await self._retrier.wait_for_operator("commit", error)
            case NotSent(TransientError() as error):
                await self._reconciler.settle(plan, {})
                await self._not_sent(plan, error, backoff)
            case FolderFull(error):
                await self._reconciler.settle(plan, {})
                await self._folder_full(plan, error, backoff)
            case Rejected(error):
                await self._reconciler.settle(plan, {})
                self._head.forget()
                if card.file is None:
                    await self._isolate(plan, error, backoff)
                elif self._cards.rejected(error):  # the card may be at fault: no shard is quarantined for it
                    await self._clock.sleep(backoff.after_failure())

    async def _landed(self, plan: Plan, sha: str, card: CardUpdate, backoff: Backoff) -> None:
        failpoint(Failpoint.RESPONSE_READ)
        backoff.reset()
        self._rate_limiter.spent()
        failpoint(Failpoint.QUOTA_COUNTED)
        self._head.landed(sha)
        await self._folders.landed(plan.shards)
        await self._cards.committed(card)  # before the waiters are notified: one of them may end the process
        known = LastCommit.of(sha, self._cards.known, self._folders.known)
        await self._retrier.on_disk(self._spool.remember, known)
        await self._reconciler.settle(plan, {shard.segment: sha for shard in plan.shards})
        self._merger.committed(plan.shards)
        self._status.report("commit", State())

    async def _unknown(self, plan: Plan, error: AmbiguousError | StaleParentError, backoff: Backoff) -> None:
        if isinstance(error, AmbiguousError):
            failpoint(Failpoint.RESPONSE_LOST)
            self._rate_limiter.spent()
        await self._retrier.back_off("commit", error, backoff)
        if await self._reconciler.reconcile(plan):
            backoff.reset()
            self._folders.forget()

    async def _folder_full(self, plan: Plan, error: FolderFullError, backoff: Backoff) -> None:
        if f"/{FOLDER}/" in error.folders:
            has_room = await self._seeding.make_room()
        else:
            has_room = await self._folders.refused(plan.shards, error)
        if has_room:
            await self._clock.sleep(backoff.after_failure())
        else:
            await self._retrier.wait_for_operator("commit", error)

    async def _not_sent(self, plan: Plan, error: TransientError, backoff: Backoff) -> None:
        if error.status == 409:  # another commit is, or was, in progress
            self._head.forget()
        await self._retrier.back_off("commit", error, backoff)
        if isinstance(error, UnreadableShard):
            self._spool.shards.suspect(shard for shard in plan.shards if shard.mode == "regular")
            await self.restage_damaged()

    async def _committable(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return those of `shards` that may follow the head: no other file is at their paths."""
        if self._head.sha is None:
            await self._reconciler.read_head()
        is_unsure = self._head.is_unsure_about(min(shard.segment for shard in shards))
        if is_unsure or await self._retrier.on_disk(self._spool.shards.may_share_paths, shards):
            done = await self._reconciler.compare(shards, self._head.sha or "")
            shards = [shard for shard in shards if shard.segment not in done]
        shards = await self._folders.fit(shards, self._head.sha or "")
        return await self._retrier.on_disk(self._spool.shards.in_order, shards)

    async def _resolve_mismatch(self, mismatch: SchemaMismatch) -> None:
        """Move a shard that does not fit its config to another one, or quarantine it: the dataset stays loadable."""
        shard, why, layout, schema = mismatch
        self._events.schema_mismatch()
        if layout is not None:
            await self._retrier.on_disk(self._schemas.move, shard, layout, schema)
            _log.warning("%s does not fit what others committed (%s). Its rows go to the config %s.",
                         shard.path, why, layout.config)  # fmt: skip
            self._wakeups.all()
        else:
            await self._retrier.on_disk(self._spool.shards.quarantine, shard, why)

    async def _isolate(self, plan: Plan, error: DefectError, backoff: Backoff) -> None:
        """Find the shard for which a commit was rejected: commit halves, until a shard is alone."""
        if len(plan.shards) > 1:
            half = len(plan.shards) // 2
            for part in (plan.shards[:half], plan.shards[half:]):
                while wait := self._rate_limiter.wait_s(urgent=True):
                    self._report_pace(wait)
                    await self._clock.sleep(wait)
                self._status.report("pace", State())
                await self._commit(part, backoff)
            return
        shard = plan.shards[0]
        if not await self._rejections.may_retry(shard):
            await self._rejections.give_up("commit", shard, error)
        elif shard.mode == "lfs":
            _log.warning("%s: the Hub no longer has its blob, which is uploaded again (%s).", shard.path, error)
            await self._retrier.on_disk(self._spool.shards.unstage, [shard])
            self._cards.reconsider()  # the card was not at fault
        self._wakeups.all()

    async def restage_damaged(self) -> None:
        """Stage again what a power cut took of staged shards that travel inside the commit, unless it landed."""
        damaged = await self._retrier.on_disk(self._spool.shards.damaged)
        if damaged:
            done = await self._reconciler.compare_at_head("read", damaged)
            left = [shard for shard in damaged if shard.segment not in done]
            await self._retrier.on_disk(self._spool.shards.unstage, left)
            self._wakeups.stage.notify()
