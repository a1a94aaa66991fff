"""Which place becomes JSON when two types conflict."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubsync.schema.types import (
    EMPTY,
    JSON,
    MAX_FIELDS,
    Conflict,
    Foreign,
    ListOf,
    OutOfBounds,
    StructOf,
    infer,
    is_within_bounds,
    merge_structs,
)
from hubsync.schema.widening import Fixed, Widening, as_json, with_literals
from tests.schema.test_types import ROWS

TIME = Foreign({"dtype": "timestamp[s]"}, ["string"])
INT8 = Foreign({"dtype": "int8"}, [])


def widen(*rows: Any, **how: Any) -> dict[str, Any]:
    """Return the types of batches of one row each, of the column `v`."""
    widening, columns = Widening(**how), EMPTY
    for value in rows:
        columns = widening.merge(columns, as_json(widening.infer([{"v": value}], columns), columns))
    return columns.fields


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, "x"], JSON),
        ([True, 1], JSON),
        ([{"a": 1}, {"a": "x"}], JSON),  # text at the place itself: the struct around it
        ([{"a": True}, {"a": 1}], StructOf({"a": JSON})),
        ([{"a": [1]}, {"a": {"b": 1}}], StructOf({"a": JSON})),
        ([{"a": {"b": 1}}, {"a": {"b": "x"}}], StructOf({"a": JSON})),
        ([[{"a": 1}], [{"a": "x"}]], ListOf(JSON)),
        ([[1], ["x"]], JSON),
        ([[[1]], [["x"]]], ListOf(JSON)),
        ([[1, "x"]], JSON),
        ([[{"a": [1, "x"]}, {"a": [2]}]], ListOf(StructOf({"a": JSON}))),
        ([{"a": True}, {"a": 1}, {"a": "x"}], JSON),  # a place that is JSON must not hold bare text, either
        ([{"a": True}, {"a": 1}, {"a": [{}]}], StructOf({"a": JSON})),
        ([2**53 + 1, 0.5], JSON),
        ([None, 1], "int"),
        ([1, 0.5], "float"),
        (["a", "4"], "literal"),
    ],
)
def test_the_smallest_place_that_keeps_its_values_becomes_json(values: list[Any], kind: Any) -> None:
    assert widen(*values) == {"v": kind}
    if kind not in ("int", "float", "literal"):
        assert widen(*values, parquet=True) == {"v": JSON}


@pytest.mark.parametrize(
    ("known", "given", "how"),
    [
        ("literal", "int", {}),
        ("literal", StructOf({}), {}),
        ("int", "literal", {"are_written": True}),
        (JSON, "literal", {"are_written": True}),
        ("string", "int", {"parquet": True}),
        (TIME, "int", {}),
        (StructOf({"at": TIME}), "int", {}),
        ("int", "string", {"declared": ["v"]}),
        (StructOf({"a": "bool"}), StructOf({"a": "int"}), {"declared": ["v"]}),
    ],
)
def test_a_column_whose_values_would_be_read_as_others_is_fixed(known: Any, given: Any, how: dict[str, Any]) -> None:
    widening = Widening(**how)
    with pytest.raises(Fixed) as fixed:
        widening.merge(StructOf({"v": known}), StructOf({"v": given}))
    assert fixed.value.is_declared == ("declared" in how or known in (TIME, StructOf({"at": TIME})))
    assert widening.changes == []


@pytest.mark.parametrize(("known", "given"), [("int", "literal"), (JSON, "literal"), (INT8, "string"), (JSON, INT8)])
def test_rows_that_are_not_written_yet_may_hold_any_text(known: Any, given: Any) -> None:
    assert Widening().merge(StructOf({"v": known}), StructOf({"v": given})) == StructOf({"v": JSON})


@given(ROWS, ROWS)
def test_any_two_types_have_a_wider_one_that_holds_both(a: StructOf, b: StructOf) -> None:
    widened = Widening().merge(a, b)
    assert Widening().merge(widened, a) is widened
    assert Widening().merge(widened, b) is widened
    try:
        assert merge_structs(a, b) == widened
    except Conflict:
        assert Widening().merge(b, a).fields.keys() == widened.fields.keys()


JSON_ROWS = st.lists(st.dictionaries(st.sampled_from("ab"), st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from([0.5, 2**60]) | st.sampled_from(["x", "4"]),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.sampled_from("ab"), below, max_size=2),
    max_leaves=6,
), max_size=2), max_size=5)  # fmt: skip


@given(JSON_ROWS)
def test_rows_of_any_shape_have_types_and_every_row_fits_them(rows: list[Any]) -> None:
    widening = Widening()
    columns = widening.infer(rows)
    assert {change.path.partition(".")[0].partition("[")[0] for change in widening.outermost} <= {"a", "b"}
    for row in rows:
        fits = infer([row], known=columns) if not _contradicts_itself(row, columns) else widening.infer([row], columns)
        assert Widening().merge(columns, fits) is columns


def _contradicts_itself(row: Any, columns: StructOf) -> bool:
    try:
        infer([row], known=columns)
    except Conflict:
        return True
    return False


def test_places_within_another_are_not_reported() -> None:
    widening = Widening()
    columns = widening.merge(StructOf({"v": StructOf({"a": "bool"})}), StructOf({"v": StructOf({"a": "int"})}))
    widening.merge(columns, StructOf({"v": "int"}))
    assert [change.path for change in widening.changes] == ["v.a", "v"]
    assert [change.path for change in widening.outermost] == ["v"]


def test_a_column_whose_keys_are_data_becomes_json() -> None:
    many = StructOf({"id": "int", "v": StructOf({f"{n}": "int" for n in range(MAX_FIELDS)})})
    widened = Widening().merge(EMPTY, many)
    assert widened == StructOf({"id": "int", "v": JSON})
    assert is_within_bounds(widened)
    with pytest.raises(OutOfBounds):
        Widening().merge(EMPTY, StructOf({f"{n}": "int" for n in range(MAX_FIELDS + 1)}))


def test_a_card_does_not_tell_which_strings_read_as_json() -> None:
    known = StructOf({"a": "literal", "b": "literal", "c": "literal"})
    shown = StructOf({"a": "string", "b": JSON})
    assert with_literals(shown, known) == StructOf({"a": "literal", "b": JSON})
    assert with_literals(EMPTY, known) is EMPTY
