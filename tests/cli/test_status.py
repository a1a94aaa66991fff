"""`hubsync status`: what is shown of spools and their jobs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hubsync import Uploader
from tests.conftest import Commands


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
        done = run("drain", spool, prelude="from hubsync.maintenance import drain; drain._STALLED_S = 0.5")
        assert done.returncode == 1
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
        assert f"nobody (open in process {os.getpid()})" in shown
        assert "hubsync drain" not in shown
    assert json.loads(run("status", spool, "--json").stdout)["writer_pids"] == []


def test_a_missing_spool_is_reported(run: Commands, tmp_path: Path) -> None:
    assert "no spool" in run("status").stdout
    assert "no spool" in run("drain").stderr
    done = run("status", tmp_path / "nowhere")
    assert done.returncode == 1
    assert "no spool exists" in done.stderr
    assert not (tmp_path / "nowhere").exists()
