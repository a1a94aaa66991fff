"""Which columns of a dataset must keep their types: the card says what they are, and the watermarks why they stay."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from hubsync.destinations.hub import card
from hubsync.model.layout import without_part
from hubsync.model.watermarks import RemoteWatermarks
from hubsync.schema.types import ColumnType, StructOf

_TEXT: ColumnType = "literal"


def described(
    current: card.Card, shown: Mapping[str, StructOf], found: RemoteWatermarks
) -> tuple[dict[str, StructOf], dict[str, list[str]]]:
    """Return the types of a dataset's columns, and the columns that a person declared, both by config.

    A string is `literal` if one in the shards may read as JSON. A config that hubsync did not write to is a person's.

    Args:
        current: the card.
        shown: the types that it declares.
        found: the watermarks in the same commit.

    Raises:
        CardError: the card's `configs:` are invalid.
    """
    marks = found.by_writer.values()
    schemas, declared = {}, {}
    for config, columns in shown.items():
        patterns = [
            card.glob_pattern(without_part(entry.glob)) for entry in current.entries() if entry.config == config
        ]
        writers = [mark for mark in marks if any(_finds(pattern, mark.next) for pattern in patterns)]
        fixed = {name: why for mark in marks for name, why in (mark.fixed or {}).get(config, {}).items()}
        is_unknown = any(mark.fixed is None for mark in writers)
        kinds = columns.fields.items()
        text = [name for name, kind in kinds if kind == "string" and (is_unknown or fixed.get(name) == "text")]
        schemas[config] = StructOf({**columns.fields, **dict.fromkeys(text, _TEXT)})
        declared[config] = [name for name in columns.fields if not writers or fixed.get(name) == "declared"]
    return schemas, declared


def _finds(pattern: re.Pattern[str], series: Collection[str]) -> bool:
    """Return whether a config's pattern finds the shards of a series."""
    return any(pattern.fullmatch(name.replace("*", "0")) for name in series)
