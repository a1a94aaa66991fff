"""A batch on its way from `put` to the spool."""

from __future__ import annotations

from typing import NamedTuple

from hubsync.model.layout import Layout
from hubsync.model.receipt import Receipt
from hubsync.schema.types import StructOf


class Batch(NamedTuple):
    """The encoded rows of one `put`.

    Attributes:
        schema: what the columns of its config hold with it; None where nobody looked.
        layout: where it belongs, where that is not the uploader's own place.
        set_aside: why it goes into the dead letter.
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
