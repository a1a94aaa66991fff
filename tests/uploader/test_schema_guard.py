"""The schema guard at `put`."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from hubsync import ConfigError, SchemaConflict, SchemaPolicy
from hubsync.encoding.rows import encode
from hubsync.model.layout import Layout
from hubsync.model.target import Target
from hubsync.schema.types import infer
from hubsync.spool.spool import Spool
from hubsync.uploader.schema_guard import SchemaGuard

REFUSE = SchemaPolicy(on_conflict="refuse")


def test_an_unknown_conflict_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_conflict"):
        SchemaPolicy(on_conflict="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "rows", [[{f"{n}": 1} for n in range(97)], [{}] * 96 + [{"deep": json.loads("[" * 51 + "]" * 51)}]]
)
def test_more_columns_than_a_card_can_describe_are_a_conflict(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    spool = Spool(tmp_path / "spool", target=Target("http://127.0.0.1:1", "user/rows"))
    guard = SchemaGuard(spool, Layout(), REFUSE)
    for n in range(4):
        guard.admit(encode([{f"{n}-{m}": 1 for m in range(1_000)}], guard.profiler))
    with pytest.raises(
        SchemaConflict, match=r"row 96: with it the config has over 4,096 fields, or structs over 50 deep"
    ):
        guard.admit(encode(rows, guard.profiler))
    guard.admit(encode([{"0-1": 2}, {"one": 1}], guard.profiler))
    aside = SchemaGuard(spool, Layout(), SchemaPolicy(on_conflict="dead letter"))
    aside._kinds = guard._kinds
    assert str(aside.admit(encode(rows, aside.profiler)).set_aside).startswith("with it the config has over")
    spool.close()


def test_batches_encoded_elsewhere_are_checked(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", target=Target("http://127.0.0.1:1", "user/rows"))
    guard = SchemaGuard(spool, Layout(), REFUSE)
    guard.admit(encode([{"a": 1}]))
    with pytest.raises(SchemaConflict, match="row 1"):
        guard.admit(encode([{"a": 2}, {"a": "x"}]))
    spool.close()


def reported(tmp_path: Path, caplog: pytest.LogCaptureFixture, *batches: Any, **options: Any) -> list[str]:
    """What the log says of these batches."""
    layout = Layout(template=options.pop("template", ""))
    spool = Spool(tmp_path / "spool", target=Target("http://127.0.0.1:1", "user/rows"))
    guard = SchemaGuard(spool, layout, SchemaPolicy(**options))
    with caplog.at_level(logging.WARNING, "hubsync"):
        for batch in batches:
            guard.admit(encode(batch, guard.profiler))
    spool.close()
    return [record.getMessage() for record in caplog.records]


def test_text_that_readers_take_for_times_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"id": 1, "runs": [{"day": "2026-01-01"}], "at": datetime(2026, 1, 1), "text": "x"}]
    (day, at) = sorted(reported(tmp_path, caplog, rows, rows, [{**rows[0], "new": 1}]), reverse=True)
    assert day.startswith("field 'runs[].day' holds text that looks like times")
    assert "format='parquet' or json_columns=['runs']" in day
    assert at.startswith("field 'at' holds")


def test_nobody_hears_of_times_in_parquet_or_json_columns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"day": "2026-01-01"}]
    assert reported(tmp_path / "1", caplog, rows, template="data/{split}-{writer}-{seq}.parquet") == []
    assert reported(tmp_path / "2", caplog, rows, json_columns=["day"]) == []


def test_floats_next_to_declared_json_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    batches = [{"v": 1}], [{"v": 1, "score": 0.1}], [{"v": "x", "score": 0.1, "more": 0.5}]
    (told,) = reported(tmp_path, caplog, *batches, json_columns=["v"])
    assert told.startswith("v: JSON in these columns. load_dataset needs datasets 4.7 or newer")


def test_what_fitted_before_is_checked_again_once_another_process_changed_the_schema(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", target=Target("http://127.0.0.1:1", "user/rows"))
    guard = SchemaGuard(spool, Layout(), REFUSE)
    guard.admit(encode([{"a": 1}], guard.profiler))
    with spool.catalogue.transaction():  # the committer found text in the dataset, in a process that is not this one
        spool.schemas.add("default", infer([{"a": "text"}]), wins=True)
    guard.admit(encode([{"a": "x"}], guard.profiler))
    with pytest.raises(SchemaConflict, match="string"):
        guard.admit(encode([{"a": 2}], guard.profiler))
    spool.close()
