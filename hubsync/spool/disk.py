"""The disk of a spool: whether it still exists, and a reserve for when it is full.

On a full disk not even the catalogue can grow, and then nothing can be sealed or committed, which would make room. So a
few megabytes are held back. When the disk refuses a write, the reserve is given up and the writers stop; what is
committed then makes room to fill it again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hubsync._runtime.files import file_size
from hubsync.policies import MIB

_RESERVE = 8 * MIB
_LEAST = MIB // 16
_SHARE = 20  # the reserve takes at most this part of a small disk,
_ROOM_SHARE = 4  # and the room for compressing a shard at most this part
_TO_OPEN = MIB // 4  # bytes that opening a spool needs: its log's index, a few transactions


class Disk:
    """The disk that holds a spool's directory."""

    def __init__(self, directory: Path, catalogue: Path) -> None:
        self._reserve = directory / "reserve"
        # Used in each take, so no pathlib.
        self._paths = str(catalogue), str(self._reserve), str(directory), str(directory / "segments")
        self._room = 0  # for compressing a shard
        about = os.stat(catalogue)
        self._known = (about.st_dev, about.st_ino)

    def is_there(self) -> bool:
        """Return whether the catalogue at its path is the one that was opened, and the segments' directory exists.

        A deleted catalogue still accepts writes, which no one would ever read.
        """
        try:
            about = os.stat(self._paths[0])
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == self._known and os.path.isdir(self._paths[3])

    def keep_room_for(self, bytes: int) -> int:
        """Keep room in the reserve for compressing a shard of this size; on a small disk, of a smaller one.

        Returns:
            The size for which it keeps room, in bytes.
        """
        about = os.statvfs(self._paths[2])
        self._room = min(bytes, about.f_blocks * about.f_frsize // _ROOM_SHARE)
        return self._room

    def reserve(self, *, of_what_is_left: bool = False) -> None:
        """Fill the reserve if the disk has room for it.

        Args:
            of_what_is_left: take a third of the room if that is less: there may never be more. The first reserve does
                so, too.
        """
        with suppress(OSError):
            about = os.statvfs(self._reserve.parent)
            free = about.f_bavail * about.f_frsize
            spare = min(_RESERVE, about.f_blocks * about.f_frsize // _SHARE)
            size, held = spare + self._room, file_size(self._reserve)
            if held is None or of_what_is_left:
                size, spare = min(size, free // 3), min(spare, free // 3)
            if size < _LEAST or (held or 0) >= size or free < size + spare:
                return
            new = self._reserve.with_suffix(".new")  # an empty file is a reserve that was given up
            fd = os.open(new, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.posix_fallocate(fd, 0, size) if hasattr(os, "posix_fallocate") else os.pwrite(fd, bytes(size), 0)
                os.replace(new, self._reserve)
            except OSError:
                new.unlink()
            finally:
                os.close(fd)

    def give_up_reserve(self) -> None:
        """Make room for the catalogue. The writers stop until the reserve is full again."""
        with suppress(OSError):
            if self.has_less_than(self._reserve.stat().st_size):
                os.truncate(self._reserve, 0)

    def has_less_than(self, bytes: int) -> bool:
        """Return whether fewer bytes than this are free."""
        try:
            about = os.statvfs(self._paths[2])
        except OSError:  # it is gone
            return False
        return about.f_bavail * about.f_frsize < bytes

    def is_exhausted(self) -> bool:
        """Return whether the reserve was given up."""
        try:
            return os.stat(self._paths[1]).st_size == 0
        except OSError:
            return False


def make_room_to_open(directory: Path) -> None:
    """Give up the reserve if the catalogue could not be opened otherwise."""
    with suppress(OSError):
        about = os.statvfs(directory)
        if about.f_bavail * about.f_frsize < _TO_OPEN:
            os.truncate(directory / "reserve", 0)


def segment_id_of(file: Path) -> int:
    """Return the id in the name of a segment's file, such as `writer-00000012.jsonl`; -1 if it has no id.

    A compressed file is called `writer-00000012.3.parquet`, with the committer's term.
    """
    number = file.name.partition(".")[0].rpartition("-")[2]
    return int(number) if number.isdigit() else -1
