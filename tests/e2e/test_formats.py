"""Jobs in every format: every reader sees the same rows, and none is lost or duplicated on the way."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest

from hubsync import ConfigError, DatasetConflict, NotDrained, ShardPolicy, Uploader
from hubsync.encoding import codecs
from hubsync.errors import ShardsRefused
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from hubsync.maintenance.quarantine import QuarantineCommands
from hubsync.maintenance.rebuild import rebuild
from hubsync.maintenance.verify import verify
from hubsync.model.layout import FORMATS, Format
from hubsync.reader import follow, rows, shards
from tests.conftest import FAST, Dataset
from tests.spool.test_disk import small_disk  # noqa: F401  (a fixture)
from tests.waiting import until
from tests.zygote import Python

pytestmark = pytest.mark.slow("loads datasets in every format, or runs processes")

COMPRESSED: list[Format] = [format for format in FORMATS if format != "jsonl"]


def test_a_template_with_another_suffix_than_the_format_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ends in \.jsonl, but the shards are 'parquet'"):
        Uploader("user/rows", path="data/{split}-{seq}.jsonl", format="parquet")
    with pytest.raises(ConfigError, match="pass format='parquet'"):
        Uploader("user/rows", path="data/{split}-{seq}.parquet", format="jsonl")
    with pytest.raises(ConfigError, match="format must be one of"):
        Uploader("user/rows", format="csv")  # type: ignore[arg-type]


# Without failures.


@pytest.fixture
def made(local_hub: LocalHub, tmp_path: Path) -> Callable[..., Uploader]:
    def make(**changes: Any) -> Uploader:
        return Uploader("user/rows", **{"spool": tmp_path / "spool", **FAST, **changes})

    return make


@pytest.mark.parametrize("format", FORMATS)
def test_every_reader_reads_back_a_job_of_two_writers(
    format: Format, local_hub: LocalHub, made: Callable[..., Uploader], tmp_path: Path
) -> None:
    small = ShardPolicy(max_rows=7, linger_s=3600)
    expected = [{"id": n, "text": "é" * n, "n": None if n % 2 else 1.5} for n in range(60)]
    with (
        made(format=format, shard=small) as one,
        made(format=format, shard=small) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        list(pool.map(lambda up, mine: [up.put([row]) for row in mine], (one, two), (expected[:30], expected[30:])))
        one.flush()
        two.flush()
        stats = one.stats()
        assert stats.spool.rows == stats.spool.bytes == 0
    dataset = Dataset(local_hub)
    paths = dataset.paths(f".{format}")
    sizes = sum(len(dataset.read(path)) for path in paths)
    assert len(paths) == 10
    assert (stats.spool.committed_bytes, stats.spool.committed_rows) == (sizes, 60)
    by_id = {row["id"]: row for row in expected}
    for streaming in (False, True):
        found = list(datasets.load_dataset("user/rows", split="train", streaming=streaming))
        assert len(found) == 60
        assert {row["id"]: row for row in found} == by_id
    assert {row["id"]: {"n": None, **row} for row in rows("user/rows")} == by_id
    assert sum(shard.rows or 0 for shard in shards("user/rows")) == 60
    report = verify("user/rows", spool=tmp_path / "spool", content=True)
    assert (report.rows, report.bytes, report.differences) == (60, sizes, ())
    assert verify("user/rows", content=True).differences == ()


def test_a_job_that_resumes_in_another_format_uploads_both(
    local_hub: LocalHub, made: Callable[..., Uploader], caplog: pytest.LogCaptureFixture
) -> None:
    local_hub.faults.add(Fault.outage(on="commit"))
    formats: list[Format] = ["jsonl", "jsonl.gz", "jsonl.zst"]  # one kind of file for `datasets`
    for n, format in enumerate(formats):
        up = made(format=format).open()
        up.put([{"id": n}], offset=n)
        with pytest.raises(NotDrained):
            up.close(timeout=0.5)
    local_hub.faults.clear()
    with made(format="jsonl.gz") as up:
        assert up.offset() == 2
        up.put([{"id": 3}], offset=3)
    dataset = Dataset(local_hub)
    assert dataset.ids() == [0, 1, 2, 3]
    assert len(dataset.paths(tuple(f".{format}" for format in formats))) == 4


def test_a_mix_of_file_kinds_is_refused(local_hub: LocalHub, made: Callable[..., Uploader]) -> None:
    formats: list[Format | None] = ["jsonl", "jsonl.gz", None]
    for format in formats:
        with made(format=format) as up:
            up.put([{"id": 0}])
    with pytest.raises(DatasetConflict, match="load_dataset reads one kind of file per repo"):
        made(format="parquet").open()


@pytest.mark.parametrize("format", COMPRESSED)
def test_a_spool_reader_sees_no_row_again_after_compression(
    format: Format, local_hub: LocalHub, made: Callable[..., Uploader], tmp_path: Path
) -> None:
    with made(format=format, shard=ShardPolicy(max_rows=5, linger_s=3600)) as up:
        local_hub.faults.add(Fault.outage(on="commit"))
        for n in range(12):
            up.put([{"id": n, "value": n if n % 2 else n + 0.5, "none": {}}])
        until(lambda: len(list((tmp_path / "spool" / "segments").glob(f"*.{format}"))) == 2)
        reader = follow("user/rows", poll_s=0.05, spool=tmp_path / "spool")
        seen = [next(reader)["id"] for _ in range(12)]
        local_hub.faults.clear()
        up.flush()
        up.put([{"id": 12}], ack="committed")
        seen.append(next(reader)["id"])
        reader.close()
    assert seen == list(range(13))


def test_a_reader_resumes_in_a_segment_that_was_compressed_meanwhile(
    local_hub: LocalHub, made: Callable[..., Uploader], tmp_path: Path
) -> None:
    local_hub.faults.add(Fault.outage(on="commit"))
    with made(format="jsonl.gz") as up:
        for n in range(4):
            up.put([{"id": n}])
        with rows("user/rows", spool=tmp_path / "spool") as reader:
            segment = next((tmp_path / "spool" / "segments").glob("*.jsonl"))
            seen = [next(reader)["id"]]
            cursor = reader.cursor
        with pytest.raises(NotDrained):
            up.flush(timeout=0)  # seals it
        until(lambda: not segment.exists())  # it is compressed
        seen += [row["id"] for row in rows("user/rows", since=cursor, spool=tmp_path / "spool")]
        local_hub.faults.clear()
    assert seen == [0, 1, 2, 3]


# With failures.


@pytest.mark.parametrize("format", COMPRESSED)
def test_compression_waits_for_room_on_a_full_disk(
    local_hub: LocalHub,
    made: Callable[..., Uploader],
    small_disk: Path,  # noqa: F811
    format: Format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spool, text = small_disk / "spool", random.Random(1).randbytes
    was_seen = threading.Event()
    compress, attempts = codecs.compress, []

    def compress_on_a_full_disk(*args: Any) -> None:
        """Keep the disk full for every attempt, even after the reserve is released, until the test has seen it."""
        attempts.append(args)
        if was_seen.is_set():
            for others in small_disk.glob("others *"):
                others.unlink()
        else:
            leave(100_000, small_disk / f"others {len(attempts)}")  # enough for the catalogue, too little for the shard
        compress(*args)

    monkeypatch.setattr(codecs, "compress", compress_on_a_full_disk)
    with made(spool=spool, format=format) as up, ThreadPoolExecutor(1) as pool:
        for n in range(50):
            up.put([{"id": n, "text": text(8_000).hex()}])  # compressed, half of it remains
        flushed = pool.submit(up.flush)
        until(lambda: len(attempts) > 1 and up.stats().state.kind == "spool full")
        assert up.stats().spool.sealed == 1
        was_seen.set()
        flushed.result()
    assert Dataset(local_hub).ids() == list(range(50))
    assert list((spool / "segments").iterdir()) == []


def leave(free: int, file: Path) -> None:
    """Fill a disk except for `free` bytes."""
    about = os.statvfs(file.parent)
    file.write_bytes(bytes(max(0, about.f_bavail * about.f_frsize - free)))


def test_a_shard_that_can_not_be_compressed_is_quarantined_as_lines(
    local_hub: LocalHub, made: Callable[..., Uploader], tmp_path: Path
) -> None:
    up = made(format="parquet", schema=None, shard=ShardPolicy(max_rows=1, linger_s=3600)).open()
    receipts = [up.put([row]) for row in ({"id": 0}, {}, {"id": 2})]
    with pytest.raises(Exception, match="can't become Parquet"):
        up.flush()
    up.close()
    assert [receipt.state for receipt in receipts] == ["committed", "refused", "committed"]
    assert Dataset(local_hub).ids() == [0, 2]
    (grave,) = (tmp_path / "spool" / "dead-letter").iterdir()
    assert grave.suffix == ".jsonl"
    assert list(codecs.read_lines(grave)) == [b"{}\n"]


@pytest.mark.parametrize("format", COMPRESSED)
def test_a_rejected_compressed_shard_can_be_exported_resubmitted_and_edited(
    format: Format, local_hub: LocalHub, made: Callable[..., Uploader], tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    local_hub.faults.add(Fault.status(422, on="commit"))
    up = made(format=format, shard=ShardPolicy(max_rows=2, linger_s=3600)).open()
    receipts = [up.put([{"id": n}, {"id": n + 1}]) for n in (0, 2)]
    with pytest.raises(ShardsRefused):
        up.close()
    assert [receipt.state for receipt in receipts] == ["refused", "refused"]
    local_hub.faults.clear()
    with QuarantineCommands(spool) as dead:
        first, second = dead.shards()
        assert b"".join(dead.lines(first)) == b'{"id":0}\n{"id":1}\n'
        (tmp_path / "out").mkdir()
        exported = dead.export([first, second], tmp_path / "out")
        assert [path.read_bytes() for path in exported][1] == b'{"id":2}\n{"id":3}\n'
        assert all(path.suffix == ".jsonl" for path in exported)
        dead.resubmit(first)
        edited = tmp_path / "edited.jsonl"
        edited.write_text('{"id":20}\n')
        assert dead.resubmit_edited(second, edited)[0] == 1
    drain(spool, timeout=20)
    assert Dataset(local_hub).ids() == [0, 1, 20]
    assert len(Dataset(local_hub).paths(f".{format}")) == 2
    assert verify("user/rows", spool=spool, content=True).differences == ()
    assert list((spool / "segments").iterdir()) == []


def test_a_drain_without_the_package_says_what_to_install(
    local_hub: LocalHub, made: Callable[..., Uploader], tmp_path: Path, python: Python
) -> None:
    local_hub.faults.add(Fault.outage())
    up = made(format="parquet").open()
    up.put([{"id": 0}])
    with pytest.raises(NotDrained):
        up.close(timeout=0.1)
    # As if the machine had died before it compressed the lines.
    local_hub.faults.clear()
    with sqlite3.connect(tmp_path / "spool" / "catalogue.sqlite") as db:
        ((file,),) = db.execute("SELECT file FROM segments").fetchall()
    if not file.endswith(".jsonl"):
        pytest.skip("compressed already")
    code = (
        "import sys; sys.modules['pyarrow'] = None; from pathlib import Path\n"
        "from hubsync.maintenance.drain import drain\n"
        f"drain(Path({str(tmp_path / 'spool')!r}), timeout=20)"
    )
    done = python.run("-c", code)
    assert "BlockedError" in done.stderr
    assert "pip install 'hf-hubsync[parquet]'" in done.stderr
    drain(tmp_path / "spool", timeout=20)
    assert Dataset(local_hub).ids() == [0]


@pytest.mark.parametrize("format", COMPRESSED)
@pytest.mark.parametrize("lines_too", [False, True], ids=["compressed", "with lines"])
def test_a_rebuild_finds_compressed_shards(
    format: Format, lines_too: bool, local_hub: LocalHub, made: Callable[..., Uploader], tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    local_hub.faults.add(Fault.outage(on="commit"))
    up = made(format=format, config="other", shard=ShardPolicy(max_rows=2, linger_s=3600)).open()
    for n in range(6):
        up.put([{"id": n}], offset=n)
    until(lambda: len(list((spool / "segments").glob(f"*.{format}"))) == 3)
    with pytest.raises(NotDrained):
        up.close(timeout=0.1)
    local_hub.faults.clear()
    if lines_too:
        for file in list((spool / "segments").iterdir()):
            lines = file.with_name(f"{file.name.partition('.')[0]}.jsonl")
            lines.write_bytes(b"".join(codecs.read_lines(file)))
    for file in spool.glob("catalogue.sqlite*"):
        file.unlink()
    found = rebuild(spool)
    assert found is not None
    assert (found.rows, found.segments) == (6, 3)
    drain(spool, timeout=20)
    dataset = Dataset(local_hub)
    assert dataset.ids() == list(range(6))
    assert all(path.startswith("other/") and path.endswith(f".{format}") for path in dataset.paths(codecs.SUFFIXES))
    assert list((spool / "segments").iterdir()) == []


def test_a_pipe_writes_the_requested_format(local_hub: LocalHub, tmp_path: Path, python: Python) -> None:
    lines = "".join(f'{{"id":{n}}}\n' for n in range(10))
    args = ("pipe", "user/rows", "--format", "parquet", "--spool", tmp_path / "spool")
    done = python.run("-m", "hubsync", *args, input=lines)
    assert done.returncode == 0, done.stderr
    assert datasets.load_dataset("user/rows", split="train")["id"][:] == list(range(10))
    read = python.run("-m", "hubsync", "read", "user/rows")
    assert [json.loads(line)["id"] for line in read.stdout.splitlines()] == list(range(10))


def test_a_drifting_parquet_job_loads_after_every_commit(local_hub: LocalHub, made: Callable[..., Uploader]) -> None:
    given: list[dict[str, Any]] = [
        {"id": 0, "text": None, "score": 1, "tags": [], "meta": {}},
        {"id": 1, "text": "2026-01-01T00:00:00", "score": 1.5, "tags": ["a"], "meta": {"a": None}},
        {"id": 2, "text": None, "score": 2, "tags": [], "meta": {"a": 1}, "new": None},
        {"id": 3, "text": "x", "score": None, "tags": None, "meta": None, "new": [{"b": True}]},
    ]
    with made(format="parquet") as up:
        for number, row in enumerate(given):
            up.put([row], ack="committed")
            found = list(datasets.load_dataset("user/rows", split="train"))
            assert [(row["id"], row["text"], row["score"]) for row in found] == [
                (row["id"], row["text"], row["score"]) for row in given[: number + 1]
            ]
