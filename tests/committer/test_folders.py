"""No folder of the dataset reaches the Hub's limit, and a full one stops no rows."""

from __future__ import annotations

import json
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd

from hubsync import CommitPolicy, ShardPolicy, Uploader, reader
from hubsync.destinations.hub.responses import classify
from hubsync.errors import FolderFullError, NotDrained
from hubsync.localhub import LocalHub
from hubsync.localhub.pytest_plugin import point_at
from hubsync.maintenance.verify import verify
from hubsync.model.layout import Layout, Part
from tests.conftest import Dataset

MANY = {"shard": ShardPolicy(max_rows=1), "commit": CommitPolicy(per_hour=1_000_000, max_files=10)}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight shards a folder as the spool counts, and 24 whoever added them."""
    for module, name, value in (
        ("spool.folders", "PART_FILES", 8),
        ("committer.folder_guard", "PART_FILES", 8),
        ("committer.folder_guard", "MAX_FOLDER_FILES", 24),
    ):
        monkeypatch.setattr(f"hubsync.{module}.{name}", value)


def sizes(dataset: Dataset) -> Mapping[str, int]:
    """Return how many entries each folder has, files and folders."""
    entries = {
        "/".join(parts[:depth])
        for path in dataset.api.list_repo_files(dataset.repo, repo_type="dataset")
        for parts in [path.split("/")]
        for depth in range(1, len(parts) + 1)
    }
    return Counter(entry.rpartition("/")[0] for entry in entries)


def put(up: Uploader, numbers: range) -> None:
    for n in numbers:
        up.put([{"id": n}])


def fill(dataset: Dataset, folder: str, files: int) -> None:
    """Add files to a folder, as an earlier version or someone else did."""
    operations = [
        CommitOperationAdd(f"{folder}/train-0badcafe-{n:05d}.jsonl", json.dumps({"id": -n}).encode())
        for n in range(1, files + 1)
    ]
    shown = f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {folder}/train-*.jsonl"
    operations.append(CommitOperationAdd("README.md", f"---\n{shown}\n---\n".encode()))
    dataset.api.create_repo(dataset.repo, repo_type="dataset", exist_ok=True)
    dataset.api.create_commit(dataset.repo, operations, commit_message="Fill", repo_type="dataset")


@pytest.mark.usefixtures("small_parts")
@pytest.mark.slow("uploads many shards")
@pytest.mark.parametrize(
    "path", [None, "{config}/{split}-{seq:05d}.jsonl", "{split}/{writer}/{seq}.jsonl", "{split}-{seq}.jsonl"]
)
def test_later_shards_go_to_numbered_folders_and_are_all_found(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], path: str | None
) -> None:
    with uploader(path=path, **MANY) as up:
        put(up, range(30))
    paths = dataset.paths()
    assert sum("part-" not in path for path in paths) == 8
    assert {part for path in paths for part in re.findall(r"part-\d+", path)} == {"part-0001", "part-0002", "part-0003"}
    with uploader(path=path, **MANY) as up:
        put(up, range(30, 40))
    assert max(sizes(dataset).values()) <= 8 + 7
    assert dataset.ids() == list(range(40))
    found = reader.rows("user/rows", endpoint=hub.endpoint, token=hub.token)
    assert sorted(row["id"] for row in found) == list(range(40))
    if path is not None and "{writer}" not in path:
        assert [shard.sequence for shard in reader.shards("user/rows", endpoint=hub.endpoint, token=hub.token)] == [
            *range(40)
        ]
    assert verify("user/rows", endpoint=hub.endpoint, token=hub.token, content=True).differences == ()


@pytest.mark.slow("uploads many shards")
@pytest.mark.usefixtures("small_parts")
def test_several_writers_and_machines_share_the_count(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    spools = [tmp_path / "a", tmp_path / "a", tmp_path / "b"]

    def work(n: int) -> None:
        with uploader(spool=spools[n], **MANY) as up:
            put(up, range(n * 30, n * 30 + 30))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert dataset.ids() == list(range(90))
    assert max(sizes(dataset).values()) <= 24
    assert verify("user/rows", endpoint=hub.endpoint, token=hub.token).differences == ()


@pytest.mark.slow("uploads many shards")
@pytest.mark.parametrize("files", [28, 30])
def test_a_folder_that_is_full_already_stops_nothing(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], files: int
) -> None:
    fill(dataset, "data", files)
    hub.limits.update(folder_entries=30)
    with uploader(**MANY) as up:
        put(up, range(40))
        up.flush()
        assert up.stats().spool.dead == 0
    assert [n for n in dataset.ids() if n >= 0] == list(range(40))
    assert max(sizes(dataset).values()) <= 30
    found = reader.rows("user/rows", endpoint=hub.endpoint, token=hub.token)
    assert sorted(row["id"] for row in found) == [*range(-files, 0), *range(40)]


def test_a_full_folder_of_someone_else_blocks_and_says_which(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        fill(dataset, name, 1)
    hub.limits.update(folder_entries=3)
    up = uploader(**MANY)
    up.open()
    up.put([{"id": 1}])
    with pytest.raises((FolderFullError, NotDrained), match="directories: /"):
        up.close(timeout=3)
    hub.limits.update(folder_entries=30)
    with uploader(**MANY):
        pass
    assert 1 in dataset.ids()


@pytest.mark.slow("loads with datasets")
@pytest.mark.usefixtures("small_parts")
def test_load_dataset_returns_the_rows_of_all_folders(
    hub: LocalHub, uploader: Callable[..., Uploader], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from datasets import load_dataset

    with uploader(**MANY) as up, uploader(config="other", path="{config}/{split}-{seq:05d}.jsonl", **MANY) as other:
        put(up, range(20))
        put(other, range(20))
    point_at(hub, monkeypatch, tmp_path / "hf")
    for config in ("default", "other"):
        assert sorted(load_dataset("user/rows", config, split="train")["id"][:]) == list(range(20))
        streamed = load_dataset("user/rows", config, split="train", streaming=True)
        assert sorted(row["id"] for row in streamed) == list(range(20))


@pytest.mark.slow("uploads many shards")
def test_shards_that_an_earlier_version_sealed_move_on_if_their_folder_is_full(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.stop()
    with pytest.raises(NotDrained):  # more sealed in one folder than it may hold: the old layout
        up = uploader(**MANY)
        up.open()
        put(up, range(60))
        up.close(timeout=0.5)
    hub.limits.update(folder_entries=50)
    monkeypatch.setattr("hubsync.committer.folder_guard.MAX_FOLDER_FILES", 25)
    hub.start()
    with uploader(**MANY) as up:
        up.flush()
        assert up.stats().spool.dead == 0
    assert dataset.ids() == list(range(60))
    assert max(sizes(dataset).values()) <= 30


@pytest.mark.parametrize(
    ("named", "folders"),
    [
        ("/data/expression.lance/_transactions/", ("/data/expression.lance/_transactions/",)),
        ("/data/, /my files/b/", ("/data/", "/my files/b/")),
        ("/data/\n/other/", ("/data/", "/other/")),
        ("/", ("/",)),
    ],
)
def test_the_hubs_answer_is_an_error_of_its_own(named: str, folders: tuple[str, ...]) -> None:
    text = (
        "Your push was rejected because it contains too many files per directory. Each directory in your git repo can "
        f"only contain up to 10000 files. Offending reference: refs/heads/main Offending directories: {named}"
    )
    error = classify("commit to user/rows", 400, {}, json.dumps({"error": text}).encode(), has_effect=True)
    assert isinstance(error, FolderFullError)
    assert (error.folders, error.limit) == (folders, 10_000)


@pytest.mark.parametrize(
    ("template", "part", "path", "glob"),
    [
        ("", Part(2), "data/part-0002/train-w-00007.jsonl", "data/part-*/train-*.jsonl"),
        ("", Part(2, is_above=True), "part-0002/data/train-w-00007.jsonl", "part-*/data/train-*.jsonl"),
        ("{split}/{writer}/{seq}.jsonl", Part(1), "train/part-0001/w/7.jsonl", "train/part-*/*/*.jsonl"),
        ("{split}-{seq}.jsonl", Part(1), "part-0001/train-7.jsonl", "part-*/train-*.jsonl"),
        ("{split}/{seq}/x.jsonl", Part(1), "train/part-0001/7/x.jsonl", "train/part-*/*/x.jsonl"),
        ("", Part(), "data/train-w-00007.jsonl", "data/train-*.jsonl"),
    ],
)
def test_a_part_is_inserted_where_paths_begin_to_differ(template: str, part: Part, path: str, glob: str) -> None:
    layout = Layout(template=template)
    assert layout.path("w", 7, part) == path
    assert layout.glob_of(path) == glob
    assert layout.like(path, "w", 7) == path
    assert layout.part_folder(path).count("/") == layout.folder.count("/") + (1 if part.number and layout.folder else 0)
