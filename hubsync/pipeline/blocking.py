"""Calls of blocking code, a step's or a dataset's, from the event loop: each call runs in a worker thread."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from hubsync.pipeline.steps import Row, Step

T = TypeVar("T")
_END = object()


async def run_in_thread(work: Callable[..., T], *args: object) -> T:
    """Run a function in a worker thread of its own, however many others are running."""
    return await anyio.to_thread.run_sync(partial(work, *args), limiter=anyio.CapacityLimiter(1))


async def outputs(step: Step, process: Callable[[], Any]) -> AsyncIterator[Any]:
    """Call a step's `process` and iterate over the lists that it makes, whichever kind of function it is."""
    if inspect.isasyncgenfunction(step.process):
        async for rows in process():
            yield rows
    elif inspect.iscoroutinefunction(step.process):
        yield await process() or []
    else:
        async for rows in iterate_in_threads(process):
            yield rows


async def iterate_in_threads(begin: Callable[[], Any]) -> AsyncIterator[Any]:
    """Iterate over what `begin` returns, in worker threads; anything but an iterator is one item."""
    made = await run_in_thread(begin)
    if not isinstance(made, (Generator, Iterator)):
        yield made
        return
    while (item := await run_in_thread(next, made, _END)) is not _END:
        yield item


def batches(dataset: Iterable[Row], start: int, size: int) -> Iterator[list[Row]]:
    """Yield the rows of a dataset from index `start` on, `size` at a time."""
    if hasattr(dataset, "column_names") and hasattr(dataset, "__len__"):  # datasets.Dataset
        table: Any = dataset
        for at in range(start, len(table), size):
            columns = table[at : at + size]
            yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return
    rows = iter(dataset.skip(start)) if hasattr(dataset, "skip") else itertools.islice(dataset, start, None)
    while batch := list(itertools.islice(rows, size)):
        yield batch
