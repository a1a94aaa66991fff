"""Codecs: the same rows in every format, whoever reads them."""

from __future__ import annotations

import io
import random
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import msgspec
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubsync import ConfigError, Uploader
from hubsync._runtime import frames
from hubsync.committer.schema_check import Unreadable, scan
from hubsync.encoding import codecs
from hubsync.encoding.codecs import parquet
from hubsync.encoding.rows import encode
from hubsync.errors import DefectError
from hubsync.model.layout import FORMATS, Format
from hubsync.reader.cursor import fingerprint
from hubsync.schema.features import from_features
from tests.encoding.test_values import SAMPLES

COMPRESSED: list[Format] = [format for format in FORMATS if format != "jsonl"]


def write_shard(where: Path, given: list[dict[str, Any]], format: Format) -> Path:
    """Write rows as a shard and return its path."""
    encoded = encode(given)
    lines, target = where / "lines.jsonl", where / f"shard.{format}"
    lines.write_bytes(encoded.lines)
    if format != "jsonl":
        codecs.compress(lines, target, encoded.rows)
        return target
    return lines


def load(path: Path, streaming: bool = False) -> list[dict[str, Any]]:
    kind = "parquet" if path.suffix == ".parquet" else "json"
    return list(datasets.load_dataset(kind, data_files=str(path), split="train", streaming=streaming))


@pytest.mark.parametrize("format", COMPRESSED)
@pytest.mark.parametrize(("value", "expected"), SAMPLES)
def test_a_value_loads_from_every_format_as_from_json_lines(
    value: Any, expected: Any, format: Format, tmp_path: Path
) -> None:
    given = [{"id": 1, "value": value}, {"id": 2, "value": value}, {"id": 3, "value": None}]
    lines, shard = write_shard(tmp_path, given, "jsonl"), write_shard(tmp_path, given, format)
    assert load(shard) == load(shard, streaming=True)
    if format == "parquet" and expected == {}:
        assert [row["value"] for row in load(shard)] == [None] * 3  # Parquet has no object without fields
    elif format == "parquet" and isinstance(load(lines)[0]["value"], datetime):
        assert [row["value"] for row in load(shard)] == [expected, expected, None]  # `datasets` guesses, we do not
    else:
        assert load(shard) == load(lines)


def test_text_that_looks_like_a_time_stays_text(tmp_path: Path) -> None:
    given = [{"at": "2026-01-01T00:00:00", "in": [{"on": "2026-01-01"}]}]
    assert load(write_shard(tmp_path, given, "parquet")) == given


def test_lists_of_nulls_stay_lists_and_change_no_other_column(tmp_path: Path) -> None:
    """pyarrow's JSON reader miscounts the nulls of a list that holds several."""
    given = [{"id": n, "x": [None] * n, "y": {"z": [[None, None], None][:n]}} for n in range(4)]
    shard = write_shard(tmp_path, given, "parquet")
    assert load(shard) == given
    assert str(pyarrow.parquet.read_schema(shard).field("id").type) == "int64"


def test_values_without_a_common_type_are_stored_as_json(tmp_path: Path) -> None:
    values = ["text", 1, {"a": [1, "b"]}, None, True, {"a": "b"}]
    given = [{"id": n, "value": value} for n, value in enumerate(values)]
    shard = write_shard(tmp_path, given, "parquet")
    assert [msgspec.json.decode(line) for line in codecs.read_lines(shard)] == given
    assert str(pyarrow.parquet.read_schema(shard).field("id").type) == "int64"
    assert [row["value"] for row in load(shard)] == values


def test_parquet_files_have_the_known_columns_of_their_config(tmp_path: Path) -> None:
    """The first file has only nulls; the dataset loads all the same."""
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


def test_rows_without_fields_can_not_become_parquet(tmp_path: Path) -> None:
    with pytest.raises(DefectError):
        write_shard(tmp_path, [{}, {}], "parquet")
    assert [file.name for file in tmp_path.iterdir()] == ["lines.jsonl"]


def test_a_type_that_parquet_lacks_is_no_failure_of_the_disk(tmp_path: Path) -> None:
    """A spool of an earlier version may hold it. pyarrow raises an OSError, and a full disk would be tried forever."""
    stream = io.BytesIO()
    table = pyarrow.table({"x": pyarrow.array([Decimal("1E+2")], pyarrow.decimal128(5, -2))})
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    source = tmp_path / f"rows{frames.SUFFIX}"
    source.write_bytes(frames.header(b"A", 1, stream.getvalue()) + stream.getvalue())
    with pytest.raises(DefectError, match="Parquet"):
        codecs.compress(source, tmp_path / "shard.parquet", 1)
    assert list(tmp_path.iterdir()) == [source]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.slow("tries many rows in each format")
@given(st.lists(st.dictionaries(st.sampled_from("abc"), json_values, min_size=1), min_size=1, max_size=6))
def test_a_row_has_the_same_fingerprint_in_every_format(
    tmp_path_factory: pytest.TempPathFactory, given: list[dict[str, Any]]
) -> None:
    try:
        lines = list(encode(given).lines.splitlines())
    except Exception:  # refused, as `put` does
        return
    given = [msgspec.json.decode(line) for line in lines]
    where = tmp_path_factory.mktemp("shard")
    for format in COMPRESSED:
        found = [msgspec.json.decode(line) for line in codecs.read_lines(write_shard(where, given, format))]
        assert len(found) == len(given)
        if format != "parquet":
            assert found == given
        elif not any(_is_rounded(row) for row in given):
            assert [fingerprint(row) for row in found] == [fingerprint(row) for row in given]


def _is_rounded(value: Any) -> bool:
    """Return whether a float would change a number of the value."""
    if isinstance(value, dict):
        return any(map(_is_rounded, value.values()))
    if isinstance(value, list):
        return any(map(_is_rounded, value))
    return isinstance(value, int | float) and (abs(value) >= 2**53 or str(value).startswith("-0"))


@pytest.mark.parametrize("format", COMPRESSED)
def test_the_same_lines_give_the_same_shard(format: Format, tmp_path: Path) -> None:
    given = [{"id": n, "text": "é" * n} for n in range(2_000)]
    first = write_shard(tmp_path, given, format).read_bytes()
    assert write_shard(tmp_path, given, format).read_bytes() == first


@pytest.mark.slow("writes 25 MB")
def test_parquet_has_row_groups_and_a_page_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_CHUNK", 8 << 20)
    text = random.Random(1).randbytes
    given = [{"id": n, "text": text(500_000).hex()} for n in range(25)]
    file = pyarrow.parquet.ParquetFile(write_shard(tmp_path, given, "parquet"))
    assert file.metadata.num_row_groups == 3
    assert file.metadata.row_group(0).column(0).has_offset_index
    assert file.metadata.row_group(0).column(0).has_column_index
    assert [row["id"] for row in load(tmp_path / "shard.parquet")] == list(range(25))


@pytest.mark.parametrize("format", COMPRESSED)
def test_the_schema_check_reads_compressed_shards(format: Format, tmp_path: Path) -> None:
    given = [{"id": 1, "text": "x", "tags": ["a"]}, {"id": 2, "text": None, "tags": []}]
    assert scan(write_shard(tmp_path, given, format)) == scan(write_shard(tmp_path, given, "jsonl"))


@pytest.mark.parametrize("format", COMPRESSED)
def test_a_damaged_shard_is_detected(format: Format, tmp_path: Path) -> None:
    shard = write_shard(tmp_path, [{"id": n} for n in range(1_000)], format)
    content = shard.read_bytes()
    for damaged in (content[: len(content) // 2], b"{}\n" * 10):
        shard.write_bytes(damaged)
        with pytest.raises(codecs.DamagedShard):
            list(codecs.read_lines(shard))
        with pytest.raises(Unreadable):
            scan(shard)


@pytest.mark.parametrize(("format", "package"), [("jsonl.zst", "zstandard"), ("parquet", "pyarrow")])
def test_a_missing_package_is_reported_immediately(
    format: Format, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if format == "jsonl.zst" and sys.version_info >= (3, 14):
        pytest.skip("Python has it")
    for name in (package, f"{package}.json", f"{package}.parquet"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"pip install 'hf-hubsync\[(zstd|parquet)\]'"):
        Uploader("user/rows", format=format)
