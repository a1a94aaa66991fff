"""What fits a type that a column has. The guide's second table (docs/reference/rows.md) is generated from `TABLE`."""

from __future__ import annotations

import datetime as dt
import enum
import io
import re
from collections import deque
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

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

GUIDE = Path(__file__).parents[2] / "docs/reference/rows.md"
UTC = dt.UTC
NOON = dt.datetime(2026, 1, 1, 12)
IN_NS = pd.Timestamp("2026-01-01T12:00:00.123456789")
SECOND = dt.timedelta(seconds=1)
PIXEL = b"P5 1 1 255\nx"  # the smallest image
LABEL = datasets.ClassLabel(names=["no", "yes"])
F32 = 0.10000000149011612  # the float32 next to 0.1
VECTOR = datasets.Sequence(datasets.Value("float32"), length=2)
PAIR = datasets.Translation(languages=["de", "en"])
PAIRS = datasets.TranslationVariableLanguages(languages=["de", "en"])


class Answer(enum.Enum):
    YES = "yes"
    TWO = 2


@dataclass
class Point:
    a: int


class Kind(NamedTuple):
    """A line of the guide, with examples: values and what is stored of them, and values that are refused."""

    types: str
    takes: str
    fit: list[tuple[Any, list[Any], list[Any]]]
    refused: list[tuple[Any, list[Any]]]


TABLE = [
    Kind(
        "int8 to uint64",
        "an int in its range, a float that is whole",
        [
            (
                "int8",
                [1, np.int16(-128), 2.0, Answer.TWO, np.array(3), None, pd.NA, float("nan"), np.ma.masked],
                [1, -128, 2, 2, 3, None, None, None, None],
            ),
            ("uint64", [2**64 - 1], [2**64 - 1]),
            ("int64", [2**62, pa.scalar(7)], [2**62, 7]),
        ],
        [
            ("int8", [128, 1.5, -0.0, True, "1", np.array([1]), pd.Index([1]), np.timedelta64(1, "s"), Decimal(1)]),
            ("uint8", [-1]),
            ("int32", [2**31]),
            ("int64", [2**63, np.datetime64(1, "ns")]),
        ],
    ),
    Kind(
        "float16, float32, float64",
        "a float, NaN, an infinity, an int that it holds exactly; if the type is declared, a float is rounded to it",
        [
            ("float16", [0.5, np.float16(0.1), 0.1], [0.5, 0.0999755859375, 0.0999755859375]),
            ("float32", [0.5, 1, np.float32(0.1), 0.1, None], [0.5, 1.0, F32, F32, None]),
            (
                {"a": ["float32"]},
                [{"a": [0.1, np.float64(0.1)]}, {"a": np.array([0.1])}],
                [{"a": [F32, F32]}, {"a": [F32]}],
            ),
            (datasets.Array2D((1, 2), "float32"), [np.array([[0.1, 0.5]])], [[[F32, 0.5]]]),
            ("float64", [0.1, 2**53, float("inf"), np.array(0.5)], [0.1, 2.0**53, float("inf"), 0.5]),
        ],
        [
            ("float16", [65520.0, np.float64(1e5)]),
            ("float32", [1e39, "0.5", 2**24 + 1, True, np.timedelta64(1, "s")]),
            ("float64", [2**53 + 1, Decimal("0.5"), np.longdouble("0.1"), 1j]),
        ],
    ),
    Kind(
        "bool", "a bool", [("bool", [True, np.bool_(False), None], [True, False, None])], [("bool", [1, "true", 0.0])]
    ),
    Kind(
        "string, large_string",
        "text, and what becomes text in a plain row: times, UUIDs, Decimals",
        [
            (
                "string",
                ["a", UUID(int=1), NOON, IN_NS, np.datetime64("2026"), Decimal("1.10"), np.str_("s"), Answer.YES],
                ["a", str(UUID(int=1)), "2026-01-01T12:00:00", IN_NS.isoformat(), "2026", "1.10", "s", "yes"],
            ),
            (pa.large_string(), ["x", float("nan")], ["x", None]),
        ],
        [("string", [1, b"x", ["a"], {"a": 1}, Path("a"), "\ud800", deque("a")])],
    ),
    Kind(
        "binary, large_binary",
        "bytes, bytearray, memoryview",
        [("binary", [b"\xff", bytearray(b"a"), memoryview(b"b"), np.bytes_(b"c")], [b"\xff", b"a", b"b", b"c"])],
        [("binary", ["x", 4, [1, 2]])],
    ),
    Kind(
        "timestamp",
        "a time of any library in its unit or a coarser one, a date (midnight), ISO 8601; with a zone, as the same "
        "instant, if the type has one, and without if not",
        [
            ("timestamp[ms]", [NOON, "2026-01-01T12:00:00", np.datetime64(NOON), pd.Timestamp(NOON)], [NOON] * 4),
            (
                "timestamp[s]",
                [NOON.date(), np.datetime64("2026-01-01"), pa.scalar(NOON)],
                [NOON.replace(hour=0)] * 2 + [NOON],
            ),
            (
                "timestamp[us]",
                [pd.NaT, None, np.datetime64("NaT"), np.datetime64("2026-01-01T12", "h")],
                [None] * 3 + [NOON],
            ),
            ("timestamp[ns]", [IN_NS, np.datetime64(IN_NS.value, "ns")], [IN_NS] * 2),
            (
                "timestamp[us, tz=UTC]",
                [NOON.replace(tzinfo=UTC), NOON.replace(hour=13, tzinfo=ZoneInfo("Europe/Paris"))],
                [NOON.replace(tzinfo=UTC)] * 2,
            ),
        ],
        [
            ("timestamp[us]", [IN_NS, np.datetime64(1, "ns"), NOON.replace(tzinfo=UTC), 5, SECOND, dt.time(1)]),
            ("timestamp[ms]", [NOON.replace(microsecond=1), "soon", "2026-01-01T00:00:00Z", np.datetime64("2026")]),
            (
                "timestamp[us, tz=UTC]",
                [NOON, NOON.date(), "2026-01-01T00:00:00", np.datetime64(NOON), pd.Timestamp(NOON)],
            ),
            ("timestamp[ns]", [dt.datetime(1500, 1, 1)]),
            ("timestamp[s]", [np.datetime64("20000-01-01T00:00:00")]),
        ],
    ),
    Kind(
        "date32, date64",
        "a date, a midnight without a zone, ISO 8601",
        [("date32", [NOON.date(), "2026-01-01", NOON.replace(hour=0), np.datetime64("2026-01-01")], [NOON.date()] * 4)],
        [("date32", [NOON, "soon", IN_NS, NOON.replace(hour=0, tzinfo=UTC)]), ("date64", [NOON])],
    ),
    Kind(
        "time32, time64",
        "a time of day without a zone, in its unit or a coarser one",
        [("time64[us]", [dt.time(1, 2, 3, 4)], [dt.time(1, 2, 3, 4)])],
        [("time32[s]", [dt.time(1, 2, 3, 4), NOON]), ("time64[us]", [dt.time(1, tzinfo=UTC), "01:02:03", NOON])],
    ),
    Kind(
        "duration",
        "a duration of any library in its unit or a coarser one",
        [
            ("duration[ms]", [SECOND * 1.5, np.timedelta64(1, "s")], [SECOND * 1.5, SECOND]),
            (
                "duration[ns]",
                [pd.Timedelta(1, "ns"), np.timedelta64(1, "ns"), pa.scalar(1, pa.duration("ns"))],
                [pd.Timedelta(1, "ns")] * 3,
            ),
        ],
        [
            ("duration[s]", [dt.timedelta(milliseconds=1), pd.Timedelta(1, "ns"), "PT1S"]),
            ("duration[us]", [pd.Timedelta(1, "ns"), dt.timedelta.max, np.timedelta64(1, "Y"), np.timedelta64(1)]),
        ],
    ),
    Kind(
        "decimal",
        "a Decimal or an int with no more digits than the type, or its text",
        [
            (
                "decimal128(10, 2)",
                [Decimal("1.25"), 3, "4.50", Decimal("1.250")],
                [Decimal("1.25"), Decimal(3), Decimal("4.50"), Decimal("1.25")],
            )
        ],
        [
            (
                "decimal128(4, 2)",
                [Decimal("1.255"), Decimal(100), 0.1, "x", "1_0", True, Decimal("NaN"), Decimal("Infinity")],
            )
        ],
    ),
    Kind(
        "a list, a vector, `Array2D`",
        "a list, tuple, set or array of its length and shape, whose elements fit",
        [
            (
                ["int16"],
                [[1, 2], np.array([3]), (4,), {5}, pa.array([6]), pd.Series([7]), None],
                [[1, 2], [3], [4], [5], [6], [7], None],
            ),
            (["timestamp[ns]"], [np.array([IN_NS.value], "M8[ns]")], [[IN_NS]]),
            (VECTOR, [np.zeros(2), [1, 2]], [[0, 0], [1, 2]]),
            (datasets.Array2D((2, None), "int8"), [np.ones((2, 3), int)], [[[1] * 3] * 2]),
        ],
        [
            (["int8"], ["ab", [300], {"a": 1}, range(2), deque([1]), 5, np.array(5)]),
            (["float32"], [[0.1, 1e39]]),
            (VECTOR, [[1, 2, 3], [0.1, -1e39]]),
            (datasets.Array2D((2, 2), "int8"), [[[1, 2]], [[1, 300], [0, 0]]]),
        ],
    ),
    Kind(
        "a struct",
        "a mapping, dataclass, Struct or model without other fields",
        [
            (
                {"a": "int8", "b": ["string"]},
                [{"a": 1}, {"b": ["x"]}, Point(2), np.array([(3,)], [("a", "i1")])[0]],
                [{"a": 1, "b": None}, {"a": None, "b": ["x"]}, {"a": 2, "b": None}, {"a": 3, "b": None}],
            ),
        ],
        [({"a": "int8"}, [{"b": 1}, [1], {"a": 300}, "a"]), ({"a": "float32"}, [{"a": 1e39}])],
    ),
    Kind(
        "`ClassLabel`",
        "a name, or its number",
        [(LABEL, ["yes", 0, -1, Answer.YES, None], [1, 0, -1, 1, None])],
        [(LABEL, ["maybe", 2, True, 0.5])],
    ),
    Kind(
        "`Translation`, `TranslationVariableLanguages`",
        "texts of its languages",
        [
            (PAIR, [{"de": "ja", "en": "yes"}, {"de": "ja"}], [{"de": "ja", "en": "yes"}, {"de": "ja", "en": None}]),
            (
                PAIRS,
                [{"en": "yes", "de": ["jo", "ja"]}, {"language": ["de"], "translation": ["ja"]}],
                [
                    {"language": ["de", "de", "en"], "translation": ["ja", "jo", "yes"]},
                    {"language": ["de"], "translation": ["ja"]},
                ],
            ),
        ],
        [(PAIR, [{"de": "ja", "fr": "oui"}, {"de": 1}, "ja"]), (PAIRS, [{"fr": "oui"}, {}, {"de": [1]}, "ja"])],
    ),
    Kind(
        "`Json`",
        "what a plain row holds",
        [
            (
                "json",
                [{"a": 1}, "x", None, [NOON], {"a": float("nan")}],
                ['{"a":1}', '"x"', None, '["2026-01-01T12:00:00"]', '{"a":null}'],
            )
        ],
        [("json", [float("inf"), [b"x"], {1: 2}, 2**64, 1j, {"a": np.array([np.inf])}])],
    ),
    Kind(
        "`Image`",
        'a PIL image, pixels, a path, encoded bytes or `{"bytes", "path"}` that PIL can open',
        [
            (
                "image",
                [PIXEL, {"bytes": PIXEL, "path": "a"}, {"bytes": bytearray(PIXEL)}, None],
                [{"bytes": PIXEL, "path": None}, {"bytes": PIXEL, "path": "a"}, {"bytes": PIXEL, "path": None}, None],
            ),
            (datasets.Image(decode=False), [b"x"], [{"bytes": b"x", "path": None}]),
        ],
        [
            (
                "image",
                [
                    b"x",
                    5,
                    "/no/such/file",
                    {"bytes": 4},
                    {"bytes": b"x"},
                    {"bytes": PIXEL, "path": 4},
                    {"bytes": None, "path": None},
                    {},
                    {"bytes": PIXEL, "size": 1},
                    {"path": 4},
                    {"bytes": "x"},
                    Image.new("HSV", (1, 1)),
                ],
            )
        ],
    ),
    Kind(
        "`Audio`, `Video`",
        'encoded bytes, a path, `{"bytes", "path"}`; sound as `{"array", "sampling_rate"}`',
        [("audio", [b"x"], [{"bytes": b"x", "path": None}])],
        [
            (
                "audio",
                [
                    5,
                    {"bytes": 4},
                    {"array": np.zeros(3)},
                    {"array": np.zeros(3), "sampling_rate": 0.5},
                    {"array": np.zeros(3), "sampling_rate": "16000"},
                    {"array": np.zeros(3), "sampling_rate": 2**40},
                    {"array": np.zeros(3), "sampling_rate": 8, "bytes": b"x"},
                    {"array": None},
                ],
            )
        ],
    ),
    Kind("`base64`", "bytes", [("base64", [b"\xff", None], ["/w==", None])], [("base64", ["text", 5])]),
]


def column(values: list[Any], kind: Any, *, native: bool = True) -> Any:
    """The column that a Parquet shard would hold."""
    types = Types(native=native, declared=declared_types({"x": kind}))
    encoded = encode([{"x": value} for value in values], types=types)
    (frame,) = read_frames(io.BytesIO(encoded.lines))
    return pa.ipc.open_stream(frame.data).read_all()["x"]


FITS = [fit for kind in TABLE for fit in kind.fit]
REFUSED = [(kind, value) for line in TABLE for kind, values in line.refused for value in values]


@pytest.mark.parametrize(("kind", "given", "want"), FITS, ids=[str(one[0])[:30] for one in FITS])
def test_a_value_that_fits_is_stored_as_the_type(kind: Any, given: list[Any], want: list[Any]) -> None:
    found = column(given, kind)
    found = (found.cast(pa.string()) if kind == "json" else found).to_pylist()
    assert found == want
    assert list(map(type, found)) == list(map(type, want))


@pytest.mark.parametrize(("kind", "value"), REFUSED, ids=[f"{str(k)[:20]}-{str(v)[:20]}" for k, v in REFUSED])
@pytest.mark.parametrize("native", [True, False])
def test_a_value_that_would_change_is_refused(kind: Any, value: Any, native: bool) -> None:
    with pytest.raises(RowError) as refused:
        column([None, value], kind, native=native)
    assert refused.value.path.startswith("x")
    if native:
        assert refused.value.row == 1


def test_the_guides_table_of_types_is_generated_from_these_tests() -> None:
    table = ["| type | takes |", "| --- | --- |", *(f"| {kind.types} | {kind.takes} |" for kind in TABLE)]
    found = re.findall(r"(?:^\|.*\n)+", GUIDE.read_text(), re.MULTILINE)
    assert found[1].splitlines() == table


def test_a_float_beyond_its_type_is_refused_with_the_remedy() -> None:
    with pytest.raises(RowError, match="Declare float64"):
        column([1e39], "float32")


def test_a_declared_float_rounds_the_floats_of_a_table_too() -> None:
    types = Types(native=True, declared=declared_types({"x": "float32", "v": ["float16"]}))
    (frame,) = read_frames(io.BytesIO(encode(pa.table({"x": [0.1], "v": [[0.1]]}), types=types).lines))
    assert pa.ipc.open_stream(frame.data).read_all().to_pylist() == [{"x": F32, "v": [0.0999755859375]}]


@pytest.mark.parametrize("kind", [pa.time64("ns"), pa.timestamp("ns"), pa.duration("ns")], ids=str)
def test_a_nested_time_keeps_its_nanoseconds_or_is_refused(kind: Any) -> None:
    """pyarrow's `to_pylist` cuts them off."""
    coarse = type(kind)  # the same kind of type in microseconds
    us = {pa.Time64Type: pa.time64("us"), pa.TimestampType: pa.timestamp("us"), pa.DurationType: pa.duration("us")}[
        coarse
    ]
    for ns in (1_000, 1_001):
        lists = pa.ListArray.from_arrays([0, 1], pa.array([ns], kind))
        table = pa.table({"x": pa.StructArray.from_arrays([lists], ["a"])})
        for to, is_exact in ((kind, True), (us, ns == 1_000)):
            types = Types(native=True, declared=declared_types({"x": {"a": [to]}}))
            if not is_exact:
                with pytest.raises(RowError, match="without a change of the value"):
                    encode(table, types=types)
                continue
            (frame,) = read_frames(io.BytesIO(encode(table, types=types).lines))
            (stored,) = pa.ipc.open_stream(frame.data).read_all()["x"].chunks
            assert stored.flatten()[0].flatten().cast(pa.int64()).to_pylist() == [ns if to == kind else 1]


def test_a_transform_gets_no_time_that_python_does_not_have() -> None:
    table = pa.table({"x": pa.array([[1_001]], pa.list_(pa.int64())).cast(pa.list_(pa.time64("ns")))})
    with pytest.raises(RowError, match="nanoseconds"):
        encode(table, transform=lambda row: row, types=Types(native=True))
