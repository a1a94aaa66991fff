"""Heartbeat file: a running job's queue, counts and state, for other processes.

Each writer has a small file next to its lock, one page that is overwritten. It is not in the catalogue, whose lock
`put` needs, and it may be lost at any time. A writer that closes removes its file; the file of a killed one shows when
it was last alive.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import msgspec

from hubsync.model.stats import Counts
from hubsync.telemetry.status import State

_PAGE = 4096  # bytes
_REASON = 400  # characters that fit a page even if each is escaped


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """One writer. `at` and `since` are in seconds since the epoch; the limits are those of its policies."""

    pid: int
    at: float
    since: float
    state: State = State()
    activity: str = ""  # see `Status.activity`
    counts: Counts = msgspec.field(default_factory=Counts)
    queue_batches: int = 0
    queue_rows: int = 0
    queue_bytes: int = 0
    queue_oldest_at: float | None = None
    queue_max_bytes: int = 0
    blocked: int = 0  # puts that waited for room
    raised: int = 0
    dropped: int = 0
    linger_s: float = 0.0
    shard_max_bytes: int = 0
    spool_max_bytes: int = 0


def write_heartbeat(spool: Path, writer: str, live: Heartbeat) -> None:
    """Write a heartbeat. Never fails and never syncs: a full disk must not stop a job."""
    text = msgspec.json.encode(live)
    if len(text) > _PAGE:
        brief = State(live.state.kind, live.state.reason[:_REASON], live.state.until)
        text = msgspec.json.encode(msgspec.structs.replace(live, state=brief))
    with suppress(OSError):
        # Overwritten, not replaced: a file that is renamed over another is written to the disk at once.
        fd = os.open(_file(spool, writer), os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            os.pwrite(fd, text.ljust(_PAGE), 0)
        finally:
            os.close(fd)


def remove_heartbeat(spool: Path, writer: str) -> None:
    """Remove the heartbeat of a writer that closes."""
    with suppress(OSError):
        _file(spool, writer).unlink()


def read_heartbeats(spool: Path) -> dict[str, Heartbeat]:
    """Return the last heartbeat of each writer, by its name."""
    found = {}
    for path in sorted((spool / "writers").glob("*.live")):
        with suppress(OSError, msgspec.DecodeError, msgspec.ValidationError):
            found[path.stem] = msgspec.json.decode(path.read_bytes(), type=Heartbeat)
    return found


def _file(spool: Path, writer: str) -> Path:
    return spool / "writers" / f"{writer}.live"
