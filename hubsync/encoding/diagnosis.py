"""Find the value for which a batch is refused, and say what is wrong with it.

This looks at each value in Python. It runs only if a batch is refused, or holds something that the profiler does not
know yet and can't judge.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from types import ModuleType
from typing import Any

import msgspec

from hubsync.encoding.media import feature_of
from hubsync.encoding.values import BINARY, INFINITE, encoder
from hubsync.errors import RowError
from hubsync.schema.profiler import INFINITIES, LEAVES
from hubsync.schema.types import INT64

_TOO_LARGE = "the int does not fit int64, and readers would make it a float. Use a string."
_NOT_TEXT = "the key {!r} is not a string, but column names are. Use str(key)."
_HIDDEN = "msgspec leaves out the private field {!r} of an attrs class. Use attrs.asdict(value)."
_NUL = "the key {!r} contains a NUL, where readers cut off a column's name. Remove it."
_RAW = "msgspec.Raw is written unchecked and may not be JSON. Decode it before put."
_TOO_DEEP = "the value is nested too deep for readers."
_RECURSION = "the value is nested {} deep, more than Python's recursion limit of {} allows here. Use json.dumps(value)."
_BINARY = "{} can't be in JSON Lines. Use format='parquet', or declare text: features={{'name': 'base64'}}."
NOT_A_ROW = "a row is a mapping, a dataclass, a Struct or a pydantic model, not {}."
_SURROGATE = (
    "{} holds a lone surrogate (half of a character), which UTF-8 can't encode and readers refuse. "
    "Use text.encode('utf-8', 'replace').decode()."
)
_HARMLESS = LEAVES - {int}
_BUILTIN = frozenset({dict, list, tuple, set, frozenset, float})
_MAX_DEPTH = 500


def named(value: object) -> str:
    """Return what to call a value that is no row, or no batch."""
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def advice(value: Any) -> str:
    """Return what to put instead of a value that is no row and no batch, after a space; empty if there is no advice."""
    if isinstance(value, str | bytes | bytearray):
        return " If it is JSON, use json.loads(text); if it is a value, name its column: {'text': text}."
    if isinstance(value, type):
        return " Use an instance of it."
    if inspect.iscoroutine(value):
        return " Await it first."
    if callable(value):
        return " Call it, and put its result."
    if isinstance(value, os.PathLike):
        return " Read its rows first, such as map(json.loads, open(path))."
    if hasattr(value, "_asdict"):
        return " Use row._asdict()."
    if isinstance(value, tuple) and any(hasattr(item, "to_frame") for item in value):  # of DataFrame.iterrows
        return " Put the DataFrame."
    return _advice_for_data(value)


def _advice_for_data(value: Any) -> str:
    if hasattr(value, "to_frame"):
        row = ", or if it is one row, series.to_dict()" if hasattr(value, "to_dict") else ""
        return f" It is one column: use series.to_frame(){row}."
    if hasattr(value, "to_pylist") and not hasattr(value, "num_columns"):
        return " It is one column: use pyarrow.table({'name': array})."
    if hasattr(value, "columns") or hasattr(value, "column_names"):
        return " Put each table in a call of its own."
    if getattr(getattr(value, "dtype", None), "names", None):
        return " Use pandas.DataFrame(array)."
    if isinstance(value, list | tuple | int | float) or hasattr(value, "dtype"):
        return " Name its values, as in {'name': value}."
    return _advice_for_object(value)


def _advice_for_object(value: Any) -> str:
    if hasattr(value, "keys"):  # such as a row of sqlite3
        return " Use dict(row)."
    if hasattr(value, "__getitem__") and hasattr(value, "__len__"):  # such as a dataset of torch
        return " Use (data[n] for n in range(len(data)))."
    return " Use vars(row), or another mapping." if hasattr(value, "__dict__") else ""


def _as_value(value: Any) -> str:
    """Return how to make a value of an object that JSON does not have."""
    if hasattr(value, "columns"):
        rows = "to_dicts()" if hasattr(value, "to_dicts") else "to_dict('records')"
        rows = "to_pylist()" if hasattr(value, "to_pylist") else rows
        return f"a DataFrame is not a value. Use frame.{rows}, a list of its rows."
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if (dense := next((name for name in ("to_dense", "toarray") if hasattr(value, name)), None)) is not None:
        return f"{name} is sparse. Use value.{dense}()."
    if callable(value) and not isinstance(value, type):
        return f"{name} has no JSON form. Call it, and use its result."
    if isinstance(value, Iterable) and not isinstance(value, os.PathLike):
        return f"{name} has no JSON form. Use list(value)."
    return (
        f"{name} has no JSON form. Convert it before put, such as by {'vars' if _is_record(value) else 'str'}(value)."
    )


def _is_record(value: Any) -> bool:
    return bool(getattr(value, "__dict__", None)) and not isinstance(value, BaseException | type | ModuleType)


def check_rows(rows: Sequence[Any], first_row: int) -> None:
    """Refuse what msgspec would write although readers can't use it.

    That is: rows whose lines would not be objects; keys that are not strings (`1` and `"1"` would become one column) or
    contain a NUL; infinities; ints that a reader makes a float. NaN is a missing value, as in pandas.

    Raises:
        RowError: A value is refused; the batch's first row has the index `first_row`.
        RecursionError: A value is nested too deep.
    """
    for index, row in enumerate(rows):
        if type(row) is not dict:
            _check_is_row(row, first_row + index)
        _check(row, first_row + index, "")


def find_binary(rows: Sequence[Any]) -> RowError | None:
    """Return the error of the first value that only Parquet can hold, bytes or media; None without one."""
    try:
        for index, row in enumerate(rows):
            if (found := _binary_in(row, "")) is not None:
                path, value = found
                kind = (
                    "bytes" if isinstance(value, BINARY) else f"a {type(value).__module__}.{type(value).__qualname__}"
                )
                return RowError(index, path, _BINARY.format(kind))
    except RecursionError:
        return None
    return None


def _binary_in(value: Any, path: str) -> tuple[str, Any] | None:
    if isinstance(value, BINARY) or feature_of(value) is not None:
        return path, value
    found = (_binary_in(item, _join(path, step)) for step, item in _children(value) if type(item) not in _HARMLESS)
    return next((one for one in found if one is not None), None)


def diagnose(rows: Sequence[Any], plain: Sequence[Any], first_row: int) -> RowError | None:
    """Return the error of the first value that can't be encoded; None if all can be.

    `plain` are the rows as plain values, as far as they could be converted.
    """
    for index, row in enumerate(rows):
        try:
            encoder.encode(row)
        except Exception as error:  # noqa: BLE001
            try:
                _check_is_row(row, first_row + index)
            except RowError as found:
                return found
            path, reason = _innermost(row, "", error, ())
            return RowError(first_row + index, path, reason)
    try:
        check_rows(rows, first_row)
        check_rows(plain, first_row)
    except RecursionError:
        return RowError(first_row, "", _TOO_DEEP)
    except RowError as error:
        return error
    return None


def too_deep(rows: Sequence[Any]) -> RowError:
    """Return the error of the value that is nested deepest, for which Python's stack had no room."""
    deepest, at, path = 0, 0, ""
    for index, row in enumerate(rows):
        for step, column in _children(row):
            level, depth = [column], -1
            while level:
                level, depth = [below for item in level for _, below in _children(item)], depth + 1
            if depth > deepest:
                deepest, at, path = depth, index, _join("", step)
    return RowError(at, path, _RECURSION.format(deepest, sys.getrecursionlimit()))


def is_row(value: Any) -> bool:
    """Return whether a value has named fields: a mapping, a dataclass, an attrs class, a Struct or a pydantic model."""
    is_model = hasattr(value, "model_dump") or hasattr(value, "__attrs_attrs__")
    return isinstance(value, Mapping | msgspec.Struct) or is_dataclass(value) or is_model


def _check_is_row(value: Any, row: int) -> None:
    if isinstance(value, msgspec.Struct) and value.__struct_config__.array_like:
        raise RowError(row, "", NOT_A_ROW.format(f"an array_like {named(value)}"))
    if isinstance(value, type) or not is_row(value):
        raise RowError(row, "", NOT_A_ROW.format(named(value)) + advice(value))


def _check(value: Any, row: int, path: str) -> None:
    if type(value) is msgspec.Raw:
        raise RowError(row, path, _RAW)
    if type(value) is float and value in INFINITIES:
        raise RowError(row, path, INFINITE.format(value))
    if type(value) is int and not -INT64 <= value < INT64:
        raise RowError(row, path, _TOO_LARGE)
    for key in value if isinstance(value, Mapping) else ():
        if not isinstance(key, str):
            raise RowError(row, path, _NOT_TEXT.format(key))
        if "\0" in key:
            raise RowError(row, path, _NUL.format(key))
    hidden = [] if type(value) in _BUILTIN else [name for name in attrs_fields(value) if name.startswith("_")]
    if hidden:
        raise RowError(row, path, _HIDDEN.format(hidden[0]))
    if isinstance(value, list | tuple | set | frozenset) and set(map(type, value)) == {float}:  # an embedding
        if not INFINITIES.isdisjoint(value):
            raise RowError(row, path, INFINITE.format("an infinity"))
        return
    for step, item in _children(value):
        if type(item) not in _HARMLESS:
            _check(item, row, _join(path, step))


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a value contains, each with its step in the path: `.name` or `[0]`."""
    if isinstance(value, type):
        return
    if not isinstance(value, Mapping) and hasattr(value, "model_dump"):
        value = dict(value)
    elif getattr(getattr(value, "dtype", None), "kind", None) == "O":  # numpy's array of Python objects
        value = value.tolist()
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield "." + str(key).encode("utf-8", "backslashreplace").decode(), item
    elif isinstance(value, list | tuple | set | frozenset):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield f".{name}", getattr(value, name)
    elif is_dataclass(value) or hasattr(value, "__attrs_attrs__"):
        for name in field_names(value):
            yield f".{name}", getattr(value, name, None)


def field_names(value: Any) -> list[str]:
    """Return the fields of a dataclass, or of an attrs class."""
    return attrs_fields(value) or list(getattr(value, "__dataclass_fields__", ()))


def attrs_fields(value: Any) -> list[str]:
    """Return the fields of an attrs class; empty for any other value."""
    return [field.name for field in getattr(value, "__attrs_attrs__", ())]


def _join(path: str, step: str) -> str:
    return path + step if path else step.removeprefix(".")


def _innermost(value: Any, path: str, error: Exception, above: tuple[int, ...]) -> tuple[str, str]:
    """Return the path of the innermost value that can't be encoded, and what is wrong with it."""
    if id(value) in above:
        return path, "the value contains itself."
    if len(above) > _MAX_DEPTH:
        return path[:100] + "…", _TOO_DEEP
    for step, child in _children(value):
        try:
            encoder.encode(child)
        except Exception as inner:  # noqa: BLE001
            return _innermost(child, _join(path, step), inner, (*above, id(value)))
    return path, _reason(value, error)


def _reason(value: Any, error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return _SURROGATE.format("the text" if isinstance(value, str) else "a key")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                return _NOT_TEXT.format(key)
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    if isinstance(error, TypeError) or hasattr(value, "to_dense"):
        return _as_value(value)
    return error.reason if isinstance(error, RowError) else str(error)
