"""How the worker is doing: one state, a few counters, told once when it changes and kept for other processes.

The state is written into the catalogue, where `hubsync status` finds it, and logged in one line at the level where
somebody acts. Nothing here decides anything.
"""

from __future__ import annotations

import logging
import threading
import time as _time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import msgspec

_log = logging.getLogger("hubsync")

QUOTA = "commit quota"  # the reason of a state, where the Hub refuses more commits
_CHANGES = 20  # of the state, kept for who looks later

StateKind = Literal["ok", "backing off", "blocked", "offline", "spool full"]


class State(msgspec.Struct, frozen=True):
    """What the worker does now.

    Attributes:
        kind: "ok", perhaps until the next commit may go; "backing off" until the next try; "blocked" until a person
            mends it; "offline" by HF_HUB_OFFLINE; "spool full" while the disk or the spool's quota takes no more.
        reason: why, in words; empty when all is well.
        until: when the next try is, in seconds since the epoch; None where none is planned.
    """

    kind: StateKind = "ok"
    reason: str = ""
    until: float | None = None

    def __str__(self) -> str:
        text = self.kind + (f": {self.reason}" if self.reason else "")
        return text if self.until is None else f"{text}; next try {clock_text(self.until)}"


class Change(msgspec.Struct, frozen=True):
    """When the state became another; `at` in seconds since the epoch."""

    at: float
    kind: StateKind
    reason: str = ""


class Stored(State, frozen=True):
    """The state as it is kept for other processes, with its last changes, oldest first."""

    changes: tuple[Change, ...] = ()


class Counts(msgspec.Struct):
    """What happened since this process opened its uploader."""

    spooled_batches: int = 0
    spooled_rows: int = 0
    spooled_bytes: int = 0
    replayed_batches: int = 0
    commits: int = 0
    retries: int = 0
    refusals: int = 0
    committed_rows: int = 0
    committed_bytes: int = 0
    committed_shards: int = 0


class Status:
    """The state of one worker. Two parts report to it (the spool's thread, the committer); the worse one shows."""

    def __init__(
        self,
        save: Callable[[str], None],
        waiting: Callable[[], str],
        *,
        stored: str | None = None,
        now: Callable[[], float] = _time.time,
    ) -> None:
        """`stored` is what was last saved for this spool: its changes are kept."""
        self.counts = Counts()
        self._now = now
        self._changes: deque[Change] = deque(maxlen=_CHANGES)
        with suppress(msgspec.DecodeError):  # another version's: history, which no job must stumble over
            self._changes.extend(msgspec.json.decode(stored, type=Stored).changes if stored else ())
        self._save = save
        self._waiting = waiting
        self._lock = threading.Lock()
        self._parts: dict[str, State] = {}
        self._shown = State()

    @property
    def state(self) -> State:
        return self._shown

    def troubled(self, part: str) -> bool:
        """Whether one part's last report was not "ok"."""
        return self._parts.get(part, State()).kind != "ok"

    def report(self, part: str, state: State) -> None:
        """One part's state has changed, or its next try has."""
        with self._lock:
            self._parts[part] = state
            worst = max(self._parts.values(), key=lambda s: (_RANK[s.kind], s.reason != ""))
            before, self._shown = self._shown, worst
            if (worst.kind, worst.reason) != (before.kind, before.reason) and not worst.kind == before.kind == "ok":
                self._changes.append(Change(self._now(), worst.kind, worst.reason))
        if worst != before:
            self.save()
        if (worst.kind, worst.reason) != (before.kind, before.reason):
            self._tell(before, worst)

    def save(self) -> None:
        """Keeps the state for other processes."""
        with self._lock:
            shown, changes = self._shown, tuple(self._changes)
        self._save(msgspec.json.encode(Stored(shown.kind, shown.reason, shown.until, changes)).decode())

    def _tell(self, before: State, now: State) -> None:
        if now.kind == before.kind == "ok":
            return  # only the pace
        if now.kind == "ok":
            _log.info("going on; it was %s.", before)
        elif now.kind == before.kind == "backing off":
            _log.info("%s; %s", now, self._waiting())
        else:
            _log.log(_LEVEL[now.kind], "%s; %s", now, self._waiting())


_RANK: dict[StateKind, int] = {"ok": 0, "offline": 1, "backing off": 2, "blocked": 3, "spool full": 4}
_LEVEL: dict[StateKind, int] = {
    "ok": logging.INFO,
    "offline": logging.INFO,
    "backing off": logging.WARNING,
    "blocked": logging.ERROR,
    "spool full": logging.ERROR,
}


def size_text(count: float) -> str:
    """Bytes for people: 1.2 MB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def clock_text(at: float) -> str:
    """A time of day for people: 14:05:30, in local time."""
    return _time.strftime("%H:%M:%S", _time.localtime(at))


def moment_text(at: float) -> str:
    """A day and time for people: 2026-11-25 14:05:30, in local time."""
    return _time.strftime("%Y-%m-%d %H:%M:%S", _time.localtime(at))
