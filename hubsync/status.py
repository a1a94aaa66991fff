"""How the worker is doing: one state, a few counters, told once when it changes and kept for other processes.

The state is written into the catalogue, where `hubsync status` finds it, and logged in one line at the level where
somebody acts. Nothing here decides anything.
"""

from __future__ import annotations

import logging
import threading
import time as _time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

_log = logging.getLogger("hubsync")

QUOTA = "commit quota"  # the reason of a state, where the Hub refuses more commits
_ON_TOP = ". Meanwhile "
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

    @property
    def what(self) -> str:
        """Kind and reason, in words."""
        return self.kind + (f": {self.reason.rstrip('.')}" if self.reason else "")

    @property
    def cause(self) -> str:
        """The reason without the operation that met it: an outage, or a revoked token, is one for all of them."""
        return self.reason.partition(": ")[2] or self.reason

    def __str__(self) -> str:
        return self.what if self.until is None else f"{self.what}; next try {clock_text(self.until)}"


class Change(msgspec.Struct, frozen=True):
    """When the state became another; `at` in seconds since the epoch."""

    at: float
    kind: StateKind
    reason: str = ""


class Stored(State, frozen=True):
    """The state as it is kept for other processes, with its last changes, oldest first."""

    changes: tuple[Change, ...] = ()


def read_stored(text: str | None) -> Stored:
    """What was saved; all is well where nothing was, or where another version's words can't be read: they are news,
    which no job must stumble over.
    """
    if text:
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(text, type=Stored)
    return Stored()


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
        self._changes = deque(read_stored(stored).changes, maxlen=_CHANGES)
        self._save = save
        self._waiting = waiting
        self._trouble = _Trouble()
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
            worst = _worst(self._parts.values(), self._now())
            before, self._shown = self._shown, worst
            if (worst.kind, worst.reason) != (before.kind, before.reason) and not worst.kind == before.kind == "ok":
                self._changes.append(Change(self._now(), worst.kind, worst.reason))
        if worst != before:
            self.save()
        self._tell(before, worst)

    def save(self) -> None:
        """Keeps the state for other processes."""
        with self._lock:
            shown, changes = self._shown, tuple(self._changes)
        self._save(msgspec.json.encode(Stored(shown.kind, shown.reason, shown.until, changes)).decode())

    def _tell(self, before: State, now: State) -> None:
        """One line where the state changes; a warning or an error once it lasts, and once for the same trouble.

        What passes within seconds is told by INFO alone, and so is what comes back within ten minutes: a spool that is
        full and has room by turns, a Hub that stumbles. Who was warned is told as loudly that it is over.
        """
        at, trouble = self._now(), self._trouble
        if now.kind == "ok":
            if before.kind != "ok":
                took = age_text(max(0.0, at - trouble.since))
                _log.log(min(trouble.level, logging.WARNING), "going on after %s; %s", took, self._waiting())
                trouble.level = logging.INFO
            return
        changed = (now.kind, now.cause) != (before.kind, before.cause) and not _eases(before, now)
        if before.kind == "ok":
            trouble.since = at
        lasts = now.kind != "backing off" or now.until is None or now.until - min(trouble.since, at) >= _LASTS_S
        told_at = trouble.told.get((now.kind, now.cause), float("-inf"))
        news = lasts and not 0 <= at - told_at < _AGAIN_S
        level = _LEVEL[now.kind] if news else logging.INFO
        if not changed and not (news and level > trouble.level):
            return
        if news:
            trouble.told = {what: then for what, then in trouble.told.items() if 0 <= at - then < _AGAIN_S}
            trouble.told[now.kind, now.cause] = at
            trouble.level = max(trouble.level, level)
        _log.log(level, "%s; %s", now, self._waiting())


def _worst(states: Iterable[State], now: float) -> State:
    """A full spool is often the consequence of what comes next, so it tells that as well, where it lasts."""
    ranked = sorted(states, key=lambda s: (_RANK[s.kind], s.reason != ""), reverse=True)
    worst = ranked[0]
    if worst.kind == "spool full":
        why = next((state for state in ranked if state.kind not in ("spool full", "ok")), State())
        passes = why.kind == "backing off" and why.until is not None and why.until - now < _LASTS_S
        if why.kind != "ok" and not passes:
            reason = f"{worst.reason.rstrip('.')}{_ON_TOP}{why.kind}: {why.cause}"
            return State(worst.kind, reason, worst.until or why.until)
    return worst


def _eases(before: State, now: State) -> bool:
    """Whether only what came on top of it is over."""
    return before.kind == now.kind and before.reason.startswith(f"{now.reason.rstrip('.')}{_ON_TOP}")


class _Trouble:
    """What was told of what is wrong."""

    def __init__(self) -> None:
        self.since = 0.0  # when it began
        self.level = logging.INFO  # the loudest line since all was well
        self.told: dict[tuple[str, str], float] = {}  # when a warning or an error told it


_LASTS_S = 10.0  # what is over sooner is worth no warning
_AGAIN_S = 600.0  # within these the same trouble is the same news
_RANK: dict[StateKind, int] = {"ok": 0, "offline": 1, "backing off": 2, "blocked": 3, "spool full": 4}
_LEVEL: dict[StateKind, int] = {
    "ok": logging.INFO,
    "offline": logging.INFO,
    "backing off": logging.WARNING,
    "blocked": logging.ERROR,
    "spool full": logging.ERROR,
}


def clock_text(at: float) -> str:
    """A time for people: 14:05:30 in local time, with the day where it is not today's."""
    then = _time.localtime(at)
    is_today = then[:3] == _time.localtime()[:3]
    return _time.strftime("%H:%M:%S" if is_today else "%b %d %H:%M:%S", then)


def moment_text(at: float) -> str:
    """A day and time for people: 2026-11-25 14:05:30, in local time."""
    return _time.strftime("%Y-%m-%d %H:%M:%S", _time.localtime(at))


def count_text(number: int, what: str) -> str:
    """1 row, 12,400 rows."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def seconds_text(seconds: float) -> str:
    """0.2 s, 25 s, 3,600 s."""
    return f"{max(0.0, round(seconds, 1)):,.10g} s"


def size_text(size: float) -> str:
    """Bytes for people: 38.0 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1_000 or unit == "GB":
            break
        size /= 1_000
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def waiting_text(rows: int, size: float) -> str:
    """12,400 rows (38.0 MB) wait."""
    return f"{count_text(rows, 'row')} ({size_text(size)}) {'waits' if rows == 1 else 'wait'}"


def full_text(spool: Path, most: int, dead: int) -> str:
    """A spool that holds all it may, `most` bytes; `dead` of them only a person can move."""
    return (
        f"the spool {spool} holds its {most:,} bytes"
        + (f", {size_text(dead)} of them in the dead letter" if dead else "")
        + "; it takes more as soon as some are committed"
        + (f", or put again or discarded (hubsync dead-letter list {spool})" if dead else "")
        + ". Raise SpoolPolicy(max_bytes=…) if the disk has room."
    )


def age_text(seconds: float) -> str:
    """A time span for people: 14 s, 3 min, 2 h 5 min."""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 3:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if hours < 2 else f"{hours} h {minutes % 60} min"
