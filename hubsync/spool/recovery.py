"""What a dead or stalled process left: torn tails, open segments, files that nobody needs.

Bytes are written first and then counted in the catalogue, so the catalogue knows which bytes were accepted: whatever a
file holds beyond them is a torn tail.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from pathlib import Path

from hubsync._runtime.clock import Clock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.file_lock import HeartbeatMonitor, is_held_here
from hubsync._runtime.files import is_raw, regular_size
from hubsync.spool.database import Catalogue
from hubsync.spool.disk import segment_id_of
from hubsync.spool.lease import CommitterLease
from hubsync.spool.quarantine import Quarantine
from hubsync.spool.segments import Segments
from hubsync.spool.writers import Writers

_log = logging.getLogger("hubsync")


def cut_torn_tail(file: Path, accepted: int) -> None:
    """Cut a file to its accepted bytes.

    Raises:
        OSError: the disk refuses, or something else is in the file's place.
    """
    if (regular_size(file) or 0) > accepted:
        os.truncate(file, accepted)


class Recovery:
    """Takes over what other writers of a spool left behind."""

    def __init__(
        self,
        directory: Path,
        catalogue: Catalogue,
        segments: Segments,
        writers: Writers,
        quarantine: Quarantine,
        lease: CommitterLease,
        clock: Clock,
    ) -> None:
        self._directory = directory
        self._files = directory / "segments"
        self._catalogue = catalogue
        self._segments = segments
        self._writers = writers
        self._quarantine = quarantine
        self._lease = lease
        self._clock = clock
        self._adopting = threading.Lock()
        self._monitors: dict[Path, HeartbeatMonitor] = {}
        self._recovered: dict[str, int] = {}  # dead writers that need no further look, by epoch

    def adopt(self) -> None:
        """Seal the open segments of writers that died or stalled, and remove what the dead had not counted.

        Returns once that is done, even if another thread began it.
        """
        with self._adopting:
            for name, epoch in self._writers.epochs().items():
                if self._recovered.get(name) != epoch:  # else no process has used the name since
                    self._adopt(name, epoch)

    def _adopt(self, name: str, epoch: int) -> None:
        lock = self._writers.lock(name)
        if not lock.path.exists() and is_held_here(lock.path):
            return  # it is alive: someone is deleting the spool, and deleted the lock's file first
        if lock.acquire():
            try:
                self.recover(name)
            finally:
                lock.release()
            self._recovered[name] = epoch
        elif self._monitors.setdefault(lock.path, HeartbeatMonitor(lock.path, self._clock)).stalled():
            # Its name stays its own: within its next transaction, a writer checks whether its segment is still open.
            self._seal_open(name)

    def recover(self, writer: str) -> None:
        """Seal a dead writer's open segments and remove files that it does not need. Its lock must be held."""
        self._seal_open(writer)
        with self._catalogue.transaction():  # a resubmit links a file in the transaction that makes it known
            for file in self._files.glob(f"{writer}-*"):
                state = self._state_of(file)
                # A compressed file that is not counted may be the committer's, which is writing it now.
                if state in ("committed", "dead") or (state is None and is_raw(file.name)):
                    self._remove(file, state)

    def _seal_open(self, writer: str) -> None:
        for segment in self._segments.open_of(writer):
            with self._catalogue.transaction():
                self._seal(segment)
            failpoint(Failpoint.ADOPTED)

    def _seal(self, segment: int) -> None:
        """Seal a segment without reading its file: all other processes wait for this transaction.

        What it holds is checked before it is uploaded: see `Shards`.
        """
        row = self._segments.get(segment)
        if row.state != "open":
            return  # its writer was alive after all, and faster
        with suppress(OSError):  # then it is cut when it is checked
            cut_torn_tail(self._files / row.file, row.bytes)
        failpoint(Failpoint.TAIL_CUT)
        self._segments.seal(segment)

    def sweep(self) -> None:
        """Remove what a crash left: files of segments that are committed or dead, half-made links, old locks."""
        newest = self._segments.newest()  # first: a file that is created meanwhile has a higher number
        for file in self._files.iterdir():
            number = segment_id_of(file)
            is_expired = 0 < number <= newest and self._segments.state(number) is None
            state = self._state_of(file)
            if is_expired or state in ("committed", "dead") or self._is_superseded(file):
                self._remove(file, state)
        self._quarantine.sweep()
        with self._catalogue.transaction():
            self._segments.recount()
        for file in self._directory.glob("committer.*"):
            if file != self._lease.lock_file:
                file.unlink(missing_ok=True)

    def _remove(self, file: Path, state: str | None) -> None:
        if state == "dead":
            self._quarantine.take(segment_id_of(file), file)
        else:
            with suppress(OSError):  # something else is in its place
                file.unlink(missing_ok=True)

    def _is_superseded(self, file: Path) -> bool:
        """Return whether the catalogue counts another file of the same segment, which is there."""
        segment = self._segments.find(segment_id_of(file))
        if segment is None or segment.file == file.name or not (self._files / segment.file).is_file():
            return False
        # An id that was given twice belongs to another writer's file.
        return segment.file.partition(".")[0] == file.name.partition(".")[0]

    def _state_of(self, file: Path) -> str | None:
        return self._segments.state_of_file(segment_id_of(file), file.name)
