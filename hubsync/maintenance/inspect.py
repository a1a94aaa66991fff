"""Inspect spools from outside: which exist, and what each holds.

Each inspection opens the spool briefly; a job may be writing to it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubsync._runtime.clock import SystemClock
from hubsync.model.shard import QuarantinedShard
from hubsync.model.stats import SpoolDepth
from hubsync.model.target import Target, default_home
from hubsync.spool.database import corrupt
from hubsync.spool.opening import open_spool
from hubsync.telemetry.status import State, read_stored


@dataclass(frozen=True, slots=True)
class SpoolReport:
    """What a spool holds and which processes use it, at one moment.

    Attributes:
        directory: where the spool is.
        target: the branch of the dataset that its rows go to.
        depth: rows, bytes and shards by state.
        state: the state of the job that commits, or committed last.
        oldest_age_s: how long the oldest uncommitted row has waited, in seconds; None if no row waits.
        committer_pid: the process that commits for the spool; None if no process does.
        writer_pids: the processes that have the spool open to write, in ascending order.
        dead_letter: the rejected shards, oldest first.
    """

    directory: Path
    target: Target
    depth: SpoolDepth
    state: State
    oldest_age_s: float | None
    committer_pid: int | None
    writer_pids: tuple[int, ...]
    dead_letter: tuple[QuarantinedShard, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values: one line of `hubsync status --json`."""
        depth, state = self.depth, self.state
        return {
            "spool": str(self.directory),
            "repo": self.target.repo,
            "revision": self.target.revision,
            "endpoint": self.target.endpoint,
            "rows_waiting": depth.rows,
            "bytes_waiting": depth.bytes,
            "shards": {"open": depth.open, "sealed": depth.sealed, "staged": depth.staged, "dead": depth.dead},
            "oldest_age_s": None if self.oldest_age_s is None else round(self.oldest_age_s, 1),
            "committed": {
                "rows": depth.committed_rows,
                "bytes": depth.committed_bytes,
                "shards": depth.committed_shards,
            },
            "state": state.kind,
            "reason": state.reason,
            "next_try_at": state.until,
            "committer_pid": self.committer_pid,
            "writer_pids": list(self.writer_pids),
            "dead_letter": [shard._asdict() for shard in self.dead_letter],
        }


def default_spools() -> Iterator[Path]:
    """Yield the spools in the default home, and directories there that this user may not look into."""
    home = default_home()
    for directory in sorted(home.iterdir()) if home.is_dir() else ():
        try:
            os.stat(directory / "catalogue.sqlite")
        except PermissionError:  # another user's spool: opening it explains the problem
            yield directory
        except OSError:
            continue
        else:
            yield directory


def inspect_spool(directory: Path) -> SpoolReport:
    """Return what a spool holds.

    Raises:
        SpoolError: the directory is not a spool, or its catalogue cannot be read.
    """
    spool = open_spool(None, directory, SystemClock())
    try:
        depth = spool.depth()
        return SpoolReport(
            directory=spool.directory,
            target=spool.target,
            depth=depth,
            state=read_stored(spool.catalogue.get("status")),
            oldest_age_s=depth.oldest_age_s(time.time()),
            committer_pid=spool.lease.holder_pid,
            writer_pids=tuple(sorted(spool.writers.pids())),
            dead_letter=tuple(spool.quarantine.shards()),
        )
    except TypeError as error:  # a column of a damaged catalogue holds text instead of a number
        raise corrupt(spool.catalogue.path, error) from error
    finally:
        spool.close()
