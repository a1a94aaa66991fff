"""The checkpointer without a pipeline, called like distilabel does; the scenes are in jobs/alone.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from tests.conftest import Dataset

pytestmark = pytest.mark.slow("imports distilabel, in an environment of its own")
Alone = Callable[..., Any]
TOKEN = "hf_a_token_of_the_usual_length_0123456"


def errors(scene: dict[str, Any]) -> list[str]:
    return [line.removeprefix("ERROR ") for line in scene["log"] if line.startswith("ERROR ")]


def test_several_inputs_are_passed_on_in_one_list(alone: Alone, dataset: Dataset) -> None:
    assert alone("two_predecessors")["result"] == 80
    assert [row["id"] for row in dataset.rows("config-0")] == list(range(50))
    assert [row["id"] for row in dataset.rows("config-1")] == list(range(50, 80))


def test_a_revoked_token_is_reported_at_the_end_with_the_remedy(
    hub: LocalHub, alone: Alone, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.add(Fault.status(403, on="commit"))
    scene = alone("lives")
    assert scene["result"] == 50
    summary, left, note = errors(scene)
    assert summary == "Checkpoint incomplete: 50 rows accepted."
    assert left.startswith("Not everything is in user/rows: commit to user/rows: 403")
    assert "50 rows" in note
    assert "run: hubsync drain" in note
    hub.faults.clear()
    monkeypatch.setenv("HF_TOKEN", hub.token)
    spool = note.rpartition("hubsync drain ")[2]
    drain(spool, timeout=60)
    assert dataset.ids() == list(range(50))


def test_offline_the_log_says_that_the_rows_are_in_the_spool(alone: Alone) -> None:
    scene = alone("lives", HF_HUB_OFFLINE="1")
    assert errors(scene)[0] == "Checkpoint incomplete: 50 rows accepted."
    assert "50 rows" in errors(scene)[1]
    assert "HF_HUB_OFFLINE is set" in errors(scene)[1]
    assert "run: hubsync drain" in errors(scene)[1]


def test_a_rejected_shard_is_reported_at_the_end(hub: LocalHub, alone: Alone) -> None:
    hub.faults.add(Fault.status(413, on="commit"))
    scene = alone("is_rejected")
    assert scene["result"] == 50
    assert any("dead-letter" in line or "dead letter" in line for line in errors(scene)), scene


def test_a_conflicting_batch_is_quarantined_and_reported(alone: Alone, dataset: Dataset) -> None:
    scene = alone("quarantines")
    assert scene["result"] == 100
    assert errors(scene)[-2] == "Checkpoint incomplete: 90 rows accepted. Accepted rows are in user/rows."
    assert re.match("10 rows never uploaded: .*rejected: .*field 'text': it is int64", errors(scene)[-1])
    assert len(dataset.paths(".parquet")) == 2
    assert dataset.ids() == [*range(50), *range(60, 100)]


def test_by_default_a_conflicting_column_becomes_json(alone: Alone, dataset: Dataset) -> None:
    scene = alone("conflicts")
    assert (scene["result"], errors(scene)) == (100, [])
    assert dataset.ids() == list(range(100))


def test_uploaded_rows_are_transformed_and_passed_rows_are_not(alone: Alone, dataset: Dataset) -> None:
    scene = alone("transforms")
    result = scene["result"]
    assert result["passed"] == ["secret"] * 50
    assert dataset.ids() == [n for n in range(50) if n % 3 and n != 31]
    assert {row["text"] for row in dataset.rows()} == {"*"}
    assert errors(scene)[-2].endswith("17 left out by transform. Accepted rows are in user/rows.")
    assert errors(scene)[-1].startswith("1 row never uploaded: TransformError: transform raised KeyError:")
    assert "secret" not in str(scene["log"])
    assert "mask" not in result["dumped"]
    assert len(result["refused"]) == 2
    assert all("was saved with a transform" in refused for refused in result["refused"])


def test_rows_go_on_downstream_if_the_spool_is_lost(alone: Alone) -> None:
    scene = alone("loses_its_spool")
    assert scene["result"] == 150
    said = errors(scene)
    assert said[0].startswith("Not uploaded (further rows with this error are counted): SpoolLost:")
    counted = [re.match(r"(\d+) rows never uploaded: ", line) for line in said]
    assert sum(int(found[1]) for found in counted if found) == 100, said


def test_a_batch_too_large_for_the_queue_is_split(alone: Alone, dataset: Dataset) -> None:
    scene = alone("large_rows")
    assert scene["result"] == 50
    assert dataset.ids() == [n for n in range(50) if n != 20]
    assert any(line.startswith("1 row never uploaded: BatchTooLarge:") for line in errors(scene))


def test_counting_resumes_within_a_batch_and_without_the_spool(alone: Alone, dataset: Dataset) -> None:
    scene = alone("goes_on_by_count")
    assert scene["result"] == 270
    assert dataset.ids() == list(range(150))
    assert [row["text"] for row in dataset.rows()] == ["a"] * 120 + ["b"] * 30
    assert "120 skipped because an earlier run has uploaded them" in scene["log"][-1]


def test_a_named_run_does_not_start_if_its_count_is_unknown(hub: LocalHub, alone: Alone) -> None:
    """`unload` works on a step that was not loaded, or failed to load."""
    hub.stop()
    assert alone("cannot_begin") == {"result": "OffsetUnknown", "log": []}


def test_arguments_are_checked_early_and_local_settings_not_saved(alone: Alone) -> None:
    result = alone("arguments")["result"]
    refused = result["refused"]
    assert "several replicas can't do" in refused["run and replicas"]
    assert "invalid repo id 'no/such/repo'" in refused["repo"]
    assert "needs {seq}" in refused["path"]
    assert "linger_s must be a number above 0" in refused["linger"]
    assert "lingers" in refused["typo"]
    assert "would mix their configs" in refused["twin a"]
    assert "twin c" not in refused
    assert len(result["seen"]) > 10
    assert TOKEN not in str(result)
    assert result["token"]
    assert (result["same"], result["else"], result["copied"]) == (True, False, 5)
