"""The disk under the spool: full, read-only, slow, gone. Nothing accepted is lost, and nothing is silent."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hubsync import CommitPolicy, SchemaPolicy, ShardPolicy, SpoolError, SpoolLost, SpoolPolicy, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.inspect import inspect_spool
from hubsync.maintenance.quarantine import QuarantineCommands
from hubsync.spool import writer
from hubsync.uploader.queue import Order
from tests.conftest import Dataset
from tests.waiting import until

MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of 4 MiB, or of the size that the test asks for."""
    where = tmp_path / "disk"
    where.mkdir()
    size = f"size={getattr(request, 'param', 4)}m"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(where)], capture_output=True)
    if done.returncode:
        pytest.skip("only root may mount a disk")
    try:
        yield where
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def rows(start: int, count: int, size: int = 1000) -> list[dict[str, Any]]:
    return [{"id": n, "text": "x" * size} for n in range(start, start + count)]


def fill(file: Path) -> None:
    """Take every free block, so that not even the catalogue can grow."""
    with file.open("wb", buffering=0) as junk, suppress(OSError):
        while True:
            junk.write(bytes(4096))


def delete(directory: Path) -> None:
    while directory.exists():  # its job creates files meanwhile
        shutil.rmtree(directory, ignore_errors=True)


def producer(up: Uploader, accepted: list[int], most: int) -> threading.Thread:
    def produce() -> None:
        for n in range(most):
            up.put(rows(n, 1, 10_000))
            accepted.append(n)

    thread = threading.Thread(target=produce)
    thread.start()
    return thread


@pytest.mark.slow("writes more than the disk holds")
def test_a_full_disk_blocks_the_producer_until_commits_make_room(
    hub: LocalHub, uploader: Any, dataset: Dataset, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accepted: list[int] = []
    with uploader(spool=small_disk / "spool", shard=ShardPolicy(max_rows=20, linger_s=0.1)) as up:
        hub.faults.add(Fault.outage())
        thread = producer(up, accepted, 900)  # more than twice what the disk holds
        # If others take the room of the released reserve before the catalogue does, commits stop until there is room.
        # This test is about those that come a moment later, when the spool thread waits for room.
        room = up._engine.spool_thread._has_room
        room.set()
        until(lambda: up.stats().state.kind == "spool full" and room._lock.locked())  # it waits again
        before = len(accepted)
        assert before < 500
        fill(small_disk / "junk")
        hub.faults.clear()
        until(lambda: up.stats().spool.committed_rows >= before // 2)
        (small_disk / "junk").unlink()
        thread.join()
    assert dataset.ids() == accepted == list(range(900))
    assert any("full" in record.message for record in caplog.records if record.levelno == logging.ERROR)


@pytest.mark.slow("writes more than the disk holds")
@pytest.mark.parametrize(("small_disk", "count"), [(4, 1_000), (20, 3_000)], indirect=["small_disk"])
def test_a_job_that_outruns_its_disk_continues_while_the_hub_answers(
    uploader: Any, dataset: Dataset, small_disk: Path, count: int
) -> None:
    """Nothing is sealed before the disk is full: the open segment and the write-ahead log fill it."""
    with uploader(spool=small_disk / "spool", shard=ShardPolicy(linger_s=3600)) as up:
        for n in range(count):
            up.put(rows(n, 1, 10_000), offset=n, timeout=60)
    assert dataset.ids() == list(range(count))


@pytest.mark.slow("writes three times what the disk holds")
@pytest.mark.parametrize(
    ("small_disk", "left", "size", "format"),
    [(80, 6, 40_000, "jsonl"), (24, 22, 120_000, "parquet")],
    indirect=["small_disk"],
)
def test_a_job_continues_with_the_little_room_that_others_leave_on_a_disk(
    uploader: Any, dataset: Dataset, small_disk: Path, left: int, size: int, format: str
) -> None:
    """It is too little for the full reserve, and compressing a shard needs its room a second time."""
    disk = os.statvfs(small_disk)
    with (small_disk / "others").open("wb") as others:
        os.posix_fallocate(others.fileno(), 0, disk.f_blocks * disk.f_frsize - left * MIB)
    text = random.Random(1).randbytes(size // 2).hex()
    with uploader(spool=small_disk / "spool", format=format, shard=ShardPolicy(linger_s=3600)) as up:
        for n in range(left * 3 * MIB // size):
            up.put([{"id": n, "text": text[n % 97 :]}], timeout=60)
    assert dataset.ids() == list(range(left * 3 * MIB // size))


@pytest.mark.slow("writes more than the disk holds")
def test_segments_sealed_because_of_a_full_disk_are_committed_early(
    hub: LocalHub, uploader: Any, dataset: Dataset, small_disk: Path
) -> None:
    with uploader(spool=small_disk / "spool", commit=CommitPolicy()) as up:
        hub.faults.add(Fault.outage())
        thread = producer(up, [], 500)
        until(lambda: up.stats().state.kind == "spool full" and up.stats().spool.open == 0)
        until(lambda: up._engine.spool.catalogue.value("SELECT min(urgent) FROM segments WHERE state = 'sealed'"))
        hub.faults.clear()
        thread.join()
    assert dataset.ids() == list(range(500))


_FILLS_THE_DISK_AND_DIES = """
import os, signal, sys
from hubsync import Uploader
with Uploader("user/rows", endpoint=sys.argv[1], spool=sys.argv[2], schema=None) as up:
    try:
        for n in range(10_000):
            up.put([{"id": n, "text": "x" * 10_000}], offset=n, timeout=3)
    except TimeoutError:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow("fills a disk in another process")
def test_a_job_can_start_after_one_was_killed_on_a_full_disk(
    hub: LocalHub, uploader: Any, dataset: Dataset, small_disk: Path
) -> None:
    spool = small_disk / "spool"
    job = [sys.executable, "-c", _FILLS_THE_DISK_AND_DIES, hub.endpoint, str(spool)]
    hub.faults.add(Fault.outage(on="commit"))
    assert subprocess.run(job, env={**os.environ, "HF_TOKEN": hub.token}).returncode == -signal.SIGKILL
    hub.faults.clear()
    fill(small_disk / "junk")
    with uploader(spool=spool) as up:
        start = up.offset() + 1
        assert start > 100
        until(lambda: up.stats().spool.committed_rows == start)
        up.put(rows(start, 1), offset=start, timeout=60)
    assert dataset.ids() == list(range(start + 1))


def test_the_error_names_a_disk_that_has_no_room_for_a_new_spool(uploader: Any, small_disk: Path) -> None:
    fill(small_disk / "junk")
    with pytest.raises(SpoolError, match=r"the disk .* is full.* safe"):
        uploader(spool=small_disk / "spool").open()


def test_a_job_waits_for_a_disk_that_became_read_only(
    hub: LocalHub, uploader: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel does that after a disk error; a real remount is refused while files are open."""
    write = writer._write_all
    read_only = threading.Event()

    def refuse(fd: int, parts: list[bytes]) -> None:
        if read_only.is_set():
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        write(fd, parts)

    monkeypatch.setattr(writer, "_write_all", refuse)
    with uploader(shard=ShardPolicy(max_rows=5, linger_s=0.1)) as up:
        for n in range(20):
            up.put(rows(n, 1, 10_000))
        read_only.set()
        up._engine.spool.catalogue.run("PRAGMA query_only = ON")
        waiting = up.put(rows(20, 80, 10_000), ack="queued")
        until(lambda: up.stats().state.kind == "spool full")
        assert waiting.state == "queued"
        up._engine.spool.catalogue.run("PRAGMA query_only = OFF")
        read_only.clear()
    assert dataset.ids() == list(range(100))


@pytest.mark.slow("writes more than the spool holds")
def test_a_spool_that_is_smaller_than_a_shard_works(uploader: Any, dataset: Dataset, tmp_path: Path) -> None:
    accepted: list[int] = []
    spool = SpoolPolicy(directory=tmp_path / "spool", max_bytes=4 * MIB)
    with uploader(spool=spool, shard=ShardPolicy(linger_s=3600)) as up:
        producer(up, accepted, 1_000).join()
    assert dataset.ids() == list(range(1_000))


@pytest.mark.slow("fills a quota of megabytes")
def test_the_dead_letter_counts_towards_the_spools_quota_and_the_state_says_so(
    uploader: Any, dataset: Dataset, tmp_path: Path
) -> None:
    spool = SpoolPolicy(directory=tmp_path / "spool", max_bytes=2 * MIB)
    accepted: list[int] = []
    with uploader(spool=spool, schema=SchemaPolicy(on_conflict="dead letter")) as up:
        up.put([{"id": 0, "text": 1}])
        thread = producer(up, accepted, 250)  # whose text is no number
        until(lambda: up.stats().state.kind == "spool full")
        assert "2.1 MB of them in the dead letter" in up.stats().state.reason
        assert f"hubsync dead-letter list {tmp_path / 'spool'}" in up.stats().state.reason
        with QuarantineCommands(tmp_path / "spool") as letter:
            for shard in letter.shards():
                letter.discard(shard)
        thread.join()
    assert (dataset.ids(), len(accepted)) == ([0], 250)


def test_the_error_names_a_disk_that_is_read_only_at_the_start(uploader: Any, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(SpoolError, match=str(small_disk)):
        uploader(spool=small_disk / "spool").open()


def test_inspecting_or_opening_a_spool_on_a_read_only_disk_says_so(
    uploader: Any, small_disk: Path, dataset: Dataset
) -> None:
    spool = small_disk / "spool"
    with uploader(spool=spool) as up:
        up.put([{"id": 1}])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for attempt in (lambda: inspect_spool(spool), lambda: uploader(spool=spool).open()):
        with pytest.raises(SpoolError, match=rf"{spool} is read-only here.* copy"):
            attempt()
    assert dataset.ids() == [1]


def test_a_slow_disk_does_not_delay_puts_that_only_queue(
    uploader: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    write = writer._write_all

    def slow(fd: int, parts: list[bytes]) -> None:
        go_on.wait(60)
        write(fd, parts)

    with uploader() as up:
        monkeypatch.setattr(writer, "_write_all", slow)
        receipts = [up.put(rows(n, 1), ack="queued") for n in range(100)]
        assert {receipt.state for receipt in receipts} == {"queued"}
        with pytest.raises(TimeoutError, match="in memory"):
            up.put(rows(100, 1), timeout=0.05)
        go_on.set()
    assert dataset.ids() == list(range(101))


def test_deleting_the_spool_of_a_running_job_is_an_error_at_once(
    hub: LocalHub, uploader: Any, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(SpoolLost, match="2 rows"), uploader(shard=ShardPolicy(linger_s=3600)) as up:
        up.put(rows(0, 2))
        delete(tmp_path / "spool")
        up.put(rows(2, 1))
    with pytest.raises(SpoolLost), uploader() as up:
        up.put(rows(0, 1))
        delete(tmp_path / "spool")
        until(lambda: up._engine.failure is not None)
        up.put(rows(1, 1))
    with uploader() as up:
        up.put(rows(7, 1))
    assert dataset.ids() == [7]


def test_deleting_the_segments_of_a_running_job_is_an_error_at_once(uploader: Any, tmp_path: Path) -> None:
    with pytest.raises(SpoolLost, match="2 rows"), uploader(shard=ShardPolicy(linger_s=3600)) as up:
        up.put(rows(0, 2))
        delete(tmp_path / "spool" / "segments")
        up.put(rows(2, 1))


def test_deleting_the_catalogue_of_a_running_job_names_the_command_that_recovers_its_rows(
    uploader: Any, tmp_path: Path
) -> None:
    with (
        pytest.raises(SpoolLost, match=r"2 rows .* still there\. .*hubsync drain --rescue"),
        uploader(shard=ShardPolicy(linger_s=3600)) as up,
    ):
        up.put(rows(0, 2))
        for file in (tmp_path / "spool").glob("catalogue.sqlite*"):
            file.unlink()
        up.put(rows(2, 1))


def test_a_writer_whose_lock_file_was_deleted_is_not_taken_for_dead(uploader: Any, tmp_path: Path) -> None:
    with uploader(shard=ShardPolicy(linger_s=3600)) as up:
        up.put(rows(0, 2))
        for file in (tmp_path / "spool" / "writers").glob("*.lock"):
            file.unlink()
        up._engine.spool.recovery.adopt()
        assert up._engine.spool.depth().open == 1


def test_the_error_counts_rows_that_were_on_their_way_to_a_deleted_spool(uploader: Any, tmp_path: Path) -> None:
    deleted = threading.Event()
    with pytest.raises(SpoolLost, match="3 rows in memory were not accepted"), uploader() as up:
        up._engine.queue.order(Order(deleted.wait))
        receipt = up.put(rows(0, 3), ack="queued")
        delete(tmp_path / "spool")
        deleted.set()
    assert receipt.state == "dropped"


def test_a_spool_that_lost_its_catalogue_is_not_created_again(hub: LocalHub, uploader: Any, tmp_path: Path) -> None:
    hub.faults.add(Fault.outage())
    up = uploader().open()
    up.put(rows(0, 1))
    with pytest.raises(Exception, match="not enough"):
        up.close(timeout=0.1)
    for file in (tmp_path / "spool").glob("catalogue*"):
        file.unlink()
    with pytest.raises(SpoolError, match="hubsync drain --rescue"):
        uploader().open()


def test_a_start_that_fails_on_the_disk_releases_the_writers_name(
    uploader: Callable[..., Uploader], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with uploader() as up:
        monkeypatch.setattr("hubsync.spool.writers.write_atomically", refuse)
        for _ in range(3):
            with pytest.raises(SpoolError, match="No space left"):
                uploader().open()
        monkeypatch.undo()
        with uploader():
            pass
        assert len(list((up.spool / "writers").glob("*.json"))) == 2


def test_a_start_waits_for_another_start_for_a_bounded_time(
    uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example, a `hubsync dashboard` that was stopped by Ctrl-Z while it was reading."""
    monkeypatch.setattr("hubsync.spool.database._TURN_S", 0.1)
    (tmp_path / "spool").mkdir(0o700)
    stopped = os.open(tmp_path / "spool", os.O_RDONLY)
    fcntl.flock(stopped, fcntl.LOCK_SH)
    try:
        with uploader() as up:
            up.put([{"id": 1}])
    finally:
        os.close(stopped)
    assert dataset.ids() == [1]
