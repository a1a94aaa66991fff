"""A segment file that cannot be read is quarantined alone, after a few attempts; everything else continues."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import NotDrained, ShardPolicy, ShardsRefused, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from hubsync.maintenance.quarantine import QuarantineCommands
from hubsync.spool import shards as shards_module
from hubsync.spool import unreadable
from hubsync.spool.spool import Spool
from tests.conftest import FAST, Dataset
from tests.spool.conftest import all_sealed, batch, die, shards_of, writer_of
from tests.waiting import until


def directory_in_its_place(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "somebody's").write_text("file")


def pipe_in_its_place(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)  # opening it would wait forever


def loop_of_links(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def bad_blocks(file: Path) -> None:
    """Reading this process's memory from address 0 fails with EIO."""
    file.unlink()
    file.symlink_to("/proc/self/mem")


def cut_short(file: Path) -> None:
    os.truncate(file, 3)


def changed(file: Path) -> None:
    """Other content of the same size, so the length does not reveal it."""
    file.write_bytes(file.read_bytes().replace(b"id", b"di"))


DAMAGES = [directory_in_its_place, pipe_in_its_place, loop_of_links, bad_blocks]
INTACT = [0, 1, 6, 7]  # of eight shards with a row each
DAMAGED = [(3, 1), (4, 1), (5, 1), (6, 1)]


def damage_in_each_way(spool: Path) -> None:
    """Damage the other four."""
    for damage, file in zip(DAMAGES, files(spool)[2:6], strict=True):
        damage(file)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, hub: LocalHub) -> None:
    monkeypatch.setattr(unreadable, "_WAITS_S", (0.01, 0.01))
    monkeypatch.setenv("HF_TOKEN", hub.token)


def files(spool: Path) -> list[Path]:
    return sorted((spool / "segments").glob("*-*.jsonl"))


@pytest.fixture
def left(hub: LocalHub, uploader: Callable[..., Uploader], tmp_path: Path) -> Path:
    """A spool with eight shards that a job could not upload before it ended."""
    up = uploader(shard=ShardPolicy(max_rows=1, linger_s=3600)).open()
    hub.faults.add(Fault.outage())
    for n in range(8):
        up.put([{"id": n}])
    with pytest.raises(NotDrained):
        up.close(timeout=0.2)
    hub.faults.clear()
    return tmp_path / "spool"


def lost(spool: Path) -> list[tuple[int, int]]:
    """Return the segments in the dead letter that lost rows, and how many rows."""
    with QuarantineCommands(spool) as commands:
        return [(shard.id, shard.lost) for shard in commands.shards() if shard.lost]


def test_drain_uploads_all_others(left: Path, dataset: Dataset) -> None:
    damage_in_each_way(left)
    assert drain(left, timeout=60, retry=FAST["retry"]).dead == 4
    assert dataset.ids() == INTACT
    assert lost(left) == DAMAGED
    drain(left, timeout=60, retry=FAST["retry"])  # its remains do not interfere
    assert lost(left) == DAMAGED


def test_a_restarted_job_uploads_all_others(left: Path, dataset: Dataset, uploader: Callable[..., Uploader]) -> None:
    damage_in_each_way(left)
    with uploader() as up:
        up.put([{"id": 8}])
        with pytest.raises(ShardsRefused, match="cannot be read"):
            up.flush(timeout=60)
        until(lambda: up.stats().spool.rows == 0)
    assert dataset.ids() == [*INTACT, 8]
    assert lost(left) == DAMAGED


@pytest.mark.parametrize("outage", ["*", "commit"])
def test_a_running_job_reports_it_to_the_flush_and_uploads_all_others(
    outage: str, hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path
) -> None:
    hub.faults.add(Fault.outage(on=outage))
    with uploader(shard=ShardPolicy(max_rows=1, linger_s=3600)) as up:
        for n in range(8):
            up.put([{"id": n}], ack="spooled")
        if outage == "commit":
            until(lambda: up.stats().spool.staged == 8)
        damage_in_each_way(tmp_path / "spool")
        changed(files(tmp_path / "spool")[1])
        cut_short(files(tmp_path / "spool")[6])
        hub.faults.clear()
        with pytest.raises(
            ShardsRefused, match=r"^1 shard was rejected: .*sha256.* 5 accepted rows in 5 shards are lost"
        ):
            up.flush(timeout=60)
        until(lambda: up.stats().spool.rows == 0)
        assert dataset.ids() == [0, 7]
    assert lost(tmp_path / "spool") == [*DAMAGED, (7, 1)]  # the row that was changed is kept


@pytest.mark.parametrize("is_running", [True, False])
def test_what_something_else_appended_is_cut(
    is_running: bool, hub: LocalHub, uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path
) -> None:
    hub.faults.add(Fault.outage())
    with uploader(shard=ShardPolicy(max_rows=1, linger_s=3600)) as up:
        for n in range(4):
            up.put([{"id": n}], ack="spooled")
        for file in files(tmp_path / "spool")[: 3 * is_running]:
            with file.open("ab") as stream:
                stream.write(b"not a row\n")
        if not is_running:
            with pytest.raises(NotDrained):
                up.close(timeout=0)
            for file in files(tmp_path / "spool"):
                with file.open("ab") as stream:
                    stream.write(b"not a row\n")
        hub.faults.clear()
    if not is_running:
        drain(tmp_path / "spool", **{name: FAST[name] for name in ("commit", "retry")})
    assert dataset.ids() == [0, 1, 2, 3]


def test_compression_passes_it_by(
    uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with uploader(format="jsonl.gz", shard=ShardPolicy(max_rows=1, linger_s=3600)) as up:
        for n in range(8):
            up.put([{"id": n}])
    monkeypatch.delenv("HF_HUB_OFFLINE")
    damage_in_each_way(tmp_path / "spool")
    assert drain(tmp_path / "spool", timeout=60, retry=FAST["retry"]).dead == 4
    assert dataset.ids() == INTACT


@pytest.mark.parametrize("damage", DAMAGES)
def test_so_does_what_a_killed_writer_left_open(
    damage: Callable[[Path], None], open_spool: Callable[..., Spool], caplog: pytest.LogCaptureFixture
) -> None:
    spool = open_spool()
    bad, kept = writer_of(spool), writer_of(spool)
    bad.append([batch(1, 2)])
    kept.append([batch(3)])
    damage(spool.file(f"{bad.name}-00000001.jsonl"))
    die(bad)
    die(kept)
    assert spool.lease.acquire()
    spool.recovery.adopt()
    for _ in range(3):
        (shard,) = all_sealed(spool)
        spool.clock.advance(1)  # type: ignore[attr-defined]
    assert shard.file.read_bytes() == b'{"id":3}\n'
    assert [(row.id, row.rows, row.lost) for row in spool.quarantine.shards()] == [(1, 0, 2)]
    assert sum("2 accepted rows are lost" in record.message for record in caplog.records) == 1


def test_a_file_that_can_be_read_again_is_uploaded(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    writer.append([batch(1), batch(2)])
    file = spool.file(f"{writer.name}-00000001.jsonl")
    content = file.read_bytes()
    assert spool.lease.acquire()
    directory_in_its_place(file)
    assert [shard.segment for shard in all_sealed(spool)] == [2]
    (file / "somebody's").unlink()
    file.rmdir()
    file.write_bytes(content)
    assert [shard.segment for shard in all_sealed(spool)] == [2]  # it rests
    spool.clock.advance(1)  # type: ignore[attr-defined]
    assert [shard.segment for shard in all_sealed(spool)] == [1, 2]


def test_many_of_them_hold_up_nothing(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    for n in range(50):
        writer.append([batch(n)])
    assert spool.lease.acquire()
    for file in files(spool.directory)[:48]:
        loop_of_links(file)
    found = [shard.segment for _ in range(9) for shard in spool.shards.to_stage(10, 1 << 30)]
    assert set(found) == {49, 50}


def test_a_disk_that_refuses_everything_costs_no_segment(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()
    writer_of(spool, max_rows=1).append([batch(1)])
    assert spool.lease.acquire()
    refused = OSError(errno.EIO, os.strerror(errno.EIO))

    def refuse(*_: object) -> None:
        raise refused

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "regular_size", refuse)
        patch.setattr(os, "scandir", refuse)
        for _ in range(9):
            with pytest.raises(OSError, match="Input/output error"):
                all_sealed(spool)
            spool.clock.advance(60)  # type: ignore[attr-defined]
    assert [shard.segment for shard in all_sealed(spool)] == [1]


def test_too_many_open_files_cost_no_segment(open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool()
    writer_of(spool, max_rows=1).append([batch(1)])
    assert spool.lease.acquire()

    def refuse(file: Path) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(file))

    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "regular_size", refuse)
        for _ in range(9):
            with pytest.raises(OSError, match="Too many open files"):
                all_sealed(spool)
    assert [shard.segment for shard in all_sealed(spool)] == [1]


# The directory of rejected shards.


def test_rejecting_a_batch_takes_the_same_time_whatever_was_rejected_before(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()
    writer = writer_of(spool)

    def no_listing(*_: object) -> None:
        raise AssertionError("the directory of rejected shards is read inside the transaction of a put")

    monkeypatch.setattr(Path, "glob", no_listing)
    monkeypatch.setattr(os, "scandir", no_listing)
    monkeypatch.setattr(os, "listdir", no_listing)
    writer.append([batch(1, set_aside="a defect")])
    monkeypatch.undo()
    (shard,) = spool.quarantine.shards()
    kept = spool.quarantine.file_of(shard.id)
    assert kept is not None
    assert kept.read_bytes() == b'{"id":1}\n'


def test_a_file_of_a_transaction_that_was_rolled_back_is_removed(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    stale = spool.quarantine.directory / "000001-train-other-00000.jsonl"
    stale.write_bytes(b'{"id":0}\n')
    writer_of(spool).append([batch(1, set_aside="a defect")])
    spool.quarantine.sweep()
    kept = spool.quarantine.file_of(1)
    assert kept is not None
    assert list(spool.quarantine.directory.iterdir()) == [kept]
    assert kept.read_bytes() == b'{"id":1}\n'


def test_a_rejected_shard_whose_file_could_not_be_linked_keeps_its_rows(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()
    writer_of(spool, max_rows=1).append([batch(1)])
    (shard,) = all_sealed(spool)

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", refuse)
        patch.setattr(os, "replace", refuse)  # killed before it was moved
        shards_of(spool).quarantine(shard, "a defect")
    spool.recovery.sweep()
    kept = spool.quarantine.file_of(shard.segment)
    assert kept is not None
    assert kept.read_bytes() == b'{"id":1}\n'
    assert files(spool.directory) == []
