"""Looking at spools from outside: which there are, and what each holds.

A spool is opened for a moment only, beside the job that writes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hubsync._runtime.clock import SystemClock
from hubsync.model.target import default_home
from hubsync.spool.database import corrupt
from hubsync.spool.opening import open_spool
from hubsync.spool.spool import Spool
from hubsync.telemetry.status import read_stored


def spools() -> Iterator[Path]:
    """The spools at the place where uploaders keep them by default; and what can't be looked at."""
    home = default_home()
    for directory in sorted(home.iterdir()) if home.is_dir() else ():
        try:
            os.stat(directory / "catalogue.sqlite")
        except PermissionError:  # another user's: who opens it is told
            yield directory
        except OSError:
            continue
        else:
            yield directory


def spool_facts(directory: Path) -> dict[str, Any]:
    """What there is to say of one spool, in plain values. Raises `SpoolError` where there is none."""
    spool = open_spool(None, directory, SystemClock())
    try:
        return _facts_of(spool)
    except TypeError as error:  # a number of the catalogue is none
        raise corrupt(spool.catalogue.path, error) from error
    finally:
        spool.close()


def _facts_of(spool: Spool) -> dict[str, Any]:
    depth = spool.depth()
    state = read_stored(spool.catalogue.get("status"))
    age = depth.oldest_age_s(time.time())
    return {
        "spool": str(spool.directory),
        "repo": spool.target.repo,
        "revision": spool.target.revision,
        "endpoint": spool.target.endpoint,
        "rows_waiting": depth.rows,
        "bytes_waiting": depth.bytes,
        "shards": {"open": depth.open, "sealed": depth.sealed, "staged": depth.staged, "dead": depth.dead},
        "oldest_age_s": None if age is None else round(age, 1),
        "committed": {
            "rows": depth.committed_rows,
            "bytes": depth.committed_bytes,
            "shards": depth.committed_shards,
        },
        "state": state.kind,
        "reason": state.reason,
        "next_try_at": state.until,
        "committer_pid": spool.lease.holder_pid,
        "writer_pids": sorted(_writers(spool)),
        "dead_letter": [shard._asdict() for shard in spool.quarantine.shards()],
    }


def _writers(spool: Spool) -> set[int]:
    """The processes that have it open to write, the committer perhaps among them; one that is offline never is it."""
    names = [row["name"] for row in spool.catalogue.rows("SELECT name FROM writers")]
    return {pid for pid in (spool.writers.lock(name).holder() for name in names) if pid is not None}
