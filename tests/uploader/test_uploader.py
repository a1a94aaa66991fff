"""Both uploaders on the embedded Hub: over real sockets, with the real hf_xet, read by the real libraries."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from hubsync import (
    AsyncUploader,
    AuthenticationError,
    BatchTooLarge,
    ClosedError,
    ConfigError,
    ForkedError,
    NotDrained,
    OffsetUnknown,
    QueueFull,
    QueuePolicy,
    RepoMissingError,
    RetryPolicy,
    ShardPolicy,
    SpoolError,
    SpoolPolicy,
    Uploader,
    WriteForbiddenError,
)
from hubsync._runtime.file_lock import FileLock
from hubsync.localhub import Fault, LocalHub
from hubsync.localhub.pytest_plugin import point_at
from hubsync.maintenance.drain import drain
from hubsync.model.batch import Batch
from hubsync.model.layout import Layout
from hubsync.model.receipt import Receipt
from hubsync.spool.spool import Spool
from hubsync.spool.writer import SpoolWriter
from tests.conftest import FAST, Commands, Dataset
from tests.waiting import until

Make = Callable[..., Uploader]


def numbered(start: int, stop: int) -> list[dict[str, int]]:
    return [{"id": n} for n in range(start, stop)]


def test_rows_are_in_the_dataset_once_the_block_ends(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        receipts = [up.put(numbered(n, n + 10)) for n in range(0, 100, 10)]
        assert {receipt.state for receipt in receipts} == {"spooled"}
    assert dataset.ids() == list(range(100))
    assert {receipt.state for receipt in receipts} == {"committed"}
    assert receipts[0].sha == dataset.api.dataset_info(dataset.repo).sha
    assert dataset.paths() == [f"data/train-{up._engine.writer_name}-00000.jsonl"]  # type: ignore[union-attr]


@pytest.mark.slow("loads with datasets, several times")
def test_the_first_commit_loads_with_datasets(
    uploader: Make, hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with uploader(config="default") as train, uploader(config="other", split="test") as test:
        train.put(numbered(0, 5))
        train.flush()
        test.put(numbered(5, 7))
    point_at(hub, monkeypatch, tmp_path / "hf")
    assert load_dataset("user/rows", split="train")["id"][:] == [0, 1, 2, 3, 4]
    assert load_dataset("user/rows", "other", split="test")["id"][:] == [5, 6]
    streamed = load_dataset("user/rows", split="train", streaming=True)
    assert [row["id"] for row in streamed] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("store", ["xet", "lfs"])
def test_a_large_shard_is_uploaded_as_a_blob(
    uploader: Make, dataset: Dataset, hub: LocalHub, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if store == "lfs":
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    rows = [{"id": n, "text": os.urandom(1_000).hex()} for n in range(6_000)]
    with uploader() as up:
        receipt = up.put(rows)
        up.flush()
    (path,) = dataset.paths()
    assert [json.loads(line) for line in dataset.read(path).splitlines()] == rows
    (info,) = dataset.api.get_paths_info(dataset.repo, [path], repo_type="dataset")
    assert info.lfs is not None
    assert info.lfs.size == receipt.bytes
    assert (info.xet_hash is not None) == (store == "xet")


def test_ack_committed_returns_the_sha(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        receipt = up.put(numbered(0, 2), ack="committed")
        assert receipt.state == "committed"
        assert receipt.sha in [c.commit_id for c in dataset.api.list_repo_commits(dataset.repo, repo_type="dataset")]


def test_a_row_waits_no_longer_than_the_linger(uploader: Make, dataset: Dataset) -> None:
    with uploader(shard=ShardPolicy(linger_s=0.05)) as up:
        up.put(numbered(0, 3)).wait("committed", timeout=30)
        assert dataset.ids() == [0, 1, 2]


def test_changing_a_dict_after_put_changes_nothing(uploader: Make, dataset: Dataset) -> None:
    row: dict[str, Any] = {"id": 1}
    with uploader() as up:
        up.put([row], ack="queued")
        row["id"] = 2
    assert dataset.ids() == [1]


def test_a_replay_adds_nothing_and_its_receipt_says_so(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        up.put(numbered(0, 5), offset=4)
        up.put(numbered(5, 6), key="five")
    with uploader() as up:
        assert up.offset() == 4
        again = up.put(numbered(0, 5), offset=4)
        keyed = up.put(numbered(5, 6), key="five")
        assert (again.replayed, again.state, keyed.replayed, keyed.state) == (True, "committed", True, "committed")
        assert again.sha is not None
        up.put(numbered(6, 7), offset=5)
    assert dataset.ids() == list(range(7))


def test_a_new_machine_resumes_from_the_dataset(uploader: Make, dataset: Dataset, tmp_path: Path) -> None:
    template = "{config}/{split}-{seq:05d}.jsonl"
    with uploader(path=template, spool=tmp_path / "one") as up:
        assert up.offset() is None
        up.put(numbered(0, 5), offset=4)
        up.put(numbered(5, 6), offset=0, source="other")
    with uploader(path=template, spool=tmp_path / "two") as up:
        assert (up.offset(), up.offset("other"), up.offset("none")) == (4, 0, None)
        assert up.put(numbered(0, 5), offset=4).replayed
        up.put(numbered(6, 7), offset=5)
    assert dataset.ids() == list(range(7))
    assert dataset.paths() == ["default/train-00000.jsonl", "default/train-00001.jsonl"]


def test_two_uploaders_share_one_spool_and_one_committer(uploader: Make, dataset: Dataset) -> None:
    with uploader() as one, uploader() as two:
        for n in range(10):
            one.put([{"id": 2 * n}])
            two.put([{"id": 2 * n + 1}])
        two.flush()
        one.flush()
        assert one.writer != two.writer
        assert one.spool == two.spool
    assert dataset.ids() == list(range(20))


def test_another_uploader_takes_over_when_the_committer_closes(uploader: Make, dataset: Dataset) -> None:
    one, two = uploader().open(), uploader().open()
    two.put(numbered(0, 1))
    one.close()
    two.put(numbered(1, 2))
    two.close()
    assert dataset.ids() == [0, 1]


def test_a_state_stored_by_another_version_stops_no_follower(uploader: Make, dataset: Dataset) -> None:
    with uploader() as one, uploader() as two:
        follower = next(up._engine for up in (one, two) if not up._engine.spool.lease.is_held)
        follower.spool.catalogue.set("status", '{"kind": "hibernating", "reason": "of a version to come"}')
        follower.monitor.refresh()
        follower._read_outcomes()
        assert follower.monitor.figures().state.kind == "ok"
        two.put(numbered(0, 1))
    assert dataset.ids() == [0]


def test_inspecting_a_spool_takes_no_lock_from_uploaders_of_the_process(
    uploader: Make, dataset: Dataset, run: Commands
) -> None:
    def waiting() -> int:
        return int(json.loads(run("status", "--json", one.spool).stdout)["rows_waiting"])

    with uploader() as one, uploader() as other:
        assert waiting() == 0  # SQLite removes the log when the last connection closes: this is not the last
        one.put(numbered(0, 3))
        other.put(numbered(3, 5))
        assert waiting() == 5
    assert dataset.ids() == list(range(5))


@pytest.mark.parametrize("slow", [False, True])
def test_closing_at_once_uploads_what_dead_processes_left(
    slow: bool, uploader: Make, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    acquire, locked = FileLock.acquire, threading.Event()

    def acquire_slowly(lock: FileLock) -> bool:
        """A close may come between taking the committer's lock and becoming the committer."""
        got = acquire(lock)
        if lock.path.name == "committer.lock":
            locked.set()
            time.sleep(0.5)
        return got

    with uploader() as up:
        spool = Spool(up.spool, target=None)
    first, *others = sorted((SpoolWriter.open(spool, Layout(), ShardPolicy()) for _ in range(3)), key=lambda w: w.name)
    for n, writer in enumerate(others):
        lines = b'{"id":%d}\n' % n
        writer.append([Batch(lines, 1, Receipt(1, len(lines)))])
    for writer in (first, *others):
        writer.close()  # as if the process died: the names are free, the segments stay open
    spool.close()
    if slow:
        monkeypatch.setattr(FileLock, "acquire", acquire_slowly)
    with uploader() as up:  # takes the first name, which left no segment
        assert up.writer == first.name
        assert not slow or locked.wait(10)
    assert dataset.ids() == [0, 1]


@pytest.mark.slow("many threads")
def test_producers_in_many_threads_lose_nothing(uploader: Make, dataset: Dataset) -> None:
    with uploader(queue=QueuePolicy(max_batches=4), shard=ShardPolicy(max_rows=50)) as up:

        def produce(start: int) -> None:
            for n in range(start, start + 100):
                up.put([{"id": n}], ack="queued")

        threads = [threading.Thread(target=produce, args=(n * 100,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert dataset.ids() == list(range(800))


def test_an_unreachable_hub_delays_only_commits(uploader: Make, hub: LocalHub, dataset: Dataset) -> None:
    with uploader() as up:
        up.put(numbered(0, 1), ack="queued")
        up.flush()
        hub.stop()
        receipt = up.put(numbered(1, 2))
        with pytest.raises(NotDrained, match="hubsync drain") as left:
            up.flush(timeout=0.2)
        assert (left.value.rows, receipt.state) == (1, "spooled")
        until(lambda: up.stats().state.kind == "backing off")
        hub.start()
        up.flush()
        until(lambda: up.stats().state.kind == "ok")
    assert dataset.ids() == [0, 1]


def test_a_job_that_starts_while_the_hub_is_unreachable_waits_for_it(
    uploader: Make, hub: LocalHub, dataset: Dataset
) -> None:
    hub.stop()
    with uploader(retry=RetryPolicy(initial_s=0.01, max_s=0.05, open_timeout_s=0.3)) as up:
        up.put(numbered(0, 1))
        with pytest.raises(OffsetUnknown, match=r"not known yet .*is unreachable.*than 0\.3"):
            up.offset()
        with pytest.raises(OffsetUnknown):
            up.put(numbered(1, 2), offset=1)
        hub.start()
        up.flush()
        assert up.offset() is None
    assert dataset.ids() == [0]


def test_a_close_that_times_out_leaves_the_rest_for_drain(
    uploader: Make, hub: LocalHub, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    up = uploader().open()
    hub.stop()
    up.put(numbered(0, 3))
    with pytest.raises(NotDrained, match=f"hubsync drain {tmp_path / 'spool'}"):
        up.close(timeout=0.1)
    hub.start()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert drain(tmp_path / "spool", timeout=60).rows == 0
    assert dataset.ids() == [0, 1, 2]


def test_an_offline_uploader_only_spools(
    uploader: Make, hub: LocalHub, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with uploader() as up:
        up.put(numbered(0, 3), offset=2)
        up.flush()
        assert up.stats().state.kind == "offline"
        assert up.offset() == 2
    assert not hub.requests()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with uploader() as up:
        assert up.put(numbered(0, 3), offset=2).replayed
    assert dataset.ids() == [0, 1, 2]


FAULTS = [
    Fault.reset(when="after", on="commit", times=1),
    Fault.reset(when="before", on="commit", times=1),
    Fault.status(504, when="after", on="commit", times=1),
    Fault.status(503, on="*", times=4),
    Fault.status(500, on="commit", times=2),
    Fault.status(409, on="commit", times=2),
    Fault.status(412, on="commit", times=2),
    Fault.rate_limit("api", seconds=0, on="*", times=3),
    Fault.rate_limit("retry-after", seconds=0, on="commit", times=2),
    Fault.hang(0.1, when="before", on="commit", times=1),
    Fault.hang(0.1, when="after", on="commit", times=1),
    Fault.late(0.2, on="commit", times=1),
    *(
        Fault.hostile(shape, when=when, on=("commit", "preupload", "paths-info", "repo-info"), times=3)
        for shape in ("html", "garbage", "huge", "redirect", "empty", "truncated", "wrong-shape")
        for when in ("before", "after")
    ),
]


@pytest.mark.slow("meets each fault of the Hub, or uploads 200 MB")
@pytest.mark.parametrize(
    "fault", FAULTS, ids=lambda fault: f"{fault.kind}-{fault.shape or fault.code or fault.when}-{fault.when}"
)
def test_no_fault_loses_or_repeats_a_row(uploader: Make, hub: LocalHub, dataset: Dataset, fault: Fault) -> None:
    with uploader(shard=ShardPolicy(max_rows=10)) as up:
        hub.faults.add(fault)
        for n in range(0, 50, 10):
            up.put(numbered(n, n + 10))
        up.flush()
        hub.faults.clear()
    assert dataset.ids() == list(range(50))
    data_commits = [title for title in dataset.commits() if title.startswith("Add")]
    assert sum(int(title.split()[1]) for title in data_commits) == 50


def test_a_wrong_token_fails_in_the_first_second(uploader: Make, hub: LocalHub) -> None:
    with pytest.raises(AuthenticationError, match="hf auth login"):
        uploader(token="hf_wrong").open()
    reader = hub.add_user("reader", role="read")
    with pytest.raises(WriteForbiddenError, match="hf auth login"):
        uploader("reader/rows", token=reader, spool=None).open()


def test_the_error_for_a_missing_token_says_how_to_log_in(uploader: Make) -> None:
    with pytest.raises(AuthenticationError, match="hf auth login"):
        uploader(token=None).open()


def test_a_repo_of_another_user_is_refused(uploader: Make, hub: LocalHub) -> None:
    hub.add_user("other", token="hf_other")
    with pytest.raises((WriteForbiddenError, RepoMissingError)):
        uploader("other/rows", spool=None).open()


def test_the_error_names_a_missing_branch(uploader: Make) -> None:
    uploader().open().close()
    with pytest.raises(RepoMissingError, match="create_branch"):
        uploader(revision="dev", spool=None).open()


def test_rows_go_to_the_given_branch(uploader: Make, dataset: Dataset) -> None:
    uploader().open().close()
    dataset.api.create_branch(dataset.repo, branch="a/b", repo_type="dataset")
    with uploader(revision="a/b", spool=None) as up:
        up.put(numbered(0, 3))
    files = dataset.api.list_repo_files(dataset.repo, repo_type="dataset", revision="a/b")
    assert sum(f.endswith(".jsonl") for f in files) == 1
    assert dataset.paths() == []


def test_a_spool_with_an_invalid_private_flag_opens(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        up._engine.spool.catalogue.set("private", '"true"')  # type: ignore[union-attr]
        up.put(numbered(0, 1))
    with uploader() as up:
        up.put(numbered(1, 2))
    assert dataset.ids() == [0, 1]


def test_a_private_repo_is_created_private(uploader: Make, dataset: Dataset) -> None:
    with uploader(private=True):
        pass
    assert dataset.api.dataset_info(dataset.repo).private


def test_put_after_close_raises_and_closing_twice_does_not(uploader: Make, tmp_path: Path) -> None:
    up = uploader().open()
    up.close()
    up.close()
    assert up.spool == tmp_path / "spool"
    for call in (lambda: up.put([{"id": 1}]), up.flush, up.offset):
        with pytest.raises(ClosedError, match="is closed and accepts nothing more"):
            call()
    with pytest.raises(ClosedError, match="with Uploader"):
        uploader().put([{"id": 1}])


def test_a_batch_without_rows_is_committed_at_once(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        receipt = up.put([])
        assert (receipt.state, receipt.sha, receipt.rows) == ("committed", None, 0)
        up.put([], offset=5)
        assert up.offset() == 5
    assert dataset.paths() == []


@pytest.mark.slow("makes a row of 200 MB")
def test_a_row_of_200_mb_is_rejected_by_a_queue_that_cannot_hold_it(uploader: Make) -> None:
    with uploader() as up:
        with pytest.raises(BatchTooLarge, match="QueuePolicy"):
            up.put([{"text": "x" * 200_000_000}])
        assert up.stats().spool.rows == 0


@pytest.mark.slow("meets each fault of the Hub, or uploads 200 MB")
def test_a_row_of_200_mb_is_uploaded_if_the_queue_is_large_enough(
    uploader: Make, hub: LocalHub, dataset: Dataset
) -> None:
    with uploader(queue=QueuePolicy(max_bytes=300_000_000)) as up:
        receipt = up.put([{"text": "x" * 200_000_000}])
    (path,) = dataset.paths()
    (info,) = dataset.api.get_paths_info(dataset.repo, [path], repo_type="dataset")
    assert info.size == receipt.bytes > 200_000_000


@pytest.mark.slow("waits for room in the spool")
def test_a_full_spool_blocks_the_producer_and_loses_nothing(uploader: Make, hub: LocalHub, dataset: Dataset) -> None:
    policy = QueuePolicy(max_batches=2)
    spool = SpoolPolicy(directory=Path(os.environ["HUBSYNC_HOME"]) / "small", max_bytes=9_000_000)
    with uploader(queue=policy, spool=spool, shard=ShardPolicy(max_bytes=1_000_000)) as up:
        hub.stop()
        accepted = 0

        def put_until_full() -> None:
            nonlocal accepted
            for _ in range(1_000):
                up.put([{"id": accepted, "text": "x" * 1_000_000}], ack="queued", timeout=0.5)
                accepted += 1

        with pytest.raises(QueueFull, match="not accepted"):
            put_until_full()
        until(lambda: up.stats().state.kind == "spool full")
        assert up.stats().spool.bytes < 20_000_000
        hub.start()
    assert dataset.ids() == list(range(accepted))


def test_an_unwritable_disk_is_a_clear_error(uploader: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="spool="):
        uploader(spool=tmp_path / "file" / "spool").open()


def test_a_forked_child_gets_a_clear_error_and_harms_nothing(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        up.put(numbered(0, 1))
        child = os.fork()
        if child == 0:
            try:
                up.put(numbered(1, 2))
                os._exit(1)
            except ForkedError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        up.put(numbered(2, 3))
    assert dataset.ids() == [0, 2]


def test_the_token_is_in_no_log_no_file_and_no_commit(
    uploader: Make, hub: LocalHub, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with uploader(shard=ShardPolicy(max_rows=10)) as up:
        hub.faults.add(Fault.status(403, on="commit", times=1))
        hub.faults.add(Fault.status(500, on="*", times=2))
        for n in range(0, 50, 10):
            up.put(numbered(n, n + 10))
        with contextlib.suppress(WriteForbiddenError):
            up.flush()
        text = repr(up) + repr(up.stats()) + repr(vars(up._engine))
    assert hub.token not in caplog.text + text
    for file in (tmp_path / "spool").rglob("*"):
        if file.is_file():
            assert hub.token.encode() not in file.read_bytes(), file
    for path in dataset.paths(""):
        assert hub.token.encode() not in dataset.read(path)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.anyio
async def test_the_async_uploader_delivers_like_the_sync_one(hub: LocalHub, tmp_path: Path) -> None:
    given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST}
    async with AsyncUploader("user/rows", queue=QueuePolicy(max_batches=2), **given) as up:
        import anyio

        async def produce(start: int) -> None:
            for n in range(start, start + 20):
                await up.put([{"id": n}], ack="queued")

        async with anyio.create_task_group() as tasks:
            for n in range(5):
                tasks.start_soon(produce, n * 20)
        receipt = await up.put([{"id": 100}], offset=1)
        await up.flush()
        assert await receipt.wait_async() == receipt.sha is not None
        assert await up.offset() == 1
    with pytest.raises(ClosedError):
        await up.put([{"id": 1}])
    assert await anyio.to_thread.run_sync(Dataset(hub).ids) == list(range(101))


@pytest.mark.anyio
async def test_a_cancelled_block_leaves_its_rows_in_the_spool(hub: LocalHub, tmp_path: Path) -> None:
    import anyio.lowlevel

    given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST}
    with anyio.CancelScope() as scope:
        async with AsyncUploader("user/rows", **given) as up:
            await up.put([{"id": 1}], ack="queued")
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    async with AsyncUploader("user/rows", **given):
        pass
    assert await anyio.to_thread.run_sync(Dataset(hub).ids) == [1]


@pytest.mark.asyncio
async def test_the_async_uploader_runs_under_pytest_asyncio(hub: LocalHub, tmp_path: Path) -> None:
    given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST}
    async with AsyncUploader("user/rows", **given) as up:
        assert (await up.put([{"id": 1}])).state == "spooled"


def test_known_says_whether_a_batch_must_be_generated_again(uploader: Make) -> None:
    with uploader() as up:
        assert not up.known("a")
        up.put([{"id": 1}], key="a")
        assert up.known("a")
        assert not up.known("b")
    with uploader() as up:
        assert up.known("a")


def test_two_threads_that_open_one_uploader_open_it_once(uploader: Make) -> None:
    up = uploader()
    with ThreadPoolExecutor(4) as pool:
        assert [one.result() is up for one in [pool.submit(up.open) for _ in range(4)]] == [True] * 4
    with up:
        assert len(list((up.spool / "writers").glob("*.lock"))) == 1


def test_the_last_stats_stay_readable_after_the_block(uploader: Make) -> None:
    with uploader() as up:
        up.put([{"id": 1}, {"id": 2}])
    stats = up.stats()
    assert (stats.counts.committed_rows, stats.spool.committed_rows, stats.queue.batches) == (2, 2, 0)
    with pytest.raises(ClosedError, match="is closed"):
        up.put([{"id": 3}])
    with pytest.raises(ClosedError, match="is not open"):
        uploader().stats()


def test_a_repo_without_a_namespace_belongs_to_the_tokens_account(uploader: Make, dataset: Dataset) -> None:
    with uploader("rows") as up:
        up.put([{"id": 1}])
        assert up.repo == "user/rows"
    assert dataset.ids() == [1]


def test_a_repo_without_a_namespace_needs_a_hub_that_answers(uploader: Make) -> None:
    with pytest.raises(ConfigError, match=r"'rows' has no namespace, and .* Write it with one, such as 'user/rows'"):
        uploader("rows", endpoint="http://127.0.0.1:9").open()
    with pytest.raises(ConfigError, match="invalid repo id"):
        uploader("")
    with pytest.raises(ConfigError, match="invalid repo id"):
        uploader("a b")
