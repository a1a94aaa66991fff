"""Whether a spool was set back: a power cut took its catalogue's last seconds, or its disk was put back from a copy.

The dataset has what was committed since then, and its watermarks tell of whom. A job that is told its old offsets would
bring those rows twice, and so would shards that the catalogue forgot, or knows as they were before they had grown.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import BinaryIO

from hubsync._runtime.threads import run_in_thread
from hubsync.committer.retry import Retrier
from hubsync.destinations.base import Destination
from hubsync.model.commit import Watermark
from hubsync.model.shard import Shard
from hubsync.spool.plans import Plans
from hubsync.spool.spool import Spool

_log = logging.getLogger("hubsync")


class RollbackDetector:
    """One committer's."""

    def __init__(self, spool: Spool, plans: Plans, destination: Destination, patience: Retrier) -> None:
        self._spool = spool
        self._plans = plans
        self._destination = destination
        self._persist = patience.persist
        self._on_disk = patience.on_disk
        self._ahead: list[Watermark] = []  # of our writers, where the dataset knows more of them than the catalogue

    def __bool__(self) -> bool:
        """Whether the dataset has what the catalogue forgot."""
        return bool(self._ahead)

    async def look(self, at: str) -> None:
        """Compares the watermarks of the commit `at` with ours; numbers and offsets go on from there.

        Raises:
            LeaseLost: another process commits now.
        """
        await self._on_disk(self._spool.adopt)  # what the dead left open gets the numbers that it had
        ours = await self._on_disk(self._plans.marks)
        standing = await self._destination.find_files(list(ours), at)
        if any(found.oid != ours[path] for path, found in standing.items()):
            marks = [mark for mark in await self._destination.read_watermarks(at) if mark.path in ours]
            self._ahead = [mark for mark in marks if await self._on_disk(self._plans.is_behind, mark)]
            await self._on_disk(self._spool.seed, self._ahead)

    async def has_grown(self, shard: Shard, at: str) -> bool:
        """Whether what stands at a shard's path in the commit `at` begins with it: more rows had come to it, before it
        was sealed and committed.
        """
        if all(mark.writer != shard.writer for mark in self._ahead):
            return False
        return await self._persist("read", partial(self._begins_with, shard, at))

    async def _begins_with(self, shard: Shard, at: str) -> bool:
        is_same = True
        ours: BinaryIO = await run_in_thread(lambda: shard.file.open("rb"))
        with ours:

            def take(piece: bytes) -> None:
                nonlocal is_same
                is_same = is_same and piece.startswith(ours.read(len(piece)))

            is_there = await self._destination.download(shard.path, at, take)
            return is_there and is_same and not ours.read(1)

    async def make_good(self) -> None:
        """What the dataset has was compared and settled: what it says of our writers is so."""
        ahead, self._ahead = self._ahead, []
        for mark in ahead:
            if await self._on_disk(self._plans.is_behind, mark):  # else it was a commit whose answer was lost
                await self._on_disk(self._plans.accept_mark, mark)
                _log.warning(
                    "the spool was set back (a power cut, or a copy of its disk): %s has %s rows of writer %s, more "
                    "than it knows. Offsets and numbers go on from there; batches that are known by a key alone may "
                    "be brought again.", self._spool.target.repo, f"{mark.rows:,}", mark.writer,
                )  # fmt: skip
