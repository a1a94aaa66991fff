"""The frozen policies: every bound and pace of the uploader, with its unit in its name.

The defaults serve a user who sets nothing. Each policy checks itself when it is made and raises `ConfigError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import UnionType
from typing import Literal, Self, get_args

from hubsync.errors import ConfigError

MIB = 1024 * 1024

Ack = Literal["queued", "spooled", "committed"]
"""How far a batch is when `put` returns: in memory; on local disk, where it survives the process; on the Hub."""
Format = Literal["jsonl", "jsonl.gz", "jsonl.zst", "parquet"]
"""What the shards are."""
FORMATS: tuple[Format, ...] = get_args(Format)

# A namespace and a name as the Hub takes them: letters, digits, `-`, `_`, `.`; at most 96 characters each.
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
# What `datasets` takes for a split (datasets.splits), and a config name that is safe as a folder and in a glob.
_SPLIT = re.compile(r"\w+(\.\w+)*", re.ASCII)
_CONFIG = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)


_MOST_SIBLINGS = 100
_SEQ = re.compile(r"\{seq(?:![rsa])?:?([^}]*)\}")  # what stands behind the colon


def check_type(kind: type | UnionType, what: str, **values: object) -> None:
    """Raises `ConfigError` where an argument is of another type than `kind`, which `what` says in words."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise ConfigError(f"{name} is {what}, not {value!r}.")


def check_seconds(**values: float | None) -> None:
    """Raises `ConfigError` where an argument is nothing that can be waited for."""
    for name, value in values.items():
        if value is not None and not (_is_number(value) and 0 <= value < float("inf")):
            raise ConfigError(f"{name} is a number of seconds from 0, or None, not {value!r}.")


def _positive(kind: type[int] | UnionType, **values: float) -> None:
    for name, value in values.items():
        if not (_is_number(value, kind) and value > 0):
            raise ConfigError(f"{name} must be above 0{', an int' if kind is int else ''}, not {value!r}.")


def _is_number(value: object, kind: type[int] | UnionType = int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePolicy:
    """The bounded queue between producers and the worker.

    Attributes:
        max_bytes: encoded bytes that may wait in memory. A batch above it is refused with `BatchTooLarge`.
        max_batches: batches that may wait.
        when_full: "block" the producer, "raise" `QueueFull`, or "drop" the batch: counted, and said by its receipt.
    """

    max_bytes: int = 64 * MIB
    max_batches: int = 10_000
    when_full: Literal["block", "raise", "drop"] = "block"

    def __post_init__(self) -> None:
        _positive(int, max_bytes=self.max_bytes, max_batches=self.max_batches)
        if self.when_full not in ("block", "raise", "drop"):
            raise ConfigError(f'when_full must be "block", "raise" or "drop", not {self.when_full!r}.')


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPolicy:
    """When a segment is sealed and becomes a shard: whichever comes first.

    Attributes:
        max_bytes: bytes of JSON Lines, whatever the shards' format. 64 MiB keeps a dataset's file count low and its
            upload retries cheap.
        max_rows: rows; None for no bound. A batch is never torn apart, so a shard may end early.
        linger_s: seconds that its first row may wait. Rows are on the Hub about this much after their `put`.
    """

    max_bytes: int = 64 * MIB
    max_rows: int | None = None
    linger_s: float = 60.0

    def __post_init__(self) -> None:
        _positive(int, max_bytes=self.max_bytes)
        if self.max_rows is not None:
            _positive(int, max_rows=self.max_rows)
        _positive(int | float, linger_s=self.linger_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPolicy:
    """How commits are spent.

    Attributes:
        per_hour: commits sent in any hour, at most. The Hub allows a free account about 128 (undocumented; quoted by
            its own 429), for all its processes and hosts together, so the default leaves a few to others.
        max_files: shards in one commit. The Hub advises 50 to 100.
        max_inline_bytes: bytes of small files that travel inside the commit; about 100 MiB is the Hub's bound.
    """

    per_hour: int = 120
    max_files: int = 100
    max_inline_bytes: int = 64 * MIB

    def __post_init__(self) -> None:
        _positive(int, per_hour=self.per_hour, max_files=self.max_files, max_inline_bytes=self.max_inline_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Pace of the retries: full jitter, `random() * min(max_s, initial_s * 2**n)`, for ever.

    Attributes:
        initial_s, max_s: bounds of the wait after a transient failure, in seconds.
        blocked_s: wait before the next try while a person is needed (a revoked token, a deleted repo).
        request_timeout_s: time-out of one request. The Hub advises 60 s for a commit.
    """

    initial_s: float = 1.0
    max_s: float = 120.0
    blocked_s: float = 60.0
    request_timeout_s: float = 60.0

    def __post_init__(self) -> None:
        _positive(
            int | float,
            initial_s=self.initial_s,
            max_s=self.max_s,
            blocked_s=self.blocked_s,
            request_timeout_s=self.request_timeout_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolPolicy:
    """The directory that holds what is not yet committed.

    Attributes:
        directory: where; None for a directory of its own per repo below `$HUBSYNC_HOME`, else
            `$XDG_STATE_HOME/hubsync`, else `~/.local/state/hubsync`.
        max_bytes: bytes it may hold, its dead letter among them. At the bound the worker stops taking from the queue,
            whose policy then applies. It is looked at every 8 MiB, so that a spool may hold that much more.
        durability: "process": an accepted row survives SIGKILL. "fsync": it survives a power cut as well.
    """

    directory: str | Path | None = None
    max_bytes: int = 50 * 1024 * MIB
    durability: Literal["process", "fsync"] = "process"

    def __post_init__(self) -> None:
        check_type(str | PathLike | None, "a directory, or None", spool=self.directory)
        _positive(int, max_bytes=self.max_bytes)
        if self.durability not in ("process", "fsync"):
            raise ConfigError(f'durability must be "process" or "fsync", not {self.durability!r}.')


def check_wait(ack: Ack, timeout: float | None) -> None:
    """Raises `ConfigError` where a put would wait for nothing that there is."""
    if ack not in get_args(Ack):
        raise ConfigError(f'ack is "queued", "spooled" or "committed", not {ack!r}.')
    check_seconds(timeout=timeout)


def policies(
    queue: QueuePolicy | None, shard: ShardPolicy | None, commit: CommitPolicy | None, retry: RetryPolicy | None
) -> tuple[QueuePolicy, ShardPolicy, CommitPolicy, RetryPolicy]:
    """Each as it was given, or the defaults.

    Raises:
        ConfigError: one is something else, such as a dict.
    """
    given = (queue or QueuePolicy(), shard or ShardPolicy(), commit or CommitPolicy(), retry or RetryPolicy())
    for name, kind, value in zip(("queue", "shard", "commit", "retry"), _POLICIES, given, strict=True):
        check_type(kind, f"a {kind.__name__}(…), or None", **{name: value})
    return given


_POLICIES = (QueuePolicy, ShardPolicy, CommitPolicy, RetryPolicy)


OnConflict = Literal["refuse", "dead letter", "new config"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaPolicy:
    """What keeps the dataset loadable while its rows drift: see docs/concepts/schemas.md.

    Attributes:
        on_conflict: what becomes of a batch with a value that its column can't hold. "refuse" it: `put` raises
            `SchemaConflict`. "dead letter": it is set aside in the spool, and its receipt says so. "new config": it
            goes to the first of `config-2`, `config-3`, … whose columns can.
    """

    on_conflict: OnConflict = "refuse"

    def __post_init__(self) -> None:
        if self.on_conflict not in ("refuse", "dead letter", "new config"):
            raise ConfigError(f'on_conflict must be "refuse", "dead letter" or "new config", not {self.on_conflict!r}.')


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the shards of one uploader stand in the dataset.

    The template's fields are `{config}`, `{split}`, `{writer}` and `{seq}` (with an optional width, `{seq:05d}`). What
    it ends in is the shards' format.
    """

    config: str = "default"
    split: str = "train"
    template: str = ""

    def __post_init__(self) -> None:
        check_type(str, "a string", config=self.config, split=self.split)
        if not _CONFIG.fullmatch(self.config):
            raise ConfigError(
                f"config {self.config!r} can't be a folder and a config name: use letters, digits, '-', '_', '.', "
                "beginning with a letter or a digit."
            )
        if not _SPLIT.fullmatch(self.split):
            raise ConfigError(
                f"split {self.split!r} is none that `datasets` takes: use letters, digits and '_', parted by '.'."
            )
        if not self.template:
            object.__setattr__(self, "template", _folder(self.config) + "/{split}-{writer}-{seq:05d}.jsonl")
        self._check()

    def _check(self) -> None:
        template = self.template
        try:
            first, second = (self.path("w", n) for n in (0, 1))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"path template {template!r} can't be filled in ({error}): its fields are {{config}}, {{split}}, "
                "{writer} and {seq} or {seq:05d}."
            ) from None
        if any(kind not in ("", "d") and not re.fullmatch(r"0\d+d", kind) for kind in _SEQ.findall(template)):
            raise ConfigError(
                f"path template {template!r}: numbers are written {{seq}}, or {{seq:05d}} with a width; else they "
                "could not be found again."
            )
        if first == second:
            raise ConfigError(f"path template {template!r} gives every shard the same path: it needs {{seq}}.")
        if not first.endswith(tuple(f".{one}" for one in FORMATS)):
            endings = ", ".join(f".{one}" for one in FORMATS)
            raise ConfigError(f"path template {template!r} must end in what the shards are: {endings}.")
        if "{split" not in template or (self.config != "default" and "{config" not in template):
            raise ConfigError(
                f"path template {template!r} would mix configs or splits in one glob: it needs {{split}}, and "
                "{config} where the config is not 'default'."
            )
        parts = first.split("/")
        bad = any(p in ("", ".", "..") or p.startswith((".", "__")) for p in parts)
        if bad or "\\" in first or any(c in first for c in "*?[]{}\n\r\0") or len(first) > 200:
            raise ConfigError(
                f"path template {template!r} gives {first!r}: a path must be relative, without '..', hidden folders, "
                "names that begin with '__' (datasets ignores both), or glob characters."
            )

    @classmethod
    def of(cls, config: str, split: str, path: str | None, format: Format) -> Self:
        """The layout of shards in one format; with no `path` the usual one, which ends in it.

        Raises:
            ConfigError: also where `path` ends in another format.
        """
        if format not in FORMATS:
            raise ConfigError(f"format is one of {', '.join(map(repr, FORMATS))}, not {format!r}.")
        layout = cls(config, split, path or f"{_folder(config)}/{{split}}-{{writer}}-{{seq:05d}}.{format}")
        if layout.format != format:
            raise ConfigError(
                f"path template {path!r} ends in .{layout.format}, and the shards are {format!r}: give "
                f"format={layout.format!r}, or let the template end in .{format}."
            )
        return layout

    @property
    def format(self) -> Format:
        """What the shards are."""
        return format_of(self.path("w", 0))

    def siblings(self) -> Iterator[Layout]:
        """The same in other configs: `{config}-2`, `-3`, …"""
        return (self._sibling(number) for number in range(2, _MOST_SIBLINGS + 2))

    def _sibling(self, number: int) -> Layout:
        template: str | None = self.template
        if "{config" not in self.template:
            given = template != Layout.of(self.config, self.split, None, self.format).template
            template = "{config}/" + self.template if given else None
        return Layout.of(f"{self.config}-{number}", self.split, template, self.format)

    def path(self, writer: str, seq: int) -> str:
        """The path in the dataset of one writer's shard number `seq`."""
        return self.template.format(config=self.config, split=self.split, writer=writer, seq=seq)

    def series(self, writer: str) -> str:
        """What names one run of sequence numbers: two writers share it exactly where their paths could collide."""
        return re.sub(r"\{seq[^}]*\}", "*", self.template).format(config=self.config, split=self.split, writer=writer)

    @property
    def glob(self) -> str:
        """The pattern that finds this config's and split's shards, of all writers."""
        pattern = re.sub(r"\{(writer|seq)[^}]*\}", "*", self.template).format(config=self.config, split=self.split)
        return re.sub(r"\*(-\*)+", "*", pattern)


def _folder(config: str) -> str:
    return "data" if config == "default" else "{config}"


def format_of(path: str) -> Format:
    """The format that a shard's name ends in; JSON Lines for any other name."""
    return next((one for one in FORMATS if path.endswith(f".{one}")), "jsonl")


def check_repo_id(repo_id: str) -> str:
    """`repo_id` as it is, or `ConfigError` where the Hub would never take it."""
    text = repo_id if isinstance(repo_id, str) else repr(repo_id)
    if not _REPO_ID.fullmatch(text) or "--" in text or ".." in text or text.endswith((".", "-", ".git")):
        raise ConfigError(
            f"repo id {text!r} is none: it is 'namespace/name' in letters, digits, '-', '_' and '.', "
            "without '--' or '..', such as 'user/rollouts'."
        )
    return text


def is_text(text: str) -> bool:
    """Whether it can be written down: a lone surrogate can't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
