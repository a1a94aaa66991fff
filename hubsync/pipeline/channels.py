"""The channels between steps: chunks of rows that carry their position in the source.

A *mark* is an index in the source. When a row raises its stream's mark to m, everything made from the source's rows up
to m has passed. A consumer that stores its position can therefore resume there after a crash, and nothing is made
twice. Positions count rows, never chunks: every run cuts the rows differently.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from anyio import EndOfStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from hubsync.pipeline.durable import Position
from hubsync.pipeline.steps import Row


@dataclass(slots=True)
class Chunk:
    """Rows, each with its mark. `done` is the stream's mark after them; it also covers source rows that gave no row."""

    rows: list[Row]
    marks: list[int]
    done: int


class ReplayFilter:
    """Follow a stream that restarted after the mark `start`, and drop the rows up to a `known` position."""

    def __init__(self, start: int, known: Position) -> None:
        self.position = Position(start)
        self._known = known

    def new_rows(self, chunk: Chunk) -> Chunk:
        """Return the rows of a chunk after the known position; move `position` to the chunk's end."""
        rows, marks = [], []
        for row, mark in zip(chunk.rows, chunk.marks, strict=True):
            here = self.position
            self.position = Position(mark) if mark > here.mark else Position(here.mark, here.skip + 1)
            if self.position > self._known:
                rows.append(row)
                marks.append(mark)
        return Chunk(rows, marks, chunk.done)


class Inlet:
    """The rows of one predecessor, in order, in batches of the size that the step wants."""

    def __init__(self, stream: MemoryObjectReceiveStream[Chunk], start: int) -> None:
        self._stream = stream
        self._rows: deque[Row] = deque()
        self._marks: deque[int] = deque()
        self._done = start
        self._taken = start
        self.ended = False

    async def take_any(self) -> Chunk:
        """Return all rows received so far, at least one chunk; an empty chunk at the end."""
        if not self._rows and not self.ended:
            await self._receive()
        return await self.take(len(self._rows))

    async def take(self, size: int | None) -> Chunk:
        """Return the next `size` rows (None: all), fewer at the end, and then an empty chunk."""
        while not self.ended and (size is None or len(self._rows) < size):
            await self._receive()
        count = len(self._rows) if size is None else min(size, len(self._rows))
        rows = [self._rows.popleft() for _ in range(count)]
        marks = [self._marks.popleft() for _ in range(count)]
        self._taken = max(self._taken, marks[-1] if marks else self._done)
        return Chunk(rows, marks, self._taken)

    async def _receive(self) -> None:
        try:
            chunk = await self._stream.receive()
        except EndOfStream:
            self.ended = True
        else:
            self._rows.extend(chunk.rows)
            self._marks.extend(chunk.marks)
            self._done = chunk.done


class Merge:
    """Merge streams into one whose order is the same in every run.

    The order is by windows of the source, and within a window by stream. A consumer can therefore resume at a mark,
    whichever stream was faster.
    """

    def __init__(self, streams: int, start: int, window: int) -> None:
        self._ready: list[deque[tuple[Row, int]]] = [deque() for _ in range(streams)]  # rows and their final mark
        self._unfinished: list[list[Row]] = [[] for _ in range(streams)]  # rows whose mark is not complete yet
        self._marks = [start] * streams
        self._window = window
        self._done = start

    def add(self, number: int, chunk: Chunk) -> list[Chunk]:
        """Add a chunk of stream `number`; return the windows that are now complete."""
        for row, mark in zip(chunk.rows, chunk.marks, strict=True):
            self._unfinished[number].append(row)
            self._advance(number, mark)
        self._advance(number, chunk.done)
        chunks = []
        while (end := ((self._done + 1) // self._window + 1) * self._window - 1) <= min(self._marks):
            chunks.append(self._take_until(end))
        return chunks

    def rest(self) -> Chunk:
        """Return the remaining rows, after all streams have ended."""
        last = max(self._marks)
        for ready, unfinished in zip(self._ready, self._unfinished, strict=True):
            ready.extend((row, last) for row in unfinished)
        return self._take_until(last)

    def _advance(self, number: int, mark: int) -> None:
        if mark > self._marks[number]:
            self._marks[number] = mark
            self._ready[number].extend((row, mark) for row in self._unfinished[number])
            self._unfinished[number].clear()

    def _take_until(self, end: int) -> Chunk:
        rows: list[Row] = []
        for ready in self._ready:
            while ready and ready[0][1] <= end:
                rows.append(ready.popleft()[0])
        before, self._done = self._done, end
        return Chunk(rows, [before] * (len(rows) - 1) + [end] * bool(rows), end)


class Outlet:
    """The output of a step, to all its successors. The channels are bounded: a slow successor slows the step down."""

    def __init__(self, streams: Iterable[MemoryObjectSendStream[Chunk]]) -> None:
        self._streams = list(streams)
        self.rows = 0

    async def send(self, chunk: Chunk) -> None:
        """Send a chunk to every successor; wait while a channel is full."""
        self.rows += len(chunk.rows)
        for number, stream in enumerate(self._streams):
            # A step may change its rows in place, so every successor gets its own.
            rows = chunk.rows if number == 0 else [dict(row) for row in chunk.rows]
            await stream.send(Chunk(rows, chunk.marks, chunk.done))

    def close(self) -> None:
        """End the stream of every successor."""
        for stream in self._streams:
            stream.close()
