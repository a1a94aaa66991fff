"""Continue from what earlier spools, now lost, committed: their watermarks, read into a new spool and kept few.

Each spool has a watermark file of its own, and jobs that live for minutes leave one each. So whoever reads many of them
folds them, in one commit on the commit that they were read from: another machine's commit in between refuses it, and a
crash leaves either all or none of it done.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress

from hubsync._runtime.threads import run_in_thread
from hubsync.committer.card_updater import CardUpdater
from hubsync.committer.context import Context
from hubsync.committer.fixed_columns import described
from hubsync.destinations.base import CommitOutcome, Landed, NotSent, Rejected
from hubsync.destinations.hub import card
from hubsync.errors import DefectError, RateLimitedError
from hubsync.model.commit import BranchTip, Plan
from hubsync.model.watermarks import RemoteWatermarks
from hubsync.schema.types import StructOf

_log = logging.getLogger("hubsync")


class Seeding:
    """Reads the dataset's watermarks, claims the dataset, and folds the watermarks."""

    def __init__(self, context: Context, cards: CardUpdater) -> None:
        self._spool = context.spool
        self._destination = context.destination
        self._retrier = context.retrier
        self._head = context.head
        self._rate_limiter = context.rate_limiter
        self._cards = cards

    async def seed(self, head: BranchTip) -> None:
        """Read the dataset's watermarks and columns into the spool; nothing of earlier spools may land any more.

        A commit of a process that died with its disk may still be on its way, and would add rows after the watermark
        from which a job resumes. A small commit moves the head first, so that such a commit is refused.
        """
        found = RemoteWatermarks()
        if head.is_empty:
            self._cards.recall(None)
        elif head.sha and not head.is_new:
            found = await self._destination.read_watermarks(head.sha)
        has_moved = head.sha is not None and found.should_be_folded and await self._has_folded(found, head.sha)
        if found.has_offsets and not has_moved:
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

    async def _has_folded(self, found: RemoteWatermarks, parent: str) -> bool:
        """Fold watermarks that were read from the commit `parent`; return whether that moved the head.

        Raises:
            HubError: the commit may have landed, or the head has moved: read them again.
        """
        has_folded = False
        while found.should_be_folded and not (has_folded and self._rate_limiter.wait_s(urgent=True)):
            after, files, deletions = await run_in_thread(found.fold)
            count = len(found.single) - len(after.single)
            plan = Plan(0, (), files, parent, f"Fold {count:,} watermarks", self._spool.lease.term or 0, deletions)
            match await self._destination.commit(plan):
                case Landed(sha):
                    self._rate_limiter.spent()
                    self._head.landed(sha)
                    found, parent, has_folded = after, sha, True
                case Rejected(error) | NotSent(RateLimitedError(commit_quota=True) as error):
                    _log.info("The watermarks are not folded now: %s", error)
                    break
                case _ if has_folded:  # the rest can wait for the next new spool
                    self._head.forget()
                    break
                case outcome:
                    raise outcome.error
        return has_folded

    async def make_room(self) -> bool:
        """Fold all watermarks at the head, because their folder is full; return whether any were."""

        async def fold() -> bool:
            head = await self._destination.head()
            found = await self._destination.read_watermarks(head.sha or "")
            return await self._has_folded(found, head.sha or "")

        has_folded = await self._retrier.until_success("read", fold)
        self._head.forget()
        return has_folded
