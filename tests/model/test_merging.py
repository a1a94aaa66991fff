"""Which shards become one file while a job runs."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from hubsync.model.merging import MAX_COMMIT_FILES, Piece, due, groups, runs
from hubsync.model.series import Series

MAX = 1_000_000_000


class File(NamedTuple):
    path: str
    size: int


def grow(shards: int, *, size: int, min_shards: int, max_bytes: int = MAX) -> tuple[list[Piece[File]], int, int]:
    """Return the files after so many shards, the most files there ever were, and the bytes that were written again."""
    run: list[Piece[File]] = []
    most = again = 0
    for number in range(shards):
        run.append(Piece(number, number, File(str(number), size)))
        most = max(most, len(run))
        for files in list(due(run, min_shards, max_bytes)):
            at = next(n for n, piece in enumerate(run) if piece.file == files[0])
            old = run[at : at + len(files)]
            assert [piece.file for piece in old] == files
            merged = File(f"{old[0].first}-{old[-1].last}", sum(file.size for file in files))
            assert merged.size <= max_bytes
            again += merged.size
            run[at : at + len(files)] = [Piece(old[0].first, old[-1].last, merged)]
    return run, most, again


def test_a_growing_run_has_few_files_and_a_row_is_written_again_a_few_times() -> None:
    run, most, again = grow(10_080, size=1_000, min_shards=16)
    assert len(run) == 15
    assert most < 50
    assert again <= 3 * 10_080 * 1_000
    assert [piece.first for piece in run[1:]] == [piece.last + 1 for piece in run[:-1]]


def test_a_file_of_half_the_size_is_complete() -> None:
    run, most, again = grow(300, size=10_000, min_shards=16, max_bytes=400_000)
    assert len(run) <= 300 // 20 + 16
    assert all(piece.file.size >= 200_000 for piece in run[:-20])
    assert again <= 2 * 300 * 10_000
    assert most < 40


def test_shards_that_are_large_already_stay_as_they_are() -> None:
    run, _, again = grow(30, size=250_000, min_shards=16, max_bytes=400_000)
    assert (len(run), again) == (30, 0)


def test_fewer_shards_than_the_least_are_left_alone() -> None:
    assert grow(15, size=1, min_shards=16)[2] == 0
    assert len(grow(16, size=1, min_shards=16)[0]) == 1


@pytest.mark.parametrize(("unsettled", "expected"), [("data/3", [[0, 1, 2], [4]]), ("data/9", [[0, 1, 2, 3, 4]])])
def test_a_run_ends_at_a_number_that_is_missing_or_not_settled(unsettled: str, expected: list[list[int]]) -> None:
    shards = {n: [File(f"data/{n}", 1)] for n in range(7)}
    series = Series("data/*", 5, ["w"], shards)
    found = [[piece.first for piece in run] for run in runs(series, lambda file: file.path != unsettled)]
    assert found == expected


def test_one_merge_has_no_more_files_than_a_commit_should_delete() -> None:
    run = [Piece(number, number, File(str(number), 1)) for number in range(2_500)]
    (files,) = due(run, 16, MAX)
    assert len(files) == MAX_COMMIT_FILES
    assert [len(files) for files in groups(run, MAX)] == [MAX_COMMIT_FILES, MAX_COMMIT_FILES, 500]
