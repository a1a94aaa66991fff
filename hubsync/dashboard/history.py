"""What happened in each spool while it was watched: throughput, commits and shards, for the page.

A spool that appears, vanishes, is corrupt or of a newer version is shown as a problem. Memory is bounded: an hour of
commits, a quarter of an hour of throughput. A spool that no job has open is read again only when its files change, so
hundreds of finished spools cost little.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import msgspec

from hubsync._runtime.paths import absolute
from hubsync.dashboard.snapshot import Depth, Snapshot, last_hour, links_of, next_commit, snapshot
from hubsync.dashboard.view import (
    Amount,
    ChangeView,
    CommitView,
    ConditionView,
    NextCommit,
    Problem,
    ProcessView,
    QueueView,
    Quota,
    Rates,
    RejectedGroup,
    Series,
    ShardView,
    SpoolDetail,
    SpoolInfo,
    SpoolView,
)
from hubsync.errors import SpoolError, SpoolLost, SpoolVersionError
from hubsync.maintenance.inspect import default_spools
from hubsync.spool.segments import SegmentSummary
from hubsync.telemetry.condition import KINDS

STEP_S = 10  # of the throughput
STEPS = 90
ALWAYS_DETAILED = 3  # so many spools need no overview: the page shows all of each
_HOUR = 3600
_FIRST = 5_000  # segments of the past that the first refresh reads,
_LATER = 400  # and every other: more than a second brings,
_GAP_S = 5.0  # unless the last refresh was longer ago
_IDLE_S = 10.0  # a spool that no job has open is read this often even if its files look unchanged
_SHARDS_SHOWN = 10
_SEEN = 50_000
_MINUTE = 6  # steps whose mean is the rate "now"


@dataclass(slots=True)
class _Commit:
    sha: str
    at: float
    shards: int = 0
    rows: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Step:
    """What happened within `STEP_S` seconds. `waiting_*`: the change of what waits; may be negative."""

    spooled_rows: float = 0
    spooled_bytes: float = 0
    committed_rows: float = 0
    committed_bytes: float = 0
    waiting_rows: float = 0
    waiting_bytes: float = 0


@dataclass(slots=True)
class _History:
    """What is known of one spool's past.

    Attributes:
        at: The last refresh; 0 before the first.
        totals: Spooled rows and bytes, committed rows and bytes, since the spool was created.
        waiting: Rows and bytes that wait for the Hub; the dead letter, which waits for a person, is not counted.
        shards: The last committed ones.
        seen: Segments that are counted in `commits`.
        info, problem: What the last refresh read; `info` has the detail.
        files: Size and time of the catalogue's files before that refresh.
    """

    at: float = 0.0
    totals: tuple[int, ...] = (0, 0, 0, 0)
    waiting: tuple[int, int] = (0, 0)
    steps: dict[int, _Step] = field(default_factory=dict)
    commits: dict[str, _Commit] = field(default_factory=dict)
    shards: list[SegmentSummary] = field(default_factory=list)
    seen: dict[int, None] = field(default_factory=dict)
    info: SpoolInfo | None = None
    problem: Problem | None = None
    files: tuple[tuple[int, int], ...] = ()


class SpoolHistories:
    """Follows the given spools, or all in the default directory. Thread-safe. Call `refresh` once a second."""

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        self._given = [absolute(directory, "the spool") for directory in directories]
        self._histories: dict[Path, _History] = {}
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Read all spools once."""
        with self._lock:
            directories = self._given or list(default_spools())
            for directory in self._histories.keys() - set(directories):
                del self._histories[directory]
            for directory in directories:
                self._refresh(directory)

    def views(self, detailed: Collection[str] = ()) -> list[SpoolView]:
        """Return all spools as of the last refresh, those that need someone or run first.

        Args:
            detailed: Ids of the spools whose detail is wanted. With at most `ALWAYS_DETAILED` spools, all have it.
        """
        with self._lock:
            all_detailed = len(self._histories) <= ALWAYS_DETAILED
            views = [
                _view(directory, history, all_detailed or _id_of(directory) in detailed)
                for directory, history in self._histories.items()
            ]
        return sorted(views, key=_rank)

    def _refresh(self, directory: Path) -> None:
        history = self._histories.setdefault(directory, _History())
        now, files = time.time(), _files(directory)
        unchanged = files == history.files and now - history.at < _IDLE_S
        if unchanged and history.info is not None and history.info.detail and not history.info.detail.processes:
            return
        try:
            found = snapshot(directory, _LATER if now - history.at < _GAP_S else _FIRST)
            _remember(history, found)
            history.info, history.problem, history.files = _info(found, history), None, files
        except Exception as error:  # noqa: BLE001  (one spool's content must not hide the others)
            known = isinstance(error, SpoolError)
            text = str(error) if known else f"Its catalogue has unexpected content ({type(error).__name__}: {error})."
            self._histories[directory] = _History(problem=Problem(_problem_kind(error, directory), text))


def _files(directory: Path) -> tuple[tuple[int, int], ...]:
    found = []
    for name in ("catalogue.sqlite", "catalogue.sqlite-wal", "writers", "committer.lock"):
        try:
            status = (directory / name).stat()
        except OSError:
            continue
        if status.st_size:  # an empty WAL: someone has only read
            found.append((status.st_size, status.st_mtime_ns))
    return tuple(found)


def _problem_kind(error: Exception, directory: Path) -> str:
    if isinstance(error, SpoolLost):
        return "corrupt"
    if isinstance(error, SpoolVersionError):
        return "newer version"
    return "unreadable" if (directory / "catalogue.sqlite").exists() else "missing"


def _rank(view: SpoolView) -> tuple[int, str]:
    """Order spools: those that need someone first, then running ones, finished ones, missing ones."""
    if view.info is not None:
        return KINDS.index(view.info.condition.kind), view.info.repo
    is_missing = view.problem is not None and view.problem.kind == "missing"
    return len(KINDS) if is_missing else KINDS.index("unknown"), view.spool


# What happened since the last refresh


def _remember(history: _History, found: Snapshot) -> None:
    dead, waiting, done = found.depths["dead"], found.waiting, found.committed
    totals = (done.rows + waiting.rows + dead.rows, done.bytes + waiting.bytes + dead.bytes, done.rows, done.bytes)
    if found.at - history.at > max(_GAP_S, 1.5 * _IDLE_S):  # the first refresh, or this machine slept
        history.steps.clear()
        _prefill(history, found)
    else:
        step = history.steps.setdefault(int(found.at // STEP_S), _Step())
        # A total that shrank is not throughput: a shard was taken out of the dead letter.
        more = [max(0, now - before) for now, before in zip(totals, history.totals, strict=True)]
        step.spooled_rows += more[0]
        step.spooled_bytes += more[1]
        step.committed_rows += more[2]
        step.committed_bytes += more[3]
        step.waiting_rows += waiting.rows - history.waiting[0]
        step.waiting_bytes += waiting.bytes - history.waiting[1]
    history.totals, history.waiting, history.at = totals, (waiting.rows, waiting.bytes), found.at
    for number in [n for n in history.steps if n <= found.at // STEP_S - STEPS]:
        del history.steps[number]
    _remember_commits(history, found)


def _prefill(history: _History, found: Snapshot) -> None:
    """Fill the steps before the first refresh: rows are spread evenly over the time that their segment was open."""
    first = int(found.at // STEP_S) - STEPS + 1
    for row in found.recent:
        opened, until = row.opened_at, row.sealed_at or found.at
        numbers = range(max(first, int(opened // STEP_S)), min(int(until // STEP_S), int(found.at // STEP_S)) + 1)
        length = max(until - opened, 1e-3)
        for number in numbers:
            within = max(0.0, min(until, (number + 1) * STEP_S) - max(opened, number * STEP_S))
            share = within / length if until - opened > 1e-3 else 1 / len(numbers)
            step = history.steps.setdefault(number, _Step())
            step.spooled_rows += row.rows * share
            step.spooled_bytes += row.bytes * share
            step.waiting_rows += row.rows * share
            step.waiting_bytes += row.bytes * share
        gone = row.sealed_at if row.state == "dead" else row.committed_at
        if gone is not None and (number := int(gone // STEP_S)) >= first:
            step = history.steps.setdefault(number, _Step())
            step.waiting_rows -= row.rows
            step.waiting_bytes -= row.bytes
            if row.state != "dead":
                step.committed_rows += row.rows
                step.committed_bytes += row.bytes


def _remember_commits(history: _History, found: Snapshot) -> None:
    new = [row for row in found.recent if row.state == "committed" and row.id not in history.seen]
    for row in sorted(new, key=lambda row: (row.committed_at or 0.0, row.id)):
        history.seen[row.id] = None
        sha = row.sha or ""
        commit = history.commits.setdefault(sha, _Commit(sha, row.committed_at or found.at))
        commit.shards += 1
        commit.rows += row.rows
        commit.bytes += row.bytes
        history.shards.append(row)
    del history.shards[:-_SHARDS_SHOWN]
    for sha in [sha for sha, commit in history.commits.items() if commit.at < found.at - _HOUR]:
        del history.commits[sha]
    while len(history.seen) > _SEEN:
        del history.seen[next(iter(history.seen))]


# Views


def _id_of(directory: Path) -> str:
    return "s" + hashlib.blake2b(str(directory).encode("utf-8", "replace"), digest_size=6).hexdigest()


def _view(directory: Path, history: _History, detailed: bool) -> SpoolView:
    info = history.info
    return SpoolView(
        id=_id_of(directory),
        spool=str(directory).encode("utf-8", "replace").decode(),
        now=time.time(),
        info=info if detailed or info is None else msgspec.structs.replace(info, detail=None),
        problem=history.problem,
    )


def _info(found: Snapshot, history: _History) -> SpoolInfo:
    return SpoolInfo(
        repo=found.target.repo,
        revision=found.target.revision,
        url=(links_of(found.target) or {}).get("repo"),
        alive=found.alive,
        condition=ConditionView(*found.condition),
        waiting=_amount(found.waiting),
        rejected=_amount(found.depths["dead"]),
        lost_rows=found.lost_rows,
        committed=_amount(found.committed),
        oldest_age_s=found.oldest_age_s,
        next=NextCommit(*next_commit(found)),
        minute=_minute(history, found.at),
        detail=_detail(found, history),
    )


def _amount(depth: Depth) -> Amount:
    return Amount(depth.shards, depth.rows, depth.bytes)


def _detail(found: Snapshot, history: _History) -> SpoolDetail:
    commits = sorted(history.commits.values(), key=lambda commit: commit.at)
    return SpoolDetail(
        by_state={name: _amount(depth) for name, depth in found.depths.items()},
        queue=_queue(found),
        quota=Quota(*last_hour(found)),
        series=_series(history, found.at),
        commits=[CommitView(c.sha, c.at, c.shards, c.rows, c.bytes, _link(found, "commit", c.sha)) for c in commits],
        shards=[_shard(found, row) for row in [*reversed(found.next_up), *reversed(history.shards)]],
        changes=[ChangeView(change.at, change.kind, change.reason) for change in reversed(found.stored.changes)],
        rejected=[RejectedGroup(*reason) for reason in found.rejected],
        processes=[
            ProcessView(
                pid=process.pid,
                writer=process.writer,
                commits=process.commits,
                alive=process.alive,
                exists=process.exists,
                heartbeat_age_s=process.heartbeat_age_s,
                rows=process.heartbeat.counts.spooled_rows if process.heartbeat else None,
                retries=process.heartbeat.counts.retries if process.heartbeat else None,
            )
            for process in found.processes
        ],
    )


def _queue(found: Snapshot) -> QueueView | None:
    """Add up the queues of all running jobs; None if no job reports one."""
    running = [process.heartbeat for process in found.processes if process.alive and process.heartbeat is not None]
    if not running:
        return None
    return QueueView(
        batches=sum(job.queue_batches for job in running),
        rows=sum(job.queue_rows for job in running),
        bytes=sum(job.queue_bytes for job in running),
        max_bytes=sum(job.queue_max_bytes for job in running),
        blocked=sum(job.blocked for job in running),
        raised=sum(job.raised for job in running),
        dropped=sum(job.dropped for job in running),
    )


def _steps(history: _History, now: float) -> list[_Step]:
    last = int(now // STEP_S)
    return [history.steps.get(number, _Step()) for number in range(last - STEPS + 1, last + 1)]


def _minute(history: _History, now: float) -> Rates:
    steps = _steps(history, now)[-_MINUTE:]
    seconds = (_MINUTE - 1) * STEP_S + now % STEP_S
    return Rates(
        spooled_rows=sum(step.spooled_rows for step in steps) / seconds,
        spooled_bytes=sum(step.spooled_bytes for step in steps) / seconds,
        committed_rows=sum(step.committed_rows for step in steps) / seconds,
        committed_bytes=sum(step.committed_bytes for step in steps) / seconds,
    )


def _series(history: _History, now: float) -> Series:
    """Return the rates of all steps. The last step has only begun, so it is averaged with the one before it."""
    steps = _steps(history, now)
    begun = now % STEP_S

    def rates(name: str) -> list[float]:
        amounts = [getattr(step, name) for step in steps]
        complete = [amount / STEP_S for amount in amounts[:-1]]
        return [round(rate, 3) for rate in (*complete, (amounts[-2] + amounts[-1]) / (STEP_S + begun))]

    return Series(
        start=(int(now // STEP_S) - STEPS + 1) * STEP_S,
        step_s=STEP_S,
        spooled_rows=rates("spooled_rows"),
        spooled_bytes=rates("spooled_bytes"),
        committed_rows=rates("committed_rows"),
        committed_bytes=rates("committed_bytes"),
        waiting_rows=_backwards(history.waiting[0], [step.waiting_rows for step in steps]),
        waiting_bytes=_backwards(history.waiting[1], [step.waiting_bytes for step in steps]),
    )


def _backwards(now: float, changes: list[float]) -> list[float]:
    """Return what waited at the end of each step, given what waits now and how each step changed it."""
    amounts = []
    for change in reversed(changes):
        amounts.append(float(round(max(0.0, now))))
        now -= change
    return amounts[::-1]


def _shard(found: Snapshot, row: SegmentSummary) -> ShardView:
    return ShardView(
        id=row.id,
        path=row.path,
        writer=row.writer,
        state="sending" if row.plan is not None else row.state,
        rows=row.rows,
        bytes=row.bytes,
        at=row.committed_at or row.sealed_at or row.opened_at,
        url=_link(found, "file", row.path) if row.state == "committed" else None,
    )


def _link(found: Snapshot, kind: str, rest: str | None) -> str | None:
    links = links_of(found.target)
    return None if links is None or rest is None else links[kind] + quote(rest)
