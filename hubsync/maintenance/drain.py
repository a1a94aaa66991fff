"""Upload the rest of a spool, without being one of its writers: `hubsync drain`.

Seals what dead writers left open, and commits for them. If another process commits for the spool, it is left to that.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import msgspec

from hubsync._runtime.clock import SystemClock
from hubsync._runtime.exceptions import root_cause
from hubsync._runtime.file_lock import HEARTBEAT_S
from hubsync._runtime.formatting import count_text, seconds_text
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.committer import Committer
from hubsync.committer.events import NoEvents
from hubsync.committer.rate_limiter import last_policy
from hubsync.destinations.instrumented import InstrumentedDestination
from hubsync.destinations.resolve import online_destination
from hubsync.errors import BlockedError, HubError, HubsyncError, NotDrained, SpoolBusy
from hubsync.model.stats import SpoolDepth
from hubsync.policies import CommitPolicy, RetryPolicy
from hubsync.spool.database import corrupt
from hubsync.spool.opening import open_spool
from hubsync.spool.spool import Spool
from hubsync.telemetry.condition import SpoolFacts, condition_of
from hubsync.telemetry.progress import Figures, Progress
from hubsync.telemetry.status import State, Status

_POLL_S = 0.2
_STALLED_S = 6.0  # how long a committer is watched before it counts as alive


def drain(
    directory: Path,
    *,
    timeout: float | None = None,
    commit: CommitPolicy | None = None,
    retry: RetryPolicy | None = None,
    progress: Callable[[SpoolDepth, Status], None] = lambda depth, status: None,
) -> SpoolDepth:
    """Upload everything in a spool; return its depth afterwards: only the dead letter remains.

    Args:
        directory: the spool.
        timeout: the longest time to drain, in seconds; None for no limit.
        commit: None for the policy of the job that filled the spool.
        retry: None for the default.
        progress: called a few times a second.

    Raises:
        SpoolBusy: another live process commits for the spool, or writes to it.
        NotDrained: `timeout` seconds passed.
        BlockedError: an operator must act.
    """
    try:
        return anyio.run(_drain, directory, timeout, commit, retry or RetryPolicy(), progress)
    except BaseExceptionGroup as group:
        error = root_cause(group)
        if isinstance(error, msgspec.DecodeError):  # a response of the Hub raises other errors
            raise corrupt(directory / "catalogue.sqlite", error) from error
        raise error from error.__cause__


async def _drain(
    directory: Path,
    timeout: float | None,
    commit: CommitPolicy | None,
    retry: RetryPolicy,
    progress: Callable[[SpoolDepth, Status], None],
) -> SpoolDepth:
    clock = SystemClock()
    spool = open_spool(None, directory, clock)
    try:
        destination = online_destination(spool.target, None, retry)
        until = clock.time() + _STALLED_S
        while not spool.lease.acquire():  # again and again, since a stalled committer is taken over
            if clock.time() > until:
                raise SpoolBusy(
                    f"Process {spool.lease.holder_pid} commits for {directory} now, and uploads everything in it."
                )
            await clock.sleep(HEARTBEAT_S)
        await run_in_thread(spool.recovery.sweep)  # also if nothing is left to commit
        status = Status(
            lambda text: spool.catalogue.set_if_idle("status", text),
            spool.waiting_text,
            stored=spool.catalogue.get("status"),
        )
        events = _Events()
        committer = Committer(
            spool,
            InstrumentedDestination(destination, status, {"hubsync.repo": spool.target.repo, "hubsync.writer": ""}),
            commit=commit or last_policy(spool.catalogue.get("governor")),
            retry=retry,
            clock=clock,
            rng=random.Random(),
            status=status,
            events=events,
        )
        try:
            return await _until_empty(spool, committer, status, events, timeout, progress)
        finally:
            with anyio.CancelScope(shield=True):
                await destination.aclose()
    finally:
        spool.close()


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
    timeout: float | None,
    progress: Callable[[SpoolDepth, Status], None],
) -> SpoolDepth:
    ended: HubsyncError | None = None
    deadline = anyio.current_time() + (math.inf if timeout is None else timeout)
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
            if (left := deadline - anyio.current_time()) <= 0:
                facts = SpoolFacts(spool.directory, status.state, rows=depth.rows, is_open=True, committer="working",
                                   activity=status.activity)  # fmt: skip
                why = f"{seconds_text(timeout or 0)} were not enough ({condition_of(facts)})."
                ended = NotDrained(spool.directory, depth.rows, depth.bytes, why)
                break
            await anyio.sleep(min(_POLL_S, left))
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
        )  # fmt: skip
        progress.tick()

    progress = Progress(lambda: figures[0], True, clock.time, print_line=print_line)
    try:
        yield look
    finally:
        progress.close()
