"""Column types: infer them from rows, merge two of them, describe them.

`load_dataset` reads files whose types merge, and reads them as the merged type: null and the empty list merge with
anything, an int with a float if a float holds it exactly, a struct with a struct field by field (every field is
nullable). Anything else is a `Conflict`. The rules were found by experiments with `datasets`' JSON reader; the tests
repeat them. Imports neither pyarrow nor `datasets`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import chain
from types import NoneType
from typing import Any, Literal
from uuid import UUID

import msgspec

from hubsync.schema.dtypes import join
from hubsync.schema.json_text import reads_as_json

EXACT_FLOAT = 1 << 53  # a float holds ints up to here exactly; beyond, the reader refuses to make a float of them
INT64 = 1 << 63

# A float holds an `int` exactly (up to 2**53), but not a `wide` one, which fits int64. Some strings of a `literal`
# column read as JSON, such as "4": it must not become a column of JSON, where they would be numbers.
Scalar = Literal["null", "bool", "int", "wide", "float", "string", "literal"]


class ListOf(msgspec.Struct, frozen=True, tag="list", omit_defaults=True):
    """A list; `ListOf("null")` if only empty lists were seen.

    Attributes:
        item: The type of its elements.
        length: How many elements each list has; -1 if that varies.
        is_large: Offsets have 64 bits, as in a `LargeList`.
    """

    item: ColumnType
    length: int = -1
    is_large: bool = False


class StructOf(msgspec.Struct, frozen=True, tag="struct"):
    """An object or a whole row, with its fields in order of appearance."""

    fields: dict[str, ColumnType]


class Foreign(msgspec.Struct, frozen=True, tag="foreign"):
    """A type beyond JSON's, such as int32 or a class label: of a table, or as a person wrote it into the card.

    Attributes:
        entry: The type as the card has it.
        takes: The scalars that `datasets` converts to this type; None if only `datasets` knows.
    """

    entry: dict[str, Any]
    takes: list[str] | None


ColumnType = Scalar | ListOf | StructOf | Foreign
EMPTY = StructOf({})
BINARY = Foreign({"dtype": "binary"}, [])
MEDIA = frozenset({"image", "audio", "video", "pdf", "nifti"})  # features that `datasets` stores as files
JSON = Foreign({"dtype": "json"}, None)  # the `Json` feature of `datasets`: values of any shape, as JSON text
DTYPES: dict[Scalar, str] = {
    "null": "null", "bool": "bool", "int": "int64", "wide": "int64", "float": "float64", "string": "string",
    "literal": "string",
}  # fmt: skip
MAX_FIELDS, MAX_DEPTH = 4_096, 50  # fields of a config in total; nesting of one column
_SCALAR_OF: dict[str, Scalar] = {"int": "int", **{DTYPES[one]: one for one in DTYPES if one not in ("wide", "literal")}}
_JOINS: dict[frozenset[str], Scalar] = {
    frozenset(("int", "wide")): "wide",
    frozenset(("int", "float")): "float",
    frozenset(("string", "literal")): "literal",
}  # fmt: skip
_SCALARS: dict[type, Scalar] = {
    NoneType: "null", bool: "bool", str: "string", datetime: "string", date: "string", UUID: "string",
    Decimal: "string",
}  # fmt: skip
_LISTS = frozenset({list, tuple})
_BINARY = frozenset({bytes, bytearray, memoryview})
_NO_TEXT = _LISTS | {NoneType, bool, int, float, dict}
LITERALS = frozenset({Decimal})  # their text may read as JSON
_FILE: dict[str, tuple[ColumnType, ...]] = {"bytes": (BINARY,), "path": ("string",)}
_PAIRS = ("language", "translation")  # the fields of a `TranslationVariableLanguages`
_MAX_NAME = 200  # characters of a column name in a message


class Conflict(Exception):
    """Two types that no column can hold together.

    Attributes:
        path: The column, such as `messages[].content`; empty for the whole row.
        known: The type that the column has.
        given: The type that does not fit.
        row: Index of the row in its batch; None if unknown.
    """

    def __init__(self, path: str, known: ColumnType, given: ColumnType, row: int | None = None) -> None:
        self.path, self.known, self.given, self.row = path, known, given, row
        super().__init__(f"{path or 'the row'}: {self.reason}")

    @property
    def reason(self) -> str:
        """What conflicts, without the column."""
        return f"it is {describe(self.given)}, and the column holds {describe(self.known)}"

    @property
    def message(self) -> str:
        """The reason and, if there is one, the column."""
        return f"field {_shorten(self.path)!r}: {self.reason}" if self.path else self.reason


class OutOfBounds(Conflict):
    """The merged type has more fields, or deeper ones, than a card can describe."""

    @property
    def reason(self) -> str:
        """What is out of bounds."""
        return f"with it the config has over {MAX_FIELDS:,} fields, or structs over {MAX_DEPTH} deep"


def merge(known: ColumnType, given: ColumnType, path: str = "") -> ColumnType:
    """Return the type that holds both; the same object as `known` if that holds `given` already.

    Raises:
        Conflict: No column can hold both.
    """
    if given is known or given == "null":
        return known
    if known == "null":
        return given
    if isinstance(known, str) and isinstance(given, str):
        joined = known if known == given else _JOINS.get(frozenset((known, given)))
        if joined is not None:
            return known if joined == known else joined
    elif isinstance(known, ListOf) and isinstance(given, ListOf):
        return _merge_lists(known, given, path)
    elif isinstance(known, StructOf) and isinstance(given, StructOf):
        return merge_structs(known, given, path)
    elif (wider := _join_foreign(known, given)) is not None:
        return known if wider == known else wider
    raise Conflict(path, known, given)


def _merge_lists(known: ListOf, given: ListOf, path: str) -> ListOf:
    item = merge(known.item, given.item, f"{path}[]")
    length = known.length if known.length == given.length else -1
    merged = ListOf(item, length, known.is_large or given.is_large)
    return known if item is known.item and merged == known else merged


def merge_structs(known: StructOf, given: StructOf, path: str = "") -> StructOf:
    """Like `merge`, for two structs, such as the types of two batches or files.

    Raises:
        Conflict: No column can hold both.
    """
    fields: dict[str, ColumnType] | None = None
    for name, kind in given.fields.items():
        was = known.fields.get(name)
        if was is not None and not path and "string" in (was, kind) and JSON in (was, kind):
            now = was if is_json(was) else kind  # `json_text` decides about the strings of a whole column
        else:
            now = kind if was is None else merge(was, kind, f"{path}.{name}" if path else name)
        if now is not was:
            fields = fields or dict(known.fields)
            fields[name] = now
    return known if fields is None else StructOf(fields)


def extend(known: StructOf, given: StructOf) -> StructOf:
    """Like `merge_structs`, but only to a size that a card can describe: keys that are data would never end.

    Raises:
        Conflict: No column can hold both.
        OutOfBounds: The merged type is too large.
    """
    merged = merge_structs(known, given)
    if merged is not known and not is_within_bounds(merged):
        raise OutOfBounds("", known, given)
    return merged


def is_within_bounds(columns: StructOf) -> bool:
    """Return whether a card can describe all fields."""
    fields, depth = measure(columns)
    return fields <= MAX_FIELDS and depth <= MAX_DEPTH


def _join_foreign(known: ColumnType, given: ColumnType) -> ColumnType | None:
    """Return the type that holds both, at least one of which is foreign; None if no type does."""
    if known == given or (isinstance(known, Foreign) and isinstance(given, Foreign) and known.entry == given.entry):
        return known
    if (is_json(known) and _is_number(given)) or (is_json(given) and _is_number(known)):
        return JSON  # which holds numbers of every type
    one, other = _dtype_of(known), _dtype_of(given)
    joined = None if one is None or other is None else join(one, other)
    if joined is not None:
        return dtype_to_type(joined)
    if isinstance(known, Foreign) and _takes(known, given):
        return known
    # Values that were put as plain ones may be valid for no other type: `datasets` fails on text that is no time.
    return given if isinstance(given, Foreign) and _takes_all(given) and _takes(given, known) else None


def _takes_all(foreign: Foreign) -> bool:
    """Return whether each value of the scalars that a type takes is valid for it."""
    return is_json(foreign) or str(foreign.entry.get("dtype")).startswith(("large_string", "string_view"))


def _dtype_of(kind: ColumnType) -> str | None:
    """Return the name of a scalar, as `dtypes.join` takes it; None for any other type."""
    if isinstance(kind, str):
        return kind if kind in ("int", "wide") else DTYPES[kind]
    dtype = kind.entry.get("dtype") if isinstance(kind, Foreign) and len(kind.entry) == 1 else None
    return dtype if isinstance(dtype, str) else None


def _is_number(kind: ColumnType) -> bool:
    dtype = _dtype_of(kind)
    return dtype is not None and dtype.startswith(("int", "uint", "float"))


def dtype_to_type(dtype: str) -> ColumnType:
    """Return the type of a scalar that a card or `dtypes.join` names."""
    if dtype == "wide":
        return "wide"
    scalar = _SCALAR_OF.get(dtype)
    return scalar if scalar is not None else Foreign({"dtype": dtype}, _taken_by(dtype))


def _taken_by(dtype: str) -> list[str]:
    """Return which plain values `datasets` converts to a scalar type: numbers to a float, and text that it can parse.

    An int may be too large for a smaller int, so both are widened (see `dtypes.join`).
    """
    if dtype in ("float16", "float32"):
        return ["int", "float"]
    return ["string"] if dtype.startswith(("large_string", "string_view", "timestamp", "date")) else []


def is_json(kind: ColumnType | None) -> bool:
    """Return whether a type is `JSON`, whoever declared it."""
    return isinstance(kind, Foreign) and kind.entry == JSON.entry


def json_places(columns: StructOf) -> StructOf:
    """Return the columns that are JSON, or have a part that is, without their other parts."""
    found = {name: _json_part(kind) for name, kind in columns.fields.items()}
    return StructOf({name: kind for name, kind in found.items() if kind is not None})


def _json_part(kind: ColumnType) -> ColumnType | None:
    if isinstance(kind, StructOf):
        part = json_places(kind)
        return part if part.fields else None
    if isinstance(kind, ListOf):
        item = _json_part(kind.item)
        return None if item is None else ListOf(item)
    return kind if is_json(kind) else None


def json_columns(columns: StructOf) -> frozenset[str]:
    """Return the names of the columns that are JSON as a whole."""
    return frozenset(name for name, kind in columns.fields.items() if is_json(kind))


def holds_floats(kind: ColumnType) -> bool:
    """Return whether a type has a part that is a float."""
    if isinstance(kind, StructOf):
        return any(map(holds_floats, kind.fields.values()))
    return holds_floats(kind.item) if isinstance(kind, ListOf) else (_dtype_of(kind) or "").startswith("float")


def _takes(foreign: Foreign, kind: ColumnType) -> bool:
    if kind == "literal":
        kind = "string"
    if is_json(foreign):  # `merge_structs` decides about the strings of whole columns
        return kind != "string" and not isinstance(kind, Foreign)
    if foreign.takes is not None:
        return kind in foreign.takes
    dtype = foreign.entry.get("dtype")
    name = str(next(iter(dtype), "")) if isinstance(dtype, Mapping) else str(dtype)
    if name in MEDIA:
        return kind == "string" or (isinstance(kind, StructOf) and _is_file(kind))
    if name.startswith("array"):
        return isinstance(kind, ListOf) and kind.item != "null" and _is_plain(kind)
    if name.startswith("translation"):
        languages = dtype[name].get("languages") if isinstance(dtype, Mapping) and name == "translation" else None
        return isinstance(kind, StructOf) and _is_plain(kind) and kind.fields.keys() <= set(languages or _PAIRS)
    return _is_plain(kind)


def _is_file(kind: StructOf) -> bool:
    """Return whether a struct is a file, as `datasets` stores media."""
    return all(field in ("null", *_FILE.get(name, ())) for name, field in kind.fields.items())


def _is_plain(kind: ColumnType) -> bool:
    """Return whether each part of a type is one of JSON's."""
    if isinstance(kind, StructOf):
        return all(map(_is_plain, kind.fields.values()))
    return _is_plain(kind.item) if isinstance(kind, ListOf) else isinstance(kind, str)


def infer(rows: Iterable[Mapping[str, Any]], first_row: int = 0, known: StructOf = EMPTY) -> StructOf:
    """Return the type of a batch of plain values, as `json` returns them or `encode` accepts them.

    A NaN counts as null, as which it is written.

    Args:
        rows: The batch.
        first_row: The index to report for the first row.
        known: Types of the config. What is JSON in it is JSON here, except for text inside a struct or a list.

    Raises:
        Conflict: Two rows of the batch conflict; names the second one.
    """
    kind = EMPTY
    for index, row in enumerate(rows):
        try:
            kind = merge_structs(kind, row_type(row, known))
        except Conflict as conflict:
            conflict.row = first_row + index
            raise
    return kind


def row_type(row: Mapping[str, Any], known: StructOf = EMPTY) -> StructOf:
    """Return the type of one row of plain values; see `infer`."""
    return StructOf({name: column_type(value, name, known.fields.get(name)) for name, value in row.items()})


def column_type(value: Any, name: str, known: ColumnType | None = None) -> ColumnType:
    """Return the type of a value at the top of a row, where it matters what a string reads as; see `type_of`."""
    if is_json(known):
        return "null" if value is None else JSON
    kind = type_of(value, name, known)
    if kind != "string":
        return kind
    return "literal" if type(value) in LITERALS or (type(value) is str and reads_as_json(value)) else "string"


def type_of(value: Any, path: str = "", known: ColumnType | None = None) -> ColumnType:
    """Return the type of one plain value; where `known` is JSON, only text is another type.

    Raises:
        Conflict: The elements of a list conflict.
    """
    kind = type(value)
    if is_json(known):
        return "null" if value is None else JSON if kind in _NO_TEXT else "string"
    if kind is int:
        return _int_type(value, value)
    if kind is float:
        return "float" if value == value else "null"
    if (scalar := _SCALARS.get(kind)) is not None:
        return scalar
    if kind is dict:
        below = known.fields if isinstance(known, StructOf) else EMPTY.fields
        return StructOf(
            {key: type_of(item, f"{path}.{key}" if path else key, below.get(key)) for key, item in value.items()}
        )
    if kind in _LISTS:
        return ListOf(_item_type(value, f"{path}[]", known.item if isinstance(known, ListOf) else None))
    return BINARY if kind in _BINARY else "string"


def _item_type(values: Sequence[Any], path: str, known: ColumnType | None) -> ColumnType:
    kinds = set(map(type, values))
    item: ColumnType = "null"
    if is_json(known):
        return item if kinds <= {NoneType} else JSON if kinds <= _NO_TEXT else "string"
    for kind in kinds:
        if (scalar := _SCALARS.get(kind)) is not None:
            item = merge(item, scalar, path)
    if float in kinds and any(value == value for value in values if type(value) is float):
        item = merge(item, "float", path)
    if not _BINARY.isdisjoint(kinds):
        item = merge(item, BINARY, path)
    if int in kinds:
        ints = values if len(kinds) == 1 else [value for value in values if type(value) is int]
        item = merge(item, _int_type(min(ints), max(ints)), path)
    if not _LISTS.isdisjoint(kinds):
        inner = list(chain.from_iterable(value for value in values if type(value) in _LISTS))
        below = known.item if isinstance(known, ListOf) else None
        item = merge(item, ListOf(_item_type(inner, f"{path}[]", below)), path)
    if dict in kinds:
        for value in values:
            if type(value) is dict:
                item = merge(item, type_of(value, path, known), path)
    return item


def _int_type(least: int, greatest: int) -> Scalar:
    if least >= -EXACT_FLOAT and greatest <= EXACT_FLOAT:
        return "int"
    # A single int beyond int64 makes the reader read floats, which the others must then fit.
    return "wide" if least >= -INT64 and greatest < INT64 else "float"


def measure(kind: ColumnType) -> tuple[int, int]:
    """Return the number of fields in total, and the depth."""
    if isinstance(kind, ListOf):
        fields, depth = measure(kind.item)
        return fields, depth + 1
    if isinstance(kind, StructOf):
        below = [measure(field) for field in kind.fields.values()]
        return len(below) + sum(n for n, _ in below), 1 + max((depth for _, depth in below), default=0)
    return 0, 0


def describe(kind: ColumnType) -> str:
    """Return a type in words, for a message."""
    if isinstance(kind, StructOf):
        names = [_shorten(name) for name in kind.fields]
        return f"a struct of {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "an empty struct"
    if isinstance(kind, ListOf):
        return "an empty list" if kind.item == "null" else f"a list: {describe(kind.item)}"
    if is_json(kind):
        return "JSON"
    if isinstance(kind, Foreign):
        return _shorten(str(kind.entry.get("dtype", kind.entry)))
    return "int64 beyond 2**53" if kind == "wide" else DTYPES[kind]


def _shorten(name: str) -> str:
    """Shorten a column name, which may be a whole text that somebody used as a key."""
    return name if len(name) <= _MAX_NAME else f"{name[:_MAX_NAME]}…"


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[StructOf] = msgspec.json.Decoder(StructOf)


def dumps(kind: StructOf) -> str:
    """Return a type as JSON, as the catalogue stores it."""
    return _encoder.encode(kind).decode()


def loads(text: str) -> StructOf:
    """Return the type that `dumps` wrote."""
    return _decoder.decode(text)
