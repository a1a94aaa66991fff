"""`hubsync ls`, `read` and `tail`, as a shell sees them."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pytest

from hubsync import ShardPolicy, Uploader
from tests.cli.lines import jsonl
from tests.conftest import Commands, Dataset
from tests.zygote import Program

Make = Callable[..., Uploader]


@pytest.fixture
def start(run: Commands) -> Iterator[Callable[..., Program]]:
    with ExitStack() as running:
        yield lambda *args: running.enter_context(run.start(*args))


def upload(uploader: Make, *numbers: int, one_by_one: bool = False, **options: Any) -> None:
    """Upload rows in shards of five; `one_by_one` with a commit for each, since shards of one commit have no order."""
    with uploader(shard=ShardPolicy(max_rows=5), **options) as up:
        for start in range(0, len(numbers), 5):
            up.put([{"id": n} for n in numbers[start : start + 5]])
            if one_by_one:
                up.flush()


def ids(lines: str | list[str]) -> list[int]:
    return [json.loads(line)["id"] for line in (lines.splitlines() if isinstance(lines, str) else lines)]


def read_ids(stream: IO[str], count: int) -> list[int]:
    return ids([stream.readline() for _ in range(count)])


def test_ls_prints_one_json_object_per_shard(run: Commands, uploader: Make, dataset: Dataset) -> None:
    upload(uploader, *range(7))
    found = [json.loads(line) for line in run("ls", "user/rows").stdout.splitlines()]
    assert [(shard["path"], shard["rows"], shard["sequence"]) for shard in found] == [
        (path, rows, n) for n, (path, rows) in enumerate(zip(dataset.paths(), (5, 2), strict=True))
    ]
    assert run("ls", "user/rows", "--split", "test").stdout == ""


@pytest.mark.parametrize("command", ["read", "tail"])
def test_a_config_that_exists_only_in_the_spool_is_read(
    run: Commands, uploader: Make, tmp_path: Path, command: str
) -> None:
    upload(uploader, 0)
    spool = tmp_path / "another"
    args = (command, "user/rows", "--config", "new", "--spool", spool, "--cursor", tmp_path / "kept")
    with uploader(spool=spool, config="new") as up:
        up.put([{"id": 1}])
        for expected in ([1], []):
            done = run(*args)
            assert (done.returncode, done.stderr, ids(done.stdout)) == (0, "", expected)


@pytest.mark.slow("starts several processes")
def test_read_continues_from_a_cursor_file(run: Commands, uploader: Make, tmp_path: Path) -> None:
    upload(uploader, *range(12))
    assert ids(run("read", "user/rows").stdout) == list(range(12))
    kept = tmp_path / "cursor"
    assert ids(run("read", "user/rows", "--cursor", kept).stdout) == list(range(12))
    assert run("read", "user/rows", "--cursor", kept).stdout == ""
    upload(uploader, *range(12, 15))
    assert ids(run("read", "user/rows", "--cursor", kept).stdout) == list(range(12, 15))
    kept.write_text("rubbish")
    done = run("read", "user/rows", "--cursor", kept)
    assert done.returncode == 1
    assert done.stderr == "hubsync: 'rubbish' is not a cursor of this hubsync, a commit sha or a time.\n"


@pytest.mark.slow("commits four hundred shards")
def test_read_ends_silently_when_its_pipe_is_closed(start: Any, uploader: Make) -> None:
    upload(uploader, *range(2_000))
    process = start("read", "user/rows")
    assert read_ids(process.stdout, 1) == [0]
    process.stdout.close()
    assert process.wait() in (0, -signal.SIGPIPE)
    assert process.stderr.read() == ""


def test_a_bad_line_is_an_error_or_is_skipped(run: Commands, uploader: Make, dataset: Dataset) -> None:
    upload(uploader, 0)
    dataset.api.upload_file(
        path_or_fileobj=b'nonsense\n{"id":1}', path_in_repo="data/train-x.jsonl", repo_id="user/rows",
        repo_type="dataset",
    )  # fmt: skip
    done = run("read", "user/rows")
    assert (done.returncode, ids(done.stdout)) == (1, [0])
    assert "data/train-x.jsonl, line 1: not valid JSON" in done.stderr
    done = run("read", "user/rows", "--bad-lines", "skip")
    assert (done.returncode, ids(done.stdout)) == (0, [0, 1])
    assert "data/train-x.jsonl, line 1: not valid JSON" in done.stderr


@pytest.mark.slow("commits a dozen shards one by one")
def test_tail_prints_the_rows_of_the_newest_commits(run: Commands, uploader: Make, tmp_path: Path) -> None:
    for begin in (0, 20, 40):
        upload(uploader, *range(begin, begin + 12), one_by_one=True, spool=tmp_path / f"spool-{begin}")  # three writers
    assert ids(run("tail", "user/rows").stdout) == list(range(42, 52))
    assert ids(run("tail", "user/rows", "-n", 14).stdout) == [30, 31, *range(40, 52)]
    assert run("tail", "user/rows", "-n", 0).stdout == ""
    assert len(run("tail", "user/rows", "-n", 1000).stdout.splitlines()) == 36


def test_tail_follows_and_restarts_from_its_cursor_file(start: Any, uploader: Make, tmp_path: Path) -> None:
    upload(uploader, *range(7), one_by_one=True)
    args = ("tail", "-f", "user/rows", "-n", 2, "--poll", 0.05, "--cursor", tmp_path / "cursor")
    process = start(*args)
    assert read_ids(process.stdout, 2) == [5, 6]
    upload(uploader, 7, 8)
    assert read_ids(process.stdout, 2) == [7, 8]
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert process.stderr.read() == ""
    upload(uploader, 9)
    process = start(*args)
    assert read_ids(process.stdout, 1) == [9]
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143


def test_tail_waits_for_a_dataset_that_does_not_exist_yet(run: Commands, start: Any, uploader: Make) -> None:
    process = start("tail", "-f", "user/rows", "--poll", 0.05)
    assert "Waiting until user/rows exists" in process.stderr.readline()
    upload(uploader, 1, 2)
    assert read_ids(process.stdout, 2) == [1, 2]
    for args in (["-f", "--must-exist"], []):
        done = run("tail", "user/other", *args)
        assert (done.returncode, "user/other" in done.stderr) == (1, True)


def test_tail_includes_rows_that_are_not_committed_yet(start: Any, uploader: Make, tmp_path: Path) -> None:
    upload(uploader, 0)
    with uploader() as up:
        process = start("tail", "-f", "user/rows", "--poll", 0.05, "--spool", tmp_path / "spool")
        assert read_ids(process.stdout, 1) == [0]
        up.put([{"id": 1}])
        assert read_ids(process.stdout, 1) == [1]
        up.flush()
        up.put([{"id": 2}])
        assert read_ids(process.stdout, 1) == [2]


@pytest.mark.parametrize("command", ["ls", "read", "tail"])
def test_a_missing_config_is_an_error(run: Commands, command: str) -> None:
    run("pipe", "user/rows", stdin=jsonl(0, 3))
    assert run(command, "user/rows", "--config", "default").returncode == 0
    done = run(command, "user/rows", "--config", "typo")
    assert (done.returncode, done.stderr) == (1, "hubsync: user/rows has no shard in config 'typo'.\n")


def test_nothing_new_in_a_config_is_not_an_error(run: Commands, tmp_path: Path) -> None:
    run("pipe", "user/rows", stdin=jsonl(0, 3))
    for rows in (3, 0):
        done = run("read", "user/rows", "--config", "default", "--cursor", tmp_path / "kept")
        assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, rows, "")
