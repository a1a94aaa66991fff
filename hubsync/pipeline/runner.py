"""Running a pipeline: every step in a task or a thread of its own, bounded channels between them.

A slow step pushes back and holds nobody else up. An error, or Ctrl-C, ends all of them in order; what was
checkpointed is safe, and is drained for as long as the grace allows.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskStatus

from hubsync._runtime import signals
from hubsync._runtime.exceptions import root_cause
from hubsync._runtime.file_lock import FileLock
from hubsync.encoding.rows import encode
from hubsync.errors import HubsyncError
from hubsync.model.target import default_home
from hubsync.pipeline.channels import Chunk, Inlet, Merge, Outlet, Position, Tracker
from hubsync.pipeline.checkpointer import HuggingFaceHubCheckpointer
from hubsync.pipeline.distiset import Distiset, load
from hubsync.pipeline.graph import GeneratorStep, GlobalStep, Pipeline, PipelineError, Row, Step, StepError

_log = logging.getLogger("hubsync")
T = TypeVar("T")

_CHUNKS = 4  # that may wait in one channel
_GRACE_S = 25.0  # to drain, where the run is broken off
_END = object()


def run(pipeline: Pipeline, dataset: Iterable[Row] | None, use_cache: bool) -> Distiset:
    """As `Pipeline.run`."""
    if use_cache and len({id(s) for s in pipeline.steps if not s.predecessors}) > 1:
        starts = [s for s in pipeline.steps if not s.predecessors]
        if any(isinstance(step, GeneratorStep) for step in starts):
            raise PipelineError("use_cache needs one source: a dataset, or one GeneratorStep.")
    cache = _cache(pipeline)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = None if use_cache else tempfile.TemporaryDirectory(prefix="hubsync-pipeline-")
    directory = cache if scratch is None else Path(scratch.name)
    with _Attempt(cache) as attempt:
        running = _Running(pipeline, dataset, directory, cache.name if use_cache else None, attempt.name)
        _in_loop(running.run)
        attempt.has_ended()
    names = ["default"] if len(pipeline.leaves) == 1 else [leaf.name for leaf in pipeline.leaves]
    files = {name: running.collectors[leaf].file for name, leaf in zip(names, pipeline.leaves, strict=True)}
    return load(files, scratch, directory / "arrow")


def _cache(pipeline: Pipeline) -> Path:
    """Where a run keeps what it needs to go on: one place for each pipeline and the shape of its graph."""
    shape = [
        (step.name, type(step).__qualname__, step.input_batch_size, [s.name for s in step.successors])
        for step in pipeline.steps
    ]
    tag = hashlib.blake2b(msgspec.json.encode(shape), digest_size=4).hexdigest()
    return default_home() / "pipelines" / f"{pipeline.name}-{tag}"


class _Attempt:
    """Names a run that begins at the beginning. One that dies before its end leaves its name to the next one, so that
    what both have made alike is in a checkpoint once; while another process has that name, a run has one of its own.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = FileLock(directory / "attempt.lock")
        self._file = directory / "attempt"
        self.name = secrets.token_hex(8)

    def __enter__(self) -> Self:
        if self._lock.acquire():
            with suppress(OSError, UnicodeDecodeError):
                self.name = self._file.read_text() or self.name
            self._file.write_text(self.name)
        return self

    def has_ended(self) -> None:
        """The next run is another one."""
        if self._lock.held:
            self._file.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def _in_loop(main: Callable[[], Any]) -> None:
    """In an event loop of its own; in a thread where this one has a loop already, as in a notebook."""
    try:
        import asyncio

        asyncio.get_running_loop()
    except RuntimeError:
        _flat(partial(anyio.run, main))
        return
    failed: list[BaseException] = []

    def work() -> None:
        try:
            _flat(partial(anyio.run, main))
        except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
            failed.append(error)

    thread = threading.Thread(target=work, name="hubsync pipeline")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _flat(work: Callable[[], object]) -> None:
    try:
        work()
    except BaseExceptionGroup as group:
        error = root_cause(group)
        raise error from error.__cause__


class _Running:
    """One run."""

    def __init__(
        self, pipeline: Pipeline, dataset: Iterable[Row] | None, directory: Path, tag: str | None, attempt: str
    ) -> None:
        """With a `tag` it goes on where a run with the same one has ended; without, from the beginning."""
        self._pipeline = pipeline
        self._dataset = dataset
        self._tag = tag
        self._attempt = attempt
        self.collectors = {leaf: Collector(directory, leaf.name) for leaf in pipeline.leaves}
        self._inlets: dict[Step, list[Inlet]] = {}
        self._outlets: dict[Step, Outlet] = {}
        self._sources: dict[Step, Outlet] = {}
        self._ended = False

    async def run(self) -> None:
        loaded: list[Step] = []
        try:
            for step in self._pipeline.steps:
                loaded.append(step)
                await _in_thread(step.load)
            start = await _in_thread(self._start) if self._tag is not None else -1
            async with anyio.create_task_group() as watching:
                if signals.can_catch():
                    await watching.start(self._end_on_sigterm, watching.cancel_scope)
                async with anyio.create_task_group() as tasks:
                    for work in self._wire(start):
                        tasks.start_soon(work)
                self._ended = True
                watching.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                for step in reversed(loaded):
                    await self._unload(step)
                for collector in self.collectors.values():
                    collector.close()
        if not self._ended:
            raise SystemExit(signals.EXIT_CODE)

    async def _end_on_sigterm(self, scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as received:
            task_status.started()
            async for _ in received:
                signals.begin(_GRACE_S)
                _log.warning("SIGTERM: the pipeline %s ends; draining for up to %.0f s.", self._pipeline.name, _GRACE_S)
                scope.cancel()

    async def _unload(self, step: Step) -> None:
        if isinstance(step, HuggingFaceHubCheckpointer):
            await _in_thread(step.close, step.drain_s if self._ended else _GRACE_S)
        try:
            await _in_thread(step.unload)
        except Exception:  # noqa: BLE001  (a step's own; the others are still to be unloaded)
            _log.exception("%s: unload has failed.", step.name)

    # Where a run begins.

    def _source_of(self, step: Step, number: int) -> str | None:
        return f"{self._tag}/{step.name}/{number}" if self._tag is not None else None

    def _known(self, step: HuggingFaceHubCheckpointer, number: int) -> Position:
        source = self._source_of(step, number)
        return Position() if source is None else step.known(number, source)

    def _start(self) -> int:
        """The mark from which the source is read again: behind it, some consumer has not got everything."""
        positions = [collector.position for collector in self.collectors.values()]
        for step in self._pipeline.steps:
            if isinstance(step, HuggingFaceHubCheckpointer):
                positions += [self._known(step, number) for number in range(len(step.predecessors) or 1)]
        return min(positions).mark

    def _wire(self, start: int) -> list[Callable[[], Any]]:
        """Makes the channels; answers what is to run, all at the same time."""
        works: list[Callable[[], Any]] = []
        senders: dict[Step, list[Any]] = {step: [] for step in self._pipeline.steps}
        feeds: list[tuple[Step, Any]] = []
        for step in self._pipeline.steps:
            self._inlets[step] = []
            before = step.predecessors
            for number in range(0 if isinstance(step, GeneratorStep) else len(before) or 1):
                send, receive = anyio.create_memory_object_stream[Chunk](_CHUNKS)
                self._inlets[step].append(Inlet(receive, start))
                if before:
                    senders[before[number]].append(send)
                else:
                    feeds.append((step, send))
        for leaf, collector in self.collectors.items():
            if _collects_itself(leaf):
                continue
            send, receive = anyio.create_memory_object_stream[Chunk](_CHUNKS)
            senders[leaf].append(send)
            works.append(partial(self._collect, collector, Inlet(receive, start), start))
        if feeds:
            size = min(step.input_batch_size for step, _ in feeds)
            works.append(partial(self._feed, Outlet(send for _, send in feeds), size, start))
        works += [partial(self._serve, step, Outlet(senders[step]), start) for step in self._pipeline.steps]
        return works

    async def _feed(self, outlet: Outlet, size: int, start: int) -> None:
        assert self._dataset is not None
        try:
            mark = start
            async for rows in _in_steps(partial(batches, self._dataset, start + 1, size)):
                await outlet.send(Chunk(rows, list(range(mark + 1, mark + 1 + len(rows))), mark + len(rows)))
                mark += len(rows)
        finally:
            outlet.close()

    async def _collect(self, collector: Collector, inlet: Inlet, start: int) -> None:
        collector.begin(start)
        while True:
            chunk = await inlet.take_any()
            await _in_thread(collector.add, chunk)
            if inlet.ended and not chunk.rows:
                return

    # Steps.

    async def _serve(self, step: Step, outlet: Outlet, start: int) -> None:
        try:
            if isinstance(step, HuggingFaceHubCheckpointer):
                await self._checkpoint(step, outlet, start)
            elif isinstance(step, GeneratorStep):
                await self._generate(step, outlet, start)
            else:
                await self._process(step, outlet, start)
        except (HubsyncError, MemoryError):
            raise
        except Exception as error:
            raise StepError(
                f"the step {step.name!r} has raised {type(error).__name__}: {error} (after {outlet.rows:,} rows)"
            ) from error
        finally:
            outlet.close()

    async def _generate(self, step: GeneratorStep, outlet: Outlet, start: int) -> None:
        mark = start
        async for made in _outputs(step, partial(step.process, start + 1)):
            rows = made[0] if isinstance(made, tuple) else made
            _check(step, rows)
            await outlet.send(Chunk(rows, list(range(mark + 1, mark + 1 + len(rows))), mark + len(rows)))
            mark += len(rows)

    async def _process(self, step: Step, outlet: Outlet, start: int) -> None:
        size = None if isinstance(step, GlobalStep) else step.input_batch_size
        inlets, passed = self._inlets[step], start
        while True:
            batch = [await inlet.take(size) for inlet in inlets]
            if any(chunk.rows for chunk in batch):
                passed = await self._one_batch(step, outlet, batch, passed)
            else:
                await outlet.send(Chunk([], [], min(chunk.done for chunk in batch)))
            if all(inlet.ended for inlet in inlets) and not any(chunk.rows for chunk in batch):
                return

    async def _one_batch(self, step: Step, outlet: Outlet, batch: list[Chunk], passed: int) -> int:
        """Sends on what a step makes of one batch, and answers the mark of the last row that it has sent. The last list
        is held back until it is known to be the last: its last row raises the mark.
        """
        done = min(chunk.done for chunk in batch)
        held: list[Row] = []
        lists = 0
        async for rows in _outputs(step, partial(step.process, *(chunk.rows for chunk in batch))):
            _check(step, rows)
            if rows and held:
                await outlet.send(Chunk(held, [passed] * len(held), passed))
            held, lists = rows or held, lists + bool(rows)
        if lists == 1 and len(batch) == 1 and len(held) == len(batch[0].marks):
            marks = batch[0].marks  # a row for a row, as most steps do
        else:
            marks = [passed] * (len(held) - 1) + [done] * (len(held) > 0)
        await outlet.send(Chunk(held, marks, done))
        return done if held else passed

    async def _checkpoint(self, step: HuggingFaceHubCheckpointer, outlet: Outlet, start: int) -> None:
        """Each predecessor's rows go their own way to the Hub; all of them go on to the next step."""
        inlets = self._inlets[step]
        merge = Merge(len(inlets), start, step.input_batch_size) if len(inlets) > 1 else None
        one_after_another = anyio.Lock()
        # A row that the Hub has must never be wanting here: then it would have to be made again.
        collector = self.collectors[step] if _collects_itself(step) else None
        if collector is not None:
            collector.begin(start)

        async def follow(number: int, inlet: Inlet) -> None:
            tracker = Tracker(start, await _in_thread(self._known, step, number))
            while True:
                chunk = await inlet.take(step.input_batch_size)
                if collector is not None:
                    await _in_thread(collector.add, chunk)
                fresh = tracker.fresh(chunk)
                if fresh.rows:
                    source, place = self._source_of(step, number), f"{self._attempt}/{step.name}/{number}"
                    await _in_thread(step.put, number, fresh.rows, source, place, tracker.position)
                async with one_after_another:
                    for chunk_on in [chunk] if merge is None else merge.add(number, chunk):
                        await outlet.send(chunk_on)
                if inlet.ended and not chunk.rows:
                    return

        async with anyio.create_task_group() as tasks:
            for number, inlet in enumerate(inlets):
                tasks.start_soon(follow, number, inlet)
        if merge is not None:
            await outlet.send(merge.rest())


class Collector:
    """A leaf's rows, in a JSON Lines file, and how far in the stream they reach."""

    def __init__(self, directory: Path, name: str) -> None:
        self.file = directory / f"{name}.jsonl"
        self._index = directory / f"{name}.position"
        size, offset = 0, None
        with suppress(OSError, ValueError):
            size, offset = map(int, self._index.read_text().split())
        self.file.touch(mode=0o600)
        os.truncate(self.file, size)
        self.position = Position.of(offset)
        self._tracker = Tracker(-1, self.position)
        self._stream = self.file.open("ab")

    def begin(self, start: int) -> None:
        """The stream begins again behind the mark `start`."""
        self._tracker = Tracker(start, self.position)

    def add(self, chunk: Chunk) -> None:
        """Appends what is new, and then tells of it: the position's file is replaced as a whole."""
        rows = self._tracker.fresh(chunk).rows
        if self._tracker.position <= self.position:
            return
        if rows:
            self._stream.write(encode(rows).lines)
            self._stream.flush()
        self.position = position = self._tracker.position
        new = self._index.with_suffix(".new")
        new.write_text(f"{self._stream.tell()} {position.offset()}")
        os.replace(new, self._index)

    def close(self) -> None:
        self._stream.close()


def batches(dataset: Iterable[Row], start: int, size: int) -> Iterator[list[Row]]:
    """The rows of a dataset from index `start` on, `size` at a time."""
    if hasattr(dataset, "column_names") and hasattr(dataset, "__len__"):  # datasets.Dataset
        table: Any = dataset
        for at in range(start, len(table), size):
            columns = table[at : at + size]
            yield [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return
    rows = iter(dataset.skip(start)) if hasattr(dataset, "skip") else itertools.islice(dataset, start, None)
    while batch := list(itertools.islice(rows, size)):
        yield batch


def _collects_itself(step: Step) -> bool:
    """A checkpointer at the end keeps its rows here before they may go to the Hub."""
    return isinstance(step, HuggingFaceHubCheckpointer) and not step.successors and len(step.predecessors) <= 1


def _check(step: Step, rows: Any) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows[:1]):
        found = f"a list of {type(rows[0]).__name__}" if isinstance(rows, list) else f"a {type(rows).__name__}"
        raise StepError(f"the step {step.name!r} yields lists of rows (dicts), not {found}.")


async def _outputs(step: Step, process: Callable[[], Any]) -> AsyncIterator[Any]:
    """What `process` yields, whichever kind of function it is."""
    if inspect.isasyncgenfunction(step.process):
        async for rows in process():
            yield rows
    elif inspect.iscoroutinefunction(step.process):
        yield await process() or []
    else:
        async for rows in _in_steps(process):
            yield rows


async def _in_steps(begin: Callable[[], Any]) -> AsyncIterator[Any]:
    """Iterates something that blocks, in worker threads; a list is one step of its own."""
    made = await _in_thread(begin)
    if not isinstance(made, (Generator, Iterator)):
        yield made
        return
    while (item := await _in_thread(next, made, _END)) is not _END:
        yield item


async def _in_thread(work: Callable[..., T], *args: object) -> T:
    return await anyio.to_thread.run_sync(partial(work, *args), limiter=anyio.CapacityLimiter(1))
