"""Rows as a table of declared types: strictly, so that no value changes unless the type says so.

The types are those of `features=`, or those that the config has already. A column without one gets the type that it
would have in JSON, and bytes and images keep theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, time
from typing import Any

import msgspec

from hubsync.encoding import media
from hubsync.encoding.diagnosis import NOT_A_ROW, advice, check_rows, named
from hubsync.encoding.exact import BASE64, Unfit, fit, mapping, refusal
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
_UNIT = re.compile(r"^(timestamp|duration|time)(?:32|64)?\[(?:s|ms|us|ns)")


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
        columns.append(column_of(values, kind, name, first_row, rounds=name in declared.fields))
        fields[name] = kind
    table = pyarrow.table(columns, names=list(names))
    exact = columns_of_table(table).fields
    is_scalar = {name: kind == "int" or feature_name(kind) == BASE64 for name, kind in fields.items()}
    return table, StructOf({name: exact[name] if is_scalar[name] else kind for name, kind in fields.items()})


def column_of(values: Sequence[Any], kind: ColumnType, name: str, first_row: int, *, rounds: bool = False) -> Any:
    """Return values as an Arrow array of this type; floats rounded to it if `rounds`.

    Raises:
        RowError: A value does not fit.
    """
    import pyarrow

    prepared = []
    for index, value in enumerate(values):
        try:
            prepared.append(fit(value, kind, name, rounds=rounds))
        except Unfit as unfit:
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
                raise RowError(first_row + index, name, refusal(value, kind)) from None
        raise


def fitting(values: Sequence[Any], kind: ColumnType, name: str) -> ColumnType | None:
    """Return a column's known type, or a wider one that holds these values exactly; None if neither does."""
    for candidate in (kind, _widest(kind)):
        with suppress(RowError):
            column_of(values, candidate, name, 0)
            return candidate
    return None


def values_of(column: Any, kind: ColumnType) -> list[Any]:
    """Return the values of a table's column: times with all digits, and class labels by their names."""
    is_plain = not _holds(kind, _is_time) and not _holds(kind, _is_label)
    return column.to_pylist() if is_plain else [_value_of(scalar, kind) for scalar in column]


def _value_of(scalar: Any, kind: ColumnType) -> Any:
    """Return a value with times as they are in Arrow, and the names of its class labels.

    Python's times have no nanoseconds, and other columns may number their labels differently.
    """
    if not scalar.is_valid:
        return None
    if isinstance(kind, StructOf):
        return {name: _value_of(scalar[name], field) for name, field in kind.fields.items()}
    if isinstance(kind, ListOf):
        return [_value_of(item, kind.item) for item in scalar.values]
    if _is_time(kind):
        return scalar
    value, names = scalar.as_py(), class_names(kind)
    return names[value] if names is not None and 0 <= value < len(names) else value


def _is_time(kind: ColumnType) -> bool:
    return _UNIT.search(_dtype(kind)) is not None


def _is_label(kind: ColumnType) -> bool:
    return class_names(kind) is not None


def _holds(kind: ColumnType, is_such: Callable[[ColumnType], bool]) -> bool:
    """Return whether a type has a part of a kind."""
    if isinstance(kind, StructOf):
        return any(_holds(field, is_such) for field in kind.fields.values())
    return _holds(kind.item, is_such) if isinstance(kind, ListOf) else is_such(kind)


def may_become(given: ColumnType, known: ColumnType) -> bool:
    """Return whether values of a table's type may become ones of a known type, if they fit: its kind is the same."""
    if _holds(given, _is_label):
        return _without_names(given) == _without_names(known)
    try:
        merge(_coarse(known), _coarse(given))
    except Conflict:
        return False
    return True


def _without_names(kind: ColumnType) -> ColumnType:
    """Return a type in which all class labels are equal."""
    if isinstance(kind, StructOf):
        return StructOf({name: _without_names(field) for name, field in kind.fields.items()})
    if isinstance(kind, ListOf):
        return msgspec.structs.replace(kind, item=_without_names(kind.item))
    return Foreign({"dtype": "class_label"}, []) if class_names(kind) is not None else kind


def _coarse(kind: ColumnType) -> ColumnType:
    """Return a type in which all units of time are equal, and text is nothing but text."""
    if isinstance(kind, StructOf):
        return StructOf({name: _coarse(field) for name, field in kind.fields.items()})
    if isinstance(kind, ListOf):
        return msgspec.structs.replace(kind, item=_coarse(kind.item))
    if kind in ("string", "literal"):
        return Foreign({"dtype": "string"}, [])
    dtype = _UNIT.sub(r"\1[us", _dtype(kind))
    return Foreign({"dtype": dtype}, []) if dtype != _dtype(kind) else kind


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
    if (fields := mapping(row)) is None:
        raise RowError(index, "", NOT_A_ROW.format(named(row)) + advice(row))
    return fields


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
