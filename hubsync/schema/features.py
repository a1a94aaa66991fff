"""Column types as a dataset card writes them (`dataset_info.features`), and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hubsync.schema.types import DTYPES, ColumnType, Foreign, ListOf, Scalar, StructOf

_SCALARS: dict[str, Scalar] = {DTYPES[scalar]: scalar for scalar in DTYPES if scalar != "wide"}


def to_features(kind: StructOf) -> list[dict[str, Any]]:
    """Return the value of `dataset_info.features`, equal to what `datasets.Features` writes."""
    return [{"name": name, **_entry(field)} for name, field in kind.fields.items()]


def _entry(kind: ColumnType) -> dict[str, Any]:
    if isinstance(kind, StructOf):
        return {"struct": to_features(kind)}
    if isinstance(kind, Foreign):
        return kind.entry
    if isinstance(kind, ListOf):
        item = _entry(kind.item)
        return {"list": next(iter(item.values())) if set(item) in ({"dtype"}, {"struct"}) else item}
    return {"dtype": DTYPES[kind]}


def from_features(features: Iterable[Any]) -> StructOf:
    """Return the type that a card describes, whoever wrote it. An int64 is read as ints that a float can hold.

    Raises:
        ValueError: The features are not in a form that `datasets` writes.
    """
    try:
        return StructOf({str(entry["name"]): _type_of(_without_name(entry)) for entry in features})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"invalid features ({type(error).__name__}: {error})") from error


def _without_name(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "name"}


def _type_of(entry: dict[str, Any]) -> ColumnType:
    (key, value), *more = entry.items()
    if not more and key == "dtype" and isinstance(value, str) and value in _SCALARS:
        return _SCALARS[value]
    if not more and key == "struct":
        return from_features(value)
    if not more and (key == "list" or (key == "sequence" and isinstance(value, str))):
        if isinstance(value, str):
            return ListOf(_type_of({"dtype": value}))
        return ListOf(from_features(value) if isinstance(value, list) else _type_of(value))
    return Foreign(entry, _scalars_for(entry))


def _scalars_for(entry: Mapping[str, Any]) -> list[str] | None:
    """Return the scalars that `datasets` converts to a foreign type; None if only `datasets` knows."""
    dtype = entry.get("dtype")
    if isinstance(dtype, Mapping):
        return ["int", "string"] if "class_label" in dtype else None
    if not isinstance(dtype, str):
        return None
    if dtype.startswith(("int", "uint")):
        return ["int", "wide"]
    if dtype.startswith("float"):
        return ["int", "float"]
    return ["string"] if dtype.startswith(("large_string", "string_view", "timestamp", "date", "time")) else None
