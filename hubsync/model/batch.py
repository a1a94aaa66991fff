"""A batch on its way from `put` to the spool."""

from __future__ import annotations

from typing import NamedTuple

from hubsync.model.layout import Layout
from hubsync.model.receipt import Receipt
from hubsync.schema.types import StructOf


class Batch(NamedTuple):
    """The encoded rows of one `put`.

    Attributes:
        lines: The rows, as JSON Lines or as one frame of Arrow data.
        rows: How many there are.
        receipt: What `put` returned.
        source: The name of the sequence that `offset` counts.
        offset: The batch's position in its source.
        key: A unique name for the batch.
        schema: The column types of its config, including this batch; None if it was not checked.
        layout: Where its shards go, if not to the uploader's own layout.
        set_aside: Why it goes to the dead letter; None if it does not.
        waits: The caller of `put` waits until it is spooled, so it learns what goes wrong.
    """

    lines: bytes
    rows: int
    receipt: Receipt
    source: str = "default"
    offset: int | None = None
    key: str | None = None
    schema: StructOf | None = None
    layout: Layout | None = None
    set_aside: str | None = None
    waits: bool = False
