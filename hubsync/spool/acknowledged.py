"""What each writer has acknowledged, outside the catalogue: a small file next to its lock.

SQLite opens an older state of the catalogue, without an error, if its write-ahead log was deleted or an old copy was
put in its place. Rows that only the newer state counted would then look like a torn tail that may be cut. So after each
take a writer notes which segment it has written up to where. Whatever lies before that was acknowledged.
"""

from __future__ import annotations

import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hubsync._runtime.files import is_raw
from hubsync.spool.disk import segment_id_of
from hubsync.spool.host import this_host
from hubsync.spool.segments import SegmentQueries

SUFFIX = ".ack"
_NOTE = struct.Struct("<40sQQ")  # the machine's boot, the segment, its bytes


class AcknowledgedNote:
    """The note of one writer that is open."""

    def __init__(self, path: Path) -> None:
        self._boot = _boot()
        self._fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)

    def write(self, segment: int, size: int) -> None:
        """Note that a segment was acknowledged up to its first `size` bytes. A full disk must not stop a job."""
        with suppress(OSError):
            os.pwrite(self._fd, _NOTE.pack(self._boot, segment, size), 0)

    def close(self) -> None:
        """Close the file, which stays; do nothing if it is closed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Forgotten(NamedTuple):
    """Segment files with acknowledged bytes of which a catalogue knows nothing.

    Attributes:
        files: those that were written since this machine started, so the catalogue was set back.
        before_restart: those that were written before. The catalogue may have lost its last seconds in a power cut, as
            must be expected without fsync; the dataset tells what was committed in them.
    """

    files: list[Path]
    before_restart: list[Path]


def forgotten_files(directory: Path, segments: SegmentQueries) -> Forgotten:
    """Return the segment files of a spool that hold acknowledged bytes of which its catalogue knows nothing."""
    found, ours = Forgotten([], []), _boot()
    for note in sorted((directory / "writers").glob(f"*{SUFFIX}")):
        with suppress(OSError, struct.error):
            boot, segment, size = _NOTE.unpack(note.read_bytes())  # before the catalogue is asked, which is never older
            files = _forgotten(directory / "segments", note.stem, segment, size, segments)
            (found.files if boot == ours else found.before_restart).extend(files)
    return found


def _forgotten(files: Path, writer: str, segment: int, size: int, segments: SegmentQueries) -> list[Path]:
    """Return a writer's files with bytes that are not counted, if all up to `size` bytes of `segment` should be."""
    found = []
    for row in map(segments.find, segments.open_of(writer)):
        if row is not None and (row.id < segment or (row.id == segment and row.bytes < size)):
            file = files / row.file
            found += [file] if file.stat().st_size > row.bytes else []
    if segment > (newest := segments.newest()):
        unknown = (file for file in files.glob(f"{writer}-*") if newest < segment_id_of(file) <= segment)
        found += sorted(file for file in unknown if is_raw(file.name))
    return found


def _boot() -> bytes:
    return this_host().boot.encode()[:40].ljust(40, b"\0")
