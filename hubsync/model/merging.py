"""Which shards of a series become one large file. `hubsync compact` and the committer share this decision.

Only files with successive numbers are merged, so the merged file's name says what it holds, and rows keep their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Generic, NamedTuple

from hubsync.model.series import File, Series
from hubsync.policies import MIB

MAX_FILE_BYTES = 500 * MIB
"""The size of a merged file, at most. `datasets` writes shards of this size, and a reader downloads a whole file."""
MAX_COMMIT_FILES = 1_000
"""Shards that one commit merges, and so deletes, at most."""
_SMALL_BYTES = 16 * MIB  # of a file that is merged whatever the others are


class Piece(NamedTuple, Generic[File]):
    """A file with the numbers that it holds."""

    first: int
    last: int
    file: File

    @property
    def shards(self) -> int:
        """How many shards it was, before it was merged."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class Merge(Generic[File]):
    """Files to merge into one.

    Attributes:
        series: What they belong to.
        files: The files, in the order of their numbers.
    """

    series: Series[File]
    files: Sequence[File]

    @property
    def path(self) -> str:
        """The path of the new file."""
        return self.series.path_of_merged(self.files[0].path, self.files[-1].path)

    @property
    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(file.size for file in self.files)

    def parts(self, schema_of: Callable[[Path], bytes], local: Mapping[str, Path]) -> list[Merge[File]]:
        """Return this merge in parts whose files have the same schema, without parts of one file.

        Args:
            schema_of: Returns what files must have in common.
            local: Where the files are on this machine, by path.
        """
        parts = (list(part) for _, part in groupby(self.files, lambda file: schema_of(local[file.path])))
        return [Merge(self.series, part) for part in parts if len(part) > 1]


def problem_with(one: Series[File]) -> str | None:
    """Return why a series cannot be merged; None if it can."""
    if len(one.writers) > 1:
        return f"{len(one.writers)} writers share its numbers"
    if any(len(files) > 1 or one.merged_with(number) for number, files in one.shards.items()):
        return "a number is there twice; see hubsync verify"
    return None


def names_writer(one: Series[File]) -> bool:
    """Return whether the paths of a series name its writer, so that no one else uses them."""
    return any(writer in one.name for writer in one.writers)


def runs(one: Series[File], is_settled: Callable[[File], bool]) -> Iterator[list[Piece[File]]]:
    """Yield the settled files with successive numbers: a number that is missing may still come."""
    pieces = [Piece(number, number, file) for number, (file,) in one.shards.items()]
    run: list[Piece[File]] = []
    for piece in sorted([*pieces, *(Piece(*merged) for merged in one.merged)]):
        if piece.last >= one.next or not is_settled(piece.file):
            continue
        if run and piece.first != run[-1].last + 1:
            yield run
            run = []
        run.append(piece)
    if run:
        yield run


def groups(run: Sequence[Piece[File]], max_bytes: int) -> Iterator[Sequence[File]]:
    """Yield the files of a run to merge, up to a size.

    A file that is larger than all others of its group together stays as it is, so no row is sent again and again.
    """
    for group in _up_to(run, max_bytes):
        yield from _without_large([piece.file for piece in group])


def due(run: Sequence[Piece[File]], min_shards: int, max_bytes: int) -> Iterator[Sequence[File]]:
    """Yield the files of a growing run that are worth merging now.

    A file of half the size is complete. Of the newest, smaller ones, `min_shards` become one, `min_shards` of these the
    next larger one, and so on: so a row is sent again once for each step, and few files are left at any time.
    """
    tail = list(run)[_after_last(run, lambda piece: piece.file.size * 2 >= max_bytes) :]
    if sum(piece.file.size for piece in tail) * 2 >= max_bytes:
        yield from (group for group in map(_files, _up_to(tail, max_bytes)) if _is_worth_it(group, max_bytes))
        return
    step = min_shards
    while step <= sum(piece.shards for piece in tail):
        step *= min_shards
    while (step := step // min_shards) >= min_shards:
        newest = tail[_after_last(tail, lambda piece: piece.shards >= step) :]
        if sum(piece.shards for piece in newest) >= step:
            yield _files(next(_up_to(newest, max_bytes)))
            return


def _is_worth_it(group: Sequence[File], max_bytes: int) -> bool:
    return len(group) > 1 and sum(file.size for file in group) * 2 >= max_bytes


def _files(pieces: Sequence[Piece[File]]) -> list[File]:
    return [piece.file for piece in pieces]


def _after_last(run: Sequence[Piece[File]], is_it: Callable[[Piece[File]], bool]) -> int:
    """Return the index after the last piece for which `is_it` is true; 0 without one."""
    return max((n + 1 for n, piece in enumerate(run) if is_it(piece)), default=0)


def _up_to(run: Iterable[Piece[File]], max_bytes: int) -> Iterator[list[Piece[File]]]:
    """Yield a run in parts that one commit can merge, of a size at most; a part has one file at least."""
    group: list[Piece[File]] = []
    for piece in run:
        is_full = sum(each.file.size for each in group) + piece.file.size > max_bytes or len(group) == MAX_COMMIT_FILES
        if group and is_full:
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _without_large(group: Sequence[File]) -> Iterator[Sequence[File]]:
    if len(group) < 2:
        return
    largest = max(range(len(group)), key=lambda at: group[at].size)
    if group[largest].size > max(_SMALL_BYTES, sum(file.size for file in group) / 2):
        yield from _without_large(group[:largest])
        yield from _without_large(group[largest + 1 :])
    else:
        yield group


def batches(merges: Iterable[Merge[File]], max_bytes: int) -> Iterator[list[Merge[File]]]:
    """Yield what one commit merges: up to so many bytes, which are on this machine meanwhile."""
    batch: list[Merge[File]] = []
    for merge in merges:
        more = [*batch, merge]
        is_full = sum(each.size for each in more) > max_bytes or sum(len(m.files) for m in more) > MAX_COMMIT_FILES
        if batch and is_full:
            yield batch
            batch = []
        batch.append(merge)
    if batch:
        yield batch
