"""The worker's state and counters: each change is logged once, and stored for other processes.

The state is stored in the catalogue, where `hubsync status` reads it, and logged in one line at the level at which
somebody must act. Nothing here makes decisions.
"""

from __future__ import annotations

import logging
import re
import threading
import time as _time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import msgspec

from hubsync._runtime.formatting import duration_text, time_text
from hubsync.model.stats import Counts

_log = logging.getLogger("hubsync")
QUOTA = "commit quota"  # the reason of a state in which the Hub refuses more commits
READING = "reading the watermarks in the dataset"  # how the reason begins while a new spool reads many files
_FIGURES = re.compile(r"\d[\d.,]*( (bytes|kB|MB|GB)\b)?")
_CHANGES = 20  # of the state that are stored
StateKind = Literal["ok", "backing off", "blocked", "offline", "spool full"]


class State(msgspec.Struct, frozen=True):
    """What the worker is doing.

    Attributes:
        kind: "ok" (perhaps waiting for its next commit); "backing off" until the next attempt; "blocked" until an
            operator acts; "offline" because of HF_HUB_OFFLINE; "spool full" while the disk or the quota has no room.
        reason: Why, in words; empty if the state is "ok".
        until: Time of the next attempt, in seconds since the epoch; None if no attempt is scheduled.
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
        """The reason without the operation that failed. An outage has the same cause for all operations."""
        return self.reason.partition(": ")[2] or self.reason

    @property
    def problem(self) -> tuple[StateKind, str]:
        """What identifies the problem, whatever its figures: how full a spool is changes with each commit."""
        return self.kind, _FIGURES.sub("0", self.cause)

    def __str__(self) -> str:
        return self.what if self.until is None else f"{self.what}; next try {time_text(self.until)}"


class Change(msgspec.Struct, frozen=True):
    """A change of the state, `at` a time in seconds since the epoch."""

    at: float
    kind: StateKind
    reason: str = ""


class Stored(State, frozen=True):
    """The state as it is stored for other processes, with its last changes, oldest first."""

    changes: tuple[Change, ...] = ()


def read_stored(text: str | None) -> Stored:
    """Return the stored state; "ok" if nothing is stored, or if another version wrote one that cannot be decoded."""
    if text:
        with suppress(msgspec.DecodeError):
            return msgspec.json.decode(text, type=Stored)
    return Stored()


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
        self._since: dict[str, float] = {}  # when a part's problem began
        self._shown = State()
        self._activities: dict[object, tuple[str, float]] = {}

    @property
    def state(self) -> State:
        """The state that is shown."""
        return self._shown

    def troubled(self, part: str) -> bool:
        """Return whether the last state of a part was not "ok"."""
        return self._parts.get(part, State()).kind != "ok"

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Note within the block that the worker waits for the Hub's response to `what`. Costs no I/O."""
        key = object()
        self._activities[key] = what, self._now()
        try:
            yield
        finally:
            del self._activities[key]

    @property
    def activity(self) -> str:
        """The request that has waited for a response the longest, in words; empty if none waits."""
        pending = sorted(self._activities.copy().values(), key=lambda activity: activity[1])
        if not pending:
            return ""
        what, since = pending[0]
        return f"the Hub has not answered {what} for {duration_text(max(0.0, self._now() - since))}"

    def report(self, part: str, state: State, *, log: bool = True) -> None:
        """Record the new state, or the new time of the next try, of one part.

        Args:
            part: which part reports.
            state: its state.
            log: False if an error with the same message is raised.
        """
        with self._lock:
            self._parts[part] = state
            if state.kind == "ok":
                self._since.pop(part, None)
            else:
                self._since.setdefault(part, self._now())
            worst = self._worst()
            before, self._shown = self._shown, worst
            if (worst.kind, worst.reason) != (before.kind, before.reason) and not worst.kind == before.kind == "ok":
                self._changes.append(Change(self._now(), worst.kind, worst.reason))
        if worst != before:
            self.save()
        if log:
            self._tell(before, worst)

    def _worst(self) -> State:
        """Return the worst state. A full spool also names the problem that probably caused it, if that lasts."""
        ranked = sorted(self._parts.items(), key=lambda part: (_RANK[part[1].kind], part[1].reason != ""), reverse=True)
        worst = ranked[0][1]
        for part, why in ranked:
            if why.kind in _CAUSES and (why.until is None or why.until - self._since[part] >= _LASTS_S):
                return full_because(worst, why)
        return worst

    def save(self) -> None:
        """Store the state for other processes."""
        with self._lock:
            shown, changes = self._shown, tuple(self._changes)
        self._save(msgspec.json.encode(Stored(shown.kind, shown.reason, shown.until, changes)).decode())

    def _tell(self, before: State, now: State) -> None:
        """Log a change of the state in one line; at WARNING or ERROR only if it lasts, and once per problem.

        A problem that passes within seconds, or comes back within ten minutes, is logged only at INFO: a spool that is
        full now and then, a Hub that fails now and then. The end of a problem is logged at WARNING if it was.
        """
        at, trouble = self._now(), self._trouble
        if now.kind == "ok":
            if before.kind != "ok":
                took = duration_text(max(0.0, at - trouble.since))
                _log.log(min(trouble.level, logging.WARNING), "going on after %s; %s", took, self._waiting())
                trouble.level = logging.INFO
            return
        changed = now.problem != before.problem and not _eases(before, now)
        if before.kind == "ok":
            trouble.since = at
        lasts = now.kind != "backing off" or now.until is None or now.until - min(trouble.since, at) >= _LASTS_S
        told_at = trouble.told.get(now.problem, float("-inf"))
        news = lasts and not 0 <= at - told_at < _AGAIN_S
        level = _LEVEL[now.kind] if news else logging.INFO
        if not changed and not (news and level > trouble.level):
            return
        if news:
            trouble.told = {what: then for what, then in trouble.told.items() if 0 <= at - then < _AGAIN_S}
            trouble.told[now.problem] = at
            trouble.level = max(trouble.level, level)
        _log.log(level, "%s; %s", now, self._waiting())


# Why nothing is uploaded, by the kind of the committer's state.
_CAUSES: dict[StateKind, str] = {"blocked": "are blocked", "backing off": "fail", "offline": "are off"}


def full_because(full: State, why: State) -> State:
    """Return the state of a full spool with the problem that keeps its rows from being uploaded; any other as it is."""
    if full.kind != "spool full" or why.kind not in _CAUSES:
        return full
    reason = f"uploads {_CAUSES[why.kind]} ({why.cause.rstrip('.')}); {full.reason}"
    return State(full.kind, reason, full.until or why.until)


def _eases(before: State, now: State) -> bool:
    """Return whether the state is the same, without the cause that was added to it."""
    return before.kind == now.kind and before.reason.endswith(f"; {now.reason}")


class _Trouble:
    """What has been logged of the current problem."""

    def __init__(self) -> None:
        self.since = 0.0  # when it began
        self.level = logging.INFO  # the highest level logged since it began
        self.told: dict[tuple[str, str], float] = {}  # when a warning or error was last logged


_LASTS_S = 10.0  # a shorter problem is only logged at INFO
_AGAIN_S = 600.0  # within this time the same problem is logged only at INFO
_RANK: dict[StateKind, int] = {"ok": 0, "offline": 1, "backing off": 2, "blocked": 3, "spool full": 4}
_LEVEL: dict[StateKind, int] = {
    "ok": logging.INFO,
    "offline": logging.INFO,
    "backing off": logging.WARNING,
    "blocked": logging.ERROR,
    "spool full": logging.ERROR,
}
