"""Does what is safe to repeat until it works: waits out what passes by itself, and for a person where one is needed.

What holds the committer up is waited for here, and is seen in the status for as long as it lasts; its own pace is not.
A commit whose answer was lost may not be repeated blindly: that is the committer's to reconcile, and only its waiting
is for here.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hubsync._runtime.clock import Clock
from hubsync._runtime.notifiers import Notifier
from hubsync._runtime.retry import Backoff
from hubsync._runtime.threads import run_in_thread
from hubsync.errors import (
    BlockedError,
    DefectError,
    HubError,
    LeaseLost,
    RateLimitedError,
    SpoolError,
    SpoolLost,
    StaleParentError,
    TransientError,
)
from hubsync.policies import RetryPolicy
from hubsync.spool.spool import Spool
from hubsync.telemetry.status import QUOTA, State, Status

T = TypeVar("T")

_WAITED_FOR_S = 10.0  # the longest backoff while somebody waits: the end of an outage is seen soon


class Retrier:
    """One committer's. `part` names what waits: each part of the work has a state of its own in the status."""

    def __init__(
        self,
        spool: Spool,
        retry: RetryPolicy,
        clock: Clock,
        rng: random.Random,
        status: Status,
        *,
        is_waited_for: Callable[[], bool],
        quota_refused: Callable[[float | None], float],
        on_blocked: Callable[[HubError], None],
    ) -> None:
        """`is_waited_for` looks into the catalogue whether somebody waits for a shard; `quota_refused` is told what the
        Hub asked for (seconds), and answers for how long no commit may go.
        """
        self._spool = spool
        self._retry = retry
        self._clock = clock
        self._rng = rng
        self._status = status
        self._is_waited_for = is_waited_for
        self._quota_refused = quota_refused
        self._on_blocked = on_blocked
        self._nudge_bell = Notifier(clock)

    def nudge(self) -> None:
        """Somebody waits: try again now, even where a person is needed. From the event loop only."""
        self._nudge_bell.notify()

    def backoff(self) -> Backoff:
        return Backoff(self._retry.initial_s, self._retry.max_s, self._rng)

    async def persist(
        self, part: str, operation: Callable[[], Awaitable[T]], *, lets_out: tuple[type[HubError], ...] = ()
    ) -> T:
        """The result of `operation`, which is safe to repeat. Errors of the kinds in `lets_out` come out."""
        backoff = self.backoff()
        while True:
            try:
                result = await operation()
            except lets_out:
                raise
            except TransientError as error:
                await self.wait_out(part, error, backoff)
            except (BlockedError, DefectError) as error:
                await self.wait_for_a_person(part, error)
            else:
                if self._status.troubled(part):
                    self._status.report(part, State())
                return result

    async def on_disk(self, work: Callable[..., T], *args: object) -> T:
        """Work on the spool, whose disk may be full or gone for a while; then nothing is sent, and nothing is lost.

        Raises:
            LeaseLost, SpoolLost: waiting would not help.
        """
        backoff = self.backoff()
        while True:
            try:
                result = await run_in_thread(work, *args)
            except (LeaseLost, SpoolLost):
                raise
            except (SpoolError, OSError) as error:
                self._spool.disk.give_up_reserve()
                wait = backoff.after_failure()
                self._status.report("spool", State("spool full", str(error), self._clock.time() + wait))
                await self._clock.sleep(wait)
            else:
                if backoff.failures:
                    self._status.report("spool", State())
                return result

    async def wait_out(self, part: str, error: TransientError, backoff: Backoff) -> None:
        """Until `error` may have passed; less long where somebody waits."""
        self._status.counts.retries += 1
        may_be_hurried = False
        if isinstance(error, RateLimitedError) and error.commit_quota:
            wait = self._quota_refused(error.retry_after_s)
            reason = QUOTA
        else:
            wait = backoff.after_failure(error.retry_after_s)
            reason = error.reason
            if error.retry_after_s is None:
                may_be_hurried = wait > _WAITED_FOR_S
                if may_be_hurried and await self.on_disk(self._is_waited_for):
                    wait, may_be_hurried = _WAITED_FOR_S, False
        if not isinstance(error, StaleParentError) or backoff.failures > 3:
            self._status.report(part, State("backing off", reason, self._clock.time() + wait))
        if may_be_hurried:
            await self._nudge_bell.wait(wait)
        else:
            await self._clock.sleep(wait)

    async def wait_for_a_person(self, part: str, error: BlockedError | DefectError) -> None:
        """For as long as is between two tries of what only a person can mend, or until somebody waits."""
        until = self._clock.time() + self._retry.blocked_s
        self._status.report(part, State("blocked", error.reason, until))
        self._on_blocked(error)
        await self._nudge_bell.wait(self._retry.blocked_s)
