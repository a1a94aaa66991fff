"""Text that the JSON reader of `datasets` takes for times.

It does so if every string of a place in a file is a date, or a date and a time without a fraction of a second, and then
returns all of them in one form: `2026-01-01T10:00Z` as `2026-01-01 10:00:00`. No feature in the card prevents it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from hubsync.schema.types import ColumnType, Foreign, ListOf, StructOf

_TIME = re.compile(r"\d{4}-\d\d-\d\d(?:[ T]\d\d(?::\d\d){0,2}(?:Z|[+-]\d\d(?::?\d\d)?)?)?")
_FINAL = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")  # the form in which it returns them


def places_of_times(rows: Iterable[Mapping[str, Any]], columns: StructOf) -> set[str]:
    """Return the places of text that would come back in another form, such as `runs[].day`."""
    times: set[str] = set()
    others: set[str] = set()
    for row in rows:
        for path, text in _texts(row, columns, ""):
            if path in others or _FINAL.fullmatch(text) is not None:
                continue
            (times if _is_time(text) else others).add(path)
    return times - others


def _texts(value: Any, kind: ColumnType | None, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        if kind in ("string", "literal") or (isinstance(kind, Foreign) and kind.entry.get("dtype") == "large_string"):
            yield path, value
    elif isinstance(value, Mapping) and isinstance(kind, StructOf):
        for name, item in value.items():
            yield from _texts(item, kind.fields.get(name), f"{path}.{name}" if path else name)
    elif isinstance(value, list) and isinstance(kind, ListOf):
        for item in value:
            yield from _texts(item, kind.item, f"{path}[]")


def _is_time(text: str) -> bool:
    if _TIME.fullmatch(text) is None:
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
