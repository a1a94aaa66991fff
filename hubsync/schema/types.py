"""What the columns of a config hold: a small algebra of types, how two of them merge, and what `datasets` calls them.

Promises that files whose types merge are read by `load_dataset` under the merged one, as `datasets`' JSON reader does
it (found by experiment, kept by tests/test_drift.py): null and the empty list go with all that may come, an int with
a float as long as a float holds it exactly, a struct with another by all of their fields, every one nullable.
Anything else is a `Conflict`. Imports neither pyarrow nor `datasets`.
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

# `int` fits a float exactly (up to 2**53), `wide` does not but fits int64. What is beyond, the reader makes a float.
Scalar = Literal["null", "bool", "int", "wide", "float", "string"]


class ListOf(msgspec.Struct, frozen=True, tag="list"):
    """A list; one that was always empty is `ListOf("null")`."""

    item: Kind


class StructOf(msgspec.Struct, frozen=True, tag="struct"):
    """An object, or a whole row: its fields in the order in which they came."""

    fields: dict[str, Kind]


class Foreign(msgspec.Struct, frozen=True, tag="foreign"):
    """A type that a person gave in the card, such as a class label: kept as it stands there.

    `takes` are the scalars that `datasets` makes it of; None where that is theirs to know.
    """

    entry: dict[str, Any]
    takes: list[str] | None


Kind = Scalar | ListOf | StructOf | Foreign
EMPTY = StructOf({})
MOST_FIELDS, MOST_DEEP = 4_096, 50  # of a config, in all; of a field
_JOINS: dict[frozenset[str], Scalar] = {frozenset(("int", "wide")): "wide", frozenset(("int", "float")): "float"}
_SCALARS: dict[type, Scalar] = {
    NoneType: "null", bool: "bool", float: "float", str: "string", datetime: "string", date: "string", UUID: "string",
    Decimal: "string", bytes: "string",
}  # fmt: skip
_LONG_NAME = 200  # characters
_EXACT = 1 << 53  # ints up to here, a float holds exactly; the reader refuses to make one of a greater one
_INT64 = 1 << 63


class Conflict(Exception):
    """Two types that no column can hold both of. `row` is the index in its batch, where it is known."""

    def __init__(self, path: str, known: Kind, given: Kind, row: int | None = None) -> None:
        self.path, self.known, self.given, self.row = path, known, given, row
        super().__init__(f"{path or 'the row'}: {self.reason}")

    @property
    def reason(self) -> str:
        """What is wrong, in words."""
        return f"it is {describe(self.given)}, and the column holds {describe(self.known)}"

    @property
    def told(self) -> str:
        """The reason, and the column where there is one."""
        return f"field {_cut(self.path)!r}: {self.reason}" if self.path else self.reason


class OutOfBounds(Conflict):
    """Two types that make one which no card can say. Which field it is, nobody asks: there are too many."""

    @property
    def reason(self) -> str:
        return f"with it the config has over {MOST_FIELDS:,} fields, or structs over {MOST_DEEP} deep"


def merge(known: Kind, given: Kind, path: str = "") -> Kind:
    """The type that holds both; `known` itself, the same object, where it does so already.

    Raises:
        Conflict: there is none.
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
        item = merge(known.item, given.item, f"{path}[]")
        return known if item is known.item else ListOf(item)
    elif isinstance(known, StructOf) and isinstance(given, StructOf):
        return merge_rows(known, given, path)
    elif isinstance(known, Foreign):
        if known == given or _takes(known, given):
            return known
    elif isinstance(given, Foreign) and _takes(given, known):
        return given
    raise Conflict(path, known, given)


def merge_rows(known: StructOf, given: StructOf, path: str = "") -> StructOf:
    """As `merge`, for the types of two batches or files."""
    fields: dict[str, Kind] | None = None
    for name, kind in given.fields.items():
        was = known.fields.get(name)
        now = kind if was is None else merge(was, kind, f"{path}.{name}" if path else name)
        if now is not was:
            fields = fields or dict(known.fields)
            fields[name] = now
    return known if fields is None else StructOf(fields)


def extend(known: StructOf, given: StructOf) -> StructOf:
    """As `merge_rows`, within what a card can say: keys that are data have no end of them, and no reader wants them as
    columns.

    Raises:
        Conflict, OutOfBounds: there is no such type.
    """
    merged = merge_rows(known, given)
    if merged is not known:
        fields, depth = _measure(merged)
        if fields > MOST_FIELDS or depth > MOST_DEEP:
            raise OutOfBounds("", known, given)
    return merged


def _takes(foreign: Foreign, kind: Kind) -> bool:
    return not isinstance(kind, Foreign) and (foreign.takes is None or kind in foreign.takes)


def infer(rows: Iterable[Mapping[str, Any]], first_row: int = 0) -> StructOf:
    """What the rows of a batch hold: plain values, as `json` would have them or as `rows` takes them.

    A NaN counts as the float that it was, and not as the null that it becomes.

    Raises:
        Conflict: the batch is at odds with itself. It names the row.
    """
    kind = EMPTY
    for index, row in enumerate(rows):
        try:
            found = _of(row, "")
            assert isinstance(found, StructOf)
            kind = merge_rows(kind, found)
        except Conflict as conflict:
            conflict.row = first_row + index
            raise
    return kind


def _of(value: Any, path: str) -> Kind:
    kind = type(value)
    if kind is int:
        return _size(value, value)
    if (scalar := _SCALARS.get(kind)) is not None:
        return scalar
    if kind is dict:
        return StructOf({key: _of(item, f"{path}.{key}" if path else key) for key, item in value.items()})
    if kind is list or kind is tuple:
        return ListOf(_of_all(value, f"{path}[]"))
    return "string"


def _of_all(values: Sequence[Any], path: str) -> Kind:
    kinds = set(map(type, values))
    item: Kind = "null"
    for kind in kinds:
        if (scalar := _SCALARS.get(kind)) is not None:
            item = merge(item, scalar, path)
    if int in kinds:
        ints = values if len(kinds) == 1 else [value for value in values if type(value) is int]
        item = merge(item, _size(min(ints), max(ints)), path)
    if not _LISTS.isdisjoint(kinds):
        inner = [value for value in values if type(value) in _LISTS]
        item = merge(item, ListOf(_of_all(list(chain.from_iterable(inner)), f"{path}[]")), path)
    if dict in kinds:
        for value in values:
            if type(value) is dict:
                item = merge(item, _of(value, path), path)
    return item


_LISTS = frozenset({list, tuple})


def _size(least: int, greatest: int) -> Scalar:
    if least >= -_EXACT and greatest <= _EXACT:
        return "int"
    # One beyond int64 makes the reader read floats, and then the others must fit one.
    return "wide" if least >= -_INT64 and greatest < _INT64 else "float"


def _measure(kind: Kind) -> tuple[int, int]:
    """Its fields in all, and how deep they are."""
    if isinstance(kind, ListOf):
        fields, depth = _measure(kind.item)
        return fields, depth + 1
    if isinstance(kind, StructOf):
        below = [_measure(field) for field in kind.fields.values()]
        return len(below) + sum(n for n, _ in below), 1 + max((depth for _, depth in below), default=0)
    return 0, 0


def _cut(name: str) -> str:
    """A column's name, which may be a whole text that somebody made a key, as a message may have it."""
    return name if len(name) <= _LONG_NAME else f"{name[:_LONG_NAME]}…"


def describe(kind: Kind) -> str:
    """For people."""
    if isinstance(kind, StructOf):
        names = [_cut(name) for name in kind.fields]
        return f"a struct of {', '.join(names[:5])}{', …' if len(names) > 5 else ''}" if names else "an empty struct"
    if isinstance(kind, ListOf):
        return "an empty list" if kind.item == "null" else f"a list: {describe(kind.item)}"
    if isinstance(kind, Foreign):
        return f"the card's {kind.entry.get('dtype', kind.entry)}"
    return "int64 beyond 2**53" if kind == "wide" else DTYPES[kind]


_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[StructOf] = msgspec.json.Decoder(StructOf)


def dumps(kind: StructOf) -> str:
    return _encoder.encode(kind).decode()


def loads(text: str) -> StructOf:
    return _decoder.decode(text)


DTYPES: dict[Scalar, str] = {
    "null": "null", "bool": "bool", "int": "int64", "wide": "int64", "float": "float64", "string": "string",
}  # fmt: skip
