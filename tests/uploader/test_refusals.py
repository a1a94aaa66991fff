"""What an error says about shards that were rejected, and about lost rows: true, short, and everywhere the same."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import ShardPolicy, ShardsRefused, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.verify import verify
from hubsync.model.shard import QuarantinedShard, refusal
from tests.conftest import Commands, Dataset
from tests.waiting import until

SPOOL = Path("/spool")
LIST = "For details: hubsync dead-letter list /spool"


def rejected(n: int, rows: int = 1) -> QuarantinedShard:
    return QuarantinedShard(n, f"train-{n}.jsonl", rows, 9, None, "422: no.")


def lost(n: int, rows: int = 1) -> QuarantinedShard:
    return QuarantinedShard(n, f"train-{n}.jsonl", 0, 0, None, "its only row is lost: w.jsonl is gone", rows)


@pytest.mark.parametrize(
    ("shards", "text"),
    [
        ([rejected(1)], "1 shard was rejected: train-1.jsonl (422: no). Its 1 row is kept."),
        (
            [rejected(n, 2) for n in range(5)],
            "5 shards were rejected: train-0.jsonl (422: no), train-1.jsonl (422: no), train-2.jsonl (422: no), and 2 "
            "more. Their 10 rows are kept.",
        ),
        (
            [lost(1)],
            "1 accepted row is lost: train-1.jsonl (its only row is lost: w.jsonl is gone). All other rows are safe. "
            "Put it again if the job still has it.",
        ),
        (
            [rejected(1), lost(2), lost(3)],
            "1 shard was rejected: train-1.jsonl (422: no). Its 1 row is kept. 2 accepted rows in 2 shards are lost: "
            "train-2.jsonl (its only row is lost: w.jsonl is gone), train-3.jsonl (its only row is lost: w.jsonl is "
            "gone). All other rows are safe. Put them again if the job still has them.",
        ),
        ([rejected(1, 0)], "1 shard was rejected: train-1.jsonl (422: no). Its 0 rows were discarded."),
    ],
)
def test_the_error_tells_rows_that_are_kept_from_rows_that_are_lost(shards: list[QuarantinedShard], text: str) -> None:
    error = refusal(SPOOL, shards)
    assert str(error) == f"{text} {LIST}"
    assert (error.shards, error.rows, error.lost_rows) == (
        len(shards), sum(shard.rows for shard in shards), sum(shard.lost for shard in shards)
    )  # fmt: skip


def test_lost_rows_are_counted_alike_by_the_flush_the_stats_and_the_commands(
    hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, run: Commands, tmp_path: Path
) -> None:
    """One shard loses one of its three rows, another one all of them."""
    spool = tmp_path / "spool"
    hub.faults.add(Fault.outage())
    with uploader(shard=ShardPolicy(max_rows=3, linger_s=3600)) as up:
        up.put([{"id": 1}, {"id": 2}, {"id": 3}], ack="spooled")
        receipt = up.put([{"id": 4}, {"id": 5}, {"id": 6}], ack="spooled")
        partly, wholly = sorted((spool / "segments").glob("*-*.jsonl"))
        os.truncate(partly, 20)
        wholly.unlink()
        hub.faults.clear()
        with pytest.raises(ShardsRefused, match=r"^4 accepted rows in 2 shards are lost: .*1 of its 3") as one:
            up.flush(timeout=60)
        assert (one.value.shards, one.value.rows, one.value.lost_rows) == (2, 0, 4)
        assert receipt.state == "refused"
        until(lambda: up.stats().spool.lost_rows == 4)
        assert up.stats().counts.refusals == 2
    assert dataset.ids() == [1, 2]
    status = run("status", spool)
    assert status.returncode == 1
    assert "rejected: 4 rows lost" in status.stdout
    assert "all its 3 rows are lost" in status.stdout
    drained = run("drain", spool)
    assert (drained.returncode, "all on the Hub but 4 rows lost" in drained.stderr) == (1, True), drained.stderr
    notes = verify("user/rows", spool=spool, endpoint=hub.endpoint, token=hub.token).notes
    assert [("1 of its 3 rows is lost" in note, "all its 3 rows are lost" in note) for note in notes] == [
        (True, False), (False, True),
    ]  # fmt: skip
    assert run("dead-letter", "discard", spool, "--all", "--yes").returncode == 0
    assert run("status", spool).returncode == 0


def test_a_flush_learns_of_a_death_without_another_look_at_the_catalogue(
    hub: LocalHub, uploader: Callable[..., Uploader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.add(Fault.outage())
    with uploader(shard=ShardPolicy(max_rows=1, linger_s=3600)) as up:
        up.put([{"id": 1}], ack="spooled")
        engine = up._engine
        assert engine is not None
        until(lambda: engine.spool.lease.is_held)
        monkeypatch.setattr(engine.delivery, "read_outcomes", lambda: False)
        next((tmp_path / "spool" / "segments").glob("*-*.jsonl")).unlink()
        hub.faults.clear()
        with pytest.raises(ShardsRefused, match="1 accepted row is lost"):
            up.flush(timeout=60)
