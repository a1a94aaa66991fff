"""What the page is sent: one `SpoolView` per spool, and a `SpoolDetail` for the few that are opened on the page.

Times are in seconds since the epoch, sizes in bytes.
"""

from __future__ import annotations

import msgspec

from hubsync.telemetry.condition import ConditionKind


class Amount(msgspec.Struct, frozen=True):
    """A number of shards with their rows and bytes."""

    shards: int = 0
    rows: int = 0
    bytes: int = 0


class Problem(msgspec.Struct, frozen=True):
    """Why a spool cannot be shown: "missing", "corrupt", "newer version" or "unreadable", and the error."""

    kind: str
    text: str


class ConditionView(msgspec.Struct, frozen=True):
    """How a spool is doing; see `hubsync.telemetry.condition.Condition`."""

    kind: ConditionKind
    reason: str
    until: float | None
    command: str


class NextCommit(msgspec.Struct, frozen=True):
    """When the next commit is sent (None: unknown), and what happens until then."""

    at: float | None
    why: str


class Quota(msgspec.Struct, frozen=True):
    """Commits sent in the last hour, and how many this spool may send per hour."""

    spent: int
    per_hour: int


class QueueView(msgspec.Struct, frozen=True):
    """The in-memory queues of all running jobs of a spool, added up."""

    batches: int
    rows: int
    bytes: int
    max_bytes: int
    blocked: int
    raised: int
    dropped: int


class Rates(msgspec.Struct, frozen=True):
    """Means over the last minute, per second."""

    spooled_rows: float
    spooled_bytes: float
    committed_rows: float
    committed_bytes: float


class Series(msgspec.Struct, frozen=True):
    """One value per step of `step_s` seconds, oldest first. `start` is when the first step began.

    Rates are per second; the waiting amounts are those at the end of each step.
    """

    start: float
    step_s: int
    spooled_rows: list[float]
    spooled_bytes: list[float]
    committed_rows: list[float]
    committed_bytes: list[float]
    waiting_rows: list[float]
    waiting_bytes: list[float]


class CommitView(msgspec.Struct, frozen=True):
    """One commit of the last hour."""

    sha: str
    at: float
    shards: int
    rows: int
    bytes: int
    url: str | None


class ShardView(msgspec.Struct, frozen=True):
    """A shard that is next to be committed, or was committed last. `state` may also be "sending"."""

    id: int
    path: str | None
    writer: str
    state: str
    rows: int
    bytes: int
    at: float
    url: str | None


class ChangeView(msgspec.Struct, frozen=True):
    """A change of the state."""

    at: float
    kind: str
    reason: str


class RejectedGroup(msgspec.Struct, frozen=True):
    """The shards that were rejected, or lost rows, for the same reason; `path` and `at` are the newest one's."""

    why: str
    shards: int
    rows: int
    lost: int
    path: str | None
    at: float | None


class ProcessView(msgspec.Struct, frozen=True):
    """A process that writes or commits. `rows` and `retries` are None if it has no heartbeat file."""

    pid: int | None
    writer: str | None
    commits: bool
    alive: bool
    exists: bool
    heartbeat_age_s: float
    rows: int | None
    retries: int | None


class SpoolDetail(msgspec.Struct, frozen=True):
    """What an opened card shows of a spool."""

    by_state: dict[str, Amount]
    queue: QueueView | None
    quota: Quota
    series: Series
    commits: list[CommitView]
    shards: list[ShardView]
    changes: list[ChangeView]
    rejected: list[RejectedGroup]
    processes: list[ProcessView]


class SpoolInfo(msgspec.Struct, frozen=True):
    """What the overview shows of a spool that can be read."""

    repo: str
    revision: str
    url: str | None
    alive: bool
    condition: ConditionView
    waiting: Amount
    rejected: Amount
    lost_rows: int
    committed: Amount
    oldest_age_s: float | None
    next: NextCommit
    minute: Rates
    detail: SpoolDetail | None = None


class SpoolView(msgspec.Struct, frozen=True):
    """One spool: either `info` or `problem` is set.

    Attributes:
        id: A name for the spool that can be used in an address.
        spool: Its directory.
        now: When it was read.
    """

    id: str
    spool: str
    now: float
    info: SpoolInfo | None = None
    problem: Problem | None = None


class Page(msgspec.Struct, frozen=True):
    """One answer: all spools, those that need someone first."""

    now: float
    started: float
    refresh_ms: float
    home: str
    spools: list[SpoolView]
