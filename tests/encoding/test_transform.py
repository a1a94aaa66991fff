"""`transform=` changes and drops rows before they are encoded: in both uploaders and in the checkpointer."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import os
import random
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import datasets
import msgspec
import pyarrow as pa
import pytest

from hubsync import AsyncUploader, ConfigError, RowError, TransformError, Uploader
from hubsync.encoding.rows import encode
from hubsync.encoding.transform import transformed
from hubsync.localhub import LocalHub
from hubsync.pipeline import GeneratorStep, HuggingFaceHubCheckpointer, Pipeline
from tests.conftest import FAST, Dataset

Make = Callable[..., Uploader]
SECRET = "alice@example.org"
MAIL = re.compile(r"[\w.]+@[\w.]+")


def mask(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "text": MAIL.sub("<mail>", row["text"])}


def even(row: dict[str, Any]) -> dict[str, Any] | None:
    return row if row["id"] % 2 == 0 else None


def lines(rows: Any, transform: Any) -> list[Any]:
    encoded = encode(rows, transform=transform)
    found = [msgspec.json.decode(line) for line in encoded.lines.splitlines()]
    assert len(found) == encoded.rows
    return found


def files_of(directory: Path) -> bytes:
    return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())


# In the uploaders.


def test_a_masker_keeps_a_secret_from_the_hub_the_spool_and_the_log(
    uploader: Make, dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with uploader(transform=mask) as up:
        up.put([{"id": 0, "text": f"ask {SECRET}"}, {"id": 1, "text": "nobody"}])
        in_spool = files_of(tmp_path / "spool")
        assert b"ask <mail>" in in_spool
        assert SECRET.encode() not in in_spool
    assert dataset.rows() == [{"id": 0, "text": "ask <mail>"}, {"id": 1, "text": "nobody"}]
    assert SECRET.encode() not in files_of(tmp_path)
    assert SECRET not in caplog.text


def test_a_filter_drops_rows_and_the_receipt_counts_the_rest(uploader: Make, dataset: Dataset) -> None:
    with uploader(transform=even) as up:
        receipt = up.put([{"id": n} for n in range(5)])
        assert (receipt.rows, receipt.state) == (3, "spooled")
        assert up.stats().counts.spooled_rows == 3
    assert dataset.ids() == [0, 2, 4]


def test_the_async_uploader_transforms_too(hub: LocalHub, dataset: Dataset, tmp_path: Path) -> None:
    async def run() -> None:
        given: dict[str, Any] = {"endpoint": hub.endpoint, "token": hub.token, "spool": tmp_path / "spool", **FAST}
        async with AsyncUploader("user/rows", transform=even, **given) as up:
            assert (await up.put([{"id": n} for n in range(5)])).rows == 3
            with pytest.raises(TransformError):
                await up.put([{}])

    asyncio.run(run())
    assert dataset.ids() == [0, 2, 4]


def test_a_batch_that_is_dropped_entirely_still_counts_as_accepted(
    uploader: Make, dataset: Dataset, tmp_path: Path
) -> None:
    with uploader(transform=even) as up:
        receipt = up.put([{"id": 1}], offset=7, source="a", key="k")
        assert (receipt.rows, receipt.bytes, receipt.state) == (0, 0, "committed")
        assert up.offset("a") == 7
        assert up.known("k")
    with uploader(transform=even) as up:  # a job that resumes skips the batch
        assert up.offset("a") == 7
        assert up.put([{"id": 1}], offset=7, source="a").replayed
        assert up.put([{"id": 0}], key="k").replayed
        up.put([{"id": 2}], offset=8, source="a")
    assert dataset.ids() == [2]


def test_an_error_refuses_the_whole_batch_and_its_offset(uploader: Make, dataset: Dataset) -> None:
    with uploader(transform=mask) as up:
        with pytest.raises(TransformError) as caught:
            up.put([{"id": 0, "text": "x"}, {"id": 1, "no_text": SECRET}], offset=0)
        assert isinstance(caught.value, RowError)
        assert caught.value.row == 1
        assert isinstance(caught.value.__cause__, KeyError)
        assert up.offset() is None
        up.put([{"id": 2, "text": "x"}], offset=0)
    assert dataset.ids() == [2]


@pytest.mark.slow("runs a snippet in a process of its own")
def test_the_documented_snippet_masks_rows(hub: LocalHub, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "redact-rows.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    environ = {**os.environ, **hub.environ()}
    done = subprocess.run([sys.executable, "-c", snippet], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert Dataset(hub, "user/rollouts").rows() == [{"text": "ask <mail>"}]


# Messages about a row that must stay private.


def test_no_message_about_an_error_shows_the_row(
    uploader: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def fail(row: dict[str, Any]) -> None:
        raise ValueError(f"can't mask {row}")

    with uploader(transform=fail) as up, pytest.raises(TransformError) as caught:
        up.put([{"id": 0, "text": SECRET}])
    error = caught.value
    assert str(error).startswith("row 0: transform raised ValueError: ")
    shown = [str(error), repr(error), *getattr(error, "__notes__", ()), repr(up), caplog.text]
    shown += traceback.format_exception(type(error), error, error.__traceback__, chain=False)
    assert SECRET not in "".join(shown)
    assert SECRET in str(error.__cause__)  # the function's own message
    assert SECRET.encode() not in files_of(tmp_path)


def test_the_arguments_of_a_transform_are_not_shown(uploader: Make) -> None:
    up = uploader(transform=functools.partial(lambda salt, row: row, "the-salt"))
    assert "the-salt" not in repr(up)
    with pytest.raises(ConfigError) as caught:
        uploader(transform="the-salt")
    assert "the-salt" not in str(caught.value)


# The argument and the result.


def test_a_transform_that_edits_its_row_does_not_change_the_callers(uploader: Make, dataset: Dataset) -> None:
    def masks_in_place(row: dict[str, Any]) -> dict[str, Any]:
        row["name"] = "*"
        row["messages"][0]["content"] = "*"
        row["messages"].append({"content": "+"})
        row["pair"][1]["a"] = "*"
        return row

    row = {"name": "a", "messages": [{"content": "b"}], "pair": ({"b": 1}, {"a": "c"})}
    with uploader(transform=masks_in_place) as up:
        up.put([row])
    assert row == {"name": "a", "messages": [{"content": "b"}], "pair": ({"b": 1}, {"a": "c"})}
    masked = {"name": "*", "messages": [{"content": "*"}, {"content": "+"}], "pair": [{"b": 1}, {"a": "*"}]}
    assert dataset.rows() == [masked]


@dataclass
class Point:
    x: int


class Move(msgspec.Struct):
    x: int


@pytest.mark.parametrize("row", [Point(1), Move(1)], ids=["dataclass", "struct"])
def test_a_transform_gets_dataclasses_and_structs_themselves(row: Any) -> None:
    given: list[Any] = []

    def note(seen: Any) -> dict[str, int]:
        given.append(seen)
        return {"x": seen.x + 1}

    assert lines([row], note) == [{"x": 2}]
    assert given[0] is row


def test_a_transform_may_return_another_kind_of_row() -> None:
    assert lines([{"x": 3}], lambda row: Point(**row)) == [{"x": 3}]
    assert lines([{"x": 3}], lambda row: Move(**row)) == [{"x": 3}]


@pytest.mark.parametrize("answer", ["text", ["a", "row"], 7, True, iter([1])], ids=lambda answer: type(answer).__name__)
def test_a_result_that_is_not_a_row_is_reported_by_the_rows_index(answer: object) -> None:
    with pytest.raises(RowError) as caught:
        encode([{"id": 0}, {"id": 1}, {"id": 2}], transform=lambda row: answer if row["id"] == 2 else None)
    assert caught.value.row == 2


def test_a_bad_value_is_reported_by_the_index_before_filtering() -> None:
    with pytest.raises(RowError) as caught:
        encode(
            [{"id": n} for n in range(6)],
            transform=lambda row: {"a": {"b": float("inf")}} if row["id"] == 4 else even(row),
        )
    assert (caught.value.row, caught.value.path) == (4, "a.b")


def test_a_row_that_contains_itself_is_a_row_error() -> None:
    row: dict[str, Any] = {}
    row["again"] = row
    with pytest.raises(RowError) as caught:
        encode([{}, row], transform=lambda row: row)
    assert (caught.value.row, "nested too deep" in caught.value.reason) == (1, True)


# Arrow tables.


def test_arrow_tables_and_datasets_are_transformed_row_by_row() -> None:
    count = 2_500  # several slices
    table = pa.table({"id": range(count)})
    expected = [{"id": n} for n in range(0, count, 2)]
    assert lines(table, even) == expected
    assert lines(table.to_batches()[0], even) == expected
    assert lines(datasets.Dataset(table), even) == expected
    assert lines((row for row in table.to_pylist()), even) == expected


def test_a_row_of_a_later_slice_is_reported_by_its_index_in_the_table() -> None:
    def fail(row: dict[str, Any]) -> dict[str, Any] | None:
        return {"x": 1 / 0} if row["id"] == 2_100 else even(row)

    with pytest.raises(TransformError) as caught:
        encode(pa.table({"id": range(2_500)}), transform=fail)
    assert caught.value.row == 2_100
    with pytest.raises(RowError) as other:
        encode(pa.table({"id": range(2_500)}), transform=lambda row: {1: 2} if row["id"] == 2_101 else even(row))
    assert other.value.row == 2_101


# Anything but a plain function.


async def a_coroutine(row: Any) -> Any:
    return row


async def an_async_generator(row: Any) -> Any:
    yield row


def a_generator(row: Any) -> Any:
    yield row


class AsyncCall:
    async def __call__(self, row: Any) -> Any:
        return row


@pytest.mark.parametrize(
    "wrong",
    [a_coroutine, an_async_generator, a_generator, AsyncCall(), functools.partial(a_coroutine), "mask", 7],
    ids=lambda wrong: getattr(wrong, "__name__", type(wrong).__name__),
)
def test_anything_but_a_plain_function_is_refused_immediately(uploader: Make, wrong: Any) -> None:
    with pytest.raises(ConfigError, match="transform must be a function of one row"):
        uploader(transform=wrong)
    with Pipeline(), pytest.raises(ConfigError, match="transform must be a function of one row"):
        HuggingFaceHubCheckpointer(repo_id="user/rows", transform=wrong)


@pytest.mark.slow("starts an interpreter")
def test_a_disguised_async_function_is_refused_at_its_first_row(uploader: Make) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with uploader(transform=lambda row: a_coroutine(row)) as up:
            with pytest.raises(TransformError, match="transform returned a coroutine: it must not be async"):
                up.put([{"id": 0}])
            assert up.stats().counts.spooled_rows == 0
        gc.collect()


def test_an_interrupt_in_a_transform_is_raised(uploader: Make, dataset: Dataset) -> None:
    def interrupted(row: Any) -> Any:
        raise KeyboardInterrupt

    with uploader(transform=interrupted) as up, pytest.raises(KeyboardInterrupt):
        up.put([{"id": 0}])
    assert dataset.paths() == []


# In the checkpointer, which encodes its rows itself.


class Some(GeneratorStep):
    def process(self, offset: int = 0) -> Any:
        yield [{"id": n, "text": SECRET} for n in range(offset, 10)]


def only_even_and_masked(row: dict[str, Any]) -> dict[str, Any] | None:
    return mask(row) if even(row) else None


@pytest.mark.parametrize("use_cache", [False, True], ids=["by content", "by count"])
def test_the_checkpointer_transforms_uploaded_rows_only(
    hub: LocalHub, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use_cache: bool
) -> None:
    for name, value in hub.environ().items():
        monkeypatch.setenv(name, value)

    def run() -> list[Any]:
        with Pipeline("p") as pipeline:
            step = HuggingFaceHubCheckpointer(
                repo_id="user/rows", input_batch_size=4, transform=only_even_and_masked, spool=str(tmp_path / "spool"),
                commit=FAST["commit"], retry=FAST["retry"],
            )  # fmt: skip
            Some() >> step
        return list(pipeline.run(use_cache=use_cache)["default"]["train"])

    passed_on = run()
    assert [row["id"] for row in passed_on] == list(range(10))
    assert {row["text"] for row in passed_on} == {SECRET}
    assert dataset.rows() == [{"id": n, "text": "<mail>"} for n in range(0, 10, 2)]


# Without a transform.


def functions_of_the_transform_module(work: Callable[[], object]) -> set[str]:
    """Return the functions of `hubsync.encoding.transform` that `work` calls."""
    called: set[str] = set()

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_filename == transformed.__code__.co_filename:
            called.add(frame.f_code.co_name)

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return called


def test_without_a_transform_none_of_its_code_runs() -> None:
    rows = [{"id": n, "x": random.random(), "tags": [n]} for n in range(100)]
    assert functions_of_the_transform_module(lambda: encode(rows, transform=dict)) >= {"transformed", "_copy"}
    assert functions_of_the_transform_module(lambda: encode(rows)) == set()
