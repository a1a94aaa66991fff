"""Column types: how they merge, and how they are inferred."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubsync.encoding.rows import encode
from hubsync.schema.features import from_features
from hubsync.schema.types import (
    BINARY,
    EMPTY,
    ColumnType,
    Conflict,
    Foreign,
    ListOf,
    StructOf,
    dtype_to_type,
    dumps,
    infer,
    loads,
    merge,
    merge_structs,
)

NAMES = st.sampled_from(["a", "b", "list", "dtype", "name", "struct", "1", "null", "é", "x.y"])
KINDS: st.SearchStrategy[ColumnType] = st.recursive(
    st.sampled_from(["null", "bool", "int", "wide", "float", "string"]),
    lambda below: below.map(ListOf) | st.dictionaries(NAMES, below, max_size=3).map(StructOf),
    max_leaves=6,
)
ROWS = st.dictionaries(NAMES, KINDS, max_size=4).map(StructOf)


def join(*kinds: StructOf) -> StructOf | None:
    """Return the type that holds all of them; None if they conflict."""
    whole = EMPTY
    try:
        for kind in kinds:
            whole = merge_structs(whole, kind)
    except Conflict:
        return None
    return whole


@given(ROWS, ROWS, ROWS)
def test_a_merge_does_not_depend_on_order(a: StructOf, b: StructOf, c: StructOf) -> None:
    assert join(a, b) == join(b, a)
    ab, bc = join(a, b), join(b, c)
    assert (join(ab, c) if ab else None) == (join(a, bc) if bc else None)


@given(ROWS, ROWS)
def test_merging_a_known_type_returns_the_same_object(a: StructOf, b: StructOf) -> None:
    """The identity of the object says that the card need not be written."""
    assert merge_structs(a, loads(dumps(a))) is a
    whole = join(a, b)
    if whole is not None:
        assert merge_structs(whole, a) is whole
        assert merge_structs(whole, b) is whole


@given(st.lists(st.dictionaries(NAMES, st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_infinity=False) | st.text(max_size=2),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(NAMES, below, max_size=3),
    max_leaves=5,
), max_size=3), max_size=4))  # fmt: skip
def test_rows_without_discoveries_never_change_the_schema(rows: list[dict[str, Any]]) -> None:
    """The profiler looks at types, the schema at values: the first must not miss what the second finds."""
    from hubsync.schema.profiler import RowProfiler

    profiler, known = RowProfiler(), EMPTY
    for row in rows:
        encoded = encode([row], profiler)
        if not encoded.discoveries:
            assert merge_structs(known, infer([row])) is known
        elif isinstance(encoded.columns, StructOf):
            try:
                known = merge_structs(known, encoded.columns)
            except Conflict:
                continue
            profiler.remember(encoded.discoveries)


def test_a_value_has_the_type_of_its_json() -> None:
    row = {
        "int": 2**53, "wide": -(2**53) - 1, "nan": math.nan, "when": datetime.now(UTC),
        "day": date.today(), "id": UUID(int=1), "exact": Decimal(1), "none": None, "yes": True, "empty": [], "no": {},
        "mixed": [1, None, 2.5], "pair": (1, 2), "deep": [[{"a": 1}], [{"b": None}, {"a": 0.5}]],
    }  # fmt: skip
    (again,) = (json.loads(line) for line in encode([row]).lines.splitlines())
    kind = infer([row])
    assert kind == infer([again])
    assert kind.fields["nan"] == "null"
    assert (kind.fields["wide"], kind.fields["pair"]) == ("wide", ListOf("int"))
    assert kind.fields["deep"] == ListOf(ListOf(StructOf({"a": "float", "b": "null"})))


def test_a_long_column_name_is_shortened_in_messages() -> None:
    long = "x" * 3_000
    with pytest.raises(Conflict) as conflict:
        merge(StructOf({long: "int"}), StructOf({long: StructOf({long: "int"})}))
    assert conflict.value.message == f"field '{'x' * 200}…': it is a struct of {'x' * 200}…, and the column holds int64"


@pytest.mark.parametrize("value", ["a", [1], {"a": 1}, True, 1, None])
def test_a_nan_is_a_missing_value_of_any_column(value: Any) -> None:
    assert infer([{"v": value}, {"v": math.nan}]) == infer([{"v": value}])
    assert infer([{"v": [value, math.nan]}]) == infer([{"v": [value, None]}])


LABEL = from_features([{"name": "v", "dtype": {"class_label": {"names": {"0": "no", "1": "yes"}}}}]).fields["v"]
IMAGE, AUDIO = Foreign({"dtype": "image"}, None), Foreign({"dtype": "audio"}, None)


@pytest.mark.parametrize("kind", [*map(dtype_to_type, ("timestamp[us]", "date32")), LABEL, IMAGE, AUDIO], ids=repr)
def test_text_that_was_put_first_is_not_taken_for_another_type(kind: ColumnType) -> None:
    """`datasets` would fail on the text, so the dataset would no longer load."""
    for known, later in (("string", kind), ("literal", kind), (ListOf("string"), ListOf(kind))):
        with pytest.raises(Conflict):
            merge(known, later)


def test_ints_that_were_put_first_are_not_taken_for_labels() -> None:
    with pytest.raises(Conflict):
        merge("int", LABEL)


@pytest.mark.parametrize("narrow", ["float16", "float32"])
def test_a_float64_is_never_read_as_a_smaller_float(narrow: str) -> None:
    small, large = dtype_to_type(narrow), Foreign({"dtype": "float64"}, [])
    both = merge(small, large)
    assert merge(both, small) is both
    assert merge(small, both) == merge(large, small) == merge(small, "float") == "float"


GRID = Foreign({"dtype": {"array2_d": {"shape": [2, 2], "dtype": "int32"}}}, None)


@pytest.mark.parametrize("known", [IMAGE, AUDIO], ids=["image", "audio"])
@pytest.mark.parametrize("kind", ["int", "float", "bool", ListOf("int"), StructOf({"a": "int"})], ids=repr)
def test_a_column_of_media_takes_no_other_values(known: ColumnType, kind: ColumnType) -> None:
    for one, other in ((known, kind), (kind, known)):
        with pytest.raises(Conflict):
            merge(one, other)
    assert merge(known, StructOf({"bytes": BINARY, "path": "string"})) is known


@pytest.mark.parametrize("kind", ["int", "string", StructOf({"a": "int"})], ids=repr)
def test_an_array_takes_only_lists(kind: ColumnType) -> None:
    with pytest.raises(Conflict):
        merge(GRID, kind)
    assert merge(GRID, ListOf(ListOf("int"))) is GRID
