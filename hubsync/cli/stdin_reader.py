"""JSON Lines from a file descriptor to a dataset, so that a job in any language can use hubsync.

Lines are put in small batches as they come: none waits for long, so that a slow job's rows are safe soon. A line that
is no row is named by its number, and ends the stream or is set aside. A signal that ends the job is seen between two
reads, so every line that was read is put, and once.
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
from hubsync.uploader.sync import Uploader

_READ = 1 << 20
_BATCH_ROWS = 1_000
_BATCH_BYTES = 1 << 20  # of lines; a longer one goes alone
_ESCAPED = 3  # times the bytes of a row its line may have, where it is written with escapes
_WAIT_S = 0.2  # how long a line waits for others
_MARK = b"\xef\xbb\xbf"  # which some editors put before UTF-8

BadLines = Literal["fail", "set-aside"]


class BadLine(HubsyncError, ValueError):
    """A line that is no row. All lines before it are accepted."""

    def __init__(self, number: int, why: str) -> None:
        self.number, self.why = number, why
        super().__init__(f"line {number:,}: {why}")


@dataclass(slots=True)
class Piped:
    """What came of a stream, in lines."""

    read: int = 0
    rows: int = 0
    skipped: int = 0
    set_aside: int = 0


def pipe(
    fd: int, up: Uploader, *, source: str | None = None, bad_lines: BadLines = "fail", aside: Path | None = None
) -> Piped:
    """Puts every line of `fd`. With `source`, lines that an earlier run brought already are passed over.

    Raises:
        BadLine: where `bad_lines` is "fail"; the lines before it are accepted.
        SpoolError: a bad line can't be set aside; so are those before it.
    """
    stream = _Stream(up, source, bad_lines, aside)
    bad: BadLine | None = None
    with _Signals() as signals:
        try:
            for line in _lines(fd, stream, signals):
                stream.take(line)
            stream.put()
        except BadLine as error:
            bad = error
        finally:
            stream.put()  # also where a signal ends it: what was read from the pipe is nowhere else
        with signals.let_through():
            stream.wait()
    if bad is not None:
        raise bad
    return stream.done


class _Line(NamedTuple):
    number: int
    text: bytes
    row: dict[str, Any]


class _Stream:
    """The lines that were read and are not put yet, and what became of the others."""

    def __init__(self, up: Uploader, source: str | None, bad_lines: BadLines, aside: Path | None) -> None:
        self.done = Piped()
        self._up = up
        self._source = source
        self._known = (up.offset(source) or 0) if source else 0
        self._fails = bad_lines == "fail"
        self._longest = _ESCAPED * up._queue.max_bytes
        self._aside = aside or up.spool / "dead-letter" / "lines.txt"
        self._waiting: list[_Line] = []
        self._bytes = 0
        self._since = 0.0  # when the first of them came
        self._receipt: Receipt | None = None

    def check_growth(self, size: int) -> None:
        """Whether a line that has no end yet can still be a row. One that is set aside is read to its end."""
        if self._fails and self.done.read >= self._known and size > self._longest:
            why = f"it is {size:,} bytes long and goes on, more than the queue may ever hold"
            raise BadLine(self.done.read + 1, why)

    def take(self, text: bytes) -> None:
        number = self.done.read + 1
        if len(self._waiting) >= _BATCH_ROWS or self._bytes + len(text) > _BATCH_BYTES:
            self.put()
        if number <= self._known:
            self.done.skipped += 1
        elif text.strip():
            try:
                row = _parse(number, text.removeprefix(_MARK) if number == 1 else text)
            except BadLine as bad:
                self._refuse(bad, text)
            else:
                self._since = self._since if self._waiting else time.monotonic()
                self._waiting.append(_Line(number, text, row))
                self._bytes += len(text)
        self.done.read = number

    def put(self) -> None:
        """Hands over what waits; a row that the uploader refuses is a bad line as well."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        try:
            self._hand_over(waiting, self.done.read)
        except (RowError, BatchTooLarge):
            for line in waiting:
                self._put_alone(line)

    def _put_alone(self, line: _Line) -> None:
        try:
            self._hand_over([line], line.number)
        except RowError as error:
            why = f"field {error.path!r}: {error.reason}" if error.path else error.reason
            self._refuse(BadLine(line.number, why), line.text)
        except BatchTooLarge as error:
            self._refuse(BadLine(line.number, str(error)), line.text)

    def _hand_over(self, lines: list[_Line], offset: int) -> None:
        if lines:
            place: dict[str, Any] = {"source": self._source, "offset": offset} if self._source else {}
            self._receipt = self._up.put([line.row for line in lines], ack="queued", **place)
            self.done.rows += len(lines)

    def _refuse(self, bad: BadLine, text: bytes) -> None:
        if self._fails:
            raise bad
        _keep(self._aside, bad.number, text)
        self.done.set_aside += 1

    def wait(self) -> None:
        """Until what was handed over is in the spool."""
        if self._receipt is not None:
            self._receipt.wait("spooled")

    def left_s(self) -> float | None:
        """Seconds until what waits is to be put; None where nothing waits."""
        return max(0.0, self._since + _WAIT_S - time.monotonic()) if self._waiting else None


def _parse(number: int, line: bytes) -> dict[str, Any]:
    try:
        return decode_row(line)
    except ValueError as error:
        raise BadLine(number, f"{error}: {line[:60]!r}") from None


def _keep(aside: Path, number: int, line: bytes) -> None:
    """Whole, or it raises `SpoolError` and nothing of it is there."""
    with open(aside, "ab", buffering=0, opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another stream may set its own aside
        size, left = os.fstat(file.fileno()).st_size, b"%d\t%s\n" % (number, line.rstrip(b"\n"))
        try:
            while left:
                left = left[os.write(file.fileno(), left) :]
        except OSError as error:
            with suppress(OSError):
                file.truncate(size)
            raise SpoolError(
                f"{aside} can't be written ({error.strerror}): line {number:,} is not set aside."
            ) from error


def _lines(fd: int, stream: _Stream, signals: _Signals) -> Iterator[bytes]:
    """The lines of `fd`. Before it waits for more, what is old enough is put, and what was put is in the spool."""
    rest = bytearray()  # searched once, however long a line is
    while True:
        if stream.left_s() == 0:
            stream.put()
        with signals.let_through():
            stream.wait()
            ready, _, _ = select.select([fd], [], [], stream.left_s())
        if not ready:
            continue
        data = os.read(fd, _READ)
        if not data:
            break
        first, *others = data.split(b"\n")
        rest += first
        if others:
            yield bytes(rest)
            yield from others[:-1]
            rest = bytearray(others[-1])
        stream.check_growth(len(rest))
    if rest:
        yield bytes(rest)


class _Signals:
    """Keeps SIGTERM and Ctrl-C, which raise wherever they fall, until they are let through; but no second one."""

    def __init__(self) -> None:
        self._handlers: dict[int, Any] = {}
        self._kept: int | None = None
        self._open = False

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):  # neither ignored nor the system's
                self._handlers[number] = handler
                with suppress(ValueError):  # not the main thread
                    signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        self._open = True
        with suppress(ValueError):
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
        self._pass_on()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._open or self._kept is not None:
            self._handlers[number](number, frame)
        else:
            self._kept = number

    def _pass_on(self) -> None:
        if (number := self._kept) is not None:
            self._kept = None
            self._handlers[number](number, None)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        self._open = True
        try:
            self._pass_on()
            yield
        finally:
            self._open = False
