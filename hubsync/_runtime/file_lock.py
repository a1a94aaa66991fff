"""File locks that end with their process and that a forked child does not inherit.

`flock` belongs to the open file, so two uploaders in one process exclude each other as two processes do. A process
that is stopped (SIGSTOP, a debugger, a frozen container) keeps its lock. The holder therefore refreshes the lock
file's time as a heartbeat. If the heartbeat stalls, another process may steal the lock by putting a new file in its
place. The old holder notices only when it calls `is_current`, so whatever relies on the lock must check that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import weakref
from contextlib import suppress
from pathlib import Path

from hubsync._runtime.clock import Clock
from hubsync._runtime.fork import after_fork_in_child
from hubsync.errors import SpoolError, SpoolLost

HEARTBEAT_S = 0.5  # how often a holder refreshes its lock
# A holder counts as stalled after this long without a heartbeat, and over this many checks: a clock that jumps or a
# machine that was suspended must not look like a stall.
_STALLED_S = 3.0
_STALLED_CHECKS = 4

_guard = threading.Lock()  # one thread may release a lock while another refreshes it
_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


class FileLock:
    """An exclusive lock on one file, which contains its holder's pid."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Try to take the lock, without waiting.

        Returns:
            Whether this object holds the lock now.

        Raises:
            SpoolError: The file can't be opened or locked.
            SpoolLost: Something else is in its place, such as a directory.
        """
        if self._fd is not None:
            return True
        if self.path.exists() and not self.path.is_file():
            raise SpoolLost(
                f"something else is in the place of the lock {self.path}, which is not a regular file. The rows of the "
                f"spool are safe. End all jobs that use it, and remove {self.path}, which holds none of them."
            )
        try:
            fd = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise SpoolError(f"the lock {self.path} can't be opened: {error}. The rows are safe.") from error
        with _guard:  # `holder` in another thread must not see the lock taken before it is recorded as ours
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
                raise SpoolError(
                    f"{self.path} can't be locked: {error}. If its file system has no locks, use a spool on a local "
                    "disk: spool=…"
                ) from error
            self._record(fd)
        if not self.is_current():  # stolen between opening and locking it
            self.release()
            return False
        return True

    def _record(self, fd: int) -> None:
        with suppress(OSError):  # the pid is information for people; a full disk must not stop a job
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this object has locked the file. The lock may have been stolen since: see `is_current`."""
        return self._fd is not None

    def is_current(self) -> bool:
        """Return whether the lock is held and was not stolen."""
        with _guard:
            try:
                return self._fd is not None and os.path.samestat(os.fstat(self._fd), os.stat(self.path))
            except OSError:
                return False

    def refresh(self) -> None:
        """Write a heartbeat: update the lock file's time."""
        with _guard, suppress(OSError):
            if self._fd is not None:
                os.utime(self._fd)

    def steal(self) -> None:
        """Take the lock from a stalled holder. Processes that may steal it must take turns.

        Raises:
            SpoolError: The lock file can't be replaced.
        """
        self.release()
        new = self.path.with_suffix(f".{os.getpid()}")
        try:
            fd = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._record(fd)
            os.replace(new, self.path)
        except OSError as error:
            self.release()
            raise SpoolError(f"the lock {self.path} can't be taken over: {error}. The rows are safe.") from error

    def holder(self) -> int | None:
        """Return the pid of the process that holds the lock, this one included; None if it is free or no file."""
        with _guard:
            if self._fd is not None:
                return os.getpid()
            if not self.path.is_file():  # opening a pipe would wait for its writer
                return None
            with open(self.path, "rb") as file:
                pid = file.read(20).strip()
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return int(pid) if pid.isdigit() else None
            return None

    def release(self) -> None:
        """Give the lock up; do nothing if it is not held."""
        with _guard:
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)


class ByteLocks:
    """Exclusive locks on single bytes of one file: any number of locks, with one open file, that end with the process.

    They need Linux's locks of open files. Elsewhere, the locks of POSIX exclude other processes only.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def acquire(self, number: int) -> bool:
        """Try to lock a byte, without waiting; return True if it is locked now, or if the disk has no such locks.

        Args:
            number: Which byte, from 0 and below 2**62. The file stays empty.
        """
        if self._fd is None:
            self._fd = os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600)
            _held_bytes.add(self)
        try:
            if hasattr(fcntl, "F_OFD_SETLK"):
                lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, lock)
            else:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def release(self) -> None:
        """Release all of them."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


_held_bytes: weakref.WeakSet[ByteLocks] = weakref.WeakSet()


class HeartbeatMonitor:
    """Detects that the holder of a lock has stalled, from outside its process."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._last_seen: tuple[int, int] | None = None
        self._since = 0.0
        self._checks = 0

    def stalled(self) -> bool:
        """Check the lock file; return True if several checks in a row saw no heartbeat for several seconds."""
        try:
            stat = os.stat(self._path)
        except OSError:
            return False
        seen = (stat.st_ino, stat.st_mtime_ns)
        if seen != self._last_seen:
            self._last_seen, self._since, self._checks = seen, self._clock.time(), 0
        self._checks += 1
        self._since = min(self._since, self._clock.time())  # a clock that was set back
        return self._checks > _STALLED_CHECKS and self._clock.time() - self._since >= _STALLED_S


def is_held_here(path: Path) -> bool:
    """Return whether this process holds a lock on `path`, even if the file was deleted."""
    with _guard:
        return any(lock.path == path and lock.held for lock in _held)


@after_fork_in_child
def _close_in_child() -> None:
    """Close a forked child's copies of the open files: with them, the locks would outlive the parent."""
    global _guard
    _guard = threading.Lock()  # another thread of the parent may have held it
    for lock in list(_held):
        if lock._fd is not None:
            os.close(lock._fd)
            lock._fd = None
    for locks in list(_held_bytes):
        locks.release()
