"""Fingerprints of batches, which tell a replay from other rows with the same offset."""

from __future__ import annotations

import io
import re
import zlib
from typing import Any

import msgspec

from hubsync._runtime import frames
from hubsync.encoding.tables import text_lines

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:")


def fingerprint(lines: bytes, rows: int) -> int:
    """Return a number that differs for other rows, in microseconds: it looks at the first and the last row.

    It is the same whatever hubsync has learned of the columns since, so it leaves out nulls, the types of numbers and
    the spelling of strings in JSON columns. It leaves out times as well: they have several spellings, and a job that
    starts over has others. Datasets contain these numbers, so what this returns for a batch must not change.

    Args:
        lines: The encoded batch.
        rows: How many rows it has.
    """
    is_frame = frames.is_frame(lines)
    try:
        ends = _ends_of_frames(lines) if is_frame else _ends_of_lines(lines)
        text = _encode([_plain(msgspec.json.decode(line), depth=0) for line in ends])
    except Exception:  # noqa: BLE001  (whatever a value is: no batch may be refused for that)
        text = b""
    return zlib.crc32(text, rows & 0xFFFFFFFF) << 1 | is_frame


def may_be_equal(one: int, other: int) -> bool:
    """Return whether two fingerprints may be of the same rows; those of tables and of JSON can't be compared."""
    return one == other or (one ^ other) & 1 == 1


_encode = msgspec.json.Encoder(order="sorted").encode


def _ends_of_lines(lines: bytes) -> tuple[bytes, bytes]:
    return lines[: lines.find(b"\n") + 1], lines[lines.rfind(b"\n", 0, -1) + 1 :]


def _ends_of_frames(lines: bytes) -> tuple[bytes, bytes]:
    from pyarrow import ipc

    parts = [part for frame in frames.read_frames(io.BytesIO(lines)) for part in ipc.open_stream(frame.data)]
    parts = [part for part in parts if part.num_rows]
    return _text(parts[0], 0), _text(parts[-1], parts[-1].num_rows - 1)


def _text(batch: Any, row: int) -> bytes:
    import pyarrow

    return text_lines(pyarrow.Table.from_batches([batch.slice(row, 1)]))


def _plain(value: Any, depth: int) -> Any:
    if isinstance(value, dict):
        plain = {name: _plain(item, depth + 1) for name, item in value.items()}
        return {name: item for name, item in plain.items() if item is not None}
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        if _TIME.match(value):
            return None
        return _unquoted(value) if depth == 1 else value
    return value


def _unquoted(text: str) -> str:
    """Return a string as it was before it was written for a JSON column."""
    while text[:1] == text[-1:] == '"' and len(text) > 1:
        try:
            inner = msgspec.json.decode(text)
        except msgspec.DecodeError:
            break
        text = inner
    return text
