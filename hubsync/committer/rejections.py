"""Shards that the Hub rejects: retried a few times, then quarantined alone, so that everything else continues."""

from __future__ import annotations

from collections.abc import Iterable

from hubsync._runtime.retry import Backoff
from hubsync.committer.card_updater import CardUpdater
from hubsync.committer.context import Context
from hubsync.errors import DefectError, HubError
from hubsync.model.shard import Shard

_BLOB_RETRIES = 5  # a store may claim to have a blob that it does not have, but not again and again
_RETRIES = 3  # of any other shard: a proxy may have answered, and a quarantine is final
_MOST_IN_A_ROW = 3  # with nothing committed in between; then the rows are not at fault


class Rejections:
    """Counts rejections by shard, and quarantines what is rejected again and again."""

    def __init__(self, context: Context, cards: CardUpdater) -> None:
        self._spool = context.spool
        self._retrier = context.retrier
        self._cards = cards
        self._clock = context.clock
        self._backoffs: dict[int, Backoff] = {}  # by segment
        self._in_a_row = 0  # quarantined since something was committed

    async def may_retry(self, shard: Shard) -> bool:
        """Sleep for the backoff; return True if a rejected shard should be retried."""
        backoff = self._backoffs.setdefault(shard.segment, self._retrier.backoff())
        if backoff.failures >= (_BLOB_RETRIES if shard.mode == "lfs" else _RETRIES):
            return False
        await self._clock.sleep(backoff.after_failure())
        return True

    async def give_up(self, part: str, shard: Shard, error: DefectError) -> None:
        """Quarantine a shard; or, if nothing gets through at all, wait for an operator."""
        if self._in_a_row < _MOST_IN_A_ROW:
            self._in_a_row += 1
            await self.quarantine(shard, error)
        else:
            await self._retrier.wait_for_operator(part, error)

    async def quarantine(self, shard: Shard, error: HubError) -> None:
        """Quarantine a shard that the Hub rejects, or that can't be compressed."""
        await self._retrier.on_disk(self._spool.shards.quarantine, shard, str(error))
        self._backoffs.pop(shard.segment, None)
        self._cards.reconsider()  # the card was not at fault

    def committed(self, segments: Iterable[int]) -> None:
        """Forget the rejections of these segments: they were committed after all."""
        for segment in segments:
            self._backoffs.pop(segment, None)
            self._in_a_row = 0
