"""Rows become JSON Lines as docs/reference/rows.md says; refusals name the row and the field."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import uuid
from types import MappingProxyType
from typing import Any

import datasets
import msgspec
import numpy as np
import pandas as pd
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubsync import RowError
from hubsync.encoding.rows import encode


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    pass


class Number(int):
    pass


@dataclasses.dataclass
class Sample:
    prompt: str
    scores: list[float]


@dataclasses.dataclass
class Boxed:
    inside: dict[str, Any]


class Record(msgspec.Struct):
    prompt: str


class Tuple(msgspec.Struct, array_like=True):
    a: int


class Model(pydantic.BaseModel):
    when: dt.datetime
    nested: dict[str, int] = {}


def one(value: Any) -> Any:
    return json.loads(encode([{"v": value}]).lines)["v"]


# A value, and its form in JSON.
TABLE: list[tuple[Any, Any]] = [
    ("é\n\u2028", "é\n\u2028"),
    (True, True),
    (None, None),
    (2**63, 2**63),
    (1.5, 1.5),
    (math.nan, None),
    ([1, [2.5, math.nan]], [1, [2.5, None]]),
    ((1, 2), [1, 2]),
    ({3}, [3]),
    (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-01-02T03:04:05Z"),
    (dt.date(2026, 1, 2), "2026-01-02"),
    (dt.timedelta(days=1), "P1D"),
    (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    (decimal.Decimal("1.10"), "1.10"),
    (Colour.RED, "red"),
    (Level.HIGH, 3),
    (b"\x00\xff", "AP8="),
    (Text("sub"), "sub"),
    (Number(7), 7),
    (pd.Timestamp("2026-01-02T03:04:05.5Z"), "2026-01-02T03:04:05.500000Z"),
    (pd.Timestamp("2026-01-02T03:04:05"), "2026-01-02T03:04:05"),
    ([pd.NaT, pd.NA], [None, None]),
    (MappingProxyType({"a": 1}), {"a": 1}),
    (np.float32(1.5), 1.5),
    (np.int64(7), 7),
    (np.bool_(True), True),
    (np.float64("nan"), None),
    (np.eye(2), [[1.0, 0.0], [0.0, 1.0]]),
    (np.array(["2026-01-02"], dtype="M8[ns]"), ["2026-01-02T00:00:00.000000000"]),
    (Record("p"), {"prompt": "p"}),
]


@pytest.mark.parametrize(("value", "expected"), TABLE)
def test_a_value_has_the_documented_json_form(value: Any, expected: Any) -> None:
    assert one(value) == expected


def test_rows_may_be_dataclasses_structs_and_models() -> None:
    lines = encode([Sample("p", [1.0]), Record("q"), Model(when=dt.datetime(2026, 1, 1), nested={"a": 1})]).lines
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"prompt": "p", "scores": [1.0]},
        {"prompt": "q"},
        {"when": "2026-01-01T00:00:00", "nested": {"a": 1}},
    ]


def cyclic() -> dict[str, Any]:
    row: dict[str, Any] = {"a": 1}
    row["b"] = [row]
    return row


@pytest.mark.parametrize(
    ("row", "path", "word"),
    [
        ({"a": {"b": [1, object()]}}, "a.b[1]", "no JSON form"),
        ({"a": math.inf}, "a", "inf"),
        ({"a": [1.0, -math.inf]}, "a", "infinity"),
        ({"a": {"b": [1, math.inf]}}, "a.b[1]", "inf"),
        ({"a": np.float32("inf")}, "a", "infinity"),
        ({"a": np.array([1.0, np.inf])}, "a", "infinity"),
        ({"a": {1: 2}}, "a", "not a string"),
        ({1: 2}, "", "not a string"),
        ({"a": {None: 2}}, "a", "not a string"),
        ({"a": "\ud83d"}, "a", "surrogate"),
        ({"\ud83d": 1}, "", "surrogate"),
        (cyclic(), "b[0]", "contains itself"),
        ({"a": 1j}, "a", "complex"),
        ({"a": (x for x in [1])}, "a", "generator"),
        ({"a": np.array([1, {"b": object()}])}, "a[1].b", "object has no JSON form"),
        ({"a": [msgspec.Raw(b"1\n2")]}, "a[0]", "Raw"),
        (Model.model_construct(when=math.inf), "when", "inf"),
        (Sample("p", [{1: 2}]), "scores[0]", "not a string"),  # type: ignore[list-item]
        ([1, 2], "", "a row is a mapping"),
        ("text", "", "a row is a mapping"),
        (5, "", "a row is a mapping"),
        (Tuple(1), "", "array_like"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_a_refusal_names_the_row_and_the_field(row: Any, path: str, word: str) -> None:
    with pytest.raises(RowError) as refused:
        encode([{"fine": 1}, row])
    assert (refused.value.row, refused.value.path) == (1, path)
    assert word in str(refused.value)


@pytest.mark.parametrize("batch", [{"a": 1}, "rows", b"rows", 5, Record("p"), None])
def test_a_single_row_or_scalar_is_refused_with_advice(batch: Any) -> None:
    with pytest.raises(RowError, match="a batch is a list of rows"):
        encode(batch)


def test_a_dataframe_is_refused_and_the_advice_works() -> None:
    whens = pd.to_datetime(["2026-01-02", None], utc=True)
    frame = pd.DataFrame(
        {"id": [1, 2], "when": whens, "n": pd.array([None, 1], "Int64"), "c": pd.Categorical(["a", "b"])}
    )
    with pytest.raises(RowError, match=r"put\(frame\.to_dict\('records'\)\)"):
        encode(frame)
    assert [json.loads(line) for line in encode(frame.to_dict("records")).lines.splitlines()] == [
        {"id": 1, "when": "2026-01-02T00:00:00Z", "n": None, "c": "a"},
        {"id": 2, "when": None, "n": 1, "c": "b"},
    ]


@pytest.mark.parametrize("kind", [datasets.DatasetDict, datasets.IterableDatasetDict])
def test_a_dataset_of_several_splits_is_refused(kind: type) -> None:
    with pytest.raises(RowError, match=r"holds several splits: put one of them, such as put\(dataset\['train'\]\)"):
        encode(kind(train=datasets.Dataset.from_dict({"id": [1]})))


def test_a_generator_is_a_batch() -> None:
    assert encode({"id": n} for n in range(3)).rows == 3


def test_a_deeply_nested_value_is_refused() -> None:
    value: Any = 1
    for _ in range(5_000):
        value = [value]
    with pytest.raises(RowError, match="deep"):
        encode([{"a": value}])


@pytest.mark.parametrize("form", [lambda row: row, lambda row: Boxed(row)], ids=["a dict", "in a dataclass"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"a\0b": 1}, "NUL"),
        ({"a": [{"b": {"c\0": 1}}]}, "NUL"),
        ({"a": 10**400}, "an infinity to readers"),
        ({"a": [[1, -(10**400)]]}, "an infinity to readers"),
    ],
)
def test_nul_keys_and_ints_beyond_floats_are_refused(form: Any, row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=said) as refused:
        encode([form({"a": 10**300}), form(row)])
    assert refused.value.row == 1


def test_arrow_tables_and_datasets_are_batches() -> None:
    import datasets
    import pyarrow as pa

    table = pa.table({"id": list(range(2_500)), "when": [dt.datetime(2026, 1, 1)] * 2_500})
    for batch in (table, table.to_batches()[0], datasets.Dataset(table)):
        encoded = encode(batch)
        rows = [json.loads(line) for line in encoded.lines.splitlines()]
        assert encoded.rows == 2_500
        assert [row["id"] for row in rows] == list(range(2_500))
        assert rows[0]["when"] == "2026-01-01T00:00:00"


keys = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=10,
)


@given(st.lists(st.dictionaries(keys, values, max_size=4), max_size=4))
def test_rows_survive_the_round_trip_through_json(rows: list[dict[str, Any]]) -> None:
    def plain(value: Any) -> Any:
        if isinstance(value, float) and math.isnan(value):
            return None
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list) else value

    encoded = encode(rows)
    assert [json.loads(line) for line in encoded.lines.splitlines()] == [plain(row) for row in rows]
    assert encoded.lines.count(b"\n") == len(rows) == encoded.rows


@pytest.mark.parametrize("sign", [1, -1])
def test_an_int_is_refused_from_the_first_that_readers_make_an_infinity(sign: int) -> None:
    first = 2**1024 - 2**970  # halfway between the largest float and the next power of two
    with pytest.raises(RowError, match="an infinity to readers"):
        encode([{"a": sign * first}])
    line = encode([{"a": sign * (first - 1)}]).lines
    assert math.isfinite(float(json.loads(line)["a"]))
