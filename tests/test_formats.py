"""Shards of every format: the same rows whoever reads them, and nothing lost or twice on the way there."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import msgspec
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubsync import ConfigError, NotDrained, ShardPolicy, Uploader
from hubsync.committer.schema_check import Unreadable, scan
from hubsync.encoding import codecs
from hubsync.encoding.codecs import parquet
from hubsync.encoding.rows import encode
from hubsync.errors import DefectError, ShardsRefused
from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from hubsync.maintenance.quarantine import Quarantine
from hubsync.maintenance.rebuild import rebuild
from hubsync.maintenance.verify import verify
from hubsync.model.layout import FORMATS, Format
from hubsync.reader import follow, rows, shards
from hubsync.reader.cursor import fingerprint
from hubsync.schema.features import from_features
from tests.conftest import FAST, Dataset
from tests.test_disk import small_disk  # noqa: F401  (a fixture)
from tests.test_rows import TABLE
from tests.waiting import until
from tests.zygote import Python

PACKED: list[Format] = [format for format in FORMATS if format != "jsonl"]


def packed(where: Path, given: list[dict[str, Any]], format: Format) -> Path:
    """The rows as a shard."""
    encoded = encode(given)
    lines, target = where / "lines.jsonl", where / f"shard.{format}"
    lines.write_bytes(encoded.lines)
    if format != "jsonl":
        codecs.compress(lines, target, encoded.rows)
        return target
    return lines


def loaded(path: Path, streaming: bool = False) -> list[dict[str, Any]]:
    kind = "parquet" if path.suffix == ".parquet" else "json"
    return list(datasets.load_dataset(kind, data_files=str(path), split="train", streaming=streaming))


# What a shard holds.


@pytest.mark.parametrize("format", PACKED)
@pytest.mark.parametrize(("value", "expected"), TABLE)
def test_a_value_loads_from_every_format_as_from_lines(
    value: Any, expected: Any, format: Format, tmp_path: Path
) -> None:
    given = [{"id": 1, "value": value}, {"id": 2, "value": value}, {"id": 3, "value": None}]
    lines, shard = packed(tmp_path, given, "jsonl"), packed(tmp_path, given, format)
    assert loaded(shard) == loaded(shard, streaming=True)
    if format == "parquet" and expected == {}:
        assert [row["value"] for row in loaded(shard)] == [None] * 3  # Parquet has no object without fields
    elif format == "parquet" and isinstance(loaded(lines)[0]["value"], datetime):
        assert [row["value"] for row in loaded(shard)] == [expected, expected, None]  # `datasets` guesses, we do not
    else:
        assert loaded(shard) == loaded(lines)


def test_text_that_looks_like_a_time_stays_text(tmp_path: Path) -> None:
    given = [{"at": "2026-01-01T00:00:00", "in": [{"on": "2026-01-01"}]}]
    assert loaded(packed(tmp_path, given, "parquet")) == given


def test_what_no_type_holds_is_kept_as_json(tmp_path: Path) -> None:
    values = ["text", 1, {"a": [1, "b"]}, None, True, {"a": "b"}]
    given = [{"id": n, "value": value} for n, value in enumerate(values)]
    shard = packed(tmp_path, given, "parquet")
    assert [msgspec.json.decode(line) for line in codecs.read_lines(shard)] == given
    assert str(pyarrow.parquet.read_schema(shard).field("id").type) == "int64"
    assert [row["value"] for row in loaded(shard)] == values


def test_shards_of_a_config_are_alike_where_its_features_are_known(tmp_path: Path) -> None:
    """As `schema.to_features` tells them: the first shard knows only nulls, and the dataset loads all the same."""
    features = [
        {"name": "id", "dtype": "int64"},
        {"name": "text", "dtype": "string"},
        {"name": "score", "dtype": "float64"},
        {"name": "tags", "list": "string"},
        {
            "name": "meta",
            "struct": [{"name": "a", "dtype": "int64"}, {"name": "b", "list": [{"name": "c", "dtype": "bool"}]}],
        },
        {"name": "label", "dtype": {"class_label": {"names": {"0": "x"}}}},
    ]  # fmt: skip
    given = [
        {"id": 1, "text": None, "score": 1, "tags": [], "meta": {}},
        {"id": 2, "text": "x", "score": 1.5, "tags": ["y"], "meta": {"a": 1, "b": [{"c": True}]}, "new": 1},
    ]
    for number, row in enumerate(given):
        source = tmp_path / "lines.jsonl"
        source.write_bytes(encode([row]).lines)
        codecs.compress(source, tmp_path / f"{number}.parquet", 1, from_features(features))
    schemas = [pyarrow.parquet.read_schema(tmp_path / f"{number}.parquet") for number in (0, 1)]
    assert schemas[0].names == ["id", "text", "score", "tags", "meta"]
    assert schemas[0].equals(schemas[1].remove(5))
    alike = datasets.load_dataset("parquet", data_files=str(tmp_path / "0.parquet"), split="train")
    assert alike[0] == {"id": 1, "text": None, "score": 1.0, "tags": [], "meta": {"a": None, "b": None}}


def test_rows_without_any_field_are_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(DefectError):
        packed(tmp_path, [{}, {}], "parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["lines.jsonl"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.lists(st.dictionaries(st.sampled_from("abc"), json_values, min_size=1), min_size=1, max_size=6))
def test_a_reader_knows_a_row_by_its_content_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, given: list[dict[str, Any]]
) -> None:
    try:
        lines = list(encode(given).lines.splitlines())
    except Exception:  # refused, as `put` does
        return
    given = [msgspec.json.decode(line) for line in lines]
    where = tmp_path_factory.mktemp("shard")
    for format in PACKED:
        found = [msgspec.json.decode(line) for line in codecs.read_lines(packed(where, given, format))]
        assert len(found) == len(given)
        if format != "parquet":
            assert found == given
        elif not any(_is_rounded(row) for row in given):
            assert [fingerprint(row) for row in found] == [fingerprint(row) for row in given]


def _is_rounded(value: Any) -> bool:
    """Whether a float would hold it otherwise."""
    if isinstance(value, dict):
        return any(map(_is_rounded, value.values()))
    if isinstance(value, list):
        return any(map(_is_rounded, value))
    return isinstance(value, int | float) and (abs(value) >= 2**53 or str(value).startswith("-0"))


@pytest.mark.parametrize("format", PACKED)
def test_the_same_lines_are_the_same_shard(format: Format, tmp_path: Path) -> None:
    given = [{"id": n, "text": "é" * n} for n in range(2_000)]
    first = packed(tmp_path, given, format).read_bytes()
    assert packed(tmp_path, given, format).read_bytes() == first


def test_parquet_is_written_in_groups_with_an_index_of_its_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "_CHUNK", 8 << 20)
    text = random.Random(1).randbytes
    given = [{"id": n, "text": text(500_000).hex()} for n in range(25)]
    file = pyarrow.parquet.ParquetFile(packed(tmp_path, given, "parquet"))
    assert file.metadata.num_row_groups == 3
    assert file.metadata.row_group(0).column(0).has_offset_index
    assert file.metadata.row_group(0).column(0).has_column_index
    assert [row["id"] for row in loaded(tmp_path / "shard.parquet")] == list(range(25))


@pytest.mark.parametrize("format", PACKED)
def test_the_committer_tells_the_columns_of_a_packed_shard(format: Format, tmp_path: Path) -> None:
    given = [{"id": 1, "text": "x", "tags": ["a"]}, {"id": 2, "text": None, "tags": []}]
    assert scan(packed(tmp_path, given, format)) == scan(packed(tmp_path, given, "jsonl"))


@pytest.mark.parametrize("format", PACKED)
def test_a_damaged_shard_is_said_to_be(format: Format, tmp_path: Path) -> None:
    shard = packed(tmp_path, [{"id": n} for n in range(1_000)], format)
    content = shard.read_bytes()
    for damaged in (content[: len(content) // 2], b"{}\n" * 10):
        shard.write_bytes(damaged)
        with pytest.raises(codecs.DamagedShard):
            list(codecs.read_lines(shard))
        with pytest.raises(Unreadable):
            scan(shard)


# What is asked for.


def test_a_template_that_ends_in_another_format_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"ends in \.jsonl, and the shards are 'parquet'"):
        Uploader("user/rows", path="data/{split}-{seq}.jsonl", format="parquet")
    with pytest.raises(ConfigError, match="give format='parquet'"):
        Uploader("user/rows", path="data/{split}-{seq}.parquet")
    with pytest.raises(ConfigError, match="format is one of"):
        Uploader("user/rows", format="csv")  # type: ignore[arg-type]


@pytest.mark.parametrize(("format", "package"), [("jsonl.zst", "zstandard"), ("parquet", "pyarrow")])
def test_a_missing_package_is_said_at_once(format: Format, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if format == "jsonl.zst" and sys.version_info >= (3, 14):
        pytest.skip("Python has it")
    for name in (package, f"{package}.json", f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"pip install 'hf-hubsync\[(zstd|parquet)\]'"):
        Uploader("user/rows", format=format)


# The way to the Hub.


@pytest.fixture
def made(local_hub: LocalHub, tmp_path: Path) -> Callable[..., Uploader]:
    def make(**changes: Any) -> Uploader:
        return Uploader("user/rows", **{"spool": tmp_path / "spool", **FAST, **changes})

    return make


@pytest.mark.parametrize("format", FORMATS)
def test_a_job_of_two_writers_is_read_back_by_everybody(
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


def test_a_job_goes_on_in_another_format_and_both_are_brought_up(
    local_hub: LocalHub, made: Callable[..., Uploader], caplog: pytest.LogCaptureFixture
) -> None:
    local_hub.faults.add(Fault.outage(on="commit"))
    for n, format in enumerate(FORMATS):
        up = made(format=format).open()
        up.put([{"id": n}], offset=n)
        with pytest.raises(NotDrained):
            up.close(timeout=0.5)
    local_hub.faults.clear()
    with made(format="jsonl.gz") as up:
        assert up.offset() == 3
        up.put([{"id": 4}], offset=4)
    dataset = Dataset(local_hub)
    assert dataset.ids() == [0, 1, 2, 3, 4]
    assert len(dataset.paths(tuple(f".{format}" for format in FORMATS))) == 5


def test_it_is_said_where_a_dataset_can_no_longer_be_loaded(
    local_hub: LocalHub, made: Callable[..., Uploader], caplog: pytest.LogCaptureFixture
) -> None:
    for format in ("jsonl", "jsonl.gz", "parquet"):
        assert "load_dataset reads one kind" not in caplog.text
        with made(format=format) as up:
            up.put([{"id": 0}])
    assert "contains data/train-*.jsonl, and now data/train-*.parquet: load_dataset reads one kind" in caplog.text


@pytest.mark.parametrize("format", PACKED)
def test_a_reader_of_the_spool_meets_no_row_again_once_it_is_packed(
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


def test_a_reader_goes_on_with_a_segment_that_is_packed_while_it_is_read(
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
        until(lambda: not segment.exists())  # as soon as it is packed
        seen += [row["id"] for row in rows("user/rows", since=cursor, spool=tmp_path / "spool")]
        local_hub.faults.clear()
    assert seen == [0, 1, 2, 3]


# What goes wrong.


@pytest.mark.parametrize("format", PACKED)
def test_packing_waits_for_room_on_a_full_disk(
    local_hub: LocalHub,
    made: Callable[..., Uploader],
    small_disk: Path,  # noqa: F811
    format: Format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spool, text = small_disk / "spool", random.Random(1).randbytes
    was_seen = threading.Event()
    pack, tries = codecs.compress, []

    def pack_on_a_full_disk(*args: Any) -> None:
        """Each try finds the disk full, also once the reserve was given up, until the test has seen the state."""
        tries.append(args)
        if was_seen.is_set():
            for others in small_disk.glob("others *"):
                others.unlink()
        else:
            leave(100_000, small_disk / f"others {len(tries)}")  # enough for the catalogue, too little for the shard
        pack(*args)

    monkeypatch.setattr(codecs, "compress", pack_on_a_full_disk)
    with made(spool=spool, format=format) as up, ThreadPoolExecutor(1) as pool:
        for n in range(50):
            up.put([{"id": n, "text": text(8_000).hex()}])  # half of it is left when it is packed
        flushed = pool.submit(up.flush)
        until(lambda: len(tries) > 1 and up.stats().state.kind == "spool full")
        assert up.stats().spool.sealed == 1
        was_seen.set()
        flushed.result()
    assert Dataset(local_hub).ids() == list(range(50))
    assert list((spool / "segments").iterdir()) == []


def leave(free: int, file: Path) -> None:
    """Fills a disk up to `free` bytes."""
    about = os.statvfs(file.parent)
    file.write_bytes(bytes(max(0, about.f_bavail * about.f_frsize - free)))


def test_a_shard_that_can_not_be_packed_is_set_aside_as_lines_and_the_rest_goes_on(
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


@pytest.mark.parametrize("format", PACKED)
def test_a_packed_shard_that_was_refused_is_exported_put_again_and_mended(
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
    with Quarantine(spool) as dead:
        first, second = dead.shards()
        assert b"".join(dead.lines(first)) == b'{"id":0}\n{"id":1}\n'
        (tmp_path / "out").mkdir()
        exported = dead.export([first, second], tmp_path / "out")
        assert [path.read_bytes() for path in exported][1] == b'{"id":2}\n{"id":3}\n'
        assert all(path.suffix == ".jsonl" for path in exported)
        dead.resubmit(first)
        mended = tmp_path / "mended.jsonl"
        mended.write_text('{"id":20}\n')
        assert dead.mend(second, mended)[0] == 1
    drain(spool, timeout=20)
    assert Dataset(local_hub).ids() == [0, 1, 20]
    assert len(Dataset(local_hub).paths(f".{format}")) == 2
    assert verify("user/rows", spool=spool, content=True).differences == ()
    assert list((spool / "segments").iterdir()) == []


def test_who_drains_without_the_package_is_told_what_to_install(
    local_hub: LocalHub, made: Callable[..., Uploader], tmp_path: Path, python: Python
) -> None:
    local_hub.faults.add(Fault.outage())
    up = made(format="parquet").open()
    up.put([{"id": 0}])
    with pytest.raises(NotDrained):
        up.close(timeout=0.1)
    # The lines again, as where the job's machine died before it packed.
    local_hub.faults.clear()
    with sqlite3.connect(tmp_path / "spool" / "catalogue.sqlite") as db:
        ((file,),) = db.execute("SELECT file FROM segments").fetchall()
    if not file.endswith(".jsonl"):
        pytest.skip("packed already")
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


@pytest.mark.parametrize("format", PACKED)
@pytest.mark.parametrize("lines_too", [False, True], ids=["packed", "lines beside it"])
def test_a_rescue_finds_packed_shards(
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


def test_a_pipe_writes_the_format_that_it_is_told(local_hub: LocalHub, tmp_path: Path, python: Python) -> None:
    lines = "".join(f'{{"id":{n}}}\n' for n in range(10))
    args = ("pipe", "user/rows", "--format", "parquet", "--spool", tmp_path / "spool")
    done = python.run("-m", "hubsync", *args, input=lines)
    assert done.returncode == 0, done.stderr
    assert datasets.load_dataset("user/rows", split="train")["id"][:] == list(range(10))
    read = python.run("-m", "hubsync", "read", "user/rows")
    assert [json.loads(line)["id"] for line in read.stdout.splitlines()] == list(range(10))


def test_a_drifting_job_of_parquet_can_be_loaded_after_every_commit(
    local_hub: LocalHub, made: Callable[..., Uploader]
) -> None:
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
