"""What each value becomes. The guide's table (docs/reference/rows.md) is generated from `TABLE`."""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import json
import math
import re
import uuid
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pandas as pd
import pydantic
import pytest

from hubsync import RowError
from hubsync.encoding.rows import encode

GUIDE = Path(__file__).parents[2] / "docs/reference/rows.md"
PARIS = ZoneInfo("Europe/Paris")


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    pass


class Number(int):
    pass


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Sample:
    prompt: str
    score: float


class Record(msgspec.Struct):
    prompt: str


class Model(pydantic.BaseModel):
    when: dt.datetime


class Tensor:
    """A stand-in for torch's: torch is not imported, so its values are known by what they can do."""

    def __init__(self, *values: float) -> None:
        self._values = list(values)

    def tolist(self) -> list[float]:
        return self._values


class Eager:
    """An array that only numpy can read."""

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.array([[1, 2]], np.int8)


class Capsule:
    """An array that only speaks DLPack."""

    def __dlpack__(self, **options: Any) -> Any:
        return np.array([0.5]).__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return np.array([0.5]).__dlpack_device__()


REJECTED = object()
# A line of the guide: the values, what they become, and examples of both.
TABLE: list[tuple[str, str, list[tuple[Any, Any]]]] = [
    (
        "str, bool, None, int, float, list, tuple, dict",
        "itself; a tuple becomes a list",
        [
            ("é\n\u2028\0", "é\n\u2028\0"), ("", ""), ("4", "4"), ("NaN", "NaN"), (True, True), (None, None),
            (2**63 - 1, 2**63 - 1), (-(2**63), -(2**63)), (2**53 + 1, 2**53 + 1), (1.5, 1.5), (0.1 + 0.2, 0.1 + 0.2),
            (-0.0, -0.0), (5e-324, 5e-324), (1.7976931348623157e308, 1.7976931348623157e308), (1e22, 1e22),
            ([1, [2.5, "x", None]], [1, [2.5, "x", None]]), ((1, 2), [1, 2]), (Point(1, 2), [1, 2]), ({}, {}), ([], []),
            (Text("sub"), "sub"), (Number(7), 7), (MappingProxyType({"a": 1}), {"a": 1}),
        ],
    ),
    (
        "NaN, NaT, `pandas.NA`, a masked element",
        "`null`, a missing value, as in pandas; among strings, lists or structs as well",
        [
            (math.nan, None), (np.float32("nan"), None), ([1.0, math.nan], [1.0, None]), (pd.NaT, None), (pd.NA, None),
            (np.datetime64("NaT"), None), (np.datetime64("NaT", "ns"), None), (np.timedelta64("NaT"), None),
            (np.array(["2026-01-02", "NaT"], "M8[s]"), ["2026-01-02T00:00:00", None]),
            (np.array([1, "NaT"], "m8[s]"), ["PT1S", None]),
            ({"t": pd.NaT}, {"t": None}), ([pd.NaT, pd.NA], [None, None]),
            (np.array([np.datetime64("NaT"), math.nan, pd.NaT], object), [None, None, None]),
            (pd.Timedelta("NaT"), None), (pd.Series([pd.NaT, pd.Timestamp(0)]), [None, "1970-01-01T00:00:00"]),
            (np.ma.array([1, 2], mask=[False, True]), [1, None]), (np.ma.masked, None),
        ],
    ),
    (
        "datetime, date, time, `pandas.Timestamp`, `numpy.datetime64`",
        "ISO 8601 text with every digit and the zone's offset, to its second",
        [
            (dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2026-01-02T03:04:05Z"),
            (dt.datetime(2026, 1, 2, 3, 4, 5, 6), "2026-01-02T03:04:05.000006"),
            (dt.datetime(1, 1, 1), "0001-01-01T00:00:00"),
            (dt.datetime(2026, 10, 25, 2, 30, tzinfo=PARIS), "2026-10-25T02:30:00+02:00"),
            (dt.datetime(2026, 10, 25, 2, 30, tzinfo=PARIS, fold=1), "2026-10-25T02:30:00+01:00"),
            (dt.datetime(1800, 1, 1, tzinfo=PARIS), "1800-01-01T00:00:00+00:09:21"),
            ([{"at": dt.datetime(1800, 1, 1, tzinfo=PARIS)}], [{"at": "1800-01-01T00:00:00+00:09:21"}]),
            (dt.time(1, 2, 3, tzinfo=dt.timezone(-dt.timedelta(minutes=9, seconds=21))), "01:02:03-00:09:21"),
            (dt.time(1, 2, 3, 4), "01:02:03.000004"), (dt.date(2026, 1, 2), "2026-01-02"),
            (pd.Timestamp("2026-01-02T03:04:05.5Z"), "2026-01-02T03:04:05.500000Z"),
            (pd.Timestamp("2026-01-02T03:04:05.123456789"), "2026-01-02T03:04:05.123456789"),
            (pd.Timestamp("1800-01-01", tz="Europe/Paris"), "1800-01-01T00:00:00+00:09:21"),
            (np.datetime64("2026-01-02"), "2026-01-02"), (np.datetime64(1, "ns"), "1970-01-01T00:00:00.000000001"),
            (np.array(["2026-01-02"], "M8[ns]"), ["2026-01-02T00:00:00.000000000"]),
        ],
    ),
    (
        "timedelta, `pandas.Timedelta`, `numpy.timedelta64`",
        "ISO 8601 text, exact; **rejected** in years or months (they have no length), or finer than a nanosecond",
        [
            (dt.timedelta(days=1), "P1D"),
            (dt.timedelta(seconds=-1.5), "-PT1.5S"), (pd.Timedelta(seconds=1.5), "PT1.5S"),
            (pd.Timedelta(1, "ns"), "PT0.000000001S"), (pd.Timedelta(-1, "ns"), "-PT0.000000001S"),
            (pd.Timedelta(86_400 * 10**9 + 1_000_000_010, "ns"), "P1DT1.00000001S"),
            (np.timedelta64(1_500_000_000, "ns"), "PT1.5S"), (np.timedelta64(1_500_000_001, "ns"), "PT1.500000001S"),
            (np.timedelta64(3, "W"), "P21D"), (np.timedelta64(2_000, "ps"), "PT0.000000002S"),
            (np.array([[1, 2_000]], "m8[ns]"), [["PT0.000000001S", "PT0.000002S"]]),
            (np.timedelta64(3, "Y"), REJECTED), (np.timedelta64(3, "M"), REJECTED), (np.timedelta64(3), REJECTED),
            (np.timedelta64(1, "ps"), REJECTED),
        ],
    ),
    (
        "UUID, Decimal",
        "text, exact",
        [
            (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"), (decimal.Decimal("1.10"), "1.10"),
            (decimal.Decimal("1E+5"), "1E+5"),
        ],
    ),
    ("Enum", "its value", [(Colour.RED, "red"), (Level.HIGH, 3)]),
    (
        "bytes, bytearray, memoryview, an image (PIL), decoded audio or video (`datasets`)",
        "**rejected** in JSON Lines; stored as it is with `format=\"parquet\"`",
        [(b"\x00\xff", REJECTED), (np.bytes_(b"x"), REJECTED), ([{"a": bytearray(b"x")}], REJECTED)],
    ),
    ("set, frozenset", "a list, in no particular order", [({3}, [3]), (frozenset({3}), [3])]),
    (
        "dataclass, attrs class, msgspec Struct, pydantic model, other mappings",
        "an object",
        [
            (Sample("p", 0.5), {"prompt": "p", "score": 0.5}), (Record("p"), {"prompt": "p"}),
            (Model(when=dt.datetime(2026, 1, 2)), {"when": "2026-01-02T00:00:00"}),
        ],
    ),
    (
        "an array, tensor or series (numpy, torch, JAX, pandas, polars, pyarrow, `__array__`, DLPack), or its scalar",
        "its Python value or nested list; a structured one, an object per element",
        [
            (np.float16(0.1), 0.0999755859375), (np.float32(0.1), 0.10000000149011612), (np.int8(-1), -1),
            (np.uint64(2**63 - 1), 2**63 - 1), (np.bool_(True), True), (np.str_("x"), "x"), (np.array(5), 5),
            (np.eye(2), [[1.0, 0.0], [0.0, 1.0]]), (np.array(["a", ""]), ["a", ""]), (np.zeros((0, 2)), []),
            (np.array([1, "a", None, {"b": np.int8(1)}], object), [1, "a", None, {"b": 1}]),
            (np.array([(1, "NaT")], [("a", "i4"), ("at", "M8[ns]")]), [{"a": 1, "at": None}]),
            (np.array([(1, 2)], [("a", "i4"), ("b", "i4")])[0], {"a": 1, "b": 2}),
            (pd.Series([1, 2]), [1, 2]), (pd.array([1, None], "Int64"), [1, None]), (pd.Categorical(["a"]), ["a"]),
            (Tensor(0.5, math.nan), [0.5, None]), (Eager(), [[1, 2]]), (Capsule(), [0.5]),
        ],
    ),
    (
        "±infinity",
        "**rejected**: JSON has no infinity, and `null` would hide it",
        [(v, REJECTED) for v in (math.inf, np.float32("-inf"), np.array([np.inf]), Tensor(math.inf), [[math.inf]])],
    ),
    (
        "int beyond 64 bits",
        "**rejected**: readers make it a float",
        [(v, REJECTED) for v in (2**63, -(2**63) - 1, [2**70], np.uint64(2**63), np.array([2**63], np.uint64))],
    ),
    ("a key that is not a string", "**rejected**: `1` and `\"1\"` would become one column", [({1: 2}, REJECTED)]),
    (
        "text with a lone surrogate",
        "**rejected**: UTF-8 cannot encode it, and readers stop at it",
        [("\ud83d", REJECTED), (["a", {"b": "\udc00"}], REJECTED)],
    ),
    ("a value that contains itself, or is nested hundreds of levels deep", "**rejected**", []),
    (
        "complex, longdouble, generator, DataFrame, Path, `msgspec.Raw`, any other object",
        "**rejected**",
        [
            (v, REJECTED)
            for v in (1j, np.complex64(1), np.array([1j]), np.longdouble("0.1"), (x for x in "ab"), object(), range(2),
                      pd.DataFrame({"a": [1]}), pd.Period("2026-01"), Path("a"), msgspec.Raw(b"1"), int)
        ],
    ),
]  # fmt: skip
SAMPLES = [example for _, _, examples in TABLE for example in examples[:2] if example[1] is not REJECTED]
EXAMPLES = [example for _, _, examples in TABLE for example in examples]


@pytest.mark.parametrize(
    ("value", "expected"), EXAMPLES, ids=[f"{n}-{type(v).__name__}" for n, (v, _) in enumerate(EXAMPLES)]
)
def test_a_value_becomes_what_the_guide_says(value: Any, expected: Any) -> None:
    if expected is REJECTED:
        with pytest.raises(RowError, match=r"^row 1, field 't"):
            encode([{"t": None}, {"t": value}])
        return
    (line,) = encode([{"t": value}]).lines.splitlines()
    assert repr(json.loads(line)["t"]) == repr(expected)  # tells -0.0 from 0, and 1 from True


def test_the_table_of_the_guide_is_generated_from_these_tests() -> None:
    table = ["| value | becomes |", "| --- | --- |", *(f"| {values} | {becomes} |" for values, becomes, _ in TABLE)]
    found = re.search(r"(?:^\|.*\n)+", GUIDE.read_text(), re.MULTILINE)
    assert found is not None
    assert found.group().splitlines() == table


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (np.timedelta64(3, "Y"), "in years has no fixed length. Convert it to days or seconds"),
        (pd.DataFrame({"a": [1]}), "Use frame.to_dict('records')"),
        (2**63, "does not fit int64, and readers would make it a float. Use a string"),
    ],
)
def test_a_refusal_says_what_to_do(value: Any, said: str) -> None:
    with pytest.raises(RowError, match=re.escape(said)):
        encode([{"t": value}])
