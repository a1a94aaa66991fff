"""Widen columns to JSON where values have no common type.

The smallest place becomes JSON: `messages[]`, not `messages`. Structs, lists, numbers and bools come back as they were
put. A string at such a place could be taken for JSON text (see `json_text`), so the struct or list around it becomes
JSON instead; only the strings of a whole column are written in a form that tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from hubsync.schema.types import (
    EMPTY,
    JSON,
    MAX_DEPTH,
    ColumnType,
    Conflict,
    Foreign,
    ListOf,
    OutOfBounds,
    StructOf,
    column_type,
    describe,
    is_json,
    is_within_bounds,
    json_columns,
    measure,
    merge,
    type_of,
)

JSON_NEEDS = (
    "load_dataset needs datasets 4.7 or newer for it, and reads floats next to it with 10 decimals, except in Parquet. "
    'To keep a column\'s type instead, set schema=SchemaPolicy(on_conflict="refuse").'
)
_IS_DECLARED = "Its type was declared by a table or a person, and stays"
_HAS_TEXT = (
    "Readers would take strings that are in it already for numbers or null. To keep all rows together, declare "
    "json_columns=[{!r}] before the first row of a new config"
)
_NO_JSON = "JSON has no {}"
_WIDENABLE = ("int", "uint", "float", "json")
_IsFixed = Callable[[ColumnType, ColumnType], bool]


class Fixed(Conflict):
    """A conflict in a column that must not become JSON.

    Attributes:
        why: Why not.
        is_declared: Because a person, or a table, has declared its type.
    """

    def __init__(self, conflict: Conflict, why: str = _IS_DECLARED) -> None:
        super().__init__(conflict.path, conflict.known, conflict.given, conflict.row)
        self.why, self.is_declared = why, why == _IS_DECLARED


class Widened(NamedTuple):
    """A place that became JSON, and the two types that met there."""

    path: str
    conflict: Conflict

    def __str__(self) -> str:
        known, given = describe(self.conflict.known), describe(self.conflict.given)
        at = "" if self.conflict.path == self.path else f" at {self.conflict.path!r}"
        return f"column {self.path!r} is JSON from now on: it holds {known} and {given}{at}"


class Widening:
    """Merges types, and lists what it had to widen.

    Attributes:
        changes: The places that became JSON.
    """

    def __init__(self, *, parquet: bool = False, are_written: bool = False, declared: Collection[str] = ()) -> None:
        """Choose what may become JSON.

        Args:
            parquet: The shards are Parquet, where only whole columns become JSON, and none whose shards hold strings:
                `datasets` would take them for JSON text if the first five values are null.
            are_written: The rows that are given are in a shard, as those that are known.
            declared: Columns that a person declared. They stay as they are.
        """
        self.changes: list[Widened] = []
        self._parquet = parquet
        self._are_written = are_written
        self._declared = declared

    def merge(self, known: StructOf, given: StructOf) -> StructOf:
        """Return the columns of both; the same object as `known` if they hold `given` already.

        Raises:
            Fixed: A column must not become JSON.
            OutOfBounds: There are too many columns.
        """
        merged = self._merge(known, given, self._are_fixed)
        while merged is not known and not is_within_bounds(merged):
            merged = self._without_largest(merged, OutOfBounds("", known, given))
        return merged

    def _merge(self, known: StructOf, given: StructOf, is_fixed: _IsFixed) -> StructOf:
        fields: dict[str, ColumnType] | None = None
        for name, kind in given.fields.items():
            was = known.fields.get(name)
            now = kind if was is None else self._column(was, kind, name, is_fixed)
            if now is not was:
                fields = fields or dict(known.fields)
                fields[name] = now
        return known if fields is None else StructOf(fields)

    def _without_largest(self, columns: StructOf, bounds: OutOfBounds) -> StructOf:
        """Return the columns with the one that has the most fields, or the deepest, as JSON: its keys are data."""
        sizes = {name: measure(kind) for name, kind in columns.fields.items()}
        name = max(sizes, key=lambda name: (sizes[name][1] >= MAX_DEPTH, sizes[name][0]))
        if sizes[name][0] == 0:
            raise bounds
        _check_widenable(columns.fields[name], "null", bounds)
        bounds.path = name
        return StructOf({**columns.fields, name: self._json(name, bounds)})

    def _are_fixed(self, known: ColumnType, given: ColumnType) -> bool:
        """Return whether a column of two types must not become JSON: `datasets` would read strings in it as others."""
        written = {one for one in ((known, given) if self._are_written else (known,)) if isinstance(one, str)}
        return "literal" in written or (self._parquet and "string" in written)

    @property
    def outermost(self) -> list[Widened]:
        """The changes without those within another."""
        paths = [change.path for change in self.changes]
        return [
            change
            for n, change in enumerate(self.changes)
            if change.path not in paths[:n]
            and not any(change.path != path and is_within(change.path, path) for path in paths)
        ]

    def infer(self, rows: Iterable[Mapping[str, Any]], known: StructOf = EMPTY) -> StructOf:
        """Return the types of a batch's columns. Like `types.infer`, but no conflict is raised."""
        columns = EMPTY
        for index, row in enumerate(rows):
            before = len(self.changes)
            kinds = {name: self._value(value, name, known.fields.get(name)) for name, value in row.items()}
            columns = self._merge(columns, StructOf(kinds), lambda known, given: False)
            for change in self.changes[before:]:
                change.conflict.row = index
        return columns

    def _value(self, value: Any, name: str, known: ColumnType | None) -> ColumnType:
        before = len(self.changes)
        try:
            return column_type(value, name, known)
        except Conflict:
            kind = self._type_of(value, name)
        if not self._parquet:
            return kind
        first = self.changes[before].conflict
        del self.changes[before:]
        return self._json(name, first)

    def _type_of(self, value: Any, path: str) -> ColumnType:
        """Return the type of a value that conflicts with itself."""
        if type(value) is dict:
            return StructOf({key: self._type_of(item, f"{path}.{key}") for key, item in value.items()})
        if type(value) not in (list, tuple):
            return type_of(value, path)
        item: ColumnType = "null"
        try:
            for element in value:
                item = self._place(item, self._type_of(element, f"{path}[]"), f"{path}[]")
        except Conflict as conflict:
            return self._json(path, conflict)
        return ListOf(item)

    def _column(self, known: ColumnType, given: ColumnType, name: str, is_fixed: _IsFixed) -> ColumnType:
        if is_json(known) and not self._are_written:
            return known
        before = len(self.changes)
        try:
            if is_json(given) and not is_json(known) and known != "null":
                raise Conflict(name, known, given)
            widened = self._widen(known, given, name)
            if len(self.changes) == before or not (self._parquet or name in self._declared):
                return widened
            conflict = self.changes[before].conflict
        except Fixed:
            raise
        except Conflict as found:
            conflict = found
        del self.changes[before:]
        if name in self._declared or is_fixed(known, given):
            raise Fixed(conflict, _IS_DECLARED if name in self._declared else _HAS_TEXT.format(name))
        _check_widenable(known, given, conflict)
        return known if is_json(known) else self._json(name, conflict)

    def _widen(self, known: ColumnType, given: ColumnType, path: str) -> ColumnType:
        """Return the type of a place that holds both.

        Raises:
            Conflict: The place around it must become JSON.
            Fixed: So must not.
        """
        if given is known or given == "null":
            return known
        if known == "null":
            return given
        if isinstance(known, StructOf) and isinstance(given, StructOf):
            return self._fields(known, given, path)
        if isinstance(known, ListOf) and isinstance(given, ListOf):
            return self._items(known, given, path)
        if (is_json(known) and _is_text(given)) or (is_json(given) and _is_text(known)):
            raise Conflict(path, known, given)
        return merge(known, given, path)

    def _fields(self, known: StructOf, given: StructOf, path: str) -> ColumnType:
        fields: dict[str, ColumnType] | None = None
        for name, kind in given.fields.items():
            was = known.fields.get(name)
            now = kind if was is None else self._place(was, kind, f"{path}.{name}")
            if now is not was:
                fields = fields or dict(known.fields)
                fields[name] = now
        return known if fields is None else StructOf(fields)

    def _items(self, known: ListOf, given: ListOf, path: str) -> ColumnType:
        item = self._place(known.item, given.item, f"{path}[]")
        lists = msgspec.structs.replace(known, item="null"), msgspec.structs.replace(given, item="null")
        merged = merge(*lists, path)
        if item is known.item and merged is lists[0]:
            return known
        assert isinstance(merged, ListOf)
        return msgspec.structs.replace(merged, item=item)

    def _place(self, known: ColumnType, given: ColumnType, path: str) -> ColumnType:
        """Return the type of a field or element; JSON if there is no other."""
        before = len(self.changes)
        try:
            return self._widen(known, given, path)
        except Fixed:
            raise
        except Conflict as conflict:
            if _is_text(known) or _is_text(given):
                raise
            del self.changes[before:]
            _check_widenable(known, given, conflict)
            return self._json(path, conflict)

    def _json(self, path: str, conflict: Conflict) -> ColumnType:
        self.changes.append(Widened(path, conflict))
        return JSON


def is_within(path: str, place: str) -> bool:
    """Return whether a path is a place or within it."""
    return path == place or path.startswith((f"{place}.", f"{place}["))


def as_json(given: StructOf, known: StructOf) -> StructOf:
    """Return `given` with JSON for each column that is JSON in `known`: rows are written for it, or will be."""
    names = json_columns(known)
    if names.isdisjoint(given.fields):
        return given
    return StructOf({name: JSON if name in names and kind != "null" else kind for name, kind in given.fields.items()})


def with_literals(columns: StructOf, known: StructOf) -> StructOf:
    """Return columns in which a string is `literal` if it is in `known`: a card does not tell them apart."""
    fields = columns.fields
    found = {n: k for n, k in known.fields.items() if k == "literal" and fields.get(n) == "string"}
    return StructOf({**fields, **found}) if found else columns


def is_declared(conflict: Conflict) -> bool:
    """Return whether a person has declared the type of the column."""
    return isinstance(conflict, Fixed) and conflict.is_declared


def _is_text(kind: ColumnType) -> bool:
    return kind in ("string", "literal")


def _check_widenable(known: ColumnType, given: ColumnType, conflict: Conflict) -> None:
    """Raise `Fixed` if a type has a part that JSON does not have, such as a time: it would be read as text."""
    if _own_type(known) is not None:
        raise Fixed(conflict)
    if (own := _own_type(given)) is not None:
        raise Fixed(conflict, _NO_JSON.format(describe(own)))


def _own_type(kind: ColumnType) -> Foreign | None:
    """Return a part of a type that JSON does not have; None without one."""
    if isinstance(kind, StructOf):
        return next((own for own in map(_own_type, kind.fields.values()) if own is not None), None)
    if isinstance(kind, ListOf):
        return _own_type(kind.item)
    return kind if isinstance(kind, Foreign) and not str(kind.entry.get("dtype")).startswith(_WIDENABLE) else None
