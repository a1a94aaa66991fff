"""The checkpointer's step by itself, as distilabel calls it: load, process, unload. The scenes are in jobs/alone.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from hubsync.localhub import Fault, LocalHub
from hubsync.maintenance.drain import drain
from tests.conftest import Dataset

pytestmark = pytest.mark.timeout(300)
Alone = Callable[..., Any]
TOKEN = "hf_a_token_of_the_usual_length_0123456"


def errors(scene: dict[str, Any]) -> list[str]:
    return [line.removeprefix("ERROR ") for line in scene["log"] if line.startswith("ERROR ")]


def test_several_inputs_are_passed_on_in_one_list(alone: Alone, dataset: Dataset) -> None:
    assert alone("two_predecessors")["told"] == 80
    assert [row["id"] for row in dataset.rows("config-0")] == list(range(50))
    assert [row["id"] for row in dataset.rows("config-1")] == list(range(50, 80))


def test_a_token_that_is_revoked_is_told_at_the_end_with_the_way_out(
    hub: LocalHub, alone: Alone, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.faults.add(Fault.status(403, on="commit"))
    scene = alone("lives")
    assert scene["told"] == 50
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


def test_without_a_network_the_rows_are_said_to_be_in_the_spool(alone: Alone) -> None:
    scene = alone("lives", HF_HUB_OFFLINE="1")
    assert errors(scene)[0] == "Checkpoint incomplete: 50 rows accepted."
    assert "50 rows" in errors(scene)[1]
    assert "HF_HUB_OFFLINE is set" in errors(scene)[1]
    assert "run: hubsync drain" in errors(scene)[1]


def test_a_shard_that_the_hub_refuses_is_told_at_the_end(hub: LocalHub, alone: Alone) -> None:
    hub.faults.add(Fault.status(413, on="commit"))
    scene = alone("lives")
    assert scene["told"] == 50
    assert any("dead-letter" in line or "dead letter" in line for line in errors(scene)), scene


def test_a_batch_that_does_not_go_with_the_others_is_set_aside_and_told(alone: Alone, dataset: Dataset) -> None:
    scene = alone("conflicts")
    assert scene["told"] == 100
    assert errors(scene)[-2] == "Checkpoint incomplete: 90 rows accepted. Accepted rows are in user/rows."
    assert re.match("10 rows never uploaded: .*dead letter: field 'text': it is int64", errors(scene)[-1])
    assert len(dataset.paths(".parquet")) == 2
    assert dataset.ids() == [*range(50), *range(60, 100)]


def test_what_is_checkpointed_is_transformed_and_what_goes_on_is_not(alone: Alone, dataset: Dataset) -> None:
    scene = alone("transforms")
    told = scene["told"]
    assert told["passed"] == ["secret"] * 50
    assert dataset.ids() == [n for n in range(50) if n % 3 and n != 31]
    assert {row["text"] for row in dataset.rows()} == {"*"}
    assert errors(scene)[-2].endswith("17 left out by transform. Accepted rows are in user/rows.")
    assert errors(scene)[-1].startswith("1 row never uploaded: TransformError: transform raised KeyError:")
    assert "secret" not in str(scene["log"])
    assert "mask" not in told["dumped"]
    assert len(told["refused"]) == 2
    assert all("was saved with a transform" in refused for refused in told["refused"])


def test_rows_go_on_downstream_when_the_spool_is_gone(alone: Alone) -> None:
    scene = alone("loses_its_spool")
    assert scene["told"] == 150
    said = errors(scene)
    assert said[0].startswith("Not uploaded (further rows with this error are counted): SpoolLost:")
    counted = [re.match(r"(\d+) rows never uploaded: ", line) for line in said]
    assert sum(int(found[1]) for found in counted if found) == 100, said


def test_a_batch_too_large_for_the_queue_is_brought_in_parts(alone: Alone, dataset: Dataset) -> None:
    scene = alone("large_rows")
    assert scene["told"] == 50
    assert dataset.ids() == [n for n in range(50) if n != 20]
    assert any(line.startswith("1 row never uploaded: BatchTooLarge:") for line in errors(scene))


def test_counting_goes_on_within_a_batch_and_where_the_spool_is_lost(alone: Alone, dataset: Dataset) -> None:
    scene = alone("goes_on_by_count")
    assert scene["told"] == 270
    assert dataset.ids() == list(range(150))
    assert [row["text"] for row in dataset.rows()] == ["a"] * 120 + ["b"] * 30
    assert "120 skipped because an earlier run has uploaded them" in scene["log"][-1]


def test_a_named_run_does_not_begin_where_the_count_cannot_be_known(hub: LocalHub, alone: Alone) -> None:
    """And unload bears a step that is not loaded, or failed to."""
    hub.stop()
    assert alone("cannot_begin") == {"told": "OffsetUnknown", "log": []}


def test_arguments_are_checked_when_the_step_is_made_and_this_machines_are_written_nowhere(alone: Alone) -> None:
    told = alone("arguments")["told"]
    refused = told["refused"]
    assert "several replicas can't do" in refused["run and replicas"]
    assert "invalid repo id 'no/such/repo'" in refused["repo"]
    assert "needs {seq}" in refused["path"]
    assert "linger_s must be a number above 0" in refused["linger"]
    assert "lingers" in refused["typo"]
    assert "would mix their configs" in refused["twin a"]
    assert "twin c" not in refused
    assert len(told["seen"]) > 10
    assert TOKEN not in str(told)
    assert told["token"]
    assert (told["same"], told["else"], told["copied"]) == (True, False, 5)
