"""The directory on local disk that holds every row until it is committed, and survives the process.

    SPOOL/catalogue.sqlite    segments and their states, plans, offsets, keys
         /segments/           the bytes of the segments: those of the shards to come
         /writers/            a lock, two notes and a heartbeat file for each writer
         /dead-letter/        rejected shards
         /host                the machine that uses it
         /committer.lock      the process that commits for all writers
         /reserve             room that is kept for the catalogue
         /merging/            the files of a merge, while one is prepared

Any number of processes may open one spool: each is a writer with a locked name, and one of them is the committer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

import msgspec

from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import fsync_with_parents
from hubsync._runtime.formatting import count_text, rows_text, spool_full_text, waiting_text, word
from hubsync.errors import SpoolBusy, SpoolError, SpoolLost, SpoolMismatch
from hubsync.model.commit import LastCommit, Watermark
from hubsync.model.stats import SpoolDepth
from hubsync.model.target import Target
from hubsync.policies import MIB, CommitPolicy, SpoolPolicy
from hubsync.schema.types import StructOf
from hubsync.spool.acknowledged import forgotten_files
from hubsync.spool.cards import CardEntries
from hubsync.spool.database import Catalogue
from hubsync.spool.disk import Disk, make_room_to_open
from hubsync.spool.host import HostMark
from hubsync.spool.lease import CommitterLease
from hubsync.spool.offsets import Offsets
from hubsync.spool.plans import Plans
from hubsync.spool.quarantine import Quarantine
from hubsync.spool.recovery import Recovery
from hubsync.spool.retention import Retention
from hubsync.spool.schemas import Schemas
from hubsync.spool.segments import Segments, StateDepth, depth_of
from hubsync.spool.shards import Shards
from hubsync.spool.writers import Writers

_log = logging.getLogger("hubsync")
_OPEN_TRIES = 3


class Spool:
    """One spool directory, opened by this process: its parts, and how much it holds.

    Every method may block on the disk; call them in threads.
    """

    def __init__(
        self, directory: Path, *, target: Target | None, policy: SpoolPolicy | None = None, clock: Clock | None = None
    ) -> None:
        """Open a spool, creating it if `target` is given.

        Args:
            directory: the spool's directory.
            target: the branch it belongs to; None to open an existing spool, whatever it belongs to.
            policy: None for the defaults.
            clock: None for the system's.

        Raises:
            SpoolError: the directory can't be written, or the spool does not exist.
            SpoolMismatch: it belongs to another target.
            SpoolVersionError: a newer hubsync wrote it.
        """
        self.directory = directory
        self.policy = policy or SpoolPolicy()
        self.clock: Clock = clock or SystemClock()
        is_synced = self.policy.durability == "fsync"
        self.host = HostMark(directory)
        self.catalogue = _create(directory, target, self.host, is_synced)
        self.segments = Segments(self.catalogue, self.clock)
        self._check_is_newest()
        self.disk = Disk(directory, self.catalogue.path)
        if self.disk.has_less_than(MIB + self.catalogue.log_bytes()):
            self.catalogue.checkpoint(shrink=True)  # after a job died on a full disk, the next one has no other room
        self.target = self._bind(target)
        self.lease = CommitterLease(directory, self.catalogue, self.clock)
        self.offsets = Offsets(self.catalogue)
        self.schemas = Schemas(self.catalogue)
        self.quarantine = Quarantine(directory, self.catalogue, self.segments, fsync=is_synced)
        self.writers = Writers(
            directory, self.target, self.catalogue, self.segments, self.offsets, self.lease, self.schemas
        )
        self.recovery = Recovery(
            directory,
            self.catalogue,
            self.segments,
            self.writers,
            self.quarantine,
            self.lease,
            self.clock,
        )
        self.shards = Shards(directory, self.segments, self.offsets, self.quarantine, self.lease, self.clock)
        retention = Retention(directory, self.segments, self.offsets, self.schemas, self.lease, self.clock)
        self.plans = Plans(self.catalogue, self.segments, self.shards, self.writers, retention, self.lease, self.clock)
        self.cards = CardEntries(self.catalogue, self.segments, self.lease)
        self._is_seeded = False

    def _check_is_newest(self) -> None:
        """Refuse a catalogue that knows less than what was acknowledged: the rest would look like torn tails."""
        forgotten, before_restart = forgotten_files(self.directory, self.segments)
        if before_restart:
            _log.error(
                "After a power cut, the catalogue of the spool %s no longer knows the last rows of %s (such as %s), "
                "which were accepted. They are dropped, so that a job that repeats them adds each once. With "
                "durability='fsync' a power cut loses nothing.",
                self.directory, count_text(len(before_restart), "file"), before_restart[0].name,
            )  # fmt: skip
        if forgotten:
            self.catalogue.close()
            raise SpoolError(
                f"the catalogue of the spool {self.directory} was set back: its write-ahead log (catalogue.sqlite-wal) "
                f"was deleted, or an older copy was put in its place. It does not know all rows of "
                f"{count_text(len(forgotten), 'file')} (such as {forgotten[0].name}), which were accepted. Nothing was "
                f"changed. To recover them from the files: hubsync drain --rescue {self.directory}"
            )

    def _bind(self, target: Target | None) -> Target:
        if target is not None and self.catalogue.get("target") is None:
            # In one statement: of two jobs that create the spool at the same moment, one finds the other's target.
            mine = msgspec.json.encode(target).decode()
            self.catalogue.run("INSERT INTO meta VALUES ('target', ?) ON CONFLICT DO NOTHING", mine)
        stored = self.catalogue.get("target")
        if stored is None:
            self.catalogue.close()
            raise SpoolError(f"the spool {self.directory} was never used for a repo, so it holds no rows.")
        found = msgspec.json.decode(stored, type=Target)
        if target is not None and found != target:
            self.catalogue.close()
            raise SpoolMismatch(
                f"the spool {self.directory} holds rows for {found.repo} ({found.revision}) at {found.endpoint}, not "
                f"for {target.repo} ({target.revision}) at {target.endpoint}. Nothing was changed. Use another spool, "
                f"or upload the rows of this one first: hubsync drain {self.directory}"
            )
        return found

    def close(self) -> None:
        """Let another process commit, and close the catalogue."""
        self.lease.release()
        self.catalogue.close()

    def file(self, name: str) -> Path:
        """Return where a segment's bytes are."""
        return self.directory / "segments" / name

    @property
    def private(self) -> bool | None:
        """Whether a repo that is created now is private, as last chosen; None for the account's default."""
        return {"true": True, "false": False}.get(self.catalogue.get("private") or "")

    @private.setter
    def private(self, private: bool) -> None:
        self.catalogue.set("private", json.dumps(private))

    @property
    def commit_policy(self) -> CommitPolicy | None:
        """The pace and size of commits that the last job asked for; None if it asked for none in particular."""
        stored = self.catalogue.get("commit_policy")
        return None if stored is None else msgspec.json.decode(stored, type=CommitPolicy)

    @commit_policy.setter
    def commit_policy(self, policy: CommitPolicy) -> None:
        if policy != (self.commit_policy or CommitPolicy()):
            self.catalogue.set("commit_policy", msgspec.json.encode(policy).decode())

    # What the dataset contains.

    @property
    def last_commit(self) -> LastCommit | None:
        """What was known of the dataset after this spool's last commit; None if nothing was recorded."""
        try:
            last = msgspec.json.decode(self.catalogue.get("last_commit") or "", type=LastCommit)
        except msgspec.DecodeError:  # nothing, or damaged
            return None
        return last if last.is_whole else None

    def remember(self, last: LastCommit) -> None:
        """Record what is known of the dataset after a commit. For the committer."""
        with self.lease.transaction():
            self.catalogue.set("last_commit", msgspec.json.encode(last).decode())

    @property
    def is_seeded(self) -> bool:
        """Whether the dataset's watermarks were read into this spool."""
        # It stays true, so it is read once: a put with an offset asks each time, and must not wait for the disk.
        self._is_seeded = self._is_seeded or self.catalogue.get("seeded") is not None
        return self._is_seeded

    def seed(
        self,
        watermarks: Iterable[Watermark],
        schemas: Mapping[str, StructOf] = MappingProxyType({}),
        declared: Mapping[str, Sequence[str]] = MappingProxyType({}),
    ) -> None:
        """Continue from what earlier spools, now lost, committed. For the committer.

        Args:
            watermarks: those of the dataset.
            schemas: what the dataset's card says of its columns, by config.
            declared: the columns that a person described, by config.
        """
        with self.lease.transaction():
            for config, columns in declared.items():
                self.schemas.declare(config, columns)
            for config, schema in schemas.items():
                self.schemas.publish(config, schema)
            for mark in watermarks:
                for source, offset in mark.offsets.items():
                    self.offsets.advance(source, offset)
                self.offsets.learn_starts(mark.starts)
                for series, following in mark.next.items():
                    self.segments.raise_next(series, following)
            self.segments.folders.forget()
            self.catalogue.set("seeded", "1")
        failpoint(Failpoint.SEEDED)

    def learn(self, config: str, schema: StructOf, *, is_declared: bool) -> None:
        """Record what the columns of a config in the dataset hold, so that rows are checked against them.

        Args:
            config: the config.
            schema: the types of its columns.
            is_declared: others' files are in the config, so a column cannot become JSON.
        """
        with self.catalogue.transaction():
            self.schemas.add(config, schema, wins=True)
            if is_declared:
                self.schemas.declare(config, schema.fields)

    # How much it holds.

    def mark_urgent(self, writer: str | None) -> list[int]:
        """Mark what is sealed and not yet committed, of one writer or of all, as urgent; return those segments."""
        with self.catalogue.transaction():
            return self.segments.mark_urgent(writer)

    def depth(self) -> SpoolDepth:
        """Return how much the spool holds."""
        depths = self.segments.depths()  # first: what is committed meanwhile counts twice rather than not at all
        committed = {key: int(self.catalogue.get(f"committed_{key}") or 0) for key in ("rows", "bytes", "shards")}
        return depth_of(depths, committed, self.segments.lost_rows())

    def waiting_text(self) -> str:
        """Return what is not on the Hub yet, for people."""
        try:
            with self.catalogue.impatient():
                depth = self.depth()
        except SpoolError:  # it is busy; or it is broken, which is reported elsewhere
            return f"the rows wait in {self.directory}"
        if not depth.rows:
            return f"nothing waits in {self.directory}"
        return f"{waiting_text(depth.rows, depth.bytes)} in {self.directory}"

    def full_text(self) -> str:
        """Return that the spool holds what its policy allows, and how much of that is its dead letter."""
        dead = self.segments.depths().get("dead", StateDepth()).bytes
        return spool_full_text(self.directory, self.policy.max_bytes, dead)

    def lost(self) -> SpoolLost:
        """Return the error for a spool that no longer exists."""
        with suppress(SpoolError):
            left = self.depth()  # the catalogue answers as long as this process has it open
            rows, were = rows_text(left.rows, left.bytes), word(left.rows, "was", "were")
            if left.rows and next((self.directory / "segments").glob("*-*.*"), None) is not None:
                return SpoolLost(
                    f"the catalogue of the spool {self.directory} was deleted or replaced while the job was running. "
                    f"{rows} {were} accepted and not on the Hub yet; files of rows are still there. To upload what "
                    f"they hold: hubsync drain --rescue {self.directory}"
                )
            return SpoolLost(
                f"the spool {self.directory} or a part of it was deleted, or its disk is gone, while the job was "
                f"running. {rows} {were} accepted and not on the Hub yet, and {were} lost. What was committed is safe: "
                "a job that uses offsets resumes after it."
            )
        return SpoolLost(f"the spool {self.directory} is gone, and with it the rows that were not on the Hub yet.")


def _make_folder(folder: Path) -> None:
    """Create a folder unless it exists. `mkdir` fails if another process removes it at the same instant."""
    for _ in range(100):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            return
        except FileExistsError:
            if folder.exists() and not folder.is_dir():
                raise
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _create(directory: Path, target: Target | None, host: HostMark, is_synced: bool) -> Catalogue:
    """Open a spool's catalogue, after creating the directories."""
    path = directory / "catalogue.sqlite"
    if not path.exists() or path.stat().st_size == 0:
        if next((directory / "segments").glob("*-*.*"), None) is not None:
            raise SpoolError(
                f"the spool {directory} holds rows, but its catalogue is gone. Nothing was changed. To rebuild it from "
                f"the rows' files: hubsync drain --rescue {directory}"
            )
        if target is None:
            raise SpoolError(f"no spool exists at {directory}.")
    for attempt in range(_OPEN_TRIES):
        try:
            for folder in (directory, directory / "segments", directory / "writers", directory / "dead-letter"):
                _make_folder(folder)
            host.claim()
            make_room_to_open(directory)
            catalogue = Catalogue(path, fsync=is_synced)
            break
        except OSError as error:
            raise SpoolError(f"cannot create the spool {directory}: {error}. Use another directory: spool=…") from error
        except SpoolBusy:
            raise
        except SpoolError as error:  # perhaps `hubsync prune` removed it just now, empty
            is_gone = isinstance(error.__cause__, FileNotFoundError) or not directory.exists()
            if target is None or not is_gone or attempt == _OPEN_TRIES - 1:
                raise
    if is_synced:
        fsync_with_parents(directory)
    return catalogue
