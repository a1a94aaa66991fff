"""Upload JSON Lines from a file descriptor, so that a job in any language can use hubsync.

Lines are put in small batches as they arrive, and none waits long, so a slow job's rows are in the spool soon. A line
that is not a row is reported with its number; it ends the stream or is set aside. A signal takes effect only between
two reads, so every line that was read is put, once.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Self

from hubsync.encoding.rows import decode_row
from hubsync.errors import BatchTooLarge, HubsyncError, RowError, SpoolError
from hubsync.model.receipt import Receipt
from hubsync.policies import QueuePolicy
from hubsync.uploader.sync import Uploader

_READ_BYTES = 1 << 20
_BATCH_ROWS = 1_000
_BATCH_BYTES = 1 << 20  # of lines; a longer line is a batch of its own
_ESCAPING = 3  # a row's line may be so many times as long as the row, if its producer escapes characters
_MAX_WAIT_S = 0.2  # the longest a line waits for others
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors put it before UTF-8

BadLines = Literal["fail", "set-aside"]


class BadLine(HubsyncError, ValueError):
    """A line that is not a row. All lines before it are accepted."""

    def __init__(self, number: int, why: str) -> None:
        """Create the error; lines are counted from 1."""
        self.number, self.why = number, why
        super().__init__(f"line {number:,}: {why}")


@dataclass(slots=True)
class StreamCounts:
    """What became of the lines of a stream."""

    read: int = 0
    rows: int = 0
    skipped: int = 0
    set_aside: int = 0


def read_stream(
    fd: int,
    up: Uploader,
    *,
    source: str | None = None,
    bad_lines: BadLines = "fail",
    aside: Path | None = None,
    max_row_bytes: int = QueuePolicy().max_bytes,
) -> StreamCounts:
    """Put every line of a file descriptor. Returns when it ends and all rows are in the spool.

    Args:
        fd: What to read.
        up: An open uploader.
        source: The stream's name: lines that an earlier run with this name has put are skipped.
        bad_lines: Whether a line that is not a row ends the stream, or is written to `aside`.
        aside: A file; None for `dead-letter/lines.txt` in the spool.
        max_row_bytes: The uploader's `QueuePolicy.max_bytes`. No more of a line is kept in memory than a row of that
            size may need.

    Raises:
        BadLine: A line is not a row, and `bad_lines` is "fail". The lines before it are in the spool.
        OffsetOrderError: The first line is not that of the stream which had this name before.
        SpoolError: A bad line could not be set aside. The lines before it are in the spool.
    """
    stream = _Stream(up, source, bad_lines, aside or up.spool / "dead-letter" / "lines.txt", max_row_bytes)
    bad: BadLine | None = None
    with _DeferredSignals() as signals:
        try:
            for line in _lines(fd, stream, signals):
                stream.add(line)
            stream.put()
        except BadLine as error:
            bad = error
        finally:
            stream.put()  # even if a signal ends it: what was read from a pipe exists nowhere else
        with signals.delivered():
            stream.wait_until_spooled()
    if bad is not None:
        raise bad
    return stream.counts


class _Line(NamedTuple):
    number: int
    text: bytes
    row: dict[str, Any]


class _Stream:
    """Batches the lines of a stream, puts the batches, and counts what became of the lines."""

    def __init__(self, up: Uploader, source: str | None, bad_lines: BadLines, aside: Path, max_row_bytes: int) -> None:
        self.counts = StreamCounts()
        self._up = up
        self._source = source
        self._already_put = (up.offset(source) or 0) if source else 0
        self._fails = bad_lines == "fail"
        self._max_line_bytes = _ESCAPING * max_row_bytes
        self._aside = aside
        self._batch: list[_Line] = []
        self._batch_bytes = 0
        self._batch_began = 0.0  # when its first line came, by time.monotonic
        self._receipt: Receipt | None = None

    def check_partial_line(self, size: int) -> None:
        """Fail if a line whose end has not been read yet is too long to be a row.

        Raises:
            BadLine: It is too long, and bad lines end the stream. One that is set aside is read to its end.
        """
        if self._fails and self.counts.read >= self._already_put and size > self._max_line_bytes:
            why = f"it is longer than {size:,} bytes, more than the queue can hold"
            raise BadLine(self.counts.read + 1, why)

    def add(self, text: bytes) -> None:
        """Add the next line to the batch; put the batch first if it is full."""
        number = self.counts.read + 1
        if len(self._batch) >= _BATCH_ROWS or self._batch_bytes + len(text) > _BATCH_BYTES:
            self.put()
        elif self._source and number == 2:
            self.put()  # the first line alone, so that the next run can compare it
        if number <= self._already_put:
            self.counts.skipped += 1
            if number == 1:
                self._compare(text)
        elif text.strip():
            try:
                row = _parse(number, text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text)
            except BadLine as bad:
                self._reject(bad, text)
            else:
                self._batch_began = self._batch_began if self._batch else time.monotonic()
                self._batch.append(_Line(number, text, row))
                self._batch_bytes += len(text)
        self.counts.read = number

    def _compare(self, first: bytes) -> None:
        """Put the first line again.

        Raises:
            OffsetOrderError: it is not the one that an earlier run has put, so this is another stream.
        """
        with suppress(BadLine, RowError, BatchTooLarge):
            self._up.put([_parse(1, first.removeprefix(_BYTE_ORDER_MARK))], source=self._source, offset=1)

    def put(self) -> None:
        """Put the batch. A row that the uploader rejects is a bad line, too."""
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        try:
            self._put(batch, self.counts.read)
        except (RowError, BatchTooLarge):
            for line in batch:
                self._put_alone(line)

    def _put_alone(self, line: _Line) -> None:
        try:
            self._put([line], line.number)
        except RowError as error:
            why = f"field {error.path!r}: {error.reason}" if error.path else error.reason
            self._reject(BadLine(line.number, why), line.text)
        except BatchTooLarge as error:
            self._reject(BadLine(line.number, str(error)), line.text)

    def _put(self, lines: list[_Line], offset: int) -> None:
        if lines:
            position: dict[str, Any] = {"source": self._source, "offset": offset} if self._source else {}
            self._receipt = self._up.put([line.row for line in lines], ack="queued", **position)
            self.counts.rows += len(lines)

    def _reject(self, bad: BadLine, text: bytes) -> None:
        if self._fails:
            raise bad
        _append(self._aside, bad.number, text)
        self.counts.set_aside += 1

    def wait_until_spooled(self) -> None:
        """Wait until everything that was put is in the spool."""
        if self._receipt is not None:
            self._receipt.wait("spooled")

    def put_due_in_s(self) -> float | None:
        """Return the seconds until the batch must be put; None if it is empty."""
        return max(0.0, self._batch_began + _MAX_WAIT_S - time.monotonic()) if self._batch else None


def _parse(number: int, line: bytes) -> dict[str, Any]:
    try:
        return decode_row(line)
    except ValueError as error:
        raise BadLine(number, f"{error}: {line[:60]!r}") from None


def _append(aside: Path, number: int, line: bytes) -> None:
    """Append a whole line to the file of bad lines, or nothing.

    Raises:
        SpoolError: The file cannot be written.
    """
    with open(aside, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another stream may use the same file
        size, rest = os.fstat(file.fileno()).st_size, b"%d\t%s\n" % (number, line.rstrip(b"\n"))
        try:
            while rest:
                rest = rest[os.write(file.fileno(), rest) :]
        except OSError as error:
            with suppress(OSError):
                file.truncate(size)
            raise SpoolError(
                f"cannot write {aside} ({error.strerror}), so line {number:,} is not set aside."
            ) from error


def _lines(fd: int, stream: _Stream, signals: _DeferredSignals) -> Iterator[bytes]:
    """Yield the lines of `fd`. Before waiting for more, put a batch that is due, and wait until it is spooled."""
    partial = bytearray()  # is searched for a newline once, however long it gets
    while True:
        if stream.put_due_in_s() == 0:
            stream.put()
        with signals.delivered():
            stream.wait_until_spooled()
            ready, _, _ = select.select([fd], [], [], stream.put_due_in_s())
        if not ready:
            continue
        data = os.read(fd, _READ_BYTES)
        if not data:
            break
        first, *others = data.split(b"\n")
        partial += first
        if others:
            yield bytes(partial)
            yield from others[:-1]
            partial = bytearray(others[-1])
        stream.check_partial_line(len(partial))
    if partial:
        yield bytes(partial)


class _DeferredSignals:
    """Holds back the first SIGTERM or Ctrl-C, whose handlers raise, until `delivered`. A second one takes effect."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._pending: int | None = None
        self._is_delivering = False

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):  # neither ignored nor the system's default
                self._handlers[number] = handler
                with suppress(ValueError):  # not in the main thread
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self._is_delivering = True
        with suppress(ValueError):
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        self._deliver()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_delivering or self._pending is not None:
            self._handlers[number](number, frame)
        else:
            self._pending = number

    def _deliver(self) -> None:
        if (number := self._pending) is not None:
            self._pending = None
            self._handlers[number](number, None)

    @contextmanager
    def delivered(self) -> Iterator[None]:
        """Deliver signals at once within the block, and the pending one before it."""
        self._is_delivering = True
        try:
            self._deliver()
            yield
        finally:
            self._is_delivering = False
