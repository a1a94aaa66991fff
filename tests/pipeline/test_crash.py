"""Pipelines that are killed or terminated and run again: every row is in the checkpoint once."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from tests.conftest import Dataset
from tests.waiting import until
from tests.zygote import Program, Python

pytestmark = pytest.mark.slow("runs pipelines in processes of their own and kills them")

SCRIPT = """
import json, os, sys, time
from hubsync import CommitPolicy, RetryPolicy
from hubsync.pipeline import HuggingFaceHubCheckpointer, Pipeline, Step, StepInput, StepOutput

made = os.open("made", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

class Generate(Step):
    def process(self, *inputs: StepInput) -> "StepOutput":
        for row in inputs[0]:
            time.sleep(0.001)
            os.write(made, b"%d\\n" % row["id"])
        yield [{"id": row["id"], "text": "x" * 100} for row in inputs[0]]

if __name__ == "__main__":
    quick = {"commit": CommitPolicy(per_hour=100_000), "retry": RetryPolicy(initial_s=0.01, max_s=0.1)}
    with Pipeline(name="crashing") as pipeline:
        Generate(input_batch_size=60) >> HuggingFaceHubCheckpointer(
            repo_id="user/rows", input_batch_size=50, spool="spool", **quick
        )
    distiset = pipeline.run(dataset=[{"id": n} for n in range(1_000)], use_cache=True)
    print(json.dumps(distiset["default"]["train"]["id"][:]))
"""


Start = Callable[..., Program]


@pytest.fixture
def start(python_with_datasets: Python) -> Iterator[Start]:
    """Start the script."""
    with ExitStack() as running:

        def start(script: Path, *args: str) -> Program:
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            return running.enter_context(python_with_datasets.start(script, *args, cwd=script.parent, **pipes))

        yield start


@pytest.fixture
def script(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in hub.environ().items():
        monkeypatch.setenv(name, value)
    (tmp_path / "job.py").write_text(SCRIPT)
    return tmp_path / "job.py"


def made(script: Path) -> list[int]:
    file = script.parent / "made"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def until_made(script: Path, count: int) -> None:
    until(lambda: len(made(script)) >= count)


def accepted(script: Path) -> int:
    """Return the number of rows that the checkpointer has accepted."""
    import sqlite3

    with sqlite3.connect(script.parent / "spool" / "catalogue.sqlite") as db:
        return int(db.execute("SELECT coalesce(sum(rows), 0) FROM segments").fetchone()[0])


def finish(start: Start, script: Path, dataset: Dataset) -> None:
    process = start(script)
    out, said = process.communicate()
    assert process.returncode == 0, said
    assert json.loads(out.splitlines()[-1]) == list(range(1_000))
    assert [row["id"] for row in dataset.rows()] == list(range(1_000))
    assert [dataset.read(path).count(b"\n") for path in dataset.paths()] == [50] * 20


def test_a_killed_run_resumes_without_repeating_checkpointed_rows(
    hub: LocalHub, start: Start, script: Path, dataset: Dataset
) -> None:
    hub.faults.add(Fault.reset(when="after", on="commit", probability=0.3))
    safe = before = 0
    for count in (150, 450, 700):
        process = start(script)
        until_made(script, before + count - safe)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        now = made(script)
        assert min(now[before:]) == safe  # checkpointed rows are not generated again
        safe, before = accepted(script), len(now)
    hub.faults.clear()
    finish(start, script, dataset)
    assert min(made(script)[before:]) == safe


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [(signal.SIGINT, -signal.SIGINT, "KeyboardInterrupt"), (signal.SIGTERM, 143, "SIGTERM")],
)
def test_a_signal_drains_and_the_next_run_resumes(
    start: Start, script: Path, dataset: Dataset, number: int, code: int, words: str
) -> None:
    process = start(script)
    until_made(script, 300)
    process.send_signal(number)
    _, said = process.communicate()
    assert process.returncode == code
    assert words in said
    assert len(dataset.rows()) >= 200  # it drained
    finish(start, script, dataset)


def test_a_finished_cached_run_computes_nothing_again(start: Start, script: Path, dataset: Dataset) -> None:
    finish(start, script, dataset)
    before = len(made(script))
    finish(start, script, dataset)
    assert len(made(script)) == before


def test_a_lost_machine_is_replaced_from_the_dataset(
    start: Start, script: Path, dataset: Dataset, tmp_path: Path
) -> None:
    import shutil

    process = start(script)
    until_made(script, 400)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    drain(tmp_path / "spool", timeout=60)
    shutil.rmtree(tmp_path / "spool")
    shutil.rmtree(tmp_path / "state")
    finish(start, script, dataset)


def test_a_checkpoint_after_several_streams_resumes_at_any_speed(start: Start, script: Path, dataset: Dataset) -> None:
    script.write_text(
        """
import os, sys, time
from hubsync import CommitPolicy, RetryPolicy
from hubsync.pipeline import HuggingFaceHubCheckpointer, Pipeline, Step

class Make(Step):
    def process(self, *inputs):
        time.sleep(0.02 if self.name == sys.argv[1] else 0.001)
        yield [{"id": 2 * row["id"] + (self.name == "b")} for row in inputs[0]]

class Die(Step):
    seen = 0
    def process(self, *inputs):
        self.seen += len(inputs[0])
        if sys.argv[1] == "a" and self.seen > 200:
            time.sleep(0.3)
            os._exit(9)
        yield inputs[0]

quick = {"commit": CommitPolicy(per_hour=100_000), "retry": RetryPolicy(initial_s=0.01, max_s=0.1)}
sizes = {"input_batch_size": 20}
with Pipeline(name="two-streams") as pipeline:
    each, rows = (HuggingFaceHubCheckpointer(repo_id=f"user/{name}", **quick, **sizes) for name in ("each", "rows"))
    [Make(name=name, **sizes) for name in "ab"] >> each >> Die(**sizes) >> rows
distiset = pipeline.run(dataset=[{"id": n} for n in range(300)], use_cache=True)
assert sorted(distiset["default"]["train"]["id"]) == list(range(600))
"""
    )
    for slow, ends in (("a", 9), ("b", 0)):
        process = start(script, slow)
        _, said = process.communicate()
        assert process.returncode == ends, said
    assert dataset.ids() == list(range(600))
