"""Remove a spool that no process uses.

A process that opens a spool waits for its turn with `flock` on the directory, and SQLite keeps a lock on the catalogue
for as long as it is open. A removal holds both, so it excludes every other process; then it renames the directory, and
deletes it under its new name. A process that waited for its turn finds the directory gone, and creates a new spool.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from hubsync._runtime.file_lock import FileLock
from hubsync.errors import SpoolBusy, SpoolError
from hubsync.spool.database import CatalogueReader

_REMOVED = ".removed-"  # the prefix of a directory that is being deleted
_BUSY_S = 0.5  # how long to wait for a page or a `status` that looks at the spool


def remove_spool(directory: Path, check: Callable[[CatalogueReader], None]) -> None:
    """Delete a spool's directory, unless a process has the spool open.

    Args:
        directory: The spool.
        check: Called with the catalogue while no other process can open it; it raises to keep the spool.

    Raises:
        SpoolBusy: A process has the spool open.
        SpoolError: The directory cannot be removed.
    """
    with ExitStack() as held:
        try:
            fd = os.open(directory, os.O_RDONLY)
            held.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            url = f"{(directory / 'catalogue.sqlite').absolute().as_uri()}?mode=rw"
            db = held.enter_context(closing(sqlite3.connect(url, uri=True, timeout=_BUSY_S, isolation_level=None)))
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA locking_mode = EXCLUSIVE")
            db.execute("PRAGMA journal_mode = DELETE")  # SQLite refuses it while any other connection exists
            db.execute("BEGIN EXCLUSIVE")
            lock = FileLock(directory / "committer.lock")  # a rebuild holds it without the catalogue
            if not lock.acquire():
                raise SpoolBusy(f"process {lock.holder()} has the spool {directory} open.")
            held.callback(lock.release)
            check(CatalogueReader(db))
            trash = directory.with_name(f"{_REMOVED}{directory.name}-{secrets.token_hex(4)}")
            os.rename(directory, trash)
        except BlockingIOError:
            raise SpoolBusy(f"a process is opening the spool {directory}.") from None
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode & 0xFF) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise SpoolBusy(f"a process has the spool {directory} open.") from None
            raise SpoolError(f"the spool {directory} cannot be removed: {error}.") from error
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(f"the spool {directory} cannot be removed: {error}.") from error
    shutil.rmtree(trash, ignore_errors=True)


def sweep_removed(home: Path) -> None:
    """Delete what an interrupted `remove_spool` left in a directory of spools."""
    with suppress(OSError):
        for trash in home.glob(f"{_REMOVED}*"):
            shutil.rmtree(trash, ignore_errors=True)
