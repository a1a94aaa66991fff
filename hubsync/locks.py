"""Locks on files that end with their process, however it dies; and that a forked child does not inherit.

`flock` belongs to the open file, so two uploaders in one process lock each other out as two processes do, and
nothing but the death of its holder (or `release`) lets go: no lease runs out under a process that is only slow.
"""

from __future__ import annotations

import errno
import fcntl
import os
import weakref
from pathlib import Path

from hubsync.errors import SpoolError

_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An exclusive lock on one file, which holds the pid of who has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Whether the lock is now held. Never waits."""
        if self._fd is not None:
            return True
        try:
            fd = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise SpoolError(f"the lock {self.path} can't be opened: {error}.") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise SpoolError(f"{self.path} can't be locked: {error}. Is it on a file system without locks?") from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd
        _held.add(self)
        return True

    @property
    def held(self) -> bool:
        return self._fd is not None

    def holder(self) -> int | None:
        """The pid of the process that holds it, this one or another; None where nobody does."""
        if self._fd is not None:
            return os.getpid()
        if not self.path.exists():
            return None
        probe = FileLock(self.path)
        with open(self.path, "rb") as file:
            pid = file.read(20).strip()
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(pid) if pid.isdigit() else None
        del probe
        return None

    def release(self) -> None:
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)


def _let_go_in_child() -> None:
    """A forked child shares the open file, and so the lock, which would outlive the parent: it closes its copy."""
    for lock in list(_held):
        if lock._fd is not None:
            os.close(lock._fd)
            lock._fd = None


os.register_at_fork(after_in_child=_let_go_in_child)
