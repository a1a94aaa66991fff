"""Watermarks stay few and small, and none is ever lost: folded, paged, by whichever version they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd

from hubsync import OffsetUnknown, RetryPolicy, Uploader
from hubsync.errors import DatasetConflict
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.verify import verify
from hubsync.model.commit import Watermark
from hubsync.model.watermarks import FOLD_FROM, RemoteWatermarks, decode_watermarks, join_fixed, watermark_files
from hubsync.telemetry.status import State
from tests.committer.test_folders import MANY
from tests.conftest import Commands, Dataset, rounds
from tests.waiting import until
from tests.zygote import Program


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


def test_a_new_spool_folds_watermarks_and_the_next_one_opens_with_few_requests(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    count = FOLD_FROM
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
def small_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold 8 files, then 16, then 32 in each commit, and read 4 in each step."""
    for name, value in (
        ("committer.seeding.FIRST_FOLD", 8),
        ("committer.seeding.LARGEST_FOLD", 32),
        ("committer.seeding._STEP", 4),
        ("model.watermarks.LARGEST_FOLD", 32),
        ("model.watermarks.FOLD_FROM", 8),
    ):
        monkeypatch.setattr(f"hubsync.{name}", value)


PATIENT = RetryPolicy(initial_s=0.01, max_s=0.05, open_timeout_s=600)  # so that `open` cuts no request off


def read_files(hub: LocalHub) -> list[str]:
    """Return the single watermarks that were read; the Hub redirects each once."""
    done = (served.path for served in hub.requests() if served.operation == "resolve" and served.status == 200)
    paths = [path.partition("?")[0] for path in done]
    return [path.rpartition("/")[2] for path in paths if "/.hubsync/" in path and "/folded/" not in path]


@pytest.mark.usefixtures("small_folds")
def test_many_watermarks_are_folded_while_others_are_read_and_each_is_read_once(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader]
) -> None:
    old_marks(dataset, 60)
    hub.clear_requests()
    with uploader(**MANY, retry=PATIENT) as up:
        assert [up.offset(f"source {n}") for n in (0, 30, 59)] == [0, 30, 59]
        assert up.stats().state == State()
        up.put([{"id": 1}])
    assert len(read_files(hub)) == len(set(read_files(hub))) == 60
    commits = dataset.api.list_repo_commits(dataset.repo, repo_type="dataset")
    folds = [one.title for one in reversed(commits) if one.title.startswith("Fold")]
    assert folds == ["Fold 8 watermarks", "Fold 16 watermarks", "Fold 32 watermarks"]
    assert len([served for served in hub.requests() if served.operation != "resolve"]) <= 20
    assert len(marks_at_head(dataset).by_writer) == 61


@pytest.mark.usefixtures("small_folds")
def test_a_job_that_ends_while_it_reads_leaves_fewer_files_to_the_next(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    old_marks(dataset, 60)
    hub.faults.add(Fault.hang(on="resolve", after=70))
    first = uploader(spool=tmp_path / "first", **MANY, retry=RetryPolicy(open_timeout_s=0.3)).open()
    until(lambda: hub.faults.held)
    with pytest.raises(OffsetUnknown, match=r"reading the .* of 60 files; the Hub has not answered .*What was read"):
        first.offset("source 59")
    first.close()
    hub.faults.clear()
    left = len(marks_at_head(dataset).single)
    assert left <= 60 - 8
    hub.clear_requests()
    with uploader(spool=tmp_path / "second", **MANY) as up:  # the first one's disk is lost
        assert up.offset("source 59") == 59
    assert len(read_files(hub)) == left
    assert len(marks_at_head(dataset).by_writer) >= 60


@pytest.mark.usefixtures("small_folds")
@pytest.mark.parametrize(
    "fault",
    [Fault.status(503, on="resolve", probability=0.2), Fault.reset(on="resolve", times=9)],
    ids=lambda f: f.kind,
)
def test_an_error_does_not_make_files_be_read_again(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], fault: Fault
) -> None:
    old_marks(dataset, 30)
    hub.clear_requests()
    hub.faults.add(fault)
    with uploader(**MANY, retry=PATIENT) as up:
        assert up.offset("source 29") == 29
        hub.faults.clear()
    assert len(read_files(hub)) == len(set(read_files(hub))) == 30


@pytest.mark.usefixtures("small_folds")
@pytest.mark.parametrize("times", [2, 20])
def test_commits_of_others_between_folds_make_no_file_be_read_again(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], times: int
) -> None:
    old_marks(dataset, 28)
    hub.clear_requests()
    hub.faults.add(Fault.stale(on="commit", after=1, times=times))
    with uploader(**MANY, retry=PATIENT) as up:
        assert up.offset("source 27") == 27
        hub.faults.clear()
    assert len(read_files(hub)) == len(set(read_files(hub))) == 28
    found = marks_at_head(dataset)
    assert (len(found.by_writer), len(found.single)) == (28, 4 if times == 2 else 20)


@pytest.mark.usefixtures("small_folds")
def test_two_new_spools_may_fold_at_the_same_time(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    old_marks(dataset, 60)
    hub.faults.add(Fault.latency(0.01, on=["resolve", "commit"]))

    def job(n: int) -> None:
        with uploader(spool=tmp_path / f"spool {n}", **MANY) as up:
            assert [up.offset(f"source {n}") for n in (0, 30, 59)] == [0, 30, 59]
            up.put([{"id": n}], offset=n, source=f"job {n}")

    with ThreadPoolExecutor() as pool:
        list(pool.map(job, range(2)))
    found = marks_at_head(dataset)
    assert len(found.by_writer) == 62
    assert {mark.offsets.get(f"job {n}") for n in range(2) for mark in found.by_writer.values()} == {None, 0, 1}
    assert dataset.ids() == [0, 1]


@pytest.mark.usefixtures("small_folds")
def test_a_damaged_watermark_among_many_is_kept_and_reported(
    dataset: Dataset, uploader: Callable[..., Uploader], caplog: pytest.LogCaptureFixture
) -> None:
    old_marks(dataset, 40)
    broken = CommitOperationAdd(".hubsync/00000005.json", b"{")
    dataset.api.create_commit(dataset.repo, [broken], commit_message="Edit", repo_type="dataset")
    with uploader(**MANY) as up:
        assert (up.offset("source 4"), up.offset("source 5"), up.offset("source 39")) == (4, None, 39)
    assert dataset.read(".hubsync/00000005.json") == b"{"
    assert caplog.text.count("00000005.json of user/rows is not a watermark") == 1
    files = [path for path in dataset.paths(".json") if path.startswith(".hubsync/")]
    assert len(files) <= 8 + 2


MANY_FILES = rounds(400, 2_000)  # 9,990, which the Hub allows in a folder, take four minutes
JOB = """
import logging, sys
from hubsync import Uploader
from hubsync.committer import seeding
from hubsync.model import watermarks
logging.basicConfig()
last = int(sys.argv[4]) - 1
seeding._STEP, seeding.FIRST_FOLD = (last + 1) // 40, (last + 1) // 20  # as in a folder of 2,000
seeding.LARGEST_FOLD = watermarks.LARGEST_FOLD = (last + 1) // 2
watermarks.FOLD_FROM = (last + 1) // 63
with Uploader("user/rows", endpoint=sys.argv[1], token=sys.argv[2], spool=sys.argv[3]) as up:
    print(up.offset(f"source {last}"), up.offset("source 0"), flush=True)
    up.put([{"id": 1}], offset=last + 1, source=f"source {last}")
"""


@pytest.mark.slow("reads hundreds of files at 50 ms a request")
def test_a_folder_full_of_watermarks_is_read_once_even_if_the_job_is_killed(
    hub: LocalHub, dataset: Dataset, run: Commands, tmp_path: Path
) -> None:
    old_marks(dataset, MANY_FILES)
    hub.clear_requests()
    hub.faults.add(Fault.latency(0.05))

    def start(spool: str) -> Program:
        return run.python("-c", JOB, hub.endpoint, hub.token, str(tmp_path / spool), str(MANY_FILES))

    def finish(spool: str) -> tuple[str, str]:
        with start(spool) as job:
            return job.communicate()

    with start("first") as job:
        until(lambda: len(hub.requests()) > MANY_FILES * 4 // 5, every_s=0.1)
        job.kill()
        job.wait()
    said, log = finish("second")  # on another machine
    assert said.split() == [f"{MANY_FILES - 1}", "0"], log
    read = read_files(hub)
    assert len(set(read)) == MANY_FILES
    assert len(read) <= MANY_FILES * 5 // 4  # the job was killed before it folded these
    others = [served for served in hub.requests() if served.operation != "resolve"]
    assert len(others) <= 200
    hub.faults.clear()
    found = marks_at_head(dataset)
    assert (len(found.single), len(found.by_writer)) == (1, MANY_FILES + 1)
    assert requests_of(hub, lambda: finish("third")) <= 20
    assert dataset.ids() == [1]


@pytest.mark.usefixtures("small_folds")
@pytest.mark.parametrize("change", ["deleted", "squashed"])
def test_files_that_change_while_they_are_read_are_listed_again(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], change: str
) -> None:
    old_marks(dataset, 40)
    hub.clear_requests()
    hub.faults.add(Fault.hang(on="resolve", after=4))
    up = uploader(**MANY, retry=RetryPolicy(initial_s=0.01, max_s=0.05, open_timeout_s=0.3)).open()
    until(lambda: hub.faults.held)
    if change == "deleted":
        dataset.api.delete_file(".hubsync/00000000.json", dataset.repo, repo_type="dataset")
    else:
        dataset.api.super_squash_history(dataset.repo, repo_type="dataset")
    hub.faults.clear()
    up.put([{"id": 1}]).wait()
    up.flush()
    assert (up.offset("source 0"), up.offset("source 39")) == (None if change == "deleted" else 0, 39)
    up.close()
    assert len(marks_at_head(dataset).by_writer) == (40 if change == "deleted" else 41)


@pytest.mark.usefixtures("small_folds")
def test_without_quota_for_commits_the_watermarks_are_only_read(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader]
) -> None:
    old_marks(dataset, 40)
    hub.faults.add(Fault.rate_limit("commits", on="commit"))
    with uploader(**MANY) as up:
        assert up.offset("source 39") == 39
        assert len(marks_at_head(dataset).single) == 40
        hub.faults.clear()


@pytest.mark.usefixtures("small_folds")
def test_a_spool_that_comes_back_reads_no_other_writers_files(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    with uploader(spool=tmp_path / "ours", **MANY) as up:
        up.put([{"id": 1}], offset=1)
    old_marks(dataset, 15)
    with uploader(spool=tmp_path / "other", **MANY):
        pass
    assert not [mark for mark in marks_at_head(dataset).single.values() if mark.next]
    old_marks(dataset, 40)
    hub.clear_requests()
    with uploader(spool=tmp_path / "ours", **MANY) as up:
        assert up.offset() == 1
    assert read_files(hub) == []


@pytest.mark.usefixtures("small_folds")
def test_a_dataset_that_cannot_be_added_to_is_refused_before_its_watermarks_are_read(
    hub: LocalHub, dataset: Dataset, uploader: Callable[..., Uploader]
) -> None:
    old_marks(dataset, 40)
    add = CommitOperationAdd(".huggingface.yaml", b"configs: []")
    dataset.api.create_commit(dataset.repo, [add], commit_message="Edit", repo_type="dataset")
    hub.faults.add(Fault.hang(on="resolve"))
    with pytest.raises(DatasetConflict, match="overrides the card"):
        uploader(**MANY).open()


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
    files, _ = RemoteWatermarks(marks).fold()
    read = RemoteWatermarks.of({file.path: decode_watermarks(file.content, file.path) for file in files})
    assert [mark.fixed for mark in read.by_writer.values()] == [{"default": {"answer": "text"}}, {}, None]
    assert RemoteWatermarks(marks).by_writer == read.by_writer
    assert join_fixed(one.fixed, {"default": {"id": "declared"}, "other": {}}) == {
        "default": {"answer": "text", "id": "declared"}, "other": {}
    }  # fmt: skip
