"""A writer: this process's own segments of the spool, appended to in takes.

A take is one write and one transaction for all batches that waited (group commit). Bytes are written first and then
counted in the catalogue, in one transaction with the keys and offsets that make a replay known; so after a crash
either a batch is there with its key, or it never was.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.file_lock import FileLock
from hubsync._runtime.files import fsync_directory
from hubsync.errors import SpoolError
from hubsync.model.batch import Batch
from hubsync.model.layout import Layout
from hubsync.policies import ShardPolicy
from hubsync.schema.types import EMPTY, Conflict, StructOf, dumps, merge_structs
from hubsync.spool.spool import Spool

_log = logging.getLogger("hubsync")
_WRITEV = 512  # parts a system call; below every system's IOV_MAX


class Accepted(NamedTuple):
    """What became of one batch: the segment that holds it (None for one without rows), and whether it was there."""

    segment: int | None
    replayed: bool


@dataclass(slots=True, eq=False)
class _OpenSegment:
    """The segment being written: what the catalogue counts of it, and what this take adds.

    `is_new`: this take began it, so that taking the take back is to delete it.
    """

    id: int
    file: Path
    fd: int
    size: int = 0
    rows: int = 0
    batches: int = 0
    opened_at: float = 0.0
    schema: StructOf | None = None  # what its columns hold
    parts: list[bytes] = field(default_factory=list)
    sha256: Any = field(default_factory=hashlib.sha256)  # of what was written, but for `unhashed`
    unhashed: list[bytes] = field(default_factory=list)
    is_new: bool = True

    def as_it_is(self) -> _OpenSegment:
        """For when the next take fails."""
        unhashed = list(self.unhashed)
        return _OpenSegment(
            self.id, self.file, self.fd, self.size, self.rows, self.batches, self.opened_at, self.schema,
            [], self.sha256, unhashed, False,
        )  # fmt: skip

    def digest(self) -> str:
        """The sha256 of all that was written. Changes nothing: the take may still fail."""
        whole = self.sha256.copy()
        for part in self.unhashed:
            whole.update(part)
        return str(whole.hexdigest())

    def close(self) -> None:
        """Once. What the disk says only now (NFS tells of a quota here) comes too late to refuse rows that are counted:
        told so, their job would bring them twice.
        """
        fd, self.fd = self.fd, -1
        try:
            if fd >= 0:
                os.close(fd)
        except OSError as error:
            _log.warning("%s did not close well: %s. Its rows count as spooled.", self.file, error)


class SpoolWriter:
    """Appends batches to this process's own segments. Safe for several threads; the worker uses one."""

    @classmethod
    def open(cls, spool: Spool, layout: Layout, policy: ShardPolicy) -> SpoolWriter:
        """Becomes a writer: one whose process is dead, going on with its numbers, else a new one."""
        for row in spool.catalogue.rows("SELECT name FROM writers ORDER BY name"):
            lock = spool.writer_lock(row["name"])
            if lock.acquire():
                return cls._named(row["name"], lock, spool, layout, policy)
        name = secrets.token_hex(4)
        lock = spool.writer_lock(name)
        if not lock.acquire():  # pragma: no cover  (32 random bits that are alive)
            return cls.open(spool, layout, policy)
        return cls._named(name, lock, spool, layout, policy)

    @classmethod
    def _named(cls, name: str, lock: FileLock, spool: Spool, layout: Layout, policy: ShardPolicy) -> SpoolWriter:
        try:
            failpoint(Failpoint.NAME_TAKEN)
            spool.recover(name)
            with spool.catalogue.transaction():
                spool.catalogue.run(
                    "INSERT INTO writers (name, epoch) VALUES (?, 1) "
                    "ON CONFLICT (name) DO UPDATE SET epoch = epoch + 1", name,
                )  # fmt: skip
            spool.note_writer(name, layout)
            return cls(spool, name, lock, layout, policy)
        except BaseException as error:
            lock.release()  # or nobody could ever take the name, as long as this process lives
            if isinstance(error, OSError):
                raise SpoolError(f"the spool {spool.directory} can't be written: {error}.") from error
            raise

    def __init__(self, spool: Spool, name: str, lock: FileLock, layout: Layout, policy: ShardPolicy) -> None:
        self.name = name
        self._spool = spool
        self._lock = lock
        self._layout = layout
        self._policy = policy
        self._open: _OpenSegment | None = None
        self._began: dict[str, int] = {}  # the highest offset of a source before this writer was given any
        self._torn = False  # the open segment's file has a tail that a failed take could not take back
        self._guard = threading.Lock()

    @property
    def opened_at(self) -> float | None:
        """When the oldest row of the open segment came; None where no segment is open."""
        segment = self._open
        return segment.opened_at if segment is not None else None

    def knows(self, key: str) -> bool:
        """Whether a batch with this key was accepted, by whichever writer of the spool."""
        return self._spool.catalogue.row("SELECT 1 FROM keys WHERE digest = ?", _digest(key)) is not None

    def append(self, batches: Sequence[Batch]) -> tuple[list[Accepted], list[int]]:
        """Writes batches, all in one transaction; answers what became of each, and the segments this sealed.

        Raises:
            SpoolError: the disk or the catalogue refuses. Nothing was accepted; it may be tried again as it is.
        """
        with self._guard:
            before = self._open.as_it_is() if self._open else None
            touched: dict[int, _OpenSegment] = {}
            aside: list[Path] = []
            try:
                with self._spool.catalogue.transaction():
                    failpoint(Failpoint.TAKE_BEGUN)
                    self._pass_over_adopted(touched)
                    self._cut_torn_tail()
                    result = self._append(batches, touched, aside)
                    failpoint(Failpoint.COUNTED)
                failpoint(Failpoint.SPOOLED)
            except (SpoolError, OSError) as error:
                self._undo(before, touched)
                if isinstance(error, OSError):
                    raise SpoolError(f"the spool {self._spool.directory} can't be written: {error}.") from error
                raise
            for segment in touched.values():
                if segment is not self._open:
                    segment.close()
            if self._open is not None:
                self._open.is_new = False
            for file in aside:
                with suppress(OSError):  # then it is swept
                    file.unlink(missing_ok=True)  # it is in the dead letter, too
            return result

    def _pass_over_adopted(self, touched: dict[int, _OpenSegment]) -> None:
        """A writer that had stopped for long finds its open segment sealed by the committer, and begins another."""
        segment = self._open
        if segment is None:
            return
        state = self._spool.catalogue.value("SELECT state FROM segments WHERE id = ?", segment.id)
        if state != "open":
            touched[segment.id] = segment
            self._open = None

    def _append(
        self, batches: Sequence[Batch], touched: dict[int, _OpenSegment], aside: list[Path]
    ) -> tuple[list[Accepted], list[int]]:
        accepted: list[Accepted] = []
        sealed: list[int] = []
        for batch in batches:
            replay = self._replay(batch)
            if replay is not None:
                accepted.append(replay)
                continue
            if batch.set_aside is not None:
                dead = self._set_aside(batch, touched)
                aside.append(dead.file)
                sealed.append(dead.id)
                self._remember(batch, dead.id)
                accepted.append(Accepted(dead.id, False))
                continue
            segment = self._room_for(batch, sealed, touched) if batch.rows else None
            self._remember(batch, segment.id if segment else None)
            accepted.append(Accepted(segment.id if segment else None, False))
            if segment is not None:
                segment.parts.append(batch.lines)
                segment.size += len(batch.lines)
                segment.rows += batch.rows
                segment.batches += 1
                self._note_schema(segment, batch.schema)
        if self._open is not None:
            self._write(self._open)
            if self._is_full(self._open):
                sealed.append(self._seal_open())
        return accepted, sealed

    def _note_schema(self, segment: _OpenSegment, schema: StructOf | None) -> None:
        """Nearly always the one that it has already: the same object."""
        if schema is None or schema is segment.schema:
            return
        merged = schema if segment.schema is None else merge_structs(segment.schema, schema)
        if merged is not segment.schema:
            segment.schema = merged
            self._spool.catalogue.run("UPDATE segments SET schema = ? WHERE id = ?", dumps(merged), segment.id)
            self._spool.know_schema(self._layout.config, merged)

    def _set_aside(self, batch: Batch, touched: dict[int, _OpenSegment]) -> _OpenSegment:
        """Into the dead letter, as durably as any row: a segment of its own that is dead from the beginning."""
        segment = self._new_segment()
        touched[segment.id] = segment
        segment.parts, segment.size, segment.rows, segment.batches = [batch.lines], len(batch.lines), batch.rows, 1
        self._write(segment)
        self._spool.seal_segment(segment.id, segment.digest())
        self._spool.set_aside(segment.id, segment.file, str(batch.set_aside))
        segment.close()
        return segment

    def _room_for(self, batch: Batch, sealed: list[int], touched: dict[int, _OpenSegment]) -> _OpenSegment:
        segment = self._open
        if segment is not None and self._would_burst(segment, batch):
            touched[segment.id] = segment
            self._write(segment)
            sealed.append(self._seal_open())
            if segment.is_new:
                segment.close()  # a take may fill more segments than a process may hold files
        if self._open is None:
            self._open = self._new_segment()
        touched[self._open.id] = self._open
        return self._open

    def _is_full(self, segment: _OpenSegment) -> bool:
        most = self._policy.max_rows
        return segment.size >= self._policy.max_bytes or (most is not None and segment.rows >= most)

    def _would_burst(self, segment: _OpenSegment, batch: Batch) -> bool:
        """A batch is never torn apart: where it does not fit, the segment ends before it."""
        most = self._policy.max_rows
        if batch.schema is not segment.schema and not _go_together(segment.schema, batch.schema):
            return True  # what the dataset holds was learnt in between
        return segment.size + len(batch.lines) > self._policy.max_bytes or (
            most is not None and segment.rows + batch.rows > most
        )

    def _new_segment(self) -> _OpenSegment:
        catalogue, layout, now = self._spool.catalogue, self._layout, self._spool.clock.time()
        segment = catalogue.run(
            "INSERT INTO segments (writer, file, config, split, template, opened_at) VALUES (?, '', ?, ?, ?, ?)",
            self.name, layout.config, layout.split, layout.template, now,
        )  # fmt: skip
        file = self._spool.directory / "segments" / f"{self.name}-{segment:08d}.jsonl"
        catalogue.run("UPDATE segments SET file = ? WHERE id = ?", file.name, segment)
        fd = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
        if self._spool.policy.durability == "fsync":
            fsync_directory(file.parent)
        failpoint(Failpoint.SEGMENT_CREATED)
        return _OpenSegment(segment, file, fd, opened_at=now)

    def _write(self, segment: _OpenSegment) -> None:
        """Bytes first, then the catalogue's count of them: so a torn tail is what the catalogue does not count."""
        parts, segment.parts = segment.parts, []
        if not parts:
            return
        for start in range(0, len(parts), _WRITEV):
            _write_all(segment.fd, parts[start : start + _WRITEV])
            failpoint(Failpoint.PARTLY_WRITTEN)
        segment.unhashed += parts
        if self._spool.policy.durability == "fsync":
            os.fdatasync(segment.fd)
        failpoint(Failpoint.WRITTEN)
        self._spool.catalogue.run(
            "UPDATE segments SET bytes = ?, rows = ?, batches = ? WHERE id = ?",
            segment.size, segment.rows, segment.batches, segment.id,
        )  # fmt: skip

    def _replay(self, batch: Batch) -> Accepted | None:
        catalogue = self._spool.catalogue
        if batch.key is not None:
            row = catalogue.row("SELECT segment FROM keys WHERE digest = ?", _digest(batch.key))
            if row is not None:
                return Accepted(row["segment"], True)
        if batch.offset is not None:
            known = self._spool.offset(batch.source)
            began = self._began.setdefault(batch.source, -1 if known is None else known)
            if known is not None and batch.offset <= known:
                if began < batch.offset < known:
                    self._warn_of_order(batch, known)
                segment = catalogue.value(
                    "SELECT segment FROM segment_offsets WHERE source = ? AND offset >= ? ORDER BY offset LIMIT 1",
                    batch.source, batch.offset,
                )  # fmt: skip
                return Accepted(segment, True)
        return None

    def _warn_of_order(self, batch: Batch, known: int) -> None:
        """Once for a source: it may also be put again on purpose, after an error."""
        self._began[batch.source] = 1 << 63  # above any offset
        _log.warning(
            "offset %d of source %r came behind %d in the same run, so it counts as accepted before and adds nothing. "
            "If its rows are new, they are missing now: offsets must rise. Put them from one thread or task, or give "
            "a key= instead.", batch.offset, batch.source, known,
        )  # fmt: skip

    def _remember(self, batch: Batch, segment: int | None) -> None:
        catalogue = self._spool.catalogue
        if batch.key is not None:
            catalogue.run("INSERT INTO keys VALUES (?, ?)", _digest(batch.key), segment)
        if batch.offset is not None:
            self._spool.raise_offset(batch.source, batch.offset)
            if segment is not None:
                catalogue.run(
                    "INSERT INTO segment_offsets VALUES (?, ?, ?) "
                    "ON CONFLICT (segment, source) DO UPDATE SET offset = excluded.offset",
                    batch.source, batch.offset, segment,
                )  # fmt: skip

    def seal(self) -> int | None:
        """Closes the open segment, if any, and answers it: its path is fixed from now on."""
        with self._guard:
            segment = self._open
            if segment is None:
                return None
            try:
                with self._spool.catalogue.transaction():
                    self._pass_over_adopted({})
                    self._cut_torn_tail()
                    if self._open is not None:
                        self._seal_open()
                failpoint(Failpoint.SEALED)
            except (SpoolError, OSError) as error:
                self._open = segment
                if isinstance(error, OSError):
                    raise SpoolError(f"{segment.file} can't be sealed: {error}.") from error
                raise
            segment.close()
            return segment.id

    def _seal_open(self) -> int:
        assert self._open is not None
        segment, self._open = self._open, None
        self._spool.seal_segment(segment.id, segment.digest())
        return segment.id

    def hash_on(self) -> None:
        """Hashes what was written. To be done when nobody waits for it: sealing then has nothing left to hash."""
        with self._guard:
            segment = self._open
            if segment is not None:
                for part in segment.unhashed:
                    segment.sha256.update(part)
                segment.unhashed = []

    def _cut_torn_tail(self) -> None:
        """Before anything goes behind it, or it is sealed: a segment's file holds what the catalogue counts."""
        if self._torn and self._open is not None:
            os.ftruncate(self._open.fd, self._open.size)
        self._torn = False

    def _undo(self, before: _OpenSegment | None, touched: dict[int, _OpenSegment]) -> None:
        """Takes back what a failed take wrote: the catalogue already has, by its rollback."""
        for segment in touched.values():
            if before is not None and segment.id == before.id:
                try:
                    os.ftruncate(segment.fd, before.size)
                except OSError:  # the disk refuses that too
                    self._torn = True
            else:
                segment.close()
                with suppress(OSError):  # the catalogue does not know it: it is begun anew, or swept
                    segment.file.unlink()
        self._open = before

    def beat(self) -> None:
        """Shows that this writer goes on: its open segment is its own."""
        self._lock.refresh()

    def close(self) -> None:
        """Lets the writer's name go. Its segments stay for the committer."""
        with self._guard:
            if self._open is not None:
                self._open.close()
                self._open = None
        self._lock.release()


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _go_together(one: StructOf | None, other: StructOf | None) -> bool:
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
