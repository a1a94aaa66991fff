"""Verifying a dataset on the embedded Hub: a real uploader fills it, and then someone tampers with it."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import anyio.lowlevel
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from hubsync import (
    HubsyncError,
    RepoMissingError,
    ShardPolicy,
    ShardsRefused,
    SpoolError,
    SpoolMismatch,
    TransientError,
    Uploader,
)
from hubsync._runtime.clock import SystemClock
from hubsync.cli.verify import print_report
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.errors import RateLimitedError
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.verify import Report, verify
from hubsync.model.commit import BranchTip
from hubsync.model.target import Target, default_directory
from hubsync.spool.database import Catalogue
from tests.conftest import Commands, Done

Make = Callable[..., Uploader]
Check = Callable[..., Report]
Verifying = Callable[..., Done]
REPO = "user/rows"
SHARED = "{config}/{split}-{seq:05d}.jsonl"
FIVE = ShardPolicy(linger_s=3600, max_rows=5)


class NoWait(SystemClock):
    """A clock whose sleeps end at once."""

    async def sleep(self, seconds: float) -> None:
        await anyio.lowlevel.checkpoint()


class Tamper:
    """Changes the dataset with huggingface_hub, as another user would."""

    def __init__(self, hub: LocalHub) -> None:
        self.api = HfApi(endpoint=hub.endpoint, token=hub.token)
        self._given = {"repo_type": "dataset", "commit_message": "tamper"}

    def read(self, path: str) -> bytes:
        local = self.api.hf_hub_download(REPO, path, repo_type="dataset")
        return Path(local).read_bytes()

    def write(self, **files: bytes) -> None:
        self.put(files)

    def put(self, files: dict[str, bytes]) -> None:
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        self.api.create_commit(REPO, operations, **self._given)  # type: ignore[arg-type]

    def delete(self, path: str) -> None:
        self.api.create_commit(REPO, [CommitOperationDelete(path)], **self._given)  # type: ignore[arg-type]

    def mark(self, writer: str, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a watermark."""
        path = f".hubsync/{writer}.json"
        value = json.loads(self.read(path))
        change(value)
        self.put({path: json.dumps(value).encode()})


@pytest.fixture
def tamper(hub: LocalHub) -> Tamper:
    return Tamper(hub)


@pytest.fixture
def check(hub: LocalHub) -> Check:
    def check(spool: Path | None = None, **given: Any) -> Report:
        given = {"endpoint": hub.endpoint, "token": hub.token, "clock": NoWait(), **given}
        return verify(given.pop("repo", REPO), spool=spool, **given)

    return check


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture(params=["regular", pytest.param("large", marks=pytest.mark.slow("the same tests with large files"))])
def mode(request: pytest.FixtureRequest, tamper: Tamper) -> str:
    """Shards as git blobs, and as LFS objects, which `.gitattributes` forces."""
    if request.param == "large":
        large(tamper)
    return str(request.param)


def large(tamper: Tamper) -> None:
    tamper.api.create_repo(REPO, repo_type="dataset")
    tamper.put({".gitattributes": b"*.jsonl filter=lfs diff=lfs merge=lfs -text\n"})


def write(uploader: Make, shards: int = 3, start: int = 0, **changes: Any) -> str:
    """`shards` shards of 5 rows each, put by one writer, whose name it returns."""
    with uploader(shard=FIVE, **changes) as up:
        for n in range(start, start + 5 * shards, 5):
            up.put([{"id": id} for id in range(n, n + 5)])
        up.flush()
        assert up.writer is not None
        return up.writer


def path_of(writer: str, number: int) -> str:
    return f"data/train-{writer}-{number:05d}.jsonl"


def kinds(report: Report) -> list[tuple[str, str]]:
    assert report.ok == (not report.differences)
    return [(difference.kind, difference.path) for difference in report.differences]


# An untouched dataset.


@pytest.mark.parametrize(("with_spool", "content"), [(False, False), (True, True)])
def test_an_untouched_dataset_has_no_differences(
    uploader: Make, check: Check, tamper: Tamper, mode: str, spool: Path, with_spool: bool, content: bool
) -> None:
    write(uploader)
    report = check(spool if with_spool else None, content=content)
    assert (report.differences, report.notes, report.ok) == ((), (), True)
    assert (report.writers, report.shards, report.rows, report.content) == (1, 3, 15, content)
    infos = list(tamper.api.list_repo_tree(REPO, "data", repo_type="dataset"))
    assert report.bytes == sum(info.size for info in infos)  # type: ignore[union-attr]
    assert [info.lfs is not None for info in infos] == [mode == "large"] * 3  # type: ignore[union-attr]
    assert report.commit == tamper.api.dataset_info(REPO).sha
    assert report.spool == (str(spool) if with_spool else None)


def test_plain_lfs_without_xet_agrees(
    uploader: Make, check: Check, tamper: Tamper, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    large(tamper)
    write(uploader)
    assert (check(spool, content=True).differences, check(spool).shards) == ((), 3)


def test_a_shard_of_many_megabytes_is_read_in_pieces(uploader: Make, check: Check, spool: Path) -> None:
    with uploader() as up:
        up.put([{"id": n, "text": os.urandom(1_000).hex()} for n in range(6_000)])
    report = check(spool, content=True)
    assert (report.differences, report.rows) == ((), 6_000)


@pytest.mark.slow("several jobs write")
def test_series_that_several_machines_share_agree(uploader: Make, check: Check, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(uploader, path=SHARED, spool=one)
    write(uploader, 2, start=50, path=SHARED, spool=two)
    write(uploader, 1, start=70, path=SHARED, spool=one)
    for spool in (None, one, two):
        report = check(spool, content=True)
        assert (report.differences, report.notes) == ((), ())
        assert (report.writers, report.shards, report.rows) == (2, 6, 30)


def test_several_configs_splits_and_templates_agree(uploader: Make, check: Check, spool: Path) -> None:
    write(uploader)
    write(uploader, 2, start=20, split="test")
    write(uploader, 2, start=40, config="other", path="{config}/{seq:02d}/{split}-{seq}.jsonl")
    report = check(spool, content=True)
    assert (report.differences, report.shards, report.rows) == ((), 7, 35)


def test_a_dataset_without_any_shard_agrees(uploader: Make, check: Check, spool: Path) -> None:
    uploader().open().close()
    assert (check(spool).ok, check(content=True).ok, check().shards) == (True, True, 0)


def test_another_branch_is_verified(uploader: Make, check: Check, tamper: Tamper) -> None:
    uploader().open().close()
    tamper.api.create_branch(REPO, branch="a/b", repo_type="dataset")
    write(uploader, revision="a/b", spool=None)
    assert check(revision="a/b", content=True).rows == 15
    assert check().shards == 0


def test_files_outside_the_series_are_ignored(uploader: Make, check: Check, tamper: Tamper, spool: Path) -> None:
    writer = write(uploader)
    copy = tamper.read(path_of(writer, 0))
    tamper.put({"old/rows.jsonl": copy, f"data/x-{writer}-1.jsonl": b"[]"})
    for report in (check(spool, content=True), check(content=True)):
        assert (report.ok, report.notes) == (True, ())


def test_other_files_that_the_card_shows_are_noted_and_copies_are_differences(
    uploader: Make, check: Check, tamper: Tamper, mode: str, spool: Path
) -> None:
    writer = write(uploader)
    copy, other = "data/train-copy.jsonl", "data/train-20261231-00001.jsonl"
    tamper.put({copy: tamper.read(path_of(writer, 0)), other: b'{"id":99}\n'})
    for report in (check(spool), check()):
        assert kinds(report) == [("repeat", copy)]
        assert "twice" in report.differences[0].found
        (note,) = report.notes
        assert note == f"{other} belongs to no writer, and the card shows it: its rows are part of the dataset"


@pytest.mark.slow("commits a thousand files")
def test_a_listing_of_several_pages_is_read_to_its_end(uploader: Make, check: Check, tamper: Tamper) -> None:
    uploader().open().close()
    tamper.put({f"a/{n}.md": b"x" for n in range(1_100)})
    write(uploader)
    assert check().shards == 3


# What the catalogue calls committed.


def test_a_deleted_shard_is_missing(uploader: Make, check: Check, tamper: Tamper, mode: str, spool: Path) -> None:
    writer = write(uploader)
    sha = tamper.api.get_paths_info(REPO, [path_of(writer, 1)], repo_type="dataset", expand=True)[0]
    tamper.delete(path_of(writer, 1))
    (missing,) = check(spool).differences
    assert (missing.kind, missing.path, missing.found) == ("missing", path_of(writer, 1), "nothing")
    assert sha.last_commit is not None
    assert sha.last_commit.oid in missing.expected
    assert sha.last_commit.oid in missing.hint
    (gap,) = check().differences
    assert (gap.kind, gap.path, gap.expected) == ("gap", f"data/train-{writer}-*.jsonl", "number 1")


@pytest.mark.parametrize("with_spool", [True, False])
def test_the_summary_counts_the_rows_that_remain(
    uploader: Make, check: Check, tamper: Tamper, spool: Path, capsys: pytest.CaptureFixture[str], with_spool: bool
) -> None:
    writer = write(uploader)
    tamper.delete(path_of(writer, 1))
    report = check(spool if with_spool else None)
    assert (report.rows, report.marked_rows) == (10, 15)
    print_report(report)
    assert "2 shards, 10 rows of 15 that were committed, " in capsys.readouterr().out
    if not with_spool:
        tamper.api.super_squash_history("user/rows", repo_type="dataset")
        report = check()
        assert report.rows is None
        print_report(report)
        assert "2 shards, at most 15 rows, " in capsys.readouterr().out


def test_a_gap_of_several_numbers_is_one_difference(uploader: Make, check: Check, tamper: Tamper) -> None:
    writer = write(uploader, 6)
    for number in (0, 2, 3, 5):
        tamper.delete(path_of(writer, number))
    gaps = check().differences
    assert [gap.expected for gap in gaps] == ["number 0", "numbers 2 to 3", "number 5"]
    assert {gap.kind for gap in gaps} == {"gap"}


def test_an_overwritten_shard_has_another_size_or_another_oid(
    uploader: Make, check: Check, tamper: Tamper, mode: str, spool: Path
) -> None:
    writer = write(uploader)
    old = tamper.read(path_of(writer, 1))
    tamper.put({path_of(writer, 0): b'{"id":0}\n', path_of(writer, 1): old.replace(b"5", b"7")})
    assert kinds(check(spool)) == [("size", path_of(writer, 0)), ("oid", path_of(writer, 1))]
    assert kinds(check()) == []
    assert kinds(check(content=True)) == [("rows", f"data/train-{writer}-*.jsonl")]


def test_a_shard_that_moved_from_git_to_lfs_is_the_same_shard(
    uploader: Make, check: Check, tamper: Tamper, spool: Path
) -> None:
    writer = write(uploader)
    content = tamper.read(path_of(writer, 0))
    tamper.put({".gitattributes": b"*.jsonl filter=lfs diff=lfs merge=lfs -text\n"})
    tamper.delete(path_of(writer, 0))
    tamper.put({path_of(writer, 0): content})
    (info,) = tamper.api.get_paths_info(REPO, [path_of(writer, 0)], repo_type="dataset")
    assert info.lfs is not None  # type: ignore[union-attr]
    assert check(spool, content=True).ok


# Numbers.


def test_a_copy_under_the_next_number_is_beyond_the_watermark_and_a_repeat(
    uploader: Make, check: Check, tamper: Tamper, mode: str, spool: Path
) -> None:
    writer = write(uploader)
    tamper.put({path_of(writer, 3): tamper.read(path_of(writer, 0))})
    expected = [("beyond", path_of(writer, 3)), ("repeat", path_of(writer, 3))]
    assert kinds(check()) == expected
    assert kinds(check(spool)) == expected
    assert kinds(check(spool, content=True)) == [*expected, ("rows", f"data/train-{writer}-*.jsonl")]


def test_a_number_with_two_files_is_a_repeat(uploader: Make, check: Check, tamper: Tamper) -> None:
    writer = write(uploader)
    extra = f"data/train-{writer}-2.jsonl"
    tamper.put({extra: b'{"id":99}\n'})
    (repeat,) = check().differences
    assert (repeat.kind, repeat.expected) == ("repeat", "number 2 once")
    assert {repeat.path, repeat.found.split()[3]} == {extra, path_of(writer, 2)}


def test_the_same_shard_in_two_series_is_a_repeat(uploader: Make, check: Check, tamper: Tamper, spool: Path) -> None:
    one = write(uploader)
    write(uploader, 2, start=20, split="test")
    tamper.put({path_of(one, 3): tamper.read(f"data/test-{one}-00001.jsonl")})
    for given in (spool, None):
        (repeat,) = [difference for difference in check(given).differences if difference.kind == "repeat"]
        assert repeat.path == path_of(one, 3)
        assert f"data/test-{one}-00001.jsonl" in repeat.found


def test_the_spool_tells_a_copy_below_the_watermark_from_the_original(
    uploader: Make, check: Check, tamper: Tamper, spool: Path
) -> None:
    writer = write(uploader)
    copy = f"data/train-{writer}-1.jsonl"
    content = tamper.read(path_of(writer, 2))
    with_catalogue(spool, "UPDATE segments SET path = ? WHERE path = ?", "elsewhere", path_of(writer, 1))
    with_catalogue(spool, "UPDATE segments SET state = 'sealed' WHERE path = 'elsewhere'")
    tamper.delete(path_of(writer, 1))
    tamper.put({copy: content})
    assert kinds(check(spool)) == [("repeat", copy)]


def test_rows_that_the_job_put_twice_are_a_note_with_a_spool(uploader: Make, check: Check, spool: Path) -> None:
    write(uploader, 1)
    writer = write(uploader, 1)
    report = check(spool)
    assert report.ok
    assert report.notes == (
        f"{path_of(writer, 1)} holds the same as {path_of(writer, 0)}: the job put the same rows more than once",
    )
    assert kinds(check()) == [("repeat", path_of(writer, 1))]


def test_a_gap_that_waits_in_the_spool_is_a_note(uploader: Make, check: Check, tamper: Tamper, spool: Path) -> None:
    writer = write(uploader)
    tamper.delete(path_of(writer, 1))
    for state in ("sealed", "staged"):
        set_state(spool, path_of(writer, 1), state)
        report = check(spool)
        assert report.ok
        (note,) = report.notes
        assert f"data/train-{writer}-*.jsonl: not yet in this commit, but in the spool or a later one: 1" in note


def test_a_shard_in_the_dead_letter_is_a_note(
    uploader: Make, check: Check, hub: LocalHub, spool: Path, tmp_path: Path
) -> None:
    with uploader(path=SHARED) as up:
        up.put([{"id": 0}])
        up.flush()
        hub.faults.add(Fault.status(422, on="commit", times=4))
        up.put([{"id": 1}])
        with pytest.raises(ShardsRefused):
            up.flush()
        up.put([{"id": 2}], ack="committed")
    report = check(spool)
    assert report.ok
    (note,) = report.notes
    assert note.startswith("default/train-00001.jsonl (1 row) is in the dead letter: ")
    assert kinds(check()) == [("gap", "default/train-*.jsonl")]


def test_a_gap_that_the_spool_does_not_explain_is_a_difference(
    uploader: Make, check: Check, tamper: Tamper, spool: Path
) -> None:
    writer = write(uploader)
    tamper.mark(writer, lambda mark: mark["next"].update({f"data/train-{writer}-*.jsonl": 5}))
    (gap,) = check(spool).differences
    assert (gap.kind, gap.expected) == ("gap", "numbers 3 to 4")


def test_a_huge_number_in_a_watermark_costs_no_time(uploader: Make, check: Check, tamper: Tamper) -> None:
    writer = write(uploader)
    tamper.mark(writer, lambda mark: mark["next"].update({f"data/train-{writer}-*.jsonl": 10**15, "README.md": 1}))
    assert [difference.expected for difference in check(content=True).differences] == [
        f"numbers 3 to {10**15 - 1}",
        "number 0",
    ]


# Watermarks.


def test_a_deleted_watermark_is_a_difference(
    uploader: Make, check: Check, tamper: Tamper, mode: str, spool: Path
) -> None:
    writer = write(uploader)
    tamper.delete(f".hubsync/{writer}.json")
    for given in (spool, None):
        report = check(given, content=True)
        assert kinds(report) == [("watermark", f".hubsync/{writer}.json")]
        assert report.differences[0].found == "nothing"
    assert check(spool).shards == 3


def test_deleted_watermarks_of_shards_without_a_writers_name_are_reported(
    uploader: Make, check: Check, tamper: Tamper, spool: Path
) -> None:
    writer = write(uploader, path=SHARED)
    tamper.delete(f".hubsync/{writer}.json")
    assert kinds(check(spool)) == [("watermark", f".hubsync/{writer}.json")]
    assert kinds(check()) == [("watermark", ".hubsync")]


def test_a_watermark_that_was_set_back_is_a_difference(
    uploader: Make, check: Check, tamper: Tamper, spool: Path
) -> None:
    writer, series = write(uploader), "default"
    series = f"data/train-{writer}-*.jsonl"

    def put_back(mark: dict[str, Any]) -> None:
        mark["next"][series] = 2
        mark["rows"] = 10

    tamper.mark(writer, put_back)
    assert kinds(check()) == [("beyond", path_of(writer, 2))]
    report = check(spool)
    assert kinds(report) == [("watermark", f".hubsync/{writer}.json"), ("beyond", path_of(writer, 2))]
    assert report.differences[0].expected == f"at least rows 15, next of {series} 3"
    assert report.differences[0].found == f"rows 10, next of {series} 2"


def test_an_offset_that_was_set_back_is_a_difference(uploader: Make, check: Check, tamper: Tamper, spool: Path) -> None:
    with uploader() as up:
        up.put([{"id": 1}], offset=7, source="s")
        writer = up.writer
    assert writer is not None
    tamper.mark(writer, lambda mark: mark["offsets"].update(s=6))
    (lower,) = check(spool).differences
    assert (lower.kind, lower.expected, lower.found) == ("watermark", "at least offset of s 7", "offset of s 6")


def test_an_unreadable_watermark_is_a_difference(uploader: Make, check: Check, tamper: Tamper, spool: Path) -> None:
    writer = write(uploader)
    for content in (b"", b"\xff", b"{}", b'{"writer":"x","epoch":1}', b"[" * 100_000):
        tamper.put({f".hubsync/{writer}.json": content})
        assert kinds(check()) == [("watermark", f".hubsync/{writer}.json")], content[:99]
    assert kinds(check(spool)) == [("watermark", f".hubsync/{writer}.json")]


def test_a_copy_of_a_watermark_is_reported_and_not_counted(uploader: Make, check: Check, tamper: Tamper) -> None:
    writer = write(uploader)
    tamper.put({".hubsync/copy.json": tamper.read(f".hubsync/{writer}.json")})
    report = check(content=True)
    assert kinds(report) == [("watermark", ".hubsync/copy.json")]
    assert report.writers == 1


# Content.


@pytest.mark.slow("several jobs write")
def test_rows_are_compared_over_all_series_that_writers_share(
    uploader: Make, check: Check, tamper: Tamper, tmp_path: Path
) -> None:
    one = write(uploader, path=SHARED, spool=tmp_path / "one")
    two = write(uploader, 1, start=50, path=SHARED, spool=tmp_path / "two")
    write(uploader, 1, start=60, spool=tmp_path / "two")
    write(uploader, 1, start=70, spool=tmp_path / "one")
    write(uploader, 1, start=90, split="alone", spool=tmp_path / "three")
    tamper.mark(one, lambda mark: mark.update(rows=mark["rows"] + 1))
    (rows,) = check(content=True).differences
    own = sorted(f"data/train-{writer}-*.jsonl" for writer in (one, two))
    assert (rows.kind, rows.path) == ("rows", ", ".join([*own, "default/train-*.jsonl"]))
    assert (rows.expected, rows.found) == ("31 rows by the watermarks", "30 rows")


def test_lines_that_are_not_objects_are_differences(uploader: Make, check: Check, tamper: Tamper, mode: str) -> None:
    writer = write(uploader)
    lines = [b'{"id":1}', b"[1]", b"", b'{"a":"\xff"}', b'{"id":']
    tamper.put({path_of(writer, 1): b"\n".join(lines)})
    report = check(content=True)
    assert kinds(report) == [("content", path_of(writer, 1))]
    assert report.differences[0].found == "4 lines that are not, the first is line 2"
    assert report.rows == 15


def test_bytes_other_than_those_that_the_hub_lists_are_differences(
    uploader: Make, check: Check, tamper: Tamper, hub: LocalHub, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    large(tamper)
    writer = write(uploader)
    other, _, gone = paths = [path_of(writer, number) for number in range(3)]
    sizes = {}
    for path in paths:
        (info,) = tamper.api.get_paths_info(REPO, [path], repo_type="dataset")
        (stored,) = hub.directory.rglob(info.lfs.sha256)  # type: ignore[union-attr]
        old, sizes[path] = stored.read_bytes(), info.size  # type: ignore[union-attr]
        stored.chmod(0o600)
        stored.write_bytes(old.replace(b"4", b"7") if path == other else old[:-5])  # else it is shorter
        if path == gone:
            stored.unlink()
    differences = check(spool, content=True).differences
    contents = {difference.path: difference for difference in differences if difference.kind == "content"}
    assert contents.keys() == {*paths}
    for path, found in contents.items():
        assert found.expected.startswith(f"{sizes[path]} bytes of ")
        assert found.found.startswith(f"{sizes[path]} bytes of ") == (path == other)
    assert {difference.kind for difference in differences} == {"content", "rows"}
    assert check(spool).ok


def test_a_wrong_row_count_in_the_catalogue_is_a_difference(uploader: Make, check: Check, spool: Path) -> None:
    writer = write(uploader)
    with_catalogue(spool, "UPDATE segments SET rows = 4 WHERE path = ?", path_of(writer, 1))
    (rows,) = check(spool, content=True).differences
    assert (rows.kind, rows.path, rows.expected, rows.found) == ("rows", path_of(writer, 1), "4 rows", "5 rows")


def test_rows_lost_in_a_power_cut_are_a_note(uploader: Make, check: Check, spool: Path) -> None:
    writer = write(uploader)
    with_catalogue(spool, "UPDATE segments SET error = '7 bytes were lost' WHERE path = ?", path_of(writer, 1))
    assert (check(spool).ok, check(spool).notes) == (True, (f"{path_of(writer, 1)}: 7 bytes were lost",))


# A job that goes on meanwhile.


@pytest.mark.slow("verifies many times while a job runs")
def test_a_job_that_keeps_committing_causes_no_difference(uploader: Make, check: Check, spool: Path) -> None:
    done = threading.Event()

    def job() -> None:
        number = 0
        with uploader(shard=ShardPolicy(linger_s=3600, max_rows=2), path=SHARED) as up:
            while not done.is_set():
                up.put([{"id": number}])
                number += 1
                if number % 7 == 0:
                    up.flush()

    write(uploader, 1, path=SHARED)
    thread = threading.Thread(target=job)
    thread.start()
    try:
        reports = [check(spool, content=n % 2 == 0) for n in range(12)]
    finally:
        done.set()
        thread.join()
    assert [report.differences for report in reports] == [()] * 12
    assert reports[-1].shards > reports[0].shards
    assert check(spool, content=True).ok


@pytest.mark.parametrize("when", ["before", "after"])
def test_commits_while_the_head_is_read_cause_no_difference(
    uploader: Make, check: Check, spool: Path, monkeypatch: pytest.MonkeyPatch, when: Literal["before", "after"]
) -> None:
    ask = HubDataset.head
    with uploader() as up:

        def commit() -> None:
            up.put([{"id": 1}])
            up.flush()

        async def head(self: HubDataset) -> BranchTip:
            monkeypatch.setattr(HubDataset, "head", ask)
            if when == "before":
                await anyio.to_thread.run_sync(commit)
                return await ask(self)
            found = await ask(self)
            await anyio.to_thread.run_sync(commit)
            return found

        up.put([{"id": 0}])
        up.flush()
        monkeypatch.setattr(HubDataset, "head", head)
        report = check(spool, content=True)
        assert (report.differences, report.notes) == ((), ())
        assert report.shards == (2 if when == "before" else 1)
        assert check(spool).shards == 2


@pytest.mark.parametrize("state", ["open", "sealed", "staged"])
def test_a_number_committed_after_the_head_was_read_explains_its_gap(
    uploader: Make, check: Check, tamper: Tamper, spool: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Shards may overtake each other: number 1 is in the head, number 0 comes a commit later."""
    writer = write(uploader, 2)
    path, series = path_of(writer, 0), f"data/train-{writer}-*.jsonl"
    tamper.delete(path)
    set_state(spool, path, state)
    if state == "open":  # not numbered yet
        with_catalogue(spool, "UPDATE segments SET path = NULL, series = NULL, seq = NULL WHERE state = 'open'")
    ask = HubDataset.head

    async def head(self: HubDataset) -> BranchTip:
        found = await ask(self)
        change = "UPDATE segments SET path = ?, series = ?, seq = 0, state = 'committed' WHERE state = ?"
        with_catalogue(spool, change, path, series, state)
        return found

    monkeypatch.setattr(HubDataset, "head", head)
    report = check(spool)
    assert report.differences == ()
    (note,) = report.notes
    assert note.endswith("later one: 0")


def test_commits_while_the_content_is_read_do_not_count(uploader: Make, check: Check, spool: Path) -> None:
    with uploader() as up:
        up.put([{"id": 0}])
        up.flush()

        def progress(read: int, shards: int) -> None:
            assert (read, shards) == (1, 1)
            up.put([{"id": 1}])
            up.flush()

        report = check(spool, content=True, progress=progress)
        assert (report.differences, report.shards, report.rows) == ((), 1, 1)


# Errors.


def test_transient_errors_are_retried(uploader: Make, check: Check, hub: LocalHub, tamper: Tamper) -> None:
    large(tamper)
    write(uploader)
    faults = [hub.faults.add(Fault.status(503, on=on, times=2)) for on in ("tree", "resolve", "blob")]
    faults.append(hub.faults.add(Fault.reset(on="blob", times=1)))
    faults.append(hub.faults.add(Fault.hostile("truncated", on="blob", times=1)))
    assert check(content=True).ok
    assert [hub.faults.struck(fault) for fault in faults] == [2, 2, 2, 1, 1]
    hub.faults.add(Fault.status(503, on="tree"))
    with pytest.raises(TransientError, match="503"):
        check()


@pytest.mark.slow("waits for retries")
def test_a_hub_that_fails_halfway_is_an_error_not_a_difference(
    uploader: Make, check: Check, hub: LocalHub, tamper: Tamper
) -> None:
    large(tamper)
    writer = write(uploader, 8)
    hub.faults.add(Fault.status(503, on="blob"))
    report = check(content=True)
    assert [kind for kind, _ in kinds(report)] == ["content"] * 8 + ["rows"]
    assert {difference.path for difference in report.differences[:8]} == {path_of(writer, n) for n in range(8)}
    hub.faults.clear()
    hub.faults.add(Fault.rate_limit("retry-after", seconds=1, on="blob"))
    with pytest.raises(RateLimitedError):
        check(content=True)
    hub.faults.clear()
    with pytest.raises(TransientError, match="is unreachable"):
        check(content=True, progress=lambda read, shards: hub.stop())


@pytest.mark.slow("reads huge answers")
@pytest.mark.parametrize("shape", ["html", "garbage", "empty", "redirect", "wrong-shape", "huge"])
@pytest.mark.parametrize("on", ["tree", "resolve", "repo-info"])
def test_any_response_is_a_typed_error_or_a_difference(
    uploader: Make, check: Check, hub: LocalHub, shape: Any, on: str
) -> None:
    write(uploader, 1)
    hub.faults.add(Fault.hostile(shape, on=on))
    try:
        report = check(content=True)
    except HubsyncError as error:
        said = str(error)
    else:
        said = f"{REPO}: {report.ok}"
    assert said.startswith(REPO) or f" {REPO}" in said
    assert not said.endswith("True")


def test_a_public_dataset_needs_no_token_and_a_private_one_says_so(
    uploader: Make, check: Check, tamper: Tamper
) -> None:
    write(uploader)
    assert check(token=None, content=True).rows == 15
    tamper.api.update_repo_settings(REPO, repo_type="dataset", private=True)
    assert check().rows == 15
    with pytest.raises(RepoMissingError) as missing:
        check(token=None)
    assert "HF_TOKEN" in missing.value.__notes__[0]


def test_errors_are_typed(uploader: Make, check: Check, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    write(uploader)
    with pytest.raises(RepoMissingError):
        check(repo="user/nothing")
    with pytest.raises(RepoMissingError):
        check(revision="nothing")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubsyncError, match="HF_HUB_OFFLINE"):
        check()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hub.stop()
    with pytest.raises(TransientError, match="is unreachable"):
        check()


def test_a_missing_or_foreign_spool_is_refused_and_none_is_created(
    uploader: Make, check: Check, spool: Path, tmp_path: Path
) -> None:
    write(uploader)
    with pytest.raises(SpoolError, match="no spool"):
        check(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    uploader("user/other", spool=None).open().close()
    with pytest.raises(SpoolMismatch, match=f"{spool} belongs to another dataset: {REPO} --revision main --endpoint"):
        check(spool, repo="user/other")


# The command line.


@pytest.fixture
def verifying(run: Commands) -> Verifying:
    """`hubsync verify ARGS`."""
    return lambda *args, **environ: run("verify", *args, **environ)


def test_the_command_says_what_it_compared_and_exits_0(
    verifying: Verifying, uploader: Make, spool: Path, check: Check
) -> None:
    write(uploader)
    done = verifying(spool, REPO)
    assert (done.returncode, done.stderr) == (0, "")
    commit = check().commit
    assert done.stdout.startswith(f"{REPO} (main) at {commit}: everything agrees. 3 shards, 15 rows, ")
    assert "1 writer; content not read (--content); compared with" in done.stdout
    done = verifying(REPO, "--content", "--json")
    assert done.returncode == 0
    report = json.loads(done.stdout)
    assert (report["ok"], report["commit"], report["rows"], report["differences"]) == (True, commit, 15, [])
    assert (report["content"], report["spool"], report["repo"]) == (True, None, REPO)


@pytest.mark.slow("starts a process")
def test_the_command_lists_differences_and_exits_1(
    verifying: Verifying, uploader: Make, tamper: Tamper, hub: LocalHub, spool: Path
) -> None:
    writer = write(uploader, spool=None)
    default = default_directory(Target(hub.endpoint, REPO))
    tamper.delete(path_of(writer, 1))
    done = verifying(REPO)
    assert done.returncode == 1
    assert f"{REPO}: comparing with the spool {default}" in done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith(f"missing   {path_of(writer, 1)}: expected 5 rows, ")
    assert ": 1 difference. 2 shards" in last
    done = verifying("--no-spool", "--json", REPO)
    assert (done.returncode, done.stderr) == (1, "")
    (difference,) = json.loads(done.stdout)["differences"]
    assert difference.keys() == {"kind", "path", "expected", "found", "hint"}
    assert difference["kind"] == "gap"
    done = verifying("--no-spool", REPO, "--content")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["gap", "rows", REPO]


@pytest.mark.parametrize(
    "args", [[], ["a", "b/c", "d"], ["--no-spool", "a", "b/c"], ["no-repo"], ["a/b", "--revision", ""], ["--nothing"]]
)
def test_wrong_usage_exits_2(verifying: Verifying, args: list[str]) -> None:
    done = verifying(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error" in done.stderr


def test_errors_of_the_command_are_one_message_and_exit_code_1(
    verifying: Verifying, uploader: Make, tmp_path: Path
) -> None:
    for args, said in (
        (["user/nothing"], "user/nothing at main: 404"),
        ([str(tmp_path / "nowhere"), REPO], "no spool exists at"),
    ):
        done = verifying(*args)
        assert done.returncode == 1
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    done = verifying("user/nothing", HF_TOKEN="")
    assert (done.returncode, "hf auth login" in done.stderr) == (1, True)
    assert verifying(REPO, HF_TOKEN="hf_wrong", HF_ENDPOINT="http://127.0.0.1:9").returncode == 1


def test_a_path_can_not_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from hubsync.cli.verify import print_report
    from hubsync.maintenance.verify import Difference

    difference = Difference("gap", "a\x1b[2J\nb", "c", "d", "e")
    print_report(Report(REPO, "main", "0" * 40, None, 1, 1, 1, 1, 1, False, (difference,), ()))
    assert capsys.readouterr().out.startswith("gap       a�[2J�b: expected c; found d. e\n")


def set_state(spool: Path, path: str, state: str) -> None:
    with_catalogue(spool, "UPDATE segments SET state = ? WHERE path = ?", state, path)


def with_catalogue(spool: Path, sql: str, *values: object) -> None:
    catalogue = Catalogue(spool / "catalogue.sqlite")
    try:
        catalogue.run(sql, *values)
    finally:
        catalogue.close()
