r"""Strings in a column of type JSON.

`datasets` stores such a column as JSON text, and takes a string for JSON text if it can parse it: the text "4" comes
back as the number 4. hubsync writes such a string as JSON text (`"\"4\""`), so it comes back as it was. Any other
value is written as in any column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import compress
from typing import Any

import msgspec

_SPACE = " \t\r\n\ufeff"  # what the parser of `datasets` skips
_CLOSING = {"{": "}", "[": "]", '"': '"'}
_FIRST = frozenset('{["-0123456789tfnNI' + _SPACE)
_FEW = 1_000  # of which an iterator each is no burden
# A bracket or quote that opens a value, or a scalar and nothing else. The parser accepts `1.`, `01` and `-e` as well.
# No quantifier gives back what it took (`*+`), so the time is linear, whatever the text.
_START = re.compile(
    rf"""[{_SPACE}]*+(?:([{{\["])|(?=[-0-9tfnNI])"""
    r"(?:-?+[0-9]*+(?:\.[0-9]*+)?+(?:[eE][+-]?+[0-9]*+)?+|true|false|null|NaN|-?Infinity)"
    rf"[{_SPACE}]*+\Z)"
)


def reads_as_json(text: str) -> bool:
    """Return whether `datasets` may take a string for JSON text. It is True for some that it can't parse."""
    found = _START.match(text)
    if found is None or (opening := found[1]) is None:
        return found is not None
    core = text.strip(_SPACE)
    return len(core) > 1 and core[-1] == _CLOSING[opening]


def any_reads_as_json(texts: Sequence[str]) -> bool:
    """Return `any(map(reads_as_json, texts))`. For most texts, the first character decides, which is checked here."""
    firsts = next(zip(*texts, strict=False), None) if len(texts) <= _FEW else None
    if firsts is None:  # one is empty, or there are too many for an iterator each
        candidates: Iterable[str] = [text for text in texts if text[:1] in _FIRST]
    else:
        candidates = compress(texts, map(_FIRST.__contains__, firsts))
    return any(map(reads_as_json, filter(_START.match, candidates)))


def escaped(rows: Sequence[Mapping[str, Any]], columns: Collection[str]) -> Sequence[Mapping[str, Any]]:
    """Return rows whose strings in JSON columns come back as they are. A row without such strings is not copied."""
    return [_with(row, columns, _escape) for row in rows]


def unescaped(row: dict[str, Any], columns: Collection[str]) -> dict[str, Any]:
    """Return a row that `escaped` wrote as it was before."""
    unescaped: dict[str, Any] = _with(row, columns, _unescape)
    return unescaped


def _with(row: Any, columns: Collection[str], change: Callable[[str], Any]) -> Any:
    texts = {name: text for name in columns if type(text := row.get(name)) is str and reads_as_json(text)}
    return {**row, **{name: change(text) for name, text in texts.items()}} if texts else row


def _escape(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _unescape(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
