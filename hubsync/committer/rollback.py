"""Detect a spool that was rolled back: a power cut took its catalogue's last seconds, or its disk was restored.

The dataset contains what was committed since then, and its watermarks tell by which writers. A job that got its old
offsets would repeat those rows, and so would shards that the catalogue forgot, or knows as they were before they grew.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from typing import BinaryIO

from hubsync._runtime.files import open_regular
from hubsync._runtime.formatting import count_text
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.context import Context
from hubsync.model.commit import Watermark
from hubsync.model.series import series_of
from hubsync.model.shard import Shard
from hubsync.model.watermarks import FIRST_FOLDED

_log = logging.getLogger("hubsync")


class RollbackDetector:
    """Compares the dataset's watermarks with the catalogue's, once at each start."""

    def __init__(self, context: Context) -> None:
        self._spool = context.spool
        self._destination = context.destination
        self._retrier = context.retrier
        self._ahead: list[Watermark] = []  # of our writers, of whom the dataset contains more than the catalogue knows

    @property
    def is_rolled_back(self) -> bool:
        """Whether the dataset contains what the catalogue forgot."""
        return bool(self._ahead)

    async def check(self, at: str) -> None:
        """Compare the watermarks of the commit `at` with ours; numbers and offsets continue after both.

        Raises:
            LeaseLost: another process commits.
        """
        await self._retrier.on_disk(self._spool.recovery.adopt)  # segments of dead writers get the numbers they had
        ours = await self._retrier.on_disk(self._spool.writers.watermark_oids)
        found = dict(await self._destination.find_files([FIRST_FOLDED, *ours], at))
        # Other spools fold what looks finished. Of a watermark that is gone the dataset may know more, all the same.
        has_folded = found.pop(FIRST_FOLDED, None) is not None and len(found) < len(ours)
        if has_folded or any(file.oid != ours[path] for path, file in found.items()):
            names = await self._retrier.on_disk(self._spool.writers.names)
            every = (await self._destination.read_watermarks(at, writers=names)).by_writer.values()
            marks = [mark for mark in every if mark.path in ours]
            self._ahead = [mark for mark in marks if await self._retrier.on_disk(self._spool.writers.is_behind, mark)]
            await self._retrier.on_disk(self._spool.seed, self._ahead)

    async def merged(self, shards: Iterable[Shard], at: str) -> set[int]:
        """Return those of `shards` that the commit `at` has in merged files: the catalogue forgot that they landed.

        A number that a writer's shard was given before the catalogue was set back is still that shard's.
        """
        ahead = {mark.writer: mark for mark in self._ahead}
        suspects = [shard for shard in shards if shard.writer in ahead]
        if not suspects:
            return set()
        files = await self._retrier.until_success("read", partial(self._destination.list_files, at))
        series = {one.name: one for one in series_of(ahead, files)[0]}
        numbers = await self._retrier.on_disk(self._spool.shards.numbers, suspects)
        return {segment for segment, (name, n) in numbers.items() if name in series and series[name].merged_with(n)}

    async def has_grown(self, shard: Shard, at: str) -> bool:
        """Return whether the file at a shard's path begins with it: it grew before it was sealed and committed."""
        if all(mark.writer != shard.writer for mark in self._ahead):
            return False
        return await self._retrier.until_success("read", partial(self._is_prefix, shard, at))

    async def _is_prefix(self, shard: Shard, at: str) -> bool:
        is_same = True
        ours: BinaryIO = await run_in_thread(open_regular, shard.file)
        with ours:

            def compare(piece: bytes) -> None:
                nonlocal is_same
                is_same = is_same and piece.startswith(ours.read(len(piece)))

            exists = await self._destination.download(shard.path, at, compare)
            return exists and is_same and not ours.read(1)

    async def accept(self) -> None:
        """Take over the dataset's watermarks, once its shards were compared and settled."""
        ahead, self._ahead = self._ahead, []
        for mark in ahead:
            if await self._retrier.on_disk(self._spool.writers.is_behind, mark):  # else its response was lost
                await self._retrier.on_disk(self._spool.writers.accept_watermark, mark)
                _log.warning(
                    "The spool %s was rolled back (a power cut, or a restored disk): %s contains %s of writer %s, "
                    "more than the spool knows. Offsets and numbers continue after them; batches that are identified "
                    "only by a key may be repeated.",
                    self._spool.directory, self._spool.target.repo, count_text(mark.rows, "row"), mark.writer,
                )  # fmt: skip
