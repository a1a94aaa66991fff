"""Columns whose values have no common type become JSON: every row is accepted, and loads as it was put."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubsync import RowError, SchemaConflict, SchemaPolicy, Uploader
from hubsync.localhub import LocalHub
from hubsync.localhub.pytest_plugin import point_at
from hubsync.reader import rows
from tests.conftest import Dataset

pytestmark = pytest.mark.slow("loads datasets")

Make = Callable[..., Uploader]
LOWEST = Path(__file__).parents[2] / ".venv-lowest/bin/python"


@pytest.fixture
def load(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Any]]:
    import datasets

    point_at(hub, monkeypatch, tmp_path / "reader")
    loads = iter(range(1_000))

    def load(config: str = "default", **how: Any) -> list[Any]:
        cache = str(tmp_path / f"cache-{next(loads)}")
        given = [
            list(datasets.load_dataset("user/rows", config, split="train", streaming=s, cache_dir=cache, **how))
            for s in (False, True)
        ]
        assert sorted(map(str, given[0])) == sorted(map(str, given[1]))
        return given[0]

    return load


def in_order(rows: list[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: int(row["id"]))


def features(dataset: Dataset, config: str = "default") -> dict[str, Any]:
    infos = yaml.safe_load(dataset.read("README.md").decode().split("---")[1])["dataset_info"]
    (found,) = [info["features"] for info in infos if info["config_name"] == config]
    return {entry.pop("name"): entry for entry in found}


# Values of one column. Those of a list are put in one batch, or in batches of their own.
MIXED: dict[str, list[Any]] = {
    "tool calls": [{"a": 1}, {"a": "x"}, [1, 2], None, {"b": {"c": [None, {}]}}],
    "a struct and text": [{"value": 6}, "plain", "", "é\n\u2028"],
    "text and a struct": ["plain", {"value": 6}, None, "more"],
    "numbers and text": [1, "x", 2.5, True, "y"],
    "text that reads as JSON": [
        1,
        "1",
        "true",
        "null",
        "[1]",
        '{"a": 1}',
        '"quoted"',
        "NaN",
        " 2 ",
        "-",
        "1e5",
        "",
        None,
    ],
    "a bool and an int": [True, 1, False],
    "an int that no float holds": [2**53 + 1, 0.5],
    "lists of two kinds": [[1], ["x"], [[2]], []],
    "a list that conflicts with itself": [[1, "a", None, {"b": [True, 2]}], [], None],
    "content of messages": [
        [{"role": "user", "content": "hi"}],
        [{"role": "user", "content": [{"type": "image"}, "4"]}, {"role": "tool", "content": None}],
    ],
    "deep inside": [{"a": [{"b": {"c": 1}}]}, {"a": [{"b": {"c": [1]}}]}, {"a": [{"b": {"c": {"d": "4"}}}]}],
    "text where JSON is": [{"a": True}, {"a": 1}, {"a": [1]}, {"a": "4"}, {"a": {"b": "5"}}],
    "dates": ["2026-01-01", {"at": "2026-01-01T00:00:00"}, "2026-01-02"],
}


def without_missing(value: Any) -> Any:
    """A struct that is no JSON has all its fields when it is read: those that were not put are null."""
    if isinstance(value, dict):
        return {key: without_missing(item) for key, item in value.items() if item is not None}
    return [without_missing(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("values", MIXED.values(), ids=MIXED)
def test_values_of_all_shapes_in_one_batch_come_back(
    uploader: Make, dataset: Dataset, load: Callable[..., list[Any]], values: list[Any], format: Any
) -> None:
    put = [{"id": n, "v": value} for n, value in enumerate(values)]
    with uploader(format=format) as up:
        up.put(put)
        up.put([{"id": -1, "v": None}], ack="committed")
        up.put([{"id": 100 + row["id"], "v": row["v"]} for row in put])
        assert up.stats().counts.widened_columns == 1
    back = in_order(load())
    expected = [None, *values, *values]
    assert [repr(without_missing(row["v"])) for row in back] == [repr(without_missing(value)) for value in expected]


@pytest.mark.parametrize("committed", [True, False], ids=["committed before", "in the spool"])
@pytest.mark.parametrize("name", [name for name in MIXED if name != "text that reads as JSON"])
def test_a_column_that_conflicts_later_still_loads(
    uploader: Make, dataset: Dataset, load: Callable[..., list[Any]], name: str, committed: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    put = [{"id": n, "v": value} for n, value in enumerate(MIXED[name])]
    with uploader() as up, caplog.at_level(logging.WARNING, "hubsync"):
        for row in [*put, *put]:
            assert up.put([row], ack="committed" if committed else "spooled").state in ("committed", "spooled")
        assert up.stats().spool.dead == 0
    back = [without_missing(row) for row in load()]
    assert sorted(map(repr, back)) == sorted(map(repr, map(without_missing, [*put, *put])))
    messages = [record.getMessage() for record in caplog.records if "is JSON from now on" in record.getMessage()]
    assert 1 <= len(messages) <= 2  # a place, and the column around it
    assert all(message.startswith("column 'v") for message in messages)


def test_a_conflict_after_thousands_of_rows_widens_the_column(
    uploader: Make, dataset: Dataset, load: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    with uploader() as up:
        for start in range(0, 5_000, 1_000):
            up.put([{"id": n, "args": {"n": n}, "x": "a"} for n in range(start, start + 1_000)])
        up.flush()
        with caplog.at_level(logging.WARNING, "hubsync"):
            up.put([{"id": 5_000, "args": {"n": 1}, "x": "a"}, {"id": 5_001, "args": {"n": "all"}, "x": "b"}])
            up.put([{"id": 5_002, "args": [{"n": [1]}], "x": "a"}])
    (message,) = [r.getMessage() for r in caplog.records if "JSON" in r.getMessage()]
    assert message.startswith(
        "column 'args' is JSON from now on: it holds int64 and string at 'args.n' (row 1 of a batch)."
    )
    back = in_order(load())
    assert [row["args"] for row in back] == [*({"n": n} for n in range(5_000)), {"n": 1}, {"n": "all"}, [{"n": [1]}]]
    assert features(dataset) == {"id": {"dtype": "int64"}, "args": {"dtype": "json"}, "x": {"dtype": "string"}}


def test_the_smallest_place_becomes_json(uploader: Make, dataset: Dataset) -> None:
    with uploader() as up:
        up.put([{"run": {"id": 1, "calls": [{"args": {"a": 1}, "name": "f"}], "n": 1}}])
        up.put([{"run": {"id": 2, "calls": [{"args": [1], "name": "g"}], "n": 2}}])
    assert features(dataset)["run"] == {
        "struct": [
            {"name": "id", "dtype": "int64"},
            {"name": "calls", "list": [{"name": "args", "dtype": "json"}, {"name": "name", "dtype": "string"}]},
            {"name": "n", "dtype": "int64"},
        ]
    }


def test_json_columns_are_declared_up_front(uploader: Make, dataset: Dataset, load: Callable[..., list[Any]]) -> None:
    values = ["4", {"a": "4"}, 4, None, ["4"]]
    for policy in (
        {"json_columns": ["v"]},
        {"schema": SchemaPolicy(on_conflict="refuse", json_columns=["v"])},
    ):
        with uploader(**policy) as up:
            for n, value in enumerate(values):
                up.put([{"id": n, "v": value}])
            assert up.stats().counts.widened_columns == 0
    assert features(dataset)["v"] == {"dtype": "json"}
    assert [row["v"] for row in in_order(load())] == [value for value in values for _ in range(2)]
    with uploader(schema=SchemaPolicy(on_conflict="refuse", json_columns=["v"])) as up, pytest.raises(SchemaConflict):
        up.put([{"id": "text"}])


def test_text_that_readers_would_take_for_numbers_stays_text(
    uploader: Make, dataset: Dataset, load: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that are written can't be told apart any more, so the others go to a config of their own."""
    with uploader() as up, caplog.at_level(logging.WARNING, "hubsync"):
        up.put([{"id": 0, "answer": "42"}], ack="committed")
        assert up.put([{"id": 1, "answer": {"value": 42}}], ack="committed").state == "committed"
        up.put([{"id": 2, "answer": "43"}])
        up.put([{"id": 3, "answer": {"value": 43}}])
    assert [row["answer"] for row in in_order(load())] == ["42", "43"]
    assert [row["answer"] for row in in_order(load("default-2"))] == [{"value": 42}, {"value": 43}]
    assert len([r for r in caplog.records if "go to the config default-2" in r.getMessage()]) == 1


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("second", [["x", [1]], ["7", {"a": 1}], [[1, "a"]], [{"a": 1}, {"a": [1]}]])
def test_batches_of_several_shapes_follow_to_the_other_config(
    uploader: Make, load: Callable[..., list[Any]], second: list[Any], format: Any
) -> None:
    """Its column becomes JSON there, so one other config holds all that the first one can't."""
    with uploader(format=format) as up:
        up.put([{"id": 0, "target": "42"}], ack="committed")
        up.put([{"id": n, "target": value} for n, value in enumerate(second, 1)], ack="committed")
        up.put([{"id": 3, "target": [{"b": "8"}]}, {"id": 4, "target": 9}])
        up.put([{"id": 5, "target": "43"}])
    assert [row["target"] for row in in_order(load())] == ["42", "43"]
    assert [row["target"] for row in in_order(load("default-2"))] == [*second, [{"b": "8"}], 9]


def test_a_new_config_with_json_columns_keeps_all_rows_together(
    uploader: Make, load: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    """This is the log's advice."""
    with uploader() as up, caplog.at_level(logging.WARNING, "hubsync"):
        up.put([{"id": 0, "target": "42"}])
        up.put([{"id": 1, "target": [1]}])
    assert "declare json_columns=['target'] before the first row of a new config" in caplog.text
    put = [{"id": n, "target": value} for n, value in enumerate(["42", [1], {"a": "7"}, "x"])]
    with uploader(config="together", json_columns=["target"]) as up:
        for row in put:
            up.put([row], ack="committed")
    assert in_order(load("together")) == put


@pytest.mark.parametrize("on_declared", ["refuse", "dead letter"])
def test_a_type_that_a_table_brought_stays(
    uploader: Make, dataset: Dataset, on_declared: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import pyarrow as pa

    at = pa.array([1], pa.timestamp("s"))
    with uploader(schema=SchemaPolicy(on_declared=on_declared)) as up:
        up.put(pa.table({"id": [0], "at": at}), ack="committed")
        for batch in ([{"id": 1, "at": {"a": 1}}], [{"id": 1, "at": [1]}, {"id": 2, "at": "x"}]):
            if on_declared == "refuse":
                with pytest.raises(
                    SchemaConflict, match=r"holds timestamp\[s\]. Its type was declared by a table or a person"
                ):
                    up.put(batch)
            else:
                assert up.put(batch).state == "refused"
    assert dataset.ids() == [0]
    assert not [record for record in caplog.records if "strings" in record.getMessage()]


def test_a_table_whose_type_json_does_not_have_goes_to_another_config(
    uploader: Make, load: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    import pyarrow as pa

    with uploader() as up, caplog.at_level(logging.WARNING, "hubsync"):
        up.put([{"id": 0, "at": {"a": 1}}])
        up.put(pa.table({"id": [1], "at": pa.array([1], pa.timestamp("s"))}))
    assert (load(), load("default-2")) == (
        [{"id": 0, "at": {"a": 1}}],
        [{"id": 1, "at": datetime(1970, 1, 1, 0, 0, 1)}],
    )
    assert "it can't become JSON. JSON has no timestamp[s]. Batches like this go to the config default-2" in caplog.text


# A type, values, and a value that only Parquet holds: text that reads as JSON.
INSIDE: dict[str, tuple[Any, list[Any], Any]] = {
    "a list of structs": (
        [{"a": "json"}],
        [[{"a": 1}, {"a": "x"}, {"a": {"b": [1, "4"]}}, {"a": None}], [], None],
        [{"a": "4"}],
    ),
    "a struct": ({"j": "json"}, [{"j": 1}, {"j": "x"}, {"j": {"a": "4"}}, None], {"j": "4"}),
    "a list": (["json"], [[1, "x", {"a": 1}, ["4"], None], None, []], ["4"]),
}


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize(("kind", "values", "text"), INSIDE.values(), ids=INSIDE)
def test_json_inside_a_column_is_declared(
    uploader: Make, load: Callable[..., list[Any]], kind: Any, values: list[Any], text: Any, format: Any
) -> None:
    values = [*values, text] if format == "parquet" else values
    put = [{"id": n, "v": value} for n, value in enumerate(values)]
    with uploader(features={"v": kind}, format=format) as up:
        for row in put:
            up.put([row], ack="committed")
        up.put([{"id": 100 + row["id"], "v": row["v"]} for row in put])
    assert [row["v"] for row in in_order(load())] == [*values, *values]


def test_text_that_reads_as_json_inside_a_column_is_refused_with_a_way_out(
    uploader: Make, load: Callable[..., list[Any]]
) -> None:
    put = [{"id": 0, "m": [{"a": 1}]}, {"id": 1, "m": [{"a": "4"}]}]
    with uploader(features={"m": [{"a": "json"}]}) as up:
        up.put(put[:1], ack="committed")
        with pytest.raises(
            RowError, match=r"row 1, field 'm\[\].a'.*features=\{'m': 'json'\}; or use format='parquet' in a new repo"
        ):
            up.put(put)
    with uploader(features={"m": "json"}) as up:
        up.put(put[1:])
    assert in_order(load()) == put


def test_parquet_keeps_text_that_is_in_its_shards(uploader: Make, load: Callable[..., list[Any]]) -> None:
    with uploader(format="parquet") as up:
        up.put([{"id": 0, "v": "text"}], ack="committed")
        up.put([{"id": 1, "v": [1]}], ack="committed")
    assert (load(), load("default-2")) == ([{"id": 0, "v": "text"}], [{"id": 1, "v": [1]}])


def test_parquet_shards_of_the_old_type_still_load(uploader: Make, load: Callable[..., list[Any]]) -> None:
    values = [1, {"a": 1}, [True], None, {"a": "4"}, "4", "text", 2]
    with uploader(format="parquet") as up:
        for n, value in enumerate(values):
            up.put([{"id": n, "v": value}], ack="committed")
    assert [row["v"] for row in in_order(load())] == values


@pytest.mark.parametrize("format", ["jsonl", "jsonl.gz", "parquet"])
def test_the_reader_returns_what_was_put(uploader: Make, hub: LocalHub, tmp_path: Path, format: Any) -> None:
    values = [0.1 + 0.2, "4", "null", {"p": 1e-12, "s": "4"}, "text", [5e-324], None]
    put = [{"id": n, "v": value, "score": n / 3} for n, value in enumerate(values)]
    where = {"endpoint": hub.endpoint, "token": hub.token}
    with uploader(format=format, json_columns=["v"]) as up:
        up.put(put)
        assert list(rows("user/rows", spool=tmp_path / "spool", **where)) == put
        up.flush()
    read = rows("user/rows", **where)
    for row in put:
        assert next(read) == row
        assert json.loads(read.line) == row


def test_two_machines_that_widen_at_the_same_time_agree(
    uploader: Make, tmp_path: Path, dataset: Dataset, load: Callable[..., list[Any]]
) -> None:
    given = [[{"id": 2 * n + k, "v": value} for n, value in enumerate(values)] for k, values in enumerate(
        ([{"a": 1}, {"a": "4"}, "x"], [[1], {"a": [2]}, {"a": {"b": 1}}])
    )]  # fmt: skip

    def machine(number: int) -> None:
        with uploader(spool=tmp_path / f"machine-{number}") as up:
            for row in given[number]:
                up.put([row])

    with ThreadPoolExecutor() as pool:
        list(pool.map(machine, range(2)))
    assert [row["v"] for row in in_order(load())] == [row["v"] for row in in_order([*given[0], *given[1]])]
    assert features(dataset)["v"] == {"dtype": "json"}


def test_processes_on_one_spool_agree(uploader: Make, load: Callable[..., list[Any]]) -> None:
    with uploader() as one, uploader() as two:
        one.put([{"id": 0, "v": {"a": 1}}])
        two.put([{"id": 1, "v": {"a": 2}}])
        one.put([{"id": 2, "v": "x"}])
        two.put([{"id": 3, "v": "4"}])
        one.put([{"id": 4, "v": "5"}])
        two.put([{"id": 5, "v": {"a": 3}}])
    assert [row["v"] for row in in_order(load())] == [{"a": 1}, {"a": 2}, "x", "4", "5", {"a": 3}]


def test_a_shard_of_text_that_was_accepted_elsewhere_goes_to_another_config(
    uploader: Make, tmp_path: Path, load: Callable[..., list[Any]]
) -> None:
    """Another machine has made the column JSON in between, and the shard's bytes are fixed."""
    with uploader(spool=tmp_path / "other") as other:
        other.put([{"id": 0, "v": "4"}])
        with uploader() as up:
            up.put([{"id": 1, "v": {"a": 1}}, {"id": 2, "v": "4"}])
        other.flush()
        other.put([{"id": 3, "v": "5"}])
    everything = [*load(), *load("default-2")]
    assert [row["v"] for row in in_order(everything)] == ["4", {"a": 1}, "4", "5"]


def test_a_restart_on_another_machine_knows_what_is_json(
    uploader: Make, tmp_path: Path, load: Callable[..., list[Any]]
) -> None:
    for n in range(3):
        with uploader(spool=tmp_path / f"{n}") as up:
            up.put([{"id": 3 * n, "v": "4"}, {"id": 3 * n + 1, "v": 4}])
            up.put([{"id": 3 * n + 2, "v": "null"}])
    assert [row["v"] for row in in_order(load())] == ["4", 4, "null"] * 3


def strip_marks(dataset: Dataset) -> None:
    """Make the watermarks those of an earlier version, which did not record why columns must keep their types."""
    for path in dataset.api.list_repo_files("user/rows", repo_type="dataset"):
        if path.startswith(".hubsync/"):
            mark = json.loads(dataset.read(path))
            mark.pop("fixed")
            dataset.api.upload_file(
                path_or_fileobj=json.dumps(mark).encode(), path_in_repo=path, repo_id="user/rows", repo_type="dataset"
            )


@pytest.mark.parametrize(
    ("text", "is_old", "is_together"), [("4", False, False), ("plain", False, True), ("plain", True, False)]
)
def test_another_machine_knows_whether_text_reads_as_json(
    uploader: Make, tmp_path: Path, dataset: Dataset, load: Callable[..., list[Any]],
    text: str, is_old: bool, is_together: bool,
) -> None:  # fmt: skip
    """The watermarks say so; without their word any string may read as JSON."""
    with uploader(spool=tmp_path / "first") as up:
        up.put([{"id": 0, "v": text}])
    if is_old:
        strip_marks(dataset)
    for n in (1, 2):
        with uploader(spool=tmp_path / f"{n}") as up:
            up.put([{"id": n, "v": {"a": n}}])
    put = [{"id": 0, "v": text}, {"id": 1, "v": {"a": 1}}, {"id": 2, "v": {"a": 2}}]
    if is_together:
        assert in_order(load()) == put
    else:
        assert (load(), in_order(load("default-2"))) == (put[:1], put[1:])


def test_text_that_is_committed_meanwhile_is_not_taken_for_a_number(
    uploader: Make, tmp_path: Path, load: Callable[..., list[Any]]
) -> None:
    with uploader(spool=tmp_path / "other") as other:
        other.put([{"id": 0, "v": "plain"}], ack="committed")
        with uploader() as up:
            up.put([{"id": 1, "v": "more"}], ack="committed")
            other.put([{"id": 2, "v": "4"}], ack="committed")
            up.put([{"id": 3, "v": {"a": 1}}])
    assert [row["v"] for row in in_order(load())] == ["plain", "more", "4"]
    assert load("default-2") == [{"id": 3, "v": {"a": 1}}]


def test_another_machine_knows_what_a_person_declared(uploader: Make, tmp_path: Path, dataset: Dataset) -> None:
    dataset.api.create_repo("user/rows", repo_type="dataset")
    dataset.api.upload_file(
        path_or_fileobj=CARD.encode(), path_in_repo="README.md", repo_id="user/rows", repo_type="dataset"
    )
    with uploader(spool=tmp_path / "first", features={"score": "float32"}) as up:
        up.put([{"id": 1, "tag": "a", "score": 0.5}])
    for n in range(2):
        with uploader(spool=tmp_path / f"{n}") as up:
            for row in ({"tag": [1]}, {"id": "one"}, {"score": "high"}):
                with pytest.raises(SchemaConflict, match="Its type was declared by a table or a person, and stays"):
                    up.put([row])
            up.put([{"id": 2, "more": n}])
            up.put([{"id": 3, "more": [n]}])  # this one is not declared
    assert dataset.ids() == [1, 2, 2, 3, 3]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
def test_columns_next_to_declared_types_become_json_too(
    uploader: Make, load: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture, format: Any
) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5)
    batches: list[list[Any]] = [[{"a": 1}], [{"a": [1]}, {"a": {"b": "4"}}], [[1], None, "4", 5], ["x"]]
    numbers = iter(range(100))
    put = [[{"id": next(numbers), "at": at, "v": value} for value in batch] for batch in batches]
    with uploader(features={"at": "timestamp[s]"}, format=format) as up, caplog.at_level(logging.WARNING, "hubsync"):
        for batch in put:
            up.put(batch, ack="committed")
        assert up.stats().counts.widened_columns == len([r for r in caplog.records if "is JSON" in r.getMessage()]) > 0
    assert in_order(load()) == [row for batch in put for row in batch]


def test_tables_of_other_shapes_make_a_column_json(uploader: Make, load: Callable[..., list[Any]]) -> None:
    import pyarrow as pa

    with uploader() as up:
        up.put(pa.table({"id": [0], "v": [1]}), ack="committed")
        up.put(pa.table({"id": [1], "v": [{"a": "4"}]}), ack="committed")
        up.put(pa.table({"id": [2, 3], "v": ["4", "x"]}))
        up.put([{"id": 4, "v": "5"}])
        up.put(pa.table({"id": [5], "v": pa.array(['{"b": 1}'], pa.json_())}))
    assert [row["v"] for row in in_order(load())] == [1, {"a": "4"}, "4", "x", "5", {"b": 1}]


CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.jsonl
dataset_info:
  config_name: default
  features:
  - name: id
    dtype: int64
  - name: at
    dtype: timestamp[s]
  - name: tag
    dtype: string
---
"""


@pytest.mark.parametrize("on_declared", ["refuse", "dead letter"])
def test_a_column_that_a_person_declared_is_kept(uploader: Make, dataset: Dataset, on_declared: Any) -> None:
    dataset.api.create_repo("user/rows", repo_type="dataset")
    dataset.api.upload_file(
        path_or_fileobj=CARD.encode(), path_in_repo="README.md", repo_id="user/rows", repo_type="dataset"
    )
    with uploader(schema=SchemaPolicy(on_declared=on_declared)) as up:
        up.put([{"id": 1, "at": "2026-01-01", "tag": "a"}], ack="committed")
        for row in ({"id": "one"}, {"at": {"a": 1}}, {"tag": [1]}):
            if on_declared == "refuse":
                with pytest.raises(SchemaConflict, match="and the column holds"):
                    up.put([row])
            else:
                assert up.put([row]).state == "refused"
        up.put([{"id": 2}])
    assert dataset.read("README.md").decode() == CARD
    assert dataset.ids() == [1, 2]


def test_a_replay_is_recognized_after_its_column_became_json(uploader: Make) -> None:
    from hubsync.pipeline.checkpoint_core import content_key

    with uploader() as up:
        before = content_key("place", up.encode([{"v": "4"}]))
        up.put([{"v": [1]}])
        up.put([{"v": "x"}])
        encoded = up.encode([{"v": "4"}])
        assert json.loads(encoded.lines)["v"] == '"4"'
        assert content_key("place", encoded) == before


OLD_READER = """
import json, sys, datasets
try:
    rows = list(datasets.load_dataset("user/rows", split="train"))
except Exception as error:
    print(json.dumps([datasets.__version__, type(error).__name__, str(error)]))
else:
    print(json.dumps([datasets.__version__, "rows", rows]))
"""


def test_what_the_lowest_datasets_does_with_a_json_column(uploader: Make, hub: LocalHub, tmp_path: Path) -> None:
    """It can't read the card at all; docs/concepts/schemas.md says so, and what to do."""

    def read(number: int) -> list[Any]:
        environ = {**os.environ, **hub.environ(), "HF_HOME": str(tmp_path / f"home-{number}")}
        done = subprocess.run([LOWEST, "-c", OLD_READER], env=environ, capture_output=True, text=True, check=True)
        found: list[Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    with uploader() as up:
        up.put([{"v": [1]}], ack="committed")
        assert read(1)[1:] == ["rows", [{"v": [1]}]]
        up.put([{"v": {"a": 1}}])
    version, error, said = read(2)
    assert version.startswith("3.0")
    assert (error, said) == ("TypeError", "'module' object is not callable")
    assert sys.executable
