"""One verdict on a spool, for every combination of what its catalogue and its jobs' heartbeats say."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from hubsync.telemetry.condition import KINDS, Condition, ExitCode, SpoolFacts, condition_of
from hubsync.telemetry.status import State

SPOOL = Path("/spool")
STATES = {
    "ok": State(),
    "paced": State("ok", "commits keep to 120 an hour", 9e9),
    "backing off": State("backing off", "commit quota", 9e9),
    "blocked": State("blocked", "commit to user/rows: 403, no", 9e9),
    "offline": State("offline", "HF_HUB_OFFLINE is set; rows are only spooled"),
    "spool full": State("spool full", "the disk is full", None),
}

# Which rows exist (on disk, in memory, rejected); whether a job is there, and commits; then the kind for each state.
#   where   job              ok          paced       backing off blocked    offline    spool full
TABLE = """
    nothing gone             finished    finished    finished    blocked    finished   finished
    disk    gone             waiting     waiting     waiting     blocked    waiting    waiting
    dead    gone             rejected    rejected    rejected    blocked    rejected   rejected
    both    gone             rejected    rejected    rejected    blocked    rejected   rejected
    nothing writes           uploading   uploading   waiting     blocked    waiting    blocked
    disk    writes           waiting     waiting     waiting     blocked    waiting    blocked
    memory  writes           waiting     waiting     waiting     blocked    waiting    blocked
    dead    writes           rejected    rejected    rejected    blocked    rejected   blocked
    both    writes           rejected    rejected    rejected    blocked    rejected   blocked
    nothing commits          uploading   uploading   waiting     blocked    waiting    blocked
    disk    commits          uploading   uploading   waiting     blocked    waiting    blocked
    memory  commits          uploading   uploading   waiting     blocked    waiting    blocked
    dead    commits          rejected    rejected    rejected    blocked    rejected   blocked
    both    commits          rejected    rejected    rejected    blocked    rejected   blocked
    nothing stalled          uploading   uploading   waiting     blocked    waiting    blocked
    disk    stalled          unknown     unknown     unknown     blocked    unknown    blocked
    memory  stalled          unknown     unknown     unknown     blocked    unknown    blocked
    dead    stalled          rejected    rejected    rejected    blocked    rejected   blocked
    both    stalled          unknown     unknown     unknown     blocked    unknown    blocked
"""
ROWS = {
    "nothing": {},
    "disk": {"rows": 5},
    "memory": {"queued_rows": 5},
    "dead": {"rejected_rows": 30, "rejected_shards": 2},
    "both": {"rows": 5, "rejected_rows": 30, "rejected_shards": 2},
}
JOBS = {
    "gone": {},
    "writes": {"is_open": True},
    "commits": {"is_open": True, "committer": "working"},
    "stalled": {"is_open": True, "committer": "stalled"},
}
CASES = [
    (where, job, state, kind)
    for where, job, *kinds in (line.replace("spool full", "full").split() for line in TABLE.strip().splitlines())
    for state, kind in zip(STATES, kinds, strict=True)
]


def condition(where: str, job: str, state: str) -> Condition:
    return condition_of(SpoolFacts(SPOOL, STATES[state], **ROWS[where], **JOBS[job]))  # type: ignore[arg-type]  # a table


@pytest.mark.parametrize(("where", "job", "state", "kind"), CASES)
def test_every_combination_has_its_condition(where: str, job: str, state: str, kind: str) -> None:
    assert condition(where, job, state).kind == kind


def test_the_table_has_every_combination() -> None:
    possible = set(product(ROWS, JOBS, STATES)) - {("memory", "gone", state) for state in STATES}
    assert {case[:3] for case in CASES} == possible
    assert {case[3] for case in CASES} == set(KINDS)


@pytest.mark.parametrize(("where", "job", "state", "kind"), CASES)
def test_a_condition_that_is_no_success_says_why(where: str, job: str, state: str, kind: str) -> None:
    found = condition(where, job, state)
    assert found.reason or kind in ("finished", "uploading")
    if kind in ("unknown", "blocked", "rejected"):
        assert found.exit_code == ExitCode.FAILED
    elif kind == "waiting" and job == "gone":
        assert (found.exit_code, found.command) == (ExitCode.WAITING, "hubsync drain /spool")
    else:
        assert found.exit_code == ExitCode.OK
    if job == "gone":
        assert found.until is None  # no retry is scheduled


def test_a_condition_names_what_waits_for_a_response() -> None:
    facts = SpoolFacts(SPOOL, rows=5, is_open=True, committer="working", activity="the Hub has not answered a commit")
    assert str(condition_of(facts)) == "uploading: the Hub has not answered a commit"


def test_rejected_rows_are_counted_with_what_waits() -> None:
    assert condition("both", "commits", "ok").reason == "30 rows in 2 shards; 5 other rows not on the Hub yet"
    assert condition("both", "gone", "ok").command == "hubsync dead-letter list /spool"
