"""The committer: stages and commits the sealed segments of all writers of a spool, while it holds the spool's lease.

    compressor -> stager -> commit loop -> reconciler (settles)
                                 card updater, schema check, folder guard, rate limiter
                     rejections: what the Hub rejects
          merger -> commit loop: what was settled, in fewer files

Every commit names its parent. So a commit whose response is lost, one that lands late, or one of a process that was
paused for an hour can't land twice, or on top of something it did not see: the head has moved. After any unknown
outcome the committer reads what is at its paths before it sends anything. An error of one file quarantines that file,
transient errors are retried, and an error that needs an operator stops the sending and nothing else.
"""

from __future__ import annotations

import logging
import random
from contextlib import suppress
from functools import partial

import anyio
from anyio.abc import TaskGroup
from msgspec import UNSET

from hubsync._runtime.clock import Clock
from hubsync._runtime.exceptions import root_cause, unwrapped_hub_errors
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.file_lock import HEARTBEAT_S
from hubsync._runtime.formatting import count_text
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.branch_head import BranchHead
from hubsync.committer.card_updater import CardUpdater
from hubsync.committer.commit_loop import CommitLoop
from hubsync.committer.compressor import Compressor
from hubsync.committer.context import Context
from hubsync.committer.events import DeliveryEvents, NoEvents
from hubsync.committer.folder_guard import FolderGuard
from hubsync.committer.merger import Merger
from hubsync.committer.rate_limiter import Quota, RateLimiter
from hubsync.committer.reconciler import Reconciler
from hubsync.committer.rejections import Rejections
from hubsync.committer.retry import Retrier
from hubsync.committer.rollback import RollbackDetector
from hubsync.committer.schema_check import SchemaChecker
from hubsync.committer.seeding import Seeding
from hubsync.committer.stager import POLL_S, Stager
from hubsync.committer.wakeups import Wakeups
from hubsync.destinations.base import Destination
from hubsync.destinations.hub import card
from hubsync.destinations.hub.existing import place
from hubsync.errors import DatasetConflict, DefectError, LeaseLost, SpoolError, StaleParentError
from hubsync.model.commit import BranchTip, LastCommit
from hubsync.model.layout import Format, Layout
from hubsync.policies import CommitPolicy, CompactPolicy, RetryPolicy
from hubsync.spool.spool import Spool
from hubsync.telemetry.status import State, Status

_log = logging.getLogger("hubsync")


class Committer:
    """The one writer of a spool that stages and commits for all of them. It connects its parts and runs them."""

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
        events: DeliveryEvents | None = None,
        compact: CompactPolicy | None = None,
        quota: Quota | None = None,
    ) -> None:
        events = events or NoEvents()
        self._spool = spool
        self._destination = destination
        self._clock = clock
        self._status = status
        self._is_connected = False
        self._head = BranchHead()
        self._wakeups = Wakeups(clock)
        self._rate_limiter = RateLimiter(commit, clock, quota=quota)
        self._retrier = Retrier(spool, retry, clock, rng, status, self._rate_limiter, events)
        context = Context(
            spool, destination, clock, status, events, self._head, self._wakeups, self._rate_limiter, self._retrier
        )
        schemas = SchemaChecker(spool)
        self._cards = cards = CardUpdater(context, schemas)
        rejections = Rejections(context, cards)
        self._rollback = RollbackDetector(context)
        self._seeding = Seeding(context, cards)
        self._folders = FolderGuard(context)
        self._reconciler = Reconciler(context, self._rollback, cards, rejections)
        self._compressor = Compressor(context, rejections)
        self._stager = Stager(context, self._reconciler, rejections)
        self._merger = Merger(context, compact, cards, self._folders)
        self._commit_loop = CommitLoop(
            context, commit, self._reconciler, rejections, cards, schemas, self._folders, self._seeding, self._merger
        )

    def wake(self) -> None:
        """Look for sealed segments now. From the event loop only."""
        self._wakeups.all()

    def hurry(self) -> None:
        """A flush waits: look now, and retry even if an operator must act. From the event loop only."""
        self._wakeups.all()
        self._retrier.hurry()

    def merge_rest(self) -> bool:
        """Merge the small shards that are left once this is woken, if the policy asks for it; return whether it does.

        From any thread.
        """
        return self._merger.finish()

    @property
    def is_merging_rest(self) -> bool:
        """Whether that is still to be done or under way, in this process and without an error."""
        return self._merger.is_finishing and not self._spool.lease.is_held_by_others

    async def finish(self) -> None:
        """Begin no further commit, and return once the running one is settled."""
        await self._commit_loop.finish()

    # Starting.

    async def connect(self) -> None:
        """Check access, and read the dataset's watermarks into a new spool.

        Raises:
            BlockedError: the token or the repo needs an operator.
            TransientError: the Hub can't be reached now; `run` keeps trying.
        """
        await self.seed(await self.check_access())

    async def check_access(self) -> BranchTip:
        """Create the repo if it does not exist, and check that the token may write; return the newest commit.

        Raises:
            BlockedError: the token or the repo needs an operator.
            TransientError: the Hub can't be reached now.
        """
        await run_in_thread(card.preload)
        private = await self._retrier.on_disk(lambda: self._spool.private)
        head = await self._destination.ensure_repo(private=private)
        self._head.connected(head)
        if (last := await self._retrier.on_disk(self._last_commit)) is not None and last.card is not UNSET:
            self._cards.recall(last.card)
        elif head.is_empty:
            self._cards.recall(None)
        gone = (await self._retrier.on_disk(self._spool.depth)).committed_rows if head.is_new else 0
        if gone:
            _log.warning(
                "%s was deleted and is created again. %s committed earlier are not in it.",
                self._spool.target.repo, count_text(gone, "row"),
            )  # fmt: skip
        return head

    async def seed(self, head: BranchTip) -> None:
        """Read the dataset's watermarks into a new spool; into an old one, what it forgot.

        The committer does so for all processes of its spool.

        Args:
            head: what `check_access` returned.

        Raises:
            TransientError: the Hub can't be reached now.
        """
        while not self._is_connected:
            is_seeded = await self._retrier.on_disk(lambda: self._spool.is_seeded)
            if await self._retrier.on_disk(self._spool.lease.acquire):
                try:
                    async with unwrapped_hub_errors(), anyio.create_task_group() as tasks:
                        tasks.start_soon(self._refresh_lease)
                        await self._retrier.on_disk(self._load_rate_limiter)
                        if not is_seeded:
                            await self._seeding.seed(head)
                        elif await self._retrier.on_disk(self._last_commit) is None:
                            await self._rollback.check(self._head.sha or "")
                        tasks.cancel_scope.cancel()
                    self._is_connected = True
                except* LeaseLost:  # another process does it
                    self._status.report("read", State())
            elif is_seeded:  # its committer has checked for a rollback
                self._is_connected = True
            else:
                await self._clock.sleep(POLL_S)

    async def place(self, wanted: Layout, format: Format | None, *, is_custom: bool, has_schema: bool) -> Layout:
        """Return where an uploader's shards go in the dataset as it is now, and learn the columns of their config.

        Args:
            wanted: where they go in a new dataset.
            format: the format that the user asked for; None to follow the dataset.
            is_custom: whether the user chose the paths.
            has_schema: whether rows are checked against the columns.

        Raises:
            DatasetConflict: the rows would not load, or would change what loads.
            TransientError: the Hub can't be reached now.
        """
        repo, backoff = self._spool.target.repo, self._retrier.backoff()
        known = {card.Entry(*entry) for entry in await self._retrier.on_disk(self._spool.cards.of_committed)}
        while True:
            try:
                at = self._head.sha or (await self._destination.head()).sha
                content = await self._cards.read(at) if at else None
                layout, existing = await place(
                    self._destination, at, repo, content, wanted, format,
                    is_custom=is_custom, has_schema=has_schema, known=known,
                )  # fmt: skip
                shown = await run_in_thread(existing.card.features)
                break
            except StaleParentError as error:
                self._head.forget()
                await self._retrier.back_off("read", error, backoff)
            except (card.CardError, DefectError) as error:
                raise DatasetConflict(
                    f"the card of {repo} cannot be read, so load_dataset would not find the rows: {error}. Nothing was "
                    "changed. Fix the YAML in its README.md."
                ) from error
        if existing.is_repaired:
            self._cards.repair()
        if (today := existing.replaced_default(layout.config)) is not None:
            _log.warning(
                "load_dataset(%r) loads the config %r now, and 'default' once these rows are committed. To keep it, "
                "pass another config=…", repo, today,
            )  # fmt: skip
        if has_schema and layout.config in shown:
            others = existing.holds_others(layout.config)
            learn = partial(self._spool.learn, layout.config, shown[layout.config], is_declared=others)
            await self._retrier.on_disk(learn)
        return layout

    # Running.

    async def run(self) -> None:
        """Wait for the lease, then stage and commit until cancelled; wait again if another process takes over."""
        try:
            while True:
                while not await self._retrier.on_disk(self._spool.lease.acquire):
                    if not self._is_connected:
                        await self._retrier.until_success("read", self.connect)
                    await self._clock.sleep(POLL_S)
                try:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(self._refresh_lease)
                        await self._serve(tasks)
                except* LeaseLost as lost:
                    _log.warning("%s", root_cause(lost))
                    self._head.forget()
        finally:
            self._spool.lease.release()

    async def _refresh_lease(self) -> None:
        while True:
            self._spool.lease.refresh()
            await self._clock.sleep(HEARTBEAT_S)

    async def _serve(self, tasks: TaskGroup) -> None:
        if not self._is_connected:
            await self._retrier.until_success("read", self.connect)
        await self._retrier.on_disk(self._take_over)
        plan = await self._retrier.on_disk(self._spool.plans.open)
        if plan is not None:
            await self._reconciler.reconcile(plan)
        await self._commit_loop.restage_damaged()
        if self._rollback.is_rolled_back:
            await self._reconciler.compare_at_head("read", await self._retrier.on_disk(self._spool.shards.present))
            await self._rollback.accept()
        tasks.start_soon(self._compressor.run)
        tasks.start_soon(self._stager.run)
        tasks.start_soon(self._commit_loop.run)
        tasks.start_soon(self._merger.run)

    def _take_over(self) -> None:
        """Continue where the last committer died or stalled."""
        self._load_rate_limiter()
        newest = self._spool.segments.newest()
        if self._spool.lease.term != 1:  # otherwise this is the first committer
            self._head.taken_over(newest)
        last = self._last_commit()
        self._folders.recall({} if last is None else last.folders)
        self._spool.recovery.sweep()
        self._status.save()
        failpoint(Failpoint.TAKEN_OVER)

    def _last_commit(self) -> LastCommit | None:
        """Return what this spool knows of the head, if that is its own last commit."""
        last = self._spool.last_commit
        return last if last is not None and last.sha == self._head.sha else None

    def _load_rate_limiter(self) -> None:
        self._rate_limiter.load(self._spool.catalogue.get("governor"), self._save_rate_limiter)

    def _save_rate_limiter(self, state: str) -> None:
        with suppress(SpoolError), self._spool.catalogue.impatient(), self._spool.lease.transaction():
            self._spool.catalogue.set("governor", state)
