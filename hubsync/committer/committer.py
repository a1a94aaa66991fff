"""Brings sealed segments to the destination, for all writers of a spool: stage, plan, commit, reconcile.

Every commit names its parent. So a commit whose answer was lost, one that lands late, one of a process that was
paused for an hour: none can land twice or over something that it did not see, because the head has moved. After any
doubt the worker reads what stands at its paths before it sends anything else. Errors of one file set that file aside;
errors that pass are waited out; errors that need a person stop the sending, and nothing else.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import anyio
from anyio.abc import TaskGroup

from hubsync._runtime.clock import Clock
from hubsync._runtime.exceptions import root_cause, unwrapped_hub_errors
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.file_lock import HEARTBEAT_S
from hubsync._runtime.formatting import count_text
from hubsync._runtime.notifiers import Notifier
from hubsync._runtime.retry import Backoff
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.card_updater import CardUpdater
from hubsync.committer.compressor import Compressor, Incompressible
from hubsync.committer.rate_limiter import RateLimiter
from hubsync.committer.retry import Retrier
from hubsync.committer.rollback import RollbackDetector
from hubsync.committer.schema_check import SchemaChecker, SchemaMismatch
from hubsync.destinations.base import Destination
from hubsync.destinations.hub import card
from hubsync.errors import (
    AmbiguousError,
    BlockedError,
    DefectError,
    HubError,
    HubsyncError,
    LeaseLost,
    RateLimitedError,
    ShardsRefused,
    SpoolError,
    StaleParentError,
    TransientError,
    UnreadableShard,
)
from hubsync.model.commit import Plan, commit_summary
from hubsync.model.shard import RemoteFile, Shard, Staged
from hubsync.policies import MIB, CommitPolicy, RetryPolicy
from hubsync.schema.types import StructOf
from hubsync.spool.plans import Plans
from hubsync.spool.spool import Spool
from hubsync.telemetry.status import QUOTA, State, Status

_log = logging.getLogger("hubsync")
T = TypeVar("T")

_STAGE_SHARDS = 100  # shards staged in one go: one preupload call, one Xet session
_STAGE_LOTS = 3  # at once
_STAGE_BYTES = 256 * MIB
_SLOW_UPLOAD_S = 30.0
_PROBE = 100  # numbers tried at once when a path is taken
_RESTAGES = 5  # of one blob: a store may say that it has it and not have it, but not again and again
_RESENDS = 3  # of what is refused otherwise: it may be a proxy's word, and set aside is for good
_MOST_BURIED = 3  # in a row: where nothing lands any more, it is not the rows' fault
_POLL_S = 0.5  # how soon another process' sealed segments, or its death, are noticed

# A segment is settled: (segment, sha of its commit, error where it was set aside).
OnSettled = Callable[[int, str | None, HubsyncError | None], None]


class Committer:
    """The one that stages and commits for a spool, as long as it holds the spool's lock."""

    def __init__(
        self,
        spool: Spool,
        destination: Destination,
        *,
        commit: CommitPolicy,
        retry: RetryPolicy,
        clock: Clock,
        rng: random.Random,
        status: Status,
        on_settled: OnSettled,
        on_blocked: Callable[[HubError], None] = lambda error: None,
        on_misfit: Callable[[], None] = lambda: None,
    ) -> None:
        self._spool = spool
        self._plans = Plans(spool)
        self._packer = Compressor(spool, self._plans.is_whole, self._plans.shard, spool.columns)
        self._fitting = SchemaChecker(spool)
        self._destination = destination
        self._policy = commit
        self._clock = clock
        self._status = status
        self._on_settled = on_settled
        self._on_misfit = on_misfit
        self._work_bell = Notifier(clock)  # something was sealed or staged
        self._pack_bell = Notifier(clock)
        self._commit_bell = Notifier(clock)
        self._connected = False
        self._head: str | None = None
        self._unsure_up_to = 0  # segments up to this one were there when somebody else committed
        self._staging: list[frozenset[int]] = []  # the lots that are on their way
        self._refusals: dict[int, Backoff] = {}  # by segment
        self._buried = 0  # since something landed
        self._met_another = False
        self._governor = RateLimiter(commit, clock)
        self._patience = Retrier(
            spool,
            retry,
            clock,
            rng,
            status,
            is_waited_for=self._plans.is_waited_for,
            quota_refused=lambda after_s: self._governor.refused(after_s),
            on_blocked=on_blocked,
        )
        self._persist = self._patience.persist
        self._on_disk = self._patience.on_disk
        self._hindsight = RollbackDetector(spool, self._plans, destination, self._patience)
        self._card = CardUpdater(spool.target.repo, self._plans, self._fitting, destination, self._patience, clock)
        self._pace = f"commits keep to {commit.per_hour:,} an hour"

    def wake(self) -> None:
        """Something was sealed: look now. From the event loop only, as `nudge`."""
        for bell in (self._work_bell, self._pack_bell, self._commit_bell):
            bell.notify()

    def nudge(self) -> None:
        """Somebody waits: look now, and try again even where a person is needed."""
        self.wake()
        self._patience.nudge()

    async def connect(self) -> None:
        """Checks access once, and reads the dataset's watermarks into a spool that is new.

        The committer does that for all of its spool's processes.

        Raises:
            BlockedError: the token or the repo is not good.
            TransientError: the Hub can't be asked now; `run` goes on trying.
        """
        await run_in_thread(card.load)
        private = await self._on_disk(lambda: self._spool.private)
        head = await self._destination.ensure_repo(private=private)
        self._head = head.sha
        gone = (await self._on_disk(self._spool.depth)).committed_rows if head.is_new else 0
        if gone:
            _log.warning(
                "%s: %s committed earlier are not in it: it was deleted, and is made anew.",
                self._spool.target.repo, count_text(gone, "row"),
            )  # fmt: skip
        while not self._connected:
            seeded = await self._on_disk(lambda: self._spool.seeded)
            if await self._on_disk(self._spool.become_committer):
                try:
                    async with unwrapped_hub_errors(), anyio.create_task_group() as tasks:
                        tasks.start_soon(self._beat_for_ever)
                        await (self._hindsight.look(self._head or "") if seeded else self._seed())
                        tasks.cancel_scope.cancel()
                    self._connected = True
                except* LeaseLost:
                    pass  # another one does it
            elif seeded:  # and its committer has looked
                self._connected = True
            else:
                await self._clock.sleep(_POLL_S)

    async def _seed(self) -> None:
        """Goes on from what earlier spools, now lost, have brought: nothing of theirs may land any more.

        A commit of a process that died with its disk may still be on its way, and would bring rows behind the watermark
        that a job goes on from. A small commit moves the head first, so that what names the old one is refused.
        """
        head = await self._destination.head()
        marks = await self._destination.read_watermarks(head.sha) if head.sha else []
        if any(mark.offsets for mark in marks):
            try:
                self._head = await self._destination.commit(await self._on_disk(self._plans.claim, head.sha))
            except RateLimitedError as error:
                if not error.commit_quota:
                    raise
                _log.warning("%s Offsets are taken as they stand; a commit still on its way could repeat rows.", error)
        shown: Mapping[str, StructOf] = {}
        with suppress(card.CardError, DefectError):
            content = await self._destination.read_file(card.PATH, head.sha or "")
            stands = await run_in_thread(card.Card, content, self._spool.target.repo)
            shown = await run_in_thread(stands.features)
        await self._on_disk(self._spool.seed, marks, shown)

    async def run(self) -> None:
        """Waits for the spool's lock, then serves until cancelled; and waits again where another has taken over."""
        try:
            while True:
                while not await self._on_disk(self._spool.become_committer):
                    if not self._connected:
                        await self._persist("read", self.connect)
                    await self._clock.sleep(_POLL_S)
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._beat_for_ever)
                        await self._serve(tasks)
                except* LeaseLost as lost:
                    _log.warning("%s", root_cause(lost))
                    self._head = None
        finally:
            self._spool.resign()

    async def _beat_for_ever(self) -> None:
        while True:
            self._spool.beat()
            await self._clock.sleep(HEARTBEAT_S)

    async def _serve(self, tasks: TaskGroup) -> None:
        if not self._connected:
            await self._persist("read", self.connect)
        await self._on_disk(self._take_over)
        plan = await self._on_disk(self._plans.unsettled)
        if plan is not None:
            await self._reconcile(plan)
        await self._restage_damaged()
        if self._hindsight:
            await self._at_head("read", partial(self._compare, await self._on_disk(self._plans.waiting)))
            await self._hindsight.make_good()
        tasks.start_soon(self._pack_for_ever)
        tasks.start_soon(self._stage_for_ever)
        tasks.start_soon(self._commit_for_ever)

    def _take_over(self) -> None:
        """Goes on where the last committer, dead now or stopped, was."""
        catalogue = self._spool.catalogue
        stored = catalogue.get("governor")
        self._governor = RateLimiter(self._policy, self._clock, stored, self._remember)
        self._unsure_up_to = self._plans.take_over()
        self._spool.sweep()
        self._status.save()
        failpoint(Failpoint.TAKEN_OVER)

    async def _restage_damaged(self) -> None:
        """A power cut may have taken bytes of staged shards that travel in the commit. What has landed is whole."""
        damaged = await self._on_disk(self._plans.damaged)
        if damaged:
            gone = await self._at_head("read", partial(self._compare, damaged))
            await self._on_disk(self._plans.unstage, [s for s in damaged if s.segment not in gone])
            self._work_bell.notify()

    async def _head_is_now(self, at: str) -> None:
        """The head is `at` now. Who moved it may have taken paths of what is staged by now, and changed the card."""
        self._head = at
        self._unsure_up_to = await self._on_disk(self._plans.newest)
        self._card.head_moved()

    async def _at_head(self, part: str, look: Callable[[str], Awaitable[T]]) -> T:
        """What `look` finds at the branch's head, read anew; and once more where that is gone meanwhile."""
        backoff = self._patience.backoff()
        while True:
            head = await self._persist(part, self._destination.head)
            try:
                return await look(head.sha or "")
            except StaleParentError as error:
                await self._patience.wait_out(part, error, backoff)

    def _remember(self, governor: str) -> None:
        with suppress(SpoolError), self._spool.catalogue.impatient(), self._spool.leased():
            self._spool.catalogue.set("governor", governor)

    # Staging.

    async def _pack_for_ever(self) -> None:
        """One segment after the other: it costs a core, and the job needs the others."""
        while True:
            packed = await self._persist("pack", partial(self._on_disk, self._packer.pack_next))
            if isinstance(packed, Incompressible):
                await self._bury(packed.shard, packed.error)
            if packed:
                self._work_bell.notify()
            else:
                await self._pack_bell.wait(_POLL_S)

    async def _stage_for_ever(self) -> None:
        """A few lots of shards at once: a large one's upload holds up nothing that is sealed behind it."""
        async with anyio.create_task_group() as tasks:
            while True:
                shards = await self._on_disk(self._look_for_sealed) if len(self._staging) < _STAGE_LOTS else []
                if shards:
                    lot = frozenset(shard.segment for shard in shards)
                    self._staging.append(lot)
                    tasks.start_soon(self._stage_lot, lot, shards)
                else:
                    await self._work_bell.wait(_POLL_S)

    async def _stage_lot(self, lot: frozenset[int], shards: Sequence[Shard]) -> None:
        try:
            await self._stage(shards)
        finally:
            self._staging.remove(lot)
        self._work_bell.notify()

    def _look_for_sealed(self) -> list[Shard]:
        self._spool.adopt()
        self._spool.catalogue.checkpoint(shrink=self._spool.disk.is_exhausted())
        self._spool.disk.reserve()
        return self._plans.sealed(_STAGE_SHARDS, _STAGE_BYTES, frozenset().union(*self._staging))

    async def _stage(self, shards: Sequence[Shard]) -> None:
        try:
            staged = await self._persist("stage", partial(self._upload, shards), lets_out=(DefectError,))
        except DefectError as error:
            if len(shards) > 1:
                async with anyio.create_task_group() as tasks:  # one that never arrives holds no other up
                    for shard in shards:
                        tasks.start_soon(self._stage, [shard])
            elif not await self._wait_for_another_word(shards[0]):
                await self._give_up("stage", shards[0], error)
            return
        taken = await self._settle_standing(shards, staged)
        await self._on_disk(
            self._plans.mark_staged,
            {s.segment: found.mode for s, found in zip(shards, staged, strict=True) if s.segment not in taken},
        )
        self.wake()

    async def _upload(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        """Stages; where that takes long, says so: hf_xet tries again by itself for minutes, and tells nobody."""
        size = sum(shard.size for shard in shards)
        slow = State("ok", f"uploading {len(shards)} shards ({size / 1e6:,.1f} MB) for over {_SLOW_UPLOAD_S:g} s")

        async def tell() -> None:
            await self._clock.sleep(_SLOW_UPLOAD_S)
            self._status.report("upload", slow)

        staged: Sequence[Staged] = ()
        failed: HubError | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(tell)
            try:
                staged = await self._destination.stage(shards)
            except HubError as error:
                failed = error
            tasks.cancel_scope.cancel()
        self._status.report("upload", State())
        if failed is not None:
            raise failed
        return staged

    async def _settle_standing(self, shards: Sequence[Shard], staged: Sequence[Staged]) -> set[int]:
        """Shards at whose path something stands: ours is committed already, and another's is never overwritten."""
        doubtful = [s for s, found in zip(shards, staged, strict=True) if found.remote_oid]
        if not doubtful:
            return set()
        return set(await self._at_head("stage", partial(self._compare, doubtful)))

    async def _compare(self, shards: Sequence[Shard], at: str) -> list[int]:
        """Settles those of `shards` that stand at their paths in `at`, renumbers those whose path is another's.

        Raises:
            StaleParentError: the commit `at` is gone.
        """
        standing = await self._standing("stage", [shard.path for shard in shards], at)
        ours: dict[int, str] = {}
        moved: list[int] = []
        for shard in shards:
            found = standing.get(shard.path)
            if found is None:
                continue
            if shard.matches(found) or await self._hindsight.has_grown(shard, at):
                ours[shard.segment] = found.commit or at
            else:
                await self._renumber(shard, at)
                moved.append(shard.segment)
        if ours:
            await self._settle(Plan(0, shards), ours)
        return [*ours, *moved]

    async def _renumber(self, shard: Shard, at: str) -> None:
        free = seq = await self._on_disk(self._plans.seq, shard)
        while True:
            paths = await self._on_disk(self._plans.numbered, shard, free - seq, _PROBE)
            standing = await self._standing("stage", paths, at)
            here = next((n for n, path in enumerate(paths) if path not in standing), None)
            free += _PROBE if here is None else here
            if here is not None:
                break
        failpoint(Failpoint.PATH_TAKEN)
        await self._on_disk(self._plans.renumber, shard, free)
        # Two machines on one series meet again and again: once is news.
        level = logging.DEBUG if self._met_another else logging.WARNING
        _log.log(level, "%s is another's and was left alone; our rows go under a later number.", shard.path)
        self._met_another = True
        self.wake()

    async def _standing(self, part: str, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        asked = partial(self._destination.find_files, paths, at)
        return await self._persist(part, asked, lets_out=(StaleParentError,))

    # Committing.

    async def _commit_for_ever(self) -> None:
        backoff = self._patience.backoff()
        while True:
            shards, urgent = await self._on_disk(self._ready)
            if not shards:
                if self._status.troubled("commit"):  # what it was about is no longer there
                    self._status.report("commit", State())
                await self._commit_bell.wait(_POLL_S)
            elif wait := self._governor.wait_s(urgent=urgent):
                self._tell_pace(wait)
                await self._commit_bell.wait(wait if urgent else min(wait, _POLL_S))
            else:
                self._status.report("pace", State())
                await self._commit(shards, backoff)

    def _tell_pace(self, wait: float) -> None:
        until = round(self._clock.time() + wait)
        is_refused = self._governor.is_refused  # perhaps in an earlier process
        self._status.report(
            "pace", State("backing off", QUOTA, until) if is_refused else State("ok", self._pace, until)
        )

    def _ready(self) -> tuple[list[Shard], bool]:
        """What the next commit may take, and whether somebody waits for any of it."""
        shards = self._plans.ready(self._policy.max_files, self._policy.max_inline_bytes)
        return shards, bool(shards) and self._plans.is_urgent()

    async def _commit(self, shards: Sequence[Shard], backoff: Backoff) -> None:
        """Plans and sends one commit, and draws the consequences of its answer."""
        try:
            shards = await self._that_may_go(shards)
            if not shards:
                return
            showing = await self._card.next(shards, self._head or "")
        except StaleParentError as error:  # the head that is known here is gone: history was squashed
            self._head = None
            await self._patience.wait_out("commit", error, backoff)
            return
        if isinstance(showing, SchemaMismatch):
            await self._set_aside(showing)
            return
        plan = await self._on_disk(self._plans.write, shards, showing.note, self._head, commit_summary(shards))
        try:
            sha = await self._destination.commit(plan)
        except (AmbiguousError, StaleParentError) as error:
            if isinstance(error, AmbiguousError):
                failpoint(Failpoint.RESPONSE_LOST)
                self._governor.spent()
            await self._patience.wait_out("commit", error, backoff)
            if await self._reconcile(plan):
                backoff.reset()
        except TransientError as error:
            await self._on_disk(self._plans.settle, plan, {})
            if error.status == 409:  # another commit is on its way, or was
                self._head = None
            await self._patience.wait_out("commit", error, backoff)
            if isinstance(error, UnreadableShard):
                await self._restage_damaged()
        except BlockedError as error:
            await self._on_disk(self._plans.settle, plan, {})
            self._head = None
            await self._patience.wait_for_a_person("commit", error)
        except DefectError as error:
            await self._on_disk(self._plans.settle, plan, {})
            self._head = None
            if showing.note is None:
                await self._isolate(plan, error, backoff)
            elif self._card.refused(error):  # perhaps: no shard is set aside for that
                await self._clock.sleep(backoff.after_failure())
        else:
            failpoint(Failpoint.RESPONSE_READ)
            backoff.reset()
            self._governor.spent()
            failpoint(Failpoint.QUOTA_COUNTED)
            self._head = sha
            await self._settle(plan, {shard.segment: sha for shard in plan.shards})
            self._status.report("commit", State())
            await self._card.landed(showing)

    async def _that_may_go(self, shards: Sequence[Shard]) -> list[Shard]:
        """Those of `shards` that may go on top of the head: at their paths nothing stands there."""
        if self._head is None:
            await self._head_is_now((await self._persist("read", self._destination.head)).sha or "")
        is_unsure = min(shard.segment for shard in shards) <= self._unsure_up_to
        if is_unsure or await self._on_disk(self._plans.may_meet_others, shards):
            gone = await self._compare(shards, self._head or "")
            shards = [shard for shard in shards if shard.segment not in gone]
        return await self._on_disk(self._plans.in_order, shards)

    async def _set_aside(self, misfit: SchemaMismatch) -> None:
        """A shard that would keep the dataset from being loaded: others brought something else meanwhile."""
        shard, why, layout, kind = misfit
        self._on_misfit()
        if layout is not None:
            await self._on_disk(self._fitting.move, shard, layout, kind)
            _log.warning("%s does not go with what others brought (%s): it goes to %s.", shard.path, why, layout.config)
            self.wake()
        else:
            grave = await self._on_disk(self._plans.bury, shard, why)
            self._refused(
                shard, f"{shard.path} ({shard.rows} rows) does not go with the dataset: {why}. It is in {grave}."
            )

    async def _reconcile(self, plan: Plan) -> bool:
        """The plan may have landed: what stands at its paths decides, shard by shard. Whether anything did."""

        async def look(at: str) -> Mapping[str, RemoteFile]:
            await self._head_is_now(at)
            return await self._standing("read", [s.path for s in plan.shards], at)

        standing = await self._at_head("read", look)
        self._card.reconsider()  # it may be another by now
        landed = {
            s.segment: standing[s.path].commit or self._head or ""
            for s in plan.shards
            if s.path in standing and s.matches(standing[s.path])
        }
        failpoint(Failpoint.RECONCILED)
        await self._settle(plan, landed)
        if landed:
            self._status.report("commit", State())
        return bool(landed)

    async def _isolate(self, plan: Plan, error: DefectError, backoff: Backoff) -> None:
        """The commit was refused for its content. Alone, a shard is the culprit, or its blob is gone; else halve."""
        if len(plan.shards) > 1:
            half = len(plan.shards) // 2
            for part in (plan.shards[:half], plan.shards[half:]):
                while wait := self._governor.wait_s(urgent=True):
                    self._tell_pace(wait)
                    await self._clock.sleep(wait)
                self._status.report("pace", State())
                await self._commit(part, backoff)
            return
        shard = plan.shards[0]
        if not await self._wait_for_another_word(shard):
            await self._give_up("commit", shard, error)
        elif shard.mode == "lfs":
            _log.warning("%s: the Hub no longer knows the blob (%s); it goes up again.", shard.path, error)
            await self._on_disk(self._plans.unstage, [shard])
            self._card.reconsider()  # the blob it was
        self.wake()

    async def _wait_for_another_word(self, shard: Shard) -> bool:
        """Whether a shard that was refused is to be tried again; after a while."""
        refusals = self._refusals.setdefault(shard.segment, self._patience.backoff())
        if refusals.failures >= (_RESTAGES if shard.mode == "lfs" else _RESENDS):
            return False
        await self._clock.sleep(refusals.after_failure())
        return True

    async def _give_up(self, part: str, shard: Shard, error: DefectError) -> None:
        """A shard is refused for good; or all are, and a person must look why."""
        if self._buried < _MOST_BURIED:
            self._buried += 1
            await self._bury(shard, error)
        else:
            await self._patience.wait_for_a_person(part, error)

    async def _bury(self, shard: Shard, error: HubError) -> None:
        grave = await self._on_disk(self._plans.bury, shard, str(error))
        self._refusals.pop(shard.segment, None)
        self._card.reconsider()  # this shard it was
        what = "the Hub refuses" if error.status is not None else "nobody can pack"
        self._refused(shard, f"{what} {shard.path} ({shard.rows} rows) for good: {error}. It is kept in {grave}.")

    def _refused(self, shard: Shard, message: str) -> None:
        message += f" To look at it, or to put it again: hubsync dead-letter list {self._spool.directory}"
        _log.error("%s", message)
        self._status.counts.refusals += 1
        self._on_settled(shard.segment, None, ShardsRefused(message))

    async def _settle(self, plan: Plan, landed: Mapping[int, str]) -> None:
        await self._on_disk(self._plans.settle, plan, landed)
        counts = self._status.counts
        counts.commits += len(set(landed.values()))
        self._buried = 0 if landed else self._buried
        for shard in plan.shards:
            if shard.segment in landed:
                self._refusals.pop(shard.segment, None)
                counts.committed_rows += shard.rows
                counts.committed_bytes += shard.size
                counts.committed_shards += 1
                self._on_settled(shard.segment, landed[shard.segment], None)
