"""Encode rows as JSON Lines: once, in the caller's thread.

Every row becomes one line, a JSON object with string keys that `datasets` can read. If one can't, a `RowError` names
the row and the field, and nothing of the batch is kept. The table of values in docs/reference/rows.md is this module's
contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import Field, dataclass, field, is_dataclass
from datetime import datetime, time
from typing import Any, ClassVar, Protocol

import msgspec

from hubsync.encoding.diagnosis import check_rows, diagnose
from hubsync.encoding.transform import Transform, transformed
from hubsync.encoding.values import encoder, spell_out_times, to_known
from hubsync.errors import RowError
from hubsync.schema.profiler import Discoveries, OpaqueType, RowProfiler
from hubsync.schema.types import Conflict, StructOf, infer, merge_structs


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class _Model(Protocol):
    """A pydantic model."""

    def model_dump(self) -> dict[str, Any]: ...


class _Arrow(Protocol):
    """A `pyarrow.Table` or `RecordBatch`; to a type checker, a `datasets.Dataset` is an iterable of rows."""

    @property
    def num_rows(self) -> int: ...

    def to_pylist(self) -> list[dict[str, Any]]: ...


# msgspec raises these if another thread changes the rows.
_CHANGED = (TypeError, ValueError, RuntimeError, LookupError)
_SLICE_ROWS = 1_000  # of an Arrow table, converted to Python objects at a time


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch as it will be in its shard.

    Attributes:
        lines: The rows as JSON, each with its newline.
        rows: The number of rows.
        discoveries: What `profiler` did not know, for its `remember`.
        columns: The types of the columns, or why the batch conflicts with itself; None unless there are discoveries.
        profiler: The profiler that looked at the batch; None if none did.
    """

    lines: bytes
    rows: int
    discoveries: Discoveries = field(default_factory=list)
    columns: StructOf | Conflict | None = None
    profiler: RowProfiler | None = None


# One row as the caller has it: a mapping, a dataclass instance, a msgspec Struct or a pydantic model.
Row = Mapping[str, Any] | msgspec.Struct | _Dataclass | _Model
# A batch: one row, an iterable of rows, a DataFrame, a `datasets.Dataset`, a `pyarrow.Table` or `RecordBatch`; or one
# encoded before.
Rows = Row | Iterable[Row] | _Arrow | Encoded


def encode(rows: Rows, profiler: RowProfiler | None = None, *, transform: Transform | None = None) -> Encoded:
    """Encode a batch.

    Args:
        rows: The batch.
        profiler: Knows the earlier batches; the result lists its discoveries.
        transform: Called with each row; returns the row to encode instead, or None to leave it out.

    Raises:
        RowError: A row or a value has no JSON form; see docs/reference/rows.md.
        TransformError: `transform` raised.
    """
    tables = _arrow_slices(rows)
    if tables is None:
        return _transform_and_encode(_as_list(rows), profiler, transform)
    parts: list[Encoded] = []
    first = 0
    for table in tables:
        parts.append(_transform_and_encode(table.to_pylist(), profiler, transform, first))
        first += table.num_rows
    count = sum(part.rows for part in parts)
    discoveries = [item for part in parts for item in part.discoveries]
    return Encoded(b"".join(part.lines for part in parts), count, discoveries, _merge_columns(parts), profiler)


def decode_row(line: bytes) -> dict[str, Any]:
    """Return the row that a line of JSON holds.

    Raises:
        ValueError: The line is not a row. The message says why and shows none of it.
    """
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def profile(encoded: Encoded, profiler: RowProfiler) -> Encoded:
    """Let `profiler` look at a batch that was encoded without it."""
    rows = _decoder.decode_lines(encoded.lines)
    discoveries = profiler.profile(rows)
    return Encoded(encoded.lines, encoded.rows, discoveries, _columns(rows, 0) if discoveries else None, profiler)


def _transform_and_encode(
    rows: Sequence[Row], profiler: RowProfiler | None, transform: Transform | None, first_row: int = 0
) -> Encoded:
    if transform is None:
        return _encode(rows, profiler, first_row)
    kept: list[int] = []  # the index in the caller's batch of each row
    new_rows: list[Row] = []
    for index, row in enumerate(rows, first_row):
        new = transformed(row, transform, index)
        if new is not None:
            kept.append(index)
            new_rows.append(new)
    try:
        encoded = _encode(new_rows, profiler)
        if isinstance(encoded.columns, Conflict):
            encoded.columns.row = kept[encoded.columns.row or 0]
        return encoded
    except RowError as error:
        raise type(error)(kept[error.row], error.path, error.reason) from None


def _encode(rows: Sequence[Row], profiler: RowProfiler | None, first_row: int = 0) -> Encoded:
    plain: Sequence[Any] = rows
    used = profiler or RowProfiler()
    try:
        try:
            discoveries = used.profile(rows)
        except OpaqueType:  # the types do not determine the JSON, so profile what will be encoded
            plain = msgspec.to_builtins(rows, enc_hook=to_known, builtin_types=(datetime, time))
            try:
                discoveries = used.profile(plain)
            except OpaqueType:
                plain = spell_out_times(plain)
                discoveries = used.profile(plain)
        if discoveries and plain is not rows:
            check_rows(rows, first_row)  # for keys, which JSON turns into strings
        lines = encoder.encode_lines(plain)
        columns = _columns(plain, first_row) if discoveries and profiler is not None else None
    except RowError:
        raise
    except Exception as error:  # whatever it is, the caller learns which value caused it
        if (found := diagnose(rows, plain, first_row)) is not None:
            raise found from None
        if isinstance(error, _CHANGED):
            raise RowError(first_row, "", "the batch changed while it was being encoded.") from error
        raise  # from a signal handler, such as a time limit
    return Encoded(lines, len(rows), discoveries if profiler is not None else [], columns, profiler)


def _columns(rows: Sequence[Any], first_row: int) -> StructOf | Conflict:
    try:
        return infer(rows, first_row)
    except Conflict as conflict:
        return conflict


def _merge_columns(parts: Sequence[Encoded]) -> StructOf | Conflict | None:
    whole: StructOf | None = None
    first_row = 0
    for part in parts:
        if isinstance(part.columns, Conflict):
            return part.columns
        if part.columns is not None:
            try:
                whole = merge_structs(whole, part.columns) if whole is not None else part.columns
            except Conflict as conflict:
                conflict.row = first_row
                return conflict
        first_row += part.rows
    return whole


def _as_list(rows: Any) -> Sequence[Row]:
    kind = type(rows)
    if isinstance(rows, list | tuple):
        return rows
    if kind.__name__ == "LazyBatch":  # what `Dataset.map(batched=True)` passes: columns
        return _zip_columns(dict(rows))
    if isinstance(rows, Mapping | msgspec.Struct) or is_dataclass(rows) or hasattr(rows, "model_dump"):
        if not isinstance(rows, type):
            return [rows]
    elif hasattr(rows, "collect") and hasattr(rows, "collect_schema"):
        raise RowError(0, "", "a LazyFrame has no rows yet. Use put(frame.collect()).")
    elif hasattr(rows, "columns") and hasattr(rows, "to_dict"):
        return _rows_of_frame(rows)
    elif isinstance(rows, Iterable) and not isinstance(rows, str | bytes | bytearray):
        return list(rows)
    elif hasattr(rows, "__aiter__"):
        raise RowError(0, "", "put can't wait for an async iterator. Use put([row async for row in rows]).")
    name = f"the class {rows.__name__}" if isinstance(rows, type) else kind.__name__
    raise RowError(0, "", f"a batch is a row or a list of rows, not {name}.")


def _zip_columns(columns: dict[str, Any]) -> Sequence[Row]:
    if len(set(map(len, columns.values()))) > 1:
        raise RowError(0, "", "the columns of a LazyBatch must have the same length.")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _rows_of_frame(frame: Any) -> Sequence[Row]:
    """Return the rows of a DataFrame of pandas or polars. An index that has a name is a column."""
    named = [name for name in getattr(getattr(frame, "index", None), "names", ()) if name is not None]
    _check_names([*named, *frame.columns], len(frame))
    if hasattr(frame, "to_dicts"):
        rows: Sequence[Row] = frame.to_dicts()
    else:
        rows = (frame.reset_index() if named else frame).to_dict("records")
    return rows


def _check_names(names: Sequence[Any], rows: int, path: str = "") -> None:
    """Refuse columns of which a row, a mapping, would lose some."""
    if not names and rows and not path:
        raise RowError(0, "", f"the table has {rows:,} rows and no columns: readers would find nothing in them.")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RowError(0, path, f"two columns are named {twice!r}, and a row keeps one of them. Rename the other.")


def _arrow_slices(rows: Any) -> Iterator[Any] | None:
    """Return the Arrow tables of a `datasets.Dataset`, a Table or a RecordBatch; None for all else. Imports neither."""
    module = type(rows).__module__.partition(".")[0]
    if module == "pyarrow" and hasattr(rows, "to_pylist") and hasattr(rows, "schema"):
        _check_schema(rows.schema, rows.num_rows)
        return (rows.slice(start, _SLICE_ROWS) for start in range(0, rows.num_rows, _SLICE_ROWS))
    if module == "datasets" and isinstance(rows, dict):
        raise RowError(
            0, "", f"a {type(rows).__name__} holds several splits: put one of them, such as put(dataset['train'])."
        )
    if module == "datasets" and hasattr(rows, "with_format") and hasattr(rows, "num_rows"):
        _check_names(rows.column_names, rows.num_rows)
        slices: Iterator[Any] = rows.with_format("arrow").iter(batch_size=_SLICE_ROWS)
        return slices
    if module == "polars" and hasattr(rows, "to_arrow") and hasattr(rows, "to_dicts"):
        with suppress(ImportError):  # else by `to_dicts`, which keeps no nanoseconds
            return _arrow_slices(rows.to_arrow())
    return None


def _check_schema(fields: Any, rows: int, path: str = "") -> None:
    _check_names([field.name for field in fields], rows, path)
    for field_ in fields:
        kind, below = field_.type, f"{path}.{field_.name}" if path else field_.name
        while hasattr(kind, "value_type"):  # a list, or a dictionary
            kind = kind.value_type
        if hasattr(kind, "fields"):  # a struct
            _check_schema(kind.fields, rows, below)


_decoder = msgspec.json.Decoder()
