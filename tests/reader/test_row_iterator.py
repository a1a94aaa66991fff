"""Reading back: shards and what is known of them, rows lazily and once, a cursor that survives what becomes of the
files, by `for` and by `async for`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete

from hubsync import ConfigError, RepoMissingError, RetryPolicy, ShardPolicy, Uploader
from hubsync._runtime.clock import SystemClock
from hubsync.destinations.hub.dataset import HubDataset
from hubsync.errors import DatasetRewritten, UnreadableRow
from hubsync.localhub import Fault, LocalHub
from hubsync.reader import follow, rows, shards
from hubsync.reader.snapshot import SnapshotReader
from tests.conftest import Dataset, rounds
from tests.waiting import until

Make = Callable[..., Uploader]


class Repo:
    """A dataset that people and jobs change, and readers of it."""

    def __init__(self, hub: LocalHub, dataset: Dataset, uploader: Make) -> None:
        self.hub, self.dataset, self._uploader = hub, dataset, uploader

    def upload(self, *numbers: int, shard: int = 5, **options: Any) -> None:
        """Run a job that uploads rows, in shards of `shard` rows."""
        with self._uploader(shard=ShardPolicy(max_rows=shard), **options) as up:
            for start in range(0, len(numbers), shard):
                up.put([{"id": n, "text": f"row {n}"} for n in numbers[start : start + shard]])

    def change(self, add: dict[str, bytes] | None = None, delete: list[str] | None = None) -> None:
        """Commit as another user."""
        self.dataset.api.create_commit(
            "user/rows",
            [CommitOperationAdd(path, content) for path, content in (add or {}).items()]
            + [CommitOperationDelete(path) for path in delete or []],
            commit_message="By hand",
            repo_type="dataset",
        )

    def compact(self, into: str = "data/train-all.jsonl", made: Callable[[list[bytes]], bytes] = b"".join) -> None:
        """Merge all shards into one file."""
        paths = self.dataset.paths()
        self.change({into: made([self.dataset.read(path) for path in paths])}, [p for p in paths if p != into])

    def squash(self) -> None:
        self.dataset.api.super_squash_history("user/rows", repo_type="dataset")

    def rows(self, **options: Any) -> Any:
        return rows("user/rows", endpoint=self.hub.endpoint, token=self.hub.token, **options)

    def follow(self, cursor: str | None = None, **options: Any) -> Any:
        options = {"poll_s": 0.05, **options}
        return follow("user/rows", cursor, endpoint=self.hub.endpoint, token=self.hub.token, **options)

    def shards(self, **options: Any) -> list[Any]:
        return list(shards("user/rows", endpoint=self.hub.endpoint, token=self.hub.token, **options))

    def since(self, cursor: str, **options: Any) -> list[int]:
        return ids(self.rows(since=cursor, **options))


@pytest.fixture
def repo(hub: LocalHub, dataset: Dataset, uploader: Make) -> Repo:
    return Repo(hub, dataset, uploader)


def ids(found: Any) -> list[int]:
    return [row["id"] for row in found]


def cursor_after(repo: Repo, count: int | None = None) -> str:
    """Return the cursor after the first `count` rows, or after all."""
    with repo.rows() as reader:
        list(islice(reader, count))
        cursor: str = reader.cursor
    return cursor


def lines(numbers: Any) -> bytes:
    return b"".join(json.dumps({"id": n, "text": f"row {n}"}).encode() + b"\n" for n in numbers)


# Fetching.


def test_a_few_shards_are_fetched_first_and_more_at_once_later(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    repo.dataset.api.create_repo("user/rows", repo_type="dataset")
    repo.change({f"data/train-{n:05d}.jsonl": lines([n]) for n in range(60)})
    fetch = SnapshotReader.fetch
    fetched: list[int] = []

    async def count(self: SnapshotReader, files: Any, commit: str) -> None:
        fetched.append(len(files))
        await fetch(self, files, commit)

    monkeypatch.setattr(SnapshotReader, "fetch", count)
    with repo.rows() as reader:
        assert next(reader)["id"] == 0
        assert fetched == [4]
        assert ids(reader) == list(range(1, 60))
    assert fetched == [4, 8, 16, 32]


# Shards.


def test_a_shard_has_its_rows_writer_number_commit_and_time(repo: Repo) -> None:
    before = datetime.now(UTC)
    repo.upload(*range(12))
    found = repo.shards()
    (writer,) = {shard.writer for shard in found}
    assert [(s.path, s.rows, s.sequence) for s in found] == [
        (f"data/train-{writer}-{n:05d}.jsonl", rows, n) for n, rows in enumerate((5, 5, 2))
    ]
    assert [s.bytes for s in found] == [len(repo.dataset.read(s.path)) for s in found]
    commits = {c.commit_id for c in repo.dataset.api.list_repo_commits("user/rows", repo_type="dataset")}
    assert all(s.commit in commits and s.time is not None and s.time.year == before.year for s in found)
    assert {(s.config, s.split) for s in found} == {("default", "train")}


def test_a_shard_of_another_tool_has_what_the_hub_knows(repo: Repo) -> None:
    repo.upload(*range(5))
    repo.squash()
    repo.change({"data/train-mine.jsonl": lines([7])})
    first, second = repo.shards()
    assert (first.rows, first.sequence) == (None, 0)
    assert (second.rows, second.writer, second.sequence) == (None, None, None)
    assert first.commit != second.commit
    assert second.commit == repo.dataset.api.repo_info("user/rows", repo_type="dataset").sha


def test_shards_of_one_config_and_split(repo: Repo) -> None:
    repo.upload(*range(5))
    repo.upload(*range(5, 10), config="other", split="test")
    assert [(s.config, s.split) for s in repo.shards()] == [("default", "train"), ("other", "test")]
    assert [s.config for s in repo.shards(config="other")] == ["other"]
    assert ids(repo.rows(split="test")) == list(range(5, 10))
    assert ids(repo.rows(config="default")) == list(range(5))


# Rows.


def test_rows_come_in_order_and_lazily(repo: Repo) -> None:
    repo.upload(*range(100))
    reader = repo.rows()
    first = next(reader)
    assert first == {"id": 0, "text": "row 0"}
    assert json.loads(reader.line) == first
    assert ids(reader) == list(range(1, 100))
    assert list(reader) == []


def test_the_hundred_thousandth_shard_comes_after_the_one_before_it(repo: Repo) -> None:
    paths = [f"train-{n}.jsonl" for n in (99_998, 99_999, 100_000, 100_001)]
    repo.upload(0)
    repo.change({f"data/{path}": lines([n]) for n, path in enumerate(paths, 1)})
    assert sorted(ids(repo.rows())) == [0, 1, 2, 3, 4]
    assert [n for n in ids(repo.rows()) if n] == [1, 2, 3, 4]


def test_rows_can_be_read_with_async_for(repo: Repo) -> None:
    repo.upload(*range(20))

    async def main() -> tuple[list[int], list[str]]:
        options = {"endpoint": repo.hub.endpoint, "token": repo.hub.token}
        async with rows("user/rows", **options) as reader:
            found = [row["id"] async for row in reader]
        return found, [shard.path async for shard in shards("user/rows", **options)]

    for backend in ("asyncio", "trio"):
        found, paths = anyio.run(main, backend=backend)
        assert found == list(range(20))
        assert len(paths) == 4


def test_rows_can_be_read_with_for_while_an_event_loop_runs(repo: Repo) -> None:
    repo.upload(*range(20))

    async def cell() -> list[int]:
        return ids(repo.rows())

    assert anyio.run(cell) == list(range(20))


def test_a_line_that_is_not_a_row_raises_and_the_next_one_follows(repo: Repo) -> None:
    repo.upload(0)
    repo.change({"data/train-z.jsonl": b'{"id": 1}\n\nnonsense\n[2]\n{"id": 3}'})
    reader = repo.rows()
    assert ids(islice(reader, 2)) == [0, 1]
    with pytest.raises(UnreadableRow, match=r"data/train-z\.jsonl, line 3: not valid JSON"):
        next(reader)
    with pytest.raises(UnreadableRow, match="line 4: not a JSON object"):
        next(reader)
    assert ids(reader) == [3]
    assert repo.since(reader.cursor) == []


def test_a_row_that_is_nested_too_deeply_is_an_unreadable_row(repo: Repo) -> None:
    repo.upload(0)
    repo.change({"data/train-z.jsonl": b'{"a":' * 700 + b"null" + b"}" * 700 + b'\n{"id": 1}\n'})
    reader = repo.rows()
    assert next(reader)["id"] == 0
    with pytest.raises(UnreadableRow, match=r"train-z\.jsonl, line 1: nested too deeply"):
        next(reader)
    assert ids(reader) == [1]


def test_what_the_card_does_not_show_is_not_read(repo: Repo) -> None:
    repo.upload(0)
    repo.change({"notes.jsonl": lines([8]), "data/.hidden.jsonl": lines([9])})
    assert ids(repo.rows()) == [0]


def test_without_a_card_every_file_of_rows_is_read(repo: Repo) -> None:
    repo.upload(0)
    repo.change({"notes.jsonl": lines([8]), "data/.hidden.jsonl": lines([9])}, ["README.md"])
    assert sorted(ids(repo.rows())) == [0, 8]


def test_a_download_that_breaks_off_or_is_wrong_repeats_no_row(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hubsync.reader.snapshot.RetryPolicy", partial(RetryPolicy, initial_s=0.01))
    repo.upload(*range(40))
    repo.hub.faults.add(Fault.reset(when="after", on="resolve", times=3))
    repo.hub.faults.add(Fault.status(503, on="resolve", times=2))
    assert ids(repo.rows()) == list(range(40))


def test_a_missing_repo_raises(hub: LocalHub) -> None:
    with pytest.raises(RepoMissingError):
        next(rows("user/nothing", endpoint=hub.endpoint, token=hub.token))


def test_an_invalid_cursor_raises(repo: Repo) -> None:
    repo.upload(0)
    cursor = cursor_after(repo)
    for wrong in ("", "yesterday", "hubsync-1:", "hubsync-1:AAAA", cursor[:-9]):
        with pytest.raises(ConfigError, match="cursor"):
            repo.rows(since=wrong)
    with pytest.raises(ConfigError, match=r"belongs to user/rows, not to user/other"):
        rows("user/other", since=cursor, endpoint=repo.hub.endpoint, token=repo.hub.token)


# Cursors.


@pytest.mark.slow("brings and reads a dataset for each place of the cursor")
@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 17, 20])
def test_a_cursor_continues_after_the_last_row(repo: Repo, count: int) -> None:
    repo.upload(*range(20))
    cursor = cursor_after(repo, count)
    repo.upload(*range(20, 30))
    found = repo.since(cursor)
    assert sorted(found) == list(range(count, 30))
    assert ids(repo.rows(since=cursor_after(repo))) == []


@pytest.mark.slow("waits for the Hub's clock, which counts seconds")
def test_a_commit_or_a_time_is_a_cursor_too(repo: Repo) -> None:
    repo.upload(*range(5))
    commit = repo.dataset.api.repo_info("user/rows", repo_type="dataset").sha
    anyio.run(partial(SystemClock().sleep, 1.1))  # the Hub's times are in seconds
    time = datetime.now(UTC)
    anyio.run(partial(SystemClock().sleep, 1.1))
    repo.upload(*range(5, 10))
    for since in (commit, time, time.isoformat()):
        reader = repo.rows(since=since)
        if since is not time:
            assert reader.cursor == since
        assert ids(reader) == list(range(5, 10))
        assert repo.since(reader.cursor) == []
    assert sorted(ids(repo.rows(since=datetime(2020, 1, 1)))) == list(range(10))


def rewritten(parts: list[bytes]) -> bytes:
    """The same rows in another notation: other spaces, another order of keys, one more column, which is null."""
    found = [json.loads(line) for line in b"".join(parts).splitlines()]
    return b"".join(
        json.dumps({"more": None, **dict(reversed(row.items()))}, indent=None).encode() + b"\n" for row in found
    )


def shuffled(parts: list[bytes]) -> bytes:
    found = b"".join(parts).splitlines(keepends=True)
    random.Random(1).shuffle(found)
    return b"".join(found)


def reversed_rows(parts: list[bytes]) -> bytes:
    return b"".join(reversed(parts))


REWRITES = {"joined": b"".join, "rewritten": rewritten, "shuffled": shuffled, "reversed_rows": reversed_rows}


@pytest.mark.slow("commits and reads a dataset several times for each way of compacting it")
@pytest.mark.parametrize("squashed", [False, True], ids=["", "squashed"])
@pytest.mark.parametrize("made", REWRITES.values(), ids=REWRITES)
@pytest.mark.parametrize("count", [7, 20])
def test_a_compaction_repeats_nothing_and_loses_nothing(repo: Repo, count: int, made: Any, squashed: bool) -> None:
    repo.upload(*range(20))
    cursor = cursor_after(repo, count)
    repo.upload(*range(20, 30))  # that the reader has not had when the compaction comes
    repo.compact(made=made)
    if squashed:
        repo.squash()
    if squashed and made is shuffled:
        with pytest.raises(DatasetRewritten, match="from its history"):
            repo.since(cursor)
        return
    assert sorted(repo.since(cursor)) == list(range(count, 30))
    repo.upload(*range(30, 35))
    assert sorted(repo.since(cursor)) == list(range(count, 35))


def test_a_shuffled_and_squashed_dataset_is_recognized_without_new_rows(repo: Repo) -> None:
    repo.upload(*range(20))
    cursor = cursor_after(repo)
    repo.compact(made=shuffled)
    repo.squash()
    repo.upload(*range(20, 25))
    assert repo.since(cursor) == list(range(20, 25))


def test_a_compaction_to_parquet_is_recognized(repo: Repo) -> None:
    repo.upload(*range(20))
    cursor = cursor_after(repo, 12)

    def parquet(parts: list[bytes]) -> bytes:
        sink = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist([json.loads(line) for line in b"".join(parts).splitlines()]), sink)
        made: bytes = sink.getvalue().to_pybytes()
        return made

    repo.change({"README.md": b"---\nconfigs:\n- config_name: default\n  data_files: data/*\n---\n"})
    repo.compact("data/train-all.parquet", parquet)
    repo.squash()
    assert repo.since(cursor) == list(range(12, 20))


@pytest.mark.slow("makes many commits")
def test_a_compaction_in_two_commits_repeats_nothing_in_either_order(repo: Repo) -> None:
    for begin in (0, 100):
        repo.upload(*range(begin, begin + 20))
        reader = repo.rows(since=cursor_after(repo))
        paths = [path for path in repo.dataset.paths() if "all" not in path]
        made = b"".join(repo.dataset.read(path) for path in paths)
        steps = [partial(repo.change, {f"data/all-{begin}.jsonl": made}), partial(repo.change, delete=paths)]
        cursor = reader.cursor
        repo.change({"README.md": b"---\nconfigs:\n- config_name: default\n  data_files: data/*\n---\n"})
        for step in steps if begin else reversed(steps):
            step()
            reader = repo.rows(since=cursor)
            assert ids(reader) == []
            cursor = reader.cursor
        repo.upload(begin + 50)
        assert repo.since(cursor) == [begin + 50]


def test_a_cursor_in_the_middle_of_a_compaction_continues(repo: Repo) -> None:
    repo.upload(*range(20))
    cursor = cursor_after(repo, 10)
    repo.compact(made=shuffled)
    found = []
    for _ in range(10):
        reader = repo.rows(since=cursor)
        found += ids(islice(reader, 1))
        cursor = reader.cursor
        reader.close()
    assert sorted(found) == list(range(10, 20))
    assert repo.since(cursor) == []


def test_a_shard_that_grows_moves_or_goes_repeats_nothing(repo: Repo) -> None:
    repo.upload(*range(10))
    first, second = repo.dataset.paths()
    cursor = cursor_after(repo, 8)
    repo.change({second: repo.dataset.read(second) + lines([10, 11])})  # a rolling shard
    assert repo.since(cursor) == [8, 9, 10, 11]
    reader = repo.rows(since=cursor)
    list(reader)
    cursor = reader.cursor
    repo.change({"data/train-moved.jsonl": repo.dataset.read(first)}, [first])
    assert repo.since(cursor) == []
    repo.change(delete=[second, "data/train-moved.jsonl"])
    assert repo.since(cursor) == []
    repo.upload(12)
    assert repo.since(cursor) == [12]


def test_equal_rows_are_all_returned(repo: Repo) -> None:
    repo.upload(*[1] * 20)
    cursor = cursor_after(repo, 7)
    repo.compact()
    repo.upload(*[1] * 10)
    assert repo.since(cursor) == [1] * 23


def test_a_reader_that_began_at_a_commit_recognizes_a_compaction(repo: Repo) -> None:
    repo.upload(*range(10))
    commit = repo.dataset.api.repo_info("user/rows", repo_type="dataset").sha
    repo.upload(*range(10, 20))
    repo.compact(made=shuffled)
    assert sorted(repo.since(commit)) == list(range(10, 20))
    repo.squash()
    with pytest.raises(RepoMissingError):
        repo.since(commit)


# Following.


@pytest.mark.slow("follows a job for many commits")
def test_following_yields_each_row_once_while_a_job_writes_and_people_rewrite(repo: Repo, uploader: Make) -> None:
    repo.upload(0)
    found: list[int] = []
    cursor: str | None = None
    with uploader(shard=ShardPolicy(max_rows=3)) as up:
        for begin in range(1, 61, 10):
            up.put([{"id": n} for n in range(begin, begin + 10)])
            with repo.follow(cursor) as reader:
                # Sometimes what is committed, sometimes only a part of it; then it is started again.
                found += ids(islice(reader, 6 if begin % 20 == 1 else 1))
                cursor = reader.cursor
            up.flush()
            if begin == 21:
                repo.compact()
            elif begin == 41:
                repo.squash()
        with repo.follow(cursor) as reader:
            found += ids(islice(reader, 61 - len(found)))
            assert repo.since(reader.cursor) == []
    assert sorted(found) == list(range(61))


def test_a_squash_during_a_read_changes_nothing(repo: Repo) -> None:
    repo.upload(*range(100))
    reader = repo.rows()
    found = ids(islice(reader, 3))
    repo.squash()
    assert found + ids(reader) == list(range(100))


def test_a_squash_between_the_listing_and_the_card_is_followed(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit never comes back, so reading its card must not be retried forever."""
    repo.upload(*range(5))
    read_file, squashes = HubDataset.read_file, []

    async def read_after_squash(self: HubDataset, path: str, at: str) -> bytes | None:
        if not squashes:
            squashes.append(await anyio.to_thread.run_sync(repo.squash))
        return await read_file(self, path, at)

    monkeypatch.setattr(HubDataset, "read_file", read_after_squash)
    with repo.follow() as reader:
        assert ids(islice(reader, 5)) == list(range(5))
    assert len(squashes) == 1


def test_a_follower_waits_for_a_dataset_that_does_not_exist_yet(repo: Repo, caplog: pytest.LogCaptureFixture) -> None:
    with repo.follow(poll_s=0.01) as reader:
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(next, reader)
            until(lambda: "Waiting until user/rows exists" in caplog.text)
            repo.upload(1, 2)
            assert first.result()["id"] == 1
        assert next(reader)["id"] == 2
        cursor = reader.cursor
    assert caplog.text.count("Waiting until") == 1
    with repo.follow(must_exist=True) as reader:
        assert next(reader)["id"] == 1
    repo.dataset.api.delete_repo("user/rows", repo_type="dataset")
    for options in ({"must_exist": True}, {"cursor": cursor}):
        with repo.follow(**options) as reader, pytest.raises(RepoMissingError):
            next(reader)


def test_a_follower_of_a_spool_does_not_wait_for_its_dataset(
    repo: Repo, uploader: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with uploader() as up:
        up.put([{"id": 1}])
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with repo.follow(spool=tmp_path / "spool") as reader:
        assert next(reader)["id"] == 1


def test_a_follower_waits_for_a_hub_that_is_down(repo: Repo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "hubsync.reader.snapshot.RetryPolicy",
        lambda: __import__("hubsync").RetryPolicy(initial_s=0.01, max_s=0.01),
    )
    repo.upload(*range(5))
    with repo.follow() as reader:
        assert ids(islice(reader, 5)) == list(range(5))
        repo.upload(5)
        repo.hub.faults.add(Fault.status(503, times=30))
        assert ids(islice(reader, 1)) == [5]


# Rows that are not committed yet.


def test_rows_read_from_the_spool_are_not_repeated_once_committed(repo: Repo, uploader: Make, tmp_path: Path) -> None:
    with uploader() as up:
        up.put([{"id": n} for n in range(3)])
        with repo.follow(spool=tmp_path / "spool") as reader:
            assert ids(islice(reader, 3)) == [0, 1, 2]
            up.put([{"id": 3}])
            assert ids(islice(reader, 1)) == [3]
            up.flush()
            up.put([{"id": 4}])
            assert ids(islice(reader, 1)) == [4]
            cursor = reader.cursor
            up.flush()
            repo.upload(5, spool=tmp_path / "other")
            assert ids(islice(reader, 1)) == [5]
    assert repo.since(cursor, spool=tmp_path / "spool") == [5]
    assert repo.since(cursor) == [5]  # also by somebody who does not see the spool
    assert sorted(ids(repo.rows())) == list(range(6))


@pytest.mark.slow("reads row by row while a job commits")
def test_reading_a_spool_repeatedly_while_it_commits_repeats_nothing(
    repo: Repo, uploader: Make, tmp_path: Path
) -> None:
    count, found = rounds(60, 300), list[int]()
    with uploader(shard=ShardPolicy(max_rows=4)) as up, repo.follow(spool=tmp_path / "spool", poll_s=0.001) as reader:
        for n in range(count):
            up.put([{"id": n}])
            found += ids(islice(reader, 1))
    assert found == list(range(count))
    assert sorted(ids(repo.rows(spool=tmp_path / "spool"))) == list(range(count))
