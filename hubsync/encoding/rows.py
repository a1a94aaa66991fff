"""Encode rows as JSON Lines: once, in the caller's thread.

Every row becomes one line, a JSON object with string keys that `datasets` can read. If one can't, a `RowError` names
the row and the field, and nothing of the batch is kept. The table of values in docs/reference/rows.md is this module's
contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field
from datetime import datetime, time
from typing import Any, ClassVar, Protocol

import msgspec

from hubsync.encoding.diagnosis import advice, check_rows, diagnose, find_binary, is_row, named, too_deep
from hubsync.encoding.encoded import Encoded as Encoded
from hubsync.encoding.encoded import decode_rows
from hubsync.encoding.tables import (
    PLAIN,
    Types,
    check_names,
    encode_tables,
    encode_typed_rows,
    rows_of_tables,
    tables_of,
    typed,
)
from hubsync.encoding.transform import Transform, transformed
from hubsync.encoding.values import BINARY, encoder, spell_out_times, to_known
from hubsync.errors import RowError
from hubsync.schema.json_text import escaped
from hubsync.schema.profiler import OpaqueType, RowProfiler
from hubsync.schema.types import Conflict, StructOf, infer


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class _Model(Protocol):
    """A pydantic model."""

    def model_dump(self) -> dict[str, Any]: ...


class _Attrs(Protocol):
    """An instance of an attrs class."""

    __attrs_attrs__: ClassVar[Any]


class _Arrow(Protocol):
    """A `pyarrow.Table` or `RecordBatch`; to a type checker, a `datasets.Dataset` is an iterable of rows."""

    @property
    def num_rows(self) -> int: ...

    def to_pylist(self) -> list[dict[str, Any]]: ...


class _ArrowStream(Protocol):
    """A table of any library, such as polars."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


# msgspec raises these if another thread changes the rows.
_CHANGED = (TypeError, ValueError, RuntimeError, LookupError)


# One row as the caller has it: a mapping, a dataclass, an attrs class, a msgspec Struct or a pydantic model.
Row = Mapping[str, Any] | msgspec.Struct | _Dataclass | _Attrs | _Model
# A batch: one row, an iterable of rows, a DataFrame, a `datasets.Dataset`, any Arrow table; or one encoded before.
Rows = Row | Iterable[Row] | _Arrow | _ArrowStream | Encoded


def encode(
    rows: Rows, profiler: RowProfiler | None = None, *, transform: Transform | None = None, types: Types = PLAIN
) -> Encoded:
    """Encode a batch.

    Args:
        rows: The batch.
        profiler: Knows the earlier batches; the result lists its discoveries.
        transform: Called with each row; returns the row to encode instead, or None to leave it out.
        types: What is known of the columns, and whether a table may stay Arrow data.

    Raises:
        RowError: A row or a value has no JSON form; see docs/reference/rows.md.
        TransformError: `transform` raised.
    """
    tables = tables_of(rows)
    if tables is None:
        return _transform_and_encode(_as_list(rows), profiler, transform, types)
    if transform is None:
        return encode_tables(tables, profiler, types)
    plain, columns = rows_of_tables(tables)
    known = StructOf({**types.known.fields, **columns.fields})
    return _transform_and_encode(plain, profiler, transform, types._replace(known=known))


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
    """Let `profiler` look at a batch that was encoded without it, or before it knew what is JSON."""
    if encoded.is_typed:
        return typed(encoded, profiler)
    places = profiler.places
    encoded = encoded.with_escaped(profiler.escaped)
    rows = decode_rows(encoded.lines)
    discoveries = profiler.profile(rows)
    columns = _columns(rows, 0, places) if discoveries else None
    return msgspec.structs.replace(encoded, discoveries=discoveries, columns=columns, profiler=profiler, places=places)


def _transform_and_encode(
    rows: Sequence[Row], profiler: RowProfiler | None, transform: Transform | None, types: Types
) -> Encoded:
    if transform is None:
        return _encode(rows, profiler, types)
    kept: list[int] = []  # the index in the caller's batch of each row
    new_rows: list[Row] = []
    for index, row in enumerate(rows):
        new = transformed(row, transform, index)
        if new is not None:
            kept.append(index)
            new_rows.append(new)
    try:
        encoded = _encode(new_rows, profiler, types)
        if isinstance(encoded.columns, Conflict):
            encoded.columns.row = kept[encoded.columns.row or 0]
        return encoded
    except RowError as error:
        raise type(error)(kept[error.row], error.path, error.reason) from None


def _encode(rows: Sequence[Row], profiler: RowProfiler | None, types: Types) -> Encoded:
    if types.declared.fields or types.known.fields:
        return encode_typed_rows(rows, profiler, types)
    plain: Sequence[Any] = rows
    used = profiler or RowProfiler()
    places, names = used.places, used.escaped
    try:
        try:
            discoveries = used.profile(rows)
        except OpaqueType:  # the types do not determine the JSON, so profile what will be encoded
            plain = msgspec.to_builtins(rows, enc_hook=to_known, builtin_types=(datetime, time, *BINARY))
            try:
                discoveries = used.profile(plain)
            except OpaqueType:
                plain = spell_out_times(plain)
                discoveries = used.profile(plain)
        if discoveries and plain is not rows:
            check_rows(rows, 0)  # for keys, which JSON turns into strings
        lines = encoder.encode_lines(escaped(plain, names) if names else plain)
        columns = _columns(plain, 0, places) if discoveries and profiler is not None else None
    except RowError:
        raise
    except Exception as error:  # whatever it is, the caller learns which value caused it
        if (binary := find_binary(rows) or find_binary(plain)) is not None:
            if types.native:
                return encode_typed_rows(rows, profiler, types)
            raise binary from None
        if (found := diagnose(rows, plain, 0)) is not None:
            raise found from None
        if isinstance(error, RecursionError):
            raise too_deep(plain) from None
        if isinstance(error, _CHANGED):
            raise RowError(0, "", "the batch changed while it was being encoded.") from error
        raise  # from a signal handler, such as a time limit
    discoveries = discoveries if profiler is not None else []
    return Encoded(lines, len(rows), discoveries, columns, profiler, places=places, escaped=names)


def _columns(rows: Sequence[Any], first_row: int, places: StructOf) -> StructOf | Conflict:
    try:
        return infer(rows, first_row, places)
    except Conflict as conflict:
        return conflict


def _as_list(rows: Any) -> Sequence[Row]:
    kind = type(rows)
    if isinstance(rows, list | tuple) and not hasattr(rows, "_asdict"):
        return rows
    if kind.__name__ == "LazyBatch":  # what `Dataset.map(batched=True)` passes: columns
        return _zip_columns(dict(rows))
    if is_row(rows):
        if not isinstance(rows, type):
            return [rows]
    elif hasattr(rows, "collect") and hasattr(rows, "collect_schema"):
        raise RowError(0, "", "a LazyFrame has no rows yet. Use put(frame.collect()).")
    elif hasattr(rows, "columns") and hasattr(rows, "to_dict"):
        return _rows_of_frame(rows)
    elif hasattr(rows, "__aiter__"):
        raise RowError(0, "", "put can't wait for an async iterator. Use put([row async for row in rows]).")
    elif isinstance(rows, Iterable) and not _is_array(rows) and not isinstance(rows, str | bytes | bytearray | tuple):
        return list(rows)
    raise RowError(0, "", f"a batch is a row or a list of rows, not {named(rows)}.{advice(rows)}")


def _is_array(rows: Any) -> bool:
    """Return whether this is an array or a tensor of values; one of Python objects may hold rows."""
    return hasattr(rows, "dtype") and getattr(rows.dtype, "kind", "") != "O"


def _zip_columns(columns: dict[str, Any]) -> Sequence[Row]:
    if len(set(map(len, columns.values()))) > 1:
        raise RowError(0, "", "the columns of a LazyBatch must have the same length.")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _rows_of_frame(frame: Any) -> Sequence[Row]:
    """Return the rows of a DataFrame of pandas or polars. An index that has a name is a column."""
    named = [name for name in getattr(getattr(frame, "index", None), "names", ()) if name is not None]
    check_names([*named, *frame.columns], len(frame))
    if hasattr(frame, "to_dicts"):
        rows: Sequence[Row] = frame.to_dicts()
    else:
        rows = (frame.reset_index() if named else frame).to_dict("records")
    return rows
