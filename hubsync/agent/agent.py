"""The agent: commits for all spools of this host and user, so that jobs only spool.

    look -> changed spools -> a queue -> served, a bounded number at a time -> let go once nothing waits in them

An idle spool is not open: twice a second the agent compares the times of its catalogue's files, which any write
changes, and it holds nothing but a path for it. A spool that another process commits for is left to that one until it
lets go or stalls. What is wrong with one spool is logged, tried again later, and stops no other.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
from anyio.abc import TaskGroup

from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.exceptions import root_cause
from hubsync._runtime.file_lock import HEARTBEAT_S, FileLock, HeartbeatMonitor
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.committer import Committer
from hubsync.committer.rate_limiter import Quota
from hubsync.destinations.resolve import online_destination
from hubsync.errors import HubsyncError, SpoolBusy
from hubsync.maintenance.drain import committer_for
from hubsync.model.stats import QueueDepth, SpoolDepth
from hubsync.policies import RetryPolicy
from hubsync.spool.agent_home import AgentHome
from hubsync.spool.database import corrupt
from hubsync.spool.opening import open_spool
from hubsync.spool.spool import Spool
from hubsync.telemetry.metrics import Source, register_source
from hubsync.telemetry.status import Status

_log = logging.getLogger("hubsync")

GRACE_S = 20.0  # for the running commits after SIGTERM; a supervisor waits 30 s
_LOOK_S = 0.5  # how soon a changed spool is noticed
_IDLE_S = 5.0  # a spool in which nothing waits is let go after so long without a change
_MOST_OPEN = 48  # spools that are served at once; each has about ten files open
_TURN_S = 60.0  # the longest that a spool is served while others wait for their turn
_SHORT_TURN_S = 5.0  # the same for one that has nothing to upload now, or cannot
_AGAIN_S = 30.0  # until a spool that cannot be served is tried again
_TAKE_OVER_S = 6.0  # how long a stalled committer is watched before it is left alone
_LOCK_TRIES = 20  # a process that only looks whether an agent runs also holds its lock for an instant

_NO_QUEUE = QueueDepth(0, 0, 0, 0, 0, 0)

Signature = tuple[int, int, int]


class Health(NamedTuple):
    """What the agent does, at one moment.

    Attributes:
        pid: its process.
        looked_at: when it last looked for changed spools, in seconds since the epoch.
        spools: those that it knows.
        served: those that it serves now.
        waiting: those that wait for their turn.
        failing: those that it cannot serve.
        rows: rows in the served spools that are not on the Hub.
        committed_rows: rows that it has committed.
    """

    pid: int
    looked_at: float
    spools: int
    served: int
    waiting: int
    failing: int
    rows: int
    committed_rows: int


@dataclass(eq=False, slots=True)
class _Known:
    """A spool that the agent knows."""

    directory: Path
    seen: Signature | None = None  # of its catalogue when it was let go: unless it changes, nothing waits in it
    committer: FileLock = field(init=False)
    elsewhere: HeartbeatMonitor | None = None  # of the process that commits for it, unless that is the agent
    is_taken: bool = False  # it waits for its turn, or is served
    problem: str = ""  # why it could not be served
    not_before: float = 0.0
    rows: int = 0
    counts: Status | None = None

    def __post_init__(self) -> None:
        self.committer = FileLock(self.directory / "committer.lock")


class Agent:
    """Serves the spools of a home, and others that it is given or that are announced."""

    def __init__(
        self, directories: Sequence[Path] = (), *, retry: RetryPolicy | None = None, clock: Clock | None = None
    ) -> None:
        """Look at nothing yet.

        Args:
            directories: spools, or directories that hold spools, in addition to the default ones.
            retry: None for the default.
            clock: None for the system's.
        """
        self.home = AgentHome()
        self._given = [directory.absolute() for directory in directories]
        self._retry = retry or RetryPolicy()
        self._clock = clock or SystemClock()
        self._known: dict[Path, _Known] = {}
        self._queue: deque[_Known] = deque()
        self._served = 0
        self._committed_rows = 0  # in spools that were let go
        self._quotas: dict[str, Quota] = {}  # by endpoint
        self._looked_at = self._busy_at = self._clock.time()
        self._stopping = anyio.Event()

    def stop(self) -> None:
        """Let `run` finish what is being committed, and end. From the event loop only."""
        self._stopping.set()

    def health(self) -> Health:
        """Return what the agent does. From any thread."""
        known = list(self._known.values())
        committed = self._committed_rows + sum(k.counts.counts.committed_rows for k in known if k.counts)
        return Health(
            os.getpid(), self._looked_at, len(known), self._served, len(self._queue),
            sum(bool(k.problem) for k in known), sum(k.rows for k in known), committed,
        )  # fmt: skip

    async def run(self, *, exit_when_idle_s: float | None = None) -> None:
        """Serve until `stop`.

        Args:
            exit_when_idle_s: also end once no spool has changed for so many seconds.

        Raises:
            SpoolBusy: another agent serves this home.
            SpoolError: the home cannot be written.
        """
        await run_in_thread(self._acquire)
        try:
            _log.info("The agent of %s runs (process %d).", self.home.spools, os.getpid())
            async with anyio.create_task_group() as beating:
                beating.start_soon(self._beat)
                async with anyio.create_task_group() as serving:
                    await self._watch(serving, exit_when_idle_s)
                beating.cancel_scope.cancel()
        finally:
            self.home.lock.release()

    def _acquire(self) -> None:
        self.home.create()
        for _ in range(_LOCK_TRIES):
            if self.home.lock.acquire():
                return
            time.sleep(0.05)
        raise SpoolBusy(f"process {self.home.agent_pid()} is already the agent of {self.home.spools}.")

    async def _beat(self) -> None:
        while True:
            self.home.lock.refresh()
            await self._clock.sleep(HEARTBEAT_S)

    async def _watch(self, serving: TaskGroup, exit_when_idle_s: float | None) -> None:
        while not self._stopping.is_set():
            try:
                self._queue += await run_in_thread(self._look)
            except (HubsyncError, OSError) as error:
                _log.error("Cannot look for spools: %s", error)
            self._looked_at = self._clock.time()
            while self._queue and self._served < _MOST_OPEN:
                self._served += 1
                serving.start_soon(self._serve, self._queue.popleft())
            if self._served:
                self._busy_at = self._looked_at
            elif exit_when_idle_s is not None and self._looked_at - self._busy_at >= exit_when_idle_s:
                return
            await self._clock.sleep(_LOOK_S, self._stopping)

    # Looking for spools that need to be served.

    def _look(self) -> list[_Known]:
        """Return the spools that have changed; they are taken."""
        found, listed, now = [], set(self._directories()), self._clock.time()
        for directory in sorted(listed):
            known = self._known.get(directory) or _Known(directory)
            if signature(directory) is not None:
                self._known[directory] = known
            if not known.is_taken and now >= known.not_before and self._needs_service(known):
                known.is_taken = True
                found.append(known)
        for directory in [d for d, known in self._known.items() if d not in listed and not known.is_taken]:
            del self._known[directory]
        return found

    def _directories(self) -> Iterator[Path]:
        yield from _spools_in(self.home.spools)
        yield from self.home.announced()
        for directory in self._given:
            if signature(directory) is not None:
                yield directory
            else:
                yield from _spools_in(directory)

    def _needs_service(self, known: _Known) -> bool:
        now = signature(known.directory)
        if now is None or (known.elsewhere is None and now == known.seen):
            return False
        with suppress(OSError):  # opening the spool reports it
            if known.committer.holder() is None:
                known.elsewhere = None
                return now != known.seen
            known.elsewhere = known.elsewhere or HeartbeatMonitor(known.committer.path, self._clock)
            return known.elsewhere.stalled()
        return now != known.seen

    # Serving one spool.

    async def _serve(self, known: _Known) -> None:
        try:
            is_done = await self._serve_turn(known)
            known.problem, known.not_before = "", 0.0
        except Exception as error:  # noqa: BLE001  (the other spools are served all the same)
            is_done, known.not_before = True, self._clock.time() + _AGAIN_S
            self._report(known, root_cause(error))
        finally:
            self._served -= 1
        known.rows = 0
        if known.counts is not None:
            self._committed_rows += known.counts.counts.committed_rows
            known.counts = None
        if is_done or self._stopping.is_set():
            known.is_taken = False
        else:
            self._queue.append(known)  # behind those that wait

    def _report(self, known: _Known, error: BaseException) -> None:
        """Log what is wrong with a spool, once."""
        if isinstance(error, msgspec.DecodeError):
            error = corrupt(known.directory / "catalogue.sqlite", error)
        text = str(error) if isinstance(error, HubsyncError) else f"{type(error).__name__}: {error}"
        if text != known.problem:
            _log.error("The agent cannot serve %s: %s", known.directory, text, exc_info=_bug(error))
        known.problem = text

    async def _serve_turn(self, known: _Known) -> bool:
        """Commit for a spool; return False if its turn ended before everything was committed."""
        spool = await run_in_thread(open_spool, None, known.directory, self._clock)
        try:
            if not await self._needs_committer(spool, known):
                return True
            destination = online_destination(spool.target, None, self._retry)
            quota = self._quotas.setdefault(spool.target.endpoint, Quota())
            committer, status = committer_for(spool, destination, self._retry, quota=quota)
            known.counts = status
            depths = [SpoolDepth()]
            source = Source(spool.target.repo, "agent", status, lambda: _NO_QUEUE, lambda: depths[0], self._clock.time)
            unregister = register_source(source)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(committer.run)
                    is_done = await self._until_let_go(spool, known, status, depths)
                    await self._finish(committer, status)
                    tasks.cancel_scope.cancel()
            finally:
                unregister()
                with anyio.CancelScope(shield=True):
                    await destination.aclose()
            return is_done
        finally:
            with anyio.CancelScope(shield=True):
                await run_in_thread(spool.close)

    async def _needs_committer(self, spool: Spool, known: _Known) -> bool:
        """Return whether a spool needs the agent, whose lease it then holds."""
        if known.elsewhere is None and await run_in_thread(_let_go, spool, known):
            return False
        until = self._clock.time() + (_TAKE_OVER_S if known.elsewhere is not None else 0.0)
        while not await run_in_thread(spool.lease.acquire):  # again and again: that is how a stall is noticed
            if self._clock.time() >= until or self._stopping.is_set():
                return False
            await self._clock.sleep(HEARTBEAT_S, self._stopping)
        return True

    async def _until_let_go(self, spool: Spool, known: _Known, status: Status, depths: list[SpoolDepth]) -> bool:
        """Return True once nothing waits in the spool or another process commits for it; False if its turn ends."""
        began = changed_at = self._clock.time()
        last: Signature | None = None
        while not self._stopping.is_set():
            await self._clock.sleep(_LOOK_S, self._stopping)
            depths[0] = depth = await run_in_thread(spool.depth)
            known.rows, seen, now = depth.rows, signature(spool.directory), self._clock.time()
            if not spool.disk.is_there():
                raise spool.lost()
            if seen != last:
                last, changed_at = seen, now
            if not spool.lease.is_held:
                if await run_in_thread(_is_committed_elsewhere, spool):
                    return True
            elif now - changed_at >= _IDLE_S and await run_in_thread(_let_go, spool, known):
                return True
            can_upload = depth.sealed + depth.staged > 0 and status.state.kind == "ok"
            if self._queue and now - began >= (_TURN_S if can_upload else _SHORT_TURN_S):
                return False
        return False

    async def _finish(self, committer: Committer, status: Status) -> None:
        """Let the running commit be settled, unless it waits for something."""
        if status.state.kind == "ok":
            with anyio.move_on_after(GRACE_S):
                await committer.finish()


def _spools_in(home: Path) -> Iterator[Path]:
    """Yield the directories in a home that may be spools; nothing if it does not exist."""
    with suppress(OSError), os.scandir(home) as entries:
        yield from [Path(entry.path) for entry in entries if not entry.name.startswith(".") and entry.is_dir()]


def signature(spool: Path) -> Signature | None:
    """Return what changes with every write to a spool's catalogue; None if it has no catalogue.

    Closing a catalogue whose log is empty does not change it.
    """
    catalogue = f"{spool}/catalogue.sqlite"
    try:
        written = os.stat(catalogue).st_mtime_ns
    except PermissionError:  # another user's: opening it explains the problem
        return (0, 0, 0)
    except OSError:
        return None
    try:
        log = os.stat(f"{catalogue}-wal")
    except OSError:
        return (written, 0, 0)
    return (written, log.st_size, log.st_mtime_ns if log.st_size else 0)


def _let_go(spool: Spool, known: _Known) -> bool:
    """Return True if nothing waits in a spool, so that it may be closed until it changes."""
    if _is_waiting(spool):
        return False
    spool.catalogue.empty_log()
    seen = signature(spool.directory)  # before the last look: whatever is written later changes it
    if _is_waiting(spool):
        return False
    known.seen = seen
    return True


def _is_waiting(spool: Spool) -> bool:
    """Return whether rows wait, or an uploader for the offsets in the dataset."""
    depth = spool.depth()
    return not spool.is_seeded or depth.rows + depth.sealed + depth.staged > 0


def _is_committed_elsewhere(spool: Spool) -> bool:
    return spool.lease.is_held_by_others and not spool.lease.holder_stalled()


def _bug(error: BaseException) -> BaseException | None:
    """Return an error whose traceback is worth a look."""
    return None if isinstance(error, (HubsyncError, OSError)) else error
