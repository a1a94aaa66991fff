"""What the page shows, looked up once a second: each spool as plain values, and what passed while it was watched.

A spool that appears, vanishes, is corrupt or of a newer version becomes a card that says so. Memory is bounded: an hour
of commits, a quarter of an hour of throughput.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hubsync.dashboard.snapshot import Snapshot, last_hour, links_of, next_commit, snapshot
from hubsync.errors import SpoolError, SpoolLost, SpoolVersionError
from hubsync.maintenance.inspect import default_spools

STEP_S = 10  # of the throughput
STEPS = 90
_HOUR = 3600
_FIRST = 5_000  # segments of the past that the first look reads,
_LATER = 400  # and every other: more than a second brings,
_GAP_S = 5.0  # unless that was longer ago
_SHARDS_SHOWN = 10
_SEEN = 50_000
_MINUTE = 6  # steps that "now" is the mean of


@dataclass(slots=True)
class _Commit:
    sha: str
    at: float
    shards: int = 0
    rows: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Step:
    """What passed within `STEP_S` seconds; `waiting`: by how much more waits, or less."""

    spooled_rows: float = 0
    spooled_bytes: float = 0
    committed_rows: float = 0
    committed_bytes: float = 0
    waiting_rows: float = 0
    waiting_bytes: float = 0


@dataclass(slots=True)
class _Memory:
    """What is known of one spool's past."""

    at: float = 0.0  # the last look; 0 before the first
    totals: tuple[int, ...] = (0, 0, 0, 0)  # as in `_Step`, ever
    waiting: tuple[int, int] = (0, 0)  # rows and bytes, the dead letter not among them: that waits for a person
    steps: dict[int, _Step] = field(default_factory=dict)
    commits: dict[str, _Commit] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)  # committed last
    seen: dict[int, None] = field(default_factory=dict)  # segments that are counted in `commits`


class Watch:
    """Follows the given spools, or all at the usual place. Thread-safe; `look` is to be called once a second."""

    def __init__(self, directories: Sequence[Path] = ()) -> None:
        self._given = [directory.expanduser().absolute() for directory in directories]
        self._memories: dict[Path, _Memory] = {}
        self._lock = threading.Lock()

    def look(self) -> list[dict[str, Any]]:
        """All spools now, as plain values."""
        with self._lock:
            found = self._given or list(default_spools())
            for directory in self._memories.keys() - set(found):
                del self._memories[directory]
            return [self._one(directory) for directory in found]

    def _one(self, directory: Path) -> dict[str, Any]:
        memory = self._memories.setdefault(directory, _Memory())
        card: dict[str, Any] = {
            "id": "s" + hashlib.blake2b(str(directory).encode("utf-8", "replace"), digest_size=6).hexdigest(),
            "spool": str(directory).encode("utf-8", "replace").decode(),
            "problem": None,
        }
        try:
            found = snapshot(directory, _LATER if time.time() - memory.at < _GAP_S else _FIRST)
            _remember(memory, found)
            return {**card, **_facts(found, memory)}
        except Exception as error:  # noqa: BLE001  (what one spool holds must not take the others' cards)
            self._memories[directory] = _Memory()
            known = isinstance(error, SpoolError)
            text = str(error) if known else f"what it tells is not understood ({type(error).__name__}: {error})."
            return {**card, "problem": {"kind": _kind_of(error, directory), "text": text}}


def _kind_of(error: Exception, directory: Path) -> str:
    if isinstance(error, SpoolLost):
        return "corrupt"
    if isinstance(error, SpoolVersionError):
        return "newer version"
    return "can't be read" if (directory / "catalogue.sqlite").exists() else "not there"


def _remember(memory: _Memory, found: Snapshot) -> None:
    dead, waiting, done = found.depths["dead"], found.waiting, found.committed
    totals = (done.rows + waiting.rows + dead.rows, done.bytes + waiting.bytes + dead.bytes, done.rows, done.bytes)
    if found.at - memory.at > _GAP_S:  # the first look, or this machine slept
        memory.steps.clear()
        _prefill(memory, found)
    else:
        step = memory.steps.setdefault(int(found.at // STEP_S), _Step())
        # Less than before is no throughput: a shard of the dead letter was taken away.
        more = [max(0, now - before) for now, before in zip(totals, memory.totals, strict=True)]
        step.spooled_rows += more[0]
        step.spooled_bytes += more[1]
        step.committed_rows += more[2]
        step.committed_bytes += more[3]
        step.waiting_rows += waiting.rows - memory.waiting[0]
        step.waiting_bytes += waiting.bytes - memory.waiting[1]
    memory.totals, memory.waiting, memory.at = totals, (waiting.rows, waiting.bytes), found.at
    for number in [n for n in memory.steps if n <= found.at // STEP_S - STEPS]:
        del memory.steps[number]
    _remember_commits(memory, found)


def _prefill(memory: _Memory, found: Snapshot) -> None:
    """What passed before the first look, as far as the segments tell: rows came evenly while one was open."""
    first = int(found.at // STEP_S) - STEPS + 1
    for row in found.recent:
        opened, until = row["opened_at"], row["sealed_at"] or found.at
        here = range(max(first, int(opened // STEP_S)), min(int(until // STEP_S), int(found.at // STEP_S)) + 1)
        length = max(until - opened, 1e-3)
        for number in here:
            within = max(0.0, min(until, (number + 1) * STEP_S) - max(opened, number * STEP_S))
            share = within / length if until - opened > 1e-3 else 1 / len(here)
            step = memory.steps.setdefault(number, _Step())
            step.spooled_rows += row["rows"] * share
            step.spooled_bytes += row["bytes"] * share
            step.waiting_rows += row["rows"] * share
            step.waiting_bytes += row["bytes"] * share
        gone = row["sealed_at"] if row["state"] == "dead" else row["committed_at"]
        if gone is not None and (number := int(gone // STEP_S)) >= first:
            step = memory.steps.setdefault(number, _Step())
            step.waiting_rows -= row["rows"]
            step.waiting_bytes -= row["bytes"]
            if row["state"] != "dead":
                step.committed_rows += row["rows"]
                step.committed_bytes += row["bytes"]


def _remember_commits(memory: _Memory, found: Snapshot) -> None:
    new = [row for row in found.recent if row["state"] == "committed" and row["id"] not in memory.seen]
    for row in sorted(new, key=lambda row: (row["committed_at"], row["id"])):
        memory.seen[row["id"]] = None
        commit = memory.commits.setdefault(row["sha"], _Commit(row["sha"], row["committed_at"]))
        commit.shards += 1
        commit.rows += row["rows"]
        commit.bytes += row["bytes"]
        memory.shards.append(row)
    del memory.shards[:-_SHARDS_SHOWN]
    for sha in [sha for sha, commit in memory.commits.items() if commit.at < found.at - _HOUR]:
        del memory.commits[sha]
    while len(memory.seen) > _SEEN:
        del memory.seen[next(iter(memory.seen))]


def _facts(found: Snapshot, memory: _Memory) -> dict[str, Any]:
    at, why = next_commit(found)
    spent, quota = last_hour(found)
    waiting = found.waiting
    return {
        "now": found.at,
        "repo": found.target.repo,
        "revision": found.target.revision,
        "endpoint": found.target.endpoint,
        "url": (links_of(found.target) or {}).get("repo"),
        "alive": found.alive,
        "condition": found.condition._asdict(),
        "state": {"kind": found.state.kind, "reason": found.state.reason, "until": found.state.until},
        "waiting": _depth(waiting),
        "by_state": {name: _depth(depth) for name, depth in found.depths.items()},
        "oldest_age_s": found.oldest_age_s,
        "committed": _depth(found.committed),
        "queue": _queue(found),
        "next": {"at": at, "why": why},
        "quota": {"spent": spent, "per_hour": quota},
        "series": _series(memory, found.at),
        "commits": [
            {"sha": c.sha, "at": c.at, "shards": c.shards, "rows": c.rows, "bytes": c.bytes,
             "url": _link(found, "commit", c.sha)}
            for c in sorted(memory.commits.values(), key=lambda commit: commit.at)
        ],
        "shards": [_shard(found, row) for row in [*reversed(found.next_up), *reversed(memory.shards)]],
        "changes": [{"at": c.at, "kind": c.kind, "reason": c.reason} for c in reversed(found.stored.changes)],
        "dead": found.dead,
        "processes": [
            {"pid": p.pid, "writer": p.writer, "commits": p.commits, "alive": p.alive, "there": p.there,
             "heard_s": p.heard_s, "since": p.live.since if p.live else None,
             "rows": p.live.counts.spooled_rows if p.live else None,
             "retries": p.live.counts.retries if p.live else None}
            for p in found.processes
        ],
    }  # fmt: skip


def _depth(depth: Any) -> dict[str, Any]:
    return {"shards": depth.shards, "rows": depth.rows, "bytes": depth.bytes}


def _queue(found: Snapshot) -> dict[str, int] | None:
    """What is in the memory of all jobs that live; None where none tells."""
    lives = [process.live for process in found.processes if process.alive and process.live is not None]
    if not lives:
        return None
    return {
        "batches": sum(live.queue_batches for live in lives),
        "rows": sum(live.queue_rows for live in lives),
        "bytes": sum(live.queue_bytes for live in lives),
        "max_bytes": sum(live.queue_max_bytes for live in lives),
        "blocked": sum(live.blocked for live in lives),
        "raised": sum(live.raised for live in lives),
        "dropped": sum(live.dropped for live in lives),
    }


def _series(memory: _Memory, now: float) -> dict[str, Any]:
    """A value a step, oldest first, as a rate by the second. The last step is not over yet, and what came in its first
    moments says little: it is told together with the one before.
    """
    last = int(now // STEP_S)
    steps = [memory.steps.get(number, _Step()) for number in range(last - STEPS + 1, last + 1)]
    begun = now - last * STEP_S

    def rates(name: str) -> list[float]:
        passed = [getattr(step, name) for step in steps]
        over = [some / STEP_S for some in passed[:-1]]
        return [round(rate, 3) for rate in (*over, (passed[-2] + passed[-1]) / (STEP_S + begun))]

    def mean(name: str) -> float:
        return float(sum(getattr(step, name) for step in steps[-_MINUTE:]) / ((_MINUTE - 1) * STEP_S + begun))

    names = ("spooled_rows", "spooled_bytes", "committed_rows", "committed_bytes")
    return {
        "from": (last - STEPS + 1) * STEP_S,
        "step_s": STEP_S,
        **{name: rates(name) for name in names},
        "minute": {name: mean(name) for name in names},
        "waiting_rows": _backwards(memory.waiting[0], [step.waiting_rows for step in steps]),
        "waiting_bytes": _backwards(memory.waiting[1], [step.waiting_bytes for step in steps]),
    }


def _backwards(now: float, steps: list[float]) -> list[float]:
    """What waited at the end of each step, from what waits now and by how much it became more."""
    found = []
    for more in reversed(steps):
        found.append(round(max(0.0, now)))
        now -= more
    return [float(value) for value in reversed(found)]


def _shard(found: Snapshot, row: dict[str, Any]) -> dict[str, Any]:
    committed = row["state"] == "committed"
    return {
        "id": row["id"],
        "path": row["path"],
        "writer": row["writer"],
        "state": "sending" if row["plan"] is not None else row["state"],
        "rows": row["rows"],
        "bytes": row["bytes"],
        "at": row["committed_at"] or row["sealed_at"] or row["opened_at"],
        "url": _link(found, "file", row["path"]) if committed else None,
    }


def _link(found: Snapshot, kind: str, rest: str | None) -> str | None:
    links = links_of(found.target)
    return None if links is None or rest is None else links[kind] + quote(rest)
