"""The channels between steps: streams merge in a fixed order, so that a consumer can resume."""

from __future__ import annotations

import random

import pytest

from hubsync.pipeline.channels import Chunk, Merge, ReplayFilter
from hubsync.pipeline.durable import Position

Rows = list[dict[str, str]]


def stream(name: str, start: int, end: int, rng: random.Random) -> list[Chunk]:
    """Return a step's output from the mark after `start`: no row for each third mark, two for each fifth."""
    rows: Rows = []
    marks: list[int] = []
    chunks, sent = [], start
    for mark in range(start + 1, end):
        made = 0 if mark % 3 == 0 else 2 if mark % 5 == 0 else 1
        rows += [{"id": f"{name}{mark}.{n}"} for n in range(made)]
        marks += [sent] * (made - 1) + [mark] * bool(made)
        sent = mark if made else sent
        if rng.random() < 0.3 or mark == end - 1:
            chunks.append(Chunk(list(rows), list(marks), mark))
            rows.clear()
            marks.clear()
    return chunks


def merged(start: int, seed: int, end: int = 47) -> list[Chunk]:
    rng = random.Random(seed)
    streams = [stream("a", start, end, rng), stream("b", start, end, rng)]
    merge, chunks = Merge(2, start, 10), []
    while any(streams):
        number = rng.choice([n for n in (0, 1) if streams[n]])
        chunks += merge.add(number, streams[number].pop(0))
    return [*chunks, merge.rest()]


@pytest.mark.parametrize("seed", range(20))
def test_a_merged_stream_can_be_resumed_after_any_row(seed: int) -> None:
    """Whichever stream is faster, and however the rows are cut into chunks."""
    whole = [(row["id"], mark) for chunk in merged(-1, 0) for row, mark in zip(chunk.rows, chunk.marks, strict=True)]
    assert sorted(id for id, _ in whole) == sorted(
        row["id"] for name in "ab" for chunk in stream(name, -1, 47, random.Random(0)) for row in chunk.rows
    )
    known = Position()
    for count in range(len(whole) + 1):
        fresh: list[str] = []
        tracker = ReplayFilter(known.mark, known)
        for chunk in merged(known.mark, seed):
            fresh += [row["id"] for row in tracker.new_rows(chunk).rows]
        assert fresh == [id for id, _ in whole[count:]]
        if count < len(whole):
            mark = whole[count][1]
            known = Position(mark) if mark > known.mark else Position(known.mark, known.skip + 1)
