"""The right to commit for a spool: a file lock, and a term in the catalogue.

The lock ends with its process, however that dies. A process that stalls keeps its lock, so the holder refreshes the
lock's file, and a process that sees no heartbeat for some seconds steals the lock and begins a new term. What the old
holder does in its old term then fails with `LeaseLost`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from hubsync._runtime.clock import Clock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.file_lock import FileLock, HeartbeatMonitor
from hubsync.errors import LeaseLost
from hubsync.spool.database import Catalogue


class CommitterLease:
    """One process's claim to be the committer of a spool."""

    def __init__(self, directory: Path, catalogue: Catalogue, clock: Clock) -> None:
        self._directory = directory
        self._catalogue = catalogue
        self._lock = FileLock(directory / "committer.lock")
        self._monitor = HeartbeatMonitor(self._lock.path, clock)
        self._term: int | None = None

    def acquire(self) -> bool:
        """Return whether this process is the committer now. Never waits.

        Call it again and again: that is how a committer that stalled is noticed.
        """
        if self.is_held:
            return True
        stalled = self.holder_stalled()
        if not (self._lock.acquire() or stalled):
            return False
        try:
            # In a transaction, so that processes that want to steal the lock take turns, and each sees the last result.
            with self._catalogue.transaction():
                if not self._lock.is_current():
                    if not self.holder_stalled():
                        return False
                    self._lock.steal()
                term = int(self._catalogue.get("term") or 0) + 1
                self._catalogue.set("term", str(term))
            self._term = term
        finally:
            if self._term is None:
                self._lock.release()
        failpoint(Failpoint.LOCK_TAKEN)
        return True

    @property
    def is_held(self) -> bool:
        """Whether this process is the committer, as far as it knows."""
        return self._term is not None

    @property
    def term(self) -> int | None:
        """The number of this committer among those of the spool, from 1; None if this process is not the committer."""
        return self._term

    @property
    def holder_pid(self) -> int | None:
        """The committer's process, this one or another; None if no process commits."""
        return self._lock.holder()

    @property
    def is_held_by_others(self) -> bool:
        """Whether another process, or another uploader of this one, commits. False while this one takes over."""
        return self._lock.holder() is not None and not self._lock.held  # in this order: the lock may be taken now

    def holder_stalled(self) -> bool:
        """Return whether the committer lives but has stalled. Call it again and again."""
        return self._monitor.stalled()

    @property
    def lock_file(self) -> Path:
        """The file that the committer locks."""
        return self._lock.path

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Open a transaction that only the committer may make.

        Raises:
            LeaseLost: another process has taken over; nothing is changed.
        """
        with self._catalogue.transaction():
            if self._term is None or self._catalogue.get("term") != str(self._term):
                self._fail()
            yield

    def refresh(self) -> None:
        """Show the other processes that this one works.

        Raises:
            LeaseLost: another process has taken over.
        """
        self._lock.refresh()
        if not self._lock.is_current():
            self._fail()

    def release(self) -> None:
        """Let another process commit."""
        self._term = None
        self._lock.release()

    def _fail(self) -> NoReturn:
        self.release()
        raise LeaseLost(
            f"another process commits for {self._directory} now, because this one made no progress for some seconds."
        )
