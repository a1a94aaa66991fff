"""What dead writers leave behind: torn tails, open segments, obsolete files."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync._runtime import failpoints
from hubsync._runtime.failpoints import Failpoint
from hubsync.spool.spool import Spool
from hubsync.spool.writer import Accepted
from tests.spool.conftest import all_sealed, batch, die, plans_of, shards_of, writer_of


def test_a_torn_tail_is_truncated_to_what_was_accepted(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, 2)])
    (file,) = (spool.directory / "segments").iterdir()
    with file.open("ab") as torn:
        torn.write(b'{"id":3}\n{"id"')
    die(writer)
    spool.recovery.adopt()
    assert all_sealed(spool)[0].file.read_bytes() == b'{"id":1}\n{"id":2}\n'


def test_adopting_in_two_threads_returns_only_once_all_is_adopted(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1)])
    die(writer)
    begun, go_on = threading.Event(), threading.Event()
    recover = spool.recovery.recover

    def slowly(name: str) -> None:
        begun.set()
        go_on.wait()
        recover(name)

    monkeypatch.setattr(spool.recovery, "recover", slowly)
    first, second = threading.Thread(target=spool.recovery.adopt), threading.Thread(target=spool.recovery.adopt)
    first.start()
    begun.wait()
    second.start()
    second.join(0.2)
    go_on.set()
    second.join()
    assert spool.depth().sealed == 1
    first.join()


def test_a_file_that_the_catalogue_does_not_know_is_removed(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    orphan = spool.directory / "segments" / f"{writer.name}-00000099.jsonl"
    orphan.write_bytes(b'{"id":3}\n')
    die(writer)
    writer_of(spool)
    assert not orphan.exists()


def test_a_new_writer_removes_committed_compressed_files_of_its_predecessor(
    open_spool: Callable[..., Spool],
) -> None:
    """Even if that job has nothing to do and ends before it becomes the committer."""
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1)])
    (lines,) = (spool.directory / "segments").iterdir()
    packed = lines.with_name(f"{lines.stem}.1.parquet")
    packed.write_bytes(b"PAR1")
    spool.catalogue.run("UPDATE segments SET state = 'committed', file = ?", packed.name)
    at_work = lines.with_name(f"{writer.name}-00000077.2.parquet")  # another process is compressing it
    at_work.write_bytes(b"PAR1")
    die(writer)
    writer_of(spool)
    assert list((spool.directory / "segments").iterdir()) == [at_work]


def test_after_a_power_cut_whole_lines_are_kept_and_the_loss_is_reported(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, 2, 3)])
    (file,) = (spool.directory / "segments").iterdir()
    os.truncate(file, 14)
    die(writer)
    assert spool.lease.acquire()
    spool.recovery.adopt()
    (shard,) = all_sealed(spool)
    assert (shard.rows, shard.file.read_bytes()) == (1, b'{"id":1}\n')
    assert "power cut" in spool.catalogue.value("SELECT error FROM segments")


def test_a_file_of_a_dead_writer_that_is_refused_for_a_moment_blocks_nothing(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1)])
    (file,) = (spool.directory / "segments").iterdir()
    with file.open("ab") as stream:
        stream.write(b'{"torn"')
    die(writer)

    def refuse(path: Path, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "truncate", refuse)
        spool.recovery.adopt()
        writer = writer_of(spool)
        writer.append([batch(2)])
        writer.seal()
        assert [shard.file.read_bytes() for shard in all_sealed(spool)] == [b'{"id":2}\n']
    spool.clock.advance(2)  # type: ignore[attr-defined]
    assert [shard.file.read_bytes() for shard in all_sealed(spool)] == [b'{"id":1}\n', b'{"id":2}\n']


@pytest.mark.parametrize("sealed", [False, True])
def test_a_batch_lost_entirely_in_a_power_cut_can_be_put_again_by_key(
    open_spool: Callable[..., Spool], sealed: bool
) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    ((first,), _) = writer.append([batch(1, key="a", offset=1)])
    if sealed:
        writer.seal()
    (file,) = (spool.directory / "segments").iterdir()
    os.truncate(file, 0)
    die(writer)
    writer = writer_of(spool)
    assert spool.lease.acquire()
    assert all_sealed(spool) == []
    assert [(shard.id, shard.rows, "power cut" in shard.why) for shard in spool.quarantine.shards()] == [
        (first.segment, 0, True)
    ]
    by_key, by_offset = writer.append([batch(1, key="a"), batch(1, offset=1)])[0]
    assert (by_key.replayed, by_offset) == (False, Accepted(first.segment, True))
    assert spool.segments.outcome(first.segment or 0) == (
        "dead",
        None,
        spool.quarantine.shards()[0].why,
    )  # so no waiter hangs


def test_a_new_committer_notices_a_sealed_file_damaged_by_a_power_cut(
    open_spool: Callable[..., Spool],
) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, 2, 3)])
    writer.seal()
    file = next((spool.directory / "segments").iterdir())
    content = file.read_bytes()
    file.write_bytes(content[:18] + b"\0" * (len(content) - 18))  # a block that was never written
    plans_of(spool)
    (shard,) = spool.shards.to_stage(10, 1 << 40)
    assert (shard.rows, file.read_bytes()) == (2, b'{"id":1}\n{"id":2}\n')
    assert shard.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_committed_file_left_by_a_crash_is_removed(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1)])
    writer.seal()
    (shard,) = all_sealed(spool)
    content = shard.file.read_bytes()
    shards_of(spool).mark_staged({shard.segment: "lfs"})
    plans_of(spool).settle(plans_of(spool).write(shards_of(spool).ready(9, 9), None, None, ""), {shard.segment: "sha"})
    shard.file.write_bytes(content)
    spool.recovery.sweep()
    assert not shard.file.exists()


def test_hashing_a_file_of_another_process_reaches_the_same_failpoint(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process killed there must recover, whoever sealed the segment."""
    spool = open_spool()
    writer_of(spool, max_rows=1).append([batch(1)])
    assert spool.lease.acquire()
    reached: list[Failpoint] = []
    monkeypatch.setattr(failpoints, "listener", reached.append)
    all_sealed(spool)
    assert reached == [Failpoint.HASHED]
