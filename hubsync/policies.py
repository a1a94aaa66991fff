"""The policies: every limit and interval of the uploader, with its unit in its name.

The defaults serve a user who sets nothing. Each policy checks its values when it is created and raises `ConfigError`.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from hubsync._runtime.paths import absolute
from hubsync._runtime.validation import check_positive, check_seconds, check_type
from hubsync.errors import ConfigError

MIB = 1024 * 1024
Ack = Literal["queued", "spooled", "committed"]
"""How far a batch must be before `put` returns: in memory; on local disk, where it survives the process; on the Hub."""
CommitterPlace = Literal["thread", "agent"]
"""Where an uploader's rows are committed: in a thread of its process, or by the agent of its host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """Limits of the queue between producers and the worker.

    Attributes:
        max_bytes: Encoded bytes that may wait in memory. A larger batch is rejected with `BatchTooLarge`.
        max_batches: Batches that may wait.
        when_full: "block" the producer, "raise" `QueueFull`, or "drop" the batch (counted, and shown by its receipt).
            It also applies when the spool is full, by its quota or its disk.
    """

    max_bytes: int = 64 * MIB
    max_batches: int = 10_000
    when_full: Literal["block", "raise", "drop"] = "block"

    def __post_init__(self) -> None:
        check_positive(int, max_bytes=self.max_bytes, max_batches=self.max_batches)
        if self.when_full not in ("block", "raise", "drop"):
            raise ConfigError(f'when_full must be "block", "raise" or "drop", not {self.when_full!r}.')


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPolicy:
    """When a segment is sealed and becomes a shard: as soon as it reaches one of these.

    Attributes:
        max_bytes: Bytes of JSON Lines, whatever the shards' format. 64 MiB keeps a dataset's file count low and its
            upload retries cheap.
        max_rows: Rows; None for no limit. A batch is never split, so a shard may have fewer rows.
        linger_s: Seconds that its first row may wait. Rows are on the Hub about this long after their `put`.
    """

    max_bytes: int = 64 * MIB
    max_rows: int | None = None
    linger_s: float = 60.0

    def __post_init__(self) -> None:
        check_positive(int, max_bytes=self.max_bytes)
        if self.max_rows is not None:
            check_positive(int, max_rows=self.max_rows)
        check_positive(int | float, linger_s=self.linger_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPolicy:
    """How many commits may be sent, and how large.

    Attributes:
        per_hour: Commits in any hour. The Hub allows a free account about 128, for all its processes and machines
            together (undocumented; its 429 response says so). The default leaves a few for others.
        max_files: Shards in one commit. The Hub advises 50 to 100.
        max_inline_bytes: Bytes of small files sent inside the commit. The Hub accepts about 100 MiB.
    """

    per_hour: int = 120
    max_files: int = 100
    max_inline_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        check_positive(int, per_hour=self.per_hour, max_files=self.max_files, max_inline_bytes=self.max_inline_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactPolicy:
    """When the uploader merges small shards that are in the dataset into few large ones. See docs/how-to/compact.md.

    A merge waits while a flush, a close or a signal hurries. At most one commit in ten is a merge.

    Attributes:
        min_shards: So many shards of a writer become one file, so many of these the next larger one, and so on.
        max_file_bytes: The size of a merged file, at most. One of half this size is not merged again.
        at_end: When the uploader is closed or the spool drained, merge everything that is left, however little it is.
    """

    min_shards: int = 64
    max_file_bytes: int = 500 * MIB
    at_end: bool = False

    def __post_init__(self) -> None:
        check_positive(int, min_shards=self.min_shards, max_file_bytes=self.max_file_bytes)
        if self.min_shards < 2:
            raise ConfigError(f"min_shards must be at least 2, not {self.min_shards}.")
        check_type(bool, "True or False", at_end=self.at_end)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Intervals between retries, and how long `open` and `close` wait. Transient errors are retried, with full jitter.

    The wait before attempt `n` is `random() * min(max_s, initial_s * 2**n)`.

    Attributes:
        initial_s: Upper bound of the first wait, in seconds.
        max_s: Upper bound of every wait, in seconds.
        blocked_s: Seconds between attempts while an operator must act (a revoked token, a deleted repo).
        request_timeout_s: Timeout of one request, in seconds. The Hub advises 60 s for a commit.
        open_timeout_s: Seconds that a new spool may take to reach the Hub. `open` waits that long for a Hub that hangs
            or is busy, and then goes on without it; `offset` and the first `put` with an offset wait for the rest of
            this time until the dataset's offsets are known. While the offsets are read from many files, this time
            starts again with each step.
        close_timeout_s: Seconds that `close` may take if it is given no `timeout`; the rest stays in the spool. None
            for $HUBSYNC_CLOSE_TIMEOUT_S or, without that, for no limit.
    """

    initial_s: float = 1.0
    max_s: float = 120.0
    blocked_s: float = 60.0
    request_timeout_s: float = 60.0
    open_timeout_s: float = 15.0
    close_timeout_s: float | None = None

    def __post_init__(self) -> None:
        check_positive(
            int | float,
            initial_s=self.initial_s,
            max_s=self.max_s,
            blocked_s=self.blocked_s,
            request_timeout_s=self.request_timeout_s,
            open_timeout_s=self.open_timeout_s,
        )
        check_seconds(close_timeout_s=self.close_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolPolicy:
    """The directory that holds uncommitted data, and its limits.

    Attributes:
        directory: The directory; a relative one is made absolute at once. None for one per repo below `$HUBSYNC_HOME`,
            else `$XDG_STATE_HOME/hubsync`, else `~/.local/state/hubsync`.
        max_bytes: Bytes of rows that it may hold for all its processes, including the dead letter. At the limit the
            worker stops reading the queue, and `QueuePolicy.when_full` applies. An empty spool takes a larger batch.
        allow_network: Open it on a network file system, where only one machine at a time may use it, and SQLite is as
            reliable as the file system's locks. HUBSYNC_ALLOW_NETWORK_SPOOL=1 does the same.
        durability: "process": an accepted row survives SIGKILL. "fsync": it survives a power cut as well.
    """

    directory: str | Path | None = None
    max_bytes: int = 50 * 1024 * MIB
    allow_network: bool = False
    durability: Literal["process", "fsync"] = "process"

    def __post_init__(self) -> None:
        check_type(str | PathLike | None, "a directory, or None", spool=self.directory)
        if self.directory is not None:
            object.__setattr__(self, "directory", absolute(self.directory, "spool"))
        check_positive(int, max_bytes=self.max_bytes)
        if self.durability not in ("process", "fsync"):
            raise ConfigError(f'durability must be "process" or "fsync", not {self.durability!r}.')


def check_wait(ack: Ack, timeout: float | None) -> None:
    """Raise `ConfigError` if a put's `ack` or `timeout` is invalid."""
    if ack not in get_args(Ack):
        raise ConfigError(f'ack must be "queued", "spooled" or "committed", not {ack!r}.')
    check_seconds(timeout=timeout)


def close_timeout_s(policy: RetryPolicy) -> float | None:
    """Return the timeout of a `close` that is given none.

    Raises:
        ConfigError: $HUBSYNC_CLOSE_TIMEOUT_S is not a number of seconds.
    """
    text = os.environ.get("HUBSYNC_CLOSE_TIMEOUT_S", "").strip()
    if policy.close_timeout_s is not None or not text:
        return policy.close_timeout_s
    try:
        seconds = float(text)
        check_seconds(seconds=seconds)
    except ValueError:
        raise ConfigError(f"HUBSYNC_CLOSE_TIMEOUT_S must be a number of seconds, 0 or more, not {text!r}.") from None
    return seconds


class Policies(NamedTuple):
    """The policies of one uploader, apart from those of its spool and schema."""

    queue: QueuePolicy
    shard: ShardPolicy
    commit: CommitPolicy
    retry: RetryPolicy
    compact: CompactPolicy | None = None

    @classmethod
    def of(
        cls,
        queue: QueuePolicy | None,
        shard: ShardPolicy | None,
        commit: CommitPolicy | None,
        retry: RetryPolicy | None,
        compact: CompactPolicy | None = None,
    ) -> Policies:
        """Return each policy, or its default. Without a `CompactPolicy` nothing is merged.

        Raises:
            ConfigError: One is not a policy, but a dict, for example.
        """
        given = cls(
            queue or QueuePolicy(), shard or ShardPolicy(), commit or CommitPolicy(), retry or RetryPolicy(), compact
        )
        for name, kind, value in zip(cls._fields, _POLICIES, given, strict=True):
            if name != "compact" or value is not None:
                check_type(kind, f"a {kind.__name__}(…), or None", **{name: value})
        return given


_POLICIES = (QueuePolicy, ShardPolicy, CommitPolicy, RetryPolicy, CompactPolicy)
OnConflict = Literal["json", "refuse", "dead letter", "new config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaPolicy:
    """How to keep the dataset loadable when rows change their columns. See docs/concepts/schemas.md.

    Attributes:
        on_conflict: What to do with a batch whose values do not fit their columns. "json": the column becomes JSON and
            holds values of any shape. "refuse": `put` raises `SchemaConflict`. "dead letter": keep the batch in the
            spool, and say so in its receipt. "new config": write it to the first of `config-2`, `config-3`, … that it
            fits.
        on_declared: With "json", what to do if the column's type is one that JSON does not have, such as a time, or if
            a person wrote it into the card: it stays. "refuse" or "dead letter".
        json_columns: Names of columns that are JSON from the beginning.
    """

    on_conflict: OnConflict = "json"
    on_declared: Literal["refuse", "dead letter"] = "refuse"
    json_columns: Collection[str] = ()

    def __post_init__(self) -> None:
        if self.on_conflict not in get_args(OnConflict):
            choices = ", ".join(f'"{one}"' for one in get_args(OnConflict)[:-1])
            raise ConfigError(f'on_conflict must be {choices} or "new config", not {self.on_conflict!r}.')
        if self.on_declared not in ("refuse", "dead letter"):
            raise ConfigError(f'on_declared must be "refuse" or "dead letter", not {self.on_declared!r}.')
        names = self.json_columns
        if isinstance(names, str) or not (isinstance(names, Collection) and all(isinstance(n, str) for n in names)):
            raise ConfigError(f"json_columns must be a list of column names, not {names!r}.")
