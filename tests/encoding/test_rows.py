"""Rows become JSON Lines as docs/reference/rows.md says; refusals name the row and the field."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import math
import sqlite3
from collections import deque
from contextlib import closing
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, NamedTuple

import attrs
import datasets
import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubsync import RowError
from hubsync.encoding.rows import encode
from hubsync.encoding.tables import Types
from hubsync.encoding.typed import declared_types


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


def test_rows_may_be_dataclasses_structs_and_models() -> None:
    lines = encode([Sample("p", [1.0]), Record("q"), Model(when=dt.datetime(2026, 1, 1), nested={"a": 1})]).lines
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"prompt": "p", "scores": [1.0]},
        {"prompt": "q"},
        {"when": "2026-01-01T00:00:00", "nested": {"a": 1}},
    ]


async def agen() -> Any:
    yield {"a": 1}


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
        ({"a": np.float32("inf")}, "a", "inf"),
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


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ("rows", "not str"),
        (b"rows", "not bytes"),
        (5, "not int"),
        (None, "not NoneType"),
        (Model, "not the class Model"),
        (agen(), r"Use put\(\[row async for row in rows\]\)"),
    ],
)
def test_what_is_no_batch_is_refused_with_advice(batch: Any, said: str) -> None:
    with pytest.raises(RowError, match=said):
        encode(batch)


@pytest.mark.parametrize("row", [{"prompt": "p"}, MappingProxyType({"prompt": "p"}), Record("p")])
def test_a_single_row_is_a_batch(row: Any) -> None:
    assert encode(row).lines == b'{"prompt":"p"}\n'
    assert encode(Sample("p", [])).lines == b'{"prompt":"p","scores":[]}\n'


def frame() -> pd.DataFrame:
    whens = pd.to_datetime(["2026-01-02", None], utc=True)
    return pd.DataFrame(
        {"id": [1, 2], "when": whens, "n": pd.array([None, 1], "Int64"), "c": pd.Categorical(["a", "b"])}
    )


def test_a_dataframe_is_a_batch_of_its_rows() -> None:
    expected = [
        {"id": 1, "when": "2026-01-02T00:00:00Z", "n": None, "c": "a"},
        {"id": 2, "when": None, "n": 1, "c": "b"},
    ]
    for batch in (frame(), frame().to_dict("records"), frame().set_index("id"), frame()[::-1][::-1]):
        assert [json.loads(line) for line in encode(batch).lines.splitlines()] == expected


def test_an_index_is_a_column_if_it_has_a_name() -> None:
    totals = pd.DataFrame({"k": ["a", "a", "b"], "n": [1, 2, 3]}).groupby("k").sum()
    assert encode(totals).lines == b'{"k":"a","n":3}\n{"k":"b","n":3}\n'
    pairs = totals.set_index("n", append=True)
    with pytest.raises(RowError, match="no columns"):
        encode(pd.DataFrame(index=[1, 2]))
    assert encode(pairs).lines == encode(totals).lines


def test_two_columns_of_one_name_are_refused() -> None:
    twice = pa.table([pa.array([1]), pa.array([2])], names=["x", "x"])
    nested = pa.struct([pa.field("y", pa.int64()), pa.field("y", pa.int64())])
    tables = [
        twice,
        twice.to_batches()[0],
        pa.table({"a": pa.array([], pa.list_(nested))}),
        pd.DataFrame([[1, 2]], columns=["x", "x"]),
        pd.DataFrame([[1]], columns=["x"], index=pd.Index([1], name="x")),
    ]
    for table in tables:
        with pytest.raises(RowError, match="two columns are named"):
            encode(table)


def test_a_table_with_rows_and_no_columns_is_refused() -> None:
    with pytest.raises(RowError, match="2 rows and no columns"):
        encode(pa.table({"a": [1, 2]}).select([]))
    assert encode(pa.table({"a": []})).rows == 0


def test_the_rows_of_a_batch_inside_map_are_put() -> None:
    """`Dataset.map` passes its own mappings: of columns if it is batched, of one row if not."""
    found: list[bytes] = []
    given = datasets.Dataset.from_dict({"id": [1, 2, 3], "text": ["a", "b", None]})

    def put(batch: Any) -> None:
        found.append(encode(batch).lines)

    given.map(
        put, batched=True, batch_size=2, new_fingerprint="batched"
    )  # else it pickles all that this module imports
    given.map(put, new_fingerprint="one by one")
    lines = b'{"id":1,"text":"a"}\n', b'{"id":2,"text":"b"}\n', b'{"id":3,"text":null}\n'
    assert b"".join(found) == b"".join(lines) * 2


@pytest.mark.parametrize("kind", [datasets.DatasetDict, datasets.IterableDatasetDict])
def test_a_dataset_of_several_splits_is_refused(kind: type) -> None:
    with pytest.raises(RowError, match=r"holds several splits: put one of them, such as put\(dataset\['train'\]\)"):
        encode(kind(train=datasets.Dataset.from_dict({"id": [1]})))


class Pair(NamedTuple):
    a: int
    b: int


class Sequenced:
    """As a dataset of torch."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, int]:
        return {"id": index}


class Sparse:
    """As a sparse tensor of torch, which has no memory that numpy could read."""

    def __array__(self) -> Any:
        raise RuntimeError("Cannot access data pointer of Tensor that doesn't have storage")

    def to_dense(self) -> Any:
        return np.zeros(2)


def sqlite_row() -> sqlite3.Row:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.row_factory = sqlite3.Row
        row: sqlite3.Row = connection.execute("SELECT 1 AS a").fetchone()
        return row


async def _rows_later() -> list[dict[str, int]]:
    return [{"id": 1}]


def _rows() -> list[dict[str, int]]:
    return [{"id": 1}]


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ('{"id": 1}', "json.loads(text); if it is a value, name its column: {'text': text}"),
        (['{"id": 1}'], "json.loads(text)"),
        (b"{}", "json.loads(text)"),
        ([[1, 2]], "Name its values, as in {'name': value}"),
        (zip("ab", [1, 2], strict=True), "Name its values"),
        (np.array([1, 2]), "not ndarray. Name its values"),
        (np.array(1), "not ndarray. Name its values"),
        (np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]), "pandas.DataFrame(array)"),
        (pd.Series([1, 2]), "Series is no table. It is one column: use series.to_frame(), or if it is one row"),
        ([pd.Series({"a": 1})], "series.to_dict()"),
        (pa.array([1]), "Int64Array is no table. It is one column: use pyarrow.table({'name': array})"),
        (pa.chunked_array([[1]]), "pyarrow.table({'name': array})"),
        ([datasets.Dataset.from_dict({"id": [1]})], "Put each table in a call of its own"),
        ([pd.DataFrame({"a": [1]})], "Put each table in a call of its own"),
        (pd.DataFrame({"a": [1]}).iterrows(), "not tuple. Put the DataFrame"),
        (pd.DataFrame({"a": [1]}).itertuples(), "not Pandas. Use row._asdict()"),
        (Pair(1, 2), "not Pair. Use row._asdict()"),
        (Path("rows.jsonl"), "Read its rows first"),
        (Sequenced(), "Use (data[n] for n in range(len(data)))"),
        (SimpleNamespace(a=1), "not SimpleNamespace. Use vars(row)"),
        ([sqlite_row()], "not Row. Use dict(row)"),
        (5, "not int. Name its values"),
        ({"a": pd.DataFrame({"a": [1]})}, "Use frame.to_dict('records'), a list of its rows"),
        ({"a": pa.table({"a": [1]})}, "Use frame.to_pylist()"),
        ({"a": range(2)}, "builtins.range has no JSON form. Use list(value)"),
        ({"a": deque([1])}, "Use list(value)"),
        ({"a": Path("a")}, "Convert it before put, such as by str(value)"),
        ({"a": ValueError("x")}, "by str(value)"),
        ({"a": SimpleNamespace(a=1)}, "by vars(value)"),
        ({"a": len}, "Call it, and use its result"),
        ({"a": Sparse()}, "Sparse is sparse. Use value.to_dense()"),
        (_rows, "Call it, and put its result"),
        (Boxed, "not the class Boxed. Use an instance of it"),
        ([Boxed], "not the class Boxed. Use an instance of it"),
        (None, "not NoneType"),
        ([{"id": 1}, None], "row 1: a row is a mapping"),
    ],
)
def test_what_is_no_batch_is_refused_with_what_to_put_instead(batch: Any, said: str) -> None:
    with pytest.raises(RowError) as refused:
        encode(batch)
    assert said in str(refused.value)


@attrs.define
class Private:
    _x: int


@attrs.define
class Point:
    x: int
    at: list[Any]


def test_instances_of_attrs_classes_are_rows() -> None:
    row = {"x": 1, "at": ["2026-01-01T00:00:00"]}
    point = Point(1, [dt.datetime(2026, 1, 1)])
    assert json.loads(encode(point).lines) == row
    assert encode([point, {"id": point}]).rows == 2
    assert json.loads(encode(point, types=Types(declared=declared_types({"x": "int8"}))).lines) == row
    with pytest.raises(RowError, match=r"field 'at\[0\]'"):
        encode(Point(1, [object()]))


def test_a_private_field_that_would_be_left_out_is_refused() -> None:
    for rows in ([Private(1)], [{"a": [Private(1)]}]):
        with pytest.raises(RowError, match=r"private field '_x'.*Use attrs\.asdict"):
            encode(rows)


def test_a_coroutine_is_refused() -> None:
    later = _rows_later()
    with pytest.raises(RowError, match="Await it first"):
        encode(later)  # type: ignore[arg-type]
    later.close()


def test_an_array_of_rows_is_a_batch() -> None:
    assert encode(np.array([{"id": 1}, {"id": 2}], dtype=object)).rows == 2


def test_a_mapping_of_columns_is_one_row_of_lists() -> None:
    assert encode({"id": [1, 2]}).lines == b'{"id":[1,2]}\n'


def test_a_generator_is_a_batch() -> None:
    assert encode({"id": n} for n in range(3)).rows == 3


def test_a_deeply_nested_value_is_refused() -> None:
    value: Any = 1
    for _ in range(5_000):
        value = [value]
    with pytest.raises(RowError, match="deep"):
        encode([{"a": value}])


def test_a_value_that_is_nested_too_deep_for_the_stack_is_named() -> None:
    value: Any = 1
    for _ in range(400):
        value = {"b": value}
    with pytest.raises(RowError, match=r"row 1, field 'c': the value is nested 400 deep"):
        encode([{"a": 1}, {"a": [], "c": value}])


@pytest.mark.parametrize("form", [lambda row: row, lambda row: Boxed(row)], ids=["a dict", "in a dataclass"])
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"a\0b": 1}, "NUL"),
        ({"a": [{"b": {"c\0": 1}}]}, "NUL"),
        ({"a": 2**63}, "does not fit int64"),
        ({"a": [[1, -(10**400)]]}, "does not fit int64"),
    ],
)
def test_nul_keys_and_ints_beyond_64_bits_are_refused(form: Any, row: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError, match=said) as refused:
        encode([form({"a": 2**63 - 1}), form(row)])
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
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_infinity=False) | st.text(),
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
