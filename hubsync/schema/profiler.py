"""Shapes: what the rows of a batch look like but for their values, column by column.

Refuses what JSON would hide, and sees a kind of row that was never there, without a look at each value in Python:
rows of one job are nearly all alike, so a column's types are one set, built in C. A walk would cost more, and this is
the hot path. Knows nothing of encoding and has no words for people: `rows` has.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import chain
from types import NoneType
from typing import Annotated, Any
from uuid import UUID

import msgspec

LEAVES = frozenset({str, int, bool, NoneType, datetime, date, UUID, Decimal, bytes})
INFINITIES = frozenset({math.inf, -math.inf})
BEYOND_FLOATS = 1 << 1024  # readers make a float of an int beyond int64, and of this an infinity

_LISTS = frozenset({list, tuple})
_PLAIN = LEAVES | _LISTS | {float, dict}
_FLOAT = frozenset({float})
_INTS = frozenset({int, bool})
_EXACT, _INT64 = 1 << 53, 1 << 63  # what a float holds exactly, and what a column of ints does
_SmallInt = Annotated[int, msgspec.Meta(ge=-_EXACT, le=_EXACT)]
_Finite = Annotated[float, msgspec.Meta(ge=-sys.float_info.max, le=sys.float_info.max)]


class _Small(msgspec.Struct):
    """Looked at as a Struct's: a generic type's hash is Python, within which msgspec loses a signal's exception."""

    values: list[_SmallInt]


class _SmallLists(msgspec.Struct):
    values: list[list[_SmallInt]]


class _NumberLists(msgspec.Struct):
    values: list[list[_SmallInt | _Finite]]


# What lists that hold ints alone, or numbers, may hold without being new: by the types that their elements had.
_LISTS_OF_INTS = {frozenset[type](), frozenset({int})}, _SmallLists
_LISTS_OF_NUMBERS = {*_LISTS_OF_INTS[0], _FLOAT, frozenset({int, float})}, _NumberLists
_MOST = 4_096  # things learnt; a job whose keys are data has no end of them

# What a batch has that was never learnt: a set, and what is to be added to it.
Fresh = list[tuple[set[Any], Any]]


class Suspicious(Exception):
    """An infinity, an int beyond the floats, or a key that no column can have for a name."""


class Opaque(Exception):
    """A value whose type does not tell what its JSON is: a model, an array, a subclass."""


class RowProfiler:
    """What one uploader's rows were like so far. Not safe for several threads at once; what is lost in a race is seen
    as new once more.
    """

    def __init__(self) -> None:
        self._root = _Node()
        self._learnt = 0

    def look(self, rows: Collection[Any]) -> Fresh:
        """What of these rows was never learnt; empty where they are as those before.

        Raises:
            Suspicious, Opaque: see there.
            RecursionError: they are nested too deep.
        """
        fresh: Fresh = []
        if rows:
            if set(map(type, rows)) != {dict}:
                raise Opaque
            _look(rows, self._root, fresh)
        return fresh

    def learn(self, fresh: Fresh) -> None:
        """From now on this is nothing new."""
        self._learnt += len(fresh)
        if self._learnt > _MOST:
            self._root, self._learnt = _Node(), 0
            return
        for known, item in fresh:
            known.add(item)


class _Node:
    """One place in the rows: the rows themselves, a column, the elements of lists."""

    __slots__ = ("columns", "elements", "keys", "kinds", "sizes")

    def __init__(self) -> None:
        self.keys: set[tuple[str, ...]] = set()
        self.kinds: set[frozenset[type]] = set()
        self.sizes: set[int] = set()
        self.columns: dict[str, _Node] = {}
        self.elements: _Node | None = None


def _look(dicts: Collection[dict[Any, Any]], node: _Node, fresh: Fresh) -> None:
    signatures = set(map(tuple, dicts))
    for keys in signatures:
        alike = dicts if len(signatures) == 1 else [item for item in dicts if tuple(item) == keys]
        if keys not in node.keys:
            if not all(isinstance(key, str) and "\0" not in key for key in keys):
                raise Suspicious
            fresh.append((node.keys, keys))
        for key, column in zip(keys, zip(*map(dict.values, alike), strict=True), strict=True):
            if (below := node.columns.get(key)) is None:
                below = node.columns[key] = _Node()
            _look_at_values(column, below, fresh)


def _look_at_values(values: Sequence[Any], node: _Node, fresh: Fresh) -> None:
    kinds = frozenset(map(type, values))
    if kinds not in node.kinds:
        if not kinds <= _PLAIN:
            raise Opaque
        fresh.append((node.kinds, kinds))
    if int in kinds:
        ints = values if kinds <= _INTS else list(_of(_INTS, values))
        try:
            msgspec.convert({"values": ints}, _Small)  # the quickest look at all of them that there is
        except msgspec.ValidationError:
            fresh += ((node.sizes, size) for size in _sizes(ints) - node.sizes)
    if kinds <= LEAVES:
        return
    if float in kinds and not INFINITIES.isdisjoint(values if kinds == _FLOAT else _of(_FLOAT, values)):
        raise Suspicious
    if dict in kinds:
        _look(values if len(kinds) == 1 else list(_of({dict}, values)), node, fresh)
    if not _LISTS.isdisjoint(kinds):
        lists = values if kinds <= _LISTS else list(_of(_LISTS, values))
        if node.elements is None:
            node.elements = _Node()
        elif _are_known_numbers(lists, node.elements):
            return
        _look_at_values(list(chain.from_iterable(lists)), node.elements, fresh)


def _are_known_numbers(lists: Sequence[Any], elements: _Node) -> bool:
    """Token ids, log-probabilities, embeddings: so many that even a look at each one's type costs more than encoding.
    Where it says no, they are looked at as anything else: a NaN is nothing new, either.
    """
    for kinds, all_such in (_LISTS_OF_INTS, _LISTS_OF_NUMBERS):
        if elements.kinds and elements.kinds <= kinds:
            try:
                msgspec.convert({"values": lists}, all_such)
            except msgspec.ValidationError:
                return False
            return True
    return False


def _sizes(ints: Sequence[int]) -> set[int]:
    """Which of the bounds, that make a reader's column another, are passed."""
    most = max(max(ints), -1 - min(ints))
    if most >= BEYOND_FLOATS:
        raise Suspicious
    return {bound for bound in (_EXACT, _INT64) if most >= bound}


def _of(kinds: Collection[type], values: Iterable[Any]) -> Iterable[Any]:
    return (value for value in values if type(value) in kinds)
