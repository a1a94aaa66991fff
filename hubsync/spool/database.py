"""The spool's SQLite database: segments and their states, plans, offsets, keys, the governor's memory.

Promises that what a transaction wrote survives the process (WAL), and a power cut where durability is "fsync"
(synchronous=FULL). Any number of processes may have it open. It knows nothing of files: `spool.py` keeps bytes and
rows of the two in step. Its version is `PRAGMA user_version`; an older one is migrated, a newer one refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from hubsync._runtime.fork import after_fork_in_child, after_fork_in_parent, before_fork
from hubsync.errors import SpoolError, SpoolLost, SpoolVersionError, one_line

VERSION = 2
_APPLICATION_ID = 0x48756273  # "Hubs"

_opened: weakref.WeakSet[Catalogue] = weakref.WeakSet()
_alone = threading.Lock()  # a connection is being made, or one beside a catalogue's own is used: a fork waits for it

_BUSY_S = 60.0  # how long a thread waits for another process' transaction
_PATIENCE_S = 0.2  # and an event loop
_TURN_S = 5.0  # how long somebody else's opening is waited for
_CHECKPOINT_BYTES = 16_000_000  # of write-ahead log; a thousand takes
_TOO_LONG = 2  # times that: its writers leave no gap in which it could begin anew by itself
_FRAME_BYTES = 4096 + 24  # a page of it, and its header
_KEPT_BYTES = 1_000_000  # of its file, also on a full disk: room for a few commits that nobody else can take

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- `mark` is the writer's last committed watermark, as JSON.
CREATE TABLE writers (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL, mark TEXT) WITHOUT ROWID;

CREATE TABLE plans (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created_at REAL NOT NULL, parent TEXT, summary TEXT NOT NULL,
    notes BLOB NOT NULL, sent INTEGER NOT NULL DEFAULT 0
);

CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    writer TEXT NOT NULL, file TEXT NOT NULL,
    config TEXT NOT NULL, split TEXT NOT NULL, template TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'sealed', 'staged', 'committed', 'dead')),
    bytes INTEGER NOT NULL DEFAULT 0, rows INTEGER NOT NULL DEFAULT 0, batches INTEGER NOT NULL DEFAULT 0,
    opened_at REAL NOT NULL, sealed_at REAL, committed_at REAL,  -- `sealed_at`: or when it was set aside
    series TEXT, seq INTEGER, path TEXT,            -- fixed when it is sealed
    sha256 TEXT, git_oid TEXT, mode TEXT,           -- known when it is staged
    urgent INTEGER NOT NULL DEFAULT 0,              -- somebody waits for it: a flush
    plan INTEGER REFERENCES plans (id), sha TEXT, error TEXT
);
CREATE INDEX pending ON segments (state, id) WHERE state IN ('open', 'sealed', 'staged', 'dead');
CREATE INDEX planned ON segments (plan) WHERE plan IS NOT NULL;
CREATE UNIQUE INDEX paths ON segments (path) WHERE path IS NOT NULL;

CREATE TABLE series (name TEXT PRIMARY KEY, next INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE offsets (source TEXT PRIMARY KEY, offset INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE segment_offsets (
    source TEXT NOT NULL, offset INTEGER NOT NULL, segment INTEGER NOT NULL, PRIMARY KEY (source, offset)
) WITHOUT ROWID;
CREATE UNIQUE INDEX offsets_of_segment ON segment_offsets (segment, source);
-- blake2b of the key, so that a key of any length costs the same.
CREATE TABLE keys (digest BLOB PRIMARY KEY, segment INTEGER) WITHOUT ROWID;
-- The configs and splits that the dataset's card already shows.
CREATE TABLE cards (config TEXT NOT NULL, split TEXT NOT NULL, glob TEXT NOT NULL, PRIMARY KEY (config, split, glob))
    WITHOUT ROWID;
"""


# To be said beside any narrower state: only so does SQLite use the index `pending`, and not read all that was ever
# committed.
PENDING = "state IN ('open', 'sealed', 'staged', 'dead')"

# Of sealed segments: those that are lines yet, and become a shard of another format (`packer.py`).
UNPACKED = "(file LIKE '%.jsonl' AND path NOT LIKE '%.jsonl')"
# A shard that was discarded from the dead letter is still known, and with it its number, keys and offsets.
DISCARDED = "(state = 'dead' AND rows = 0 AND file = '')"
BURIED = f"state = 'dead' AND NOT {DISCARDED}"
# A row a state of what is not on the Hub yet, the dead letter among it; `oldest_at` is when the first row of it came.
DEPTHS = (
    "SELECT state, count(*) AS shards, sum(rows) AS rows, sum(bytes) AS bytes, "
    "min(CASE WHEN rows > 0 THEN opened_at END) AS oldest_at, min(id) AS first_id "
    f"FROM segments WHERE {PENDING} AND NOT {DISCARDED} GROUP BY state"
)

# `schema` is what a segment's columns hold, as JSON of `schema.StructOf`; NULL where nobody looked. By config: what was
# accepted, what the card shows, and what becomes of conflicts ('off': nobody looks).
_SCHEMA_GUARD = """
ALTER TABLE segments ADD COLUMN schema TEXT;
CREATE TABLE schemas (config TEXT PRIMARY KEY, known TEXT, published TEXT, policy TEXT) WITHOUT ROWID;
"""

# What brings a catalogue of version n to n + 1, at index n; version 0 is a new one.
_MIGRATIONS = [_SCHEMA, _SCHEMA_GUARD]


class Catalogue:
    """One connection, shared by the threads of one process under a lock."""

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self.path = path
        self._log = f"{path}-wal"
        self._lock = threading.RLock()
        self._refusals = _Refusals(path)
        try:
            # Made by hand first: SQLite would make it readable by all, and its -wal and -shm take after it. Only where
            # it is not there: to close a file takes SQLite's locks from whoever has it open in this process.
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with _one_at_a_time(path.parent):
                with _alone:
                    self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
                    _opened.add(self)
                self._db.row_factory = sqlite3.Row
                self._open(fsync)
        except (*_REFUSED, OSError) as error:
            raise self._error(error, "can't be opened") from error

    def _open(self, fsync: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        try:
            _refuse_newer(self.path, version)
        except SpoolVersionError:
            self._db.close()
            raise
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
        # A checkpoint costs an fsync, so it is the worker's to do beside the hot path: see `checkpoint`.
        self._db.execute("PRAGMA wal_autocheckpoint = 0")
        if version < VERSION:
            with self.transaction():
                # Read again: another process may have been first.
                for migration in _MIGRATIONS[self.value("PRAGMA user_version") :]:
                    for statement in _statements(migration):
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. Raises `SpoolError` where the disk or the database refuses; nothing is changed then."""
        with self._lock:
            try:
                with self._refusals:
                    self._db.execute("BEGIN IMMEDIATE")
                    yield
                    self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite has rolled back by itself where the disk is full
                    self._db.execute("ROLLBACK")
                raise

    def run(self, sql: str, *values: Any) -> int:
        """Executes one statement; answers the last row id."""
        with self._lock, self._refusals:
            return self._db.execute(sql, values).lastrowid or 0

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self._lock, self._refusals:
            return self._db.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        with self._lock, self._refusals:
            found: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
            return found

    def _error(self, error: Exception, what: str) -> SpoolError:
        return _error_of(self.path, error, what)

    def value(self, sql: str, *values: Any) -> Any:
        """The first column of the first row, or None."""
        found = self.row(sql, *values)
        return found[0] if found is not None else None

    def get(self, key: str) -> str | None:
        value: str | None = self.value("SELECT value FROM meta WHERE key = ?", key)
        return value

    def set(self, key: str, value: str | None) -> None:
        if value is None:
            self.run("DELETE FROM meta WHERE key = ?", key)
        else:
            self.run(
                "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value
            )

    def remember(self, key: str, value: str) -> None:
        """As `set`, for what may be lost: on a full disk, or where it is busy, it is passed over."""
        with suppress(SpoolError), self.impatient():
            self.set(key, value)

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """For who must not wait, such as an event loop: `SpoolError` where others hold the catalogue for long."""
        if not self._lock.acquire(timeout=_PATIENCE_S):
            raise SpoolError(f"the spool's catalogue {self.path} is busy.")
        try:
            self.run(f"PRAGMA busy_timeout = {_PATIENCE_S * 1000:.0f}")
            yield
        finally:
            with suppress(SpoolError):  # closed
                self.run(f"PRAGMA busy_timeout = {_BUSY_S * 1000:.0f}")
            self._lock.release()

    def log_bytes(self) -> int:
        """What the write-ahead log takes of the disk, beyond what it keeps."""
        return max(0, self._log_size() - _KEPT_BYTES)

    def _log_size(self) -> int:
        try:
            return os.stat(self._log).st_size
        except OSError:
            return 0

    def checkpoint(self, *, shrink: bool = False) -> None:
        """Moves the write-ahead log into the database, on a connection of its own so that nobody waits for it.

        With `shrink`, at any size, and gives back most of its room on the disk.
        """
        size = self._log_size()
        if size < (1 if shrink else _CHECKPOINT_BYTES):
            return
        # Busy, the disk is full, or no file can be opened: the log keeps everything, and the next turn tries again.
        with _alone, suppress(sqlite3.Error), closing(sqlite3.connect(self.path, timeout=_PATIENCE_S)) as db:
            frames = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
            cut = shrink and size > _KEPT_BYTES
            if cut or frames * _FRAME_BYTES >= _TOO_LONG * _CHECKPOINT_BYTES:
                # Writers wait for what is done now: an fsync of what came since the one before, which took longer. The
                # file is cut only where its room is needed: that takes longer still.
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                db.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if cut else 'RESTART'})").fetchall()

    def close(self) -> None:
        with self._lock:
            self._db.close()


# SQLite's messages quote a broken catalogue, and are no UTF-8 then.
_REFUSED = (sqlite3.Error, UnicodeDecodeError)


class _Refusals:
    """What SQLite refuses becomes a `SpoolError`. No generator: this is entered several times for each batch."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # An `IntegrityError` is a defect of the code, which no waiting mends.
        if isinstance(error, _REFUSED) and not isinstance(error, sqlite3.IntegrityError):
            raise _error_of(self._path, error, "refuses") from error


@contextmanager
def look(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection for who only reads beside the jobs: one transaction, and a moment only, since no checkpoint passes
    it. It changes nothing, not even an old version; and no job that opens the catalogue meets it halfway.

    Raises:
        SpoolError: there is none, it is not finished, or busy.
        SpoolLost: it is corrupt.
        SpoolVersionError: a newer hubsync wrote it.
    """
    try:
        url = f"{path.absolute().as_uri()}?mode=ro"
        with (
            _one_at_a_time(path.parent, fcntl.LOCK_SH),
            _alone,
            closing(sqlite3.connect(url, uri=True, timeout=_PATIENCE_S, isolation_level=None)) as db,
        ):
            db.row_factory = sqlite3.Row
            db.execute("BEGIN")
            _refuse_newer(path, db.execute("PRAGMA user_version").fetchone()[0])
            yield db
    except (*_REFUSED, OSError) as error:
        raise _error_of(path, error, "can't be read") from error


def _refuse_newer(path: Path, version: int) -> None:
    if version > VERSION:
        raise SpoolVersionError(
            f"the spool {path.parent} was written by a newer hubsync (format {version}, this one reads "
            f"{VERSION}). Nothing was touched. Upgrade hubsync here, or give this job another spool."
        )


def corrupt(path: Path, error: Exception) -> SpoolLost:
    """The error for a catalogue that can't be read, or whose words can't be."""
    return SpoolLost(
        f"the spool's catalogue {path} is corrupt ({one_line(str(error))}). The rows beside it are untouched; end what "
        f"uses the spool, and bring them up by: hubsync drain --rescue {path.parent}"
    )


def _error_of(path: Path, error: Exception, what: str) -> SpoolError:
    code = getattr(error, "sqlite_errorcode", None)  # None where a text is no UTF-8, which Python finds
    is_text = code is None and (isinstance(error, UnicodeDecodeError) or "decode to UTF-8" in str(error))
    if is_text or (code or 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return corrupt(path, error)
    if (code or 0) & 0xFF == sqlite3.SQLITE_FULL:
        return SpoolError(
            f"the disk of the spool {path.parent} is full. What was accepted is safe there. Delete other things, never "
            "the spool's: a job that runs goes on by itself, and another can start then."
        )
    is_refused = (code or 0) & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    is_refused = is_refused or getattr(error, "errno", None) in (errno.EROFS, errno.EACCES)
    if is_refused and os.path.exists(path) and not all(os.access(at, os.W_OK) for at in (path.parent, path)):
        return SpoolError(
            f"the spool {path.parent} is read-only here, and its catalogue needs to be written even to be read. "
            "Nothing was touched. Make it writable for this user, or look at a copy of the whole directory."
        )
    return SpoolError(f"the spool's catalogue {path} {what}: {error}.")


@contextmanager
def _one_at_a_time(directory: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Those who open a new catalogue at the same moment take turns: SQLite refuses to become WAL while another reads,
    and waits for nobody.
    """
    fd = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without such locks: then they only must not come at the same moment
            _wait_for_turn(fd, how)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child forked meanwhile has the open file as well
        os.close(fd)


def _wait_for_turn(fd: int, how: int) -> None:
    """For a while: a turn takes milliseconds, and whoever was stopped in the middle of his holds nobody up for ever."""
    until = time.monotonic() + _TURN_S
    while True:
        try:
            fcntl.flock(fd, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return
            time.sleep(0.01)
        else:
            return


def _statements(script: str) -> list[str]:
    lines = (line.split("--")[0] for line in script.splitlines())
    return [s for s in "\n".join(lines).split(";") if s.strip()]


# SQLite keeps its locks by file for a whole process, and they are not inherited. So a child that opened a catalogue
# beside its parent's connection would take locks for its own that nobody holds: when the parent closes, the log under
# the child is deleted, and with it what it wrote. Therefore no fork falls into a transaction, and a child closes
# what it was given before it opens anything.
_held_at_fork: list[Catalogue] = []


@before_fork
def _hold_at_fork() -> None:
    _alone.acquire()
    for catalogue in sorted(_opened, key=id):
        catalogue._lock.acquire()
        _held_at_fork.append(catalogue)


@after_fork_in_parent
def _go_on_in_parent() -> None:
    while _held_at_fork:
        _held_at_fork.pop()._lock.release()
    _alone.release()


@after_fork_in_child
def _let_go_in_child() -> None:
    for catalogue in _held_at_fork:
        catalogue._db.close()
    _go_on_in_parent()
