"""Series: shards grouped by the numbers in their paths."""

from __future__ import annotations

import pytest

from hubsync.destinations.hub.dataset import HubFile
from hubsync.model.commit import Watermark
from hubsync.model.layout import Layout
from hubsync.model.series import series_of


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
