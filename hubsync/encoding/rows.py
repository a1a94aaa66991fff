"""Rows to JSON Lines: encoded once, at the caller, by msgspec; never again.

Promises one line for each row, each a JSON object with string keys that `datasets` reads, or a `RowError` that names
the row and the field, with nothing kept of the batch. The README's table of values is this module's contract.
What a row means, and where its bytes go, is others' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, dataclass, field
from dataclasses import is_dataclass as _is_dataclass
from datetime import date, time
from typing import Any, ClassVar, Protocol

import msgspec

from hubsync.encoding.transform import Transform, transformed
from hubsync.errors import RowError
from hubsync.schema.profiler import BEYOND_FLOATS, INFINITIES, LEAVES, Fresh, Opaque, RowProfiler
from hubsync.schema.types import Conflict, StructOf, infer, merge_rows


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


class _Model(Protocol):
    """pydantic's."""

    def model_dump(self) -> dict[str, Any]: ...


class _Arrow(Protocol):
    """A `pyarrow.Table` or `RecordBatch`; a `datasets.Dataset` is an iterable of rows to a type checker."""

    @property
    def num_rows(self) -> int: ...

    def to_pylist(self) -> list[dict[str, Any]]: ...


_FLOAT = frozenset({float})
_INFINITE = "{} has no JSON form, and null would hide it. Use None or a string."
_BEYOND_FLOATS = "an int of more than 1,024 bits is an infinity to readers. Use a string."
_NUL = "the key {!r} holds a NUL, where readers cut a column's name off. Take it out."
# What msgspec raises for rows that another thread changes.
_CHANGED = (TypeError, ValueError, RuntimeError, LookupError)
_TOO_DEEP = "the value is nested too deep for readers."
_NO_ROW = "a row is a mapping, a dataclass, a Struct or a pydantic model, not {}."
_SLICE_ROWS = 1_000  # how much of an Arrow table becomes Python objects at a time


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch as it will stand in its shard: `rows` lines, each with its newline.

    Where `looked_by` shapes: `fresh` is what no batch before had, for `Shapes.learn`, and `kind` is what its columns
    hold, told only where anything is fresh; or how it is at odds with itself.
    """

    lines: bytes
    rows: int
    fresh: Fresh = field(default_factory=list)
    kind: StructOf | Conflict | None = None
    looked_by: RowProfiler | None = None


# One row as the caller has it: a mapping, a dataclass instance, a msgspec Struct or a pydantic model.
Row = Mapping[str, Any] | msgspec.Struct | _Dataclass | _Model
# A batch: an iterable of rows, a `datasets.Dataset`, a `pyarrow.Table` or `RecordBatch`; or one encoded before.
Rows = Iterable[Row] | _Arrow | Encoded


def encode(rows: Rows, shapes: RowProfiler | None = None, *, transform: Transform | None = None) -> Encoded:
    """Encodes a batch, or what `transform` makes of its rows. With `shapes`, tells what of it is new to them.

    Raises:
        RowError: a row or a value that has no JSON form; see the README's table.
        TransformError: `transform` raised.
    """
    tables = _arrow_slices(rows)
    if tables is None:
        return _encode_part(_as_list(rows), shapes, transform)
    parts: list[Encoded] = []
    first = 0
    for table in tables:
        parts.append(_encode_part(table.to_pylist(), shapes, transform, first))
        first += table.num_rows
    count = sum(part.rows for part in parts)
    fresh = [item for part in parts for item in part.fresh]
    return Encoded(b"".join(part.lines for part in parts), count, fresh, _kind_of_all(parts), shapes)


def decode_row(line: bytes) -> dict[str, Any]:
    """Return the row that a line of JSON holds.

    Raises:
        ValueError: the line is not a row; the message says why and shows none of it.
    """
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def _kind_of_all(parts: Sequence[Encoded]) -> StructOf | Conflict | None:
    whole: StructOf | None = None
    first_row = 0
    for part in parts:
        if isinstance(part.kind, Conflict):
            return part.kind
        if part.kind is not None:
            try:
                whole = merge_rows(whole, part.kind) if whole is not None else part.kind
            except Conflict as conflict:
                conflict.row = first_row
                return conflict
        first_row += part.rows
    return whole


def look(encoded: Encoded, shapes: RowProfiler) -> Encoded:
    """A batch that was encoded without `shapes`, looked at."""
    rows = _decoder.decode_lines(encoded.lines)
    fresh = shapes.look(rows)
    return Encoded(encoded.lines, encoded.rows, fresh, _kind(rows, 0) if fresh else None, shapes)


def _kind(rows: Sequence[Any], first_row: int) -> StructOf | Conflict:
    try:
        return infer(rows, first_row)
    except Conflict as conflict:
        return conflict


def _encode_part(
    rows: list[Row] | tuple[Row, ...], shapes: RowProfiler | None, transform: Transform | None, first_row: int = 0
) -> Encoded:
    if transform is None:
        return _encode(rows, shapes, first_row)
    kept: list[int] = []
    new_rows: list[Row] = []
    for index, row in enumerate(rows, first_row):
        new = transformed(row, transform, index)
        if new is not None:
            kept.append(index)
            new_rows.append(new)
    try:
        encoded = _encode(new_rows, shapes)
        if isinstance(encoded.kind, Conflict):
            encoded.kind.row = kept[encoded.kind.row or 0]
        return encoded
    except RowError as error:
        # The number that it has in the producer's batch.
        raise type(error)(kept[error.row], error.path, error.reason) from None


def _encode(rows: list[Row] | tuple[Row, ...], shapes: RowProfiler | None, first_row: int = 0) -> Encoded:
    plain: Sequence[Any] = rows
    looker = shapes or RowProfiler()
    try:
        try:
            fresh = looker.look(rows)
        except Opaque:  # what their types do not tell, is told by what JSON will be made of
            plain = msgspec.to_builtins(rows, enc_hook=_hook)
            fresh = looker.look(plain)
        if fresh and plain is not rows:
            _walk(rows, first_row)  # keys that JSON makes strings of
        lines = _encoder.encode_lines(plain)
        kind = _kind(plain, first_row) if fresh and shapes is not None else None
    except RowError:
        raise
    except Exception as error:  # whatever it is, the caller is told which value it was
        if (found := _diagnose(rows, plain, first_row)) is not None:
            raise found from None
        if isinstance(error, _CHANGED):
            raise RowError(first_row, "", "the batch changed while it was being encoded.") from error
        raise  # what a signal's handler has raised, such as a time limit
    return Encoded(lines, len(rows), fresh if shapes is not None else [], kind, shapes)


def _walk(rows: Sequence[Row], first_row: int) -> None:
    for index, row in enumerate(rows):
        if type(row) is not dict:
            _check_kind(row, first_row + index)
        _check(row, first_row + index, "")


def _as_list(rows: Rows) -> list[Row] | tuple[Row, ...]:
    if isinstance(rows, list | tuple):
        return rows
    if isinstance(rows, Mapping | str | bytes | msgspec.Struct) or _is_dataclass(rows) or hasattr(rows, "model_dump"):
        raise RowError(0, "", f"a batch is a list of rows, not one {type(rows).__name__}: write put([row]).")
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):
        raise RowError(0, "", "a DataFrame is no batch: write put(frame.to_dict('records')).")
    if not isinstance(rows, Iterable):
        raise RowError(0, "", f"a batch is a list of rows, not {type(rows).__name__}.")
    return list(rows)


def _arrow_slices(rows: Any) -> Iterator[Any] | None:
    """The Arrow tables of a `datasets.Dataset`, a Table or a RecordBatch; None for all else. Imports neither."""
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


def _hook(value: Any) -> Any:
    """What msgspec does not know by itself: numpy, pydantic, mappings, subclasses of plain types."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump()
    module = type(value).__module__.partition(".")[0]
    if module == "numpy" and hasattr(value, "tolist"):
        if value.dtype.kind == "M":
            return _iso(value)
        if value.dtype.kind == "f" and _any_infinite(value):
            raise ValueError(_INFINITE.format("an infinity"))
        plain = value.tolist()
        if isinstance(plain, type(value)):  # such as an array of Python objects, or a datetime64[ns]
            raise TypeError(f"{type(value).__name__} has no JSON form.")
        return plain
    if module == "pandas" and type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, date | time):  # such as pandas.Timestamp; in the form that a datetime itself has
        text = value.isoformat()
        return f"{text[:-6]}Z" if text.endswith("+00:00") else text
    raise TypeError(f"{type(value).__name__} has no JSON form.")


def _any_infinite(value: Any) -> bool:
    import numpy as np

    return bool(np.isinf(value).any())


def _iso(value: Any) -> Any:
    """numpy's dates as ISO 8601 text; `tolist` would make bare integers of those in nanoseconds."""
    import numpy as np

    return np.datetime_as_string(value).tolist()


_encoder = msgspec.json.Encoder(enc_hook=_hook)
_decoder = msgspec.json.Decoder()


def _check_kind(value: Any, row: int) -> None:
    """Refuses rows that are no mapping in any form: their lines would be no objects."""
    kind = type(value).__name__
    if isinstance(value, msgspec.Struct):
        if value.__struct_config__.array_like:
            raise RowError(row, "", _NO_ROW.format(f"an array_like {kind}"))
    elif not (isinstance(value, Mapping) or _is_dataclass(value) or hasattr(value, "model_dump")):
        raise RowError(row, "", _NO_ROW.format(kind))


def _check(value: Any, row: int, path: str) -> None:
    """Refuses what msgspec would write although readers could not use it.

    Keys that are no strings (`1` and `"1"` would become one column) or have a NUL in them, and infinities (msgspec
    writes null; NaN as null is a missing value, as in pandas), which too long an int is as well. This looks at each
    value: only where `Shapes` can't tell and something is new, or has said that something is wrong.
    """
    kind = type(value)
    if kind is dict or isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) is not str and not isinstance(key, str):
                raise RowError(row, path, f"the key {key!r} is no string: a column's name is. Use str(key).")
            if "\0" in key:
                raise RowError(row, path, _NUL.format(key))
            if not _is_harmless(item):
                _check(item, row, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple | set | frozenset):
        kinds = set(map(type, value))
        if kinds == _FLOAT:  # an embedding
            if not INFINITIES.isdisjoint(value):
                raise RowError(row, path, _INFINITE.format("an infinity"))
        elif not kinds <= _HARMLESS:
            for index, item in enumerate(value):
                if not _is_harmless(item):
                    _check(item, row, f"{path}[{index}]")
    elif kind is msgspec.Raw:  # whose bytes would go as they are, new lines and all
        raise RowError(row, path, "msgspec.Raw is taken unseen, and may be no JSON. Decode it before put.")
    elif kind is float:
        if value in INFINITIES:
            raise RowError(row, path, _INFINITE.format(value))
    elif kind is int:
        if abs(value) >= BEYOND_FLOATS:
            raise RowError(row, path, _BEYOND_FLOATS)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            _check(getattr(value, name), row, f"{path}.{name}" if path else name)
    elif _is_dataclass(value):
        for name in value.__dataclass_fields__:
            _check(getattr(value, name, None), row, f"{path}.{name}" if path else name)


_HARMLESS = LEAVES - {int}


def _is_harmless(value: Any) -> bool:
    kind = type(value)
    return (
        kind in _HARMLESS or (kind is int and abs(value) < BEYOND_FLOATS) or (kind is float and value not in INFINITIES)
    )


# What follows runs only where a batch is refused, to say which value of which row it was.


def _diagnose(rows: Sequence[Row], plain: Sequence[Any], first_row: int) -> RowError | None:
    for index, row in enumerate(rows):
        try:
            _encoder.encode(row)
        except Exception as error:  # noqa: BLE001
            path, reason = _culprit(row, "", error, ())
            return RowError(first_row + index, path, reason)
    try:
        _walk(rows, first_row)
        _walk(plain, first_row)
    except RecursionError:
        return RowError(first_row, "", _TOO_DEEP)
    except RowError as error:
        return error
    return None


def _culprit(value: Any, path: str, error: Exception, above: tuple[int, ...]) -> tuple[str, str]:
    """Descends to the innermost value that can't be encoded; answers its path and what is wrong with it."""
    if id(value) in above:
        return path, "the value contains itself."
    if len(above) > 500:
        return path[:100] + "…", _TOO_DEEP
    for step, child in _children(value):
        try:
            _encoder.encode(child)
        except Exception as inner:  # noqa: BLE001
            deeper = path + step if step.startswith("[") or not path else f"{path}.{step}"
            return _culprit(child, deeper, inner, (*above, id(value)))
    return path, _reason(value, error)


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) and hasattr(value, "model_dump"):
        value = dict(value)
    elif getattr(getattr(value, "dtype", None), "kind", None) == "O":  # numpy's array of Python objects
        value = value.tolist()
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key).encode("utf-8", "backslashreplace").decode(), item
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield name, getattr(value, name)
    elif _is_dataclass(value):
        for name in value.__dataclass_fields__:
            yield name, getattr(value, name, None)


def _reason(value: Any, error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        what = "the text" if isinstance(value, str) else "a key"
        return (
            f"{what} holds a lone surrogate (half of a character), which UTF-8 can't carry and readers refuse. "
            "Use text.encode('utf-8', 'replace').decode()."
        )
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return f"the key {key!r} is no string: a column's name is. Use str(key)."
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, TypeError):
        return f"{type(value).__module__}.{type(value).__qualname__} has no JSON form. Convert it before put."
    return error.reason if isinstance(error, RowError) else str(error)
