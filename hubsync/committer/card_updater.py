"""Keep the dataset's card true, so that the dataset loads at every commit: what the next commit changes in it.

The card belongs to the dataset, and a person may edit it. A card that can't be read, or that the Hub rejects, holds up
no row: the rows are committed without it, and the card is updated as soon as it goes through.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import NamedTuple

from msgspec import UNSET, UnsetType

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.context import Context
from hubsync.committer.fixed_columns import described
from hubsync.committer.schema_check import SchemaChecker, SchemaMismatch
from hubsync.destinations.hub import card
from hubsync.destinations.hub.existing import Existing, examine
from hubsync.errors import DatasetConflict, DefectError, StaleParentError
from hubsync.model.commit import SidecarFile
from hubsync.model.layout import Layout, format_of
from hubsync.model.shard import Shard
from hubsync.schema.types import StructOf, json_columns

_log = logging.getLogger("hubsync")

_TRIES = 3  # of one card: a proxy may have answered
_REST_S = 600.0  # before a rejected card is tried again


class CardUpdate(NamedTuple):
    """What a commit changes in the card.

    Attributes:
        file: the card's new content; None if it stays as it is.
        entries: the configs, splits and patterns that it contains then.
        features: what it says of the columns then, by config.
        is_first: the dataset had no card.
    """

    file: SidecarFile | None = None
    entries: Sequence[card.Entry] = ()
    features: Mapping[str, StructOf] = MappingProxyType({})
    is_first: bool = False


class CardUpdater:
    """Merges what this spool commits into the card as it is at the head."""

    def __init__(self, context: Context, schemas: SchemaChecker) -> None:
        self._spool = context.spool
        self._schemas = schemas
        self._destination = context.destination
        self._retrier = context.retrier
        self._head = context.head
        self._clock = context.clock
        self._rejections = 0
        self._retry_at = 0.0
        self._content: tuple[int, bytes | None] | None = None  # the card, and the head's `moves` when it was read
        self._is_wrong = False
        self._read_at_move: int | None = None  # the head's `moves` when the card was last read

    def reconsider(self) -> None:
        """Try the card again: it was not at fault, or someone may have changed it."""
        self._rejections = 0

    def repair(self) -> None:
        """Examine the dataset before the next commit: its card has sizes that are wrong."""
        self._is_wrong = True

    async def next(self, shards: Sequence[Shard], at: str) -> CardUpdate | SchemaMismatch | None:
        """Return the card's update for a commit of `shards` on the commit `at`; or a shard that does not fit.

        None if shards were moved to other paths, because at theirs they would not load or change what loads.

        Raises:
            StaleParentError: the commit `at` is gone.
            DatasetConflict: there is no path at which they would load.
        """
        on_disk = self._retrier.on_disk
        missing = {card.Entry(*entry) for entry in await on_disk(self._spool.cards.missing, shards)}
        schemas = await on_disk(self._schemas.of, shards)
        is_due = await on_disk(lambda: self._spool.cards.is_update_due)
        is_counted = any(_is_counted(shard) for shard in shards)
        is_unchanged = (
            not (missing or is_due or is_counted or self._is_wrong) and self._read_at_move == self._head.moves
        )
        if is_unchanged and await on_disk(self._schemas.are_published, schemas):
            return CardUpdate()
        if self._rejections >= _TRIES and self._clock.time() < self._retry_at:
            await on_disk(self._spool.cards.set_update_due, True)
            return CardUpdate()
        moves = self._head.moves
        try:
            entries = [card.Entry(*entry) for entry in await on_disk(self._spool.cards.of, shards)]
            existing = await self._examine(
                entries, at, entries if self._is_wrong else missing, has_schema=bool(schemas)
            )
            if await self._move_misplaced(existing, shards):
                return None
            shown = await run_in_thread(existing.card.features)
            is_complete = is_due or not existing.has_card
            if is_complete:
                entries = await self._all_entries(shards, at)
                shown = await on_disk(self._schemas.with_committed, shown)
            features, mismatch = await on_disk(self._schemas.merge, schemas, shown)
            if at and mismatch is None and _turns_text_to_json(shown, features):
                shown = await self._with_text(existing.card, shown, at)
                features, mismatch = await on_disk(self._schemas.merge, schemas, shown)
            if mismatch is not None:
                return mismatch
            features = {**shown, **features} if is_complete else features
            added = await on_disk(self._added, shards)
            merged = await run_in_thread(existing.card.merge, entries, features, added)
            failpoint(Failpoint.CARD_MERGED)
        except (card.CardError, DefectError) as error:
            self._rejections, self._retry_at = _TRIES, math.inf  # until someone changes it
            await on_disk(self._spool.cards.set_update_due, True)
            _log.warning(
                "Cannot read the card of %s, so it was not changed (%s). Rows are committed without it. Fix the YAML "
                "in its README.md, so that load_dataset finds them.", self._spool.target.repo, error,
            )  # fmt: skip
            return CardUpdate()
        self._read_at_move = moves
        if merged is None and is_due:
            await on_disk(self._spool.cards.set_update_due, False)
        file = None if merged is None else SidecarFile(card.PATH, merged)
        return CardUpdate(file, entries, features, is_first=not existing.has_card)

    async def _with_text(self, current: card.Card, shown: Mapping[str, StructOf], at: str) -> dict[str, StructOf]:
        """Return what the card says, with what the watermarks say of strings that others have committed meanwhile."""
        ask = partial(self._destination.read_watermarks, at)
        found = await self._retrier.until_success("read", ask, raises=(StaleParentError,))
        schemas, _ = await run_in_thread(described, current, shown, found)
        return schemas

    async def _examine(
        self, entries: Sequence[card.Entry], at: str, missing: Collection[card.Entry], *, has_schema: bool
    ) -> Existing:
        known = set(entries).difference(missing)
        repo = self._spool.target.repo

        async def ask() -> Existing:
            content = await self.read(at) if at else None
            return await examine(
                self._destination, repo, at or None, content, entries, known=known, has_schema=has_schema
            )

        raises = (StaleParentError, DefectError, DatasetConflict)
        return await self._retrier.until_success("read", ask, raises=raises)

    async def _move_misplaced(self, existing: Existing, shards: Sequence[Shard]) -> bool:
        """Move shards that would not load where they are; return whether there were any.

        `open` chose good paths; but the Hub may have been unreachable then, or someone has changed the dataset since.
        """
        problems: dict[card.Entry, str | None] = {}
        is_any = False
        for shard in shards:
            entry = card.Entry(*await self._retrier.on_disk(self._spool.cards.entry, shard))
            if entry not in problems:
                problems[entry] = await run_in_thread(existing.problem_with, entry)
            if (problem := problems[entry]) is None:
                continue
            layout: Layout = await self._retrier.on_disk(self._spool.shards.layout_of, shard)
            # A shard that is compressed keeps its format; JSON Lines can still become any.
            format = None if shard.file.suffix == ".jsonl" else layout.format
            is_custom = layout.template not in [other.template for other in layout.alternatives(layout.format)]
            place = partial(existing.place, layout, format, is_custom=is_custom)
            better = await run_in_thread(place)
            if better == layout:  # only a part of its folder does not fit
                raise existing.conflict(layout, problem)
            _log.warning("%s cannot stay there (%s); its rows go to %s.", shard.path, problem, better.glob)
            await self._retrier.on_disk(self._spool.shards.move, shard, better, None, lambda: None)
            is_any = True
        return is_any

    def _added(self, shards: Sequence[Shard]) -> list[card.Added]:
        found = []
        for shard in shards:
            config, split, _ = self._spool.cards.entry(shard)
            found.append(card.Added(config, split, shard.rows, shard.size, _is_counted(shard)))
        return found

    @property
    def known(self) -> bytes | UnsetType | None:
        """The card at the head; None if it has none, UNSET if it was not read."""
        is_read = self._content is not None and self._content[0] == self._head.moves
        return self._content[1] if self._content is not None and is_read else UNSET

    def recall(self, content: bytes | None) -> None:
        """The commit at the head has this card; None if it has none."""
        self._content = self._head.moves, content

    async def read(self, at: str) -> bytes | None:
        """Return the card at the head, the commit `at`, reading it only if someone else moved the head since.

        Raises:
            HubError: it can't be read.
        """
        if (known := self.known) is not UNSET:
            return known
        moves = self._head.moves
        content = await self._destination.read_file(card.PATH, at)
        self._content = moves, content
        return content

    async def _all_entries(self, shards: Sequence[Shard], at: str) -> list[card.Entry]:
        """Return the entries of `shards`, and of everything committed before that is still in the dataset."""
        committed = [card.Entry(*entry) for entry in await self._retrier.on_disk(self._spool.cards.of_committed)]
        ask = partial(self._destination.list_files, at)
        paths = [file.path for file in await self._retrier.until_success("read", ask, raises=(StaleParentError,))]
        ours = [card.Entry(*entry) for entry in await self._retrier.on_disk(self._spool.cards.of, shards)]
        standing = (one for one in committed if any(map(card.glob_pattern(one.glob).fullmatch, paths)))
        return list(dict.fromkeys([*ours, *standing]))

    def rejected(self, error: DefectError) -> bool:
        """A commit with the card was rejected. Return whether to try the card again; else the next goes without it."""
        self._rejections += 1
        if self._rejections < _TRIES:
            return True
        self._retry_at = self._clock.time() + _REST_S
        _log.warning(
            "%s The next commits leave out the card (%s); load_dataset may not find all rows until it goes through. "
            "It is tried again in %.0f minutes.", error, card.PATH, _REST_S / 60,
        )  # fmt: skip
        return False

    async def committed(self, update: CardUpdate) -> None:
        """Record what the card contains now."""
        await self._retrier.on_disk(partial(self._spool.cards.add, update.entries, replace=update.is_first))
        await self._retrier.on_disk(self._schemas.mark_published, update.features)
        if update.file is not None:
            self._content = self._head.moves, update.file.content
            self._rejections, self._is_wrong = 0, False
            await self._retrier.on_disk(self._spool.cards.set_update_due, False)


def _turns_text_to_json(shown: Mapping[str, StructOf], features: Mapping[str, StructOf]) -> bool:
    """Return whether a column whose shards hold strings becomes JSON."""
    return any(
        shown[config].fields.get(name) == "string"
        for config, columns in features.items()
        if config in shown
        for name in json_columns(columns)
    )


def _is_counted(shard: Shard) -> bool:
    return format_of(shard.path) == "parquet"
