"""The row profiler: find out whether a batch holds a kind of row that earlier batches did not.

It also spots values that JSON would hide, such as infinities. `put` calls it for every batch, so it must not look at
each value in Python: the rows of a job are nearly all alike, and the types of one column are one set, built in C.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from itertools import chain
from operator import itemgetter
from types import NoneType
from typing import Annotated, Any
from uuid import UUID

import msgspec

from hubsync.schema.json_text import any_reads_as_json
from hubsync.schema.types import (
    EMPTY,
    EXACT_FLOAT,
    INT64,
    LITERALS,
    ColumnType,
    ListOf,
    StructOf,
    is_json,
    json_columns,
)

LEAVES: frozenset[type] = frozenset({str, int, bool, NoneType, datetime, date, time, timedelta, UUID, Decimal})
INFINITIES = frozenset({math.inf, -math.inf})

_LISTS = frozenset({list, tuple})
_PLAIN = LEAVES | _LISTS | {float, dict}
_NESTED = _LISTS | {dict, float, NoneType}
_FLOAT = frozenset({float})
_STR, _INT = frozenset({str}), frozenset({int})
_NO_TEXT = _LISTS | {NoneType, bool, int, float, dict}
_LITERAL = -1  # among the sizes of a column: it has strings that read as JSON
_INTS = frozenset({int, bool})
_TIMES = frozenset({datetime, time})
_MINUTE = timedelta(minutes=1)
_SmallInt = Annotated[int, msgspec.Meta(ge=-EXACT_FLOAT, le=EXACT_FLOAT)]
_Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


# Structs, because msgspec hashes the type that it converts to. The hash of a generic type is Python code, and msgspec
# would swallow an exception that a signal handler raises there.
class _SmallInts(msgspec.Struct):
    values: list[_SmallInt]


class _SmallIntLists(msgspec.Struct):
    values: list[list[_SmallInt]]


class _NumberLists(msgspec.Struct):
    values: list[list[_SmallInt | _Finite]]


# If the lists of a column had elements of these types so far, then lists of this form are nothing new.
_INT_LISTS = {frozenset[type](), frozenset({int})}, _SmallIntLists
_ANY_NUMBER_LISTS = {*_INT_LISTS[0], _FLOAT, frozenset({int, float})}, _NumberLists
_MAX_KNOWN = 4_096  # things to remember: keys that are data would never end

Discoveries = list[tuple[set[Any], Any]]
"""What no earlier batch had: pairs of a profiler's set, and the item to add to it."""


class SuspiciousValue(Exception):
    """The batch holds an infinity, an int beyond 64 bits, or a key that can't name a column."""


class OpaqueType(Exception):
    """The batch holds a value whose type does not determine its JSON: a model, an array, a subclass, an odd zone."""


class RowProfiler:
    """Remember what the rows of one uploader looked like.

    Threads that use it at the same time may lose a discovery; it is then discovered again.
    """

    def __init__(self, places: StructOf = EMPTY, *, escapes: bool = True) -> None:
        """Begin without any knowledge, except for what is JSON.

        Args:
            places: See the property.
            escapes: Whether strings that read as JSON are written as JSON text in a JSON column, as JSON Lines need.
        """
        self._root = _Node()
        self.tables: set[str] = set()  # the types of typed batches, as JSON
        self._known = 0
        self._escapes = escapes
        self.places = places

    @property
    def places(self) -> StructOf:
        """What is JSON in the config, as `json_places` returns it: it may have any shape."""
        return self._places

    @places.setter
    def places(self, places: StructOf) -> None:
        self.escaped = json_columns(places) if self._escapes else frozenset()
        self._places = places  # last, as a thread that reads both reads this first
        _mark(self._root, places)

    def profile(self, rows: Collection[Any]) -> Discoveries:
        """Return what `remember` has not seen yet; empty if the rows are like earlier ones.

        Raises:
            SuspiciousValue: A value must be checked one by one.
            OpaqueType: The rows must be converted to plain values first.
            RecursionError: The rows are nested too deeply.
        """
        found: Discoveries = []
        if rows:
            if set(map(type, rows)) != {dict}:
                raise OpaqueType
            _profile(rows, self._root, found, self._root)
        return found

    def remember(self, found: Discoveries) -> None:
        """Count these discoveries as known from now on."""
        self._known += len(found)
        if self._known > _MAX_KNOWN:
            self._root, self.tables, self._known = _Node(), set(), 0
            _mark(self._root, self._places)
            return
        for known, item in found:
            known.add(item)


class _Node:
    """One place in the rows: the rows themselves, a column, or the elements of a list column."""

    __slots__ = ("columns", "elements", "is_column", "is_json", "keys", "kinds", "last_keys", "sizes", "values_of")

    def __init__(self) -> None:
        self.keys: set[tuple[str, ...]] = set()
        self.last_keys: tuple[str, ...] = ()
        self.values_of: Callable[[dict[str, Any]], tuple[Any, ...]] | None = None  # of `last_keys`, if they are known
        self.kinds: set[frozenset[type]] = set()
        self.sizes: set[int] = set()
        self.is_json = False
        self.is_column = False  # of strings, it matters what they read as
        self.columns: dict[str, _Node] = {}
        self.elements: _Node | None = None


def _profile(dicts: Collection[dict[Any, Any]], node: _Node, found: Discoveries, root: _Node | None = None) -> None:
    for keys, columns in _columns_by_keys(dicts, node):
        if keys not in node.keys:
            if not all(isinstance(key, str) and "\0" not in key for key in keys):
                raise SuspiciousValue
            found.append((node.keys, keys))
        elif len(keys) > 1 and keys is not node.last_keys:
            node.last_keys, node.values_of = keys, itemgetter(*keys)
        for key, column in zip(keys, columns, strict=True):
            if (below := node.columns.get(key)) is None:
                below = node.columns[key] = _Node()
                below.is_column = node is root
            _profile_values(column, below, found)


def _columns_by_keys(
    dicts: Collection[dict[Any, Any]], node: _Node
) -> Iterable[tuple[tuple[Any, ...], Iterable[Sequence[Any]]]]:
    """Return, for each combination of keys, the columns of the dicts that have them."""
    keys, values_of = node.last_keys, node.values_of  # most batches are like the last one, in any order of the keys
    if values_of is not None and {*map(len, dicts)} == {len(keys)}:
        with suppress(KeyError):
            return [(keys, zip(*map(values_of, dicts), strict=True))]
    alike: dict[tuple[Any, ...], list[dict[Any, Any]]] = {}
    for item in dicts:
        alike.setdefault(tuple(item), []).append(item)
    return [(keys, zip(*map(dict.values, items), strict=True)) for keys, items in alike.items()]


def _profile_values(values: Sequence[Any], node: _Node, found: Discoveries) -> None:
    kinds = frozenset(map(type, values))
    if kinds in node.kinds and not node.is_json:
        if kinds == _STR:  # most columns are like this one, or the next
            if node.is_column and _LITERAL not in node.sizes and any_reads_as_json(values):
                found.append((node.sizes, _LITERAL))
            return
        if kinds == _INT:
            _profile_ints(values, node, found)
            return
    _profile_any(values, kinds, node, found)


def _profile_any(values: Sequence[Any], kinds: frozenset[type], node: _Node, found: Discoveries) -> None:
    if node.is_json:
        if not (node.is_column or kinds <= _NO_TEXT or _LITERAL in node.sizes):
            found.append((node.sizes, _LITERAL))
        node, found = _Node(), []  # looked at only for what no row may hold
    if float in kinds and _are_missing(values if kinds == _FLOAT else list(_of(_FLOAT, values))):
        kinds = kinds if kinds in node.kinds else kinds - _FLOAT | {NoneType}
    if kinds not in node.kinds:
        if not kinds <= _PLAIN:
            raise OpaqueType
        found.append((node.kinds, kinds))
    if kinds <= LEAVES:
        _profile_leaves(values, kinds, node, found)
        return
    if not kinds <= _NESTED:
        _profile_leaves(list(_of(LEAVES, values)), kinds & LEAVES, node, found)
    if dict in kinds:
        _profile(values if len(kinds) == 1 else list(_of({dict}, values)), node, found)
    if not _LISTS.isdisjoint(kinds):
        lists = values if kinds <= _LISTS else list(_of(_LISTS, values))
        if node.elements is None:
            node.elements = _Node()
        elif _are_known_numbers(lists, node.elements):
            return
        _profile_values(list(chain.from_iterable(lists)), node.elements, found)


def _profile_leaves(values: Sequence[Any], kinds: frozenset[type], node: _Node, found: Discoveries) -> None:
    is_text = str in kinds and node.is_column and _LITERAL not in node.sizes
    if is_text and any_reads_as_json(values if kinds == _STR else list(_of(_STR, values))):
        found.append((node.sizes, _LITERAL))
    if kinds == _STR:
        return
    if int in kinds:
        _profile_ints(values if kinds <= _INTS else list(_of(_INTS, values)), node, found)
    if not _TIMES.isdisjoint(kinds) and any(map(_has_odd_zone, _of(_TIMES, values))):
        raise OpaqueType
    if node.is_column and not LITERALS.isdisjoint(kinds) and _LITERAL not in node.sizes:
        found.append((node.sizes, _LITERAL))


def _are_known_numbers(lists: Sequence[Any], elements: _Node) -> bool:
    """Return whether lists of numbers are nothing new, without a look at each type.

    Token ids, log-probabilities and embeddings are so many that even that would cost more than encoding them. False
    only means that they must be looked at: a NaN is nothing new, either.
    """
    for kinds, form in (_INT_LISTS, _ANY_NUMBER_LISTS):
        if elements.kinds and elements.kinds <= kinds:
            try:
                msgspec.convert({"values": lists}, form)
            except msgspec.ValidationError:
                return False
            return True
    return False


def _mark(node: _Node, kind: ColumnType, *, is_root: bool = True) -> None:
    """Mark the places that are JSON; `kind` has no others."""
    node.is_json = is_json(kind)
    if isinstance(kind, StructOf):
        for name, below in kind.fields.items():
            column = node.columns.setdefault(name, _Node())
            column.is_column = is_root
            _mark(column, below, is_root=False)
    elif isinstance(kind, ListOf):
        node.elements = node.elements or _Node()
        _mark(node.elements, kind.item, is_root=False)


def _are_missing(floats: Sequence[float]) -> bool:
    """Return whether all floats are NaN: a missing value of any type, and thus of none that a column must have."""
    if not INFINITIES.isdisjoint(floats):
        raise SuspiciousValue
    return floats[0] != floats[0] and all(value != value for value in floats)


def _profile_ints(ints: Sequence[int], node: _Node, found: Discoveries) -> None:
    """Discover ints that a float does not hold: with them, a reader's column has another type."""
    try:
        msgspec.convert({"values": ints}, _SmallInts)  # the fastest way to look at all of them
    except msgspec.ValidationError:
        most, least = max(ints), min(ints)
        if max(most, -1 - least) >= INT64:
            raise SuspiciousValue from None
        if max(most, -1 - least) >= EXACT_FLOAT and EXACT_FLOAT not in node.sizes:
            found.append((node.sizes, EXACT_FLOAT))


def _has_odd_zone(value: datetime | time) -> bool:
    """Return whether a zone's offset has seconds, as local mean times do: msgspec would leave them out."""
    offset = value.utcoffset()
    return offset is not None and bool(offset % _MINUTE)


def _of(kinds: Collection[type], values: Iterable[Any]) -> Iterable[Any]:
    return (value for value in values if type(value) in kinds)
