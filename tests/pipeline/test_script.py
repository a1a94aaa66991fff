"""A user's script, unchanged: it runs alone, killed and repeated, and against a Hub that fails now and then.

The tests provide only the environment.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from hubsync.localhub import Fault, LocalHub
from tests.conftest import Dataset
from tests.zygote import Python

pytestmark = pytest.mark.slow("runs a pipeline in processes of its own")

SCRIPT = """\
from datasets import Dataset
from hubsync.pipeline import HuggingFaceHubCheckpointer, Pipeline, Step, StepInput, StepOutput

dataset = Dataset.from_dict({"a": [1, 2, 3, 4] * 50, "b": [5, 6, 7, 8] * 50})

class DoNothing(Step):
    def process(self, *inputs: StepInput) -> "StepOutput":
        for input in inputs:
            yield input

with Pipeline(name="pipeline-with-checkpoints") as pipeline:
    text_generation = DoNothing(input_batch_size=60)
    checkpoint = HuggingFaceHubCheckpointer(repo_id="username/streaming_test_1", private=True, input_batch_size=50)
    text_generation >> checkpoint

if __name__ == "__main__":
    distiset = pipeline.run(dataset=dataset, use_cache=False)
    distiset.push_to_hub(repo_id="username/streaming_test")
"""

READ_BACK = """\
from huggingface_hub import HfFileSystem, hf_hub_download
fs = HfFileSystem()
filenames = fs.glob("datasets/username/streaming_test_1/**/*.jsonl")
filename = hf_hub_download(
    repo_id="username/streaming_test_1", filename="config-0/train-00000.jsonl", repo_type="dataset"
)

import json
from datasets import load_dataset
print(json.dumps([
    filenames,
    len(open(filename).readlines()),
    [load_dataset("username/streaming_test_1", "config-0")["train"][c][:] for c in "ab"],
    [load_dataset("username/streaming_test")["train"][c][:] for c in "ab"],
]))
"""

ROWS = [{"a": 1 + n % 4, "b": 5 + n % 4} for n in range(200)]


@pytest.fixture
def environ(hub: LocalHub, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "script.py").write_text(SCRIPT)
    token = hub.add_user("username")
    return {**os.environ, **hub.environ(), "HF_TOKEN": token, "HF_HOME": str(tmp_path / "hf-home")}


def run(python: Python, tmp_path: Path, environ: dict[str, str]) -> None:
    done = python.run("script.py", cwd=tmp_path, env=environ)
    assert done.returncode == 0, done.stderr


def accepted(tmp_path: Path) -> int:
    """Return the number of rows in the spool and on the Hub."""
    for file in (tmp_path / "state").glob("*/catalogue.sqlite"):
        with suppress(sqlite3.OperationalError), sqlite3.connect(file) as db:  # it is being created
            return int(db.execute("SELECT coalesce(sum(rows), 0) FROM segments").fetchone()[0])
    return 0


def checkpoint(hub: LocalHub, environ: dict[str, str]) -> Dataset:
    return Dataset(hub, "username/streaming_test_1", environ["HF_TOKEN"])


def test_the_script_uploads_the_expected_shards(
    hub: LocalHub, tmp_path: Path, environ: dict[str, str], python_with_datasets: Python
) -> None:
    run(python_with_datasets, tmp_path, environ)
    done = python_with_datasets.run("-c", READ_BACK, env=environ, cwd=tmp_path)
    names, lines, checkpointed, pushed = json.loads(done.stdout)
    columns = [[row[c] for row in ROWS] for c in "ab"]
    assert names == [f"datasets/username/streaming_test_1/config-0/train-{n:05d}.jsonl" for n in range(4)]
    assert (lines, checkpointed, pushed) == (50, columns, columns)
    api = checkpoint(hub, environ).api
    assert api.repo_info("username/streaming_test_1", repo_type="dataset").private
    assert len(checkpoint(hub, environ).commits()) <= 3  # several shards per commit


def test_a_script_killed_several_times_uploads_every_row_once(
    hub: LocalHub, tmp_path: Path, environ: dict[str, str], python_with_datasets: Python
) -> None:
    rng = random.Random(1)
    # The script's last line is datasets' own push, which has no retries: the faults are the checkpointer's alone.
    repo = "username/streaming_test_1"
    hub.faults.add(Fault.reset(when="after", on="commit", repo=repo, probability=0.3))
    hub.faults.add(Fault.latency(0.5, on="commit", repo=repo))
    before = kills = 0
    while True:
        with python_with_datasets.start("script.py", cwd=tmp_path, env=environ, stderr=subprocess.PIPE) as process:
            while kills < 5 and process.poll() is None and accepted(tmp_path) <= before:
                time.sleep(0.005)
            if kills < 5:
                time.sleep(rng.random() * 0.5)
                process.kill()
            _, said = process.communicate()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, said
        kills, before = kills + 1, min(150, accepted(tmp_path))
    assert kills
    dataset = checkpoint(hub, environ)
    assert dataset.rows() == ROWS
    assert dataset.paths() == [f"config-0/train-{n:05d}.jsonl" for n in range(4)]


def test_a_second_run_of_the_script_adds_its_rows(
    hub: LocalHub, tmp_path: Path, environ: dict[str, str], python_with_datasets: Python
) -> None:
    run(python_with_datasets, tmp_path, environ)
    run(python_with_datasets, tmp_path, environ)
    assert checkpoint(hub, environ).rows() == [*ROWS, *ROWS]
