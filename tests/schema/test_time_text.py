"""Which text the JSON reader of `datasets` takes for times, as pyarrow does."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.json
import pytest

from hubsync.schema.time_text import places_of_times
from hubsync.schema.types import infer

TEXTS = [
    "2026-01-01", "2026-01-01T10:00:00", "2026-01-01T10:00:00Z", "2026-01-01 10:00:00", "2026-01-01 10:00",
    "2026-01-01T10", "2026-01-01T10:00+05:30", "2026-01-01T10:00:00.5", "20260101", "2026-01", "2026-13-01",
    "10:00:00", "-2026-01-01", "2026-01-01x", "2026", "", "words",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_a_time_if_a_reader_changes_it(text: str) -> None:
    row = {"x": text}
    read = pa.json.read_json(io.BytesIO(json.dumps(row).encode() + b"\n"))["x"].cast(pa.string()).to_pylist()
    assert places_of_times([row], infer([row])) == (set() if read == [text] else {"x"})


def test_a_place_with_other_text_keeps_all_of_it() -> None:
    rows = [{"x": "2026-01-01", "runs": [{"day": "2026-01-01"}, {"day": None}]}, {"x": "later", "runs": []}]
    assert places_of_times(rows, infer(rows)) == {"runs[].day"}
