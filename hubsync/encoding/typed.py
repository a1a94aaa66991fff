"""Rows as a table of declared types: strictly, so that no value changes unless the type says so.

The types are those of `features=`, or those that the config has already. A column without one gets the type that it
would have in JSON, and bytes and images keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from uuid import UUID

import msgspec

from hubsync.encoding import media
from hubsync.encoding.diagnosis import check_rows
from hubsync.encoding.values import BINARY, spell_out_times, to_known
from hubsync.errors import RowError
from hubsync.schema.arrow import (
    arrow_schema,
    arrow_type,
    columns_of_table,
    has_own_type,
    normalized,
    without_json,
)
from hubsync.schema.features import class_names, feature_name
from hubsync.schema.types import (
    DTYPES,
    EMPTY,
    JSON,
    ColumnType,
    Conflict,
    Foreign,
    ListOf,
    StructOf,
    describe,
    infer,
    merge,
)

Features = Mapping[str, Any]
"""What `Uploader(features=…)` takes: a `datasets.Features`, or names with their types."""
BASE64 = "base64"
_FLOAT32_MAX = 3.4028234663852886e38
_FLOAT16_MAX = 65504.0


class _Unfit(Exception):
    """A value does not fit the type of its place."""

    def __init__(self, path: str, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(why)


def table_of_rows(
    rows: Sequence[Any],
    declared: StructOf,
    known: StructOf = EMPTY,
    first_row: int = 0,
    conflicts: list[Conflict] | None = None,
) -> tuple[Any, StructOf]:
    """Return rows as a table with at least the declared columns, and the types of its columns.

    Args:
        rows: The rows.
        declared: Types that values must fit.
        known: Types that a column gets if all its values fit.
        first_row: The index to report for the first row.
        conflicts: Where to add what conflicts in a column, which becomes JSON then; None refuses it.

    Raises:
        RowError: A value does not fit its declared type, or has no type at all.
    """
    import pyarrow

    plain = [_mapping(row, first_row + index) for index, row in enumerate(rows)]
    names = dict.fromkeys([*declared.fields, *(name for row in plain for name in row)])
    fields: dict[str, ColumnType] = {}
    columns = []
    for name in names:
        if not isinstance(name, str) or "\0" in name:
            check_rows(plain, first_row)
        values = [row.get(name) for row in plain]
        kind = declared.fields.get(name)
        if kind is None and name in known.fields:
            kind = fitting(values, known.fields[name], name)
        if kind is None:
            plain_values, kind = _inferred(values, name, first_row, conflicts)
            if (wider := _widened(values, kind, known.fields.get(name), name)) is not None:
                kind = wider
            else:
                values, kind = plain_values, unfitting(kind, known.fields.get(name))
        columns.append(column_of(values, kind, name, first_row))
        fields[name] = kind
    table = pyarrow.table(columns, names=list(names))
    exact = columns_of_table(table).fields
    is_scalar = {name: kind == "int" or feature_name(kind) == BASE64 for name, kind in fields.items()}
    return table, StructOf({name: exact[name] if is_scalar[name] else kind for name, kind in fields.items()})


def column_of(values: Sequence[Any], kind: ColumnType, name: str, first_row: int) -> Any:
    """Return values as an Arrow array of this type.

    Raises:
        RowError: A value does not fit.
    """
    import pyarrow

    prepared = []
    for index, value in enumerate(values):
        try:
            prepared.append(_fit(value, kind, name))
        except _Unfit as unfit:
            raise RowError(first_row + index, unfit.path, unfit.why) from None
        except media.NotMedia as error:
            raise RowError(first_row + index, name, str(error)) from error
    final = pyarrow.string() if feature_name(kind) == BASE64 else arrow_type(kind)
    stored = without_json(final)  # pyarrow makes no JSON from Python values inside a list or a struct
    try:
        made = pyarrow.array(prepared, stored)
        return made if stored == final else made.cast(final)
    except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
        for index, value in enumerate(prepared):
            try:
                pyarrow.array([value], stored)
            except (pyarrow.ArrowException, TypeError, ValueError, OverflowError):
                raise RowError(first_row + index, name, _why(value, kind)) from None
        raise


def fitting(values: Sequence[Any], kind: ColumnType, name: str) -> ColumnType | None:
    """Return a column's known type, or a wider one that holds these values exactly; None if neither does."""
    for candidate in (kind, _widest(kind)):
        try:
            array = column_of(values, candidate, name, 0)
        except RowError:
            continue
        if not _rounds(candidate) or array.to_pylist() == [_fit(value, candidate, name) for value in values]:
            return candidate
    return None


def unfitting(kind: ColumnType, known: ColumnType | None) -> ColumnType:
    """Return the type of a column that does not fit its known type, so that no merge takes its values for those."""
    if isinstance(kind, StructOf) and isinstance(known, StructOf):
        return StructOf({name: unfitting(field, known.fields.get(name)) for name, field in kind.fields.items()})
    if isinstance(kind, ListOf) and isinstance(known, ListOf):
        return msgspec.structs.replace(kind, item=unfitting(kind.item, known.item))
    is_number = _dtype(known).startswith(("int", "uint", "float", "json")) if known is not None else True
    return _strict(kind) if isinstance(known, Foreign) and known.takes != [] and not is_number else kind


def _strict(kind: ColumnType) -> ColumnType:
    """Return a type as one that no other type takes."""
    if isinstance(kind, StructOf):
        return StructOf({name: _strict(field) for name, field in kind.fields.items()})
    if isinstance(kind, ListOf):
        return msgspec.structs.replace(kind, item=_strict(kind.item))
    return Foreign({"dtype": DTYPES[kind]}, []) if isinstance(kind, str) and kind != "null" else kind


def _widened(values: Sequence[Any], given: ColumnType, known: ColumnType | None, name: str) -> ColumnType | None:
    """Return the known type with the fields that only the given one has, if the values fit it."""
    if known is None or given is JSON:
        return None
    try:
        wider = merge(known, given)
    except Conflict:
        return None
    return None if wider is known else fitting(values, wider, name)


def _rounds(kind: ColumnType) -> bool:
    """Return whether a type has a part that rounds floats."""
    if isinstance(kind, StructOf):
        return any(map(_rounds, kind.fields.values()))
    return _rounds(kind.item) if isinstance(kind, ListOf) else _dtype(kind) in ("float16", "float32")


def _widest(kind: ColumnType) -> ColumnType:
    """Return a type with the widest numbers. They differ from JSON's, so that a merge keeps them."""
    if isinstance(kind, StructOf):
        return StructOf({name: _widest(field) for name, field in kind.fields.items()})
    if isinstance(kind, ListOf):
        return ListOf(_widest(kind.item), kind.length, kind.is_large)
    dtype = _dtype(kind)
    if dtype in ("float16", "float32"):
        return Foreign({"dtype": "float64"}, [])
    return Foreign({"dtype": "int64"}, []) if dtype.startswith(("int", "uint")) else kind


def _dtype(kind: ColumnType) -> str:
    return str(kind.entry.get("dtype")) if isinstance(kind, Foreign) else ""


def _mapping(row: Any, index: int) -> Mapping[str, Any]:
    if isinstance(row, Mapping):
        return row
    if isinstance(row, msgspec.Struct) and not row.__struct_config__.array_like:
        return {name: getattr(row, name) for name in row.__struct_fields__}
    if hasattr(row, "__dataclass_fields__"):
        return {name: getattr(row, name) for name in row.__dataclass_fields__}
    if hasattr(row, "model_dump"):
        dumped: dict[str, Any] = row.model_dump()
        return dumped
    kind = type(row).__name__
    raise RowError(index, "", f"a row is a mapping, a dataclass, a Struct or a pydantic model, not {kind}.")


# Declared types.


def _why(value: Any, kind: ColumnType) -> str:
    return f"{type(value).__name__} does not fit the column's type, {describe(kind)}, without a change of the value."


def _fit(value: Any, kind: ColumnType, path: str) -> Any:
    """Return a value as pyarrow takes it for a type."""
    if value is None or type(value).__name__ in ("NaTType", "NAType"):
        return None
    if isinstance(kind, StructOf):
        return _fit_struct(value, kind, path)
    if isinstance(kind, ListOf):
        return _fit_list(value, kind, path)
    if isinstance(kind, Foreign) and (feature := feature_name(kind)) is not None:
        return _fit_feature(value, kind, feature, path)
    dtype = kind if isinstance(kind, str) else str(kind.entry.get("dtype"))
    found = _converter(dtype)(value, dtype)
    if found is None:
        raise _Unfit(path, _why(value, kind))
    return found


def _fit_struct(value: Any, kind: StructOf, path: str) -> dict[str, Any]:
    try:
        fields = _mapping(value, 0)
    except RowError:
        raise _Unfit(path, _why(value, kind)) from None
    if extra := fields.keys() - kind.fields.keys():
        raise _Unfit(f"{path}.{min(map(str, extra))}", f"the column's type, {describe(kind)}, has no such field.")
    return {name: _fit(fields.get(name), field, f"{path}.{name}") for name, field in kind.fields.items()}


def _fit_list(value: Any, kind: ListOf, path: str) -> list[Any]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str | Mapping | bytes) or not hasattr(value, "__iter__"):
        raise _Unfit(path, _why(value, kind))
    items = [_fit(item, kind.item, f"{path}[]") for item in value]
    if kind.length not in (-1, len(items)):
        raise _Unfit(path, f"it has {len(items)} elements, and the column's lists have {kind.length}.")
    return items


def _fit_feature(value: Any, kind: Foreign, feature: str, path: str) -> Any:
    if feature in media.FEATURES:
        return media.stored(value, feature)
    if feature == "json":
        return msgspec.json.encode(value, enc_hook=to_known).decode()
    if feature == BASE64:
        if not isinstance(value, BINARY):
            raise _Unfit(path, _why(value, kind))
        return msgspec.to_builtins(bytes(value))
    if (names := class_names(kind)) is not None:
        return _label(value, names, path)
    if feature.startswith("array"):
        options = next(iter(kind.entry["dtype"].values()))
        return _grid(value, list(options["shape"]), Foreign({"dtype": options["dtype"]}, []), path)
    return value


def _label(value: Any, names: Sequence[str], path: str) -> int:
    if isinstance(value, str):
        if value in names:
            return names.index(value)
        raise _Unfit(path, f"the class label has {len(names)} names, and this is none of them.")
    number = _to_int(value, "int64")
    if number is None or not -1 <= number < len(names):
        raise _Unfit(path, f"a class label with {len(names)} names is a name or an int from 0 to {len(names) - 1}.")
    return number


def _grid(value: Any, shape: list[int | None], kind: Foreign, path: str) -> Any:
    if not shape:
        return _fit(value, kind, path)
    items = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(items, list | tuple):
        raise _Unfit(path, f"a {type(value).__name__} is no array.")
    if shape[0] is not None and len(items) != shape[0]:
        raise _Unfit(path, f"a dimension has {len(items)} elements, and the column's shape has {shape[0]}.")
    return [_grid(item, shape[1:], kind, path) for item in items]


def _converter(dtype: str) -> Callable[[Any, str], Any]:
    """Return the function that converts a value to a scalar type; it returns None for one that does not fit."""
    for prefix, convert in _CONVERTERS:
        if dtype.startswith(prefix):
            return convert
    return lambda value, dtype: value


def _scalar(value: Any) -> Any:
    """Return the Python value of a scalar of numpy, torch or pyarrow."""
    if hasattr(value, "as_py"):
        return value.as_py()
    is_python = isinstance(value, bool | int | float | str | date | time | timedelta | Decimal)
    return value if is_python or not hasattr(value, "item") else value.item()


def _to_bool(value: Any, dtype: str) -> bool | None:
    value = _scalar(value)
    return value if isinstance(value, bool) else None


def _to_int(value: Any, dtype: str) -> int | None:
    value = _scalar(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, int) else None


def _to_float(value: Any, dtype: str) -> float | int | None:
    value = _scalar(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    most = {"float16": _FLOAT16_MAX, "float32": _FLOAT32_MAX}.get(dtype)
    return None if most is not None and most < abs(value) < float("inf") else value


def _to_text(value: Any, dtype: str) -> str | None:
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, date | time | timedelta | UUID | Decimal):
        plain = spell_out_times(msgspec.to_builtins(value, enc_hook=to_known, builtin_types=(datetime, time)))
        return plain if isinstance(plain, str) else None
    return None


def _to_binary(value: Any, dtype: str) -> bytes | None:
    return bytes(value) if isinstance(value, BINARY) else None


def _to_decimal(value: Any, dtype: str) -> Decimal | None:
    value = _scalar(value)
    try:
        return Decimal(value) if isinstance(value, Decimal | int | str) and not isinstance(value, bool) else None
    except InvalidOperation:
        return None  # it is text that is no number


def _to_temporal(value: Any, dtype: str) -> Any:
    """Return a time in the unit of a type, exactly; None if it does not fit."""
    import pyarrow

    stored = arrow_type(Foreign({"dtype": dtype}, []))
    if hasattr(value, "dtype") and getattr(value.dtype, "kind", "") in "mM":
        value = pyarrow.scalar(value)
    elif isinstance(value, str):
        value = pyarrow.scalar(value)
        if not pyarrow.types.is_timestamp(stored) and not pyarrow.types.is_date(stored):
            return None
    elif isinstance(value, datetime | date | time | timedelta):
        if pyarrow.types.is_date(stored) and isinstance(value, datetime) and (value.tzinfo or value.time() != time()):
            return None  # its time would be lost
        value = pyarrow.scalar(value)
    else:
        return None
    if pyarrow.types.is_timestamp(stored) and pyarrow.types.is_timestamp(value.type):
        if value.type.tz is not None and stored.tz is None:
            return None  # its zone would be lost
        if value.type.tz is None and stored.tz is not None:
            value = value.cast(pyarrow.timestamp(value.type.unit, "UTC"))
    try:
        return value.cast(stored)
    except pyarrow.ArrowException:
        return None


_CONVERTERS: tuple[tuple[str, Callable[[Any, str], Any]], ...] = (
    ("bool", _to_bool), ("int", _to_int), ("uint", _to_int), ("wide", _to_int), ("float", _to_float),
    ("string", _to_text), ("large_string", _to_text), ("binary", _to_binary), ("large_binary", _to_binary),
    ("decimal", _to_decimal), ("timestamp", _to_temporal), ("date", _to_temporal), ("time", _to_temporal),
    ("duration", _to_temporal),
)  # fmt: skip


# Columns without a declared type.


def _inferred(
    values: Sequence[Any], name: str, first_row: int, conflicts: list[Conflict] | None
) -> tuple[list[Any], ColumnType]:
    """Return the values of a column as plain ones, and their type: what JSON has, bytes, and media."""
    features: dict[str, str] = {}
    raw = [_without_media(value, name, features, first_row + index) for index, value in enumerate(values)]
    try:
        plain = msgspec.to_builtins(raw, enc_hook=to_known, builtin_types=(*BINARY, datetime, time))
        plain = spell_out_times(plain)
        rows = [{name: value} for value in plain]
        check_rows(rows, first_row)
        kind = infer(rows, first_row).fields.get(name, "null")
    except Conflict as conflict:
        if conflicts is not None and not features and not any(map(has_own_type, (conflict.known, conflict.given))):
            conflicts.append(conflict)
            return _without_nan(plain), JSON
        why = f"{conflict.reason}. Make them one type, or declare one with features=."
        raise RowError(conflict.row or first_row, conflict.path, why) from None
    except (TypeError, ValueError) as error:
        if isinstance(error, RowError):
            raise
        raise RowError(first_row, name, f"the column holds a value that has no type ({error}).") from None
    return _without_nan(plain), _with_features(kind, name, features)


def _without_media(value: Any, path: str, features: dict[str, str], row: int) -> Any:
    if isinstance(value, dict):
        return {key: _without_media(item, f"{path}.{key}", features, row) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_media(item, f"{path}[]", features, row) for item in value]
    if (feature := media.feature_of(value)) is None:
        return value
    features[path] = feature
    try:
        return media.stored(value, feature)
    except media.NotMedia as error:
        raise RowError(row, path, str(error)) from error


def _with_features(kind: ColumnType, path: str, features: Mapping[str, str]) -> ColumnType:
    if path in features:
        return Foreign({"dtype": features[path]}, None)
    if isinstance(kind, StructOf):
        return StructOf(
            {name: _with_features(field, f"{path}.{name}", features) for name, field in kind.fields.items()}
        )
    return ListOf(_with_features(kind.item, f"{path}[]", features)) if isinstance(kind, ListOf) else kind


def _without_nan(value: Any) -> Any:
    """Return plain values with null for NaN, as in JSON."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value


# What a caller declares.


def declared_types(features: object) -> StructOf:
    """Return the types that a caller declares, as `Uploader(features=…)` takes them.

    Raises:
        ValueError: One of them is no type.
    """
    if features is None:
        return EMPTY
    from hubsync.schema.features import from_features

    if hasattr(features, "_to_yaml_list"):
        return _checked(from_features(features._to_yaml_list()))
    if hasattr(features, "empty_table"):
        return _checked(columns_of_table(features.empty_table()))
    if not isinstance(features, Mapping):
        raise ValueError(f"it is a {type(features).__name__}, not a `datasets.Features` or a mapping of names to types")
    return _checked(StructOf({str(name): _declared(kind) for name, kind in features.items()}))


def _declared(kind: Any) -> ColumnType:
    from hubsync.schema.features import from_features

    if isinstance(kind, str):
        return from_features([{"name": "x", "dtype": kind}]).fields["x"]
    if isinstance(kind, Mapping):
        return StructOf({str(name): _declared(field) for name, field in kind.items()})
    if isinstance(kind, list) and len(kind) == 1:
        return ListOf(_declared(kind[0]))
    module = type(kind).__module__.partition(".")[0]
    if module == "pyarrow":
        import pyarrow

        return columns_of_table(pyarrow.schema([("x", kind)]).empty_table()).fields["x"]
    if module == "datasets":
        import datasets

        return from_features(datasets.Features({"x": kind})._to_yaml_list()).fields["x"]
    raise ValueError(f"a type is a name such as 'int32' or 'image', or a feature of datasets, not {kind!r}")


def _checked(columns: StructOf) -> StructOf:
    for name, kind in columns.fields.items():
        if feature_name(kind) != BASE64 and arrow_type(kind) is None:
            raise ValueError(f"{name!r} has the type {describe(kind)}, which hubsync does not know")
    stored = StructOf({name: kind for name, kind in columns.fields.items() if feature_name(kind) != BASE64})
    normalized(without_json(arrow_schema(stored)).empty_table())  # raises an `UnsupportedType`, which is a `ValueError`
    return columns
