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
from hubsync.errors import ConfigError, HubsyncError
from hubsync.model.shard import QuarantinedShard
from hubsync.model.stats import SpoolDepth
from hubsync.model.target import Target, default_home
from hubsync.spool.agent_home import agent_of
from hubsync.spool.database import corrupt
from hubsync.spool.opening import open_spool
from hubsync.telemetry.condition import Committer, Condition, SpoolFacts, condition_of
from hubsync.telemetry.heartbeat import read_heartbeats
from hubsync.telemetry.status import State, full_because, read_stored

SILENT_S = 5.0  # a process without a heartbeat for so long has ended or stopped


@dataclass(frozen=True, slots=True)
class SpoolReport:
    """What a spool holds and which processes use it, at one moment.

    Attributes:
        directory: where the spool is.
        target: the branch of the dataset that its rows go to; None if the spool cannot be read.
        error: why it cannot be read; None if it can.
        depth: rows, bytes and shards by state.
        state: the state of the job that commits, or committed last; or that of a writer whose disk is full.
        condition: the verdict on all of it.
        oldest_age_s: how long the oldest uncommitted row has waited, in seconds; None if no row waits.
        committer_pid: the process that commits for the spool; None if no process does.
        agent_pid: the agent's process, if one runs and serves the spool.
        writer_pids: the processes that have the spool open to write, in ascending order.
        dead_letter: the rejected shards, oldest first.
    """

    directory: Path
    target: Target | None
    depth: SpoolDepth
    state: State
    condition: Condition
    oldest_age_s: float | None = None
    committer_pid: int | None = None
    agent_pid: int | None = None
    writer_pids: tuple[int, ...] = ()
    dead_letter: tuple[QuarantinedShard, ...] = ()
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values: one line of `hubsync status --json`."""
        depth, state = self.depth, self.state
        if self.target is None:
            return {"spool": str(self.directory), "condition": self.condition.kind, "error": self.error}
        return {
            "spool": str(self.directory),
            "repo": self.target.repo,
            "revision": self.target.revision,
            "endpoint": self.target.endpoint,
            "rows_waiting": depth.rows,
            "bytes_waiting": depth.bytes,
            "shards": {"open": depth.open, "sealed": depth.sealed, "staged": depth.staged, "dead": depth.dead},
            "lost_rows": depth.lost_rows,
            "oldest_age_s": None if self.oldest_age_s is None else round(self.oldest_age_s, 1),
            "committed": {
                "rows": depth.committed_rows,
                "bytes": depth.committed_bytes,
                "shards": depth.committed_shards,
            },
            "condition": self.condition.kind,
            "why": self.condition.reason,
            "command": self.condition.command,
            "state": state.kind,
            "reason": state.reason,
            "next_try_at": state.until,
            "committer_pid": self.committer_pid,
            "agent_pid": self.agent_pid,
            "writer_pids": list(self.writer_pids),
            "dead_letter": [shard._asdict() for shard in self.dead_letter],
        }


def default_spools() -> Iterator[Path]:
    """Yield the spools in the default home, and directories there that this user may not look into."""
    home = default_home()
    try:
        found = sorted(home.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"cannot list the spools in {home}: {error.strerror}. Check HUBSYNC_HOME.") from error
    for directory in found:
        if directory.name.startswith("."):  # of an interrupted `remove_spool`
            continue
        try:
            os.stat(directory / "catalogue.sqlite")
        except PermissionError:  # another user's spool: opening it explains the problem
            yield directory
        except OSError:
            continue
        else:
            yield directory


def inspect_all() -> list[SpoolReport]:
    """Return what each spool in the default home holds; one that cannot be read hides no other."""
    reports = []
    for directory in default_spools():
        try:
            reports.append(inspect_spool(directory))
        except HubsyncError as error:
            unknown = Condition("unknown", str(error))
            reports.append(SpoolReport(directory, None, SpoolDepth(), State(), unknown, error=str(error)))
    return reports


def inspect_spool(directory: Path) -> SpoolReport:
    """Return what a spool holds.

    Raises:
        SpoolError: the directory is not a spool, or its catalogue cannot be read.
    """
    spool = open_spool(None, directory, SystemClock())
    try:
        depth = spool.depth()
        state: State = read_stored(spool.catalogue.get("status"))
        committer_pid, writer_pids = spool.lease.holder_pid, tuple(sorted(spool.writers.pids()))
        lives = [live for live in read_heartbeats(spool.directory).values() if live.pid in writer_pids]
        state = next((full_because(live.state, state) for live in lives if live.state.kind == "spool full"), state)
        facts = SpoolFacts(
            spool.directory, state, rows=depth.rows, queued_rows=sum(live.queue_rows for live in lives),
            rejected_rows=depth.dead_rows, rejected_shards=depth.dead, lost_rows=depth.lost_rows,
            is_open=committer_pid is not None or bool(writer_pids),
            committer="none" if committer_pid is None else _committer(spool.lease.lock_file),
            activity=next((live.activity for live in lives if live.pid == committer_pid), ""),
        )  # fmt: skip
        return SpoolReport(
            directory=spool.directory,
            target=spool.target,
            depth=depth,
            state=state,
            condition=condition_of(facts),
            oldest_age_s=depth.oldest_age_s(time.time()),
            committer_pid=committer_pid,
            agent_pid=agent_of(directory.absolute()),
            writer_pids=writer_pids,
            dead_letter=tuple(spool.quarantine.shards()),
        )
    except TypeError as error:  # a column of a damaged catalogue holds text instead of a number
        raise corrupt(spool.catalogue.path, error) from error
    finally:
        spool.close()


def _committer(lock: Path) -> Committer:
    """Return whether the holder of the committer's lock works: it refreshes the file twice a second."""
    try:
        return "stalled" if time.time() - lock.stat().st_mtime > SILENT_S else "working"
    except OSError:
        return "working"
