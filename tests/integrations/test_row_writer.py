"""Rows for frameworks that must not see an exception: what can be put is put, and the rest is counted."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest

from hubsync import BatchTooLarge, QueuePolicy, RowError, Uploader
from hubsync.integrations.row_writer import RowWriter, RunSummary
from tests.conftest import Dataset

Make = Callable[..., Uploader]


def rows(first: int, end: int) -> list[dict[str, Any]]:
    return [{"id": n, "text": "x"} for n in range(first, end)]


@pytest.fixture
def summary() -> RunSummary:
    return RunSummary(logging.getLogger("test"))


def log_of(summary: RunSummary, caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.INFO, "test"):
        summary.log("user/rows", [])
    return caplog.messages


def test_a_row_without_json_form_costs_only_itself(uploader: Make, dataset: Dataset, summary: RunSummary) -> None:
    batch = [{"id": 0, "x": 1.0}, {"id": 1, "x": math.inf}, {"id": 2, "x": 2.0}]
    with uploader() as up:
        RowWriter("step", 0, up, summary).write(batch)
    assert dataset.ids() == [0, 2]
    assert summary.accepted == 2


def test_a_resumed_writer_skips_the_rows_of_earlier_runs(
    uploader: Make, dataset: Dataset, summary: RunSummary, caplog: pytest.LogCaptureFixture
) -> None:
    for batches in ([rows(0, 50), rows(50, 70)], [rows(0, 50), rows(50, 100)]):
        with uploader() as up:
            writer = RowWriter("step", 0, up, summary)
            writer.resume("run/step")
            for batch in batches:
                writer.write(batch)
    assert dataset.ids() == list(range(100))
    assert (summary.accepted, summary.skipped) == (100, 70)
    assert log_of(summary, caplog) == [
        "Checkpoint complete: 100 rows accepted, 70 skipped because an earlier run has uploaded them; "
        "all are in user/rows."
    ]


def test_with_a_key_an_equal_batch_at_the_same_position_is_a_replay(
    uploader: Make, dataset: Dataset, summary: RunSummary
) -> None:
    for second in (rows(50, 60), rows(50, 60), rows(60, 70)):
        with uploader() as up:
            writer = RowWriter("step", 0, up, summary)
            writer.key = "pipeline/step"
            writer.write(rows(0, 50))
            writer.write(second)
    assert dataset.ids() == list(range(70))
    assert (summary.accepted, summary.skipped) == (70, 110)


def test_a_batch_too_large_for_the_queue_is_split_down_to_the_row(
    uploader: Make, dataset: Dataset, summary: RunSummary, caplog: pytest.LogCaptureFixture
) -> None:
    batch = rows(0, 50)
    batch[20]["text"] = "x" * 5_000
    with uploader(queue=QueuePolicy(max_bytes=1_000)) as up:
        RowWriter("step", 0, up, summary).write(batch)
    assert dataset.ids() == [n for n in range(50) if n != 20]
    complete, failed = log_of(summary, caplog)
    assert complete == "Checkpoint incomplete: 49 rows accepted. Accepted rows are in user/rows."
    assert failed.startswith("1 row never uploaded: BatchTooLarge: ")


def test_transform_drops_and_fails_single_rows(uploader: Make, dataset: Dataset, summary: RunSummary) -> None:
    def transform(row: dict[str, Any]) -> dict[str, Any] | None:
        if row["id"] == 3:
            raise KeyError("id")
        return {"id": row["id"]} if row["id"] % 2 else None

    with uploader() as up:
        RowWriter("step", 0, up, summary, transform).write(rows(0, 6))
    assert dataset.rows() == [{"id": 1}, {"id": 5}]
    assert (summary.accepted, summary.left_out) == (2, 3)


def test_each_kind_of_failure_is_logged_once_and_counted(summary: RunSummary, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(3):
        summary.fail(10, RowError(n, f"tags[{n}]", "inf has no JSON form."))
    summary.fail(1, BatchTooLarge("too large."))
    assert caplog.messages == [
        "Not uploaded (further rows with this error are counted): RowError: field 'tags[0]': inf has no JSON form.",
        "Not uploaded (further rows with this error are counted): BatchTooLarge: too large.",
    ]
    assert log_of(summary, caplog)[1:] == [
        "30 rows never uploaded: RowError: field 'tags[0]': inf has no JSON form.",
        "1 row never uploaded: BatchTooLarge: too large.",
    ]


def test_kinds_of_failures_are_bounded(summary: RunSummary, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(200):
        summary.fail(1, RowError(n, f"field-{n}", "bad."))
    lines = log_of(summary, caplog)
    assert len(lines) == 1 + 50 + 1
    assert lines[-1].startswith("150 rows never uploaded: others: ")
