"""What a dataset holds: numbers found in paths, and lines counted however the bytes come."""

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
from hubsync.model.commit import Watermark
from hubsync.model.layout import Layout
from hubsync.model.target import Target
from hubsync.reader.series import series_of
from hubsync.reader.snapshot import SnapshotReader


def read(content: bytes, pieces: Sequence[bytes] | None = None, *, is_large: bool = True) -> ShardContent | str:
    """What is read of a file that the Hub lists as `content` and gives as `pieces`."""
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
    """Lines, torn into pieces anywhere."""
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


def test_a_body_that_never_ends_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"{}\n" * 1_000

    found = read(b"{}\n", endless())  # type: ignore[arg-type]
    assert isinstance(found, ShardContent)
    assert found.bytes > 3


@pytest.mark.parametrize(
    ("template", "strange"),
    [
        ("", ["data/train-w-x.jsonl", "data/train-v-00000.jsonl", "data/train-w-1.jsonl.gz", "data/train-w--1.jsonl"]),
        ("{split}-{seq:05d}.jsonl", ["train-.jsonl", "train-1-2.jsonl", "test-00001.jsonl", "train-٣.jsonl"]),
        ("{seq:03d}/{split}-{seq}-{writer}.jsonl", ["001/train-2-w.jsonl", "train-2-w.jsonl"]),
        ("{split}1{seq}.jsonl", ["train2.jsonl", "train1.jsonl"]),
        ("{split}{seq}{seq:02d}.jsonl", ["train12.jsonl"]),
    ],
)
def test_paths_give_their_numbers_back(template: str, strange: list[str]) -> None:
    layout = Layout(template=template)
    numbers = [0, 1, 7, 10, 11, 101, 99_999, 100_000]
    files = [HubFile(layout.path("w", number), 1, "", False) for number in numbers]
    others = [HubFile(path, 1, "", False) for path in strange]
    mark = Watermark("w", 1, {layout.series("w"): 100_001})
    ((series,), left) = series_of({"w": mark}, [*files, *others])
    assert {number: found for number, (found,) in series.shards.items()} == dict(zip(numbers, files, strict=True))
    assert left == others


def test_a_path_of_two_series_belongs_to_the_one_that_knows_its_number() -> None:
    marks = {"w": Watermark("w", 1, {"a-*.jsonl": 20, "a-1*.jsonl": 3})}
    files = [HubFile(f"a-{n}.jsonl", 1, "", False) for n in (2, 12, 15, 1)]
    (wide, narrow), _ = series_of(marks, files)
    assert sorted(wide.shards) == [1, 2, 15]
    assert sorted(narrow.shards) == [2]


def test_series_that_writers_share_end_at_the_highest_watermark() -> None:
    marks = {w: Watermark(w, 1, {"a-*.jsonl": n}) for w, n in (("v", 2), ("w", 5), ("x", 3))}
    ((series,), _) = series_of(marks, [])
    assert (series.next, sorted(series.writers)) == (5, ["v", "w", "x"])
