"""Encode rows as JSON Lines: once, in the caller's thread.

Every row becomes one line, a JSON object with string keys that `datasets` can read. If one can't, a `RowError` names
the row and the field, and nothing of the batch is kept. The table of values in docs/reference/rows.md is this module's
contract.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field, is_dataclass
from typing import Any, ClassVar, Protocol

import msgspec

from hubsync.encoding.diagnosis import check_rows, diagnose
from hubsync.encoding.transform import Transform, transformed
from hubsync.encoding.values import encoder, to_known
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
# A batch: an iterable of rows, a `datasets.Dataset`, a `pyarrow.Table` or `RecordBatch`; or one encoded before.
Rows = Iterable[Row] | _Arrow | Encoded


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
            plain = msgspec.to_builtins(rows, enc_hook=to_known)
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


def _as_list(rows: Rows) -> Sequence[Row]:
    if isinstance(rows, list | tuple):
        return rows
    if isinstance(rows, Mapping | str | bytes | msgspec.Struct) or is_dataclass(rows) or hasattr(rows, "model_dump"):
        raise RowError(0, "", f"a batch is a list of rows, not one {type(rows).__name__}. Use put([row]).")
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        raise RowError(0, "", "a DataFrame is not a batch. Use put(frame.to_dict('records')).")
    if not isinstance(rows, Iterable):
        raise RowError(0, "", f"a batch is a list of rows, not {type(rows).__name__}.")
    return list(rows)


def _arrow_slices(rows: Any) -> Iterator[Any] | None:
    """Return the Arrow tables of a `datasets.Dataset`, a Table or a RecordBatch; None for all else. Imports neither."""
    module = type(rows).__module__.partition(".")[0]
    if module == "pyarrow" and hasattr(rows, "to_pylist") and hasattr(rows, "schema"):
        return (rows.slice(start, _SLICE_ROWS) for start in range(0, rows.num_rows, _SLICE_ROWS))
    if module == "datasets" and isinstance(rows, Mapping):
        raise RowError(
            0, "", f"a {type(rows).__name__} holds several splits: put one of them, such as put(dataset['train'])."
        )
    if module == "datasets" and hasattr(rows, "with_format") and hasattr(rows, "num_rows"):
        slices: Iterator[Any] = rows.with_format("arrow").iter(batch_size=_SLICE_ROWS)
        return slices
    return None


_decoder = msgspec.json.Decoder()
