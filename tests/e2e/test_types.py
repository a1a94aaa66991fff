"""Tables keep their types and values on the way to the dataset, in Parquet and, as far as JSON goes, in JSON Lines."""

from __future__ import annotations

import datetime as dt
import math
import os
import random
import signal
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import hf_hub_download
from PIL import Image

from hubsync import ConfigError, RowError, SchemaConflict, SchemaPolicy, ShardPolicy, Uploader
from hubsync.localhub import LocalHub
from hubsync.maintenance.drain import drain
from hubsync.maintenance.quarantine import QuarantineCommands
from hubsync.maintenance.rebuild import rebuild
from hubsync.maintenance.verify import verify
from hubsync.model.layout import FORMATS, Format
from hubsync.reader import rows as read_rows
from tests.conftest import FAST, Dataset
from tests.zygote import Python

pytestmark = pytest.mark.slow("loads datasets, or runs processes")

NOON = dt.datetime(2026, 1, 1, 12, 0, 0, 120_000)
PIXEL = b"P5 1 1 255\nx"  # the smallest image
ANYWHERE: dict[str, Any] = {  # what every format carries
    "i8": pa.array([1, None, -128], pa.int8()),
    "u32": pa.array([1, None, 2**32 - 1], pa.uint32()),
    "i64": pa.array([2**62, None, -1]),
    "f16": pa.array([0.5, None, 2.0], pa.float16()),
    "f32": pa.array([0.1, None, 2.0], pa.float32()),
    "f64": pa.array([0.1, None, 1e300]),
    "text": pa.array(["a", None, "ü"]),
    "large": pa.array(["a", None, "ü"], pa.large_string()),
    "kind": pa.array(["a", None, "a"]).dictionary_encode(),
    "flag": pa.array([True, None, False]),
    "seconds": pa.array([NOON.replace(microsecond=0), None, dt.datetime(1, 1, 1)], pa.timestamp("s")),
    "at": pa.array([NOON, None, NOON], pa.timestamp("ms", "UTC")),
    "paris": pa.array([NOON, None, NOON], pa.timestamp("us", "Europe/Paris")),
    "ns": pa.array([1, None, 1_700_000_000_123_456_789], pa.timestamp("ns")),
    "day": pa.array([NOON.date(), None, dt.date(1900, 1, 1)]),
    "price": pa.array([Decimal("1.25"), None, Decimal("-0.50")], pa.decimal128(12, 2)),
    "huge": pa.array([Decimal(10) ** 50, None, Decimal(1)], pa.decimal256(60, 0)),
    "vector": pa.array([[1, 2], None, [0.5, 3]], pa.list_(pa.float32(), 2)),
    "many": pa.array([[1], None, []], pa.large_list(pa.int16())),
    "tags": pa.array([["a", None], None, []], pa.list_(pa.string())),
    "meta": pa.array([{"n": 1, "at": NOON}, {"n": None, "at": None}, {"n": 3, "at": NOON}],
                     pa.struct([("n", pa.uint8()), ("at", pa.timestamp("us"))])),
    "parts": pa.array([[{"x": 1}], None, []], pa.list_(pa.struct([("x", pa.int8())]))),
    "nothing": pa.nulls(3),
}  # fmt: skip
PARQUET_ONLY: dict[str, Any] = {
    "raw": pa.array([b"\x00\xff", None, b""]),
    "large_raw": pa.array([b"\x00\xff", None, b""], pa.large_binary()),
    "took": pa.array([dt.timedelta(seconds=1.5), None, dt.timedelta(-1)], pa.duration("us")),
    "time": pa.array([NOON.time(), None, dt.time(0)], pa.time64("us")),
    "short": pa.array([dt.time(1), None, dt.time(0)], pa.time32("s")),
    "bytes_of": pa.array([{"bytes": b"x", "path": None}, None, {"bytes": None, "path": "p"}],
                         pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
    "u64": pa.array([2**64 - 1, None, 0], pa.uint64()),
    "inf": pa.array([math.inf, None, -math.inf]),
}  # fmt: skip


@pytest.fixture
def made(local_hub: LocalHub, tmp_path: Path) -> Callable[..., Uploader]:
    def make(**changes: Any) -> Uploader:
        return Uploader("user/rows", **{"spool": tmp_path / "spool", **FAST, **changes})

    return make


def load(**options: Any) -> Any:
    return datasets.load_dataset("user/rows", split="train", download_mode="force_redownload", **options)


def as_datasets_has(table: Any) -> Any:
    """A table as `datasets` keeps it in memory: the value that every way through the Hub is compared with."""
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(index, field.name, table.column(index).cast(field.type.value_type))
    return datasets.Dataset(table)


def values(dataset: Any) -> list[Any]:
    return dataset.with_format("arrow")[:].to_pylist()  # type: ignore[no-any-return]


class Stream:
    """A table of a library that hubsync does not know, such as polars."""

    def __init__(self, table: Any) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("source", ["table", "batch", "dataset", "stream", "array"])
def test_parquet_keeps_every_type(source: str, made: Callable[..., Uploader], tmp_path: Path) -> None:
    table = pa.table({**ANYWHERE, **PARQUET_ONLY})
    made_from = {
        "table": table, "batch": table.to_batches()[0], "dataset": as_datasets_has(table), "stream": Stream(table),
        "array": pa.StructArray.from_arrays([column.combine_chunks() for column in table.columns], table.column_names),
    }  # fmt: skip
    with made(format="parquet") as up:
        assert up.put(made_from[source]).rows == 3
    back, want = load(), as_datasets_has(table)
    assert back.features == want.features
    assert values(back) == values(want)
    assert verify("user/rows", spool=tmp_path / "spool", content=True).differences == ()


@pytest.mark.parametrize("format", [one for one in FORMATS if one != "parquet"])
def test_json_lines_keep_the_types_that_load_dataset_restores(format: Format, made: Callable[..., Uploader]) -> None:
    table = pa.table(ANYWHERE)
    with made(format=format) as up:
        up.put(table)
    back, want = load(), as_datasets_has(table)
    assert back.features == want.features
    assert values(back) == values(want)


@pytest.mark.parametrize("name", PARQUET_ONLY)
def test_what_json_lines_cannot_carry_is_refused(name: str, made: Callable[..., Uploader]) -> None:
    with made() as up:
        with pytest.raises(RowError) as refused:
            up.put(pa.table({"id": [1, 2, 3], name: PARQUET_ONLY[name]}))
        if name not in ("u64", "inf"):  # for which a string will do
            assert "format='parquet'" in str(refused.value)
        assert refused.value.path.startswith(name)
        assert up.stats().counts.spooled_rows == 0


def test_a_frame_of_pandas_brings_its_types(made: Callable[..., Uploader]) -> None:
    columns = {
        "n": pd.array([1, 2], "int32"), "f": pd.array([0.5, 1], "float32"), "at": pd.to_datetime(["2026-01-01"] * 2),
        "who": ["a", None], "kind": pd.Categorical(["x", "y"]), "missing": [1.5, None], "lists": [[1], None],
    }  # fmt: skip
    frame = pd.DataFrame(columns)
    with made() as up:
        up.put(frame[frame.n > 0])
    back = load()
    assert back.features["n"] == datasets.Value("int32")
    assert back.features["f"] == datasets.Value("float32")
    assert back.features["at"].dtype.startswith("timestamp[")
    assert back["kind"][:] == ["x", "y"]
    assert (back["who"][:], back["missing"][:], back["lists"][:]) == (["a", None], [1.5, None], [[1], None])
    assert "__index_level_0__" not in back.features


def test_labels_keep_their_names_in_json_lines(made: Callable[..., Uploader]) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"]), "x": datasets.Value("int16")})
    with made() as up:
        up.put(datasets.Dataset.from_dict({"label": [1, 0, None], "x": [1, 2, 3]}, features=features))
    back = load()
    assert back.features == features
    assert back["label"][:] == [1, 0, None]


def test_a_parquet_file_alone_tells_its_features(made: Callable[..., Uploader], dataset_paths: Any) -> None:
    features = datasets.Features({"label": datasets.ClassLabel(names=["no", "yes"]), "image": datasets.Image()})
    rows = {"label": [1], "image": [{"bytes": PIXEL, "path": None}]}
    with made(format="parquet") as up:
        up.put(datasets.Dataset.from_dict(rows, features=features))
    (path,) = dataset_paths()
    assert datasets.Features.from_arrow_schema(pq.read_schema(path)) == features


@pytest.fixture
def dataset_paths(local_hub: LocalHub) -> Callable[[], list[str]]:
    def paths() -> list[str]:
        found = Dataset(local_hub).paths(".parquet")
        return [hf_hub_download("user/rows", path, repo_type="dataset") for path in found]

    return paths


# Mixed sources.


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_column_is_widened_to_hold_a_later_type(format: Format, made: Callable[..., Uploader]) -> None:
    with made(format=format) as up:
        up.put(pa.table({"n": pa.array([1], pa.int32()), "f": pa.array([1], pa.int16())}))
        up.flush()
        assert load().features["n"] == datasets.Value("int32")
        up.put(pa.table({"n": [2**60], "f": [0.1]}))
        up.put([{"n": 3, "f": 2.5}])
        up.put(pa.table({"n": pa.array([4], pa.int8()), "f": pa.array([0.5], pa.float32())}))
    back = load()
    assert back.features["n"] == datasets.Value("int64")
    assert back.features["f"] == datasets.Value("float64")
    assert (back["n"][:], back["f"][:]) == ([1, 2**60, 3, 4], [1.0, 0.1, 2.5, 0.5])


def test_alternating_sources_share_shards(made: Callable[..., Uploader], dataset_paths: Any) -> None:
    with made(format="parquet") as up:
        for n in range(20):
            up.put([{"id": 2 * n, "text": "plain"}])
            up.put(pa.table({"id": [2 * n + 1], "raw": [b"\xff"]}))
    assert sorted(load()["id"][:]) == list(range(40))
    assert len(dataset_paths()) == 2  # one of lines, before the first table


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_table_that_does_not_fit_is_refused(format: Format, made: Callable[..., Uploader]) -> None:
    with made(format=format, schema=SchemaPolicy(on_conflict="refuse")) as up:
        up.put(pa.table({"x": pa.array([1], pa.int32())}))
        with pytest.raises(SchemaConflict, match="int32"):
            up.put(pa.table({"x": ["text"]}))
        with pytest.raises(SchemaConflict):
            up.put([{"x": "text"}])
    assert load()["x"][:] == [1]


@pytest.mark.parametrize(
    "options", [{"format": "parquet"}, {"json_columns": ["day"]}, {"features": {"day": "date32"}}, {}], ids=str
)
def test_text_like_times_comes_back_as_the_log_says(
    options: dict[str, Any], made: Callable[..., Uploader], caplog: pytest.LogCaptureFixture
) -> None:
    with made(**options) as up:
        up.put([{"day": "2026-01-01"}, {"day": "2026-01-02"}])
    kept: list[Any] = (
        [dt.date(2026, 1, 1), dt.date(2026, 1, 2)] if "features" in options else ["2026-01-01", "2026-01-02"]
    )
    assert load()["day"][:] == (kept if options else ["2026-01-01 00:00:00", "2026-01-02 00:00:00"])
    assert ("holds text that looks like times" in caplog.text) == (not options)
    assert [row["day"] for row in read_rows("user/rows")] == ["2026-01-01", "2026-01-02"]


# Faults.


@pytest.mark.parametrize("is_rescued", [False, True])
def test_a_table_survives_the_process(
    is_rescued: bool, made: Callable[..., Uploader], python: Python, tmp_path: Path
) -> None:
    program = """
import os, signal, sys
import pyarrow as pa
from hubsync import Uploader
up = Uploader("user/rows", spool=sys.argv[1], format="parquet").open()
up.put(pa.table({"id": [1, 2], "raw": [b"\\xff", None], "at": pa.array([0, 1], pa.timestamp("ms"))}))
up.put([{"id": 3, "text": "plain"}])
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = python.run("-c", program, tmp_path / "spool", env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr
    (file,) = (tmp_path / "spool" / "segments").glob("*.frames")
    with file.open("ab") as torn:
        torn.write(b"\xffhsfA")  # what the next take had begun to write
    if is_rescued:
        for part in (tmp_path / "spool").glob("catalogue.sqlite*"):
            part.unlink()
        report = rebuild(tmp_path / "spool")
        assert report is not None
        assert report.rows == 3
    drain(tmp_path / "spool")
    back = load()
    assert back.features["at"] == datasets.Value("timestamp[ms]")
    assert sorted((row["id"], row["raw"]) for row in back) == [(1, b"\xff"), (2, None), (3, None)]


def test_a_rejected_table_can_be_exported_and_resubmitted(made: Callable[..., Uploader], tmp_path: Path) -> None:
    with made(format="parquet", schema=SchemaPolicy(on_conflict="dead letter")) as up:
        up.put(pa.table({"x": pa.array([1], pa.int32())}))
        up.put(pa.table({"x": [b"\xff"], "at": pa.array([0], pa.timestamp("s"))}))
    with QuarantineCommands(tmp_path / "spool") as commands:
        (shard,) = commands.shards()
        assert b"".join(commands.lines(shard)) == b'{"x":"/w==","at":"1970-01-01T00:00:00"}\n'
        (file,) = commands.export([shard], tmp_path)
        assert file.name.endswith(".jsonl")
        assert commands.edited_files([shard]) == []
        file.write_text('{"x":2,"at":"1970-01-01T00:00:00"}\n')
        commands.resubmit_edited(shard, file)
    drain(tmp_path / "spool")
    assert sorted(load()["x"][:]) == [1, 2]


def test_readers_get_typed_rows_as_text_once_before_and_after_the_commit(
    made: Callable[..., Uploader], tmp_path: Path
) -> None:
    table = pa.table({"id": [1, 2], "raw": [b"\xff", None], "at": pa.array([0, 1500], pa.timestamp("ms", "UTC"))})
    want = [
        {"id": 1, "raw": "/w==", "at": "1970-01-01T00:00:00Z"},
        {"id": 2, "raw": None, "at": "1970-01-01T00:00:01.5Z"},
    ]
    with made(format="parquet") as up:
        up.put(table)
        reader = read_rows("user/rows", spool=tmp_path / "spool")
        assert list(reader) == want
        up.flush()
        assert list(read_rows("user/rows", since=reader.cursor)) == []
    assert list(read_rows("user/rows")) == want


# Declared types.

DECLARED = datasets.Features(
    {
        "n": datasets.Value("int16"),
        "at": datasets.Value("timestamp[ms, tz=UTC]"),
        "price": datasets.Value("decimal128(8, 2)"),
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "vector": datasets.Sequence(datasets.Value("float32"), length=2),
        "grid": datasets.Array2D((1, 2), "int8"),
        "meta": {"kind": datasets.ClassLabel(names=["a"])},
    }
)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_declared_types_are_those_of_plain_dicts(format: Format, made: Callable[..., Uploader]) -> None:
    utc = NOON.replace(tzinfo=dt.UTC)
    with made(format=format, features=DECLARED) as up:
        up.put([{"n": 1, "at": utc, "price": Decimal("1.50"), "label": "yes", "vector": [1, 2], "grid": [[1, 2]]}])
        up.put([{"n": 2, "label": 0, "meta": {"kind": "a"}, "more": "text"}])
        with pytest.raises(RowError, match="int16"):
            up.put([{"n": 1}, {"n": 70_000}])
    back = load()
    assert back.features == datasets.Features({**DECLARED, "more": datasets.Value("string")})
    assert values(back) == [
        {"n": 1, "at": utc, "price": Decimal("1.50"), "label": 1, "vector": [1, 2], "grid": [[1, 2]],
         "meta": None, "more": None},
        {"n": 2, "at": None, "price": None, "label": 0, "vector": None, "grid": None, "meta": {"kind": 0},
         "more": "text"},
    ]  # fmt: skip


def test_base64_is_text_on_request(made: Callable[..., Uploader]) -> None:
    with made(features={"raw": "base64"}) as up:
        up.put([{"raw": b"\xff"}])
        up.put(pa.table({"raw": [b"\x00"]}))
    assert load()["raw"][:] == ["/w==", "AA=="]


@pytest.mark.parametrize("features", [{"x": "int9"}, "int8", {"x": object()}])
def test_features_that_are_no_types_are_refused(features: Any) -> None:
    with pytest.raises(ConfigError, match="features: "):
        Uploader("user/rows", features=features)


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_plain_rows_take_the_types_of_an_earlier_table(format: Format, made: Callable[..., Uploader]) -> None:
    features = datasets.Features({"n": datasets.Value("int32"), "label": datasets.ClassLabel(names=["no", "yes"]),
                                  "at": datasets.Value("timestamp[ms]"), "f": datasets.Value("float32")})  # fmt: skip
    with made(format=format) as up:
        up.put(datasets.Dataset.from_dict({"n": [1], "label": [0], "at": [NOON], "f": [0.5]}, features=features))
        up.put([{"n": 2, "label": "yes", "at": NOON, "f": 2}, {"n": None}])
    with made(format=format) as up:
        up.put([{"n": 3, "f": 1.5}])
    back = load()
    assert back.features == features
    assert back["n"][:] == [1, 2, None, 3]
    assert back["label"][:] == [0, 1, None, None]
    assert back["f"][:] == [0.5, 2, None, 1.5]


# Media.


def picture(seed: int = 0) -> Image.Image:
    return Image.frombytes("RGB", (8, 8), random.Random(seed).randbytes(192))


def test_images_and_sound_load_as_what_they_are(made: Callable[..., Uploader], tmp_path: Path) -> None:
    file = tmp_path / "local.png"
    picture(1).save(file)
    sound = {"array": np.linspace(-1, 1, 100, dtype=np.float32), "sampling_rate": 8_000}
    features = datasets.Features({"image": datasets.Image(), "audio": datasets.Audio(sampling_rate=8_000)})
    with made(format="parquet", features=features) as up:
        up.put([{"image": picture(), "audio": sound, "id": 0}, {"image": str(file), "id": 1}])
        up.put(datasets.Dataset.from_dict({"image": [str(file)], "id": [2]}, features=datasets.Features(
            {"image": datasets.Image(), "id": datasets.Value("int64")})))  # fmt: skip
    file.unlink()
    back = load()
    assert back.features == datasets.Features({**features, "id": datasets.Value("int64")})
    assert [one.tobytes() for one in back["image"][:]] == [picture(n).tobytes() for n in (0, 1, 1)]
    data = back.cast_column("audio", datasets.Audio(decode=False))[0]["audio"]["bytes"]
    assert np.array_equal(np.frombuffer(data[44:], np.float32), sound["array"])


def test_a_video_keeps_its_file_and_its_name(made: Callable[..., Uploader]) -> None:
    clip = {"bytes": b"not decoded here", "path": "a.mp4"}
    with made(format="parquet", features={"clip": datasets.Video()}) as up:
        up.put([{"clip": clip}, {"clip": None}])
    back = load()
    assert back.features["clip"] == datasets.Video()
    assert back.cast_column("clip", datasets.Video(decode=False))["clip"][:] == [clip, None]


def test_an_image_needs_no_declaration(made: Callable[..., Uploader]) -> None:
    with made(format="parquet") as up:
        up.put([{"id": 0, "image": picture(), "more": [picture(1)]}])
        up.put([{"id": 1, "image": None, "more": []}])
    back = load()
    assert back.features["image"] == datasets.Image()
    assert back.features["more"].feature == datasets.Image()
    assert back[0]["more"][0].tobytes() == picture(1).tobytes()
    assert back[1]["image"] is None


@pytest.mark.parametrize("value", [b"x", picture(), {"bytes": b"x", "path": None}], ids=["bytes", "image", "mapping"])
def test_media_in_json_lines_are_refused_with_the_remedy(value: Any, made: Callable[..., Uploader]) -> None:
    for features in (None, {"image": "image"}):
        with made(features=features) as up, pytest.raises(RowError, match="format='parquet'"):
            up.put([{"image": value}])


def test_row_groups_of_images_are_small_enough_for_the_viewer(
    made: Callable[..., Uploader], dataset_paths: Any
) -> None:
    data = b"P6 182 182 255\n" + random.Random(0).randbytes(182 * 182 * 3)  # 99,387 bytes
    with made(format="parquet", shard=ShardPolicy(max_bytes=200 << 20)) as up:
        for batch in range(10):
            up.put([{"id": 100 * batch + n, "image": {"bytes": data, "path": None}} for n in range(100)])
    (path,) = dataset_paths()
    about = pq.ParquetFile(path).metadata
    assert about.num_rows == 1_000
    sizes = [about.row_group(n).total_byte_size for n in range(about.num_row_groups)]
    assert max(sizes) <= 100 << 20
    assert min(about.row_group(n).num_rows for n in range(about.num_row_groups - 1)) >= 100


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_a_typed_column_becomes_json_where_nothing_else_holds_both(
    format: Format, made: Callable[..., Uploader]
) -> None:
    with made(format=format) as up:
        up.put(pa.table({"x": pa.array([1], pa.int32())}))
        up.put(pa.table({"x": ["text"]}))
        up.put([{"x": {"a": 1}}, {"x": 2}])
        up.put(pa.table({"x": pa.array([3], pa.int8())}))
    assert load()["x"][:] == [1, "text", {"a": 1}, 2, 3]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_text_that_is_no_time_does_not_reach_a_column_of_times(format: Format, made: Callable[..., Uploader]) -> None:
    table = pa.table({"at": pa.array([0], pa.timestamp("ms")), "id": [1]})
    with made(format=format, schema=SchemaPolicy(on_conflict="refuse")) as up:
        up.put(table)
        up.put([{"at": "2026-01-01T00:00:00", "id": 2}])
        for rows in ([{"at": "soon", "id": 3}], pa.table({"at": ["soon"], "id": [3]})):
            with pytest.raises(SchemaConflict):
                up.put(rows)
    back = load()
    assert back.features["at"] == datasets.Value("timestamp[ms]")
    assert back["id"][:] == [1, 2]


MEMORY = """
import os, random, resource, sys
from hubsync import QueuePolicy, Uploader

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

rng, peaks = random.Random(0), []
with Uploader("user/rows", spool=sys.argv[1], format="parquet", features={"image": "image"},
              queue=QueuePolicy(max_bytes=16 << 20)) as up:
    for batches in (30, 50):
        for _ in range(batches):
            up.put([{"image": b"P6 182 182 255\\n" + rng.randbytes(182 * 182 * 3)} for _ in range(100)])
        up.flush()
        peaks.append(peak())
print(*peaks)
"""


def test_memory_is_bounded_by_the_queue_and_not_by_the_images(
    made: Callable[..., Uploader], python: Python, tmp_path: Path
) -> None:
    done = python.run("-c", MEMORY, tmp_path / "spool", env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    first, last = map(int, done.stdout.split())  # MiB, after 300 MB and after 800 MB of images
    assert last - first < 250
