"""Random tables, put and committed, load with equal values and, as far as the format goes, equal features."""

from __future__ import annotations

import decimal
import tempfile
import uuid
from typing import Any

import datasets
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from hubsync import Uploader
from hubsync.localhub import LocalHub
from hubsync.model.layout import Format
from tests.conftest import FAST

pytestmark = pytest.mark.slow("loads a dataset for each example")

UNITS = st.sampled_from(["s", "ms", "us", "ns"])
PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
TIMES = [
    (pa.time32("s"), 1),
    (pa.time32("ms"), 10**3),
    (pa.time64("us"), 10**6),
    (pa.time64("ns"), 10**9),
]
SECONDS = st.integers(-(2**31), 2**32)
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@st.composite
def scalars(draw: st.DrawFn, native: bool) -> tuple[Any, st.SearchStrategy[Any]]:
    """An Arrow type, and a strategy of its values."""
    kinds = ["int", "float", "text", "bool", "timestamp", "date", "decimal", "null"]
    kind = draw(st.sampled_from([*kinds, "binary", "time", "duration", "uint64", "infinite"] if native else kinds))
    if kind == "int":
        bits, sign = draw(st.sampled_from([8, 16, 32, 64])), draw(st.sampled_from(["int", "uint"]))
        if (bits, sign) == (64, "uint"):
            sign = "int"
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if sign == "int" else (0, 2**bits - 1)
        return getattr(pa, f"{sign}{bits}")(), st.integers(low, high)
    if kind in ("float", "infinite"):
        width = draw(st.sampled_from([16, 32, 64]))
        values = st.floats(width=width, allow_nan=False, allow_infinity=kind == "infinite")
        return getattr(pa, f"float{width}")(), values
    if kind == "text":
        made = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
        return draw(st.sampled_from(made)), st.just("x") | TEXT.filter(lambda text: not text[:1].isdigit())
    if kind == "timestamp":
        unit = draw(UNITS)
        zone = draw(st.sampled_from([None, "UTC", "Europe/Paris", "+05:30"]))
        return pa.timestamp(unit, zone), SECONDS.map(lambda n: n * PER_SECOND[unit] + n % PER_SECOND[unit])
    if kind == "date":
        return draw(st.sampled_from([pa.date32(), pa.date64()])), st.dates()
    if kind == "decimal":
        digits = draw(st.integers(1, 38))
        scale = draw(st.integers(0, digits))
        whole = st.integers(-(10**digits) + 1, 10**digits - 1)
        make = pa.decimal128 if draw(st.booleans()) else pa.decimal256
        return make(digits, scale), whole.map(lambda n: decimal.Decimal(n).scaleb(-scale, CONTEXT))
    if kind == "binary":
        return draw(st.sampled_from([pa.binary(), pa.large_binary(), pa.binary_view()])), st.binary(max_size=8)
    if kind == "time":
        made, per_second = draw(st.sampled_from(TIMES))
        return made, st.integers(0, 86_400 * per_second - 1)
    if kind == "duration":
        return pa.duration(draw(UNITS)), st.integers(-(2**40), 2**40)
    if kind == "uint64":
        return pa.uint64(), st.integers(0, 2**64 - 1)
    return (pa.bool_(), st.booleans()) if kind == "bool" else (pa.null(), st.none())


CONTEXT = decimal.Context(prec=60)


@st.composite
def types(draw: st.DrawFn, native: bool, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any]]:
    kind = draw(st.sampled_from(["scalar", "scalar", "list", "large", "fixed", "struct"] if depth else ["scalar"]))
    if kind == "scalar":
        return draw(scalars(native))
    if kind == "struct":
        fields = {name: draw(types(native, depth - 1)) for name in draw(st.sampled_from(["a", "ab", "abc"]))}
        values = {name: st.none() | value for name, (_, value) in fields.items()}
        return pa.struct([(name, item) for name, (item, _) in fields.items()]), st.fixed_dictionaries(values)
    item, value = draw(types(native, depth - 1))
    if native:
        value = st.none() | value
    else:  # for nulls in a list, pyarrow's JSON reader fails, and then pandas' rounds the floats of all columns
        assume(not pa.types.is_null(item))
    if kind == "fixed":
        return pa.list_(item, 2), st.lists(value, min_size=2, max_size=2)
    made = pa.list_(item) if kind == "list" else pa.large_list(item)
    return made, st.lists(value, max_size=3)


@st.composite
def tables(draw: st.DrawFn, native: bool) -> Any:
    rows = draw(st.integers(1, 5))
    columns: dict[str, Any] = {"id": pa.array(range(rows))}
    for number in range(draw(st.integers(1, 4))):
        kind, value = draw(types(native))
        values = draw(st.lists(st.none() | value, min_size=rows, max_size=rows))
        columns[f"c{number}"] = (
            pa.array(values, _plain(kind)).cast(kind) if _plain(kind) != kind else pa.array(values, kind)
        )
    return pa.table(columns)


def _plain(kind: Any) -> Any:
    """The type from whose array pyarrow makes one of a type that it can't build from Python objects."""
    return pa.string() if pa.types.is_dictionary(kind) or pa.types.is_string_view(kind) else kind


def as_datasets_has(kind: Any) -> Any:
    """The type that `datasets` has for an Arrow type."""
    if pa.types.is_dictionary(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, as_datasets_has(field.type)) for field in kind])
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(as_datasets_has(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind):
        return pa.large_list(as_datasets_has(kind.value_type))
    return pa.list_(as_datasets_has(kind.value_type)) if pa.types.is_list(kind) else kind


def exact(scalar: Any) -> Any:
    """A value with times as counts of their units: Python's have no nanoseconds."""
    if not scalar.is_valid:
        return None
    kind = scalar.type
    if pa.types.is_struct(kind):
        return {field.name: exact(scalar[field.name]) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return list(map(exact, scalar.values))
    return scalar.value if pa.types.is_temporal(kind) else scalar.as_py()


def check(table: Any, repo: str, format: Format) -> None:
    """Put the table in three batches, of which the first is empty."""
    middle = table.num_rows // 2
    with Uploader(repo, spool=tempfile.mkdtemp(), format=format, **FAST) as up:
        for batch in (table[:0], table[:middle], table[middle:]):
            up.put(batch)
    back = datasets.load_dataset(repo, split="train", download_mode="force_redownload")
    schema = pa.schema([(field.name, as_datasets_has(field.type)) for field in table.schema])
    assert back.features == datasets.Features.from_arrow_schema(schema)
    got = back.with_format("arrow")[:]
    for name in table.column_names:
        assert list(map(exact, got[name])) == list(map(exact, table[name])), name


EXAMPLES = settings(
    max_examples=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@EXAMPLES
@given(table=tables(native=True))
def test_parquet_keeps_values_and_features(local_hub: LocalHub, table: Any) -> None:
    check(table, f"user/{uuid.uuid4()}", "parquet")


@EXAMPLES
@given(table=tables(native=False))
def test_json_lines_keep_values_and_features(local_hub: LocalHub, table: Any) -> None:
    check(table, f"user/{uuid.uuid4()}", "jsonl")
