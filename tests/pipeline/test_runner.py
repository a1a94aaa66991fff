"""Running a pipeline: order, batch sizes, branches, every kind of step; each row is in the checkpoint once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import datasets
import pytest

from hubsync import AuthenticationError, ConfigError, HubsyncError
from hubsync.localhub import Fault, LocalHub
from hubsync.localhub.pytest_plugin import point_at
from hubsync.pipeline import GeneratorStep, GlobalStep, HuggingFaceHubCheckpointer, Pipeline, Step, StepError, StepInput
from hubsync.pipeline.durable import DurableStep, Position
from tests.conftest import FAST, Dataset

QUICK = {"commit": FAST["commit"], "retry": FAST["retry"]}


class Same(Step):
    def process(self, *inputs: StepInput) -> Any:
        yield from inputs


class Async(Step):
    async def process(self, *inputs: StepInput) -> Any:  # type: ignore[override]
        await anyio.sleep(0.001)
        yield [{**row, "slept": True} for row in inputs[0]]


class Coroutine(Step):
    async def process(self, *inputs: StepInput) -> Any:  # type: ignore[override]
        return [{**row, "awaited": True} for row in inputs[0]]


class Even(Step):
    def process(self, *inputs: StepInput) -> Any:
        yield [row for row in inputs[0] if row["id"] % 2 == 0]


class Twice(Step):
    def process(self, *inputs: StepInput) -> Any:
        for copy in range(2):
            yield [{"id": 2 * row["id"] + copy} for row in inputs[0]]


class All(GlobalStep):
    def process(self, *inputs: StepInput) -> Any:
        yield [{"id": len(inputs[0])}]


class Count(GeneratorStep):
    rows: int = 100

    def process(self, offset: int = 0) -> Any:
        for n in range(offset, self.rows, 7):
            yield [{"id": i} for i in range(n, min(n + 7, self.rows))], n + 7 >= self.rows


@pytest.fixture(autouse=True)
def _login(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in hub.environ().items():
        monkeypatch.setenv(name, value)


def rows(count: int) -> list[dict[str, Any]]:
    return [{"id": n} for n in range(count)]


def checkpointer(**fields: Any) -> HuggingFaceHubCheckpointer:
    return HuggingFaceHubCheckpointer(**{"repo_id": "user/rows", **QUICK, **fields})


def ids(distiset: Any, leaf: str = "default") -> list[int]:
    return list(distiset[leaf]["train"]["id"])


def test_200_rows_batched_by_60_then_50_make_four_shards_of_50(dataset: Dataset) -> None:
    with Pipeline() as pipeline:
        Same(input_batch_size=60) >> checkpointer(input_batch_size=50)
    distiset = pipeline.run(dataset=datasets.Dataset.from_list(rows(200)))
    assert ids(distiset) == list(range(200))
    assert dataset.paths() == [f"config-0/train-{n:05d}.jsonl" for n in range(4)]
    assert [row["id"] for row in dataset.rows()] == list(range(200))
    assert all(dataset.read(path).count(b"\n") == 50 for path in dataset.paths())


@pytest.mark.parametrize(
    "kind",
    [
        lambda: datasets.Dataset.from_list(rows(101)),
        lambda: datasets.Dataset.from_list(rows(101)).to_iterable_dataset(),
        lambda: rows(101),
        lambda: iter(rows(101)),
    ],
    ids=["Dataset", "IterableDataset", "list", "generator"],
)
def test_a_dataset_may_be_any_iterable_of_rows(kind: Any) -> None:
    with Pipeline() as pipeline:
        Same(input_batch_size=30)
    assert ids(pipeline.run(dataset=kind())) == list(range(101))


def test_every_kind_of_step_runs(dataset: Dataset) -> None:
    with Pipeline() as pipeline:
        Count(rows=50) >> Async(input_batch_size=8) >> Coroutine(input_batch_size=9) >> Same() >> checkpointer()
    found = pipeline.run()["default"]["train"].to_list()
    assert [row["id"] for row in found] == list(range(50))
    assert all(row["slept"] and row["awaited"] for row in found)
    assert dataset.ids() == list(range(50))


def test_a_step_may_drop_rows_add_rows_or_wait_for_all() -> None:
    with Pipeline() as pipeline:
        first = Same(input_batch_size=7)
        first >> [Even(name="even"), Twice(name="twice"), All(name="all")]
    distiset = pipeline.run(dataset=rows(40))
    assert ids(distiset, "even") == list(range(0, 40, 2))
    assert sorted(ids(distiset, "twice")) == list(range(80))
    assert ids(distiset, "all") == [40]


def test_each_predecessor_of_a_checkpointer_has_its_own_config(
    hub: LocalHub, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with Pipeline() as pipeline:
        first = Same(input_batch_size=10)
        first >> [Even(), Twice()] >> checkpointer(input_batch_size=20) >> Same(name="after")
    distiset = pipeline.run(dataset=rows(100))
    assert Counter(ids(distiset)) == Counter([*range(0, 100, 2), *range(200)])
    point_at(hub, monkeypatch, tmp_path / "hf")
    for config, expected in (("config-0", range(0, 100, 2)), ("config-1", range(200))):
        assert sorted(datasets.load_dataset("user/rows", config, split="train")["id"][:]) == list(expected)
    assert sum(path.startswith("config-0/") for path in dataset.paths()) == 3
    assert sum(path.startswith("config-1/") for path in dataset.paths()) == 10


def test_a_branch_that_edits_rows_does_not_affect_the_others() -> None:
    class Mark(Step):
        def process(self, *inputs: StepInput) -> Any:
            for row in inputs[0]:
                row["by"] = self.name
            yield inputs[0]

    with Pipeline() as pipeline:
        Same() >> [Mark(name="a"), Mark(name="b")]
    distiset = pipeline.run(dataset=rows(60))
    assert {leaf: set(distiset[leaf]["train"]["by"]) for leaf in distiset} == {"a": {"a"}, "b": {"b"}}


@pytest.mark.slow("makes ten thousand rows")
def test_a_slow_step_slows_down_its_source() -> None:
    made = []
    go_on = threading.Event()

    class Slow(Step):
        def process(self, *inputs: StepInput) -> Any:
            go_on.wait(60)
            yield inputs[0]

    def endless() -> Iterator[dict[str, Any]]:
        for n in range(10_000):
            made.append(n)
            if n == 2_000:
                go_on.set()
            yield {"id": n}

    with Pipeline() as pipeline:
        Same(input_batch_size=10) >> Slow(input_batch_size=10)
    waiting = threading.Timer(1.0, go_on.set)
    waiting.start()
    distiset = pipeline.run(dataset=endless())
    assert ids(distiset) == list(range(10_000))
    assert not go_on.wait(0) or len(made) == 10_000


@pytest.mark.slow("makes thousands of rows")
def test_a_late_failure_names_the_step_and_keeps_the_checkpoint(dataset: Dataset) -> None:
    class Breaks(Step):
        seen = 0

        def process(self, *inputs: StepInput) -> Any:
            self.seen += len(inputs[0])
            if self.seen > 10_000:
                raise ZeroDivisionError("no more")
            yield inputs[0]

    with Pipeline() as pipeline:
        Breaks(input_batch_size=100) >> checkpointer(input_batch_size=100)
    with pytest.raises(StepError, match=r"'breaks_0' raised ZeroDivisionError: no more") as caught:
        pipeline.run(dataset=rows(20_000))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    found = dataset.ids()
    assert found == list(range(len(found)))
    assert len(found) > 9_000


@pytest.mark.parametrize(("made", "found"), [({"id": 1}, "a dict"), (None, "a NoneType"), ([1], "a list of int")])
def test_a_step_that_yields_anything_but_rows_is_named(made: Any, found: str) -> None:
    class Wrong(Step):
        def process(self, *inputs: StepInput) -> Any:
            yield made

    with Pipeline() as pipeline:
        Wrong()
    with pytest.raises(StepError, match=f"'wrong_0' must yield lists of rows .*not {found}"):
        pipeline.run(dataset=rows(10))


@pytest.mark.parametrize(("token", "error"), [("hf_wrong", AuthenticationError), ("", ConfigError)])
def test_a_token_that_can_not_write_stops_the_run_before_the_first_row(
    hub: LocalHub, token: str, error: type[HubsyncError]
) -> None:
    seen: list[dict[str, Any]] = []

    class Watch(Step):
        def process(self, *inputs: StepInput) -> Any:
            seen.extend(inputs[0])
            yield inputs[0]

    with Pipeline() as pipeline:
        Watch() >> checkpointer(token=token)
    with pytest.raises(error):
        pipeline.run(dataset=rows(10))
    assert seen == []


def test_the_pipeline_does_not_wait_for_the_hub(hub: LocalHub, dataset: Dataset) -> None:
    ended = threading.Event()

    class Last(Step):
        def unload(self) -> None:
            pass

        def process(self, *inputs: StepInput) -> Any:
            yield inputs[0]
            if inputs[0][-1]["id"] == 999:
                ended.set()
                hub.faults.clear()

    hub.faults.add(Fault.outage(on="commit"))
    with Pipeline() as pipeline:
        Same() >> checkpointer() >> Last()
    distiset = pipeline.run(dataset=rows(1_000))
    assert ended.is_set()
    assert ids(distiset) == dataset.ids() == list(range(1_000))


def test_any_durable_step_resumes_after_a_failure() -> None:
    """The runner knows nothing of the checkpointer but `DurableStep`."""
    stored: list[int] = []
    positions: dict[str, Position] = {}

    class Memory(DurableStep):
        drained: float | None = -1.0

        def stored_position(self, number: int, source: str) -> Position:
            return positions.get(source, Position())

        def store(self, number: int, rows: list[Any], source: str | None, place: str, position: Position) -> None:
            assert source is not None
            stored.extend(row["id"] for row in rows)
            positions[source] = position

        def drain(self, timeout: float | None) -> None:
            type(self).drained = timeout

    class FailsOnce(Step):
        has_failed = False

        def process(self, *inputs: StepInput) -> Any:
            if inputs[0][0]["id"] >= 60 and not self.has_failed:
                type(self).has_failed = True
                raise ZeroDivisionError
            yield inputs[0]

    def run() -> Any:
        with Pipeline("durable") as pipeline:
            FailsOnce(input_batch_size=10) >> Memory(input_batch_size=20)
        return pipeline.run(dataset=rows(100), use_cache=True)

    with pytest.raises(StepError):
        run()
    assert stored == list(range(len(stored)))
    assert Memory.drained == 25.0
    assert ids(run()) == stored == list(range(100))
    assert Memory.drained is None


def test_a_second_run_continues_the_numbering(dataset: Dataset) -> None:
    for _ in range(2):
        with Pipeline() as pipeline:
            Same() >> checkpointer()
        pipeline.run(dataset=rows(100))
    assert dataset.paths() == [f"config-0/train-{n:05d}.jsonl" for n in range(4)]
    assert sorted(dataset.ids()) == sorted([*range(100), *range(100)])


def test_a_pipeline_runs_inside_an_event_loop() -> None:
    async def cell() -> Any:
        with Pipeline() as pipeline:
            Async()
        return pipeline.run(dataset=rows(10))

    assert ids(anyio.run(cell)) == list(range(10))
