"""`hubsync pipe`: what a shell sees of an upload."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hubsync.localhub import LocalHub
from tests.cli.lines import jsonl
from tests.conftest import Commands, Dataset
from tests.waiting import until


def test_every_line_is_uploaded(run: Commands, dataset: Dataset) -> None:
    done = run("pipe", "user/rows", stdin=jsonl(0, 2_500).rstrip())
    assert (done.returncode, done.stderr) == (0, "2,500 rows are on the Hub in user/rows.\n")
    assert dataset.ids() == list(range(2_500))


def test_a_bad_line_is_reported_and_the_lines_before_it_are_uploaded(run: Commands, dataset: Dataset) -> None:
    done = run("pipe", "user/rows", stdin=jsonl(0, 3) + "[1]\n" + jsonl(3, 5))
    assert done.returncode == 1
    assert "line 4: not a JSON object" in done.stderr
    assert "lines before it are on the Hub in user/rows. Run again from line 4 on" in done.stderr
    assert "--bad-lines set-aside" in done.stderr
    assert "Traceback" not in done.stderr
    assert dataset.ids() == [0, 1, 2]


def test_bad_lines_can_be_set_aside(run: Commands, dataset: Dataset, tmp_path: Path) -> None:
    aside = tmp_path / "bad.txt"
    stdin = jsonl(0, 2) + '{"id": \n\n{"a": "\\ud83d"}\n' + jsonl(2, 3)
    done = run("pipe", "user/rows", "--bad-lines", "set-aside", "--aside", aside, "--json", stdin=stdin)
    assert json.loads(done.stdout) == {"repo": "user/rows", "lines": 6, "rows": 3, "skipped": 0, "set_aside": 2}
    assert aside.read_text() == '3\t{"id": \n5\t{"a": "\\ud83d"}\n'
    assert dataset.ids() == [0, 1, 2]


def test_with_a_source_the_next_run_skips_uploaded_lines(run: Commands, dataset: Dataset) -> None:
    run("pipe", "user/rows", "--source", "log", stdin=jsonl(0, 1_500))
    done = run("pipe", "user/rows", "--source", "log", stdin=jsonl(0, 2_100))
    assert "600 rows are on the Hub in user/rows; 1,500 lines were uploaded before." in done.stderr
    assert dataset.ids() == list(range(2_100))


def test_the_message_has_a_singular(run: Commands) -> None:
    assert run("pipe", "user/rows", "--source", "a", stdin=jsonl(0, 1)).stderr == "1 row is on the Hub in user/rows.\n"
    again = run("pipe", "user/rows", "--source", "a", stdin=jsonl(0, 1))
    assert again.stderr == "0 rows are on the Hub in user/rows; 1 line was uploaded before.\n"


@pytest.mark.slow("starts an interpreter")
def test_a_full_standard_error_does_not_fail_the_upload(hub: LocalHub, dataset: Dataset) -> None:
    command = f"{sys.executable} -m hubsync pipe user/rows 2>/dev/full"
    done = subprocess.run(
        ["bash", "-c", command], input=jsonl(0, 3), env={**os.environ, **hub.environ()}, text=True, check=False
    )
    assert done.returncode == 0
    assert dataset.ids() == [0, 1, 2]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_stream_after_uploading_what_was_read(
    run: Commands, dataset: Dataset, tmp_path: Path, number: signal.Signals
) -> None:
    segments = tmp_path / "spool" / "segments"
    with run.start("pipe", "user/rows", "--spool", tmp_path / "spool") as process:
        assert process.stdin is not None
        process.stdin.write(jsonl(0, 7))
        process.stdin.flush()
        until(lambda: segments.exists() and list(segments.iterdir()))
        process.stdin.write(jsonl(7, 9))
        process.stdin.flush()
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == (143 if number is signal.SIGTERM else 130), said
    assert "Aborted" not in said
    assert set(range(7)) <= set(dataset.ids()) <= set(range(9))


def test_another_stream_with_the_same_source_is_refused(run: Commands, dataset: Dataset) -> None:
    run("pipe", "user/rows", "--source", "log", stdin=jsonl(0, 3))
    done = run("pipe", "user/rows", "--source", "log", stdin=jsonl(10, 16))
    assert done.returncode == 1
    assert "offset 1 of source 'log' is no replay: an earlier run has put other rows with it" in done.stderr
    assert dataset.ids() == [0, 1, 2]
