"""Locks on files that end with their process, however it dies; and that a forked child does not inherit.

`flock` belongs to the open file, so two uploaders in one process lock each other out as two processes do. A process
that is stopped (SIGSTOP, a debugger, a frozen container) keeps its lock; therefore a holder beats, by its file's time,
and who sees no beat for long may seize the lock by putting a new file in its place. What the old holder does when it
goes on must be fenced by whoever relies on the lock: it learns of its loss only by asking `valid`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import weakref
from contextlib import suppress
from pathlib import Path

from hubsync._runtime.clock import Clock
from hubsync.errors import SpoolError

HEARTBEAT_S = 0.5  # how often a holder beats
_STOPPED_S = 3.0  # without a beat for so long, and over so many looks, a holder counts as stopped:
_STOPPED_LOOKS = 4  # a clock that jumps, or a whole machine that slept, must not make it so

_guard = threading.Lock()  # a lock may be let go by one thread while another beats
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
        with _guard:  # for another thread that asks for the holder, it is free or held: never another's in between
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(fd)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
                raise SpoolError(
                    f"{self.path} can't be locked: {error}. Is it on a file system without locks?"
                ) from error
            self._keep(fd)
        if not self.valid():  # seized between opening and locking it
            self.release()
            return False
        return True

    def _keep(self, fd: int) -> None:
        with suppress(OSError):  # the pid is for people; a full disk must not stop a job
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        self._fd = fd
        _held.add(self)

    @property
    def held(self) -> bool:
        """Whether this process has locked the file; `valid` tells whether that still counts."""
        return self._fd is not None

    def valid(self) -> bool:
        """Whether the lock is held and nobody has seized it."""
        with _guard:
            try:
                return self._fd is not None and os.path.samestat(os.fstat(self._fd), os.stat(self.path))
            except OSError:
                return False

    def beat(self) -> None:
        """Shows that the holder goes on."""
        with _guard, suppress(OSError):
            if self._fd is not None:
                os.utime(self._fd)

    def seize(self) -> None:
        """Takes the lock from a holder that has stopped. Those who may seize it must take turns."""
        self.release()
        new = self.path.with_suffix(f".{os.getpid()}")
        try:
            fd = os.open(new, os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._keep(fd)
            os.replace(new, self.path)
        except OSError as error:
            self.release()
            raise SpoolError(f"the lock {self.path} can't be taken over: {error}.") from error

    def holder(self) -> int | None:
        """The pid of the process that holds it, this one or another; None where nobody does."""
        with _guard:
            if self._fd is not None:
                return os.getpid()
            if not self.path.exists():
                return None
            with open(self.path, "rb") as file:
                pid = file.read(20).strip()
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except OSError:
                    return int(pid) if pid.isdigit() else None
            return None

    def release(self) -> None:
        with _guard:
            fd, self._fd = self._fd, None
            if fd is not None:
                os.close(fd)


class HeartbeatMonitor:
    """Watches from outside whether the holder of a lock still beats."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._seen: tuple[int, int] | None = None
        self._since = 0.0
        self._looks = 0

    def stopped(self) -> bool:
        """Looks; True once no beat was seen for long."""
        try:
            about = os.stat(self._path)
        except OSError:
            return False
        seen = (about.st_ino, about.st_mtime_ns)
        if seen != self._seen:
            self._seen, self._since, self._looks = seen, self._clock.time(), 0
        self._looks += 1
        self._since = min(self._since, self._clock.time())  # a clock that was set back
        return self._looks > _STOPPED_LOOKS and self._clock.time() - self._since >= _STOPPED_S


def is_held_here(path: Path) -> bool:
    """Whether a lock of this process stands for the path, also where its file was deleted."""
    with _guard:
        return any(lock.path == path and lock.held for lock in _held)


def _let_go_in_child() -> None:
    """A forked child shares the open file, and so the lock, which would outlive the parent: it closes its copy."""
    global _guard
    _guard = threading.Lock()  # another thread of the parent may have held it
    for lock in list(_held):
        if lock._fd is not None:
            os.close(lock._fd)
            lock._fd = None


os.register_at_fork(after_in_child=_let_go_in_child)
