"""`hubsync prune`: empty spools are removed, and nothing else."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from hubsync import ShardsRefused, Uploader
from hubsync.localhub import Fault, LocalHub
from hubsync.spool.database import VERSION
from tests.cli.lines import jsonl
from tests.conftest import Commands, Dataset


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "state"


def actions(run: Commands, *args: object) -> dict[str, str]:
    """Return what becomes of each repo's spool."""
    facts = [json.loads(line) for line in run("prune", "--json", *args).stdout.splitlines()]
    return {Path(fact["spool"]).name.split("--")[1].rpartition("-")[0]: fact["action"] for fact in facts}


@pytest.mark.slow("starts several processes")
def test_only_empty_spools_are_removed_and_only_if_asked(
    run: Commands, uploader: Callable[..., Uploader], hub: LocalHub, home: Path
) -> None:
    for repo in ("user/empty", "user/unused"):
        with uploader(repo, spool=None) as up:
            up.put([{"id": 1}] if repo == "user/empty" else [])
    with uploader("user/keyed", spool=None) as up:
        up.put([{"id": 1}], key="batch 1")
    run("pipe", "user/waiting", stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    fault = hub.faults.add(Fault.status(422, on="commit"))
    with pytest.raises(ShardsRefused), uploader("user/refused", spool=None) as up:
        up.put([{"id": 1}])
    hub.faults.remove(fault)
    for repo in ("user/corrupt", "user/newer", "user/aside", "user/foreign"):
        with uploader(repo, spool=None) as up:
            spool = up.spool
        if repo == "user/corrupt":
            (spool / "catalogue.sqlite").write_bytes(b"no database " * 1000)
        elif repo == "user/newer":
            with closing(sqlite3.connect(spool / "catalogue.sqlite", isolation_level=None)) as db:
                db.execute(f"PRAGMA user_version = {VERSION + 1}")
        else:
            (spool / ("dead-letter/lines.txt" if repo == "user/aside" else "notes.txt")).write_text("mine")
    kept = dict.fromkeys(("keyed", "waiting", "refused", "corrupt", "newer", "aside", "foreign", "open"), "kept")
    with uploader("user/open", spool=None):
        before = sorted(home.iterdir())
        assert actions(run) == {**kept, "empty": "would be removed", "unused": "would be removed"}
        assert sorted(home.iterdir()) == before
        headings = [line for line in run("prune").stdout.splitlines() if not line.startswith(" ")]
        assert headings == ["Kept:", "Would be removed:"]  # last is what --yes does
        assert actions(run, "--yes") == {**kept, "empty": "removed", "unused": "removed"}
    assert len(list(home.iterdir())) == len(kept)
    shown = run("prune")
    assert shown.returncode == 0
    assert "holds 3 rows not on the Hub" in shown.stdout
    assert "holds 1 rejected row" in shown.stdout
    assert actions(run, "--yes", "--keys") == {**kept, "open": "removed", "keyed": "removed"}


def test_a_spool_that_was_used_lately_is_kept(run: Commands, uploader: Callable[..., Uploader]) -> None:
    for repo in ("user/new", "user/old"):
        with uploader(repo, spool=None) as up:
            spool = up.spool
    for path in [spool, *spool.rglob("*")]:
        os.utime(path, (0, os.stat(path).st_mtime - 8 * 86400))
    assert actions(run, "--older-than", "7d", "--yes") == {"new": "kept", "old": "removed"}
    assert run("prune", "--older-than", "soon").returncode == 2


def test_the_rows_of_a_spool_whose_repo_is_gone_can_be_exported_and_discarded(
    run: Commands, hub: LocalHub, tmp_path: Path
) -> None:
    spool, out = tmp_path / "spool", tmp_path / "rows.jsonl"
    run("pipe", "other/forbidden", "--spool", spool, stdin=jsonl(0, 3), HF_HUB_OFFLINE="1")
    assert run("drain", spool).returncode == 1
    kept = run("prune", spool, "--yes")
    assert (kept.returncode, "holds 3 rows not on the Hub" in kept.stdout) == (1, True)
    asked = run("prune", spool, "--discard")
    assert "would remove" in asked.stderr
    assert "3 rows that are not on the Hub" in asked.stderr
    assert run("prune", spool, "--export", out).returncode == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == [{"id": n} for n in range(3)]
    assert run("prune", spool, "--export", out).returncode == 1  # it exists
    done = run("prune", spool, "--discard", "--yes")
    assert (done.returncode, "3 rows" in done.stderr, spool.exists()) == (0, True, False)


def test_a_spool_that_a_job_has_open_is_never_discarded(
    run: Commands, uploader: Callable[..., Uploader], dataset: Dataset, tmp_path: Path
) -> None:
    with uploader() as up:
        up.put([{"id": 1}])
        for args in (["--discard", "--yes"], ["--export", tmp_path / "out"]):
            done = run("prune", tmp_path / "spool", *args)
            assert (done.returncode, f"process {os.getpid()} has" in done.stderr) == (1, True)
    assert dataset.ids() == [1]
