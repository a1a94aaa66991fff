"""A running job merges its own settled shards, and nothing else; each row stays in the dataset once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from huggingface_hub import CommitOperationAdd

from hubsync import AsyncUploader, CommitPolicy, CompactPolicy, ShardPolicy, SpoolPolicy, Uploader, reader
from hubsync.committer import merger
from hubsync.destinations.hub import card
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.encoding.codecs import SUFFIXES
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from hubsync.maintenance.verify import verify
from tests.conftest import FAST, Dataset
from tests.test_model import _inline
from tests.waiting import until, until_async
from tests.world import World

Make = Callable[..., Uploader]
ONE = ShardPolicy(linger_s=3600, max_rows=1)
SMALL = CompactPolicy(min_shards=4)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge after two commits."""
    monkeypatch.setattr(merger, "_COMMITS_BETWEEN", 2)
    monkeypatch.setattr(merger, "_COMMITS_IF_BUSY", 2)


def put(up: Uploader, numbers: range) -> None:
    """Put rows of which each is in a commit of its own."""
    for n in numbers:
        up.put([{"id": n, "text": f"row {n}"}], ack="committed")


def merged(dataset: Dataset) -> list[str]:
    return [path for path in dataset.paths(SUFFIXES) if "-to-" in path]


def check(dataset: Dataset, hub: LocalHub, spool: Path, rows: int) -> None:
    assert sorted(row["id"] for row in dataset.rows() if row["id"] >= 0) == list(range(rows))
    report = verify(dataset.repo, spool=spool, endpoint=hub.endpoint, token=hub.token, content=True)
    assert report.differences == ()


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("format", ["jsonl", "jsonl.gz"])
def test_a_running_job_merges_its_shards(
    hub: LocalHub, uploader: Make, dataset: Dataset, tmp_path: Path, format: str
) -> None:
    with uploader(shard=ONE, compact=SMALL, format=format) as up:
        put(up, range(5))
        until(lambda: merged(dataset))
        put(up, range(5, 7))
        cursor = reader.rows(dataset.repo, endpoint=hub.endpoint, token=hub.token)
        assert [row["id"] for row in cursor] == list(range(7))
        put(up, range(7, 10))
        until(lambda: len(merged(dataset)) == 2)
        put(up, range(10, 11))
    since = reader.rows(dataset.repo, since=cursor.cursor, endpoint=hub.endpoint, token=hub.token)
    assert [row["id"] for row in since] == list(range(7, 11))
    check(dataset, hub, tmp_path / "spool", 11)
    assert not (tmp_path / "spool" / "merging").exists()


@pytest.mark.usefixtures("often")
def test_files_of_others_stay_as_they_are(hub: LocalHub, uploader: Make, dataset: Dataset, tmp_path: Path) -> None:
    with uploader(shard=ONE, compact=SMALL) as up:
        put(up, range(1))
        theirs = [CommitOperationAdd(f"data/train-theirs-{n}.jsonl", b'{"id":-1}\n') for n in range(6)]
        dataset.api.create_commit(dataset.repo, theirs, commit_message="x", repo_type="dataset")
        put(up, range(1, 5))
        until(lambda: merged(dataset))
    assert sum("theirs" in path for path in dataset.paths()) == 6
    check(dataset, hub, tmp_path / "spool", 5)


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("fault", ["answer is lost", "refused", "someone else commits", "a shard changes"])
def test_a_merge_that_does_not_land_or_whose_answer_is_lost_leaves_each_row_once(
    hub: LocalHub,
    uploader: Make,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    monkeypatch.setattr(merger, "_RETRY_S", 0.0)
    commit, sent = HubDataset.commit, []

    async def troubled(self: HubDataset, plan: Any) -> Any:
        if plan.deletions and not sent:
            sent.append(plan)
            if fault == "answer is lost":
                hub.faults.add(Fault.reset(when="after", on="commit", times=1))
            elif fault == "refused":
                hub.faults.add(Fault.status(422, on="commit", times=1))
            else:
                path = "notes.md" if fault == "someone else commits" else plan.deletions[0]
                change = CommitOperationAdd(path, b'{"id": 0, "text": "edited"}\n')
                dataset.api.create_commit(dataset.repo, [change], commit_message="x", repo_type="dataset")
        return await commit(self, plan)

    monkeypatch.setattr(HubDataset, "commit", troubled)
    with uploader(shard=ONE, compact=SMALL) as up:
        put(up, range(6))
        until(lambda: sent)
        put(up, range(6, 14))
        until(lambda: merged(dataset))
    assert sorted(row["id"] for row in dataset.rows()) == list(range(14))
    if fault != "a shard changes":
        check(dataset, hub, tmp_path / "spool", 14)


@pytest.mark.usefixtures("often")
def test_a_shard_that_is_not_settled_is_not_merged(
    hub: LocalHub, uploader: Make, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file is in the dataset, but the catalogue does not know it: its commit's answer was lost."""
    waiting = {f"data/train-{n:05d}.jsonl" for n in range(9)}
    monkeypatch.setattr("hubsync.spool.segments.Segments.unsettled_paths", lambda self: waiting)
    looked: list[int] = []
    choose = merger._due
    monkeypatch.setattr(merger, "_due", lambda series, *args: looked.append(len(series)) or choose(series, *args))
    with uploader(shard=ONE, compact=SMALL) as up:
        waiting |= {f"data/train-{up.writer}-{n:05d}.jsonl" for n in (1, 4, 6)}
        put(up, range(8))
        until(lambda: looked)
    assert merged(dataset) == []
    check(dataset, hub, tmp_path / "spool", 8)


@pytest.mark.usefixtures("often")
def test_a_spool_without_room_merges_nothing(
    hub: LocalHub, uploader: Make, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "hubsync")
    with uploader(shard=ONE, compact=SMALL, spool=SpoolPolicy(directory=tmp_path / "spool", max_bytes=100)) as up:
        put(up, range(6))
        until(lambda: "do not fit in" in caplog.text)
        put(up, range(6, 8))
    assert merged(dataset) == []
    check(dataset, hub, tmp_path / "spool", 8)


def test_the_rest_is_merged_at_the_end_if_asked_for(
    hub: LocalHub, uploader: Make, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in hub.environ().items():
        monkeypatch.setenv(name, value)
    with uploader(shard=ONE, compact=CompactPolicy(at_end=True)) as up:
        put(up, range(3))
    assert len(dataset.paths()) == len(merged(dataset)) == 1
    with uploader(shard=ONE) as up:
        put(up, range(3, 5))
    assert len(dataset.paths()) == 3
    drain(tmp_path / "spool", compact=CompactPolicy(at_end=True), timeout=60)
    assert len(dataset.paths()) == 1
    check(dataset, hub, tmp_path / "spool", 5)


@pytest.mark.anyio
async def test_a_close_that_merges_the_rest_can_be_cancelled(
    hub: LocalHub, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: merger.Merger, *args: object) -> None:
        looked.set()
        await anyio.sleep_forever()

    looked = threading.Event()
    monkeypatch.setattr(merger.Merger, "_choose", never)
    given = {**FAST, "shard": ONE, "endpoint": hub.endpoint, "token": hub.token}
    up = await AsyncUploader("user/rows", spool=tmp_path / "spool", compact=CompactPolicy(at_end=True), **given).open()
    await up.put([{"id": 0}], ack="committed")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(up.close)
        await until_async(looked.is_set)
        tasks.cancel_scope.cancel()
    assert [row["id"] for row in dataset.rows()] == [0]


def test_an_error_in_the_job_leaves_the_rest_as_it_is(uploader: Make, dataset: Dataset) -> None:
    with pytest.raises(KeyError), uploader(shard=ONE, compact=CompactPolicy(at_end=True)) as up:
        put(up, range(3))
        raise KeyError
    assert len(dataset.paths()) == 3


def test_at_most_one_commit_in_ten_is_a_merge_and_none_while_a_flush_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card.preload()
    monkeypatch.setattr(anyio.to_thread, "run_sync", _inline)
    world = World(tmp_path)
    world.commit = CommitPolicy(per_hour=100_000, max_files=1)
    world.compact = CompactPolicy(min_shards=2)
    process = world.start(0)

    hurried = 0
    for n in range(35):
        process.put(b'{"id":%d}\n' % n)
        process.order(process.engine.spool_thread.seal_all)
        under_way = world.calls()
        if n % 3 == 0:
            process.engine.flush()
            process._spool()
        for _ in range(8):
            for call in world.calls():
                is_merge = call.body is not None and call.body.plan.deletions
                if call not in under_way and process.spool.segments.has_urgent():
                    assert not is_merge
                    hurried += 1
                world.answer(call, "ok")
            world.pass_time(0.5)
    assert hurried
    kinds = "".join("m" if plan.deletions else "c" for plan in world.hub.commits)
    assert kinds.count("c") == 35
    assert kinds.count("m") >= 2
    assert all(len(part) >= 9 for part in kinds.split("m")[:-1])
    assert sum(world.hub.ids.values()) == 35
    world.close()
