"""Watermarks stay few and small, and none is ever lost: folded, paged, by whichever version they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd

from hubsync import Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.verify import verify
from hubsync.model.commit import Watermark
from hubsync.model.watermarks import FOLD_FROM, RemoteWatermarks, decode_watermarks, join_fixed, watermark_files
from tests.committer.test_folders import MANY
from tests.conftest import Dataset


def old_marks(dataset: Dataset, count: int) -> None:
    """Leave the watermarks of ephemeral jobs, as earlier versions wrote them, and the shards that they name."""
    operations = []
    for n in range(count):
        mark = {"writer": f"{n:08x}", "epoch": 1, "next": {}, "rows": 0, "offsets": {f"source {n}": n}}
        operations.append(CommitOperationAdd(f".hubsync/{n:08x}.json", json.dumps(mark, indent=2).encode()))
    dataset.api.create_repo(dataset.repo, repo_type="dataset", exist_ok=True)
    dataset.api.create_commit(dataset.repo, operations, commit_message="Jobs", repo_type="dataset")


def marks_at_head(dataset: Dataset) -> RemoteWatermarks:
    paths = [path for path in dataset.paths(".json") if path.startswith(".hubsync/")]
    return RemoteWatermarks.of({path: decode_watermarks(dataset.read(path), path) for path in paths})


def requests_of(hub: LocalHub, work: Callable[[], object]) -> int:
    hub.clear_requests()
    work()
    return len(hub.requests())


@pytest.mark.parametrize(
    "count", [FOLD_FROM, pytest.param(2_500, marks=pytest.mark.slow("makes and reads thousands of files"))]
)
def test_a_new_spool_folds_watermarks_and_the_next_one_opens_with_few_requests(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], tmp_path: Path, count: int
) -> None:
    old_marks(dataset, count)
    hub.limits.update(folder_entries=count)

    def job(spool: str, n: int) -> None:
        with uploader(spool=tmp_path / spool, **MANY) as up:
            up.put([{"id": n}]).wait()
            assert [up.offset(f"source {n}") for n in (0, count // 2, count - 1)] == [0, count // 2, count - 1]
            assert up.put([{"id": -1}], offset=count // 2, source=f"source {count // 2}", ack="spooled").replayed

    job("first", 1)
    assert len(marks_at_head(dataset).single) <= 1
    assert requests_of(hub, lambda: job("second", 2)) <= 16
    assert dataset.ids() == [1, 2]
    assert len(marks_at_head(dataset).by_writer) == count + 2


@pytest.mark.parametrize(
    "fault",
    [
        "stale",
        "lost response",
        *(pytest.param(fault, marks=pytest.mark.slow("like the others")) for fault in ("503", "reset")),
    ],
)
def test_a_fold_that_fails_or_races_loses_no_watermark(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], fault: str
) -> None:
    old_marks(dataset, FOLD_FROM + 3)
    if fault == "stale":
        hub.faults.add(Fault.stale(on="commit", times=1))
    elif fault == "lost response":
        hub.faults.add(Fault.reset(when="after", on="commit", times=1))
    elif fault == "503":
        hub.faults.add(Fault.status(503, on="commit", times=2))
    else:
        hub.faults.add(Fault.reset(on="commit", times=1))
    with uploader(**MANY) as up:
        up.put([{"id": 1}]).wait()
        assert up.offset("source 34") == 34
    found = marks_at_head(dataset)
    assert len(found.single) <= 1
    assert {f"{n:08x}" for n in range(FOLD_FROM + 3)} <= found.by_writer.keys()
    assert dataset.ids() == [1]


@pytest.mark.slow("runs six jobs")
def test_a_writer_whose_watermark_was_folded_continues(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    def job(spool: str, first: int) -> None:
        with uploader(spool=tmp_path / spool, **MANY) as up:
            for n in range(first, first + 3):
                up.put([{"id": n}], offset=n)

    job("ours", 0)
    shutil.copytree(tmp_path / "ours", tmp_path / "copy")
    job("ours", 3)
    old_marks(dataset, FOLD_FROM)
    with uploader(spool=tmp_path / "other", **MANY):
        pass
    assert not [mark for mark in marks_at_head(dataset).single.values() if mark.next]
    job("ours", 6)
    shutil.rmtree(tmp_path / "ours")
    shutil.copytree(tmp_path / "copy", tmp_path / "ours")
    with uploader(spool=tmp_path / "other", **MANY):
        pass
    with uploader(spool=tmp_path / "ours", **MANY) as up:
        assert up.offset() == 8
        for n in range(10):
            up.put([{"id": n}], offset=n)
    assert dataset.ids() == list(range(10))
    report = verify("user/rows", endpoint=hub.endpoint, token=hub.token, content=True)
    assert report.differences == ()
    assert report.rows == 10


def test_a_full_folder_of_watermarks_is_folded_by_a_job_that_runs(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader]
) -> None:
    up = uploader(**MANY).open()
    up.offset()  # so the spool has read that there are no watermarks
    old_marks(dataset, 40)
    hub.limits.update(folder_entries=40)
    up.put([{"id": 1}])
    up.close()
    assert dataset.ids() == [1]
    assert len(marks_at_head(dataset).single) == 1


def test_an_invalid_folded_file_is_never_replaced(
    dataset: Dataset, uploader: Callable[..., Uploader], caplog: pytest.LogCaptureFixture
) -> None:
    old_marks(dataset, FOLD_FROM)
    broken = CommitOperationAdd(".hubsync/folded/00000.json", b"{")
    dataset.api.create_commit(dataset.repo, [broken], commit_message="Edit", repo_type="dataset")
    with uploader(**MANY) as up:
        assert up.offset("source 3") == 3
        up.put([{"id": 1}])
    assert dataset.read(".hubsync/folded/00000.json") == b"{"
    assert "folded/00000.json" in caplog.text
    assert dataset.ids() == [1]


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubsync.model.watermarks._PAGE_BYTES", 1_000)
    monkeypatch.setattr("hubsync.model.watermarks._FOLDED_BYTES", 3_000)


@pytest.mark.slow("commits many shards")
@pytest.mark.usefixtures("small_pages")
def test_many_sources_are_paged_and_known_after_a_lost_disk(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    def put(up: Uploader, numbers: range) -> list[Any]:
        return [up.put([{"id": n}], offset=n, source=f"file {n:04d}", ack="spooled") for n in numbers]

    for first in (0, 50):
        with uploader(commit=MANY["commit"]) as up:
            for start in range(first, first + 50, 10):
                put(up, range(start, start + 10))
                up.flush()
    written = [len(dataset.read(path)) for path in dataset.paths(".json") if path.startswith(".hubsync/")]
    assert max(written) < 2_000
    with uploader(spool=tmp_path / "new", **MANY) as up:
        assert all(receipt.replayed for receipt in put(up, range(100)))
        put(up, range(100, 105))
    old_marks(dataset, FOLD_FROM)
    with uploader(spool=tmp_path / "newer", **MANY) as up:
        assert all(receipt.replayed for receipt in put(up, range(105)))
    assert len(marks_at_head(dataset).folded) > 1
    with uploader(commit=MANY["commit"]) as up:  # the first spool, whose pages others folded
        put(up, range(105, 110))
    assert dataset.ids() == list(range(110))
    assert verify("user/rows", spool=tmp_path / "spool", endpoint=hub.endpoint, token=hub.token).differences == ()


@pytest.mark.usefixtures("small_pages")
def test_a_watermark_that_an_earlier_version_let_grow_is_paged_at_once() -> None:
    mark = Watermark("w", 1, {"data/*.jsonl": 3}, 7, {f"file {n}": n for n in range(500)})
    after, files = watermark_files(mark)
    assert (after.offsets, after.next, after.pages) == ({}, mark.next, len(files) - 1)
    found = RemoteWatermarks.of({file.path: decode_watermarks(file.content, file.path) for file in files})
    assert found.by_writer["w"].offsets == mark.offsets
    assert found.by_writer["w"].rows == 7
    assert watermark_files(after)[1][0] == files[0]


def test_a_watermark_without_pages_is_written_as_by_earlier_versions() -> None:
    _, [file] = watermark_files(Watermark("w", 1, {"data/*.jsonl": 3}, 7, {"default": 9}))
    assert json.loads(file.content) == {
        "writer": "w", "epoch": 1, "next": {"data/*.jsonl": 3}, "rows": 7, "offsets": {"default": 9},
    }  # fmt: skip


def test_why_columns_keep_their_types_is_folded_and_merged() -> None:
    one = Watermark("a" * 8, 1, {"data/*": 2}, 1, fixed={"default": {"answer": "text"}})
    new = Watermark("b" * 8, 1, {"data/*": 2}, 1, fixed={})
    old = Watermark("c" * 8, 1, {"data/*": 2}, 1)
    page = Watermark("a" * 8, 1, offsets={"source": 1})
    marks = {f"{n}.json": mark for n, mark in enumerate((one, new, old, page))}
    after, files, _ = RemoteWatermarks(marks).fold()
    read = RemoteWatermarks.of({file.path: decode_watermarks(file.content, file.path) for file in files})
    assert [mark.fixed for mark in read.by_writer.values()] == [{"default": {"answer": "text"}}, {}, None]
    assert after.by_writer == read.by_writer
    assert join_fixed(one.fixed, {"default": {"id": "declared"}, "other": {}}) == {
        "default": {"answer": "text", "id": "declared"}, "other": {}
    }  # fmt: skip
