"""The spool's SQLite database, which we call its catalogue: segments, plans, offsets, keys, and the committer's memory.

What a transaction wrote survives the process (WAL), and with durability="fsync" also a power cut (synchronous=FULL).
Any number of processes may have it open. Its version is `PRAGMA user_version`: an older catalogue is migrated, a newer
one refused. The statements themselves belong to the modules that own the tables.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from hubsync._runtime import logs
from hubsync._runtime.fork import after_fork_in_child, after_fork_in_parent, before_fork
from hubsync.errors import SpoolError, SpoolLost, SpoolVersionError, one_line

VERSION = 4
_APPLICATION_ID = 0x48756273  # "Hubs"

_open_catalogues: weakref.WeakSet[Catalogue] = weakref.WeakSet()
_connecting = threading.Lock()  # held while a connection is made, or a temporary one is used: a fork waits for it

_BUSY_S = 60.0  # how long a thread waits for another process's transaction,
_IMPATIENT_S = 0.2  # and how long an event loop does
_TURN_S = 5.0  # how long one process waits while another opens a new catalogue
_CHECKPOINT_BYTES = 16_000_000  # of write-ahead log, about a thousand takes
_RESTART_FACTOR = 2  # times that: writers leave no gap in which the log could restart without making them wait
_FRAME_BYTES = 4096 + 24  # a page of the log, and its header
_SPARE_PAGES = 1000  # of the database, 4 MB: not worth giving back; more is, that many at a time
_KEPT_BYTES = 1_000_000  # of the log's file, also on a full disk: room for a few commits that no one else can take

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- `mark`: the writer's last committed watermark, as JSON.
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
    opened_at REAL NOT NULL, sealed_at REAL, committed_at REAL,  -- `sealed_at`: if dead, when it was quarantined
    series TEXT, seq INTEGER, path TEXT,            -- fixed when it is sealed
    sha256 TEXT, git_oid TEXT, mode TEXT,           -- known when it is staged
    urgent INTEGER NOT NULL DEFAULT 0,              -- a flush waits for it
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
-- blake2b of the key, so that keys of any length cost the same.
CREATE TABLE keys (digest BLOB PRIMARY KEY, segment INTEGER) WITHOUT ROWID;
-- The configs and splits that the dataset's card shows already.
CREATE TABLE cards (config TEXT NOT NULL, split TEXT NOT NULL, glob TEXT NOT NULL, PRIMARY KEY (config, split, glob))
    WITHOUT ROWID;
"""


# `segments.schema`: the types of a segment's columns, as JSON of a `StructOf`; NULL if nobody inspected them.
# `schemas`, by config: what was accepted, what the card shows, and what happens on a conflict ('off': no check).
_SCHEMA_GUARD = """
ALTER TABLE segments ADD COLUMN schema TEXT;
CREATE TABLE schemas (config TEXT PRIMARY KEY, known TEXT, published TEXT, policy TEXT) WITHOUT ROWID;
"""

# What the committer polls is counted and indexed, so that a backlog of any size costs it the same; triggers count, so
# that a job of version 2 that has the spool open counts as well. Equal schemas are stored once: `segments.schema` is
# what version 2 wrote. Settled segments expire, and leave `committed_layouts` and `schemas.committed`.
_BOUNDED = """
ALTER TABLE segments ADD COLUMN schema_id INTEGER;
CREATE TABLE schema_texts (id INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, text TEXT NOT NULL);
CREATE INDEX schema_users ON segments (schema_id) WHERE schema_id IS NOT NULL;
ALTER TABLE schemas ADD COLUMN committed TEXT;
CREATE TABLE committed_layouts (
    config TEXT NOT NULL, split TEXT NOT NULL, template TEXT NOT NULL, glob TEXT NOT NULL, path TEXT NOT NULL,
    PRIMARY KEY (config, split, template, glob)
) WITHOUT ROWID;

CREATE INDEX aged ON segments (state, opened_at) WHERE state IN ('open', 'sealed', 'staged');
CREATE INDEX urgent ON segments (state) WHERE urgent AND state IN ('open', 'sealed', 'staged');
CREATE INDEX to_compress ON segments (id)
    WHERE state = 'sealed'
    AND ((substr(file, -6) = '.jsonl' AND substr(path, -6) != '.jsonl') OR substr(file, -7) = '.frames');
CREATE INDEX to_stage ON segments (id)
    WHERE state = 'sealed'
    AND NOT ((substr(file, -6) = '.jsonl' AND substr(path, -6) != '.jsonl') OR substr(file, -7) = '.frames');
CREATE INDEX settled ON segments (committed_at) WHERE state = 'committed';

-- How much each state holds. What was discarded does not count: see `_DISCARDED` in segments.py.
CREATE TABLE totals (
    state TEXT PRIMARY KEY, shards INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO totals VALUES ('open', 0, 0, 0), ('sealed', 0, 0, 0), ('staged', 0, 0, 0), ('committed', 0, 0, 0),
    ('dead', 0, 0, 0);
INSERT OR REPLACE INTO totals SELECT state, count(*), sum(rows), sum(bytes) FROM segments
    WHERE NOT (state = 'dead' AND rows = 0 AND file = '') GROUP BY state;
CREATE TRIGGER count_inserted AFTER INSERT ON segments WHEN NOT (NEW.state = 'dead' AND NEW.rows = 0 AND NEW.file = '')
BEGIN
    UPDATE totals SET shards = shards + 1, rows = rows + NEW.rows, bytes = bytes + NEW.bytes WHERE state = NEW.state;
END;
CREATE TRIGGER count_deleted AFTER DELETE ON segments WHEN NOT (OLD.state = 'dead' AND OLD.rows = 0 AND OLD.file = '')
BEGIN
    UPDATE totals SET shards = shards - 1, rows = rows - OLD.rows, bytes = bytes - OLD.bytes WHERE state = OLD.state;
END;
CREATE TRIGGER count_resized AFTER UPDATE OF rows, bytes ON segments WHEN NEW.state = OLD.state AND NEW.state != 'dead'
BEGIN
    UPDATE totals SET rows = rows + NEW.rows - OLD.rows, bytes = bytes + NEW.bytes - OLD.bytes WHERE state = NEW.state;
END;
CREATE TRIGGER count_moved AFTER UPDATE OF state, rows, bytes, file ON segments
WHEN NEW.state != OLD.state OR NEW.state = 'dead'
BEGIN
    UPDATE totals SET shards = shards - 1, rows = rows - OLD.rows, bytes = bytes - OLD.bytes
        WHERE state = OLD.state AND NOT (OLD.state = 'dead' AND OLD.rows = 0 AND OLD.file = '');
    UPDATE totals SET shards = shards + 1, rows = rows + NEW.rows, bytes = bytes + NEW.bytes
        WHERE state = NEW.state AND NOT (NEW.state = 'dead' AND NEW.rows = 0 AND NEW.file = '');
END;
"""

# `segments.lost`: accepted rows that the segment's file no longer holds.
_LOSSES = """
ALTER TABLE segments ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;
CREATE INDEX losses ON segments (lost) WHERE lost > 0;
"""

# The script at index n migrates version n to n + 1; version 0 is a new catalogue.
_MIGRATIONS = [_SCHEMA, _SCHEMA_GUARD, _BOUNDED, _LOSSES]


class Catalogue:
    """One connection, shared by the threads of one process under a lock."""

    def __init__(self, path: Path, *, fsync: bool = False) -> None:
        self.path = path
        self._log = f"{path}-wal"
        self._lock = threading.RLock()
        self._errors = _ErrorMapper(path)
        self._after_commit: list[Callable[[], object]] = []
        try:
            # SQLite would create the file readable by everyone, and its -wal and -shm inherit the mode. Only if it is
            # missing: closing a file releases SQLite's locks on it, for all connections of this process.
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            with _turn(path.parent):
                with _connecting:
                    self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
                    _open_catalogues.add(self)
                self._db.row_factory = sqlite3.Row
                self._open(fsync)
        except (*_SQLITE_ERRORS, OSError) as error:
            raise self._error(error, "can't be opened") from error

    def _open(self, fsync: bool) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        try:
            _refuse_newer(self.path, version)
        except SpoolVersionError:
            self._db.close()
            raise
        if version == 0:
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
        # A checkpoint costs an fsync, so the engine makes it apart from the hot path: see `checkpoint`.
        self._db.execute("PRAGMA wal_autocheckpoint = 0")
        if version < VERSION:
            with self.transaction():
                # Read it again: another process may have been faster.
                for migration in _MIGRATIONS[self.value("PRAGMA user_version") :]:
                    for statement in _statements(migration):
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version = {VERSION}")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return self._db.in_transaction

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the block in one transaction. On any exception nothing is changed.

        Raises:
            SpoolError: the disk or the database refuses.
        """
        with logs.transaction, self._lock:
            try:
                with self._errors:
                    self._db.execute("BEGIN IMMEDIATE")
                    yield
                    self._db.execute("COMMIT")
            except BaseException:
                self._after_commit = []
                if self._db.in_transaction:  # on a full disk SQLite has rolled back already
                    self._db.execute("ROLLBACK")
                raise
            callbacks, self._after_commit = self._after_commit, []
        for callback in callbacks:
            callback()

    def after_commit(self, callback: Callable[[], object]) -> None:
        """Call `callback` once the open transaction is committed, and outside of it; never if it is rolled back."""
        assert self.in_transaction
        self._after_commit.append(callback)

    def run(self, sql: str, *values: Any) -> int:
        """Execute one statement; return the last row id."""
        with self._lock, self._errors:
            return self._db.execute(sql, values).lastrowid or 0

    def update(self, sql: str, *values: Any) -> int:
        """Execute one statement; return how many rows it changed."""
        with self._lock, self._errors:
            return self._db.execute(sql, values).rowcount

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        with self._lock, self._errors:
            return self._db.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row of a query; None if it has no rows."""
        with self._lock, self._errors:
            found: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
            return found

    def _error(self, error: Exception, what: str) -> SpoolError:
        return _error_of(self.path, error, what)

    def value(self, sql: str, *values: Any) -> Any:
        """Return the first column of the first row of a query; None if it has no rows."""
        found = self.row(sql, *values)
        return found[0] if found is not None else None

    def get(self, key: str) -> str | None:
        """Return a named value of the spool; None if it is not set."""
        value: str | None = self.value("SELECT value FROM meta WHERE key = ?", key)
        return value

    def set(self, key: str, value: str | None) -> None:
        """Set a named value of the spool, or delete it."""
        if value is None:
            self.run("DELETE FROM meta WHERE key = ?", key)
        else:
            self.run(
                "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", key, value
            )

    def set_if_idle(self, key: str, value: str) -> None:
        """Set a named value that may be lost: on a full disk or in a busy catalogue, do nothing."""
        with suppress(SpoolError), self.impatient():
            self.set(key, value)

    @contextmanager
    def impatient(self) -> Iterator[None]:
        """Wait only briefly within the block, as an event loop must.

        Raises:
            SpoolError: another thread or process holds the catalogue.
        """
        if not self._lock.acquire(timeout=_IMPATIENT_S):
            raise SpoolError(f"the spool's catalogue {self.path} is busy.")
        try:
            self.run(f"PRAGMA busy_timeout = {_IMPATIENT_S * 1000:.0f}")
            yield
        finally:
            with suppress(SpoolError):  # closed
                self.run(f"PRAGMA busy_timeout = {_BUSY_S * 1000:.0f}")
            self._lock.release()

    def log_bytes(self) -> int:
        """Return the bytes of the write-ahead log that a checkpoint can free."""
        return max(0, self._log_size() - _KEPT_BYTES)

    def _log_size(self) -> int:
        try:
            return os.stat(self._log).st_size
        except OSError:
            return 0

    def checkpoint(self, *, shrink: bool = False) -> None:
        """Move the write-ahead log into the database, on a separate connection so that no one waits for it.

        Args:
            shrink: do so at any size, and give most of the log's room back to the disk.
        """
        size = self._log_size()
        if size < (1 if shrink else _CHECKPOINT_BYTES):
            return
        # If it is busy, the disk is full, or no file can be opened, the log keeps all; the next call tries again.
        with _connecting, suppress(sqlite3.Error), closing(sqlite3.connect(self.path, timeout=_IMPATIENT_S)) as db:
            frames = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
            cut = shrink and size > _KEPT_BYTES
            if cut or frames * _FRAME_BYTES >= _RESTART_FACTOR * _CHECKPOINT_BYTES:
                # Writers wait for the second pass, so the first one takes most of the work. The file is truncated only
                # if its room is needed, since that takes longer still.
                db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
                db.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if cut else 'RESTART'})").fetchall()
            free, pages = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count"))
            if free > max(_SPARE_PAGES, pages // 2):  # a backlog has gone; catalogues of version 2 only use it again
                db.execute(f"PRAGMA incremental_vacuum({_SPARE_PAGES})").fetchall()

    def empty_log(self) -> None:
        """Move all of the write-ahead log into the database, unless others use it now."""
        with _connecting, suppress(sqlite3.Error), closing(sqlite3.connect(self.path, timeout=0)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._db.close()


# SQLite's messages quote a corrupt catalogue, and then are not UTF-8.
_SQLITE_ERRORS = (sqlite3.Error, UnicodeDecodeError)


class _ErrorMapper:
    """Turn SQLite's errors into `SpoolError`. A class, since generators are slower and each batch enters this often."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # An `IntegrityError` is a bug of ours, which no retry fixes.
        if isinstance(error, _SQLITE_ERRORS) and not isinstance(error, sqlite3.IntegrityError):
            raise _error_of(self._path, error, "refuses") from error


class CatalogueReader:
    """A read-only view of a catalogue, in one transaction."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def rows(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        """Return all rows of a query."""
        return self._db.execute(sql, values).fetchall()

    def row(self, sql: str, *values: Any) -> sqlite3.Row | None:
        """Return the first row of a query; None if it has no rows."""
        found: sqlite3.Row | None = self._db.execute(sql, values).fetchone()
        return found

    def value(self, sql: str, *values: Any) -> Any:
        """Return the first column of the first row of a query; None if it has no rows."""
        found = self.row(sql, *values)
        return found[0] if found is not None else None

    def get(self, key: str) -> str | None:
        """Return a named value of the spool; None if it is not set."""
        value: str | None = self.value("SELECT value FROM meta WHERE key = ?", key)
        return value


@contextmanager
def read_only(path: Path) -> Iterator[CatalogueReader]:
    """Open a catalogue to look at it while jobs run. It changes nothing, and does not migrate an old version.

    Leave the block soon: no checkpoint passes an open reader.

    Raises:
        SpoolError: it does not exist, is not finished, or is busy.
        SpoolLost: it is corrupt.
        SpoolVersionError: a newer hubsync wrote it.
    """
    try:
        url = f"{path.absolute().as_uri()}?mode=ro"
        with (
            _turn(path.parent, fcntl.LOCK_SH),
            _connecting,
            closing(sqlite3.connect(url, uri=True, timeout=_IMPATIENT_S, isolation_level=None)) as db,
        ):
            db.row_factory = sqlite3.Row
            db.execute("BEGIN")
            _refuse_newer(path, db.execute("PRAGMA user_version").fetchone()[0])
            yield CatalogueReader(db)
    except (*_SQLITE_ERRORS, OSError) as error:
        raise _error_of(path, error, "can't be read") from error


def _refuse_newer(path: Path, version: int) -> None:
    if version > VERSION:
        raise SpoolVersionError(
            f"a newer hubsync wrote the spool {path.parent} (format {version}; this one reads up to {VERSION}). "
            "Nothing was changed. Upgrade hubsync here, or use another spool for this job."
        )


def strange_file(path: Path) -> Path | None:
    """Return which of a catalogue's files is something else, such as a directory; None if all are files or missing."""
    files = (Path(f"{path}{suffix}") for suffix in ("", "-wal", "-shm"))
    return next((file for file in files if file.exists() and not file.is_file()), None)


def corrupt(path: Path, error: Exception | str) -> SpoolLost:
    """Return the error for a catalogue that can't be read, or whose contents can't be."""
    return SpoolLost(
        f"the spool's catalogue {path} is corrupt ({one_line(str(error))}). The rows' files are unharmed. End all jobs "
        f"that use the spool, then upload the rows: hubsync drain --rescue {path.parent}"
    )


def _error_of(path: Path, error: Exception, what: str) -> SpoolError:
    if (strange := strange_file(path)) is not None:
        return corrupt(path, f"something else is in the place of {strange.name}, which is not a regular file")
    code = getattr(error, "sqlite_errorcode", None)  # None if Python found text that is not UTF-8
    is_text = code is None and (isinstance(error, UnicodeDecodeError) or "decode to UTF-8" in str(error))
    if is_text or (code or 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return corrupt(path, error)
    if (code or 0) & 0xFF == sqlite3.SQLITE_FULL:
        return SpoolError(
            f"the disk of the spool {path.parent} is full. All accepted rows are safe there. Free some space, but "
            "delete nothing of the spool: running jobs then continue, and new ones can start."
        )
    is_denied = (code or 0) & 0xFF in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
    is_denied = is_denied or getattr(error, "errno", None) in (errno.EROFS, errno.EACCES)
    if is_denied and os.path.exists(path) and not all(os.access(at, os.W_OK) for at in (path.parent, path)):
        return SpoolError(
            f"the spool {path.parent} is read-only here, and even reading its catalogue needs write access. Nothing "
            "was changed. Make it writable for this user, or copy the whole directory and look at the copy."
        )
    return SpoolError(f"the spool's catalogue {path} {what}: {error}. Accepted rows are safe there.")


@contextmanager
def _turn(directory: Path, how: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Let processes that open a new catalogue at the same moment take turns.

    SQLite does not switch to WAL while another process reads, and does not wait for it either.
    """
    fd = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without such locks
            _wait_for_turn(fd, how)
        if not os.path.samestat(os.fstat(fd), os.stat(directory)):
            raise FileNotFoundError(errno.ENOENT, "it was removed in the meantime", str(directory))
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile has the file open, too
        os.close(fd)


def _wait_for_turn(fd: int, how: int) -> None:
    """Wait for a bounded time: a turn takes milliseconds, and a stalled process must not block the others forever."""
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


def _statements(script: str) -> Iterator[str]:
    statement = ""
    for line in script.splitlines():
        statement += line.split("--")[0] + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


# SQLite keeps its file locks for the whole process, and a child does not inherit them. A child that used its parent's
# connection would rely on locks that no one holds: once the parent closes, the log would be deleted under the child,
# with everything in it. So no fork happens inside a transaction, and a child closes what it inherited first.
_locked_for_fork: list[Catalogue] = []


@before_fork
def _lock_before_fork() -> None:
    _connecting.acquire()
    for catalogue in sorted(_open_catalogues, key=id):
        catalogue._lock.acquire()
        _locked_for_fork.append(catalogue)


@after_fork_in_parent
def _unlock_in_parent() -> None:
    while _locked_for_fork:
        _locked_for_fork.pop()._lock.release()
    _connecting.release()


@after_fork_in_child
def _close_in_child() -> None:
    for catalogue in _locked_for_fork:
        catalogue._db.close()
    _unlock_in_parent()
