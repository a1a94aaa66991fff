"""The `datasets` library against the embedded Hub."""

from __future__ import annotations

import datasets
import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubsync.localhub import LocalHub


@pytest.fixture
def shards(api: HfApi, repo: str) -> str:
    lines = [b"".join(b'{"n": %d, "text": "row %d"}\n' % (n, n) for n in range(start, start + 50)) for start in (0, 50)]
    operations = [CommitOperationAdd(f"data/train-{number:05}.jsonl", content) for number, content in enumerate(lines)]
    api.create_commit(repo, operations, commit_message="shards", repo_type="dataset")
    return repo


def test_load_dataset_finds_all_rows(local_hub: LocalHub, shards: str) -> None:
    rows = datasets.load_dataset(shards, split="train")
    assert sorted(rows["n"]) == list(range(100))


def test_load_dataset_streams(local_hub: LocalHub, shards: str) -> None:
    rows = datasets.load_dataset(shards, split="train", streaming=True)
    assert sum(row["n"] for row in rows) == sum(range(100))


def test_load_dataset_reads_an_old_revision(local_hub: LocalHub, api: HfApi, shards: str) -> None:
    before = api.dataset_info(shards).sha
    api.delete_file("data/train-00001.jsonl", shards, repo_type="dataset")
    assert len(datasets.load_dataset(shards, split="train", revision=before)) == 100
    assert len(datasets.load_dataset(shards, split="train")) == 50


def test_a_private_dataset_loads_with_its_owners_token(local_hub: LocalHub, api: HfApi, shards: str) -> None:
    api.update_repo_settings(shards, repo_type="dataset", private=True)
    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        datasets.load_dataset(shards, split="train", token=local_hub.add_user("mallory"))
    assert len(datasets.load_dataset(shards, split="train", token=local_hub.token)) == 100


def test_push_to_hub_and_load_are_inverse(local_hub: LocalHub) -> None:
    rows = datasets.Dataset.from_list([{"n": number, "text": "é" * number} for number in range(20)])
    rows.push_to_hub("user/pushed")
    loaded = datasets.load_dataset("user/pushed", split="train")
    assert loaded.to_list() == rows.to_list()
