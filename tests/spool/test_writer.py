"""The writer: accepted batches are on disk, whatever ends the process; rejected ones leave no trace."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hubsync import SpoolError
from hubsync._runtime.files import whole_rows
from hubsync.model.layout import Layout
from hubsync.spool.spool import Spool
from tests.spool.conftest import all_sealed, batch, die, shards_of, writer_of


def test_a_shard_has_exactly_the_bytes_of_its_batches(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    accepted, sealed = writer.append([batch(1, 2), batch(3)])
    assert [a.replayed for a in accepted] == [False, False]
    assert sealed == []
    writer.seal()
    (shard,) = all_sealed(spool)
    assert shard.file.read_bytes() == b'{"id":1}\n{"id":2}\n{"id":3}\n'
    assert (shard.rows, shard.size, shard.path) == (3, 27, f"data/train-{writer.name}-00000.jsonl")


def test_segments_are_sealed_by_rows_and_bytes_and_never_split_a_batch(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool, max_rows=3)
    _, sealed = writer.append([batch(1, 2), batch(3, 4), batch(5), batch(6, 7, 8, 9)])
    assert len(sealed) == 3
    assert [shard.rows for shard in all_sealed(spool)] == [2, 3, 4]
    by_bytes = writer_of(spool, max_bytes=20)
    by_bytes.append([batch(1), batch(2), batch(3)])
    by_bytes.seal()
    assert [shard.rows for shard in all_sealed(spool)][3:] == [2, 1]


def test_one_take_can_fill_more_segments_than_files_may_be_open(open_spool: Callable[..., Spool]) -> None:
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


def test_a_writer_that_cannot_start_releases_its_name(
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


def test_a_failed_write_accepts_nothing_and_can_be_retried(
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


def test_an_error_on_closing_a_file_rejects_no_rows(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS reports a full quota at close: after the transaction that counted the rows, or at the end."""
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
def test_a_sealed_segment_has_the_hash_of_its_file_after_any_failures(
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


def test_a_batch_with_a_known_key_or_offset_adds_nothing(open_spool: Callable[..., Spool]) -> None:
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
    assert [a.replayed for a in accepted] == [True, True, False, False, True, False, True]
    assert [index for index, a in enumerate(accepted) if a.error is not None] == [2]
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


def test_a_batch_without_rows_advances_the_offset_and_makes_no_shard(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    (accepted,), _ = writer.append([batch(offset=7)])
    assert (accepted.segment, accepted.replayed, spool.offsets.highest("default")) == (None, False, 7)
    assert writer.seal() is None


def test_a_new_writer_continues_the_name_and_numbers_of_a_dead_one(open_spool: Callable[..., Spool]) -> None:
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


# Files that something else damages while they are written.


def deleted(file: Path) -> None:
    file.unlink()


def replaced_by_a_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


def cut(file: Path) -> None:
    os.truncate(file, 12)


def emptied(file: Path) -> None:
    os.truncate(file, 0)


@pytest.mark.parametrize("damage", [cut, emptied, deleted, replaced_by_a_directory])
def test_rows_that_follow_the_damage_go_to_another_segment(
    open_spool: Callable[..., Spool], damage: Callable[[Path], None]
) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    (before,), _ = writer.append([batch(1, 2)])
    damage(spool.file(f"{writer.name}-00000001.jsonl"))
    if damage not in (cut, emptied):
        writer.hash_written()  # its next look at the file; for a cut, the next take looks
    (after,), sealed = writer.append([batch(3)])
    writer.append([batch(4)])
    writer.seal()
    assert after.segment != before.segment
    assert sealed == [before.segment]
    assert spool.lease.acquire()
    kept = [shard.file.read_bytes() for shard in all_sealed(spool)]
    assert kept == [*([b'{"id":1}\n'] if damage is cut else []), b'{"id":3}\n{"id":4}\n']


def test_what_something_else_appends_to_an_open_segment_is_cut(open_spool: Callable[..., Spool]) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1)])
    for n in (2, 3):
        with spool.file(f"{writer.name}-00000001.jsonl").open("ab") as stream:
            stream.write(b"not a row")
        if n == 2:
            writer.append([batch(n)])
    writer.seal()
    assert [shard.file.read_bytes() for shard in all_sealed(spool)] == [b'{"id":1}\n{"id":2}\n']


def test_a_failed_take_does_not_fill_a_cut_file_with_zeros(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1, 2)])
    file = spool.file(f"{writer.name}-00000001.jsonl")

    def cut_and_fail(fd: int, parts: list[bytes]) -> int:
        cut(file)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch, pytest.raises(SpoolError):
        patch.setattr(os, "writev", cut_and_fail)
        writer.append([batch(3)])
    assert file.read_bytes() == b'{"id":1}\n{"i'
    writer.append([batch(3)])
    writer.seal()
    assert spool.lease.acquire()
    assert [shard.file.read_bytes() for shard in all_sealed(spool)] == [b'{"id":1}\n', b'{"id":3}\n']


def test_a_file_that_something_else_writes_to_all_the_time_is_not_written_to_forever(
    open_spool: Callable[..., Spool], monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = open_spool()
    writer = writer_of(spool)
    writer.append([batch(1)])
    write, directory = os.writev, spool.directory / "segments"

    def grow_and_write(fd: int, parts: list[bytes]) -> int:
        with next(directory.iterdir()).open("ab") as stream:
            stream.write(b"not a row")
        return write(fd, parts)

    with monkeypatch.context() as patch, pytest.raises(SpoolError, match="something else writes to"):
        patch.setattr(os, "writev", grow_and_write)
        writer.append([batch(2)])
    writer.append([batch(2)])
    writer.seal()
    assert [shard.file.read_bytes() for shard in shards_of(spool).to_stage(9, 999)] == [b'{"id":1}\n{"id":2}\n']


def test_half_a_row_with_another_one_after_it_does_not_count(tmp_path: Path) -> None:
    file = tmp_path / "w.jsonl"
    for half in (
        b'{"id',
        b'{"id":',
        b'{"id":1,"text":"ab',
        b'{"id":1,"te',
        b'{"id":1,',
        b'{"a":[1,',
        b"{",
        b'{"a":"\\',
    ):
        for row in (b'{"id":3}\n', b"{}\n", b'{"":"}"}\n'):
            file.write_bytes(b'{"id":0}\n' + half + row)
            assert whole_rows(file, 1 << 20) == (1, 9), half + row
