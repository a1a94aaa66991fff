"""What a job that is running tells of itself to who looks from another process: its queue, its counts, its state.

A small file of its own beside the writer's lock, one page that is written over: the catalogue belongs to the hot path,
and this may be lost at any time. Who ends in order takes it away; what a killed job leaves says when it was last heard
of.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from hubsync.model.stats import Counts
from hubsync.telemetry.status import State

_PAGE = 4096  # bytes
_REASON = 400  # characters of it that fit a page, whatever they are


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """One writer. `at` and `since` are in seconds since the epoch; the bounds are those of its policies."""

    pid: int
    at: float
    since: float
    state: State = State()
    counts: Counts = msgspec.field(default_factory=Counts)
    queue_batches: int = 0
    queue_rows: int = 0
    queue_bytes: int = 0
    queue_oldest_at: float | None = None
    queue_max_bytes: int = 0
    blocked: int = 0  # puts that had to wait for room
    raised: int = 0
    dropped: int = 0
    linger_s: float = 0.0
    shard_max_bytes: int = 0
    spool_max_bytes: int = 0


def write_heartbeat(spool: Path, writer: str, live: Heartbeat) -> None:
    """Never waits for more than the kernel, and never fails: a full disk must not stop a job."""
    text = msgspec.json.encode(live)
    if len(text) > _PAGE:
        brief = State(live.state.kind, live.state.reason[:_REASON], live.state.until)
        text = msgspec.json.encode(msgspec.structs.replace(live, state=brief))
    with suppress(OSError):
        # Written over as a whole, and never made anew: a file that is renamed over another goes to the disk at once.
        fd = os.open(_file(spool, writer), os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.pwrite(fd, text.ljust(_PAGE), 0)
        finally:
            os.close(fd)


def remove_heartbeat(spool: Path, writer: str) -> None:
    """The writer ends in order."""
    with suppress(OSError):
        _file(spool, writer).unlink()


def read_heartbeats(spool: Path) -> dict[str, Heartbeat]:
    """What each writer last told, by its name."""
    found = {}
    for path in sorted((spool / "writers").glob("*.live")):
        with suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
            found[path.stem] = msgspec.json.decode(path.read_bytes(), type=Heartbeat)
    return found


def _file(spool: Path, writer: str) -> Path:
    return spool / "writers" / f"{writer}.live"
