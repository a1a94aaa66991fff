"""Rows of declared types: each value is stored as it is, or the row is refused."""

from __future__ import annotations

import datetime as dt
import io
import struct
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from hubsync._runtime.frames import read_frames
from hubsync.encoding.encoded import Encoded
from hubsync.encoding.rows import encode
from hubsync.encoding.tables import Types
from hubsync.encoding.typed import declared_types
from hubsync.errors import RowError
from hubsync.schema.features import to_features
from hubsync.schema.types import Conflict, StructOf, merge_structs

UTC = dt.UTC
NOON = dt.datetime(2026, 1, 1, 12)
SECOND = dt.timedelta(seconds=1)


def table(rows: Any, features: Any = None, **types: Any) -> Any:
    """The table that a Parquet shard would hold."""
    encoded = encode(rows, types=Types(native=True, declared=declared_types(features), **types))
    frames = list(read_frames(io.BytesIO(encoded.lines)))
    assert sum(frame.rows for frame in frames) == encoded.rows
    return pa.concat_tables([pa.ipc.open_stream(frame.data).read_all() for frame in frames])


def entries(rows: Any, features: Any = None) -> Any:
    columns = encode(rows, types=Types(native=True, declared=declared_types(features))).columns
    assert isinstance(columns, StructOf)
    return to_features(columns)


def test_declared_columns_are_there_and_first(tmp_path: Path) -> None:
    assert entries([{"b": 1, "z": "t"}], {"a": "int8", "b": "int16"}) == [
        {"name": "a", "dtype": "int8"}, {"name": "b", "dtype": "int16"}, {"name": "z", "dtype": "string"},
    ]  # fmt: skip


def test_any_kind_of_row_and_a_table_take_declared_types() -> None:
    @dataclass
    class Row:
        n: int
        raw: bytes

    class Model:
        def model_dump(self) -> dict[str, Any]:
            return {"n": 1, "raw": b"x"}

    kinds = {"n": "int8", "raw": "binary"}
    for rows in (
        [Row(1, b"x")],
        [Model()],
        pa.table({"n": [1], "raw": [b"x"]}),
        pd.DataFrame({"n": [1], "raw": [b"x"]}),
    ):
        assert table(rows, kinds).schema.field("n").type == pa.int8()
    with pytest.raises(RowError):
        table(pa.table({"n": [300]}), kinds)


@pytest.mark.parametrize(
    "features",
    [
        datasets.Features({"n": datasets.Value("int8"), "l": datasets.Sequence(datasets.ClassLabel(names=["a"]))}),
        {"n": "int8", "l": [datasets.ClassLabel(names=["a"])]},
        {"n": pa.int8(), "l": datasets.Sequence(datasets.ClassLabel(names=["a"]))},
    ],
)
def test_features_are_declared_in_any_of_the_usual_forms(features: Any) -> None:
    want = datasets.Features({"n": datasets.Value("int8"), "l": datasets.Sequence(datasets.ClassLabel(names=["a"]))})
    assert to_features(declared_types(features)) == want._to_yaml_list()
    assert declared_types(pa.schema([("n", pa.int8())])).fields.keys() == {"n"}


@pytest.mark.parametrize(
    "features",
    ["int8", {"x": "int9"}, {"x": 5}, {"x": ["int8", "int8"]}, [("x", "int8")], {"x": pa.decimal128(5, -2)}],
)
def test_what_is_no_type_is_refused(features: Any) -> None:
    with pytest.raises(ValueError, match="type"):
        declared_types(features)


def test_rows_with_bytes_keep_their_other_types() -> None:
    rows = [{"raw": b"\xff", "n": 1, "at": NOON, "f": float("nan"), "tags": ["a"]}, {"n": 2.5, "meta": {"b": b"x"}}]
    found = table(rows)
    assert found.to_pylist() == [
        {"raw": b"\xff", "n": 1.0, "at": "2026-01-01T12:00:00", "f": None, "tags": ["a"], "meta": None},
        {"raw": None, "n": 2.5, "at": None, "f": None, "tags": None, "meta": {"b": b"x"}},
    ]


@pytest.mark.parametrize("value", [b"x", bytearray(b"x"), [b"x"], {"a": {"b": b"x"}}, Image.new("L", (1, 1))])
def test_bytes_and_images_are_refused_in_json_lines(value: Any) -> None:
    with pytest.raises(RowError, match="format='parquet'") as refused:
        encode([{"x": 1}, {"x": value}])
    assert refused.value.row == 1
    assert refused.value.path.startswith("x")


def test_a_transform_keeps_the_types_of_a_table() -> None:
    given = pa.table({"n": pa.array([1, 2], pa.int8()), "raw": [b"a", b"b"], "text": ["x", "y"]})

    def mask(row: Any) -> Any:
        return {**row, "text": "*"} if row["n"] == 2 else None

    encoded = encode(given, transform=mask, types=Types(native=True))
    (frame,) = read_frames(io.BytesIO(encoded.lines))
    found = pa.ipc.open_stream(frame.data).read_all()
    assert found.schema.field("n").type == pa.int8()
    assert found.to_pylist() == [{"n": 2, "raw": b"b", "text": "*"}]


def test_rows_take_the_types_that_their_config_has_if_they_fit() -> None:
    known = declared_types(
        {"n": "int8", "f": "float32", "at": "timestamp[ms]", "label": datasets.ClassLabel(names=["a"])}
    )
    rows = [{"n": 1, "f": 0.5, "at": NOON, "label": "a"}]
    assert table(rows, known=known).schema.field("n").type == pa.int8()
    assert table(rows, known=known).to_pylist() == [{"n": 1, "f": 0.5, "at": NOON, "label": 0}]
    wider = table([{"n": 300, "f": 0.1, "at": "soon", "label": "b"}], known=known)
    assert wider.to_pylist() == [{"n": 300, "f": 0.1, "at": "soon", "label": "b"}]


# Media.


def png() -> Any:
    image = Image.new("RGB", (2, 3))
    image.putpixel((0, 0), (1, 2, 3))
    return image


KNOWN: list[tuple[Any, Any, Any]] = [
    (datasets.ClassLabel(names=["a", "b"]), 1, 7),
    (datasets.Sequence(datasets.ClassLabel(names=["a", "b"])), ["b", 0], ["zzz"]),
    (datasets.Sequence(datasets.ClassLabel(names=["a", "b"])), [1], [9]),
    (datasets.Array2D((2, 2), "int32"), [[1, 2], [3, 4]], [[1, 2, 3]]),
    (datasets.Array2D((2, 2), "int32"), [[1, 2], [3, 4]], [[1, 1 << 40], [0, 0]]),
    (datasets.Array2D((2, 2), "int32"), [[1, 2], [3, 4]], 5),
    (datasets.Translation(languages=["de", "en"]), {"de": "a", "en": "b"}, "a"),
    ({"at": "timestamp[ms]", "n": "int64"}, {"at": "2026-01-01", "more": 1}, {"at": "soon"}),
    (["date32"], ["2026-01-01"], ["soon"]),
    ("image", png(), 4),
    ("image", png(), {"a": 1}),
    ("audio", None, 4),
]


@pytest.mark.parametrize(("kind", "fits", "other"), KNOWN, ids=[f"{one[0]}-{one[2]}"[:60] for one in KNOWN])
def test_a_value_that_does_not_fit_a_known_type_conflicts_with_it(kind: Any, fits: Any, other: Any) -> None:
    known = declared_types({"x": kind})
    types = Types(native=True, known=known)
    merge_structs(known, columns_of(encode([{"x": fits}], types=types)))
    with pytest.raises(Conflict):
        merge_structs(known, columns_of(encode([{"x": other}], types=types)))


def columns_of(encoded: Encoded) -> StructOf:
    assert isinstance(encoded.columns, StructOf)
    return encoded.columns


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I", "F", "CMYK"])
def test_an_image_of_any_mode_keeps_its_pixels(mode: str) -> None:
    size = len(Image.new(mode, (2, 3)).tobytes())
    image = Image.frombytes(mode, (2, 3), bytes(range(size))) if mode != "P" else png().quantize()
    (value,) = table([{"x": image}])["x"].to_pylist()
    back = Image.open(io.BytesIO(value["bytes"]))
    assert back.convert(mode).tobytes() == image.tobytes()
    assert entries([{"x": image}]) == [{"name": "x", "dtype": "image"}]


def test_a_file_is_taken_as_it_is_and_a_changed_image_is_not(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)
    Image.fromarray(noise).save(path)
    opened, changed = Image.open(path), Image.open(path)
    changed.putpixel((0, 0), (1, 2, 3))
    features = {"x": "image"}
    rows = [{"x": opened}, {"x": changed}, {"x": str(path)}, {"x": path}, {"x": {"bytes": None, "path": str(path)}}]
    values = table(rows, features)["x"].to_pylist()
    whole = {"bytes": path.read_bytes(), "path": "photo.jpg"}
    assert [values[0], *values[2:]] == [whole] * 4
    assert Image.open(io.BytesIO(values[1]["bytes"])).getpixel((0, 0)) == (1, 2, 3)


def test_encoded_bytes_arrays_and_lists_of_images_are_taken() -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    encoded = b"P5 1 1 255\nx"
    rows = [
        {"x": encoded, "many": [png(), None]},
        {"x": {"bytes": encoded, "path": "a.png"}},
        {"x": pixels},
        {"x": None},
    ]
    values = table(rows, {"x": "image", "many": ["image"]})["x"].to_pylist()
    assert values[0] == {"bytes": encoded, "path": None}
    assert values[1] == {"bytes": encoded, "path": "a.png"}
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(values[2]["bytes"]))), pixels)
    assert values[3] is None
    assert entries([{"deep": [{"image": png()}]}]) == [
        {"name": "deep", "list": [{"name": "image", "dtype": "image"}]},
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2])
def test_sound_keeps_its_samples(dtype: str, channels: int) -> None:
    samples = np.arange(50).astype(dtype)
    if channels == 2:
        samples = np.stack([samples, samples[::-1]])
    (value,) = table([{"x": {"array": samples, "sampling_rate": 16_000}}], {"x": "audio"})["x"].to_pylist()
    data = value["bytes"]
    form, found, rate, _, _, bits = struct.unpack("<HHIIHH", data[20:36])
    assert (form, found, rate, bits) == (
        3 if dtype.startswith("f") else 1,
        channels,
        16_000,
        samples.dtype.itemsize * 8,
    )
    assert np.array_equal(
        np.frombuffer(data[44 : 44 + samples.nbytes], dtype).reshape(-1, channels), samples.reshape(channels, -1).T
    )
    assert struct.unpack("<I", data[4:8]) == (len(data) - 8,)
    if form == 1:
        with wave.open(io.BytesIO(data)) as file:
            assert (file.getnchannels(), file.getframerate(), file.getnframes()) == (channels, 16_000, 50)


def test_the_paths_of_a_dataset_are_embedded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    png().save(path)
    features = datasets.Features({"x": datasets.Image(), "many": datasets.Sequence(datasets.Image())})
    given = datasets.Dataset.from_dict({"x": [str(path), None], "many": [[str(path)], []]}, features=features)
    whole = {"bytes": path.read_bytes(), "path": "a.png"}
    assert table(given).to_pylist() == [{"x": whole, "many": [whole]}, {"x": None, "many": []}]
    path.unlink()
    with pytest.raises(RowError, match="can't be read"):
        table(given)


@pytest.mark.parametrize("path", ["https://host/a.png", "hf://datasets/user/rows/a.png", "zip://a.png::s3://b/a.zip"])
def test_an_address_is_refused_at_once_as_put_never_waits_for_the_network(path: str) -> None:
    for value in (path, {"path": path, "bytes": None}):
        with pytest.raises(RowError, match="is an address, and put never waits for the network"):
            encode([{"x": value}], types=Types(native=True, declared=declared_types({"x": "image"})))
    given = datasets.Dataset.from_dict({"x": [path]}, features=datasets.Features({"x": datasets.Image()}))
    with pytest.raises(RowError, match="is an address"):
        table(given)


def test_what_datasets_decoded_is_taken_with_its_type() -> None:
    class AudioDecoder:
        def __init__(self) -> None:
            self._hf_encoded = {"bytes": b"RIFF", "path": "a.wav"}

    assert entries([{"x": AudioDecoder()}]) == [{"name": "x", "dtype": "audio"}]
    assert table([{"x": AudioDecoder()}])["x"].to_pylist() == [{"bytes": b"RIFF", "path": "a.wav"}]
