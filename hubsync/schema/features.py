"""Column types as `datasets` writes them, and back: in a card (`dataset_info.features`) and in a file's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hubsync.schema.types import DTYPES, ColumnType, Foreign, ListOf, StructOf, dtype_to_type

_LISTS = ("list", "sequence", "large_list")
_WORDS = frozenset(  # features that need no options
    {"image", "audio", "video", "pdf", "nifti", "json", "base64", "translation_variable_languages"}
)
# What `datasets` 3 writes, and newer versions leave out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "Image": {"decode": True}, "Audio": {"decode": True, "mono": True}, "Video": {"decode": True},
}  # fmt: skip


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
        short = next(iter(item.values())) if set(item) in ({"dtype"}, {"struct"}) else item
        if kind.length == -1:
            return {"large_list" if kind.is_large else "list": short}
        # Before version 4, `datasets` knows a length in a `sequence` only, and a sequence of structs is a struct there.
        return {"list" if "struct" in item else "sequence": short, "length": kind.length}
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
    keys = set(entry)
    dtype = entry.get("dtype")
    if keys == {"dtype"} and isinstance(dtype, str):
        return Foreign(entry, None) if dtype in _WORDS else dtype_to_type(dtype)
    if keys == {"struct"}:
        return from_features(entry["struct"])
    name = next((name for name in _LISTS if name in keys), None)
    if name is not None and keys <= {name, "length"} and not (name == "sequence" and isinstance(entry[name], list)):
        return ListOf(_item_of(entry[name]), entry.get("length", -1), name == "large_list")
    return Foreign(entry, _takes(entry))  # such as a sequence of structs, which is a struct of lists


def _item_of(item: Any) -> ColumnType:
    if isinstance(item, list):
        return from_features(item)
    if isinstance(item, str) or not {"dtype", "struct", *_LISTS}.intersection(item):
        item = {"dtype": item}
    return _type_of(dict(item))


def _takes(entry: Mapping[str, Any]) -> list[str] | None:
    """Return the scalars that `datasets` converts to a foreign type; None if only `datasets` knows."""
    dtype = entry.get("dtype")
    return ["int", "string"] if isinstance(dtype, Mapping) and "class_label" in dtype else None


# The metadata of an Arrow schema, in which `datasets` names its own types.


def to_metadata(kind: ColumnType) -> Any:
    """Return a type as `datasets` writes it as JSON; for all columns, the value of `info.features`.

    `datasets` reads it from version 3 on: a list is a `Sequence` there, or written as `[…]` if it holds structs.
    """
    if isinstance(kind, StructOf):
        return {name: to_metadata(field) for name, field in kind.fields.items()}
    if isinstance(kind, ListOf):
        item = to_metadata(kind.item)
        if kind.is_large:
            return {"feature": item, "_type": "LargeList"}
        if kind.length != -1:
            name = "List" if isinstance(kind.item, StructOf) else "Sequence"
            return {"feature": item, "length": kind.length, "_type": name}
        return [item] if isinstance(kind.item, StructOf) else {"feature": item, "_type": "Sequence"}
    dtype = kind.entry.get("dtype") if isinstance(kind, Foreign) else DTYPES[kind]
    if isinstance(dtype, str):
        return {"_type": _camel(dtype)} if dtype in _WORDS else {"dtype": dtype, "_type": "Value"}
    if not isinstance(dtype, Mapping) or len(dtype) != 1:
        raise ValueError(f"{dtype!r} is not a feature")
    ((name, options),) = dtype.items()
    if name == "class_label":
        options = {**options, "names": _label_names(options)}
    return {**options, "_type": _camel(name)}


def from_metadata(feature: Any) -> ColumnType:
    """Return the type that `to_metadata` or `datasets` wrote.

    Raises:
        ValueError: It is not in a form that `datasets` writes.
    """
    try:
        return _from_metadata(feature)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(f"invalid features ({type(error).__name__}: {error})") from error


def _from_metadata(feature: Any) -> ColumnType:
    if isinstance(feature, list):
        return ListOf(_from_metadata(feature[0]))
    name = feature.get("_type")
    if not isinstance(name, str):
        return StructOf({key: _from_metadata(item) for key, item in feature.items()})
    options = {key: value for key, value in feature.items() if key not in ("_type", "id") and value is not None}
    if name == "Value":
        return dtype_to_type(options["dtype"])
    if name in ("List", "Sequence", "LargeList"):
        item = _from_metadata(options["feature"])
        if name == "Sequence" and isinstance(item, StructOf):  # a struct of lists, until version 4
            return StructOf({key: ListOf(field) for key, field in item.fields.items()})
        return ListOf(item, options.get("length", -1), name == "LargeList")
    if name == "ClassLabel":
        options = {"names": {str(index): label for index, label in enumerate(options["names"])}}
    if name in _DEFAULTS:
        options = {key: value for key, value in options.items() if value != _DEFAULTS[name].get(key)}
    entry: dict[str, Any] = {"dtype": {_snake(name): options} if options else _snake(name)}
    return Foreign(entry, _takes(entry))


def class_names(kind: ColumnType) -> list[str] | None:
    """Return the names of a class label, by index; None for any other type."""
    dtype = kind.entry.get("dtype") if isinstance(kind, Foreign) else None
    return _label_names(dtype["class_label"]) if isinstance(dtype, Mapping) and "class_label" in dtype else None


def feature_name(kind: ColumnType) -> str | None:
    """Return which of `datasets`' own features a type is, as in a card: `image`, `class_label`; None for none."""
    dtype = kind.entry.get("dtype") if isinstance(kind, Foreign) else None
    if isinstance(dtype, str):
        return dtype if dtype in _WORDS else None
    return str(next(iter(dtype), "")) or None if isinstance(dtype, Mapping) else None


def is_decoded(kind: ColumnType) -> bool:
    """Return whether readers of a column of media get images and sound, rather than the bytes of files."""
    dtype = kind.entry.get("dtype") if isinstance(kind, Foreign) else None
    return not (isinstance(dtype, Mapping) and next(iter(dtype.values())).get("decode") is False)


def has_features(kind: ColumnType) -> bool:
    """Return whether a type has a part that an Arrow type alone does not tell, such as an image."""
    if isinstance(kind, StructOf):
        return any(map(has_features, kind.fields.values()))
    return has_features(kind.item) if isinstance(kind, ListOf) else feature_name(kind) not in (None, "json")


def _label_names(options: Mapping[str, Any]) -> list[str]:
    names = options.get("names") or []
    return [str(names[key]) for key in sorted(names, key=int)] if isinstance(names, Mapping) else list(map(str, names))


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in name.split("_"))


def _snake(name: str) -> str:
    return re.sub(r"([a-z\d])([A-Z])", r"\1_\2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)).lower()
