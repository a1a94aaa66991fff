"""Read a spool from outside, in a few milliseconds however much it has ever committed, without a trace in it.

The catalogue is read in one short transaction. Whether a job is alive is judged by its heartbeat file and the times of
its lock files, so no lock that a job may need is ever taken.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import msgspec

from hubsync._runtime.clock import SystemClock
from hubsync._runtime.formatting import count_text
from hubsync.committer.rate_limiter import RateLimiter, last_policy
from hubsync.errors import SpoolError
from hubsync.model.target import Target
from hubsync.spool.database import CatalogueReader, read_only
from hubsync.spool.segments import RejectionReason, SegmentQueries, SegmentSummary, StateDepth
from hubsync.telemetry.condition import Committer, Condition, SpoolFacts, condition_of
from hubsync.telemetry.heartbeat import Heartbeat, read_heartbeats
from hubsync.telemetry.status import QUOTA, State, Stored, full_because

SILENT_S = 5.0  # jobs write two heartbeats a second; without one for so long a job has ended or stopped
_WAITING_SHOWN = 5
_REASONS_SHOWN = 20


class Depth(NamedTuple):
    """The shards of one state; `oldest_at` is when the first row of them came."""

    shards: int = 0
    rows: int = 0
    bytes: int = 0
    oldest_at: float | None = None


@dataclass(frozen=True, slots=True)
class Process:
    """A process that writes or commits. `exists`: whether there is a process with its pid."""

    pid: int | None
    writer: str | None
    commits: bool
    heartbeat_age_s: float
    exists: bool
    heartbeat: Heartbeat | None = None

    @property
    def alive(self) -> bool:
        """Whether its heartbeat is recent."""
        return self.heartbeat_age_s < SILENT_S  # its pid may be that of another container's namespace


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A spool at one moment. `recent`: its newest segments, both waiting and committed."""

    directory: Path
    at: float
    target: Target
    stored: Stored
    depths: dict[str, Depth]
    committed: Depth
    urgent: bool
    governor: str | None
    sending_since: float | None
    next_up: list[SegmentSummary]
    recent: list[SegmentSummary]
    rejected: list[RejectionReason]
    processes: list[Process]
    lost_rows: int = 0

    @property
    def alive(self) -> bool:
        """Whether any process has a recent heartbeat."""
        return any(process.alive for process in self.processes)

    @property
    def waiting(self) -> Depth:
        """Everything that is not on the Hub yet, without the dead letter."""
        parts = [self.depths[state] for state in ("open", "sealed", "staged")]
        oldest = min((part.oldest_at for part in parts if part.oldest_at is not None), default=None)
        return Depth(
            sum(part.shards for part in parts), sum(part.rows for part in parts), sum(p.bytes for p in parts), oldest
        )

    @property
    def oldest_age_s(self) -> float | None:
        """How long the oldest row that is not on the Hub has waited, on disk or in a job's memory."""
        since = [p.heartbeat.queue_oldest_at for p in self.processes if p.alive and p.heartbeat is not None]
        known = [at for at in (*since, self.waiting.oldest_at) if at is not None]
        return max(0.0, self.at - min(known)) if known else None

    @property
    def state(self) -> State:
        """The committer's, or a writer's that is worse: its disk is full."""
        for process in self.processes:
            if process.alive and process.heartbeat is not None and process.heartbeat.state.kind == "spool full":
                return full_because(process.heartbeat.state, self.stored)
        return self.stored

    @property
    def condition(self) -> Condition:
        """How the spool is doing: the verdict that `hubsync status` shows as well."""
        committers = [process for process in self.processes if process.commits]
        committer: Committer = "stalled" if any(process.exists for process in committers) else "none"
        if any(process.alive for process in committers):
            committer = "working"
        running = [process.heartbeat for process in self.processes if process.alive and process.heartbeat is not None]
        dead = self.depths["dead"]
        return condition_of(
            SpoolFacts(
                self.directory, self.state, rows=self.waiting.rows, queued_rows=sum(job.queue_rows for job in running),
                rejected_rows=dead.rows, rejected_shards=dead.shards, lost_rows=self.lost_rows,
                is_open=self.alive or committer == "stalled",
                committer=committer,
                activity=next((p.heartbeat.activity for p in committers if p.alive and p.heartbeat is not None), ""),
            )
        )  # fmt: skip


def snapshot(directory: Path, newest: int) -> Snapshot:
    """Read the spool, with its `newest` segments.

    Raises:
        SpoolError: It is gone, busy, corrupt (`SpoolLost`), or of a newer version (`SpoolVersionError`).
    """
    path = directory / "catalogue.sqlite"
    if not path.exists():
        raise SpoolError(f"there is no spool at {directory}.")
    try:
        with read_only(path) as db:
            return _read(db, directory, newest)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SpoolError(f"the catalogue {path} has unexpected content: {error}.") from error


def _read(db: CatalogueReader, directory: Path, newest: int) -> Snapshot:
    target = db.get("target")
    if target is None:
        raise SpoolError(f"the spool {directory} was never used for a repo.")
    segments = SegmentQueries(db)
    grouped = segments.depths()
    depths = {state: Depth(*grouped.get(state, StateDepth())[:4]) for state in ("open", "sealed", "staged", "dead")}
    first_ids = [depth.first_id for state, depth in grouped.items() if state != "dead" and depth.first_id is not None]
    status = db.get("status")
    return Snapshot(
        directory=directory,
        at=time.time(),
        target=msgspec.json.decode(target, type=Target),
        stored=msgspec.json.decode(status, type=Stored) if status is not None else Stored(),
        depths=depths,
        committed=Depth(*(int(db.get(f"committed_{key}") or 0) for key in ("shards", "rows", "bytes"))),
        urgent=segments.has_urgent(),
        governor=db.get("governor"),
        sending_since=db.value("SELECT min(created_at) FROM plans"),
        next_up=segments.next_up(_WAITING_SHOWN),
        recent=_recent(segments, newest, min(first_ids, default=None)),
        rejected=segments.rejection_reasons(_REASONS_SHOWN),
        lost_rows=segments.lost_rows(),
        processes=_processes(directory, [row[0] for row in db.rows("SELECT name FROM writers ORDER BY name")]),
    )


def _recent(segments: SegmentQueries, newest: int, first_waiting: int | None) -> list[SegmentSummary]:
    """Return the newest segments, and those right before the first one that waits, by id: no index has their times."""
    found = {segment.id: segment for segment in segments.latest(newest)}
    if first_waiting is not None and first_waiting < min(found, default=0):
        found |= {segment.id: segment for segment in segments.latest(newest, before=first_waiting)}
    return list(found.values())


def _processes(directory: Path, names: list[str]) -> list[Process]:
    heartbeats, now = read_heartbeats(directory), time.time()
    committer = _lock(directory / "committer.lock")
    found: list[Process] = []
    for name in names:
        heartbeat, lock = heartbeats.get(name), _lock(directory / "writers" / f"{name}.lock")
        if heartbeat is None and (lock is None or now - lock[1] > SILENT_S):
            continue  # it ended properly, or long ago
        pid, beat = (heartbeat.pid, heartbeat.at) if heartbeat is not None else (lock or (None, 0.0))
        commits = committer is not None and committer[0] == pid
        found.append(
            Process(pid, name, commits, max(0.0, now - max(beat, lock[1] if lock else 0.0)), _exists(pid), heartbeat)
        )
    if committer is not None and now - committer[1] < SILENT_S and not any(p.commits for p in found):
        found.append(Process(committer[0], None, True, max(0.0, now - committer[1]), _exists(committer[0])))
    return found


def _lock(path: Path) -> tuple[int | None, float] | None:
    """Return the pid in a lock file, and the time of its holder's last heartbeat."""
    try:
        pid = path.read_bytes()[:20].split(b"\n")[0]
        return int(pid) if pid.isdigit() else None, path.stat().st_mtime
    except OSError:
        return None


def _exists(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


# In words and figures


def last_hour(found: Snapshot) -> tuple[int, int]:
    """Commits of the last hour, and how many this spool may spend in one."""
    return _rate_limiter(found).last_hour()


def _rate_limiter(found: Snapshot) -> RateLimiter:
    return RateLimiter(last_policy(found.governor), SystemClock(), found.governor)


def next_commit(found: Snapshot) -> tuple[float | None, str]:
    """Return when the next commit is (seconds since the epoch; None if unknown), and why it waits."""
    waiting = found.waiting
    if not found.alive:
        if waiting.rows:
            return None, f"No job has this spool open. To upload its rows: hubsync drain {found.directory}"
        return None, "No job has this spool open, and nothing waits in it."
    return _delayed(found) or _on_its_way(found)


def _delayed(found: Snapshot) -> tuple[float | None, str] | None:
    """Return the next attempt and what delays it; None if nothing does."""
    state = found.state
    if state.kind == "blocked":
        return state.until, "An operator must fix this. It is retried meanwhile, and continues once it is fixed."
    if state.kind == "backing off":
        if state.reason == QUOTA:
            return (
                state.until,
                "The Hub refuses commits for now: it counts those of all jobs of an account by the hour.",
            )
        return state.until, "It is retried, with growing pauses."
    if state.kind == "offline":
        return None, f"No commit is planned: {state.reason}."
    if state.kind == "spool full":
        return state.until, f"The disk takes no more: {state.reason}"
    return None


def _on_its_way(found: Snapshot) -> tuple[float | None, str]:
    """Return when the next commit is sent, and what happens until then."""
    state, depths = found.state, found.depths
    if not any(process.commits and process.alive for process in found.processes):
        return None, "No process commits for this spool right now; one of its writers is about to take over."
    if found.sending_since is not None:
        return found.sending_since, f"It has been on its way for {_for(found.at - found.sending_since)}."
    if depths["staged"].shards:
        wait = _rate_limiter(found).wait_s(urgent=found.urgent)
        many = count_text(depths["staged"].shards, "shard")
        if wait:
            of, quota = last_hour(found)
            return found.at + wait, f"{many} ready. Commits keep to {quota:,} an hour, spread evenly; {of:,} are spent."
        return found.at, f"{many} ready to be sent now."
    if depths["sealed"].shards:
        if state.reason.startswith("upl"):
            return None, state.reason.capitalize() + "."
        many, size = count_text(depths["sealed"].shards, "shard"), depths["sealed"].bytes / 1e6
        return None, f"{many} being uploaded ({size:,.1f} MB)."
    if depths["open"].rows:
        return _when_sealed(found)
    return None, f"Everything {'else ' if depths['dead'].shards else ''}is on the Hub."


def _when_sealed(found: Snapshot) -> tuple[float | None, str]:
    running = [process.heartbeat for process in found.processes if process.heartbeat is not None and process.alive]
    opened = found.depths["open"].oldest_at
    if not running or opened is None:
        return None, "The shard is still open."
    linger, most = max(job.linger_s for job in running), running[0].shard_max_bytes
    return opened + linger, (
        f"The shard is still open: it is sealed {_for(linger)} after its first row, or at {most / 1e6:,.0f} MB."
    )


def _for(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def links_of(target: Target) -> dict[str, str] | None:
    """The beginnings of addresses on the Hub; None where the endpoint is no web address."""
    if urlsplit(target.endpoint).scheme not in ("http", "https"):
        return None
    repo = f"{target.endpoint.rstrip('/')}/datasets/{quote(target.repo)}"
    return {"repo": repo, "file": f"{repo}/blob/{quote(target.revision, safe='')}/", "commit": f"{repo}/commit/"}
