"""The directory on local disk that holds what is not yet committed, and survives the process.

    open ──seal──> sealed ──stage──> staged ──plan, commit──> committed   (the file goes only now)
                      └──────────────────┴── refused for good ──> dead    (kept in dead-letter/)

A segment's bytes are the future shard's bytes. Bytes are written first and then counted in the catalogue, so a torn
tail is what the catalogue does not count, and is cut off. Any number of processes may open one spool: each is a
writer with a locked name of its own, and the holder of `committer.lock` commits for all. One that stops without dying
is taken over as well: its term is over, and what it tries under its lease then raises `LeaseLost`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NoReturn

import msgspec

from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.file_lock import FileLock, HeartbeatMonitor, is_held_here
from hubsync._runtime.files import (
    fsync_directory,
    fsync_with_parents,
    is_all_there,
    size_of,
    whole_lines,
    write_atomically,
)
from hubsync._runtime.formatting import full_text, waiting_text
from hubsync.errors import LeaseLost, SpoolError, SpoolLost, SpoolMismatch
from hubsync.model.commit import Watermark
from hubsync.model.layout import Layout, format_of
from hubsync.model.shard import QuarantinedShard
from hubsync.model.stats import SpoolDepth
from hubsync.model.target import Target
from hubsync.policies import MIB, SpoolPolicy
from hubsync.schema.types import EMPTY, Conflict, StructOf, dumps, loads, merge_structs
from hubsync.spool.database import BURIED, DEPTHS, PENDING, Catalogue
from hubsync.spool.disk import Disk, make_room_to_open, segment_id_of

_log = logging.getLogger("hubsync")
SegmentState = Literal["open", "sealed", "staged", "committed", "dead"]


class WriterNote(msgspec.Struct):
    """What a writer notes in a file beside its lock: where its rows belong, should the catalogue be lost.

    `layouts` says from which segment on each counts.
    """

    target: Target
    layouts: list[tuple[int, Layout]]
    private: bool | None = None

    def layout_of(self, segment: int) -> Layout | None:
        """Where a segment's rows belong."""
        return next((layout for above, layout in reversed(self.layouts) if segment > above), None)


class Spool:
    """One spool directory, opened by this process. Its methods block on the disk; the worker calls them in threads."""

    def __init__(
        self, directory: Path, *, target: Target | None, policy: SpoolPolicy | None = None, clock: Clock | None = None
    ) -> None:
        """Opens the spool, making it where `target` is given; with None it must be there already.

        Raises:
            SpoolError: the directory can't be written, or there is no spool.
            SpoolMismatch: it belongs to another target.
            SpoolVersionError: a newer hubsync wrote it.
        """
        self.directory = directory
        self.policy = policy or SpoolPolicy()
        self.clock: Clock = clock or SystemClock()
        catalogue = directory / "catalogue.sqlite"
        if not catalogue.exists() or catalogue.stat().st_size == 0:
            if next((directory / "segments").glob("*-*.*"), None) is not None:
                raise SpoolError(
                    f"the spool {directory} holds rows, but its catalogue is gone. Nothing was touched. Bring them up "
                    f"by what their files tell: hubsync drain --rescue {directory}"
                )
            if target is None:
                raise SpoolError(f"there is no spool at {directory}.")
        try:
            for folder in (directory, directory / "segments", directory / "writers", directory / "dead-letter"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SpoolError(f"the spool {directory} can't be made: {error}. Give another with spool=…") from error
        self._fsync = self.policy.durability == "fsync"
        make_room_to_open(directory)
        self.catalogue = Catalogue(catalogue, fsync=self._fsync)
        if self._fsync:
            fsync_with_parents(directory)
        self.disk = Disk(directory, self.catalogue.path)
        if self.disk.has_less_than(MIB + self.catalogue.log_bytes()):
            self.catalogue.checkpoint(shrink=True)  # what dies on a full disk leaves the next one no other room
        self.target = self._bind(target)
        self._committer = FileLock(directory / "committer.lock")
        self._pulses: dict[Path, HeartbeatMonitor] = {}
        self._adopting = threading.Lock()
        self._recovered: dict[str, int] = {}  # dead writers that need no further look, by epoch
        self._unsealed: set[int] = set()  # left segments whose file the disk refuses
        self._seeded = False
        self._term: int | None = None  # which committer of this spool this process is; None where it is none

    def _bind(self, target: Target | None) -> Target:
        if target is not None and self.catalogue.get("target") is None:
            # In one statement: of two jobs that make the spool at the same moment, one finds the other's.
            mine = msgspec.json.encode(target).decode()
            self.catalogue.run("INSERT INTO meta VALUES ('target', ?) ON CONFLICT DO NOTHING", mine)
        stored = self.catalogue.get("target")
        if stored is None:
            self.catalogue.close()
            raise SpoolError(f"the spool {self.directory} was never used for a repo.")
        found = msgspec.json.decode(stored, type=Target)
        if target is not None and found != target:
            self.catalogue.close()
            raise SpoolMismatch(
                f"the spool {self.directory} holds rows for {found.repo} ({found.revision}) at {found.endpoint}, not "
                f"for {target.repo} ({target.revision}) at {target.endpoint}. Nothing was touched. Give another "
                f"spool, or bring this one up first: hubsync drain {self.directory}"
            )
        return found

    @property
    def private(self) -> bool | None:
        """Whether a repo that is made now is private, as it was last chosen; None for the account's default."""
        return {"true": True, "false": False}.get(self.catalogue.get("private") or "")

    def file(self, name: str) -> Path:
        """Where a segment's bytes are."""
        return self.directory / "segments" / name

    def close(self) -> None:
        self.resign()
        self.catalogue.close()

    # Writers.

    def adopt(self) -> None:
        """Seals what writers left open who are dead, or have stopped, and removes what the dead had not counted yet.

        Returns once it is done, also where another thread has begun with it.
        """
        with self._adopting:
            self._adopt()

    def _adopt(self) -> None:
        for row in self.catalogue.rows("SELECT name, epoch FROM writers"):
            name = row["name"]
            if self._recovered.get(name) == row["epoch"]:
                continue  # nobody has taken the name over since
            lock = self.writer_lock(name)
            if not lock.path.exists() and is_held_here(lock.path):
                continue  # alive: somebody is just deleting the spool, and the lock's file first
            if lock.acquire():
                try:
                    self.recover(name)
                finally:
                    lock.release()
                self._recovered[name] = row["epoch"]
            elif self._pulse(lock.path).stalled():
                # No need to take its name: a writer looks, within its next transaction, whether its segment is open.
                self._seal_open(name)

    def writer_lock(self, name: str) -> FileLock:
        """The lock that a living writer holds on its name."""
        return FileLock(self.directory / "writers" / f"{name}.lock")

    def note_writer(self, name: str, layout: Layout) -> None:
        """Notes where a writer's segments belong from now on."""
        path = self.directory / "writers" / f"{name}.json"
        note = WriterNote(self.target, [])
        with suppress(OSError, msgspec.DecodeError):
            note = msgspec.json.decode(path.read_bytes(), type=WriterNote)
        private = self.private
        if note.layouts and note.layouts[-1][1] == layout and note.private == private:
            return
        note.private = private
        note.layouts.append((int(self.catalogue.value("SELECT max(id) FROM segments") or 0), layout))
        write_atomically(path, msgspec.json.encode(note))

    def recover(self, writer: str) -> None:
        """Cuts torn tails back to what was accepted, seals, and removes files that never were, or are no longer needed.
        Under the lock.
        """
        self._seal_open(writer)
        with self.catalogue.transaction():  # in which who puts a dead shard again links its file before it is known
            for file in (self.directory / "segments").glob(f"{writer}-*"):
                state = self._state_of(file)
                # What is packed and not counted may be the committer's, at work on it just now.
                if state in ("committed", "dead") or (state is None and file.suffix == ".jsonl"):
                    file.unlink(missing_ok=True)

    def _seal_open(self, writer: str) -> None:
        for (segment,) in self.catalogue.rows(
            f"SELECT id FROM segments WHERE {PENDING} AND state = 'open' AND writer = ?", writer
        ):
            try:
                with self.catalogue.transaction():
                    self._seal_left(segment)
            except OSError as error:  # its disk: it stays open, and holds nothing else up
                if segment not in self._unsealed:
                    self._unsealed.add(segment)
                    _log.error("rows of writer %s stay behind until the next job or drain: %s.", writer, error)
            failpoint(Failpoint.ADOPTED)

    def _seal_left(self, segment: int) -> None:
        row = self.catalogue.row("SELECT * FROM segments WHERE id = ? AND state = 'open'", segment)
        if row is None:
            return  # its writer was alive after all, and faster
        file = self.file(row["file"])
        accepted = row["bytes"]
        if (size_of(file) or 0) > accepted:
            os.truncate(file, accepted)
        if accepted and not is_all_there(file, accepted):
            self.shorten(segment, file, accepted)
        failpoint(Failpoint.TAIL_CUT)
        self.seal_segment(segment)

    def shorten(self, segment: int, file: Path, accepted: int) -> None:
        """A power cut took accepted bytes that only the kernel had: keep the whole lines, and say what is missing.
        Within a transaction.
        """
        rows, kept = 0, 0
        if size_of(file) is not None and file.suffix == ".jsonl":  # of a packed one nothing is whole
            rows, kept = whole_lines(file, accepted)
            os.truncate(file, kept)
        lost = f"{accepted - kept} accepted bytes of {file.name} were lost by a power cut (durability='process')"
        self.catalogue.run("UPDATE segments SET bytes = ?, rows = ?, error = ? WHERE id = ?", kept, rows, lost, segment)
        if not rows:  # nothing of it goes up, so that its batches may be put again
            self.catalogue.run("DELETE FROM keys WHERE segment = ?", segment)
        _log.error("%s; its %d whole rows are brought up.", lost, rows)

    def sweep(self) -> None:
        """Removes what a crash left: files of segments that are committed or buried, links into the dead letter that
        were never counted, and locks half taken over. And what was packed and not counted, or is packed now.
        """
        for file in (self.directory / "segments").iterdir():
            if self._state_of(file) in ("committed", "dead") or self._is_other_form(file):
                file.unlink(missing_ok=True)
        self.sweep_graves()
        for file in self.directory.glob("committer.*"):
            if file != self._committer.path:
                file.unlink(missing_ok=True)

    def _is_other_form(self, file: Path) -> bool:
        """Whether it holds rows of a segment that the catalogue counts in another file."""
        counted = self.catalogue.value("SELECT file FROM segments WHERE id = ?", segment_id_of(file))
        if counted is None or counted == file.name or size_of(self.file(counted)) is None:
            return False
        # An id that was given twice is another writer's.
        return bool(counted.partition(".")[0] == file.name.partition(".")[0])

    def sweep_graves(self) -> None:
        """Removes what is in the dead letter and not dead: never counted, put again, or discarded. Who sets a
        shard aside links it there within the transaction that makes it dead.
        """
        with self.catalogue.transaction():
            dead = {f"{shard.id:06d}" for shard in self.dead()}
            for grave in (self.directory / "dead-letter").glob("*-*.*"):
                if grave.name.partition("-")[0] not in dead:
                    grave.unlink(missing_ok=True)

    def _state_of(self, file: Path) -> str | None:
        """The state of a file's segment, whose id is in its name; None where the catalogue does not know it.

        An id whose transaction was rolled back is given again, to another writer perhaps.
        """
        state: str | None = self.catalogue.value(
            "SELECT state FROM segments WHERE id = ? AND file = ?", segment_id_of(file), file.name
        )
        return state

    def seal_segment(self, segment: int, sha256: str | None = None) -> None:
        """Fixes the path. Within a transaction. `sha256` is the content's, where its writer knows it."""
        row = self.catalogue.row("SELECT * FROM segments WHERE id = ?", segment)
        assert row is not None
        layout = Layout(row["config"], row["split"], row["template"])
        series = layout.series(row["writer"])
        seq = self.catalogue.value("SELECT next FROM series WHERE name = ?", series) or 0
        self.number(segment, layout, row["writer"], series, seq)
        state = "sealed" if row["rows"] else "dead"  # a power cut took them all, which the dead letter then tells
        self.catalogue.run("UPDATE segments SET state = ?, sha256 = ? WHERE id = ?", state, sha256, segment)
        failpoint(Failpoint.SEAL_BEGUN)

    def number(self, segment: int, layout: Layout, writer: str, series: str, seq: int) -> None:
        """Gives a segment the first free number from `seq`, and seals it under it. Within a transaction."""
        # Two templates may meet in one path: "…1{seq}" and "…{seq}".
        while self.catalogue.row("SELECT 1 FROM segments WHERE path = ?", layout.path(writer, seq)):
            seq += 1
        self.catalogue.run(
            "INSERT INTO series VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET next = excluded.next", series, seq + 1
        )
        self.catalogue.run(
            "UPDATE segments SET state = 'sealed', sealed_at = ?, series = ?, seq = ?, path = ?, plan = NULL "
            "WHERE id = ?",
            self.clock.time(), series, seq, layout.path(writer, seq), segment,
        )  # fmt: skip

    def set_aside(self, segment: int, file: Path, why: str) -> Path:
        """Links a sealed segment into the dead letter, for good; answers where. Within a transaction.

        `file` is the segment's, and is to go once the transaction is committed.
        """
        name = os.path.basename(self.catalogue.value("SELECT path FROM segments WHERE id = ?", segment))
        if format_of(file.name) == "jsonl":  # it was not packed
            name = f"{name.removesuffix('.' + format_of(name))}.jsonl"
        grave = self.directory / "dead-letter" / f"{segment:06d}-{name}"
        for stale in grave.parent.glob(f"{segment:06d}-*"):
            if stale != grave:
                stale.unlink()  # of a take that was rolled back: its number is given again
        if not (grave.exists() and grave.samefile(file)):
            new = grave.with_suffix(".new")
            new.unlink(missing_ok=True)
            os.link(file, new)
            os.replace(new, grave)  # which may hold what it was before a person mended it, or be a rolled back one's
            if self._fsync:
                fsync_directory(grave.parent)
        failpoint(Failpoint.QUARANTINE_LINKED)
        self.catalogue.run(
            "UPDATE segments SET state = 'dead', error = ?, plan = NULL, sealed_at = ? WHERE id = ?",
            why, self.clock.time(), segment,
        )  # fmt: skip
        return grave

    # Schemas, by config.

    def schema(self, config: str) -> str | None:
        """What the columns of a config hold, as JSON of `schema.StructOf`; None where nothing is known."""
        known: str | None = self.catalogue.value("SELECT known FROM schemas WHERE config = ?", config)
        return known

    def columns(self, config: str) -> StructOf:
        """Return the types of a config's columns, as far as they are known."""
        known = self.schema(config)
        return EMPTY if known is None else loads(known)

    def guard_schema(self, config: str, policy: str) -> None:
        """Notes what becomes of conflicts in a config: an `OnConflict`, or "off"."""
        if self.catalogue.value("SELECT policy FROM schemas WHERE config = ?", config) != policy:
            with self.catalogue.transaction():
                self.catalogue.run(
                    "INSERT INTO schemas (config, policy) VALUES (?, ?) "
                    "ON CONFLICT (config) DO UPDATE SET policy = excluded.policy",
                    config, policy,
                )  # fmt: skip

    def know_schema(self, config: str, kind: StructOf, *, wins: bool = False) -> None:
        """Rows of this kind were accepted; or, with `wins`, stand in the dataset. Within a transaction."""
        text = self.schema(config)
        known = None if text is None else loads(text)
        try:
            merged = kind if known is None else merge_structs(known, kind)
        except Conflict:  # with what another process brought at the same moment: the committer finds it
            if not wins:
                return
            merged = kind
        if merged is not known:
            self.catalogue.run(
                "INSERT INTO schemas (config, known) VALUES (?, ?) "
                "ON CONFLICT (config) DO UPDATE SET known = excluded.known",
                config, dumps(merged),
            )  # fmt: skip

    # The committer.

    def become_committer(self) -> bool:
        """Whether this process now is (or was) the one that stages and commits, for all writers of this spool.

        To be asked again and again: that is how a committer is noticed that has stopped without dying.
        """
        if self.is_committer:
            return True
        stopped = self.committer_stopped()
        if not (self._committer.acquire() or stopped):
            return False
        try:
            with self.catalogue.transaction():
                # In a transaction, so that those who steal the lock take turns and each sees what the last one did.
                if not self._committer.is_current():
                    if not self.committer_stopped():
                        return False
                    self._committer.steal()
                term = int(self.catalogue.get("term") or 0) + 1
                self.catalogue.set("term", str(term))
            self._term = term
        finally:
            if self._term is None:
                self._committer.release()
        failpoint(Failpoint.LOCK_TAKEN)
        return True

    @property
    def is_committer(self) -> bool:
        return self._term is not None

    @property
    def term(self) -> int | None:
        """Which committer of this spool this process is, counted from 1; None where it is none."""
        return self._term

    @property
    def committer_pid(self) -> int | None:
        """The committer's process, whoever it is; None where there is none."""
        return self._committer.holder()

    @property
    def is_committed_by_others(self) -> bool:
        """Whether another process, or another uploader of this one, commits; not while this is just about to."""
        return self._committer.holder() is not None and not self._committer.held  # in this order: it may take it now

    def committer_stopped(self) -> bool:
        """Whether the committer, another process, lives but has stopped. To be asked again and again."""
        return self._pulse(self._committer.path).stalled()

    def _pulse(self, path: Path) -> HeartbeatMonitor:
        return self._pulses.setdefault(path, HeartbeatMonitor(path, self.clock))

    @contextmanager
    def leased(self) -> Iterator[None]:
        """A transaction of the committer's.

        Raises:
            LeaseLost: another process has taken over in the meantime; nothing is changed.
        """
        with self.catalogue.transaction():
            if self._term is None or self.catalogue.get("term") != str(self._term):
                self._depose()
            yield

    def beat(self) -> None:
        """Shows the others that the committer goes on. Raises `LeaseLost` where another has taken over."""
        self._committer.refresh()
        if not self._committer.is_current():
            self._depose()

    def _depose(self) -> NoReturn:
        self.resign()
        raise LeaseLost(f"another process commits for {self.directory} now: this one had stopped for too long.")

    def resign(self) -> None:
        """Lets another process commit."""
        self._term = None
        self._committer.release()

    def urge(self, writer: str | None) -> list[int]:
        """Marks what is still to be committed (of one writer, or of all) as waited for, and answers it."""
        with self.catalogue.transaction():
            whose, who = ("", ()) if writer is None else ("AND writer = ?", (writer,))
            pending = f"{PENDING} AND state IN ('sealed', 'staged') {whose}"
            self.catalogue.run(f"UPDATE segments SET urgent = 1 WHERE {pending} AND NOT urgent", *who)
            return [r["id"] for r in self.catalogue.rows(f"SELECT id FROM segments WHERE {pending}", *who)]

    # What the dataset told, and what anybody may ask.

    @property
    def seeded(self) -> bool:
        """Whether the dataset's watermarks have been read into this spool."""
        # For good, so it is read once: who puts with an offset asks each time, and must not wait for the disk.
        self._seeded = self._seeded or self.catalogue.get("seeded") is not None
        return self._seeded

    def seed(self, marks: Iterable[Watermark], schemas: Mapping[str, StructOf] = MappingProxyType({})) -> None:
        """Goes on from what earlier spools, now lost, have brought into the dataset."""
        with self.leased():
            for config, kind in schemas.items():
                self.know_schema(config, kind, wins=True)
                self.catalogue.run("UPDATE schemas SET published = ? WHERE config = ?", dumps(kind), config)
            for mark in marks:
                for source, offset in mark.offsets.items():
                    self.raise_offset(source, offset)
                for name, following in mark.next.items():
                    self.catalogue.run(
                        "INSERT INTO series VALUES (?, ?) "
                        "ON CONFLICT (name) DO UPDATE SET next = max(next, excluded.next)",
                        name, following,
                    )  # fmt: skip
            self.catalogue.set("seeded", "1")
        failpoint(Failpoint.SEEDED)

    def raise_offset(self, source: str, offset: int) -> None:
        self.catalogue.run(
            "INSERT INTO offsets VALUES (?, ?) "
            "ON CONFLICT (source) DO UPDATE SET offset = max(offset, excluded.offset)",
            source, offset,
        )  # fmt: skip

    def offset(self, source: str) -> int | None:
        """The highest offset accepted from `source`; None before the first."""
        value: int | None = self.catalogue.value("SELECT offset FROM offsets WHERE source = ?", source)
        return value

    def fate(self, segment: int) -> tuple[SegmentState, str | None, str | None] | None:
        """What became of a segment: (state, sha, error); None where the catalogue does not know it."""
        row = self.catalogue.row("SELECT state, sha, error FROM segments WHERE id = ?", segment)
        return (row["state"], row["sha"], row["error"]) if row is not None else None

    def dead(self) -> list[QuarantinedShard]:
        """The dead letter, the oldest first."""
        rows = self.catalogue.rows(
            f"SELECT id, path, rows, bytes, sealed_at, error FROM segments WHERE {PENDING} AND {BURIED} ORDER BY id"
        )
        return [QuarantinedShard(*row) for row in rows]

    def grave(self, segment: int) -> Path | None:
        """Where a dead segment's bytes are; None where there are none."""
        return next((self.directory / "dead-letter").glob(f"{segment:06d}-*"), None)

    def depth(self) -> SpoolDepth:
        by_state = {row["state"]: row for row in self.catalogue.rows(DEPTHS)}
        waiting = [by_state[s] for s in ("open", "sealed", "staged") if s in by_state]
        counts = {state: row["shards"] for state, row in by_state.items()}
        done = {key: int(self.catalogue.get(f"committed_{key}") or 0) for key in ("rows", "bytes", "shards")}
        return SpoolDepth(
            rows=sum(row["rows"] for row in waiting),
            bytes=sum(row["bytes"] for row in waiting),
            open=counts.get("open", 0),
            sealed=counts.get("sealed", 0),
            staged=counts.get("staged", 0),
            dead=counts.get("dead", 0),
            oldest_at=min((row["oldest_at"] for row in waiting if row["oldest_at"] is not None), default=None),
            committed_rows=done["rows"],
            committed_bytes=done["bytes"],
            committed_shards=done["shards"],
        )

    def waiting(self) -> str:
        """What is not on the Hub yet, for people."""
        try:
            with self.catalogue.impatient():
                depth = self.depth()
        except SpoolError:  # it is busy, or told where something is wrong with it already
            return f"what waits is in {self.directory}"
        if not depth.rows:
            return f"nothing waits in {self.directory}"
        return f"{waiting_text(depth.rows, depth.bytes)} in {self.directory}"

    def lost(self) -> SpoolLost:
        """The error for a spool that is no longer there."""
        with suppress(SpoolError):
            left = self.depth()  # the catalogue answers as long as this process has it open
            return SpoolLost(
                f"the spool {self.directory} was deleted, or its disk is gone, while the job was running. "
                f"{left.rows:,} rows ({left.bytes:,} bytes) were accepted and not on the Hub yet; they are gone with "
                "it. What was committed is safe: a job that counts by offset goes on from there."
            )
        return SpoolLost(f"the spool {self.directory} is gone; what was not on the Hub yet is gone with it.")

    def full(self) -> str | None:
        """Why the spool takes no more: it holds, the dead letter among it, what its policy allows. Else None."""
        held = {row["state"]: row["bytes"] for row in self.catalogue.rows(DEPTHS)}
        is_full = sum(held.values()) >= self.policy.max_bytes
        return full_text(self.directory, self.policy.max_bytes, held.get("dead", 0)) if is_full else None
