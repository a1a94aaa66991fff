"""Keeps the dataset's card true, so that the dataset loads at every commit: what the next one is to bring of it.

A card is the dataset's own, and may be a person's: one that can't be read, or that the Hub refuses, holds no row up.
The rows go on without, what the card owes them is remembered, and it is brought as soon as the card goes through.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from hubsync._runtime.clock import Clock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.retry import Retrier
from hubsync.committer.schema_check import SchemaChecker, SchemaMismatch
from hubsync.destinations.base import Destination
from hubsync.destinations.hub import card
from hubsync.errors import DefectError, StaleParentError
from hubsync.model.commit import SidecarFile
from hubsync.model.shard import Shard
from hubsync.schema.types import StructOf
from hubsync.spool.plans import Plans

_log = logging.getLogger("hubsync")

_TRIES = 3  # of one card: a refusal may be an odd answer
_REST_S = 600.0  # until a card that was refused is tried again


class CardUpdate(NamedTuple):
    """What a commit brings of the card: its new text (None where it stays), and what it says then."""

    note: SidecarFile | None = None
    entries: Sequence[card.Entry] = ()
    features: Mapping[str, StructOf] = MappingProxyType({})
    is_first: bool = False  # there was none


class CardUpdater:
    """One committer's."""

    def __init__(
        self, repo: str, plans: Plans, fitting: SchemaChecker, destination: Destination, patience: Retrier, clock: Clock
    ) -> None:
        self._repo = repo
        self._plans = plans
        self._fitting = fitting
        self._destination = destination
        self._persist = patience.persist
        self._on_disk = patience.on_disk
        self._clock = clock
        self._refusals = 0
        self._again_at = 0.0
        self._may_be_another = True

    def head_moved(self) -> None:
        """Somebody else committed, perhaps another card."""
        self._may_be_another = True

    def reconsider(self) -> None:
        """It was not the card that was refused, or it is another by now."""
        self._refusals = 0

    async def next(self, shards: Sequence[Shard], head: str) -> CardUpdate | SchemaMismatch:
        """The card as a commit of `shards` on `head` should leave it; or the shard that can't go into its config.

        Raises:
            StaleParentError: the commit `head` is gone.
        """
        entries = [card.Entry(*entry) for entry in await self._on_disk(self._plans.uncarded, shards)]
        kinds = await self._on_disk(self._fitting.kinds, shards)
        owed = await self._on_disk(self._plans.is_card_owed)
        is_known = not (entries or owed or self._may_be_another)
        if is_known and await self._on_disk(self._fitting.are_shown, kinds):
            return CardUpdate()
        if self._refusals >= _TRIES and self._clock.time() < self._again_at:
            await self._on_disk(self._plans.owe_card, True)
            return CardUpdate()
        asked = partial(self._destination.read_file, card.PATH, head)
        try:
            existing = await self._persist("read", asked, lets_out=(StaleParentError, DefectError))
            stands = await run_in_thread(card.Card, existing, self._repo)
            shown = await run_in_thread(stands.features)
            if is_all := owed or existing is None:
                entries = await self._all_entries(shards, head)
                shown = await self._on_disk(self._fitting.with_committed, shown)
            features, misfit = await self._on_disk(self._fitting.fit, kinds, shown)
            if misfit is not None:
                return misfit
            if clash := await run_in_thread(stands.clash, entries):
                _log.warning("%s", clash)
            features = {**shown, **features} if is_all else features
            merged = await run_in_thread(stands.add, entries, features)
            failpoint(Failpoint.CARD_MERGED)
        except (card.CardError, DefectError) as error:
            self._refusals, self._again_at = _TRIES, math.inf  # until somebody commits another one
            await self._on_disk(self._plans.owe_card, True)
            _log.warning(
                "the dataset's card can't be read and was left alone (%s); rows go on. Mend its YAML so that "
                "load_dataset finds them.",
                error,
            )
            return CardUpdate()
        self._may_be_another = False
        if merged is None and owed:
            await self._on_disk(self._plans.owe_card, False)
        note = None if merged is None else SidecarFile(card.PATH, merged)
        return CardUpdate(note, entries, features, is_first=existing is None)

    async def _all_entries(self, shards: Sequence[Shard], head: str) -> list[card.Entry]:
        """Those of `shards`, and of what was committed before as far as it stands in the dataset."""
        newest = await self._on_disk(self._plans.carded)
        asked = partial(self._destination.find_files, list(newest.values()), head)
        standing = await self._persist("read", asked, lets_out=(StaleParentError,))
        entries = [*await self._on_disk(self._plans.entries, shards), *(e for e in newest if newest[e] in standing)]
        return [card.Entry(*entry) for entry in dict.fromkeys(entries)]

    def refused(self, error: DefectError) -> bool:
        """A commit with the card was refused. Whether the card is to be tried again: else the next goes without it."""
        self._refusals += 1
        if self._refusals < _TRIES:
            return True
        self._again_at = self._clock.time() + _REST_S
        _log.warning(
            "%s The commit goes without the card (%s) now, and load_dataset may not find or read all of it until the "
            "card goes through: it is tried again in %.0f minutes.", error, card.PATH, _REST_S / 60,
        )  # fmt: skip
        return False

    async def landed(self, showing: CardUpdate) -> None:
        """The dataset shows this now."""
        await self._on_disk(partial(self._plans.mark_carded, showing.entries, no_others=showing.is_first))
        await self._on_disk(self._fitting.mark_shown, showing.features)
        if showing.note is not None:
            self._refusals = 0
            await self._on_disk(self._plans.owe_card, False)
