"""A short run of the chaos benchmark with one seed, and a test that its judge finds every kind of error."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from benchmarks.chaos.producers import REPO, Ledger, row
from benchmarks.chaos.schedule import fault_periods, kills
from hubsync.localhub import LocalHub

_ROOT = Path(__file__).parents[2]


@pytest.mark.slow("runs the chaos benchmark")
def test_producers_that_are_killed_under_faults_upload_every_row_once(tmp_path: Path) -> None:
    keep, out = tmp_path / "kept", tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "chaos", "--kills", "5", "--seed", "7", "--keep", keep, "--out", out],
        cwd=_ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (figure,) = json.loads((out / "chaos.json").read_text())["figures"]
    wrong = ("lost", "twice", "damaged", "overwritten", "other")
    assert {name: figure[name] for name in wrong} == dict.fromkeys(wrong, 0)
    assert figure["kills"] == 5
    assert figure["faults"] > 0
    assert figure["commits"] > 0
    assert figure["rows"] <= figure["more"]["rows on the Hub"]
    assert 0 < figure["more"]["large shards"] < figure["more"]["shards"]
    assert (out / "chaos.md").read_text().count("| 7 | 5 |") == 1


def test_a_seed_always_draws_the_same_kills_and_fault_periods() -> None:
    assert list(islice(kills(5), 200)) == list(islice(kills(5), 200))
    assert list(islice(fault_periods(5), 200)) == list(islice(fault_periods(5), 200))
    assert list(islice(fault_periods(5), 200)) != list(islice(fault_periods(6), 200))


@pytest.mark.slow("runs the judge in its own process")
def test_the_judge_names_rows_lost_duplicated_damaged_never_put_or_overwritten(hub: LocalHub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for folder in ("ledgers", "spool/segments", "spool/dead-letter"):
        (run / folder).mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"seed": 3, "sources": ["p0"]}))
    ledger = Ledger(run, "p0")
    ledger.open()
    ledger.record("try", range(6))
    ledger.record("got", range(5))
    (run / "spool" / "segments" / "w-00000001.jsonl").write_text("left")
    catalogue = sqlite3.connect(run / "spool" / "catalogue.sqlite")
    catalogue.executescript(
        "CREATE TABLE plans (id); INSERT INTO plans VALUES (8);"
        "CREATE TABLE segments (id, state); INSERT INTO segments VALUES (1, 'dead'), (2, 'committed');"
    )
    catalogue.close()

    def lines(*rows: object) -> bytes:
        return b"".join(json.dumps(item).encode() + b"\n" for item in rows)

    def mark(rows: int, offset: int) -> bytes:
        return json.dumps({"writer": "w", "rows": rows, "offsets": {"p0": offset}}).encode()

    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.jsonl\n---\n"
    rows = {n: row(3, "p0", n) for n in range(6)}
    damaged = {**rows[1], "text": "other"}
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO, repo_type="dataset")
    for title, files in (
        (
            "one",
            {"README.md": card, "data/train-w-00000.jsonl": lines(rows[0], damaged), ".hubsync/w.json": mark(2, 3)},
        ),
        ("two", {"data/train-w-00001.jsonl": lines(rows[0], rows[3]), "hidden/train-w-00000.jsonl": lines(rows[5])}),
        (
            "three",
            {"data/train-w-00001.jsonl": lines(rows[0], rows[2], row(3, "p0", 9)), ".hubsync/w.json": mark(1, 3)},
        ),
    ):
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        api.create_commit(REPO, operations, commit_message=title, repo_type="dataset")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos.judge", run],
        cwd=_ROOT, env={**os.environ, **hub.environ()}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    verdict = json.loads(done.stdout)
    assert verdict["lost"] == ["p0-3", "p0-4"]
    assert verdict["twice"] == ["p0-0 in data/train-w-00000.jsonl and data/train-w-00001.jsonl"]
    assert verdict["damaged"] == ["p0-1 in data/train-w-00000.jsonl"]
    assert verdict["never_put"] == ["p0-9 in data/train-w-00001.jsonl"]
    assert [text.split(" in ")[0] for text in verdict["overwritten"]] == ["data/train-w-00001.jsonl changed"]
    assert any("went back" in text for text in verdict["watermarks"])
    assert any("rows of" in text for text in verdict["watermarks"])
    assert any("came after" in text for text in verdict["watermarks"])
    assert any("does not list" in text for text in verdict["hidden"])
    assert verdict["left"] == ["segments/w-00000001.jsonl", "plan 8", "segment 1 is dead"]
