"""Shard contents: lines counted and checked, in whatever pieces the bytes arrive."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import anyio
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubsync._runtime.clock import SystemClock
from hubsync.destinations.hub.dataset import HubDataset, HubFile
from hubsync.maintenance import shard_content
from hubsync.maintenance.shard_content import ShardContent, read_contents
from hubsync.model.target import Target
from hubsync.reader.snapshot import SnapshotReader


def read(content: bytes, pieces: Sequence[bytes] | None = None, *, is_large: bool = True) -> ShardContent | str:
    """Return what is read of a file that the Hub lists as `content` and sends as `pieces`."""
    oid = hashlib.sha256(content).hexdigest() if is_large else git_oid(content)
    file = HubFile("a.jsonl", len(content), oid, is_large)

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self):  # type: ignore[no-untyped-def]
            for piece in [content] if pieces is None else pieces:
                yield piece

    async def main() -> ShardContent | str:
        transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=Body()))
        hub = HubDataset(Target("https://hub.test", "user/rows"), lambda: None, transport=transport)
        contents = await read_contents(SnapshotReader(hub, SystemClock()), [file], "0" * 40, lambda read, shards: None)
        await hub.aclose()
        return contents[file.path]

    return anyio.run(main)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line.decode("utf-8")), dict)
    except ValueError:
        return False


@st.composite
def torn(draw: st.DrawFn) -> list[bytes]:
    """Lines, cut into pieces anywhere."""
    some = [b'{"a":1}', b"{}", b"[]", b"", b'{"a":"\xc3\xa4"}', b'{"a":"\xff"}', b'{"a"', b"null", b'{"a":{"b":[]}} ']
    text = b"\n".join(draw(st.lists(st.sampled_from(some), max_size=8)))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(torn(), st.booleans())
def test_lines_are_counted_and_checked_however_the_bytes_come(pieces: list[bytes], is_large: bool) -> None:
    content = b"".join(pieces)
    lines = content.split(b"\n")[:-1] + ([content.split(b"\n")[-1]] if content.split(b"\n")[-1] else [])
    bad = [number for number, line in enumerate(lines, 1) if not is_object(line)]
    oid = hashlib.sha256(content).hexdigest() if is_large else git_oid(content)
    expected = ShardContent(oid, len(content), len(lines), len(bad), bad[0] if bad else 0, 0)
    assert read(content, pieces, is_large=is_large) == expected


def test_a_line_too_long_to_hold_is_counted_and_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_content, "_MAX_LINE_BYTES", 10)
    found = read(b'{"a":1}\n{"a":12345}\nno\n', [b'{"a":1}\n{"a":1', b"2345}\nno", b"\n"])
    assert isinstance(found, ShardContent)
    assert (found.rows, found.long, found.bad, found.first_bad) == (3, 1, 1, 3)


def test_a_body_that_never_ends_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"{}\n" * 1_000

    found = read(b"{}\n", endless())  # type: ignore[arg-type]
    assert isinstance(found, ShardContent)
    assert found.bytes > 3
