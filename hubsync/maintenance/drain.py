"""Upload the rest of a spool, without being one of its writers: `hubsync drain`.

Seals what dead writers left open, and commits for them. If another process commits for the spool, it is left to that.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec

from hubsync._runtime.clock import SystemClock
from hubsync._runtime.exceptions import root_cause
from hubsync._runtime.file_lock import HEARTBEAT_S
from hubsync._runtime.formatting import count_text, seconds_text
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.committer import Committer
from hubsync.committer.events import DeliveryEvents, NoEvents
from hubsync.committer.rate_limiter import Quota, last_policy
from hubsync.destinations.base import Destination
from hubsync.destinations.instrumented import InstrumentedDestination
from hubsync.destinations.resolve import online_destination
from hubsync.errors import BlockedError, HubError, HubsyncError, NotDrained, SpoolBusy
from hubsync.model.stats import SpoolDepth
from hubsync.policies import CommitPolicy, CompactPolicy, RetryPolicy
from hubsync.spool.database import corrupt
from hubsync.spool.opening import open_spool
from hubsync.spool.spool import Spool
from hubsync.telemetry.condition import SpoolFacts, condition_of
from hubsync.telemetry.progress import Figures, Progress
from hubsync.telemetry.status import QUOTA, State, Status

_POLL_S = 0.2
_STALLED_S = 6.0  # how long a committer is watched before it counts as alive


def drain(
    directory: Path,
    *,
    timeout: float | None = None,
    silent_s: float | None = None,
    commit: CommitPolicy | None = None,
    retry: RetryPolicy | None = None,
    compact: CompactPolicy | None = None,
    progress: Callable[[SpoolDepth, Status], None] = lambda depth, status: None,
) -> SpoolDepth:
    """Upload everything in a spool; return its depth afterwards: only rejected or lost rows remain.

    Args:
        directory: the spool.
        timeout: the longest time to drain, in seconds; None for no limit.
        silent_s: how long the Hub may be away without any progress, in seconds; None for no limit.
        commit: None for the policy of the job that filled the spool.
        retry: None for the default.
        compact: how to merge small shards; with `at_end`, also those that are left once everything is uploaded.
        progress: called a few times a second.

    Raises:
        SpoolBusy: another live process commits for the spool, or writes to it.
        NotDrained: `timeout` seconds passed, or the Hub was away for `silent_s` seconds.
        BlockedError: an operator must act.
    """
    try:
        policies = _Policies(commit, retry or RetryPolicy(), compact)
        return anyio.run(_drain, directory, _Limits(timeout, silent_s), policies, progress)
    except BaseExceptionGroup as group:
        error = root_cause(group)
        if isinstance(error, msgspec.DecodeError):  # a response of the Hub raises other errors
            raise corrupt(directory / "catalogue.sqlite", error) from error
        raise error from error.__cause__


class _Policies(NamedTuple):
    commit: CommitPolicy | None
    retry: RetryPolicy
    compact: CompactPolicy | None


async def _drain(
    directory: Path,
    limits: _Limits,
    policies: _Policies,
    progress: Callable[[SpoolDepth, Status], None],
) -> SpoolDepth:
    clock = SystemClock()
    spool = open_spool(None, directory, clock)
    try:
        destination = online_destination(spool.target, None, policies.retry)
        until = clock.time() + _STALLED_S
        while not spool.lease.acquire():  # again and again, since a stalled committer is taken over
            if clock.time() > until:
                raise SpoolBusy(
                    f"Process {spool.lease.holder_pid} commits for {directory} now, and uploads everything in it."
                )
            await clock.sleep(HEARTBEAT_S)
        await run_in_thread(spool.recovery.sweep)  # also if nothing is left to commit
        events = _Events()
        committer, status = committer_for(
            spool, destination, policies.retry, commit=policies.commit, compact=policies.compact, events=events
        )
        try:
            return await _until_empty(spool, committer, status, events, limits, progress)
        finally:
            with anyio.CancelScope(shield=True):
                await destination.aclose()
    finally:
        spool.close()


def committer_for(
    spool: Spool,
    destination: Destination,
    retry: RetryPolicy,
    *,
    commit: CommitPolicy | None = None,
    compact: CompactPolicy | None = None,
    events: DeliveryEvents | None = None,
    quota: Quota | None = None,
) -> tuple[Committer, Status]:
    """Return a committer for a spool that this process does not write to, and its status.

    Args:
        spool: the spool.
        destination: where its rows go.
        retry: the intervals between retries.
        commit: None for the policy of the job that filled the spool.
        compact: how to merge small shards; None to leave them.
        events: what listens to it.
        quota: what other committers of this process spend from as well; None if there are no others.
    """
    status = Status(
        lambda text: spool.catalogue.set_if_idle("status", text),
        spool.waiting_text,
        stored=spool.catalogue.get("status"),
        now=spool.clock.time,
    )
    committer = Committer(
        spool,
        InstrumentedDestination(destination, status, {"hubsync.repo": spool.target.repo, "hubsync.writer": ""}),
        commit=commit or spool.commit_policy or last_policy(spool.catalogue.get("governor")),
        retry=retry,
        clock=spool.clock,
        rng=random.Random(),
        status=status,
        events=events,
        compact=compact,
        quota=quota,
    )
    return committer, status


class _Limits:
    """How long a drain may take."""

    def __init__(self, timeout: float | None, silent_s: float | None) -> None:
        self._timeout = timeout
        self._silent_s = silent_s
        self._began = self._answered = 0.0
        self._waiting = SpoolDepth()

    def start(self, now: float) -> None:
        self._began = self._answered = now

    def passed(self, now: float, depth: SpoolDepth, state: State) -> str:
        """Return which limit has passed, in words; empty if none has."""
        if state.kind != "backing off" or state.reason == QUOTA or depth != self._waiting:
            self._answered, self._waiting = now, depth
        if self._timeout is not None and now - self._began >= self._timeout:
            return f"{seconds_text(self._timeout)} were not enough"
        if self._silent_s is not None and now - self._answered >= self._silent_s:
            return f"the Hub was away for {seconds_text(self._silent_s)}"
        return ""


class _Events(NoEvents):
    """Keeps the first error that needs an operator."""

    error: HubError | None = None

    def blocked(self, error: HubError) -> None:
        self.error = self.error or error


async def _until_empty(
    spool: Spool,
    committer: Committer,
    status: Status,
    events: _Events,
    limits: _Limits,
    progress: Callable[[SpoolDepth, Status], None],
) -> SpoolDepth:
    ended: HubsyncError | None = None
    limits.start(anyio.current_time())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(committer.run)
        while True:
            await run_in_thread(spool.recovery.adopt)
            await run_in_thread(spool.mark_urgent, None)
            committer.wake()
            depth = await run_in_thread(spool.depth)
            progress(depth, status)
            if (ended := events.error) or depth.sealed + depth.staged == 0:
                break
            if passed := limits.passed(anyio.current_time(), depth, status.state):
                facts = SpoolFacts(spool.directory, status.state, rows=depth.rows, is_open=True, committer="working",
                                   activity=status.activity)  # fmt: skip
                ended = NotDrained(spool.directory, depth.rows, depth.bytes, f"{passed} ({condition_of(facts)}).")
                break
            await anyio.sleep(_POLL_S)
        if ended is None and not depth.rows and committer.merge_rest():
            committer.wake()
            while True:
                await anyio.sleep(_POLL_S)
                if not committer.is_merging_rest or limits.passed(anyio.current_time(), depth, status.state):
                    break
        tasks.cancel_scope.cancel()
    if isinstance(ended, BlockedError):
        ended.add_note(f"Safe in {spool.directory}: {count_text(depth.rows, 'row')}.")
    if ended is not None:
        raise ended
    if depth.rows:
        raise SpoolBusy(
            f"{count_text(depth.rows, 'row')} in {spool.directory} not uploaded: a running job still writes them, or "
            "their disk fails, as the log says."
        )
    return depth


@contextmanager
def show_progress(
    directory: Path, print_line: Callable[[str], object]
) -> Iterator[Callable[[SpoolDepth, Status], None]]:
    """Yield a `progress` for `drain` that shows a bar in a terminal, else a line at the start and every 30 s."""
    clock = SystemClock()
    figures = [Figures(directory.name, State(), 0, 0, 0, 0)]
    before: list[int] = []

    def look(depth: SpoolDepth, status: Status) -> None:
        before[1:] = [depth.committed_rows]
        done = before[-1] - before[0]
        figures[0] = figures[0]._replace(
            state=status.state, accepted=done + depth.rows, committed=done, waiting=depth.rows,
            waiting_bytes=depth.bytes, oldest_age_s=depth.oldest_age_s(clock.time()), dead=depth.dead,
            lost=depth.lost_rows,
        )  # fmt: skip
        progress.tick()

    progress = Progress(lambda: figures[0], True, clock.time, print_line=print_line)
    try:
        yield look
    finally:
        progress.close()
