"""Group a dataset's shards into series: the runs of sequence numbers that writers' watermarks name.

A compaction merges shards with successive numbers into one file whose name has both: `train-w-00000-to-00041.jsonl`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from hubsync.model.commit import Watermark
from hubsync.model.layout import part_of, without_part
from hubsync.model.shard import ListedFile

File = TypeVar("File", bound=ListedFile)


class MergedShards(NamedTuple, Generic[File]):
    """A file that holds the shards with the numbers from `first` to `last`, in their order."""

    first: int
    last: int
    file: File


@dataclass(frozen=True, slots=True)
class Series(Generic[File]):
    """One run of sequence numbers.

    Attributes:
        name: a shard's path with `*` in place of the number.
        next: the number after the last committed one.
        writers: those whose watermarks name the series.
        shards: the files by number; more than one for a number in one folder means that something is wrong.
        merged: the files that hold several numbers.
    """

    name: str
    next: int
    writers: Sequence[str]
    shards: dict[int, list[File]]
    merged: list[MergedShards[File]] = field(default_factory=list)

    @property
    def files(self) -> list[File]:
        """All files of the series."""
        return [*(file for files in self.shards.values() for file in files), *(one.file for one in self.merged)]

    def merged_with(self, number: int) -> list[File]:
        """Return the merged files that hold a number; more than one means that something is wrong."""
        return [one.file for one in self.merged if one.first <= number <= one.last]

    def path_of_merged(self, first: str, last: str) -> str:
        """Return the path of a file with the shards from path `first` to path `last`, in the folder of the first."""
        ends = [self._number_text(first, "n"), self._number_text(last, "last")]
        components = "-to-".join(ends).join(self.name.split("*")).split("/")
        if part := part_of(first):
            components.insert(first.split("/").index(part), part)
        return "/".join(components)

    def _number_text(self, path: str, group: str) -> str:
        match = _pattern(self.name).fullmatch(without_part(path))
        assert match is not None
        return match[f"{group}_text"] or match["n_text"]


def series_of(marks: Mapping[str, Watermark], files: Iterable[File]) -> tuple[list[Series[File]], list[File]]:
    """Return the series that the watermarks name, with their files, and the files that belong to no series."""
    writers: defaultdict[str, list[str]] = defaultdict(list)
    for writer, mark in marks.items():
        for name in mark.next:
            writers[name].append(writer)
    found: list[Series[File]] = [
        Series(name, max(marks[w].next[name] for w in ws), ws, {}) for name, ws in writers.items()
    ]
    by_prefix: defaultdict[str, list[tuple[Series[File], re.Pattern[str]]]] = defaultdict(list)
    for one in found:
        by_prefix[one.name.partition("*")[0]].append((one, _pattern(one.name)))
    others: list[File] = []
    for file in files:
        # Look series up by what precedes a number: many writers times many files are too many patterns to try.
        fits = [
            (one, match)
            for path in {file.path, without_part(file.path)}
            for end in (end for end, char in enumerate(path) if "0" <= char <= "9")
            for one, pattern in by_prefix.get(path[:end], ())
            if (match := pattern.fullmatch(path))
        ]
        if fits:
            # Two templates may produce the same path ("1*" and "*"): prefer the series that has reached the number.
            one, match = max(fits, key=lambda fit: (int(fit[1]["n"]) < fit[0].next, len(fit[0].name)))
            if match["last"] is None:
                one.shards.setdefault(int(match["n"]), []).append(file)
            else:
                one.merged.append(MergedShards(int(match["n"]), int(match["last"]), file))
        else:
            others.append(file)
    return found, others


def _pattern(series: str) -> re.Pattern[str]:
    """Return a pattern for a series' paths; numbers may be padded, and a template may repeat its number."""
    first, *others = map(re.escape, series.split("*"))
    if not others:
        return re.compile(first)
    number = "(?P<{0}_text>0*(?P<{0}>0|[1-9][0-9]{{0,17}}))"
    again = "0*(?P=n)(?(last)-to-0*(?P=last))"
    return re.compile(f"{first}{number.format('n')}(?:-to-{number.format('last')})?{again.join(others)}")
