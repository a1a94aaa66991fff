"""A job whose rows drift: the dataset loads after every commit, and every row has the values that were put."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import pytest
import yaml
from huggingface_hub import CommitOperationAdd

from hubsync import AsyncUploader, SchemaConflict, SchemaPolicy, Uploader
from hubsync.localhub import LocalHub
from hubsync.localhub.pytest_plugin import point_at
from tests.conftest import FAST, Dataset
from tests.zygote import Python

pytestmark = pytest.mark.slow("loads datasets commit by commit, or kills processes")

Make = Callable[..., Uploader]


class Reader:
    """Load the dataset as a user does, each time with an empty cache."""

    def __init__(self, hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        import datasets

        point_at(hub, monkeypatch, tmp_path / "reader")
        self._datasets, self._caches = datasets, tmp_path / "caches"
        self._loads = 0

    def load(self, config: str = "default", streaming: bool = False, **how: Any) -> list[Any]:
        self._loads += 1
        cache = str(self._caches / str(self._loads))
        loaded = self._datasets.load_dataset(
            "user/rows", config, split="train", streaming=streaming, cache_dir=cache, **how
        )
        return list(loaded)

    def sees(self, put: list[Any], config: str = "default", **how: Any) -> None:
        """Assert that all rows are loaded, with and without streaming; a field that a row lacks is null."""
        expected = sorted(map(_canonical, put))
        for streaming in (False, True):
            assert sorted(map(_canonical, self.load(config, streaming, **how))) == expected


def _canonical(row: Any) -> str:
    return json.dumps(_without_nulls(row), sort_keys=True, default=str)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: kept for key, item in value.items() if (kept := _without_nulls(item)) not in (None, {})}
    if isinstance(value, list | tuple):
        return [_without_nulls(item) for item in value]
    return float(value) if type(value) is int else value


@pytest.fixture
def reader(hub: LocalHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Reader:
    return Reader(hub, monkeypatch, tmp_path)


def features(dataset: Dataset, config: str = "default") -> dict[str, Any]:
    infos = yaml.safe_load(dataset.read("README.md").decode().split("---")[1])["dataset_info"]
    (found,) = [info["features"] for info in infos if info["config_name"] == config]
    return {entry.pop("name"): entry for entry in found}


DRIFT: list[list[Any]] = [
    [{"id": 0, "text": None, "score": 1, "tags": [], "chat": [], "info": None}],
    [{"id": 1, "text": "a", "score": 1.5, "tags": [], "chat": [], "info": None}],
    [{"id": 2, "text": None, "score": None, "tags": ["x"], "chat": [{"role": "user", "content": None}], "info": {}}],
    [{"id": 3}],
    [{"id": 4, "text": "b", "more": True, "chat": [{"content": "hi", "calls": [{"args": [[]]}]}], "info": {"a": 1}}],
    [{"id": 5, "chat": [{"role": "user", "calls": [{"args": [[1], None], "name": "f"}]}], "info": {"b": {"c": None}}}],
    [{"id": 6, "info": {"b": {"c": "deep", "d": [1, 2.5]}}, "score": float("nan"), "tags": None}],
    [{"info": {"a": None}, "id": 7, "new": {"x": Decimal("1.5"), "at": UUID(int=5)}}, {"id": 8, "text": "c"}],
    [{"id": 9, "big": 2**60}, {"id": 10, "big": 1}],
    [{"id": 14.25}],
]


def test_the_dataset_loads_at_every_commit_of_a_job_that_drifts(
    hub: LocalHub, uploader: Make, dataset: Dataset, reader: Reader
) -> None:
    put: list[Any] = []
    with uploader() as up:
        for batch in DRIFT:
            up.put(batch, ack="committed")
            put += json.loads(json.dumps(batch, default=str).replace("NaN", "null"))
            reader.sees(put)
    assert features(dataset)["id"] == {"dtype": "float64"}
    assert features(dataset)["chat"]["list"][2]["list"][0] == {"name": "args", "list": {"list": "int64"}}


def test_earlier_commits_stay_loadable(hub: LocalHub, uploader: Make, reader: Reader) -> None:
    with uploader() as up:
        shas = [up.put(batch, ack="committed").sha for batch in DRIFT[:5]]
    for n, sha in enumerate(shas):
        reader.sees([row for batch in DRIFT[: n + 1] for row in batch], revision=sha)


def test_the_card_is_written_only_if_the_columns_change(hub: LocalHub, uploader: Make) -> None:
    dataset = Dataset(hub)

    def writes() -> int:
        history = dataset.api.list_repo_commits("user/rows", repo_type="dataset")
        contents = {
            info.blob_id
            for commit in history
            for info in dataset.api.get_paths_info(
                "user/rows", "README.md", repo_type="dataset", revision=commit.commit_id
            )
        }
        return len(contents)

    with uploader() as up:
        up.put([{"a": 1, "b": None, "c": []}], ack="committed")
        before = writes()
        up.put([{"a": 2, "b": None}], ack="committed")
        up.put([{"b": None, "c": [None]}, {}], ack="committed")
        assert writes() == before
        up.put([{"b": "now a string"}], ack="committed")
        assert writes() == before + 1


def test_a_restart_knows_the_schema_from_the_catalogue_or_the_card(
    uploader: Make, tmp_path: Path, reader: Reader
) -> None:
    with uploader() as up:
        up.put([{"a": "text", "b": [1]}])
    for spool in (tmp_path / "spool", tmp_path / "another machine's"):
        with uploader(spool=spool, schema=REFUSE) as up:
            with pytest.raises(
                SchemaConflict, match=r"row 1, field 'a': it is a struct of x, and the column holds str"
            ):
                up.put([{"a": None}, {"a": {"x": 1}}])
            up.put([{"a": None, "b": [2.5], "more": spool.name}], ack="committed")
    reader.sees([{"a": "text", "b": [1]}, *({"b": [2.5], "more": name} for name in ("spool", "another machine's"))])


REFUSE = SchemaPolicy(on_conflict="refuse")
CONFLICTS: list[tuple[Any, Any, str]] = [
    ({"a": "x"}, {"a": {"b": 1}}, "a"),
    ({"a": [{"b": 1}]}, {"a": [{"b": [1]}]}, "a[].b"),
    ({"a": True}, {"a": 1}, "a"),
    ({"a": 2**60}, {"a": 0.5}, "a"),
    ({"a": [1]}, {"a": ["x"]}, "a[]"),
]


@pytest.mark.parametrize(("first", "second", "path"), CONFLICTS)
def test_a_conflict_is_refused_at_put(uploader: Make, reader: Reader, first: Any, second: Any, path: str) -> None:
    with uploader(schema=REFUSE) as up:
        up.put([first])
        for batch in ([first, second], [second]):
            with pytest.raises(SchemaConflict) as refused:
                up.put(batch)
            assert (refused.value.row, refused.value.path) == (len(batch) - 1, path)
        up.put([first])
    reader.sees([first, first])


def test_without_the_guard_the_same_conflict_breaks_the_dataset(
    uploader: Make, reader: Reader, dataset: Dataset, hub: LocalHub
) -> None:
    """That is what the guard prevents; `schema=None` turns it off."""
    with uploader(schema=None) as up:
        up.put([{"a": None}], ack="committed")
        up.put([{"a": {"b": 1}}], ack="committed")
    assert "dataset_info" not in Dataset(hub).read("README.md").decode()
    with pytest.raises(Exception, match=r"(?i)cast|generat"):
        reader.load()


def test_a_batch_that_conflicts_with_itself_is_refused(uploader: Make) -> None:
    message = r"row 2, field 'm\[\]\.c': it is a list: string, and others in the batch are string: .*Make them one type"
    with uploader(schema=REFUSE) as up, pytest.raises(SchemaConflict, match=message):
        up.put([{"m": []}, {"m": [{"c": "x"}]}, {"m": [{"c": ["y"]}]}])


def test_a_conflict_goes_to_the_dead_letter_and_the_job_continues(
    uploader: Make, reader: Reader, caplog: pytest.LogCaptureFixture
) -> None:
    with uploader(schema=SchemaPolicy(on_conflict="dead letter")) as up:
        up.put([{"a": "x"}], offset=1)
        with caplog.at_level(logging.WARNING, "hubsync"):
            bad = up.put([{"a": None}, {"a": {"b": 1}}], offset=2)
            again = up.put([{"a": {"b": 2}}], offset=3, key="k")
        after = up.put([{"a": "y"}], offset=4)
        assert (bad.state, again.state, after.state) == ("refused", "refused", "spooled")
        assert "field 'a': it is a struct of b, and the column holds string (line 2)" in str(bad.error)
        assert up.put([{"a": {"b": 2}}], key="k").replayed
        assert up.stats().counts.refusals == 2
        assert up.stats().spool.dead == 2
        assert (
            len([r for r in caplog.records if "rejected for this reason" in r.message]) == 1
        )  # one reason is logged once
        up.flush()
        dead = sorted((up.spool / "dead-letter").iterdir())
        assert [file.read_text() for file in dead] == ['{"a":null}\n{"a":{"b":1}}\n', '{"a":{"b":2}}\n']
        assert up.offset() == 4
    with uploader() as up:  # a restart keeps the dead letters
        assert len(list((up.spool / "dead-letter").iterdir())) == 2
        assert up.stats().spool.dead == 2
    reader.sees([{"a": "x"}, {"a": "y"}])


def test_a_quarantined_batch_is_not_remembered_by_the_profiler(uploader: Make) -> None:
    """A batch with discoveries costs a look into the catalogue and a merge."""
    with uploader(schema=SchemaPolicy(on_conflict="dead letter")) as up:
        up.put([{"a": "x"}])
        assert up.put([{"a": {"b": 1}}]).state == "refused"
        assert not up.encode([{"a": "y"}]).discoveries


def test_a_conflict_goes_to_a_new_config_and_both_load(uploader: Make, reader: Reader) -> None:
    policy = SchemaPolicy(on_conflict="new config")
    structs = [{"a": {"b": n}} for n in range(3)]
    with uploader(schema=policy) as up:
        for n in range(3):
            up.put([{"a": f"{n}"}])
            up.put([structs[n]])
        up.put([{"a": [1]}])
        assert up.put([{"a": None, "more": 1}], ack="committed").state == "committed"
    with uploader(schema=policy) as up:
        up.put([{"a": {"c": "later"}}])
        with pytest.raises(SchemaConflict, match=r"others in the batch are int64: .* separate batches"):
            up.put([{"a": 1}, {"a": "x"}])
    reader.sees([{"a": "0"}, {"a": "1"}, {"a": "2"}, {"more": 1}])
    reader.sees([*structs, {"a": {"c": "later"}}], "default-2")
    reader.sees([{"a": [1]}], "default-3")


@pytest.mark.parametrize(("on_conflict", "left"), [("refuse", "dead"), ("dead letter", "dead"), ("new config", "new")])
def test_two_machines_that_race_never_break_the_dataset(
    uploader: Make, tmp_path: Path, reader: Reader, caplog: pytest.LogCaptureFixture, on_conflict: Any, left: str
) -> None:
    policy = SchemaPolicy(on_conflict=on_conflict)
    with (
        uploader(schema=policy) as one,
        uploader(schema=policy, spool=tmp_path / "other") as two,
    ):
        one.put([{"a": "x"}])
        lost = two.put([{"a": {"b": 1}}])
        fits = two.put([{"c": 1}])
        one.flush()
        with caplog.at_level(logging.WARNING, "hubsync"):
            if left == "dead":
                with pytest.raises(Exception, match="field 'a': it is a struct of b"):
                    two.flush()
                # Both batches stood in one shard, whose bytes are fixed.
                assert (lost.state, fits.state) == ("refused", "refused")
                assert "field 'a': it is a struct of b" in str(lost.error)
                with pytest.raises(SchemaConflict) if on_conflict == "refuse" else nullcontext():
                    assert two.put([{"a": {"b": 2}}]).state == "refused"
            else:
                two.flush()
                assert lost.state == "committed"
                two.put([{"a": {"b": 2}}])
        two.put([{"a": "y", "d": 1}])
    reader.sees([{"a": "x"}, {"a": "y", "d": 1}])
    if left == "new":
        reader.sees([{"a": {"b": 1}}, {"c": 1}, {"a": {"b": 2}}], "default-2")


CARD = """---
license: mit
dataset_info:
  features:
  - name: label
    dtype:
      class_label:
        names:
          '0': bad
          '1': good
  - name: score
    dtype: float32
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train-*.jsonl
---
# My words
"""


def write_card(dataset: Dataset, text: str) -> None:
    operation = CommitOperationAdd("README.md", text.encode())
    dataset.api.create_commit("user/rows", [operation], commit_message="by hand", repo_type="dataset")


def test_features_written_by_a_person_are_respected(uploader: Make, dataset: Dataset, reader: Reader) -> None:
    dataset.api.create_repo("user/rows", repo_type="dataset")
    write_card(dataset, CARD)
    with uploader() as up:
        up.put([{"label": "good", "score": 1}], ack="committed")
        assert dataset.read("README.md").decode() == CARD
        with pytest.raises(SchemaConflict, match="float32"):
            up.put([{"score": "high"}])
        up.put([{"label": "bad", "score": 0.5, "more": ["x"]}], ack="committed")
    card = dataset.read("README.md").decode()
    assert card.endswith("# My words\n")
    assert features_of(card)[0] == features_of(CARD)[0]
    assert features_of(card)[2] == {"name": "more", "list": "string"}
    reader.sees([{"label": 1, "score": 1.0}, {"label": 0, "score": 0.5, "more": ["x"]}])


def features_of(card: str) -> list[Any]:
    info = yaml.safe_load(card.split("---")[1])["dataset_info"]
    found: list[Any] = (info[0] if isinstance(info, list) else info)["features"]
    return found


def test_features_removed_by_a_person_return_with_the_next_commit(
    uploader: Make, dataset: Dataset, reader: Reader
) -> None:
    with uploader() as up:
        up.put([{"a": None}], ack="committed")
        up.put([{"a": {"b": 1}}], ack="committed")
        write_card(dataset, CARD.partition("dataset_info")[0] + "configs" + CARD.partition("configs")[2])
        up.put([{"a": {"b": 2}}], ack="committed")
    assert "# My words" in dataset.read("README.md").decode()
    reader.sees([{}, {"a": {"b": 1}}, {"a": {"b": 2}}])


def test_a_card_with_a_long_text_is_edited(uploader: Make, dataset: Dataset, reader: Reader) -> None:
    dataset.api.create_repo("user/rows", repo_type="dataset")
    write_card(dataset, "# My words\n" * 100_000)
    with uploader() as up:
        up.put([{"a": 1}])
        up.flush()
        up.put([{"a": 1.5}])
    reader.sees([{"a": 1}, {"a": 1.5}])
    assert dataset.read("README.md").endswith(b"---\n" + b"# My words\n" * 100_000)


KILLED = """
import os, signal, sys
from hubsync import SchemaPolicy, Uploader
from hubsync._runtime import failpoints
up = Uploader("user/rows", spool=sys.argv[1], schema=SchemaPolicy(on_conflict="dead letter")).open()
up.put([{"a": "x"}], offset=0)
def die(point):
    if point.name == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGKILL)
failpoints.listener = die
up.put([{"a": {"b": 1}}], offset=1, key="bad")
"""
POINTS = [
    "TAKE_BEGUN",
    "SEGMENT_CREATED",
    "WRITTEN",
    "SEAL_BEGUN",
    "QUARANTINE_LINKED",
    "COUNTED",
    "SPOOLED",
    "NOTIFIED",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_quarantined_batch_exists_once_wherever_the_process_dies(
    hub: LocalHub, uploader: Make, tmp_path: Path, dataset: Dataset, point: str, python: Python
) -> None:
    spool = tmp_path / "spool"
    died = python.run("-c", KILLED, spool, point, env={**os.environ, **hub.environ()})
    assert died.returncode == -signal.SIGKILL
    with uploader(schema=SchemaPolicy(on_conflict="dead letter")) as up:
        was_accepted = up.offset() == 1
        assert was_accepted == (point in ("SPOOLED", "NOTIFIED"))
        assert up.known("bad") == was_accepted
        # Another one first: it may be given the number of what was rolled back.
        up.put([{"a": ["other"]}], key="other")
        again = up.put([{"a": {"b": 1}}], offset=1, key="bad")
        assert again.replayed == was_accepted
        assert again.state == "refused"
        up.flush()
        dead = sorted(file.read_text() for file in (spool / "dead-letter").iterdir())
        assert dead == ['{"a":["other"]}\n', '{"a":{"b":1}}\n']
        assert up.stats().spool.dead == 2
        assert list((spool / "segments").iterdir()) == []
    assert dataset.rows() == [{"a": "x"}]


def test_put_sees_the_schema_of_other_processes(uploader: Make, reader: Reader) -> None:
    with uploader(schema=REFUSE) as one, uploader(schema=REFUSE) as two:
        one.put([{"a": "x"}])
        with pytest.raises(SchemaConflict):
            two.put([{"a": 1}])
        two.put([{"a": "y"}])
    reader.sees([{"a": "x"}, {"a": "y"}])


def test_the_async_uploader_checks_schemas_too(hub: LocalHub, tmp_path: Path, reader: Reader) -> None:
    async def job() -> None:
        given = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST}
        async with AsyncUploader("user/rows", schema=SchemaPolicy(on_conflict="new config"), **given) as up:
            await up.put([{"a": None}])
            await up.put([{"a": 1}])
            await up.put([{"a": "x"}], ack="committed")

    anyio.run(job)
    reader.sees([{}, {"a": 1}])
    reader.sees([{"a": "x"}], "default-2")
