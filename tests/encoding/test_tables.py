"""Tables: what their types can't keep is refused, and what meets a known type changes in nothing."""

from __future__ import annotations

import datetime as dt
import io
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from hubsync import RowError
from hubsync._runtime.frames import read_frames
from hubsync.encoding.rows import encode
from hubsync.encoding.tables import Types
from hubsync.encoding.typed import declared_types
from hubsync.schema.types import Conflict, StructOf, merge_structs

NOON = dt.datetime(2026, 1, 1, 12)
IN_NS = pd.Timestamp("2026-01-01T12:00:00.123456789")


def encoded(rows: Any, known: Any = None) -> tuple[list[Any], StructOf]:
    """The values of the column x as a Parquet shard holds them, and the types of all."""
    found = encode(rows, types=Types(native=True, known=declared_types(known)))
    assert isinstance(found.columns, StructOf)
    tables = [pa.ipc.open_stream(frame.data).read_all() for frame in read_frames(io.BytesIO(found.lines))]
    return [value for table in tables for value in table["x"].to_pylist()], found.columns


def labels(names: str, values: list[Any]) -> Any:
    features = datasets.Features({"x": datasets.ClassLabel(names=list(names))})
    return datasets.Dataset.from_dict({"x": values}, features=features)


def extension(kind: Any, storage: Any) -> Any:
    return pa.table({"x": pa.ExtensionArray.from_storage(kind, storage)})


NO_TABLES = [
    (pa.table({"x": pa.array([0], pa.timestamp("us", "Mars/Base"))}), "time zone"),
    (pa.table({"x": pa.array([2**60], pa.timestamp("us"))}), "beyond 1 to 9999"),
    (pa.table({"x": pa.array([2**30], pa.date32())}), "beyond 1 to 9999"),
    (pa.table({"x": pa.array([[2**60]], pa.list_(pa.duration("s")))}), "Python does not have"),
    (pa.table({"x": pa.array([-1], pa.time64("us"))}), "Python does not have"),
    (extension(pa.opaque(pa.int32(), "x", "y"), pa.array([1], pa.int32())), "extension"),
    (pd.DataFrame({"x": pd.period_range("2026-01", periods=1, freq="M")}), "pandas.period"),
    (pd.DataFrame({"x": pd.interval_range(0, 1)}), "pandas.interval"),
    (pd.DataFrame({"x": [pd.Period("2026-01"), None]}), "pandas.period"),
    (pd.DataFrame({"x": pd.Categorical(pd.period_range("2026-01", periods=1, freq="M"))}), "pandas.period"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "said"), NO_TABLES, ids=[said for _, said in NO_TABLES])
@pytest.mark.parametrize("native", [True, False])
def test_what_readers_could_not_have_is_refused(table: Any, said: str, native: bool) -> None:
    with pytest.raises(RowError, match=said) as refused:
        encode(table, types=Types(native=native))
    assert refused.value.path.startswith("x")


def test_a_tensor_keeps_its_shape() -> None:
    kind = pa.fixed_shape_tensor(pa.int8(), (2, 2))
    assert encoded(extension(kind, pa.array([[1, 2, 3, 4], None], pa.list_(pa.int8(), 4))))[0] == [
        [[1, 2], [3, 4]],
        None,
    ]


def test_a_dictionary_of_any_type_becomes_its_values() -> None:
    words = pa.DictionaryArray.from_arrays(pa.array([1, None, 0], pa.uint8()), pa.array(["a", "b"], pa.string_view()))
    assert encoded(pa.table({"x": words}))[0] == ["b", None, "a"]


def test_labels_with_other_names_are_mapped_by_name_or_refused() -> None:
    known = {"x": datasets.ClassLabel(names=["a", "b"])}
    values, columns = encoded(labels("ba", [0, 1, -1, None]), known)
    assert values == [1, 0, -1, None]
    assert columns == declared_types(known)
    for other in (labels("abc", [2]), labels("cd", [0])):
        with pytest.raises(Conflict):
            merge_structs(declared_types(known), encoded(other, known)[1])


@pytest.mark.parametrize(
    ("known", "given"),
    [
        ("decimal128(10, 2)", labels("ab", [1])),
        ("int64", labels("ab", [1])),
        ("timestamp[us]", pa.table({"x": ["2026-01-01T00:00:00"]})),
        ("timestamp[us]", pa.table({"x": pa.array([1], pa.timestamp("ns"))})),
        ("timestamp[us, tz=UTC]", pa.table({"x": pa.array([1], pa.timestamp("us", "Europe/Paris"))})),
        ("timestamp[us, tz=UTC]", pa.table({"x": pa.array([1], pa.timestamp("us"))})),
        ("duration[s]", pa.table({"x": pa.array([1], pa.duration("ns"))})),
        ("time64[us]", pa.table({"x": pa.array([1], pa.time64("ns"))})),
        ("timestamp[us]", [{"x": IN_NS}]),
        ("timestamp[us, tz=UTC]", [{"x": NOON}]),
        (datasets.Translation(languages=["de"]), [{"x": []}]),
        (datasets.Translation(languages=["de"]), [{"x": {"fr": None}}]),
        (datasets.TranslationVariableLanguages(languages=["de"]), [{"x": []}]),
        (datasets.Array2D((1, 1), "int8"), [{"x": []}]),
    ],
    ids=str,
)
def test_a_column_of_another_kind_conflicts_instead_of_changing(known: Any, given: Any) -> None:
    kinds = declared_types({"x": known})
    with pytest.raises(Conflict):
        merge_structs(kinds, encoded(given, {"x": known})[1])


@pytest.mark.parametrize(
    ("known", "given", "values"),
    [
        (
            "timestamp[us]",
            pa.table({"x": pa.array([1_000], pa.timestamp("ns"))}),
            [dt.datetime(1970, 1, 1, 0, 0, 0, 1)],
        ),
        ("int32", pa.table({"x": [7]}), [7]),
        ("float32", [{"x": 0.1}], [0.1]),
        ("float32", [{"x": 0.5}], [0.5]),
        ("int8", [{"x": 300}], [300]),
        (datasets.ClassLabel(names=["a", "b"]), pa.table({"x": [1]}), [1]),
    ],
    ids=str,
)
def test_a_column_of_the_same_kind_keeps_its_values(known: Any, given: Any, values: list[Any]) -> None:
    found, columns = encoded(given, {"x": known})
    assert found == values
    merge_structs(declared_types({"x": known}), columns)


def test_a_transform_sees_a_tables_own_labels() -> None:
    known = declared_types({"x": datasets.ClassLabel(names=["a", "b"])})
    found = encode(labels("ba", [0]), transform=lambda row: row, types=Types(native=True, known=known))
    assert isinstance(found.columns, StructOf)
    with pytest.raises(Conflict):
        merge_structs(known, found.columns)


@pytest.mark.parametrize(
    ("values", "lines"),
    [
        ([IN_NS, None], b'{"x":"2026-01-01T12:00:00.123456789"}\n{"x":null}\n'),
        ([NOON, NOON.replace(tzinfo=dt.UTC)], b'{"x":"2026-01-01T12:00:00"}\n{"x":"2026-01-01T12:00:00Z"}\n'),
        (["a", float("nan")], b'{"x":"a"}\n{"x":null}\n'),
        ([np.array([0.1], np.float32)], b'{"x":[0.10000000149011612]}\n'),
    ],
    ids=str,
)
def test_objects_of_pandas_do_not_change_in_a_type_that_pyarrow_guesses(values: list[Any], lines: bytes) -> None:
    assert encode(pd.DataFrame({"x": pd.Series(values, dtype=object)})).lines == lines


def test_bytes_among_texts_of_pandas_do_not_become_bytes() -> None:
    with pytest.raises(RowError, match="format='parquet'"):
        encode(pd.DataFrame({"x": pd.Series([b"a", "b"], dtype=object)}))


@pytest.mark.parametrize("value", [np.array(b"x"), np.array([b"x"]), pa.scalar(b"x")])
def test_bytes_of_any_library_are_refused_in_json_lines(value: Any) -> None:
    with pytest.raises(RowError, match="format='parquet'"):
        encode([{"x": value}])


def test_what_is_no_image_is_refused_with_its_row() -> None:
    kind = datasets.Features({"x": datasets.Image(), "many": [datasets.Image()]})
    good = {"bytes": b"P5 1 1 255\nx", "path": None}
    for bad in ({"bytes": b"x", "path": None}, {"bytes": None, "path": None}, {"bytes": None, "path": "/no/such"}):
        rows = {"x": [good, good], "many": [[good, good], [good, bad]]}
        with pytest.raises(RowError) as refused:
            encode(datasets.Dataset.from_dict(rows, features=kind), types=Types(native=True))
        assert (refused.value.row, refused.value.path) == (1, "many[]")


def test_an_animation_without_its_file_keeps_its_frames() -> None:
    frames = [Image.new("L", (2, 2), n) for n in (0, 100, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    assert encoded([{"x": Image.open(file)}])[0] == [{"bytes": file.getvalue(), "path": None}]
    changed = Image.open(io.BytesIO(file.getvalue()))
    changed.putpixel((0, 0), 7)
    with pytest.raises(RowError, match="lose frames"):
        encoded([{"x": changed}])


# polars is not in the test environment.


def test_polars_categories_are_text_and_its_objects_are_refused() -> None:
    pl = pytest.importorskip("polars")
    for kind in (pl.Categorical, pl.Enum(["a", "b"])):
        assert encoded(pl.DataFrame({"x": pl.Series(["a", None], dtype=kind)}))[0] == ["a", None]
        assert encoded(pl.DataFrame({"x": pl.Series([["a"]], dtype=pl.List(kind))}))[0] == [["a"]]
    with pytest.raises(RowError, match="pointers"):
        encode(pl.DataFrame({"x": pl.Series([object()], dtype=pl.Object)}))
