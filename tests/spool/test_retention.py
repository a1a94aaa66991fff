"""A catalogue is bounded by what waits: segments that were committed long ago leave it, and nothing is forgotten."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hubsync import ShardPolicy, Uploader
from hubsync.localhub import LocalHub
from hubsync.maintenance.verify import verify
from hubsync.model.layout import Layout
from hubsync.schema.types import dumps, infer
from hubsync.spool import database, retention
from hubsync.spool.database import Catalogue
from hubsync.spool.segments import Outcome, Segments
from hubsync.spool.spool import Spool
from hubsync.spool.writer import Accepted, SpoolWriter
from hubsync.testing import ManualClock
from tests.conftest import FAST, Dataset
from tests.spool.conftest import all_sealed, batch, die, plans_of, shards_of, writer_of


@pytest.fixture(autouse=True)
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_KEPT", 3)


def commit_all(spool: Spool, sha: str = "sha") -> None:
    shards_of(spool).mark_staged({shard.segment: "lfs" for shard in all_sealed(spool)})
    while shards := shards_of(spool).ready(10, 1 << 30):
        plan = plans_of(spool).write(shards, None, None, "")
        plans_of(spool).settle(plan, {shard.segment: sha for shard in shards})


def expire(spool: Spool, writer: SpoolWriter, number: int = 1) -> None:
    """Let a minute pass, and commit something, after which the oldest records go."""
    spool.clock.advance(61)  # type: ignore[attr-defined]
    for n in range(number):
        writer.append([batch(10_000 + n)])
    commit_all(spool)


def test_settled_segments_leave_the_catalogue(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    for n in range(20):
        writer.append([batch(n, offset=n)])
    commit_all(spool)
    assert len(list(spool.segments.with_path())) == 20  # other processes may still read what became of theirs
    expire(spool, writer)
    assert [row.id for row in spool.segments.with_path()] == [19, 20, 21]
    assert spool.catalogue.value("SELECT count(*) FROM segment_offsets") == 3  # with the last of those that are gone
    assert spool.depth().committed_rows == 21


def test_replays_of_expired_segments_are_committed(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    for n in range(5):
        writer.append([batch(n, key=f"key {n}"), batch(100 + n, offset=n)])
    commit_all(spool)
    expire(spool, writer)
    waiting = writer.append([batch(9, offset=9)])[0][0].segment
    die(writer)  # and its job is started again
    ((by_key, by_offset, recent, pending), _) = writer_of(spool).append(
        [batch(1, key="key 1"), batch(101, offset=1), batch(104, offset=4), batch(9, offset=9)]
    )
    assert by_key.replayed
    assert by_key.segment is not None
    assert by_offset.segment is not None
    assert by_offset.segment < (recent.segment or 0) < (waiting or 0)
    assert [spool.segments.outcome(n.segment or 0) for n in (by_key, by_offset, recent)] == [
        Outcome("committed", None, None), Outcome("committed", None, None), Outcome("committed", "sha", None),
    ]  # fmt: skip
    assert pending == Accepted(waiting, True)


def test_a_quarantined_segment_between_expired_ones_keeps_its_offsets(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    segments = [writer.append([batch(n, offset=n)])[0][0].segment or 0 for n in range(7)]
    shards_of(spool).quarantine(all_sealed(spool)[3], "rejected")
    commit_all(spool)
    expire(spool, writer, 3)
    assert [row.id for row in spool.segments.with_path()] == [segments[3], 8, 9, 10]
    die(writer)
    replays, _ = writer_of(spool).append([batch(n, offset=n) for n in range(7)])
    outcomes = [spool.segments.outcome(accepted.segment or 0) for accepted in replays]
    assert [outcome.state for outcome in outcomes if outcome] == [*["committed"] * 3, "dead", *["committed"] * 3]
    assert spool.catalogue.value("SELECT count(*) FROM segment_offsets") == 3


def test_what_the_card_needs_survives_its_segments(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    for config in ("first", "second"):
        writer = writer_of(spool, Layout(config), max_rows=1)
        writer.append([batch(1)])
        with spool.catalogue.transaction():
            spool.segments.set_schema(spool.segments.newest(), dumps(infer([{config: 1}])))
    commit_all(spool)
    before = spool.cards.of_committed()
    expire(spool, writer_of(spool, Layout("third"), max_rows=1), 3)
    assert len(list(spool.segments.with_path())) == 3
    assert spool.cards.of_committed().items() >= before.items()
    assert sorted(config for config, _ in spool.schemas.all_committed()) == ["first", "second"]


def test_a_file_that_a_crash_left_of_an_expired_segment_is_removed(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    writer.append([batch(1)])
    (file,) = (spool.directory / "segments").iterdir()
    commit_all(spool)
    file.write_bytes(b'{"id":1}\n')  # the process died before it removed it
    expire(spool, writer, 3)
    assert not file.exists()
    file.write_bytes(b'{"id":1}\n')  # or later
    newer = file.with_name(f"{writer.name}-{spool.segments.newest() + 1:08d}.jsonl")
    newer.write_bytes(b"")  # a take is creating it
    spool.recovery.sweep()
    assert list((spool.directory / "segments").iterdir()) == [newer]


def test_the_records_of_a_large_backlog_leave_in_steps(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_AT_ONCE", 4)
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    for n in range(20):
        writer.append([batch(n)])
    commit_all(spool)
    counts = []
    for _ in range(6):
        expire(spool, writer)
        counts.append(len(list(spool.segments.with_path())))
    assert counts == [17, 14, 11, 8, 5, 3]


def test_a_dataset_is_whole_after_the_records_of_its_shards_are_gone(
    hub: LocalHub, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "_KEPT_S", 0)
    options: Any = {**FAST, "shard": ShardPolicy(max_rows=1), "endpoint": hub.endpoint, "token": hub.token}
    for start in range(0, 20, 10):
        with Uploader("user/rows", spool=tmp_path / "spool", **options) as up:
            if start:
                replay = up.put([{"id": 2}], offset=4, ack="committed", timeout=60)
                assert (replay.state, replay.replayed) == ("committed", True)
            for n in range(start, start + 10):
                up.put([{"id": n // 2}], offset=n, key=f"key {n}")  # half of the shards are equal to another one
                if n % 5 == 4:
                    up.flush(timeout=60)
            assert up.offset() == start + 9
    assert dataset.ids() == sorted(n // 2 for n in range(20))
    report = verify("user/rows", spool=tmp_path / "spool", endpoint=hub.endpoint, token=hub.token, content=True)
    assert report.differences == ()
    with closing(sqlite3.connect(tmp_path / "spool" / "catalogue.sqlite")) as db:
        assert db.execute("SELECT count(*) FROM segments").fetchone()[0] <= 3 + 5


# Catalogues of version 2.


def test_a_catalogue_of_version_2_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "catalogue.sqlite"
    with monkeypatch.context() as old:
        old.setattr(database, "VERSION", 2)
        old.setattr(database, "_MIGRATIONS", database._MIGRATIONS[:2])
        before = Catalogue(path)
    for state in ("open", "sealed", "sealed", "staged", "committed", "dead"):
        as_version_2(before, state)
    before.run("INSERT INTO segments (writer, file, config, split, template, opened_at, state) "
               "VALUES ('w', '', 'default', 'train', '', 1, 'dead')")  # discarded  # fmt: skip
    before.close()

    catalogue = Catalogue(path)
    segments = Segments(catalogue, ManualClock())
    counts = {state: (depth.shards, depth.rows, depth.bytes) for state, depth in segments.depths().items()}
    assert counts == {"open": (1, 2, 9), "sealed": (2, 4, 18), "staged": (1, 2, 9), "dead": (1, 2, 9)}
    assert [segments.get(n).schema for n in (1, 5)] == ['{"id":"int64"}'] * 2
    assert len(segments.to_stage(9)) == 2

    # A job of version 2 that has it open still counts, by the statements that it knows.
    as_version_2(catalogue, "sealed")
    catalogue.run("UPDATE segments SET state = 'staged' WHERE id = 2")
    catalogue.run("UPDATE segments SET bytes = 10, rows = 3, batches = 2 WHERE id = 1 AND state = 'open'")
    catalogue.run("INSERT INTO segment_offsets VALUES (?, ?, ?) ON CONFLICT (segment, source) DO UPDATE SET offset = "
                  "excluded.offset", "source", 3, 1)  # fmt: skip
    counts = {state: (depth.shards, depth.rows, depth.bytes) for state, depth in segments.depths().items()}
    assert counts == {"open": (1, 3, 10), "sealed": (2, 4, 18), "staged": (2, 4, 18), "dead": (1, 2, 9)}
    catalogue.close()


def as_version_2(catalogue: Catalogue, state: str) -> None:
    catalogue.run(
        "INSERT INTO segments (writer, file, config, split, template, opened_at, state, bytes, rows, schema, path, "
        "committed_at) VALUES ('w', 'w.jsonl', 'default', 'train', '', 1, ?, 9, 2, '{\"id\":\"int64\"}', "
        "hex(randomblob(8)) || '.jsonl', 1)",
        state,
    )
