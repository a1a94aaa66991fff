"""The disk, the catalogue or the Hub fails at an awkward moment: no waiter hangs, and nothing is lost."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from hubsync import (
    AsyncUploader,
    ClosedError,
    HubsyncError,
    RetryPolicy,
    ShardPolicy,
    ShardsRefused,
    SpoolError,
    Uploader,
)
from hubsync.errors import SpoolLost
from hubsync.localhub import Fault, LocalHub
from hubsync.model.batch import Batch
from hubsync.model.receipt import Receipt
from hubsync.spool import database, writer
from hubsync.uploader import engine, monitor
from hubsync.uploader.queue import Order
from tests.conftest import FAST, Dataset
from tests.waiting import until

Make = Callable[..., Uploader]
ONE = ShardPolicy(max_rows=1, linger_s=3600)


def batch(*ids: int) -> Batch:
    lines = b"".join(b'{"id":%d}\n' % n for n in ids)
    return Batch(lines, len(ids), Receipt(len(ids), len(lines)))


class failing:
    """Return `work`, raising `error` the first `times`."""

    def __init__(self, times: int, error: Exception, work: Callable[..., Any]) -> None:
        self.left, self._error, self._work = times, error, work

    def __call__(self, *args: Any, **about: Any) -> Any:
        if self.left > 0:
            self.left -= 1
            raise self._error
        return self._work(*args, **about)

    def is_over(self) -> bool:
        return self.left == 0


def test_a_bug_in_the_spool_thread_wakes_all_waiters(uploader: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    up = uploader().open()
    monkeypatch.setattr(
        up._engine.spool_thread.writer, "append", failing(9, sqlite3.IntegrityError("UNIQUE"), lambda *a: None)
    )
    with pytest.raises(HubsyncError):
        up.put([{"id": 1}], timeout=10)
    with pytest.raises(ClosedError):
        up.close()


def test_all_batches_of_a_take_fail_if_the_spool_is_lost(uploader: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    up = uploader().open()
    worker = up._engine
    monkeypatch.setattr(worker.spool_thread.writer, "append", failing(9, SpoolLost("gone"), lambda *a: None))
    first, second = batch(1), batch(2)
    begun, go_on = threading.Event(), threading.Event()
    worker.queue.order(Order(lambda: begun.set() or go_on.wait()))
    begun.wait()  # what comes now is one take
    worker.queue.put(first)
    asked = worker.flush()
    worker.queue.put(second)
    go_on.set()
    for receipt in (first.receipt, asked, second.receipt):
        with pytest.raises(SpoolLost):
            receipt.wait(timeout=10)
    with pytest.raises(SpoolLost):
        up.close()


def test_a_flush_fails_if_the_spool_is_lost(uploader: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    up = uploader().open()
    monkeypatch.setattr(up._engine.spool_thread.writer, "seal", failing(9, SpoolLost("gone"), lambda: None))
    with pytest.raises(SpoolLost):
        up.flush(timeout=10)
    with pytest.raises(SpoolLost):
        up.close()


def test_a_catalogue_that_cannot_be_read_for_a_while_ends_nothing(
    uploader: Make, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may return EIO now and then: reading the state must not end the job."""
    with uploader(shard=ShardPolicy(max_rows=1, linger_s=3600)) as up:
        spool = up._engine.spool
        up.put([{"id": 0}])
        error = SpoolError("disk I/O error")
        monkeypatch.setattr(spool, "depth", failing(5, error, spool.depth))
        monkeypatch.setattr(spool.segments, "outcome", failing(5, error, spool.segments.outcome))
        monkeypatch.setattr(
            up._engine.spool_thread.writer, "append", failing(2, error, up._engine.spool_thread.writer.append)
        )
        assert up.put([{"id": 1}], timeout=30).state in ("spooled", "committed")
    assert dataset.ids() == [0, 1]


@contextmanager
def committing_and_following(uploader: Make, **given: Any) -> Iterator[tuple[Any, Any]]:
    """Two uploaders of one spool; the first one commits."""
    with uploader(**given) as commits:
        until(lambda: commits._engine.spool.lease.is_held)
        with uploader(**given) as follows:
            yield commits, follows


def test_a_follower_of_another_committer_survives_a_disk_error(
    uploader: Make, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_FOLLOW_S", 0.05)
    with committing_and_following(uploader) as (_, follows):
        spool = follows._engine.spool
        refuse = failing(3, SpoolError("disk I/O error"), spool.segments.outcome)
        monkeypatch.setattr(spool.segments, "outcome", refuse)
        receipt = follows.put([{"id": 1}])
        until(refuse.is_over)
        follows.flush(timeout=30)
        assert receipt.state == "committed"
    assert dataset.ids() == [1]


def test_a_torn_tail_that_could_not_be_cut_is_cut_before_the_next_append(
    uploader: Make, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, torn_once = threading.Event(), threading.Event()
    write, truncate = writer._write_all, os.ftruncate

    def torn(fd: int, parts: list[bytes]) -> None:
        write(fd, parts)
        if broken.is_set():
            torn_once.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def refuse(fd: int, length: int) -> None:
        if broken.is_set():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        truncate(fd, length)

    with uploader() as up:
        up.put([{"id": 0}])
        monkeypatch.setattr(writer, "_write_all", torn)
        monkeypatch.setattr(os, "ftruncate", refuse)
        broken.set()
        with pytest.raises(TimeoutError):
            up.put([{"id": 1}], timeout=0.1)
        torn_once.wait()
        broken.clear()
        up.put([{"id": 2}], timeout=30)
    assert dataset.ids() == [0, 1, 2]


def test_a_checkpoint_is_postponed_if_no_file_can_be_opened(
    uploader: Make, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "_CHECKPOINT_BYTES", 1)
    monkeypatch.setattr(monitor, "_REFRESH_S", 0.05)
    with uploader() as up:
        up.put([{"id": 0}])
        fail = failing(3, sqlite3.OperationalError("unable to open database file"), sqlite3.connect)
        monkeypatch.setattr(database.sqlite3, "connect", fail)
        until(fail.is_over)
    assert dataset.ids() == [0]


def test_the_write_ahead_log_stays_short_while_the_hub_is_unreachable(
    uploader: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(database, "_CHECKPOINT_BYTES", 100_000)
    monkeypatch.setattr(monitor, "_REFRESH_S", 0.05)
    log = tmp_path / "spool" / "catalogue.sqlite-wal"
    looks: list[object] = []
    with uploader() as up:
        catalogue = up._engine.spool.catalogue
        checkpoint = catalogue.checkpoint
        monkeypatch.setattr(catalogue, "checkpoint", lambda **how: looks.append(checkpoint(**how)))
        sizes = []
        for start in range(0, 1_200, 200):
            for n in range(start, start + 200):
                up.put([{"id": n}], key=str(n))
            sizes.append(log.stat().st_size)
            before = len(looks)
            until(lambda before=before: len(looks) > before + 1)  # one that began after the last put
        assert sizes[-1] < 3 * sizes[0], sizes


@pytest.mark.slow("fills a write-ahead log again and again")
def test_the_write_ahead_log_restarts_even_if_writers_leave_no_gap(
    uploader: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(database, "_CHECKPOINT_BYTES", 100_000)
    stop = threading.Event()
    with uploader() as up:

        def puts() -> None:
            while not stop.is_set():
                up.put([{"id": 0}])

        thread = threading.Thread(target=puts)
        thread.start()
        log, begun = tmp_path / "spool" / "catalogue.sqlite-wal", set()
        while len(begun) < 4:  # each restart writes another salt to its header
            begun.add(log.read_bytes()[16:24])
            time.sleep(0.05)
        stop.set()
        thread.join()


def test_rows_in_memory_that_no_spool_accepted_are_reported(
    uploader: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    up = uploader().open()
    monkeypatch.setattr(up._engine.spool_thread.writer, "append", failing(999, SpoolError("full"), lambda *a: None))
    receipt = up.put([{"id": 0}, {"id": 1}], ack="queued")
    with pytest.raises(HubsyncError):
        up.close(timeout=0.5)
    assert receipt.state == "dropped"
    assert any("2 rows in memory were not accepted" in record.message for record in caplog.records)


@pytest.mark.parametrize("on", ["commit", "preupload"])
def test_an_unexpected_rejection_quarantines_no_shard(uploader: Make, hub: LocalHub, dataset: Dataset, on: str) -> None:
    """A proxy rejects it; the Hub would have accepted it."""
    with uploader() as up:
        up.put([{"id": 1}], ack="committed")
        hub.faults.add(Fault.status(400, on=on, times=2))
        up.put([{"id": 2}])
        up.flush(timeout=30)
    assert dataset.ids() == [1, 2]


def test_a_blocked_job_stays_blocked_until_the_operator_acts(uploader: Make, hub: LocalHub, dataset: Dataset) -> None:
    retry = RetryPolicy(initial_s=0.01, max_s=0.02, blocked_s=0.2)
    with pytest.raises(ShardsRefused), uploader(shard=ONE, retry=retry) as up:
        fault = hub.faults.add(Fault.status(400, on="preupload", body='{"error": "too many files"}'))
        for n in range(8):
            up.put([{"id": n}])
        until(lambda: up.stats().state.kind == "blocked")
        seen, tries = set(), hub.faults.struck(fault)
        while hub.faults.struck(fault) < tries + 5:
            seen.add(up.stats().state.kind)
            time.sleep(0.01)
        assert seen == {"blocked"}
        repair(hub, up)


def repair(hub: LocalHub, up: Any) -> None:
    """Remove all faults and wait until the job notices: an attempt on its way still fails, and close would raise it."""
    hub.faults.clear()
    until(lambda: up.stats().spool.rows == 0)


def refuse(hub: LocalHub, up: Any, n: int) -> None:
    """Put a row that is rejected before anything waits for it."""
    fault, spool = hub.faults.add(Fault.status(422, on="commit")), up._engine.spool
    dead = spool.depth().dead
    up._engine.queue.put(batch(n))
    until(lambda: spool.depth().dead > dead)
    hub.faults.remove(fault)


def test_the_next_flush_reports_earlier_rejections_once(uploader: Make, hub: LocalHub, dataset: Dataset) -> None:
    with uploader(shard=ONE) as up:
        up.put([{"id": 0}], ack="committed")
        refuse(hub, up, 1)
        refuse(hub, up, 2)
        up.put([{"id": 3}], ack="committed")  # reports only itself
        with pytest.raises(ShardsRefused, match="422") as error:
            up.flush()
        assert (error.value.shards, error.value.rows) == (2, 2)
        up.flush()
    assert dataset.ids() == [0, 3]


def test_close_reports_earlier_rejections(uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    with pytest.raises(ShardsRefused), uploader(shard=ONE) as up:
        refuse(hub, up, 1)

    async def run() -> None:
        given = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "other", **FAST, "shard": ONE}
        async with AsyncUploader("user/rows", **given) as up:
            await anyio.to_thread.run_sync(refuse, hub, up, 2)

    with pytest.raises(ShardsRefused):
        anyio.run(run)


def test_earlier_rejections_do_not_replace_the_jobs_own_error(uploader: Make, hub: LocalHub) -> None:
    with pytest.raises(ZeroDivisionError) as ended, uploader(shard=ONE) as up:
        refuse(hub, up, 1)
        1 / 0  # noqa: B018
    assert "422" in str(ended.value.__notes__)


def test_rejections_are_reported_to_the_uploader_whose_rows_they_were(uploader: Make, hub: LocalHub) -> None:
    with committing_and_following(uploader, shard=ONE) as (_, follows):
        refuse(hub, follows, 1)
        with pytest.raises(ShardsRefused):
            follows.flush()


@pytest.mark.slow("makes many commits")
def test_if_every_commit_is_rejected_the_rows_are_not_at_fault(uploader: Make, hub: LocalHub, dataset: Dataset) -> None:
    """For example, a full folder in the repo: a few shards are quarantined, then an operator must act."""
    retry = RetryPolicy(initial_s=0.01, max_s=0.02, blocked_s=0.2)
    with (
        pytest.raises(ShardsRefused),
        uploader(shard=ONE, retry=retry) as up,
    ):  # of those few, which no flush has reported
        up.put([{"id": 0}], ack="committed")
        hub.faults.add(Fault.status(400, on="commit", body='{"error": "too many files"}'))
        for n in range(1, 9):
            up.put([{"id": n}])
        with pytest.raises(HubsyncError, match="too many files"):
            up.flush(timeout=30)
        until(lambda: up.stats().state.kind == "blocked")
        assert up.stats().spool.dead == 3
        repair(hub, up)
    assert len(dataset.ids()) == 6
