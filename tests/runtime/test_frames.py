"""Frames are whole or not there: cut, zeroed and changed ones are found by their length and checksum."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from hubsync._runtime import frames
from hubsync._runtime.files import whole_rows

ROWS = [(b"A", 3, b"\x00arrow\n" * 50), (b"J", 2, b'{"a":1}\n{"a":2}\n'), (b"A", 1, b"")]


def written(path: Path) -> bytes:
    content = b"".join(frames.header(kind, rows, data) + data for kind, rows, data in ROWS)  # type: ignore[arg-type]
    path.write_bytes(content)
    return content


def test_frames_are_read_as_they_were_written(tmp_path: Path) -> None:
    content = written(tmp_path / "w.frames")
    assert list(frames.read_frames(io.BytesIO(content))) == ROWS
    assert whole_rows(tmp_path / "w.frames", len(content)) == (6, len(content))
    assert frames.is_frame(content)
    assert not frames.is_frame(b'{"a":1}\n')


@pytest.mark.parametrize("cut", [1, 23, 24, 30, 374])
def test_of_a_cut_file_the_whole_frames_are_kept(tmp_path: Path, cut: int) -> None:
    content = written(tmp_path / "w.frames")
    (tmp_path / "w.frames").write_bytes(content[:cut])
    rows, kept = whole_rows(tmp_path / "w.frames", len(content))
    assert (rows, kept) == ((3, 374) if cut == 374 else (0, 0))
    if cut != 374:
        with pytest.raises(frames.DamagedFrame):
            list(frames.read_frames(io.BytesIO(content[:cut])))


@pytest.mark.parametrize("at", [0, 4, 8, 12, 20, 30])
def test_a_byte_that_a_power_cut_changed_is_found(tmp_path: Path, at: int) -> None:
    content = bytearray(written(tmp_path / "w.frames"))
    content[at] ^= 0xFF
    (tmp_path / "w.frames").write_bytes(content)
    rows, _ = whole_rows(tmp_path / "w.frames", len(content))
    assert rows == 0
    with pytest.raises(frames.DamagedFrame):
        list(frames.read_frames(io.BytesIO(bytes(content))))
