"""Keep the dataset's folders below the Hub's limit, whoever adds files to them.

Shards get their folder when they are sealed, by what the spool knows. Other machines, other tools and datasets with an
older layout may have filled it meanwhile. So the committer counts the folders of a commit in the dataset, once at its
start and again after some commits of others; in between it adds up its own. What does not fit moves to another folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from hubsync._runtime.formatting import count_text
from hubsync.committer.context import Context
from hubsync.errors import FolderFullError, StaleParentError
from hubsync.model.layout import MAX_FOLDER_FILES, PART_FILES, Layout
from hubsync.model.shard import Shard

_log = logging.getLogger("hubsync")

# Commits of others after which a folder is counted again. Of at most 100 shards each, they can't add up to the Hub's
# limit; if they do, the Hub refuses the commit, and its shards move then.
_RECOUNT = 8


class FolderGuard:
    """Counts folders, and moves shards out of full ones."""

    def __init__(self, context: Context) -> None:
        self._spool = context.spool
        self._destination = context.destination
        self._retrier = context.retrier
        self._head = context.head
        self._wakeups = context.wakeups
        self._most = MAX_FOLDER_FILES
        self._counts: dict[str, tuple[int, int]] = {}  # files by folder, and the head's `moves` when they were counted

    async def fit(self, shards: Sequence[Shard], at: str) -> list[Shard]:
        """Return those of `shards` that their folders have room for in the commit after `at`; move the others.

        Raises:
            StaleParentError: the commit `at` is gone.
        """
        fitting: set[int] = set()
        for folder, (layout, members) in (await self._by_folder(shards)).items():
            room = max(0, self._most - await self._count(folder, layout, members[0], at))
            fitting.update(shard.segment for shard in members[:room])
            if members[room:]:
                await self._relocate(members[room:])
        return [shard for shard in shards if shard.segment in fitting]

    async def landed(self, shards: Sequence[Shard]) -> None:
        """Count the shards of a commit that landed."""
        for folder, (_, members) in (await self._by_folder(shards)).items():
            if folder in self._counts:
                files, moves = self._counts[folder]
                self._counts[folder] = files + len(members), moves

    @property
    def known(self) -> dict[str, int]:
        """How many files the commit at the head has, by folder, as far as they were counted."""
        return {folder: files for folder, (files, moves) in self._counts.items() if moves == self._head.moves}

    def recall(self, counts: Mapping[str, int]) -> None:
        """The commit at the head has so many files, by folder."""
        self._counts = {folder: (files, self._head.moves) for folder, files in counts.items()}

    def forget(self) -> None:
        """Count again: it is unknown what landed."""
        self._counts.clear()

    async def refused(self, shards: Sequence[Shard], error: FolderFullError) -> bool:
        """Move the shards for which the Hub refused a commit; return False if no other folder of ours helps."""
        self._counts.clear()
        if error.limit is not None:  # a Hub with another limit
            self._most = min(self._most, max(1, error.limit // 2))
        has_moved = False
        for folder, (layout, members) in (await self._by_folder(shards)).items():
            ours, whole = _slashed(folder), _slashed(layout.folder)
            full = [name for name in error.folders or [ours] if _slashed(members[0].path).startswith(name)]
            if any(name.startswith(ours) for name in full):
                await self._relocate(members)
                has_moved = True
            elif whole in full and layout.folder:  # it has no room even for a part
                await self._relocate(members, above=True)
                has_moved = True
        return has_moved

    async def _by_folder(self, shards: Iterable[Shard]) -> dict[str, tuple[Layout, list[Shard]]]:
        layouts = await self._retrier.on_disk(lambda: [self._spool.shards.layout_of(shard) for shard in shards])
        found: dict[str, tuple[Layout, list[Shard]]] = {}
        for shard, layout in zip(shards, layouts, strict=True):
            found.setdefault(layout.part_folder(shard.path), (layout, []))[1].append(shard)
        return found

    async def _count(self, folder: str, layout: Layout, shard: Shard, at: str) -> int:
        files, moves = self._counts.get(folder, (0, -_RECOUNT))
        if self._head.moves - moves < _RECOUNT:
            return files
        files = 0
        if at and not self._head.is_ours_alone:
            count = self._destination.count_files
            ask = partial(count, folder, at, most=self._most, deep=not layout.is_flat)
            files = await self._retrier.until_success("read", ask, raises=(StaleParentError,))
            if files >= PART_FILES:
                await self._retrier.on_disk(self._spool.shards.found_in_folder, shard, files)
        self._counts[folder] = files, self._head.moves
        return files

    async def _relocate(self, shards: Sequence[Shard], *, above: bool = False) -> None:
        full = self._most + PART_FILES  # also for a Hub that has a lower limit
        await self._retrier.on_disk(self._spool.shards.found_in_folder, shards[0], full)
        await self._retrier.on_disk(partial(self._spool.shards.relocate, shards, above=above))
        _log.info("The folder of %s is full; another one takes %s.", shards[0].path, count_text(len(shards), "shard"))
        self._wakeups.stage.notify()


def _slashed(folder: str) -> str:
    return f"/{folder}/" if folder else "/"
