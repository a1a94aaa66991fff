"""Every waiter is notified: of the outcome, or by an error that says what did not happen."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from hubsync import (
    BlockedError,
    ClosedError,
    ConfigError,
    NotDrained,
    QueueFull,
    QueuePolicy,
    RetryPolicy,
    ShardPolicy,
    SpoolLost,
    Uploader,
)
from hubsync._runtime import threads
from hubsync._runtime.file_lock import FileLock
from hubsync.localhub import Fault, LocalHub
from hubsync.uploader.queue import Order
from tests.conftest import Dataset
from tests.waiting import until


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """Start `work`; the returned function returns its result, raises its error, or fails if it hangs."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append((work(), None))
        except BaseException as error:
            found.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def answer() -> Any:
        thread.join(30)
        assert found, "it still waits"
        if found[0][1] is not None:
            raise found[0][1]
        return found[0][0]

    return answer


@pytest.mark.parametrize("source", ["run-\udce9", "", 1.5, b"x", ["a"]])
def test_put_rejects_a_source_that_is_not_text(uploader: Any, dataset: Dataset, source: Any) -> None:
    with uploader() as up:
        with pytest.raises(ConfigError, match="source"):
            up.put([{"id": 1}], offset=0, source=source)
        up.put([{"id": 2}])
    assert dataset.ids() == [2]


def test_a_put_that_waits_for_its_commit_raises_when_another_thread_closes(hub: LocalHub, uploader: Any) -> None:
    up = uploader().open()
    up.put([{"id": 0}], ack="committed")
    hub.faults.add(Fault.outage())
    receipts: list[Any] = []
    waiting = in_thread(lambda: receipts.append(up.put([{"id": 1}])) or receipts[0].wait("committed"))
    until(lambda: receipts)
    with pytest.raises(NotDrained):
        up.close(timeout=0.1)
    with pytest.raises(NotDrained):  # not `ClosedError`, after which a job would repeat the batch
        waiting()
    assert receipts[0].state == "spooled"


def test_a_put_that_was_accepted_during_a_close_does_not_raise(uploader: Any, dataset: Dataset) -> None:
    up: Uploader = uploader().open()
    assert up._engine is not None
    queue, put = up._engine.queue, up._engine.queue.put

    def then_close(*args: Any) -> bool:
        accepted = put(*args)
        queue.close()
        return accepted

    queue.put = then_close  # type: ignore[method-assign]
    with pytest.raises(NotDrained):
        up.put([{"id": 1}], ack="committed")
    up.close()
    with uploader():
        pass
    assert dataset.ids() == [1]


def test_a_put_that_waits_for_its_commit_raises_if_an_operator_must_act(
    uploader: Any, hub: LocalHub, dataset: Dataset
) -> None:
    with uploader() as up:
        up.put([{"id": 1}], ack="committed")
        hub.faults.add(Fault.status(403, on="commit"))
        with pytest.raises(BlockedError):
            in_thread(lambda: up.put([{"id": 2}], ack="committed"))()
        hub.faults.clear()
        until(lambda: up.stats().spool.rows == 0)  # an attempt on its way is still refused
    assert dataset.ids() == [1, 2]


def test_what_blocked_the_previous_job_ends_no_flush_of_this_one(
    uploader: Any, hub: LocalHub, dataset: Dataset
) -> None:
    """Its token was replaced, and the Hub is slow to answer at first."""
    with uploader() as up:
        up.put([{"id": 1}], ack="committed")
        spool = up.spool
    with contextlib.closing(sqlite3.connect(spool / "catalogue.sqlite")) as db, db:
        db.execute("""UPDATE meta SET value = '{"kind":"blocked","reason":"401"}' WHERE key = 'status'""")
        assert db.total_changes == 1
    hub.faults.add(Fault.hang(1, on="repo-info", times=2))
    with uploader(retry=RetryPolicy(initial_s=0.01, max_s=0.05, request_timeout_s=0.2)) as up:
        up.put([{"id": 2}])
        up.flush()
    assert dataset.ids() == [1, 2]


def test_a_flush_does_not_succeed_while_the_spool_takes_no_writes(uploader: Any) -> None:
    up: Uploader = uploader(retry=RetryPolicy(initial_s=0.01, max_s=0.05)).open()
    up.put([{"id": 1}])
    assert up._engine is not None
    up._engine.spool.catalogue.run("PRAGMA query_only = ON")
    flushing = in_thread(up.flush)
    with pytest.raises(NotDrained):
        up.close(timeout=0.2)
    with pytest.raises(NotDrained):
        flushing()


@pytest.mark.slow("waits for retries")
def test_a_flush_survives_a_moment_in_which_no_file_can_be_opened(
    uploader: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, refused = FileLock.holder, threading.Event()

    def refuse(self: FileLock) -> int | None:
        if not (self.held or refused.is_set()):
            refused.set()
            raise OSError(24, "Too many open files")
        return holder(self)

    with uploader() as commits, uploader() as follows:
        until(lambda: commits._engine.spool.lease.is_held)
        follows.put([{"id": 1}])
        monkeypatch.setattr(FileLock, "holder", refuse)
        in_thread(lambda: follows._engine.flush(everything=True).wait())()
        assert refused.is_set()
        follows.put([{"id": 2}])
    assert dataset.ids() == [1, 2]


def test_a_moment_without_free_threads_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    start, refusals = threading.Thread.start, [1, 2]

    def refuse(self: threading.Thread) -> None:
        if refusals:
            refusals.pop()
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threads, "_NO_THREAD_S", 0)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert anyio.run(threads.run_in_thread, divmod, 7, 2) == (3, 1)
    assert not refusals


def test_flushes_with_nothing_to_do_are_not_kept(uploader: Any) -> None:
    with uploader() as up:
        for _ in range(50):
            up.flush()
        assert len(up._engine.delivery._flushes) == 0


def test_waiters_that_gave_up_are_not_kept(uploader: Any, hub: LocalHub) -> None:
    with uploader(shard=ShardPolicy(max_rows=1, linger_s=3600)) as up:
        up.put([{"id": 0}], ack="committed")
        hub.faults.add(Fault.outage())
        receipts = [up.put([{"id": n}]) for n in (1, 2)]
        with pytest.raises(NotDrained):
            up.flush(timeout=0)
        with pytest.raises(TimeoutError):
            up.put([{"id": 3}], ack="committed", timeout=0)
        with pytest.raises(TimeoutError):
            receipts[0].wait(timeout=0)
        with pytest.raises(TimeoutError):
            anyio.run(lambda: receipts[1].wait_async(timeout=0))
        go_on = threading.Event()
        up._engine.queue.order(Order(go_on.wait))
        queued = up.put([{"id": 4}], ack="queued")
        with pytest.raises(TimeoutError):
            queued.wait(timeout=0)
        assert not queued._callbacks
        go_on.set()
        queued.wait("spooled")
        fates = up._engine.delivery
        assert not fates._flushes
        assert [fate.subscribers() for fate in fates._pending.values()] == [0] * 4
        hub.faults.clear()


def test_a_put_that_waits_for_its_commit_looks_up_only_its_own_segment(
    uploader: Any, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    with uploader(shard=ShardPolicy(max_rows=1, linger_s=3600)) as up:
        up.put([{"id": 0}], ack="committed")
        hub.faults.add(Fault.outage())
        for n in range(1, 20):
            up.put([{"id": n}])
        delivery, asked = up._engine.delivery, []
        read = delivery._read  # the spool thread's; `read_outcomes` looks up all of them once, at the start
        monkeypatch.setattr(delivery, "_read", lambda segments: read(asked.extend(segments) or segments))
        with pytest.raises(TimeoutError):
            up.put([{"id": 20}], ack="committed", timeout=0)
        with pytest.raises(NotDrained):
            up.flush(timeout=0.1)
        assert len(set(asked)) <= 1  # its own segment, which was sealed with the take
        hub.faults.clear()


def test_an_offline_put_returns_once_its_rows_are_spooled(uploader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with uploader() as up:
        assert in_thread(lambda: up.put([{"id": 1}], ack="committed"))().state == "spooled"


def test_a_released_reserve_is_filled_again_without_a_hub(
    uploader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with uploader() as up:
        up.put([{"id": 0}])
    (tmp_path / "spool" / "reserve").write_bytes(b"")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with uploader() as up:
        assert in_thread(lambda: up.put([{"id": 1}]))().state == "spooled"
    assert os.path.getsize(tmp_path / "spool" / "reserve") > 0


@pytest.mark.parametrize("why", ["dropped", "lost"])
def test_an_error_that_many_waiters_share_keeps_no_rows_in_memory(uploader: Any, why: str) -> None:
    class Rows(list):  # type: ignore[type-arg]
        pass

    kept: list[weakref.ref[Rows]] = []
    go_on = threading.Event()

    def put(up: Uploader, n: int) -> None:
        rows = Rows([{"id": n}])
        kept.append(weakref.ref(rows))
        with contextlib.suppress(QueueFull, SpoolLost, TimeoutError):
            up.put(rows, ack="queued").wait("spooled", timeout=0.01)

    with contextlib.suppress(SpoolLost), uploader(queue=QueuePolicy(max_batches=1, when_full="drop")) as up:
        if why == "lost":
            up.spool.rename(up.spool.with_name("deleted"))  # at once: rmtree races with the heartbeat
            until(lambda: up._engine.failure is not None)
        else:
            up._engine.queue.order(Order(go_on.wait))
        for n in range(20):
            put(up, n)
        gc.collect()
        alive = sum(rows() is not None for rows in kept)
        go_on.set()
    assert alive <= 1


def test_rows_accepted_while_another_thread_closes_are_on_the_hub_afterwards(uploader: Any, dataset: Dataset) -> None:
    up: Uploader = uploader(shard=ShardPolicy(max_rows=50, linger_s=3600)).open()
    accepted: list[int] = []

    def produce(start: int) -> None:
        with contextlib.suppress(ClosedError):
            for n in itertools.count(start, 4):
                up.put([{"id": n}])
                accepted.append(n)

    producers = [threading.Thread(target=produce, args=(start,)) for start in range(4)]
    for producer in producers:
        producer.start()
    until(lambda: len(accepted) > 200)
    up.close()
    for producer in producers:
        producer.join()
    assert dataset.ids() == sorted(accepted)
