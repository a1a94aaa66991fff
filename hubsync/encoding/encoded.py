"""An encoded batch: what the encoders of this package return, and `put` takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from hubsync.encoding.values import encoder
from hubsync.schema.json_text import escaped, unescaped
from hubsync.schema.profiler import Discoveries, RowProfiler
from hubsync.schema.types import EMPTY, Conflict, StructOf


class Encoded(msgspec.Struct, frozen=True):
    """A batch as it will be in its segment.

    Attributes:
        lines: The rows as JSON, each with its newline; or a frame of Arrow data, on its way to a Parquet shard.
        rows: The number of rows.
        discoveries: What `profiler` did not know, for its `remember`.
        columns: The types of the columns, or why the batch conflicts with itself; None unless there are discoveries.
        profiler: The profiler that looked at the batch; None if none did.
        is_typed: The types are a table's, or declared; otherwise they were inferred from the rows.
        places: What the profiler knew to be JSON when it looked.
        conflicts: Why columns of a typed batch are JSON; those of another are in `columns`.
        escaped: The columns whose strings are written for a JSON column; see `hubsync.schema.json_text`.
    """

    lines: bytes
    rows: int
    discoveries: Discoveries = []
    columns: StructOf | Conflict | None = None
    profiler: RowProfiler | None = None
    is_typed: bool = False
    places: StructOf = EMPTY
    conflicts: Sequence[Conflict] = ()
    escaped: frozenset[str] = frozenset()

    @property
    def content(self) -> bytes:
        """What the batch would be without JSON columns: equal rows have equal content."""
        if not self.escaped:
            return self.lines
        return encoder.encode_lines([unescaped(row, self.escaped) for row in decode_rows(self.lines)])

    def with_escaped(self, columns: frozenset[str]) -> Encoded:
        """Return the batch with strings written for these JSON columns."""
        if columns <= self.escaped:
            return self
        rows = escaped(decode_rows(self.lines), columns - self.escaped)
        return msgspec.structs.replace(self, lines=encoder.encode_lines(rows), escaped=columns | self.escaped)


def decode_rows(lines: bytes, *, most: int | None = None) -> list[Any]:
    """Return the rows of a batch that is JSON, or the first of them."""
    return _decoder.decode_lines(lines if most is None else b"\n".join(lines.split(b"\n", most)[:most]))


_decoder = msgspec.json.Decoder()
