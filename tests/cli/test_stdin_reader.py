"""Lines from a pipe: each is in the spool soon, whole and once, however the stream ends."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hubsync import QueuePolicy, SchemaPolicy, SpoolError, Uploader
from hubsync.cli.stdin_reader import BadLine, read_stream

Make = Callable[..., Uploader]
MB = 1_000_000


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Make:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return lambda **changes: Uploader("user/rows", spool=tmp_path / "spool", **changes)


@pytest.fixture
def feed() -> Iterator[Callable[..., int]]:
    """Return a function that runs `write` on a pipe in a thread, and returns the pipe's other end."""
    threads = []

    def feed(write: Callable[[int], object]) -> int:
        reading, writing = os.pipe()

        def run() -> None:
            try:
                write(writing)
            finally:
                os.close(writing)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return reading

    yield feed
    for thread in threads:
        thread.join()


def line(n: int, size: int = 0) -> bytes:
    return json.dumps({"id": n, "pad": "x" * size}).encode() + b"\n"


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def spooled(spool: Path) -> list[Any]:
    files = sorted((spool / "segments").glob("*.jsonl"))
    return [json.loads(text)["id"] for file in files for text in file.read_bytes().splitlines()]


def test_a_stream_without_pauses_is_spooled_before_it_ends(make: Make, feed: Any) -> None:
    with make() as up:
        seen = []

        def trickle(fd: int) -> None:
            for n in range(200):
                os.write(fd, line(n))
                time.sleep(0.02)
                if spooled(up.spool):
                    seen.append(n)
                    return

        read_stream(feed(trickle), up)
        assert seen


def test_long_lines_are_put_in_batches_that_fit_the_queue(make: Make, feed: Any) -> None:
    with make(queue=QueuePolicy(max_bytes=2 * MB)) as up:
        done = read_stream(feed(lambda fd: write_all(fd, b"".join(line(n, MB // 2) for n in range(12)))), up)
        assert done.rows == 12
        assert spooled(up.spool) == list(range(12))


def test_a_line_too_large_for_the_queue_is_a_bad_line(make: Make, feed: Any) -> None:
    lines = line(1) + line(2, 3 * MB) + line(3)
    with make(queue=QueuePolicy(max_bytes=2 * MB)) as up:
        with pytest.raises(BadLine, match=r"line 2: a batch of 1 row has 3,000,"):
            read_stream(feed(lambda fd: write_all(fd, lines)), up)
        done = read_stream(feed(lambda fd: write_all(fd, lines)), up, bad_lines="set-aside")
        assert (done.rows, done.set_aside) == (2, 1)
        assert spooled(up.spool) == [1, 1, 3]


def test_an_endless_line_ends_the_stream(make: Make, feed: Any) -> None:
    written = []

    def write(fd: int) -> None:
        os.write(fd, line(1))
        with pytest.raises(BrokenPipeError):
            while True:
                written.append(os.write(fd, b"x" * MB))

    with make(queue=QueuePolicy(max_bytes=2 * MB)) as up:
        reading = feed(write)
        with pytest.raises(BadLine, match=r"line 2: it is longer than [6-7],\d+,\d+ bytes"):
            read_stream(reading, up, max_row_bytes=2 * MB)
        os.close(reading)
        assert spooled(up.spool) == [1]


@pytest.mark.slow("reads many megabytes")
def test_a_long_line_is_searched_only_once(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pipe returns a page at a time; a page that was searched is not searched again."""
    from hubsync.cli import stdin_reader as module

    monkeypatch.setattr(module, "_READ_BYTES", 4_096)
    (tmp_path / "lines").write_bytes(line(1, 20 * MB) + line(2))
    fd = os.open(tmp_path / "lines", os.O_RDONLY)
    with make() as up:
        assert read_stream(fd, up).rows == 2  # 5,000 reads of 20 MB would be 50 GB
        assert spooled(up.spool) == [1, 2]
    os.close(fd)


def test_a_full_disk_leaves_no_partial_bad_line(
    make: Make, feed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aside, write = tmp_path / "aside", os.write

    def full(fd: int, data: bytes) -> int:
        if not os.path.samestat(os.fstat(fd), aside.stat()):
            return write(fd, data)
        if len(data) < 10:  # the second write
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:10])

    aside.touch()
    with make() as up:
        reading = feed(lambda fd: write_all(fd, line(1) + b"bad, all of it\n" + line(2)))
        monkeypatch.setattr(os, "write", full)
        with pytest.raises(SpoolError, match=r"cannot write .*aside \(.*\), so line 2 is not set aside"):
            read_stream(reading, up, source="a", bad_lines="set-aside", aside=aside)
        monkeypatch.undo()
        assert aside.read_bytes() == b""
        up.put([])  # waits for every earlier put
        assert (up.offset("a"), spooled(up.spool)) == (1, [1])
    os.close(reading)


def test_a_row_of_another_schema_is_a_bad_line(make: Make, feed: Any) -> None:
    lines = line(1) + line(2) + b'{"id": "three"}\n' + line(4)
    with make(schema=SchemaPolicy(on_conflict="refuse")) as up:
        with pytest.raises(BadLine, match=r"line 3: field 'id'"):
            read_stream(feed(lambda fd: write_all(fd, lines)), up, source="a")
        assert up.offset("a") == 2
    with make(schema=SchemaPolicy(on_conflict="refuse")) as up:
        done = read_stream(feed(lambda fd: write_all(fd, lines)), up, source="a", bad_lines="set-aside")
        assert (done.skipped, done.rows, done.set_aside) == (2, 1, 1)
        assert spooled(up.spool) == [1, 2, 4]


def test_a_byte_order_mark_is_skipped(make: Make, feed: Any) -> None:
    with make() as up:
        assert read_stream(feed(lambda fd: write_all(fd, b"\xef\xbb\xbf" + line(1) + line(2))), up).rows == 2


@pytest.mark.parametrize("source", [None, "a"])
@pytest.mark.parametrize("moment", ["put", "parse"])
def test_a_signal_at_any_moment_leaves_every_read_line_once(
    make: Make, feed: Any, monkeypatch: pytest.MonkeyPatch, source: str | None, moment: str
) -> None:
    """It arrives right after a `put`, or between two lines."""
    from hubsync.cli import stdin_reader as module

    calls = []

    def strike(result: Any) -> Any:
        calls.append(result)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    with make() as up:
        put, parse = up.put, module._parse
        if moment == "put":
            monkeypatch.setattr(up, "put", lambda *args, **given: strike(put(*args, **given)))
        else:
            monkeypatch.setattr(module, "_parse", lambda *args: strike(parse(*args)))
        reading = feed(lambda fd: write_all(fd, b"".join(line(n, 100) for n in range(5_000))))
        with pytest.raises(KeyboardInterrupt):
            read_stream(reading, up, source=source)
        while os.read(reading, MB):
            pass
        up.put([])  # waits for every earlier put
        found = spooled(up.spool)
        assert found
        assert found == list(range(len(found)))
        if source:
            assert up.offset(source) == len(found)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
