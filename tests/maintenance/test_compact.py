"""Merging the shards of a dataset on the embedded Hub, while a real uploader writes it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hubsync import ShardPolicy, TransientError, Uploader, reader
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.compact import Compaction, compact
from hubsync.maintenance.verify import verify
from hubsync.model.layout import FORMATS, Format
from tests.conftest import FAST

Make = Callable[..., Uploader]
Merge = Callable[..., Compaction]
REPO = "user/rows"
ONE = ShardPolicy(linger_s=3600, max_rows=1)


@pytest.fixture
def merge(hub: LocalHub) -> Merge:
    def run(**changes: Any) -> Compaction:
        return compact(REPO, **{"endpoint": hub.endpoint, "token": hub.token, "min_age_s": 0, "apply": True, **changes})

    return run


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=hub.token)


def write(uploader: Make, ids: range, **changes: Any) -> None:
    with uploader(**{"shard": ONE, **changes}) as up:
        for n in ids:
            up.put([{"id": n, "text": f"row {n}"}])


def files(api: HfApi) -> list[str]:
    return sorted(path for path in api.list_repo_files(REPO, repo_type="dataset") if not path.startswith("."))


def ids(hub: LocalHub) -> list[int]:
    return [row["id"] for row in reader.rows(REPO, endpoint=hub.endpoint, token=hub.token)]


@pytest.mark.parametrize("format", FORMATS)
def test_shards_become_one_file_with_the_same_rows(
    hub: LocalHub, uploader: Make, merge: Merge, api: HfApi, tmp_path: Path, format: Format
) -> None:
    write(uploader, range(12), format=format)
    before = files(api)

    found = merge()

    assert (len(found.merges), found.merged_files, len(found.commits)) == (1, 12, 1)
    (path,) = (path for path in files(api) if path != "README.md")
    assert path == before[1].replace("00000", "00000-to-00011")
    assert ids(hub) == list(range(12))
    for content in (False, True):
        report = verify(REPO, spool=tmp_path / "spool", endpoint=hub.endpoint, token=hub.token, content=content)
        assert (report.differences, report.rows) == ((), 12)


@pytest.mark.slow("imports datasets")
@pytest.mark.parametrize("format", FORMATS)
def test_a_merged_file_loads_as_its_shards_did(local_hub: LocalHub, tmp_path: Path, format: Format) -> None:
    import datasets

    repo = f"user/merged-{format.replace('.', '-')}"
    with Uploader(repo, spool=tmp_path / "spool", format=format, **{**FAST, "shard": ONE}) as up:
        for n in range(6):
            up.put([{"id": n, "text": f"row {n}", "tags": ["a"] * n, "score": n / 7}])
    before = datasets.load_dataset(repo, split="train")
    compact(repo, min_age_s=0, apply=True)
    after = datasets.load_dataset(repo, split="train", download_mode="force_redownload")
    assert after.to_list() == before.to_list()
    assert after.features == before.features
    streamed = datasets.load_dataset(repo, split="train", streaming=True)
    assert list(streamed) == before.to_list()


def test_a_dry_run_changes_nothing(uploader: Make, merge: Merge, api: HfApi) -> None:
    write(uploader, range(3))
    before = files(api)
    found = merge(apply=False)
    assert [len(one.files) for one in found.merges] == [3]
    assert found.bytes > 0
    assert found.commits == ()
    assert files(api) == before


def test_a_job_continues_after_its_shards_were_merged(hub: LocalHub, uploader: Make, merge: Merge, api: HfApi) -> None:
    with uploader(shard=ONE) as up:
        for n in range(3):
            up.put([{"id": n}])
        up.flush()
        merge()
        for n in range(3, 6):
            up.put([{"id": n}])
    assert ids(hub) == list(range(6))
    merge()  # the merged file and the new shards
    assert len(files(api)) == 2
    write(uploader, range(6, 8))
    assert ids(hub) == list(range(8))


def test_a_job_with_a_new_spool_continues_its_numbers(
    hub: LocalHub, uploader: Make, merge: Merge, tmp_path: Path
) -> None:
    path = "data/{split}-{seq:05d}.jsonl"
    write(uploader, range(3), path=path)
    merge()
    write(uploader, range(3, 6), path=path, spool=tmp_path / "another")
    assert ids(hub) == list(range(6))
    assert verify(REPO, endpoint=hub.endpoint, token=hub.token).differences == ()


def test_a_reader_gets_each_row_once_across_merges(hub: LocalHub, uploader: Make, merge: Merge) -> None:
    def rows(cursor: str | None) -> tuple[list[int], str]:
        found = reader.rows(REPO, since=cursor, endpoint=hub.endpoint, token=hub.token)
        return [row["id"] for row in found], found.cursor

    write(uploader, range(5))
    first, cursor = rows(None)
    merge()
    write(uploader, range(5, 7))
    second, cursor = rows(cursor)
    merge()
    third, _ = rows(cursor)
    assert (first, second, third) == ([0, 1, 2, 3, 4], [5, 6], [])


def test_files_of_others_and_gaps_are_left_alone(hub: LocalHub, uploader: Make, merge: Merge, api: HfApi) -> None:
    write(uploader, range(6))
    shards = [path for path in files(api) if path != "README.md"]
    theirs = [CommitOperationAdd(f"data/train-theirs-{n}.jsonl", b'{"id":-1}\n') for n in (1, 2)]
    gone = CommitOperationDelete(shards[2])
    api.create_commit(REPO, [*theirs, gone], commit_message="x", repo_type="dataset")
    found = merge()
    assert sorted(len(one.files) for one in found.merges) == [2, 3]
    assert {"data/train-theirs-1.jsonl", "data/train-theirs-2.jsonl"} < set(files(api))
    assert sorted(ids(hub)) == [-1, -1, 0, 1, 3, 4, 5]


def test_a_file_of_others_at_a_number_without_a_writer_is_left_alone(
    hub: LocalHub, uploader: Make, merge: Merge, api: HfApi
) -> None:
    theirs = CommitOperationAdd("data/train-00002.jsonl", b'{"id":-1}\n')
    api.create_repo(REPO, repo_type="dataset")
    api.create_commit(REPO, [theirs], commit_message="x", repo_type="dataset")
    write(uploader, range(5), path="data/{split}-{seq:05d}.jsonl")
    found = merge()
    assert [len(one.files) for one in found.merges] == [2, 3]
    assert "data/train-00002.jsonl" in files(api)
    assert sorted(ids(hub)) == [-1, 0, 1, 2, 3, 4]


def test_a_card_that_is_written_anew_shows_merged_files(
    hub: LocalHub, uploader: Make, merge: Merge, api: HfApi
) -> None:
    write(uploader, range(3), config="one")
    merge()
    deletion = CommitOperationDelete("README.md")
    api.create_commit(REPO, [deletion], commit_message="x", repo_type="dataset")
    write(uploader, range(3, 5), config="two")
    assert ids(hub) == list(range(5))


def test_young_shards_are_left_alone(uploader: Make, merge: Merge) -> None:
    write(uploader, range(3))
    assert merge(min_age_s=3600).merges == []


def test_a_large_file_is_not_merged_again_for_a_few_rows(
    uploader: Make, merge: Merge, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hubsync.model.merging._SMALL_BYTES", 100)
    write(uploader, range(20))
    merge()
    write(uploader, range(20, 23))
    found = merge()
    assert [len(one.files) for one in found.merges] == [3]
    assert len(files(api)) == 3
    assert merge(max_file_bytes=10).merges == []


@pytest.mark.parametrize(
    "fault", [Fault.status(503, on="commit", times=2), Fault.reset(when="after", on="commit", times=1)]
)
def test_a_commit_that_fails_or_whose_response_is_lost_merges_once(
    hub: LocalHub, uploader: Make, merge: Merge, api: HfApi, fault: Fault
) -> None:
    write(uploader, range(4))
    hub.faults.add(fault)
    found = merge()
    assert found.commits == [api.dataset_info(REPO).sha]
    assert ids(hub) == list(range(4))


def test_a_commit_of_someone_else_in_between_is_kept(
    hub: LocalHub, uploader: Make, merge: Merge, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(uploader, range(4))
    commit = HubDataset.commit
    others = [range(4, 6)]

    async def commit_late(self: HubDataset, plan: Any) -> Any:
        if others and plan.deletions:
            await anyio.to_thread.run_sync(write, uploader, others.pop())
        return await commit(self, plan)

    monkeypatch.setattr("hubsync.maintenance.compact.HubDataset.commit", commit_late)
    merge()
    assert sorted(ids(hub)) == list(range(6))


def test_a_shard_that_changes_meanwhile_is_not_merged(
    hub: LocalHub, uploader: Make, merge: Merge, api: HfApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(uploader, range(4))
    shard = files(api)[1]
    commit = HubDataset.commit

    async def change_first(self: HubDataset, plan: Any) -> Any:
        change = CommitOperationAdd(shard, b'{"id":100}\n')
        api.create_commit(REPO, [change], commit_message="x", repo_type="dataset")
        return await commit(self, plan)

    monkeypatch.setattr("hubsync.maintenance.compact.HubDataset.commit", change_first)
    with pytest.raises(TransientError, match="was changed while its rows were merged"):
        merge()
    assert ids(hub) == [100, 1, 2, 3]
