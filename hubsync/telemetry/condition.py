"""The condition of a spool: one verdict on its state, rows and jobs.

Every command, page, message and exit code that says how a spool is doing uses `condition_of`.
"""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from hubsync._runtime.formatting import count_text, rejected_text, time_text
from hubsync.telemetry.status import State

ConditionKind = Literal["unknown", "blocked", "rejected", "waiting", "uploading", "finished"]
KINDS: tuple[ConditionKind, ...] = get_args(ConditionKind)  # problems first
Committer = Literal["working", "stalled", "none"]


class ExitCode(IntEnum):
    """The exit codes of `hubsync status` and `hubsync drain`, beyond those of every command."""

    OK = 0  # nothing needs you
    FAILED = 1  # an operator must act: blocked, rejected rows, or a spool that cannot be read
    WAITING = 3  # rows are in the spool; a later run can upload them
    PARTLY = 4  # `drain` of several spools: some could not be drained, the others are finished


class SpoolFacts(NamedTuple):
    """What is known about a spool at one moment.

    Attributes:
        directory: The spool.
        state: What the committer, or a worker whose state is worse, reported last.
        rows: Rows in the spool that are not on the Hub, without rejected ones.
        queued_rows: Rows in the memory of live jobs.
        rejected_rows: Rows in the dead letter.
        rejected_shards: Shards in the dead letter.
        lost_rows: Accepted rows that are lost with a damaged file.
        is_open: Whether a live process writes to the spool or commits for it.
        committer: Whether a process commits for the spool.
        activity: The request that has been waiting for a response the longest, in words; empty if unknown.
    """

    directory: Path
    state: State = State()
    rows: int = 0
    queued_rows: int = 0
    rejected_rows: int = 0
    rejected_shards: int = 0
    lost_rows: int = 0
    is_open: bool = False
    committer: Committer = "none"
    activity: str = ""


class Condition(NamedTuple):
    """How a spool is doing.

    Attributes:
        kind: "finished" (everything is on the Hub and no job has the spool open), "uploading", "waiting" for something
            that passes or for `hubsync drain`, "rejected" (rows are in the dead letter or lost), "blocked" until one
            acts, or "unknown".
        reason: Why, in words; empty if the kind says everything.
        until: When it is tried again, in seconds since the epoch; None if unknown.
        command: What to run next; empty if nothing needs to be done.
    """

    kind: ConditionKind
    reason: str = ""
    until: float | None = None
    command: str = ""

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of a command that found this condition."""
        if self.kind in ("unknown", "blocked", "rejected"):
            return ExitCode.FAILED
        return ExitCode.WAITING if self.kind == "waiting" and self.command else ExitCode.OK

    def __str__(self) -> str:
        """Return the kind, the reason and the next attempt: "waiting: commit quota; next try 14:05:30"."""
        until = f"; next try {time_text(self.until)}" if self.until is not None else ""
        return self.kind + (f": {self.reason.rstrip('.')}" if self.reason else "") + until


def condition_of(facts: SpoolFacts) -> Condition:
    """Return the condition of a spool; if it has several problems, the one that needs an operator most."""
    state, drain = facts.state, f"hubsync drain {facts.directory}"
    waiting = facts.rows + facts.queued_rows
    if state.kind == "blocked" or (state.kind == "spool full" and facts.is_open):
        if facts.is_open:
            return Condition("blocked", _with_activity(state.reason, facts), state.until)
        return Condition(
            "blocked", f"{state.reason.rstrip('.')} (when the last job ended)", None, drain if waiting else ""
        )
    if facts.committer == "stalled" and waiting:
        return Condition("unknown", "the process that commits for this spool shows no sign of life")
    if facts.rejected_shards or facts.lost_rows:
        return Condition("rejected", _rejected(facts), None, f"hubsync dead-letter list {facts.directory}")
    if not facts.is_open:
        if not waiting:
            return Condition("finished")
        offline = f"; {state.reason}" if state.kind == "offline" else ""
        return Condition("waiting", f"no job has this spool open{offline}", None, drain)
    if state.kind != "ok":  # offline, or backing off
        return Condition("waiting", state.reason, state.until)
    if not waiting:
        return Condition("uploading", "everything so far is on the Hub")
    if facts.committer == "none":
        return Condition("waiting", "no process commits for this spool; one of its jobs will take over")
    return Condition("uploading", _with_activity(state.reason, facts), state.until)


def _rejected(facts: SpoolFacts) -> str:
    rejected = rejected_text(facts.rejected_shards, facts.rejected_rows, facts.lost_rows)
    others = f"; {count_text(facts.rows, 'other row')} not on the Hub yet" if facts.rows else ""
    return f"{rejected}{others}"


def _with_activity(reason: str, facts: SpoolFacts) -> str:
    return "; ".join(part for part in (reason.rstrip("."), facts.activity) if part)
