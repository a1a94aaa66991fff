"""An encoded batch: what the encoders of this package return, and `put` takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from hubsync.schema.profiler import Discoveries, RowProfiler
from hubsync.schema.types import Conflict, StructOf


@dataclass(frozen=True, slots=True)
class Encoded:
    """A batch as it will be in its segment.

    Attributes:
        lines: The rows as JSON, each with its newline; or a frame of Arrow data, on its way to a Parquet shard.
        rows: The number of rows.
        discoveries: What `profiler` did not know, for its `remember`.
        columns: The types of the columns, or why the batch conflicts with itself; None unless there are discoveries.
        profiler: The profiler that looked at the batch; None if none did.
        is_typed: The types are a table's, or declared; otherwise they were inferred from the rows.
    """

    lines: bytes
    rows: int
    discoveries: Discoveries = field(default_factory=list)
    columns: StructOf | Conflict | None = None
    profiler: RowProfiler | None = None
    is_typed: bool = False
