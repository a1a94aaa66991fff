"""Column types as a dataset card writes them (`dataset_info.features`), and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hubsync.schema.types import DTYPES, Foreign, Kind, ListOf, Scalar, StructOf

_NAMES: dict[str, Scalar] = {
    "null": "null", "bool": "bool", "int64": "int", "float64": "float", "string": "string",
}  # fmt: skip


def to_features(kind: StructOf) -> list[dict[str, Any]]:
    """As `dataset_info.features` has it in a card's YAML: what `datasets`' own `Features._to_yaml_list` gives."""
    return [{"name": name, **_entry(field)} for name, field in kind.fields.items()]


def _entry(kind: Kind) -> dict[str, Any]:
    if isinstance(kind, StructOf):
        return {"struct": to_features(kind)}
    if isinstance(kind, Foreign):
        return kind.entry
    if isinstance(kind, ListOf):
        item = _entry(kind.item)
        return {"list": next(iter(item.values())) if set(item) in ({"dtype"}, {"struct"}) else item}
    return {"dtype": DTYPES[kind]}


def from_features(features: Any) -> StructOf:
    """What a card says of a config, also a person's. An int64 is taken for one of ints that a float may hold.

    Raises:
        ValueError: it can't be understood.
    """
    try:
        return StructOf({str(entry["name"]): _kind_of(_without_name(entry)) for entry in features})
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its features can't be understood ({type(error).__name__}: {error})") from error


def _without_name(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key != "name"}


def _kind_of(entry: dict[str, Any]) -> Kind:
    (key, value), *more = entry.items()
    if not more and key == "dtype" and isinstance(value, str) and value in _NAMES:
        return _NAMES[value]
    if not more and key == "struct":
        return from_features(value)
    if not more and (key == "list" or (key == "sequence" and isinstance(value, str))):
        if isinstance(value, str):
            return ListOf(_kind_of({"dtype": value}))
        return ListOf(from_features(value) if isinstance(value, list) else _kind_of(value))
    return Foreign(entry, _taken(entry))


def _taken(entry: Mapping[str, Any]) -> list[str] | None:
    """Of which scalars `datasets` makes a type that is not ours."""
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
