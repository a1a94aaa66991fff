"""The checkpointer in real distilabel pipelines: the dataset is correct, whatever happens to the run.

The first tests are about the errors of distilabel's own checkpointer, with which each of them would fail.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from tests.conftest import Dataset
from tests.e2e.test_failpoints import shards_ever_changed
from tests.integrations.conftest import JOBS, Job
from tests.zygote import Python

pytestmark = pytest.mark.slow("runs distilabel, in an environment of its own")
Start = Callable[..., Job]
TOKEN = "hf_FsKpYqTzLwXbNcVdRgHmJuEaQiOo012345"


def shards(count: int, config: str = "config-0") -> list[str]:
    return [f"{config}/train-{number:05d}.jsonl" for number in range(count)]


def check(dataset: Dataset, ids: list[int], config: str = "config-0") -> None:
    """Assert that every row is there once and in order, in shards of 50 without a gap, and no shard was changed."""
    paths = [path for path in dataset.paths() if path.startswith(config)]
    assert paths == shards(-(-len(ids) // 50), config)
    assert [row["id"] for row in dataset.rows(config)] == ids
    assert shards_ever_changed(dataset) == []


class Finished(NamedTuple):
    job: Job
    result: dict[str, Any]
    hub: LocalHub
    dataset: Dataset


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, distilabel: Python) -> Iterator[Finished]:
    """A run with a token as argument, unusual rows, and a Hub that fails each commit in another way.

    The job then runs again from the cache, and pushes its result.
    """
    directory = tmp_path_factory.mktemp("finished")
    plan = {
        "rows": 200,
        "kind": "odd",
        "pace_s": 0.01,
        "again": True,
        "push_to": "user/final",
        "load": [["user/rows", "config-0"], ["user/final", "default"]],
    }
    with LocalHub(directory / "hub", users={"user": TOKEN}) as hub:
        hub.faults.add(Fault.status(403, on="commit", repo="user/rows", times=1))
        hub.faults.add(Fault.rate_limit("retry-after", seconds=1, on="commit", repo="user/rows", times=1))
        hub.faults.add(Fault.status(500, on="commit", repo="user/rows", times=1))
        hub.faults.add(Fault.reset(when="after", on="commit", repo="user/rows", times=1))
        environ = {"HF_ENDPOINT": hub.endpoint, "JOB_TOKEN": TOKEN, "DISTILABEL_LOG_LEVEL": "DEBUG"}
        (directory / "job").mkdir()
        job = Job(distilabel, [JOBS / "pipeline.py", json.dumps(plan)], directory / "job", environ)
        try:
            yield Finished(job, job.end(), hub, Dataset(hub))
        finally:
            job.kill()


# What distilabel's own checkpointer gets wrong.


def test_a_shard_is_complete_however_small_its_batch(finished: Finished) -> None:
    assert all(finished.dataset.read(path).endswith(b"}\n") for path in finished.dataset.paths())
    assert [row["text"] for row in finished.dataset.rows()] == ["café"] * 199


def test_a_failed_upload_is_retried_and_leaves_no_gap(finished: Finished) -> None:
    assert [r.status for r in finished.hub.requests("commit") if r.status in (403, 429, 500)] == [403, 429, 500]
    check(finished.dataset, [n for n in range(200) if n != 7])


def test_replicas_and_later_runs_continue_the_numbering(start: Start, dataset: Dataset) -> None:
    for run, plan in enumerate([{"replicas": 2}, {"kind": "other"}], 1):
        assert sorted(start(rows=200, **plan).end()["rows"]) == [["first", n] for n in range(200)]
        assert dataset.ids() == sorted([*range(200)] * run)
        assert dataset.paths() == shards(4 * run)
    assert shards_ever_changed(dataset) == []


def test_each_predecessor_has_its_own_config_and_all_rows_go_on(start: Start, dataset: Dataset) -> None:
    """They are connected in another order than they were created in, which distilabel's cache forgets."""
    load = [["user/rows", "config-0"], ["user/rows", "config-1"]]
    for _ in ("a new run", "the same, from the cache's pipeline.yaml"):
        result = start(rows=120, generate=["first", "second"], load=load).end()
        assert sorted(result["rows"]) == [[name, n] for name in ("first", "second") for n in range(120)]
        for number, name in enumerate(("first", "second")):
            check(dataset, list(range(120)), f"config-{number}")
            assert result[f"user/rows config-{number}"] == list(range(120))
            assert {row["by"] for row in dataset.rows(f"config-{number}")} == {name}


def test_a_transform_reaches_the_steps_process_from_the_cache_too(start: Start, dataset: Dataset) -> None:
    load = [["user/rows", "config-0"]]
    for _ in ("a new run", "the same, from the cache's pipeline.yaml"):
        result = start(rows=120, transform=True, load=load).end()
        assert sorted(result["rows"]) == [["first", n] for n in range(120)]
        assert dataset.ids() == list(range(0, 120, 2))
        assert {row["text"] for row in dataset.rows()} == {"*"}


def test_a_value_without_json_form_costs_only_its_own_row(finished: Finished) -> None:
    assert finished.dataset.rows()[0]["when"] == "2026-01-01T12:00:00Z"
    assert finished.result["rows"] == [["first", n] for n in range(200)]  # no row is missing downstream
    assert re.search(r"ERROR +Not uploaded .*field 'score': inf has no JSON form", finished.job.log)
    assert re.search(
        r"ERROR +Checkpoint incomplete: 199 rows accepted. Accepted rows are in user/rows", finished.job.log
    )
    assert re.search(r"ERROR +1 row never uploaded: .*'score'", finished.job.log)


def test_the_token_is_written_nowhere(finished: Finished) -> None:
    written = [file for file in finished.job.directory.rglob("*") if file.is_file()]
    assert {"pipeline.yaml", "pipeline.log", "batch_manager.json", "output"} <= {file.name for file in written}
    assert [file for file in written if TOKEN.encode() in file.read_bytes()] == []
    for repo in ("user/rows", "user/final"):
        dataset = Dataset(finished.hub, repo)
        files = {path: dataset.read(path) for path in dataset.paths("")}
        assert [path for path, content in files.items() if TOKEN.encode() in content] == []
    assert "pipeline.yaml" in files


def test_the_run_does_not_wait_for_the_hub(hub: LocalHub, start: Start, dataset: Dataset) -> None:
    """The Hub is down when the run starts, and returns when everything has been generated."""
    hub.stop()
    job = start(rows=400)
    job.until(lambda: job.accepted() == 400)
    hub.start()
    assert len(job.end()["rows"]) == 400
    check(dataset, list(range(400)))
    assert "Checkpoint complete: 400 rows accepted" in job.log


def test_the_dataset_loads_by_its_card(finished: Finished) -> None:
    assert finished.result["user/rows config-0"] == [n for n in range(200) if n != 7]


# How a run ends.


def test_ctrl_c_keeps_generated_rows_and_the_next_run_adds_the_rest(start: Start, dataset: Dataset) -> None:
    job = start(rows=600, pace_s=0.005)
    job.until(lambda: job.accepted() >= 100)
    job.signal(signal.SIGINT)
    kept = len(job.end()["rows"])
    assert 100 <= kept < 600
    check(dataset, list(range(kept)))  # it drained
    start(rows=600).end()
    check(dataset, list(range(600)))


def test_a_killed_run_is_repeated_and_adds_the_rest(hub: LocalHub, start: Start, dataset: Dataset) -> None:
    """It is killed amid uploads whose responses are lost."""
    hub.faults.add(Fault.reset(when="after", on="commit", probability=0.5))
    job = start(rows=600, pace_s=0.005)
    job.until(lambda: job.accepted() >= 200 and hub.requests("commit"))
    job.signal(signal.SIGKILL)
    job.wait()
    assert 200 <= job.accepted() < 600
    start(rows=600).end()
    check(dataset, list(range(600)))


def test_a_named_run_resumes_by_count_if_its_rows_differ(start: Start, dataset: Dataset) -> None:
    plan = {"rows": 300, "kind": "other", "checkpoint": {"run": "monday"}}
    job = start(**plan, pace_s=0.005)
    job.until(lambda: job.accepted() >= 100)
    job.signal(signal.SIGKILL)
    job.wait()
    kept = job.accepted()
    assert len(start(**plan).end()["rows"]) == 300
    check(dataset, list(range(300)))
    assert f"{300 - kept} rows accepted, {kept} skipped because an earlier run has uploaded them" in job.log


def test_a_finished_run_comes_from_the_cache_and_adds_nothing(finished: Finished) -> None:
    assert finished.result["again"] == 200
    assert "Returning `Distiset` from cache" in finished.job.log
    assert len(finished.job.made()) == 200
    assert finished.result["given"] == [77, 88]  # the user's settings, not the cache's


def test_the_distiset_can_be_pushed(finished: Finished) -> None:
    assert finished.result["user/final default"] == list(range(200))


def test_an_absent_hub_delays_the_end_no_longer_than_drain_s(
    hub: LocalHub, start: Start, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.stop()
    job = start(rows=200, checkpoint={"drain_s": 0.5})
    assert len(job.end()["rows"]) == 200
    assert re.search(r"ERROR +Checkpoint incomplete: 200 rows accepted", job.log)
    assert re.search(r"ERROR +Not everything is in user/rows: 200 rows .* run: hubsync drain \S+/job/spool", job.log)
    hub.start()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    drain(job.directory / "spool", timeout=60)
    check(dataset, list(range(200)))


def test_a_token_that_can_not_write_ends_the_run_before_it_starts(hub: LocalHub, start: Start) -> None:
    hub.add_user("user", TOKEN, role="read")
    job = start(rows=200, environ={"JOB_TOKEN": TOKEN})
    assert job.wait() != 0
    assert re.search(r"ERROR .*Failed to load step 'checkpoint': .*403, You don't have the rights", job.log), job.log
    assert job.made() == []
    assert TOKEN not in job.log + job.output  # whose traceback shows the variables of every frame


def test_after_a_routing_function_all_rows_go_to_one_config(start: Start, dataset: Dataset) -> None:
    result = start(rows=300, generate=["first", "second"], routed=True).end()
    assert sorted(n for _, n in result["rows"]) == list(range(300))
    assert sorted(row["id"] for row in dataset.rows()) == list(range(300))
    assert all(path.startswith("config-0/") for path in dataset.paths())


def test_a_dry_run_checkpoints_nothing(start: Start, dataset: Dataset) -> None:
    job = start(rows=100, dry_run=True)
    job.end()
    assert "Dry run: nothing was checkpointed" in job.log
    check(dataset, list(range(100)))


def test_the_pages_pipeline_works_when_pasted(hub: LocalHub, tmp_path: Path, distilabel: Python) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "pipelines.md").read_text()
    (code,) = [s for s in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "distilabel" in s]
    (tmp_path / "job.py").write_text(code)
    job = Job(distilabel, ["job.py"], tmp_path, {**hub.environ(), "DISTILABEL_CACHE_DIR": str(tmp_path / "cache")})
    try:
        assert job.wait() == 0, job.output
    finally:
        job.kill()
    assert Dataset(hub, "user/rollouts").paths() == shards(4)
    assert Dataset(hub, "user/final").paths(".parquet") != []
