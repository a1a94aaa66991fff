"""The contents of the next commit, written to the catalogue before it is sent.

So a process that takes over knows what may have landed. Every change needs the committer's lease: if another process
has taken over, `LeaseLost` is raised and nothing is changed.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

import msgspec

from hubsync._runtime.clock import Clock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync.model.commit import Plan, SidecarFile
from hubsync.model.shard import Shard
from hubsync.model.watermarks import plan_token, watermark_files
from hubsync.spool.database import Catalogue
from hubsync.spool.lease import CommitterLease
from hubsync.spool.retention import Retention
from hubsync.spool.segments import Segments
from hubsync.spool.shards import Shards, remove_file
from hubsync.spool.writers import Writers


class Plans:
    """The plans of a spool: at most one is open at a time."""

    def __init__(
        self,
        catalogue: Catalogue,
        segments: Segments,
        shards: Shards,
        writers: Writers,
        retention: Retention,
        lease: CommitterLease,
        clock: Clock,
    ) -> None:
        self._catalogue = catalogue
        self._segments = segments
        self._shards = shards
        self._writers = writers
        self._retention = retention
        self._lease = lease
        self._clock = clock

    def write(self, shards: Sequence[Shard], card: SidecarFile | None, parent: str | None, summary: str) -> Plan:
        """Write down the next commit: the shards, each writer's watermark as it will be, and the card.

        Args:
            shards: staged shards.
            card: the card's new content; None if it stays as it is.
            parent: the commit that it must follow; None for the first one of a branch.
            summary: the commit's title.
        """
        with self._lease.transaction():
            files = [card] if card else []
            token = secrets.token_hex(8)
            for mark in self._writers.next_watermarks(shards, token).values():
                files += watermark_files(mark)[1]
            plan = self._catalogue.run(
                "INSERT INTO plans (created_at, parent, summary, notes) VALUES (?, ?, ?, ?)",
                self._clock.time(), parent, summary, msgspec.msgpack.encode(files),
            )  # fmt: skip
            self._segments.plan(plan, (shard.segment for shard in shards))
            failpoint(Failpoint.WATERMARKED)
        failpoint(Failpoint.PLANNED)
        return Plan(plan, shards, files, parent, summary, self._lease.term or 0, token=token)

    def claim(self, parent: str | None) -> Plan:
        """Return a commit without shards that only says that a writer is here. It is not written down."""
        name = self._writers.any_name()
        _, files = watermark_files(self._writers.current_watermark(name))
        return Plan(0, (), files, parent, f"Open writer {name}", self._lease.term or 0)

    def open(self) -> Plan | None:
        """Return the plan that an earlier process left; it may have landed. None if there is no such plan."""
        row = self._catalogue.row("SELECT * FROM plans ORDER BY id LIMIT 1")
        if row is None:
            return None
        shards = [self._shards.get(segment) for segment in self._segments.planned(row["id"])]
        files = msgspec.msgpack.decode(row["notes"], type=list[SidecarFile])
        return Plan(row["id"], shards, files, row["parent"], row["summary"], token=plan_token(files))

    def settle(self, plan: Plan, landed: Mapping[int, str]) -> None:
        """Close a plan: some of its shards are committed, the others are free for the next one.

        Args:
            plan: a plan, or a set of shards that were found in the dataset, as a plan with the id 0.
            landed: the commits by segment.
        """
        committed = [shard for shard in plan.shards if shard.segment in landed]
        with self._lease.transaction():
            for mark in self._writers.next_watermarks(committed, plan.token).values():
                self._writers.set_watermark(mark)
            self._segments.settle({shard.segment: landed[shard.segment] for shard in committed})
            if committed:
                self._count(committed)
            self._segments.unplan(plan.id)
            self._catalogue.run("DELETE FROM plans WHERE id = ?", plan.id)
            failpoint(Failpoint.WATERMARK_RECORDED)
        failpoint(Failpoint.SETTLED)
        for shard in committed:
            remove_file(shard.file)
            failpoint(Failpoint.FILE_REMOVED)
        if committed:
            self._retention.expire()

    def _count(self, shards: Sequence[Shard]) -> None:
        totals = {"rows": sum(s.rows for s in shards), "bytes": sum(s.size for s in shards), "shards": len(shards)}
        for key, more in totals.items():
            name = f"committed_{key}"
            self._catalogue.set(name, str(int(self._catalogue.get(name) or 0) + more))
