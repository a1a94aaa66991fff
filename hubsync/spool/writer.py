"""A writer: the segments of one open uploader, appended to in takes.

A take is everything that waited in the queue: one write and one transaction for all its batches (group commit). Bytes
are written first and then counted in the catalogue, in the transaction that records the batches' keys and offsets. So
after a crash a batch is either there with its key, or it never was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hubsync._runtime import frames
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.file_lock import FileLock
from hubsync._runtime.files import fsync_directory
from hubsync.errors import OffsetOrderError, SpoolError
from hubsync.model.batch import Batch
from hubsync.model.layout import Layout
from hubsync.policies import ShardPolicy
from hubsync.schema.types import EMPTY, Conflict, StructOf, dumps, merge_structs
from hubsync.spool.offsets import OffsetOrder
from hubsync.spool.spool import Spool

_log = logging.getLogger("hubsync")
_WRITEV = 512  # parts in one system call; below every system's IOV_MAX


class Accepted(NamedTuple):
    """What became of one batch.

    Attributes:
        segment: the segment that holds it; None if it has no rows.
        replayed: it was known, and nothing was added.
        error: why it was not accepted; None if it was.
    """

    segment: int | None
    replayed: bool
    error: OffsetOrderError | None = None


@dataclass(slots=True, eq=False)
class _OpenSegment:
    """The segment that is being written.

    Attributes:
        size, rows, batches: what the catalogue counts of it, and what this take adds.
        schema: the types of its columns.
        parts: bytes of this take that are not written yet.
        sha256: of everything written, except for `unhashed`.
        is_new: this take opened it, so undoing the take deletes it.
        is_damaged: something else has cut or deleted its file.
    """

    id: int
    file: Path
    fd: int
    size: int = 0
    rows: int = 0
    batches: int = 0
    opened_at: float = 0.0
    schema: StructOf | None = None
    parts: list[bytes] = field(default_factory=list)
    sha256: Any = field(default_factory=hashlib.sha256)
    unhashed: list[bytes] = field(default_factory=list)
    is_new: bool = True
    is_damaged: bool = False

    def snapshot(self) -> _OpenSegment:
        """Return a copy to go back to if the next take fails."""
        unhashed = list(self.unhashed)
        return _OpenSegment(
            self.id, self.file, self.fd, self.size, self.rows, self.batches, self.opened_at, self.schema,
            [], self.sha256, unhashed, False,
        )  # fmt: skip

    @property
    def is_framed(self) -> bool:
        """Whether its file consists of frames; otherwise it holds JSON Lines."""
        return self.file.suffix == frames.SUFFIX

    def add(self, batch: Batch) -> None:
        """Add a batch to the parts that `write` writes."""
        if self.is_framed and not frames.is_frame(batch.lines):
            self._append(frames.header(b"J", batch.rows, batch.lines))
        self._append(batch.lines)
        self.rows += batch.rows
        self.batches += 1

    def _append(self, part: bytes) -> None:
        self.parts.append(part)
        self.size += len(part)

    def digest(self) -> str:
        """Return the sha256 of everything written. It changes nothing, since the take may still fail."""
        whole = self.sha256.copy()
        for part in self.unhashed:
            whole.update(part)
        return str(whole.hexdigest())

    def compare(self) -> None:
        """Compare the file with what the catalogue counts, and cut off what a failed take or something else left."""
        about = os.fstat(self.fd)
        self.is_damaged = about.st_size < self.size or about.st_nlink == 0
        if about.st_size > self.size:  # cutting a shorter file would fill it with zeros
            os.ftruncate(self.fd, self.size)

    def close(self) -> None:
        """Close the file, once.

        An error that the disk reports only now (NFS reports a full quota here) comes too late to refuse rows that are
        counted: their job would put them again, and they would be there twice.
        """
        fd, self.fd = self.fd, -1
        try:
            if fd >= 0:
                os.close(fd)
        except OSError as error:
            _log.warning("%s did not close cleanly: %s. Its rows count as spooled.", self.file, error)


@dataclass(slots=True)
class _Take:
    """The effects of one take, to be completed after its transaction or undone if it fails.

    Attributes:
        touched: the segments that it wrote to, by id.
        sealed: the segments that it sealed.
        quarantined: files that are linked into the quarantine.
        held: bytes that the spool holds with it.
    """

    touched: dict[int, _OpenSegment] = field(default_factory=dict)
    sealed: list[int] = field(default_factory=list)
    quarantined: list[Path] = field(default_factory=list)
    held: int = 0


class _FileChanged(SpoolError):
    """Something else has cut or extended the file that a take was written to. The take can be repeated."""


class SpoolWriter:
    """Appends batches to the segments of one open uploader. Safe for several threads; the engine uses one.

    It has many parts because a take may fail at any of them, and all of them must go back together.
    """

    @classmethod
    def open(cls, spool: Spool, layout: Layout, policy: ShardPolicy, order: OffsetOrder | None = None) -> SpoolWriter:
        """Become a writer: under the name of one that is dead, continuing its numbers, else under a new name.

        Args:
            spool: the spool.
            layout: where the rows belong.
            policy: when segments are sealed.
            order: the order of offsets, of another writer of the same uploader.

        Raises:
            SpoolError: the spool can't be written.
        """
        for name in spool.writers.candidates():
            lock = spool.writers.lock(name)
            if lock.acquire():
                break
        try:
            failpoint(Failpoint.NAME_TAKEN)
            spool.recovery.recover(name)
            spool.writers.register(name, layout, spool.private)
            return cls(spool, name, lock, layout, policy, order or spool.writers.offset_order())
        except BaseException as error:
            lock.release()  # else no one could take the name as long as this process lives
            if isinstance(error, OSError):
                raise SpoolError(f"cannot write to the spool {spool.directory}: {error}.") from error
            raise

    def __init__(
        self, spool: Spool, name: str, lock: FileLock, layout: Layout, policy: ShardPolicy, order: OffsetOrder
    ) -> None:
        self.name = name
        self.order = order
        self._spool = spool
        self._segments = spool.segments
        self._offsets = spool.offsets
        self._lock = lock
        self._layout = layout
        self._policy = policy
        self._open: _OpenSegment | None = None
        self._holds_frames = False  # a batch was one, so others may follow: lines go into the same segments
        self._acknowledged = spool.writers.acknowledged(name)
        self._newest: _OpenSegment | None = None  # that was written to
        self._guard = threading.Lock()

    @property
    def layout(self) -> Layout:
        """Where its segments go in the dataset."""
        return self._layout

    def relocate(self, layout: Layout, policy: ShardPolicy) -> None:
        """Write the next segments to other paths. Nothing may have been appended yet."""
        with self._guard:
            assert self._open is None
            self._layout, self._policy = layout, policy
            self._spool.writers.note(self.name, layout, self._spool.private)

    @property
    def opened_at(self) -> float | None:
        """When the oldest row of the open segment came; None if no segment is open."""
        segment = self._open
        return segment.opened_at if segment is not None else None

    def knows(self, key: str) -> bool:
        """Return whether any writer of the spool accepted a batch with this key."""
        return self._offsets.has_key(key)

    def append(self, batches: Sequence[Batch]) -> tuple[list[Accepted], list[int]]:
        """Write batches in one transaction, as many of them as the spool's quota allows.

        Returns:
            What became of each batch, and the segments that this sealed. If the quota ends the take, later batches are
            missing.

        Raises:
            SpoolError: the disk, the catalogue or the quota refuses. Nothing was accepted; the same call may be
                repeated.
        """
        with self._guard:
            try:
                return self._append(batches)
            except _FileChanged:
                return self._append(batches)

    def _append(self, batches: Sequence[Batch]) -> tuple[list[Accepted], list[int]]:
        before = self._open.snapshot() if self._open else None
        take = _Take()
        try:
            with self._spool.catalogue.transaction():
                failpoint(Failpoint.TAKE_BEGUN)
                self._drop_adopted(take)
                self._drop_damaged(take)
                take.held = self._segments.held_bytes()
                accepted = self._accept_all(batches, take)
                if self._open is not None:
                    self._write(self._open)
                    if self._is_full(self._open):
                        take.sealed.append(self._seal_open())
                failpoint(Failpoint.COUNTED)
            failpoint(Failpoint.SPOOLED)
        except (SpoolError, OSError) as error:
            self._undo(before, take)
            if isinstance(error, OSError):
                raise SpoolError(f"cannot write to the spool {self._spool.directory}: {error}.") from error
            raise
        self._complete(take)
        return accepted, take.sealed

    def _accept_all(self, batches: Sequence[Batch], take: _Take) -> list[Accepted]:
        accepted: list[Accepted] = []
        for batch in batches:
            if (found := self._accept(batch, take)) is None:
                if not accepted:
                    raise SpoolError(self._spool.full_text())
                break
            accepted.append(found)
        return accepted

    def _fits_quota(self, batch: Batch, take: _Take) -> bool:
        """Return whether the spool may hold a batch, and count it. What others write waits for this transaction."""
        size = len(batch.lines)
        if take.held and take.held + size > self._spool.policy.max_bytes:  # an empty spool takes a batch of any size
            return False
        take.held += size
        return True

    def _complete(self, take: _Take) -> None:
        self._newest = self._open or max(take.touched.values(), key=lambda segment: segment.id, default=self._newest)
        for segment in take.touched.values():
            if segment is not self._open:
                segment.close()
        if self._open is not None:
            self._open.is_new = False
        for file in take.quarantined:
            with suppress(OSError):  # then a later start removes it
                file.unlink(missing_ok=True)

    def _drop_adopted(self, take: _Take) -> None:
        """Let go of the open segment if the committer sealed it: this process had stalled for long."""
        segment = self._open
        if segment is not None and self._segments.state(segment.id) != "open":
            take.touched[segment.id] = segment
            self._open = None

    def _drop_damaged(self, take: _Take) -> None:
        """Seal the open segment if something else has cut or deleted its file.

        Rows that follow half a row would be lost with it. `Shards` keeps the others when it checks the file.
        """
        segment = self._open
        if segment is not None and segment.is_damaged:
            take.touched[segment.id] = segment
            take.sealed.append(self._seal_open())

    def _accept(self, batch: Batch, take: _Take) -> Accepted | None:
        """Accept a batch; return None if the quota does not allow it."""
        try:
            known = self._find_replay(batch)
        except OffsetOrderError as error:
            return Accepted(None, False, error)
        if known is not None:
            return Accepted(known[0], True)
        if not self._fits_quota(batch, take):
            return None
        if batch.set_aside is not None:
            dead = self._quarantine(batch, take)
            self._record(batch, dead)
            return Accepted(dead, False)
        segment = self._segment_for(batch, take) if batch.rows else None
        self._record(batch, segment.id if segment else None)
        if segment is not None:
            segment.add(batch)
            self._merge_schema(segment, batch.schema)
        return Accepted(segment.id if segment else None, False)

    def _merge_schema(self, segment: _OpenSegment, schema: StructOf | None) -> None:
        if schema is None or schema is segment.schema:  # nearly always the same object
            return
        merged = schema if segment.schema is None else merge_structs(segment.schema, schema)
        if merged is not segment.schema:
            segment.schema = merged
            self._segments.set_schema(segment.id, dumps(merged))
            self._spool.schemas.add(self._layout.config, merged)

    def _quarantine(self, batch: Batch, take: _Take) -> int:
        """Quarantine a batch, as durably as any row: in a segment of its own that is dead from the beginning."""
        segment = self._new_segment(is_framed=frames.is_frame(batch.lines))
        take.touched[segment.id] = segment
        segment.add(batch)
        self._write(segment)
        self._segments.seal(segment.id, segment.digest())
        self._spool.quarantine.add(segment.id, segment.file, str(batch.set_aside))
        segment.close()
        take.quarantined.append(segment.file)
        take.sealed.append(segment.id)
        return segment.id

    def _segment_for(self, batch: Batch, take: _Take) -> _OpenSegment:
        """Return the open segment if the batch fits, else a new one: a batch is never split."""
        segment = self._open
        if segment is not None and not self._fits(segment, batch):
            take.touched[segment.id] = segment
            self._write(segment)
            take.sealed.append(self._seal_open())
            if segment.is_new:
                segment.close()  # a take may fill more segments than a process may open files
        if self._open is None:
            self._holds_frames = self._holds_frames or frames.is_frame(batch.lines)
            self._open = self._new_segment(is_framed=self._holds_frames)
        take.touched[self._open.id] = self._open
        return self._open

    def _is_full(self, segment: _OpenSegment) -> bool:
        most = self._policy.max_rows
        return segment.size >= self._policy.max_bytes or (most is not None and segment.rows >= most)

    def _fits(self, segment: _OpenSegment, batch: Batch) -> bool:
        most = self._policy.max_rows
        if batch.schema is not segment.schema and not _merge(segment.schema, batch.schema):
            return False  # the dataset's schema became known in between
        if frames.is_frame(batch.lines) and not segment.is_framed:
            return False
        return segment.size + len(batch.lines) <= self._policy.max_bytes and (
            most is None or segment.rows + batch.rows <= most
        )

    def _new_segment(self, *, is_framed: bool) -> _OpenSegment:
        now = self._spool.clock.time()
        suffix = frames.SUFFIX if is_framed else ".jsonl"
        segment, name = self._segments.open(self.name, self._layout, now, suffix)
        file = self._spool.file(name)
        fd = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
        if self._spool.policy.durability == "fsync":
            fsync_directory(file.parent)
        failpoint(Failpoint.SEGMENT_CREATED)
        return _OpenSegment(segment, file, fd, opened_at=now)

    def _write(self, segment: _OpenSegment) -> None:
        """Write the take's bytes, then count them in the catalogue: what it does not count is a torn tail.

        Raises:
            _FileChanged: they did not follow what was written before.
        """
        parts, segment.parts = segment.parts, []
        if not parts:
            return
        end = segment.size - sum(map(len, parts))
        for start in range(0, len(parts), _WRITEV):
            some = parts[start : start + _WRITEV]
            _write_all(segment.fd, some)
            end += (size := sum(map(len, some)))
            # They were appended to whatever the file held, and its position is now after them.
            if (found := os.lseek(segment.fd, 0, os.SEEK_CUR)) != end:
                os.ftruncate(segment.fd, found - size)
                raise _FileChanged(f"something else writes to {segment.file}.")
            failpoint(Failpoint.PARTLY_WRITTEN)
        segment.unhashed += parts
        if self._spool.policy.durability == "fsync":
            os.fdatasync(segment.fd)
        failpoint(Failpoint.WRITTEN)
        self._segments.append(segment.id, size=segment.size, rows=segment.rows, batches=segment.batches)

    # Keys and offsets.

    def _find_replay(self, batch: Batch) -> tuple[int | None] | None:
        """Return the segment of a batch that was accepted before; None for a new one."""
        if batch.key is not None and (found := self._offsets.find_key(batch.key)) is not None:
            return found
        return None if batch.offset is None else self.order.find(batch)

    def _record(self, batch: Batch, segment: int | None) -> None:
        if batch.key is not None:
            self._offsets.add_key(batch.key, segment)
        if batch.offset is not None:
            self.order.accept(batch, segment)
            self._offsets.advance(batch.source, batch.offset)
            if segment is not None:
                self._offsets.assign(batch.source, batch.offset, segment)

    # Sealing.

    def seal(self) -> int | None:
        """Close the open segment and fix its path; return it, or None if no segment is open.

        Raises:
            SpoolError: the disk or the catalogue refuses; the segment is still open.
        """
        with self._guard:
            segment = self._open
            if segment is None:
                return None
            try:
                with self._spool.catalogue.transaction():
                    self._drop_adopted(_Take())
                    if self._open is not None:
                        self._open.compare()
                        self._seal_open()
                failpoint(Failpoint.SEALED)
            except (SpoolError, OSError) as error:
                self._open = segment
                if isinstance(error, OSError):
                    raise SpoolError(f"cannot seal {segment.file}: {error}.") from error
                raise
            segment.close()
            return segment.id

    def _seal_open(self) -> int:
        assert self._open is not None
        segment, self._open = self._open, None
        self._segments.seal(segment.id, segment.digest())
        return segment.id

    def hash_written(self) -> None:
        """Hash what was written so far, look whether it is there, and note that it was acknowledged.

        Call it while no one waits: sealing then has nothing left to hash, and a deleted file gets no more rows.
        """
        with self._guard:
            if self._newest is not None:
                self._acknowledged.write(self._newest.id, self._newest.size)
                self._newest = None
            segment = self._open
            if segment is not None:
                for part in segment.unhashed:
                    segment.sha256.update(part)
                segment.unhashed = []
                with suppress(OSError):
                    segment.compare()

    def _undo(self, before: _OpenSegment | None, take: _Take) -> None:
        """Undo what a failed take wrote. The catalogue has rolled back already."""
        for segment in take.touched.values():
            if before is not None and segment.id == before.id:
                with suppress(OSError):  # the disk refuses this as well: the next take compares again
                    before.compare()
            else:
                segment.close()
                with suppress(OSError):  # the catalogue does not know it: it is overwritten, or removed later
                    segment.file.unlink()
        self._open = before
        self.order.undo()

    def refresh(self) -> None:
        """Show the other processes that this writer works: its open segment is its own.

        Raises:
            SpoolLost: another machine has taken over the spool.
        """
        self._lock.refresh()
        self._spool.host.check()

    def close(self) -> None:
        """Let go of the writer's name. Its segments stay for the committer."""
        with self._guard:
            if self._open is not None:
                self._open.close()
                self._open = None
            self._acknowledged.close()
        self.order.release()
        self._lock.release()


def _merge(one: StructOf | None, other: StructOf | None) -> bool:
    """Return whether two schemas can be merged."""
    try:
        merge_structs(one or EMPTY, other or EMPTY)
    except Conflict:
        return False
    return True


def _write_all(fd: int, parts: list[bytes]) -> None:
    written = os.writev(fd, parts)
    if written < sum(map(len, parts)):  # a signal, or a disk that has just become full
        rest = memoryview(b"".join(parts))[written:]
        while rest:
            rest = rest[os.write(fd, rest) :]
