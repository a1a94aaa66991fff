"""What flows between steps: chunks of rows, and how far in the source each row is.

A *mark* is an index in the source: once a row has raised the mark to m, all that the source's rows up to m became has
passed. So a consumer that keeps its position can be served again from there after a crash, with nothing made twice.
Positions go by rows alone, never by how they were cut into chunks: that is another way in each run.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from anyio import EndOfStream
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from hubsync.pipeline.graph import Row

_SKIP_BITS = 24  # rows that may come of one mark


@dataclass(slots=True)
class Chunk:
    """Rows with a mark each; `done` is the mark once all of them have passed, and what came to no row."""

    rows: list[Row]
    marks: list[int]
    done: int


class Position(NamedTuple):
    """Where in its stream a consumer is: behind everything of `mark`, and `skip` rows further."""

    mark: int = -1
    skip: int = 0

    def offset(self) -> int:
        """As an offset: an int that rises along the stream."""
        if self.skip >> _SKIP_BITS:
            raise OverflowError(f"more than {1 << _SKIP_BITS:,} rows came of one batch of the source.")
        return (self.mark + 1) << _SKIP_BITS | self.skip

    @classmethod
    def of(cls, offset: int | None) -> Position:
        """The position that an offset stands for; the beginning for None."""
        if offset is None:
            return cls()
        return cls((offset >> _SKIP_BITS) - 1, offset & ((1 << _SKIP_BITS) - 1))


class Tracker:
    """Follows a stream that was begun again at a mark, and passes over what its consumer has already."""

    def __init__(self, start: int, known: Position) -> None:
        self.position = Position(start)
        self._known = known

    def fresh(self, chunk: Chunk) -> Chunk:
        """What of a chunk is new to the consumer; moves the position behind the chunk."""
        rows, marks = [], []
        for row, mark in zip(chunk.rows, chunk.marks, strict=True):
            here = self.position
            self.position = Position(mark) if mark > here.mark else Position(here.mark, here.skip + 1)
            if self.position > self._known:
                rows.append(row)
                marks.append(mark)
        return Chunk(rows, marks, chunk.done)


class Inlet:
    """One predecessor's stream, rebatched: order is kept, and the last batch is shorter."""

    def __init__(self, stream: MemoryObjectReceiveStream[Chunk], start: int) -> None:
        self._stream = stream
        self._rows: deque[Row] = deque()
        self._marks: deque[int] = deque()
        self._done = start
        self._passed = start
        self.ended = False

    async def take_any(self) -> Chunk:
        """All that has come so far, and at least one chunk. Empty once it has ended."""
        if not self._rows and not self.ended:
            await self._receive()
        return await self.take(len(self._rows))

    async def take(self, size: int | None) -> Chunk:
        """The next `size` rows, or fewer at the end; with None all there ever are. Empty once it has ended."""
        while not self.ended and (size is None or len(self._rows) < size):
            await self._receive()
        count = len(self._rows) if size is None else min(size, len(self._rows))
        rows = [self._rows.popleft() for _ in range(count)]
        marks = [self._marks.popleft() for _ in range(count)]
        self._passed = max(self._passed, marks[-1] if marks else self._done)
        return Chunk(rows, marks, self._passed)

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
    """Several streams as one, in an order that is the same in each run: by stretches of the source, and in each of them
    stream after stream. So who follows the whole can be served again from a mark, whichever stream was quicker.
    """

    def __init__(self, streams: int, start: int, stretch: int) -> None:
        self._ready: list[deque[tuple[Row, int]]] = [deque() for _ in range(streams)]  # rows, and the mark they end at
        self._unended: list[list[Row]] = [[] for _ in range(streams)]
        self._passed = [start] * streams
        self._stretch = stretch
        self._done = start

    def add(self, number: int, chunk: Chunk) -> list[Chunk]:
        """A chunk of one stream; answers what may go on by now."""
        for row, mark in zip(chunk.rows, chunk.marks, strict=True):
            self._unended[number].append(row)
            self._pass(number, mark)
        self._pass(number, chunk.done)
        chunks = []
        while (end := ((self._done + 1) // self._stretch + 1) * self._stretch - 1) <= min(self._passed):
            chunks.append(self._up_to(end))
        return chunks

    def rest(self) -> Chunk:
        """What is left once all streams have ended."""
        last = max(self._passed)
        for ready, unended in zip(self._ready, self._unended, strict=True):
            ready.extend((row, last) for row in unended)
        return self._up_to(last)

    def _pass(self, number: int, mark: int) -> None:
        if mark > self._passed[number]:
            self._passed[number] = mark
            self._ready[number].extend((row, mark) for row in self._unended[number])
            self._unended[number].clear()

    def _up_to(self, end: int) -> Chunk:
        rows: list[Row] = []
        for ready in self._ready:
            while ready and ready[0][1] <= end:
                rows.append(ready.popleft()[0])
        before, self._done = self._done, end
        return Chunk(rows, [before] * (len(rows) - 1) + [end] * bool(rows), end)


class Outlet:
    """A step's output, to all of its successors; bounded, so that a slow one pushes back."""

    def __init__(self, streams: Iterable[MemoryObjectSendStream[Chunk]]) -> None:
        self._streams = list(streams)
        self.rows = 0

    async def send(self, chunk: Chunk) -> None:
        self.rows += len(chunk.rows)
        for number, stream in enumerate(self._streams):
            # Each successor has rows of its own: a step may change what it gets.
            rows = chunk.rows if number == 0 else [dict(row) for row in chunk.rows]
            await stream.send(Chunk(rows, chunk.marks, chunk.done))

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
