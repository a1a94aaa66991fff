"""Two scalar types are widened only to one that holds the values of both."""

from __future__ import annotations

import pytest

from hubsync.schema.dtypes import join

CASES = [
    ("int8", "int16", "int16"),
    ("int8", "uint8", "int16"),
    ("uint8", "uint64", "uint64"),
    ("uint32", "int32", "int"),
    ("int32", "int", "int"),
    ("int32", "wide", "wide"),
    ("uint64", "int8", None),
    ("float16", "int8", "float16"),
    ("float32", "int16", "float32"),
    ("float32", "int32", "float64"),
    ("float32", "float64", "float64"),
    ("float64", "int", "float64"),
    ("float64", "wide", None),
    ("bool", "int8", None),
    ("string", "int32", None),
    ("string", "large_string", "large_string"),
    ("binary", "large_binary", "large_binary"),
    ("string", "binary", None),
    ("timestamp[s]", "timestamp[us]", "timestamp[us]"),
    ("timestamp[s, tz=UTC]", "timestamp[us, tz=UTC]", "timestamp[us, tz=UTC]"),
    ("timestamp[s, tz=UTC]", "timestamp[s]", None),
    ("duration[ms]", "duration[us]", "duration[us]"),
    ("timestamp[us]", "timestamp[ns]", None),  # nanoseconds reach from 1677 to 2262 only
    ("decimal128(10, 2)", "decimal128(38, 9)", "decimal128(38, 9)"),
    ("decimal128(38, 0)", "decimal128(38, 9)", "decimal256(47, 9)"),
    ("decimal256(76, 0)", "decimal128(38, 9)", None),
]


@pytest.mark.parametrize(("one", "other", "joined"), CASES)
def test_a_joined_type_holds_the_values_of_both(one: str, other: str, joined: str | None) -> None:
    assert join(one, other) == joined
    assert join(other, one) == joined
