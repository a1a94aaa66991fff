"""Run a pipeline: each step in its own task or thread, with bounded channels between them.

A slow step slows down only the steps before it. An error or Ctrl-C ends all steps in order. Checkpointed rows are
safe then, and are uploaded for as long as the grace period allows.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import signal
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import msgspec
from anyio.abc import TaskStatus
from anyio.streams.memory import MemoryObjectSendStream

from hubsync._runtime import signals
from hubsync._runtime.exceptions import root_cause
from hubsync._runtime.file_lock import FileLock
from hubsync._runtime.formatting import count_text
from hubsync.errors import HubsyncError
from hubsync.model.target import state_home
from hubsync.pipeline.blocking import batches, iterate_in_threads, outputs, run_in_thread
from hubsync.pipeline.channels import Chunk, Inlet, Merge, Outlet, ReplayFilter
from hubsync.pipeline.distiset import Collector, Distiset, load
from hubsync.pipeline.durable import DurableStep, Position
from hubsync.pipeline.steps import GeneratorStep, GlobalStep, PipelineError, Row, Step, StepError, StepGraph

_log = logging.getLogger("hubsync")

_CHANNEL_CHUNKS = 4  # capacity of one channel
_GRACE_S = 25.0  # to drain after an error or a signal


def run(name: str, graph: StepGraph, dataset: Iterable[Row] | None, use_cache: bool) -> Distiset:
    """Run all steps of a graph to the end; see `Pipeline.run`."""
    sources = [step for step in graph.steps if not step.predecessors]
    if use_cache and len(sources) > 1 and any(isinstance(step, GeneratorStep) for step in sources):
        raise PipelineError("use_cache needs one source: a dataset or one GeneratorStep.")
    cache = _cache_directory(name, graph)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    scratch = None if use_cache else tempfile.TemporaryDirectory(prefix="hubsync-pipeline-")
    directory = cache if scratch is None else Path(scratch.name)
    with _Attempt(cache) as attempt:
        pipeline_run = _Run(name, graph, dataset, directory, cache.name if use_cache else None, attempt.name)
        _run_event_loop(pipeline_run.run)
        attempt.finish()
    names = ["default"] if len(graph.leaves) == 1 else [leaf.name for leaf in graph.leaves]
    files = {name: pipeline_run.collectors[leaf].file for name, leaf in zip(names, graph.leaves, strict=True)}
    return load(files, scratch, directory / "arrow")


def _cache_directory(name: str, graph: StepGraph) -> Path:
    """Return where runs of a pipeline store what they need to resume: one directory per name and shape of its graph."""
    shape = [
        (step.name, type(step).__qualname__, step.input_batch_size, [s.name for s in step.successors])
        for step in graph.steps
    ]
    tag = hashlib.blake2b(msgspec.json.encode(shape), digest_size=4).hexdigest()
    return state_home() / "pipelines" / f"{name}-{tag}"


class _Attempt:
    """The name of a run that starts from the beginning.

    A run that dies leaves its name to the next one, so that equal rows of both are checkpointed once. A run that starts
    while another process uses that name gets a new one.
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

    def finish(self) -> None:
        """Forget the name: the next run is a new one."""
        if self._lock.held:
            self._file.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


def _run_event_loop(main: Callable[[], Any]) -> None:
    """Run `main` in a new event loop: in this thread, or in a new one if this has a loop, as in a notebook."""
    try:
        import asyncio

        asyncio.get_running_loop()
    except RuntimeError:
        _run_flat(main)
        return
    executor = ThreadPoolExecutor(1, "hubsync pipeline")
    try:
        executor.submit(_run_flat, main).result()
    finally:
        executor.shutdown(wait=False)


def _run_flat(main: Callable[[], Any]) -> None:
    """Run `main` in a new event loop; raise the cause of an exception group instead of the group."""
    try:
        anyio.run(main)
    except BaseExceptionGroup as group:
        error = root_cause(group)
        raise error from error.__cause__


class _Run:
    """One run of a graph."""

    def __init__(
        self, name: str, graph: StepGraph, dataset: Iterable[Row] | None, directory: Path, tag: str | None, attempt: str
    ) -> None:
        """With a `tag`, the run resumes where the last one with the same tag ended; without, it starts anew."""
        self._name = name
        self._steps = graph.steps
        self._dataset = dataset
        self._tag = tag
        self._attempt = attempt
        self.collectors = {leaf: Collector(directory, leaf.name) for leaf in graph.leaves}
        self._inlets: dict[Step, list[Inlet]] = {}
        self._ended = False

    async def run(self) -> None:
        """Load the steps, run them, and unload every step that was loaded."""
        loaded: list[Step] = []
        try:
            for step in self._steps:
                loaded.append(step)
                await run_in_thread(step.load)
            start = await run_in_thread(self._start_mark) if self._tag is not None else -1
            async with anyio.create_task_group() as watching:
                if signals.shutdown.can_handle_sigterm():
                    await watching.start(self._cancel_on_sigterm, watching.cancel_scope)
                async with anyio.create_task_group() as tasks:
                    for work in self._connect(start):
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

    async def _cancel_on_sigterm(self, scope: anyio.CancelScope, *, task_status: TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGTERM) as received:
            task_status.started()
            async for _ in received:
                signals.shutdown.begin(_GRACE_S)
                _log.warning("SIGTERM: stopping the pipeline %s; uploading for up to %.0f s.", self._name, _GRACE_S)
                scope.cancel()

    async def _unload(self, step: Step) -> None:
        if isinstance(step, DurableStep):
            await run_in_thread(step.drain, step.drain_s if self._ended else _GRACE_S)
        try:
            await run_in_thread(step.unload)
        except Exception:  # noqa: BLE001  (user code; the other steps must be unloaded too)
            _log.exception("%s: unload failed.", step.name)

    # Where the run starts.

    def _source_name(self, step: Step, number: int) -> str | None:
        return f"{self._tag}/{step.name}/{number}" if self._tag is not None else None

    def _stored_position(self, step: DurableStep, number: int) -> Position:
        source = self._source_name(step, number)
        return Position() if source is None else step.stored_position(number, source)

    def _start_mark(self) -> int:
        """Return the mark after which to read the source again: the lowest that any consumer has stored."""
        positions = [collector.position for collector in self.collectors.values()]
        for step in self._steps:
            if isinstance(step, DurableStep):
                positions += [self._stored_position(step, number) for number in range(len(step.predecessors) or 1)]
        return min(positions).mark

    def _connect(self, start: int) -> list[Callable[[], Any]]:
        """Create the channels; return the functions that must run concurrently."""
        works: list[Callable[[], Any]] = []
        senders: dict[Step, list[MemoryObjectSendStream[Chunk]]] = {step: [] for step in self._steps}
        feeds: list[tuple[Step, MemoryObjectSendStream[Chunk]]] = []
        for step in self._steps:
            self._inlets[step] = []
            before = step.predecessors
            for number in range(0 if isinstance(step, GeneratorStep) else len(before) or 1):
                send, receive = anyio.create_memory_object_stream[Chunk](_CHANNEL_CHUNKS)
                self._inlets[step].append(Inlet(receive, start))
                if before:
                    senders[before[number]].append(send)
                else:
                    feeds.append((step, send))
        for leaf, collector in self.collectors.items():
            if not _collects_its_input(leaf):
                send, receive = anyio.create_memory_object_stream[Chunk](_CHANNEL_CHUNKS)
                senders[leaf].append(send)
                works.append(partial(self._collect, collector, Inlet(receive, start), start))
        if feeds:
            size = min(step.input_batch_size for step, _ in feeds)
            works.append(partial(self._feed, Outlet(send for _, send in feeds), size, start))
        works += [partial(self._run_step, step, Outlet(senders[step]), start) for step in self._steps]
        return works

    async def _feed(self, outlet: Outlet, size: int, start: int) -> None:
        """Send the dataset's rows to the first steps."""
        assert self._dataset is not None
        try:
            mark = start
            async for rows in iterate_in_threads(partial(batches, self._dataset, start + 1, size)):
                mark = await _send_source_rows(outlet, rows, mark)
        finally:
            outlet.close()

    async def _collect(self, collector: Collector, inlet: Inlet, start: int) -> None:
        """Write the output of a leaf to its file."""
        collector.begin(start)
        while True:
            chunk = await inlet.take_any()
            await run_in_thread(collector.add, chunk)
            if inlet.ended and not chunk.rows:
                return

    # The steps.

    async def _run_step(self, step: Step, outlet: Outlet, start: int) -> None:
        try:
            if isinstance(step, DurableStep):
                await self._store(step, outlet, start)
            elif isinstance(step, GeneratorStep):
                await self._generate(step, outlet, start)
            else:
                await self._process(step, outlet, start)
        except Exception as raised:  # noqa: BLE001  (raised again below)
            error = root_cause(raised)
            if isinstance(error, (HubsyncError, MemoryError)):
                if error is not raised:  # of a task that follows one of several predecessors
                    error.add_note(f"In the step {step.name!r}, after {count_text(outlet.rows, 'row')}.")
                raise error from error.__cause__
            after = count_text(outlet.rows, "row")
            raise StepError(f"the step {step.name!r} raised {type(error).__name__}: {error} (after {after})") from error
        finally:
            outlet.close()

    async def _generate(self, step: GeneratorStep, outlet: Outlet, start: int) -> None:
        mark = start
        async for made in outputs(step, partial(step.process, start + 1)):
            rows = made[0] if isinstance(made, tuple) else made
            _check_output(step, rows)
            mark = await _send_source_rows(outlet, rows, mark)

    async def _process(self, step: Step, outlet: Outlet, start: int) -> None:
        size = None if isinstance(step, GlobalStep) else step.input_batch_size
        inlets, sent = self._inlets[step], start
        while True:
            batch = [await inlet.take(size) for inlet in inlets]
            if any(chunk.rows for chunk in batch):
                sent = await self._process_batch(step, outlet, batch, sent)
            else:
                await outlet.send(Chunk([], [], min(chunk.done for chunk in batch)))
            if all(inlet.ended for inlet in inlets) and not any(chunk.rows for chunk in batch):
                return

    async def _process_batch(self, step: Step, outlet: Outlet, batch: list[Chunk], sent: int) -> int:
        """Send what a step makes of one batch; return the mark of the last row sent.

        Only the last row of the batch may raise the mark, so each list is held until the next one arrives.
        """
        done = min(chunk.done for chunk in batch)
        held: list[Row] = []
        lists = 0
        async for rows in outputs(step, partial(step.process, *(chunk.rows for chunk in batch))):
            _check_output(step, rows)
            if rows and held:
                await outlet.send(Chunk(held, [sent] * len(held), sent))
            held, lists = rows or held, lists + bool(rows)
        if lists == 1 and len(batch) == 1 and len(held) == len(batch[0].marks):
            marks = batch[0].marks  # one row per row, as in most steps
        else:
            marks = [sent] * (len(held) - 1) + [done] * (len(held) > 0)
        await outlet.send(Chunk(held, marks, done))
        return done if held else sent

    async def _store(self, step: DurableStep, outlet: Outlet, start: int) -> None:
        """Store the rows of each predecessor separately; pass all of them to the successors."""
        inlets = self._inlets[step]
        merge = Merge(len(inlets), start, step.input_batch_size) if len(inlets) > 1 else None
        sending = anyio.Lock()
        # A leaf collects a row before it stores it: a stored row that the collector lacks would be generated again.
        collector = self.collectors[step] if _collects_its_input(step) else None
        if collector is not None:
            collector.begin(start)

        async def follow(number: int, inlet: Inlet) -> None:
            replay = ReplayFilter(start, await run_in_thread(self._stored_position, step, number))
            while True:
                chunk = await inlet.take(step.input_batch_size)
                if collector is not None:
                    await run_in_thread(collector.add, chunk)
                new = replay.new_rows(chunk)
                if new.rows:
                    source, place = self._source_name(step, number), f"{self._attempt}/{step.name}/{number}"
                    await run_in_thread(step.store, number, new.rows, source, place, replay.position)
                async with sending:
                    for passed_on in [chunk] if merge is None else merge.add(number, chunk):
                        await outlet.send(passed_on)
                if inlet.ended and not chunk.rows:
                    return

        async with anyio.create_task_group() as tasks:
            for number, inlet in enumerate(inlets):
                tasks.start_soon(follow, number, inlet)
        if merge is not None:
            await outlet.send(merge.rest())


async def _send_source_rows(outlet: Outlet, rows: list[Row], mark: int) -> int:
    """Send rows of the source, which follow the one at `mark`; return the mark of the last."""
    end = mark + len(rows)
    await outlet.send(Chunk(rows, list(range(mark + 1, end + 1)), end))
    return end


def _collects_its_input(step: Step) -> bool:
    """Return whether a durable step is a leaf with one predecessor: it collects its rows before it stores them."""
    return isinstance(step, DurableStep) and not step.successors and len(step.predecessors) <= 1


def _check_output(step: Step, rows: object) -> None:
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows[:1]):
        found = f"a list of {type(rows[0]).__name__}" if isinstance(rows, list) else f"a {type(rows).__name__}"
        raise StepError(f"the step {step.name!r} must yield lists of rows (dicts), not {found}.")
