"""Continue from what earlier spools, now lost, committed: their watermarks, read into a new spool and kept few.

Each spool has a watermark file of its own, and jobs that live for minutes leave one each. So whoever reads many of them
folds them, each time in one commit on the commit that they were read from: another machine's commit in between refuses
it, and a crash leaves either all or none of it done. Thousands are folded in several commits while the others are read,
so that a job that ends meanwhile leaves fewer to the next one.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from hubsync._runtime.threads import run_in_thread
from hubsync.committer.card_updater import CardUpdater
from hubsync.committer.context import Context
from hubsync.committer.fixed_columns import described
from hubsync.destinations.base import CommitOutcome, Landed, NotSent, Rejected, Unknown
from hubsync.destinations.hub import card
from hubsync.errors import DefectError, RateLimitedError, StaleParentError, TransientError
from hubsync.model.commit import BranchTip, Plan
from hubsync.model.watermarks import FIRST_FOLD, LARGEST_FOLD, RemoteWatermarks
from hubsync.schema.types import StructOf
from hubsync.telemetry.status import READING, State

_log = logging.getLogger("hubsync")
_STEP = 50  # files that are read between two reports of the progress
_CONFLICTS = 5  # commits of others that may refuse a fold


class Seeding:
    """Reads the dataset's watermarks, claims the dataset, and folds the watermarks."""

    def __init__(self, context: Context, cards: CardUpdater) -> None:
        self._spool = context.spool
        self._destination = context.destination
        self._retrier = context.retrier
        self._head = context.head
        self._rate_limiter = context.rate_limiter
        self._status = context.status
        self._clock = context.clock
        self._cards = cards
        self._folded = 0  # files, by this committer

    async def seed(self, head: BranchTip) -> None:
        """Read the dataset's watermarks and columns into the spool; nothing of earlier spools may land any more.

        A commit of a process that died with its disk may still be on its way, and would add rows after the watermark
        from which a job resumes. A small commit moves the head first, so that such a commit is refused.
        """
        found, is_claimed = RemoteWatermarks(), False
        if head.sha and not head.is_new and not head.is_empty:
            found, is_claimed = await self._read(head.sha)
        if found.has_offsets and not is_claimed:
            self._check(await self._destination.commit(await self._retrier.on_disk(self._spool.plans.claim, head.sha)))
        shown: Mapping[str, StructOf] = {}
        declared: Mapping[str, list[str]] = {}
        with suppress(card.CardError, DefectError):
            content = await self._cards.read(head.sha or "")
            current = await run_in_thread(card.Card, content, self._spool.target.repo)
            shown = await run_in_thread(current.features)
            shown, declared = described(current, shown, found)
        await self._retrier.on_disk(self._spool.seed, list(found.by_writer.values()), shown, declared)

    def _check(self, outcome: CommitOutcome) -> None:
        match outcome:
            case Landed(sha):
                self._rate_limiter.spent()
                self._head.landed(sha)
            case NotSent(RateLimitedError(commit_quota=True) as error):
                _log.warning("%s The job resumes by the offsets as they are; a commit that is still on its way "
                             "could repeat rows.", error)  # fmt: skip
            case _:
                raise outcome.error

    async def _read(self, at: str) -> tuple[RemoteWatermarks, bool]:
        """Return all watermarks in the commit `at`, folded if there are many, and whether a fold has moved the head.

        What could not be folded is left to the next new spool. Once a fold has moved the head, commits of earlier
        spools are refused: see `seed`.

        Raises:
            HubError: the first fold may have landed, or the head has moved: read them again.
        """
        few, may_fold, is_claimed, conflicts = FIRST_FOLD, True, False, 0
        while True:
            found = await self._read_some(at, few if may_fold else None)
            if not (may_fold and found.should_be_folded) or (is_claimed and self._rate_limiter.wait_s(urgent=True)):
                if not found.unread:
                    self._folded = 0
                    self._status.report("read", State())
                    return found, is_claimed
                may_fold = False
                continue
            match await self._fold(found, at):
                case Landed(sha):
                    at, is_claimed, few = sha, True, min(2 * few, LARGEST_FOLD)
                case Rejected(error) | NotSent(RateLimitedError(commit_quota=True) as error):
                    _log.info("The watermarks are not folded now: %s", error)
                    may_fold = False
                case Unknown() if is_claimed:  # others commit, too
                    conflicts += 1
                    may_fold = conflicts < _CONFLICTS
                    at = (await self._destination.head()).sha or at
                    self._head.forget()
                case _ if is_claimed:
                    may_fold = False
                case outcome:
                    raise outcome.error

    async def _read_some(self, at: str, most: int | None) -> RemoteWatermarks:
        """Read files of single watermarks in the commit `at` until `most` are known, or all; report the progress.

        Raises:
            HubError: an attempt has read nothing.
        """
        found = await self._destination.read_watermarks(at, most=0)
        while found.unread and (most is None or len(found.single) < most):
            self._report(found)
            try:
                found = await self._destination.read_watermarks(at, most=_STEP)
            except StaleParentError:
                raise
            except TransientError as error:
                known, found = found.files, await self._destination.read_watermarks(at, most=0)
                if found.files == known:
                    raise
                wait_s = self._retrier.backoff().after_failure(error.retry_after_s)
                self._report(found, error, wait_s)
                await self._clock.sleep(wait_s)
        return found

    def _report(self, found: RemoteWatermarks, error: TransientError | None = None, wait_s: float = 0.0) -> None:
        read = self._folded + len(found.single) + len(found.unreadable)
        text = f"{READING}: {read:,} of {read + found.unread:,} files"
        if error is not None:
            self._status.report("read", State("backing off", f"{text}; {error.reason}", self._clock.time() + wait_s))
        elif found.unread > _STEP or self._folded:
            self._status.report("read", State("ok", text))

    async def _fold(self, found: RemoteWatermarks, parent: str) -> CommitOutcome:
        """Commit fewer files that say the same as those in the commit `parent`."""
        files, deletions = await run_in_thread(found.fold)
        count = sum(path in found.single for path in deletions)
        plan = Plan(0, (), files, parent, f"Fold {count:,} watermarks", self._spool.lease.term or 0, deletions)
        outcome = await self._destination.commit(plan)
        if isinstance(outcome, Landed):
            self._folded += count
            self._rate_limiter.spent()
            self._head.landed(outcome.sha)
        return outcome

    async def make_room(self) -> bool:
        """Fold watermarks at the head, because their folder is full; return whether any were."""

        async def fold() -> bool:
            at = (await self._destination.head()).sha or ""
            found = await self._read_some(at, LARGEST_FOLD)
            if not found.should_be_folded:
                return False
            match await self._fold(found, at):
                case Landed():
                    return True
                case Rejected(error) | NotSent(RateLimitedError(commit_quota=True) as error):
                    _log.info("The watermarks are not folded now: %s", error)
                    return False
                case outcome:
                    raise outcome.error

        has_folded = await self._retrier.until_success("read", fold)
        self._folded = 0
        self._status.report("read", State())
        self._head.forget()
        return has_folded
