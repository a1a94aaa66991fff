"""Retry idempotent operations: back off on transient errors, poll slowly while an operator must act.

Whatever delays the committer is visible in the status as long as it lasts. A commit with an unknown outcome must not
be repeated blindly; the reconciler decides about it, and only its waiting is done here.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from hubsync._runtime.clock import Clock
from hubsync._runtime.notifiers import Notifier
from hubsync._runtime.retry import Backoff
from hubsync._runtime.threads import run_in_thread
from hubsync.committer.events import DeliveryEvents
from hubsync.committer.rate_limiter import RateLimiter
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

_URGENT_S = 10.0  # the longest backoff while a flush waits, so that it notices the end of an outage soon
_QUIET_CONFLICTS = 3  # commits of others that are not worth a state: the next attempt usually succeeds


class Retrier:
    """Retries for one committer. `part` names the work that waits: each part has a state of its own in the status."""

    def __init__(
        self,
        spool: Spool,
        policy: RetryPolicy,
        clock: Clock,
        rng: random.Random,
        status: Status,
        rate_limiter: RateLimiter,
        events: DeliveryEvents,
    ) -> None:
        self._spool = spool
        self._policy = policy
        self._clock = clock
        self._rng = rng
        self._status = status
        self._rate_limiter = rate_limiter
        self._events = events
        self._hurry = Notifier(clock)

    def hurry(self) -> None:
        """A flush waits: retry now, even if an operator must act. From the event loop only."""
        self._hurry.notify()

    def backoff(self) -> Backoff:
        """Return a new backoff."""
        return Backoff(self._policy.initial_s, self._policy.max_s, self._rng)

    async def until_success(
        self, part: str, operation: Callable[[], Awaitable[T]], *, raises: tuple[type[HubError], ...] = ()
    ) -> T:
        """Return the result of an idempotent operation, retrying it forever.

        Args:
            part: what waits, in the status.
            operation: called again for each attempt.
            raises: kinds of errors that are raised instead.
        """
        backoff = self.backoff()
        while True:
            try:
                result = await operation()
            except raises:
                raise
            except TransientError as error:
                await self.back_off(part, error, backoff)
            except (BlockedError, DefectError) as error:
                await self.wait_for_operator(part, error)
            else:
                if self._status.troubled(part):
                    self._status.report(part, State())
                return result

    async def on_disk(self, work: Callable[..., T], *args: object) -> T:
        """Return the result of work on the spool. While its disk is full or unreadable, nothing is sent or lost.

        Raises:
            LeaseLost: another process commits.
            SpoolLost: the spool is gone.
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

    async def back_off(self, part: str, error: TransientError, backoff: Backoff) -> None:
        """Sleep until `error` may have passed; less long while a flush waits."""
        self._status.counts.retries += 1
        may_hurry = False
        if isinstance(error, RateLimitedError) and error.commit_quota:
            wait = self._rate_limiter.refused(error.retry_after_s)
            reason = QUOTA
        else:
            wait = backoff.after_failure(error.retry_after_s)
            reason = error.reason
            if error.retry_after_s is None:
                may_hurry = wait > _URGENT_S
                if may_hurry and await self.on_disk(self._spool.segments.has_urgent):
                    wait, may_hurry = _URGENT_S, False
        if not isinstance(error, StaleParentError) or backoff.failures > _QUIET_CONFLICTS:
            self._status.report(part, State("backing off", reason, self._clock.time() + wait))
        if may_hurry:
            await self._hurry.wait(wait)
        else:
            await self._clock.sleep(wait)

    async def wait_for_operator(self, part: str, error: BlockedError | DefectError) -> None:
        """Report that an operator must act, and sleep until the next attempt or until a flush waits."""
        until = self._clock.time() + self._policy.blocked_s
        self._status.report(part, State("blocked", error.reason, until))
        self._events.blocked(error)
        await self._hurry.wait(self._policy.blocked_s)
