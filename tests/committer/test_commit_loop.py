"""Rejected plans keep to the quota, and queries stay fast in an old spool."""

from __future__ import annotations

from pathlib import Path

import anyio.to_thread
import pytest

from hubsync import CommitPolicy
from hubsync.destinations.hub import card
from hubsync.model.layout import Layout
from hubsync.policies import ShardPolicy
from hubsync.spool.spool import Spool
from hubsync.spool.writer import SpoolWriter
from tests.spool.conftest import TARGET, batch
from tests.test_model import _inline
from tests.world import World


def test_halving_a_rejected_plan_keeps_to_the_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card.preload()
    monkeypatch.setattr(anyio.to_thread, "run_sync", _inline)
    world = World(tmp_path)
    world.commit = CommitPolicy(per_hour=3, max_files=16)
    process = world.start(0)
    landed: list[float] = []

    def pass_time(seconds: float, step: float) -> None:
        for _ in range(int(seconds / step)):
            for call in world.calls():
                bad = call.body is not None and any(b'"bad"' in content for content in call.body.files.values())
                if call.body is not None and not bad:
                    landed.append(world.clock.time())
                world.answer(call, "defect" if bad else "ok")
            world.run()
            world.pass_time(step)

    for n in range(16):
        process.put(b'{"id":"%s"}\n' % (b"bad" if n == 5 else b"%d" % n))
        process.order(process.engine.spool_thread.seal_all)
    pass_time(20, 0.5)
    process.engine.flush()
    process._spool()
    pass_time(4 * 3600, 60)
    assert sum(world.hub.ids.values()) == 15
    assert process.spool.depth().dead == 1
    assert max(sum(at <= other < at + 3600 for other in landed) for at in landed) <= 3
    world.close()


def test_frequent_queries_do_not_read_committed_segments(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", target=TARGET)
    writer = SpoolWriter.open(spool, Layout(), ShardPolicy(max_rows=1))
    writer.append([batch(1), batch(2)])
    asked: list[str] = []
    spool.catalogue._db.set_trace_callback(asked.append)
    spool.depth()
    spool.full_text()
    spool.recovery.adopt()
    spool.mark_urgent(None)
    assert spool.lease.acquire()
    shards = spool.shards.to_stage(10, 1000)
    spool.shards.mark_staged({shard.segment: "regular" for shard in shards})
    spool.segments.has_urgent_staged()
    spool.shards.in_order(spool.shards.ready(10, 1000))
    spool.recovery._seal_open(writer.name)
    spool.recovery.sweep()
    spool.catalogue._db.set_trace_callback(None)
    for sql in asked:
        if "segments" in sql and sql.startswith(("SELECT", "UPDATE")):
            steps = [row[3] for row in spool.catalogue.rows(f"EXPLAIN QUERY PLAN {sql}")]
            partial = ("SCAN segments USING INDEX to_stage", "SCAN segments USING INDEX to_compress")
            assert not any(step.startswith("SCAN segments") and step not in partial for step in steps), sql
            assert "id <" not in sql or "pending" in steps[0], sql
    spool.close()
