"""The disk under a spool: whether it is still there, and a reserve for the day when it is full.

On a full disk not even the catalogue can grow, and without it nothing can be sealed or committed that would make room.
So a few megabytes are held back: whoever the disk refuses gives them up, the writers stop, and what is committed then
makes room for the reserve to be filled again.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hubsync._runtime.files import file_size
from hubsync.policies import MIB

_RESERVE = 8 * MIB
_LEAST = MIB // 16
_SHARE = 20  # of a small disk the reserve takes no more than this part,
_ROOM_SHARE = 4  # and the room to pack a shard in no more than this
_TO_OPEN = MIB // 4  # bytes, without which a spool can't be opened: its log's index, a few transactions


class Disk:
    """The disk that holds one spool's directory."""

    def __init__(self, directory: Path, catalogue: Path) -> None:
        self._reserve = directory / "reserve"
        self._paths = str(catalogue), str(self._reserve), str(directory)  # looked at in each take: no pathlib
        self._room = 0  # to pack a shard in
        about = os.stat(catalogue)
        self._known = (about.st_dev, about.st_ino)

    def is_there(self) -> bool:
        """Whether the catalogue at its path is the one that was opened: a deleted one takes writes as before, and
        nobody will ever read them.
        """
        try:
            about = os.stat(self._paths[0])
        except OSError:
            return False
        return (about.st_dev, about.st_ino) == self._known

    def keep_room_for(self, bytes: int) -> int:
        """From now on the reserve has room for a shard of this size as well, which is packed before it is committed; on
        a small disk for a smaller one. Answers for how large a one.
        """
        about = os.statvfs(self._paths[2])
        self._room = min(bytes, about.f_blocks * about.f_frsize // _ROOM_SHARE)
        return self._room

    def reserve(self, *, of_what_is_left: bool = False) -> None:
        """Fills the reserve where there is room for it. The first one, and `of_what_is_left`, take a third of the room
        where that is less: there may never be more.
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
            new = self._reserve.with_suffix(".new")  # an empty reserve is one that was given up
            fd = os.open(new, os.O_CREAT | os.O_WRONLY, 0o600)
            try:
                os.posix_fallocate(fd, 0, size) if hasattr(os, "posix_fallocate") else os.pwrite(fd, bytes(size), 0)
                os.replace(new, self._reserve)
            except OSError:
                new.unlink()
            finally:
                os.close(fd)

    def give_up_reserve(self) -> None:
        """Makes room for the catalogue. The writers stop until the reserve is full again."""
        with suppress(OSError):
            if self.has_less_than(self._reserve.stat().st_size):
                os.truncate(self._reserve, 0)

    def has_less_than(self, bytes: int) -> bool:
        """Whether less than this is left."""
        try:
            about = os.statvfs(self._paths[2])
        except OSError:  # it is gone
            return False
        return about.f_bavail * about.f_frsize < bytes

    def is_exhausted(self) -> bool:
        """Whether the reserve was given up."""
        try:
            return os.stat(self._paths[1]).st_size == 0
        except OSError:
            return False


def make_room_to_open(directory: Path) -> None:
    """Gives the reserve up where without it not even the catalogue could be opened."""
    with suppress(OSError):
        about = os.statvfs(directory)
        if about.f_bavail * about.f_frsize < _TO_OPEN:
            os.truncate(directory / "reserve", 0)


def segment_id_of(file: Path) -> int:
    """The number in the name of a segment's file: `writer-00000012.jsonl`, packed `writer-00000012.3.parquet`; -1 for
    none.
    """
    number = file.name.partition(".")[0].rpartition("-")[2]
    return int(number) if number.isdigit() else -1
