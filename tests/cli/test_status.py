"""`hubsync status`: what is shown of spools and their jobs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import BlockedError, ShardsRefused, Uploader
from hubsync.dashboard.snapshot import snapshot
from hubsync.localhub import Fault, LocalHub
from tests.cli.lines import jsonl
from tests.conftest import Commands


@pytest.mark.slow("starts several processes")
def test_a_spool_is_shown_and_not_drained_while_a_job_has_it_open(
    run: Commands, uploader: Callable[..., Uploader], tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    with uploader() as up:
        up.put([{"id": 1}])
        fact = json.loads(run("status", spool, "--json").stdout)
        assert (fact["repo"], fact["rows_waiting"], fact["shards"]["open"]) == ("user/rows", 1, 1)
        assert fact["oldest_age_s"] >= 0
        plain = run("status", spool).stdout
        assert f"process {os.getpid()}" in plain
        done = run.after("from hubsync.maintenance import drain; drain._STALLED_S = 0.5", "drain", spool)
        assert done.returncode == 3
        assert f"Process {os.getpid()} commits" in done.stderr
    assert "nothing waits" in run("status", spool).stdout


def test_an_offline_job_is_shown_as_a_writer(run: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spool = tmp_path / "spool"
    with Uploader("user/rows", spool=spool) as up:
        up.put([{"id": 1}])
        fact = json.loads(run("status", spool, "--json").stdout)
        assert (fact["committer_pid"], fact["writer_pids"]) == (None, [os.getpid()])
        shown = run("status", spool).stdout
        assert f"no process; open in process {os.getpid()}" in shown
        assert "hubsync drain" not in shown
    assert json.loads(run("status", spool, "--json").stdout)["writer_pids"] == []


def test_rows_that_were_all_rejected_are_no_success(
    run: Commands, uploader: Callable[..., Uploader], hub: LocalHub, tmp_path: Path
) -> None:
    hub.faults.add(Fault.status(422, on="commit"))
    with pytest.raises(ShardsRefused), uploader() as up:
        up.put([{"id": n} for n in range(30)])
    shown = run("status", tmp_path / "spool")
    assert shown.returncode == 1
    assert "rejected: 30 rows in 1 shard" in shown.stdout
    assert f"hubsync dead-letter list {tmp_path / 'spool'}" in shown.stdout
    fact = json.loads(run("status", tmp_path / "spool", "--json").stdout)
    assert (fact["condition"], fact["why"]) == ("rejected", "30 rows in 1 shard")


def test_a_job_that_was_refused_before_its_first_row_is_shown_as_blocked(
    run: Commands, uploader: Callable[..., Uploader], hub: LocalHub, tmp_path: Path
) -> None:
    hub.faults.add(Fault.status(403, body='{"error": "this token may not write"}'))
    with pytest.raises(BlockedError), uploader() as up:
        up.put([{"id": 1}])
    shown = run("status", tmp_path / "spool")
    assert shown.returncode == 1
    assert "blocked: " in shown.stdout
    assert "this token may not write" in shown.stdout
    seen = snapshot(tmp_path / "spool", 10)
    assert (seen.condition.kind, seen.stored.changes[-1].kind) == ("blocked", "blocked")
    hub.faults.clear()
    with uploader() as up:
        up.put([{"id": 1}])
    assert run("status", tmp_path / "spool").returncode == 0


@pytest.mark.slow("starts several processes")
def test_the_table_has_problems_first_and_fits_a_terminal(
    run: Commands, uploader: Callable[..., Uploader], hub: LocalHub
) -> None:
    for n in range(5):
        uploader(f"user/trial-{n}", spool=None).open().close()
    run("pipe", "user/" + "a-dataset-with-a-long-name" * 3, stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    hub.faults.add(Fault.status(422, body='{"error": "%s"}' % ("no such luck. " * 40), on="commit"))
    with pytest.raises(ShardsRefused), uploader("user/refused", spool=None) as up:
        up.put([{"id": 1}])
    shown = run("status")
    assert shown.returncode == 1
    table, _, below = shown.stdout.partition("Problems:")
    todo = below.partition("To do:")[2]
    assert max(map(len, table.splitlines())) <= 80
    assert table.index("rejected") < table.index("waiting")
    assert "5 other spools are finished" in todo
    assert shown.stdout.count("trial") == 0
    hub.faults.clear()
    commands = [line.strip() for line in todo.splitlines() if line.startswith("  hubsync")]
    assert [command.split()[1] for command in commands] == ["dead-letter", "drain"]
    assert run(*commands[1].split()[1:]).returncode == 0
    facts = [json.loads(line) for line in run("status", "--json").stdout.splitlines()]
    assert sorted(fact["condition"] for fact in facts) == ["finished"] * 6 + ["rejected"]


def test_rows_without_a_job_have_an_exit_code_of_their_own(run: Commands) -> None:
    run("pipe", "user/rows", stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    shown = run("status")
    assert (shown.returncode, "no job has this spool open" in shown.stdout) == (3, True)
    run("drain")
    assert run("status").returncode == 0


def test_a_missing_spool_is_reported(run: Commands, tmp_path: Path) -> None:
    assert "no spool" in run("status").stdout
    assert "no spool" in run("drain").stderr
    done = run("status", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "no spool exists" in done.stderr
    assert not (tmp_path / "nowhere").exists()


def test_a_long_reason_is_one_line_of_the_table_and_complete_below_it(
    run: Commands, uploader: Callable[..., Uploader], hub: LocalHub
) -> None:
    why = "the organization " + "has an administrator who must first approve it, " * 4 + "and then you."
    hub.faults.add(Fault.status(403, body=json.dumps({"error": why})))
    with pytest.raises(BlockedError), uploader("user/refused", spool=None):
        pass
    shown = run("status").stdout
    table, _, problems = shown.partition("Problems:\n")
    assert max(map(len, table.splitlines())) <= 80
    assert len([line for line in table.splitlines() if line.strip()]) == 2
    assert re.search(f"^  /.*user--refused-.*: blocked: .*{why[:-1]}", problems, re.MULTILINE)
