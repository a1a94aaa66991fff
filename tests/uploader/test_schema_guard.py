"""The schema guard at `put`."""

from __future__ import annotations

import json
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
