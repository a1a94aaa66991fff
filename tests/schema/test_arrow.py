"""Arrow types become types that `datasets` has, and no value changes on the way."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import datasets
import msgspec
import pyarrow as pa
import pytest

from hubsync.schema.arrow import UnsupportedType, arrow_schema, columns_of_table, normalized
from hubsync.schema.features import from_features, from_metadata, to_features, to_metadata
from hubsync.schema.types import Conflict, Foreign, ListOf, StructOf, merge_structs

NOON = datetime.datetime(2026, 1, 1, 12)
OWN_FEATURES = datasets.Features(
    {
        "vector": datasets.Sequence(datasets.Value("int8"), length=3),
        "many": datasets.LargeList({"x": datasets.Value("int8")}),
        "grid": datasets.Array2D((2, 2), "float32"),
        "image": datasets.Image(),
        "images": datasets.Sequence(datasets.Image()),
        "undecoded": datasets.Image(mode="RGB", decode=False),
        "audio": datasets.Audio(sampling_rate=16_000),
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "labels": datasets.Sequence(datasets.ClassLabel(names=["no"])),
        "words": datasets.Translation(languages=["de", "en"]),
        "nested": datasets.Sequence(datasets.Sequence(datasets.Value("string"))),
        "parts": [{"at": datasets.Value("timestamp[us, tz=UTC]"), "n": datasets.Value("int64")}],
    }
)
NEWER = "Json" in dir(datasets)
if NEWER:
    OWN_FEATURES |= {
        "video": datasets.Video(),
        "pdf": datasets.Pdf(),
        "json": datasets.Json(),
        "pairs": datasets.List({"x": datasets.Value("int8")}, length=2),
    }

# A column; its type as a card has it; its values, if they have another form than before.
COLUMNS: list[tuple[Any, Any, list[Any] | None]] = [
    (pa.array([1, None], pa.uint8()), {"dtype": "uint8"}, None),
    (pa.array([0.5, None], pa.float16()), {"dtype": "float16"}, None),
    (pa.array(["a", None]).dictionary_encode(), {"dtype": "string"}, None),
    (pa.array(["a" * 20, None], pa.string_view()), {"dtype": "string"}, None),
    (pa.array(["a", None], pa.large_string()), {"dtype": "large_string"}, None),
    (pa.array([b"ab", None], pa.binary(2)), {"dtype": "binary"}, None),
    (pa.array([NOON, None], pa.timestamp("ms", "Europe/Paris")), {"dtype": "timestamp[ms, tz=Europe/Paris]"}, None),
    (pa.array([NOON.date(), None]), {"dtype": "date32"}, None),
    (pa.array([NOON.time(), None], pa.time64("us")), {"dtype": "time64[us]"}, None),
    (pa.array([1, None], pa.duration("s")), {"dtype": "duration[s]"}, None),
    (pa.array([1, None], pa.decimal128(5, 2)), {"dtype": "decimal128(5, 2)"}, None),
    (pa.array([[1, 2], None], pa.list_(pa.int8(), 2)), {"sequence": "int8", "length": 2}, None),
    (pa.array([[1], None], pa.large_list(pa.int8())), {"large_list": "int8"}, None),
    (pa.array([[1], None], pa.list_view(pa.int8())), {"list": "int8"}, None),
    (
        pa.StructArray.from_arrays([pa.array(["a", None]).dictionary_encode()], ["x"]),
        {"struct": [{"name": "x", "dtype": "string"}]},
        None,
    ),
    (
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
        {"list": [{"name": "key", "dtype": "string"}, {"name": "value", "dtype": "int8"}]},
        [[{"key": "k", "value": 1}], None],
    ),
    (
        pa.array([UUID(int=1).bytes, None], pa.uuid()),
        {"dtype": "string"},
        ["00000000-0000-0000-0000-000000000001", None],
    ),
]


@pytest.mark.parametrize(("column", "entry", "values"), COLUMNS, ids=[str(one[0].type) for one in COLUMNS])
@pytest.mark.parametrize("start", [0, 1])
def test_a_column_keeps_its_values_in_a_type_that_datasets_has(
    column: Any, entry: Any, values: list[Any] | None, start: int
) -> None:
    table = normalized(pa.table({"x": column}).slice(start))
    columns = columns_of_table(table)
    assert to_features(columns) == [{"name": "x", **entry}]
    assert table["x"].to_pylist() == (column.to_pylist() if values is None else values)[start:]
    assert arrow_schema(columns).equals(table.schema)
    assert datasets.Features._from_yaml_list(to_features(columns)).arrow_schema.field("x").type in (
        table.schema.field("x").type,
        pa.list_(pa.int8()),
    )


@pytest.mark.parametrize(
    "table",
    [
        pa.table([[1], [2]], names=["x", "x"]),
        pa.table({"s": pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])}),
        pa.table({"x": pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1])])}),
        pa.table({"x": pa.array([(1, 2, 3)], pa.month_day_nano_interval())}),
        pa.table({"a\0b": [1]}),
        pa.table({"x": pa.array([Decimal("1E+2")], pa.decimal128(5, -2))}),
        pa.table({"x": pa.array([[Decimal("1E+2")]], pa.list_(pa.decimal128(5, -2)))}),
    ],
)
def test_a_table_that_no_dataset_can_hold_is_refused(table: Any) -> None:
    with pytest.raises(UnsupportedType):
        normalized(table)


def test_features_survive_the_card_and_the_metadata_of_a_file() -> None:
    columns = from_features(OWN_FEATURES._to_yaml_list())
    assert datasets.Features._from_yaml_list(to_features(columns)) == OWN_FEATURES
    assert from_metadata(msgspec.json.decode(msgspec.json.encode(OWN_FEATURES.to_dict()))) == columns
    assert datasets.Features.from_dict(to_metadata(columns)) == OWN_FEATURES
    found = datasets.Features.from_arrow_schema(arrow_schema(columns, stored=True))
    nested = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))  # only the card has its shape
    assert found == OWN_FEATURES | {"grid": nested}


def test_a_dataset_brings_its_features() -> None:
    features = datasets.Features({name: OWN_FEATURES[name] for name in ("grid", "image", "label")})
    rows = {"grid": [[[1, 2], [3, 4]]], "image": [{"bytes": b"x", "path": None}], "label": [1]}
    table = datasets.Dataset.from_dict(rows, features=features).with_format("arrow")[:]
    assert to_features(columns_of_table(normalized(table))) == features._to_yaml_list()


def test_an_int64_is_wide_only_if_a_value_is() -> None:
    table = pa.table({"small": [2**53], "wide": [2**53 + 1], "list": [[-(2**53) - 1]]})
    fields = columns_of_table(table).fields
    assert fields == {"small": "int", "wide": "wide", "list": ListOf("wide")}


def test_lists_merge_into_one_that_holds_both() -> None:
    fixed, large = ListOf("int", 2), ListOf("int", is_large=True)
    assert merge_structs(StructOf({"x": fixed}), StructOf({"x": ListOf("int")})).fields["x"] == ListOf("int")
    assert merge_structs(StructOf({"x": large}), StructOf({"x": fixed})).fields["x"] == large
    with pytest.raises(Conflict):
        merge_structs(StructOf({"x": fixed}), StructOf({"x": Foreign({"dtype": "image"}, [])}))
