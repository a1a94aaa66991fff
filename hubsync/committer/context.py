"""What all parts of a committer share."""

from __future__ import annotations

from dataclasses import dataclass

from hubsync._runtime.clock import Clock
from hubsync.committer.branch_head import BranchHead
from hubsync.committer.events import DeliveryEvents
from hubsync.committer.rate_limiter import RateLimiter
from hubsync.committer.retry import Retrier
from hubsync.committer.wakeups import Wakeups
from hubsync.destinations.base import Destination
from hubsync.spool.spool import Spool
from hubsync.telemetry.status import Status


@dataclass(frozen=True, slots=True)
class Context:
    """The committer's spool and destination, its clock, and the state that has one owner each."""

    spool: Spool
    destination: Destination
    clock: Clock
    status: Status
    events: DeliveryEvents
    head: BranchHead
    wakeups: Wakeups
    rate_limiter: RateLimiter
    retrier: Retrier
