"""Spool and writer: what was accepted is on disk, whatever ends the process; what was not never was."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hubsync import ShardPolicy, SpoolError, SpoolMismatch, SpoolPolicy, SpoolVersionError
from hubsync._runtime import files
from hubsync.model.batch import Batch
from hubsync.model.commit import Watermark
from hubsync.model.layout import Layout
from hubsync.model.receipt import Receipt
from hubsync.model.shard import Shard
from hubsync.model.target import Target
from hubsync.spool.database import Catalogue
from hubsync.spool.plans import Plans
from hubsync.spool.shards import Shards
from hubsync.spool.spool import Spool
from hubsync.spool.writer import Accepted, SpoolWriter
from hubsync.testing import ManualClock

TARGET = Target("http://127.0.0.1:1", "user/rows")


def batch(*ids: int, **about: Any) -> Batch:
    lines = b"".join(b'{"id":%d}\n' % n for n in ids)
    return Batch(lines, len(ids), Receipt(len(ids), len(lines)), **about)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def open_spool(directory: Path) -> Iterator[Callable[..., Spool]]:
    opened: list[Spool] = []

    def make(target: Target | None = TARGET, **policy: Any) -> Spool:
        spool = Spool(directory, target=target, policy=SpoolPolicy(**policy), clock=ManualClock())
        opened.append(spool)
        return spool

    yield make
    for spool in opened:
        spool.close()


def writer_of(spool: Spool, layout: Layout | None = None, **shard: Any) -> SpoolWriter:
    return SpoolWriter.open(spool, layout or Layout(), ShardPolicy(**shard))


def plans_of(spool: Spool) -> Plans:
    assert spool.lease.acquire()
    return spool.plans


def shards_of(spool: Spool) -> Shards:
    assert spool.lease.acquire()
    return spool.shards


def all_sealed(spool: Spool) -> list[Shard]:
    return spool.shards.to_stage(1000, 1 << 40)


def die(writer: SpoolWriter) -> None:
    """The process ends here: the lock goes, and nothing else happens."""
    writer._lock.release()


def test_a_take_is_one_segment_whose_bytes_are_the_shards(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    accepted, sealed = writer.append([batch(1, 2), batch(3)])
    assert [a.replayed for a in accepted] == [False, False]
    assert sealed == []
    writer.seal()
    (shard,) = all_sealed(spool)
    assert shard.file.read_bytes() == b'{"id":1}\n{"id":2}\n{"id":3}\n'
    assert (shard.rows, shard.size, shard.path) == (3, 27, f"data/train-{writer.name}-00000.jsonl")


def test_segments_are_sealed_by_rows_and_bytes_and_a_batch_is_never_torn(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=3)
    _, sealed = writer.append([batch(1, 2), batch(3, 4), batch(5), batch(6, 7, 8, 9)])
    assert len(sealed) == 3
    assert [shard.rows for shard in all_sealed(spool)] == [2, 3, 4]
    by_bytes = writer_of(spool, max_bytes=20)
    by_bytes.append([batch(1), batch(2), batch(3)])
    by_bytes.seal()
    assert [shard.rows for shard in all_sealed(spool)][3:] == [2, 1]


def test_a_take_may_fill_more_segments_than_files_may_be_open(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))) + 20, hard))
    try:
        _, sealed = writer.append([batch(n) for n in range(100)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(sealed) == 100
    assert [shard.rows for shard in all_sealed(spool)] == [1] * 100


def test_the_directory_and_its_files_are_the_owners_alone(open_spool: Callable[..., Spool], directory: Path) -> None:
    os.umask(0)
    try:
        writer_of(open_spool()).append([batch(1)])
    finally:
        os.umask(0o022)
    for path in [directory, *directory.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_a_torn_tail_is_cut_back_to_what_was_accepted(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, 2)])
    (file,) = (spool.directory / "segments").iterdir()
    with file.open("ab") as torn:
        torn.write(b'{"id":3}\n{"id"')
    die(writer)
    spool.recovery.adopt()
    assert all_sealed(spool)[0].file.read_bytes() == b'{"id":1}\n{"id":2}\n'


def test_who_adopts_while_another_thread_does_has_all_adopted_as_well(
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


def test_a_file_that_the_catalogue_never_heard_of_is_removed(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    orphan = spool.directory / "segments" / f"{writer.name}-00000099.jsonl"
    orphan.write_bytes(b'{"id":3}\n')
    die(writer)
    writer_of(spool)
    assert not orphan.exists()


def test_a_packed_file_that_is_committed_is_removed_by_its_writers_successor(
    open_spool: Callable[..., Spool],
) -> None:
    """Also by a job that has nothing to do, and is gone before it is a committer."""
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1)])
    (lines,) = (spool.directory / "segments").iterdir()
    packed = lines.with_name(f"{lines.stem}.1.parquet")
    packed.write_bytes(b"PAR1")
    spool.catalogue.run("UPDATE segments SET state = 'committed', file = ?", packed.name)
    at_work = lines.with_name(f"{writer.name}-00000077.2.parquet")  # another process packs it just now
    at_work.write_bytes(b"PAR1")
    die(writer)
    writer_of(spool)
    assert list((spool.directory / "segments").iterdir()) == [at_work]


def test_a_writer_that_can_not_begin_lets_the_name_go(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    die(writer)

    def full(name: str) -> None:
        raise SpoolError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(SpoolError):
        patch.setattr(spool.recovery, "recover", full)
        writer_of(spool)
    assert writer_of(spool).name == writer.name


def test_bytes_that_a_power_cut_took_are_said_and_whole_lines_kept(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, 2, 3)])
    (file,) = (spool.directory / "segments").iterdir()
    os.truncate(file, 14)
    die(writer)
    spool.recovery.adopt()
    (shard,) = all_sealed(spool)
    assert (shard.rows, shard.file.read_bytes()) == (1, b'{"id":1}\n')
    assert "power cut" in spool.catalogue.value("SELECT error FROM segments")


def test_a_dead_writers_file_that_the_disk_refuses_stops_no_job_and_waits_for_the_next(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
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
    assert [str(file) in record.message for record in caplog.records] == [True]
    die(writer)
    writer_of(spool)
    assert [shard.file.read_bytes() for shard in all_sealed(spool)] == [b'{"id":1}\n', b'{"id":2}\n']


@pytest.mark.parametrize("sealed", [False, True])
def test_a_batch_that_a_power_cut_took_wholly_is_told_and_may_be_put_again(
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
    )  # so nobody waits for ever


def test_a_failed_write_accepts_nothing_and_can_be_tried_again(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=2)
    writer.append([batch(1, key="first")])
    real = os.writev

    def full(fd: int, parts: list[bytes]) -> int:
        real(fd, [parts[0][:4]])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "writev", full)
    again = [batch(2, 3, key="a", offset=1), batch(4, 5, key="b", offset=2)]
    for _ in range(2):
        with pytest.raises(SpoolError, match="No space left"):
            writer.append(again)
    monkeypatch.undo()
    accepted, _ = writer.append(again)
    assert [a.replayed for a in accepted] == [False, False]
    writer.seal()
    assert b"".join(s.file.read_bytes() for s in all_sealed(spool)) == b"".join(
        b.lines for b in [batch(1), *again]
    )  # fmt: skip
    assert len(list((spool.directory / "segments").iterdir())) == len(all_sealed(spool))


def test_a_file_that_does_not_close_well_refuses_no_rows(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS tells of a quota at close: behind the transaction that has counted the rows, or when all is over."""
    spool = open_spool()
    writer = writer_of(spool, max_rows=1)
    real = os.close

    def fail(fd: int) -> None:
        is_ours = os.fstat(fd).st_ino in {file.stat().st_ino for file in (spool.directory / "segments").iterdir()}
        real(fd)
        if is_ours:
            raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(os, "close", fail)
    accepted, sealed = writer.append([batch(1, key="full")])
    assert [a.segment for a in accepted] == sealed
    writer.append([batch(key="without rows")])
    assert writer.append([batch(1, key="full")])[0][0].replayed
    writer.close()


@pytest.mark.parametrize("seed", range(20))
def test_a_sealed_segment_has_the_hash_of_its_file_whatever_failed_before(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    rng = random.Random(seed)
    spool = open_spool()
    writer = writer_of(spool, max_rows=7)
    run = spool.catalogue.run
    number = 0
    for _ in range(30):
        rows = [[(number := number + 1) for _ in range(rng.randint(1, 4))] for _ in range(rng.randint(1, 5))]
        fails = rng.random() < 0.4

        def refuse(sql: str, *values: Any, fails: bool = fails) -> int:
            if fails and sql.startswith("UPDATE segments SET bytes") and rng.random() < 0.7:
                raise SpoolError("no room")
            return run(sql, *values)

        monkeypatch.setattr(spool.catalogue, "run", refuse)
        with contextlib.suppress(SpoolError):
            writer.append([batch(*ids) for ids in rows])
        if rng.random() < 0.7:
            writer.hash_written()
        if rng.random() < 0.1:
            writer.seal()
    monkeypatch.setattr(spool.catalogue, "run", run)
    writer.seal()
    rows_ = spool.catalogue.rows("SELECT file, sha256 FROM segments")
    assert len(rows_) > 5
    for file, sha256 in rows_:
        assert hashlib.sha256(spool.file(file).read_bytes()).hexdigest() == sha256


def test_what_a_power_cut_has_made_of_a_sealed_file_is_seen_by_who_takes_over(
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
    spool.shards.take_over()
    (shard,) = spool.shards.to_stage(10, 1 << 40)
    assert (shard.rows, file.read_bytes()) == (2, b'{"id":1}\n{"id":2}\n')
    assert shard.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_key_or_an_offset_seen_before_adds_nothing(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, key="a"), batch(2, offset=5), batch(3, offset=0, source="other")])
    accepted, _ = writer.append(
        [
            batch(1, key="a"),
            batch(2, offset=5),
            batch(2, offset=4),
            batch(9, offset=6),
            batch(3, offset=0, source="other"),
            batch(4, key="b"),
            batch(4, key="b"),
        ]
    )
    assert [a.replayed for a in accepted] == [True, True, True, False, True, False, True]
    assert (spool.offsets.highest("default"), spool.offsets.highest("other"), spool.offsets.highest("none")) == (
        6,
        0,
        None,
    )
    writer.seal()
    assert all_sealed(spool)[0].rows == 5


def test_keys_and_offsets_survive_the_process(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, key="a", offset=3)])
    die(writer)
    spool.close()
    spool = open_spool()
    accepted, _ = writer_of(spool).append([batch(1, key="a"), batch(1, offset=3)])
    assert [a.replayed for a in accepted] == [True, True]


def test_a_batch_without_rows_moves_the_offset_and_makes_no_shard(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    (accepted,), _ = writer.append([batch(offset=7)])
    assert (accepted.segment, accepted.replayed, spool.offsets.highest("default")) == (None, False, 7)
    assert writer.seal() is None


def test_a_dead_writers_name_and_numbers_go_on(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    first = writer_of(spool)
    first.append([batch(1)])
    first.seal()
    die(first)
    second = writer_of(spool)
    second.append([batch(2)])
    second.seal()
    assert second.name == first.name
    assert [s.path[-11:] for s in all_sealed(spool)] == ["00000.jsonl", "00001.jsonl"]
    assert writer_of(spool).name != first.name


def test_writers_that_share_a_series_never_share_a_number(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    layout = Layout("config-0", "train", "{config}/{split}-{seq:05d}.jsonl")
    writers = [writer_of(spool, layout) for _ in range(3)]
    for _ in range(2):
        for writer in writers:
            writer.append([batch(1)])
            writer.seal()
    assert sorted(s.path for s in all_sealed(spool)) == [f"config-0/train-{n:05d}.jsonl" for n in range(6)]


def test_a_plan_stands_in_the_catalogue_before_it_is_sent(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, 2, offset=4)])
    writer.seal()
    shards = all_sealed(spool)
    shards_of(spool).mark_staged({shards[0].segment: "regular"})
    staged = shards_of(spool).ready(10, 1 << 30)
    plan = plans_of(spool).write(staged, None, "parent", "Add")
    spool.close()
    spool = open_spool()
    found = plans_of(spool).open()
    assert found is not None
    assert (found.id, found.parent, found.shards, found.sidecars) == (plan.id, "parent", staged, plan.sidecars)
    assert shards_of(spool).ready(10, 1 << 30) == []
    assert b'"default": 4' in plan.sidecars[0].content
    plans_of(spool).settle(found, {staged[0].segment: "sha"})
    assert spool.segments.outcome(staged[0].segment) == ("committed", "sha", None)
    assert (plans_of(spool).open(), spool.depth().rows, spool.depth().committed_rows) == (None, 0, 2)
    assert not staged[0].file.exists()


def test_a_plan_that_did_not_land_frees_its_shards(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1)])
    writer.seal()
    shards_of(spool).mark_staged({s.segment: "lfs" for s in all_sealed(spool)})
    before = shards_of(spool).ready(10, 1)
    plans_of(spool).settle(plans_of(spool).write(before, None, None, ""), {})
    assert shards_of(spool).ready(10, 1) == before


def test_a_committed_file_left_by_a_crash_is_swept(open_spool: Callable[..., Spool]) -> None:
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


def test_a_new_spool_goes_on_from_what_the_dataset_tells(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    layout = Layout("default", "train", "data/{split}-{seq:05d}.jsonl")
    assert not spool.is_seeded
    assert spool.lease.acquire()
    spool.seed([Watermark("dead", 3, {"data/train-*.jsonl": 12}, 90, {"default": 40, "b": 2}), Watermark("x", 1)])
    writer = writer_of(spool, layout)
    (replay, new), _ = writer.append([batch(1, offset=40), batch(2, offset=41)])
    writer.seal()
    assert (replay.replayed, new.replayed, spool.is_seeded) == (True, False, True)
    assert all_sealed(spool)[0].path == "data/train-00012.jsonl"


def test_a_spool_of_another_repo_is_not_touched(open_spool: Callable[..., Spool]) -> None:
    open_spool().close()
    for other in (Target("http://127.0.0.1:1", "user/other"), Target("http://127.0.0.1:2", "user/rows"),
                  Target("http://127.0.0.1:1", "user/rows", "dev")):  # fmt: skip
        with pytest.raises(SpoolMismatch, match="hubsync drain"):
            open_spool(other)
    assert open_spool(None).target == TARGET


def test_of_two_jobs_of_different_repos_that_make_one_spool_at_the_same_moment_one_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)
    get, told = Catalogue.get, {}

    def meet(catalogue: Catalogue, key: str) -> str | None:
        found = get(catalogue, key)
        if key == "target" and found is None:
            both.wait()  # neither has made it
        return found

    def job(repo: str) -> None:
        try:
            spool = Spool(directory, target=Target(TARGET.endpoint, repo))
            told[repo] = spool.target.repo
            spool.close()
        except SpoolMismatch:
            told[repo] = "refused"

    monkeypatch.setattr(Catalogue, "get", meet)
    jobs = [threading.Thread(target=job, args=(repo,)) for repo in ("user/public", "user/private")]
    for thread in jobs:
        thread.start()
    for thread in jobs:
        thread.join()
    assert sorted(told.values()) in (["refused", "user/public"], ["refused", "user/private"])
    assert all(found in (repo, "refused") for repo, found in told.items())


def test_a_spool_of_a_newer_version_is_not_touched(open_spool: Callable[..., Spool], directory: Path) -> None:
    spool = open_spool()
    spool.catalogue.run("PRAGMA user_version = 99")
    spool.close()
    with pytest.raises(SpoolVersionError, match="Upgrade hubsync"):
        open_spool()


def test_a_new_directory_and_those_above_it_survive_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "fsync_directory", synced.append)
    where = tmp_path / "new" / "spool"
    Spool(where, target=TARGET, policy=SpoolPolicy(durability="fsync")).close()
    assert synced[:3] == [where, where.parent, tmp_path]


def test_a_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match="spool="):
        Spool(tmp_path / "file" / "spool", target=TARGET)


def test_a_catalogue_that_is_no_database_is_a_clear_error(open_spool: Callable[..., Spool], directory: Path) -> None:
    open_spool().close()
    for file in directory.glob("catalogue.sqlite*"):
        file.unlink()
    (directory / "catalogue.sqlite").write_bytes(b"rubbish" * 1000)
    with pytest.raises(SpoolError, match=r"rows' files are unharmed.*hubsync drain --rescue"):
        open_spool()


def test_one_committer_at_a_time(open_spool: Callable[..., Spool]) -> None:
    first, second = open_spool(), open_spool()
    assert first.lease.acquire()
    assert not second.lease.acquire()
    assert second.lease.holder_pid == os.getpid()
    first.lease.release()
    assert second.lease.holder_pid is None
    assert second.lease.acquire()


_BORN_AT_ONCE = """
import multiprocessing, sys
from pathlib import Path
from hubsync.spool.spool import Spool
from hubsync.model.target import Target

def born(directory, barrier):
    barrier.wait()
    Spool(directory, target=Target("http://127.0.0.1:1", "user/rows")).close()

context = multiprocessing.get_context("fork")
for n in range(40):
    barrier = context.Barrier(4)
    processes = [context.Process(target=born, args=(Path(sys.argv[1], str(n)), barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
"""


def test_processes_that_make_a_spool_at_the_same_moment_all_open_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _BORN_AT_ONCE, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
