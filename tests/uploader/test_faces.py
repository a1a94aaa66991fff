"""Uploader and AsyncUploader at awkward moments: slow disks, cancellation, racing closes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from hubsync import AsyncUploader, ConfigError, NotDrained, Uploader
from hubsync._runtime.file_lock import FileLock
from hubsync.localhub import Fault, LocalHub
from hubsync.model.receipt import Receipt
from hubsync.spool.writer import SpoolWriter
from hubsync.telemetry.status import State
from tests.conftest import FAST, Dataset
from tests.waiting import until, until_async
from tests.zygote import Python


def open_async(hub: LocalHub, tmp_path: Path) -> AsyncUploader:
    given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST}
    return AsyncUploader("user/rows", **given)


@contextlib.contextmanager
def busy(spool: Path) -> Iterator[None]:
    """Another process that stalls in a transaction. Calls that return within the block did not wait for it."""
    with contextlib.closing(sqlite3.connect(spool / "catalogue.sqlite", isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield
        db.execute("ROLLBACK")


def test_async_stats_do_not_wait_for_the_spool_thread(hub: LocalHub, tmp_path: Path) -> None:
    """Some thread holds the catalogue's lock, as the spool thread does during an fsync."""
    held, done = threading.Event(), threading.Event()

    async def run() -> None:
        async with open_async(hub, tmp_path) as up:
            await up.put([{"id": 0}, {"id": 1}])
            assert up._engine is not None
            catalogue = up._engine.spool.catalogue

            def hold() -> None:
                with catalogue._lock:
                    held.set()
                    done.wait()

            thread = threading.Thread(target=hold)
            thread.start()
            held.wait()
            try:
                assert up.stats().spool.rows == 2  # else it hangs here
                assert up.stats().oldest_age_s is not None
            finally:
                done.set()
                thread.join()

    asyncio.run(run())


@pytest.mark.parametrize("wrong", [{"ack": "spoled"}, {"timeout": -1}, {"timeout": float("nan")}, {"timeout": "5"}])
def test_both_uploaders_reject_invalid_waits(
    uploader: Callable[..., Uploader], hub: LocalHub, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    async def run() -> None:
        async with open_async(hub, tmp_path) as up:
            with pytest.raises(ConfigError):
                await up.put([{"id": 0}], **wrong)
            with pytest.raises(ConfigError) if "timeout" in wrong else contextlib.nullcontext():
                await up.flush(wrong.get("timeout"))
            assert up.stats().counts.spooled_rows == 0

    asyncio.run(run())
    with uploader() as up:
        with pytest.raises(ConfigError):
            up.put([{"id": 0}], **wrong)
        with pytest.raises(ConfigError) if "timeout" in wrong else contextlib.nullcontext():
            up.flush(wrong.get("timeout"))
        assert up.stats().counts.spooled_rows == 0


@pytest.mark.parametrize("what", ["offset", "status"])
def test_the_callers_event_loop_does_not_wait_for_the_catalogue(hub: LocalHub, tmp_path: Path, what: str) -> None:
    async def run() -> None:
        async with open_async(hub, tmp_path) as up:
            await up.put([{"id": 0}], offset=0)
            assert up._engine is not None
            with busy(tmp_path / "spool"):
                if what == "status":
                    up._engine.status.report("x", State("backing off", "why"))
                else:
                    await up.put([{"id": 1}], ack="queued")
                    await taken(up)
                    await up.put([{"id": 2}], offset=2, ack="queued")

    asyncio.run(run())


async def taken(up: AsyncUploader) -> None:
    """Wait until the spool thread has taken the batch and waits for the other process."""
    assert up._engine is not None
    worker = up._engine
    await until_async(lambda: worker.spool_thread._in_hand)


def test_the_callers_event_loop_continues_while_a_new_column_is_looked_up(hub: LocalHub, tmp_path: Path) -> None:
    async def run() -> None:
        async with open_async(hub, tmp_path) as up:
            await up.put([{"id": 0}])
            async with asyncio.TaskGroup() as tasks:
                with busy(tmp_path / "spool"):
                    tasks.create_task(up.put([{"id": 1}]))
                    await taken(up)
                    tasks.create_task(up.put([{"id": 2, "new": 1}]))
                    await asyncio.sleep(0.2)

    asyncio.run(run())


@pytest.mark.slow("waits for a lock")
def test_a_flush_that_timed_out_does_not_wait_for_the_catalogue(
    hub: LocalHub, tmp_path: Path, uploader: Callable[..., Uploader]
) -> None:
    async def run() -> None:
        async with open_async(hub, tmp_path) as up:
            await up.put([{"id": 0}])
            with busy(tmp_path / "spool"), pytest.raises(NotDrained, match="1 row "):
                await up.flush(timeout=0.1)

    asyncio.run(run())
    with uploader() as up:
        up.put([{"id": 1}])
        with busy(tmp_path / "spool"), pytest.raises(NotDrained, match="1 row "):
            up.flush(timeout=0.1)


def test_a_cancelled_open_releases_the_writers_name(hub: LocalHub, tmp_path: Path) -> None:
    async def run() -> None:
        for _ in range(5):
            up = open_async(hub, tmp_path)
            with suppress(TimeoutError):
                await asyncio.wait_for(up.open(), 0.005)
                await up.close()
            assert up._thread is not None
            up._thread.join()

    asyncio.run(run())
    files = list((tmp_path / "spool" / "writers").glob("*.lock"))
    assert files
    assert all(FileLock(file).holder() is None for file in files)


def test_tasks_that_open_one_uploader_open_it_once(hub: LocalHub, tmp_path: Path) -> None:
    async def run() -> None:
        up = open_async(hub, tmp_path)
        await asyncio.gather(up.open(), up.open(), up.open())
        await up.close()

    asyncio.run(run())
    files = list((tmp_path / "spool" / "writers").glob("*.lock"))
    assert [FileLock(file).holder() for file in files] == [None]


@pytest.mark.parametrize("how", ["in time", "another task", "two tasks"])
def test_any_task_may_close(hub: LocalHub, tmp_path: Path, dataset: Dataset, how: str) -> None:
    async def run() -> None:
        up = await open_async(hub, tmp_path).open()
        await up.put([{"id": 1}])
        if how == "in time":
            await asyncio.wait_for(up.close(), 60)  # Python 3.11 runs it in a separate task
        elif how == "another task":
            await asyncio.create_task(up.close())
        else:
            await asyncio.gather(up.close(), up.close())

    asyncio.run(run())
    assert dataset.ids() == [1]


def test_a_job_whose_threads_are_all_busy_is_uploaded(hub: LocalHub, tmp_path: Path, dataset: Dataset) -> None:
    done = threading.Event()

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(40):  # all of anyio's threads
                tasks.start_soon(anyio.to_thread.run_sync, done.wait)
            await anyio.lowlevel.checkpoint()
            try:
                async with open_async(hub, tmp_path) as up:
                    await up.put([{"id": 1}])
                    await up.flush(timeout=30)
            finally:
                done.set()

    asyncio.run(run())
    assert dataset.ids() == [1]


def test_a_cancelled_open_does_not_wait_for_the_hub(hub: LocalHub, tmp_path: Path) -> None:
    async def run() -> None:
        up = open_async(hub, tmp_path)
        with suppress(TimeoutError):
            await asyncio.wait_for(up.open(), 0.1)
        assert up._thread is not None
        up._thread.join()  # else it hangs

    hub.faults.add(Fault.hang(None, on="repo-info"))
    asyncio.run(run())


def test_closing_from_two_threads_closes_once(uploader: Callable[..., Uploader], dataset: Dataset) -> None:
    for n in range(5):
        up = uploader().open()
        up.put([{"id": n}])
        errors: list[BaseException] = []

        def close(up: Uploader = up, errors: list[BaseException] = errors) -> None:
            try:
                up.close()
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=close) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert not errors
    assert dataset.ids() == list(range(5))


def test_two_threads_whose_close_times_out_get_the_same_error(uploader: Callable[..., Uploader], hub: LocalHub) -> None:
    up = uploader().open()
    up.put([{"id": 1}])
    hub.faults.add(Fault.outage())
    errors: list[BaseException] = []

    def close(timeout: float) -> None:
        with pytest.raises(NotDrained) as error:
            up.close(timeout)
        errors.append(error.value)

    threads = [threading.Thread(target=close, args=(timeout,)) for timeout in (0.1, 0.2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [error.rows for error in errors if isinstance(error, NotDrained)] == [1, 1]


def test_a_put_that_races_with_close_loses_no_accepted_row(uploader: Callable[..., Uploader], dataset: Dataset) -> None:
    accepted: list[int] = []
    up = uploader().open()

    def produce(start: int) -> None:
        n = start
        try:
            while True:
                up.put([{"id": n}])
                accepted.append(n)
                n += 1
        except Exception:
            return

    threads = [threading.Thread(target=produce, args=(k * 1_000_000,)) for k in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(accepted) > 100)
    up.close()
    for thread in threads:
        thread.join(30)
    with uploader():
        pass
    assert set(accepted) <= set(dataset.ids())
    assert len(set(dataset.ids())) == len(dataset.ids())


def test_no_batch_overtakes_another_when_all_tasks_are_cancelled(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    receipts: list[Receipt] = []
    append, slow, held, go_on = SpoolWriter.append, threading.Event(), threading.Event(), threading.Event()

    def held_up(self: SpoolWriter, batches: Any) -> Any:
        if slow.is_set():
            slow.clear()
            held.set()
            go_on.wait()
        return append(self, batches)

    monkeypatch.setattr(SpoolWriter, "append", held_up)

    async def run() -> None:
        async with open_async(hub, tmp_path) as up:
            slow.set()
            for n in range(3):
                receipts.append(await up.put([{"id": n}], offset=n, ack="queued"))
                await until_async(held.is_set)
            threading.Timer(0.2, go_on.set).start()  # while the loop is closing
            for task in asyncio.all_tasks():
                task.cancel()
            await asyncio.sleep(30)

    with suppress(asyncio.CancelledError):
        asyncio.run(run())
    assert [(receipt.state, receipt.replayed) for receipt in receipts] == [("spooled", False)] * 3


FORGOTTEN = """
import sys
from hubsync import RetryPolicy, ShardPolicy, Uploader
endpoint, token, spool = sys.argv[1:]
up = Uploader("user/rows", endpoint=endpoint, token=token, spool=spool, shard=ShardPolicy(linger_s=3600),
    retry=RetryPolicy(initial_s=0.01, max_s=0.05)).open()
up.put([{"id": 1}])
"""


def test_a_forgotten_uploader_drains_at_exit_if_the_hub_has_a_host_name(
    hub: LocalHub, dataset: Dataset, tmp_path: Path, python: Python
) -> None:
    """Each connection looks the name up in an executor, which the interpreter must not shut down first."""
    hub.faults.add(Fault.reset(on="preupload", times=5))
    endpoint = hub.endpoint.replace("127.0.0.1", "localhost")
    done = python.run("-c", FORGOTTEN, endpoint, hub.token, tmp_path / "spool")
    assert dataset.ids() == [1], done.stderr
