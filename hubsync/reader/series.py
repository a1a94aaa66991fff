"""Group a dataset's shards into series: the runs of sequence numbers that writers' watermarks name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from hubsync.destinations.hub.dataset import HubFile
from hubsync.model.commit import Watermark
from hubsync.model.layout import without_part


@dataclass(frozen=True, slots=True)
class Series:
    """One run of sequence numbers.

    Attributes:
        name: a shard's path with `*` in place of the number.
        next: the number after the last committed one.
        writers: those whose watermarks name the series.
        shards: the files by number; more than one for a number in one folder means that something is wrong.
    """

    name: str
    next: int
    writers: Sequence[str]
    shards: dict[int, list[HubFile]]


def series_of(marks: Mapping[str, Watermark], files: Iterable[HubFile]) -> tuple[list[Series], list[HubFile]]:
    """Return the series that the watermarks name, with their files, and the files that belong to no series."""
    writers: defaultdict[str, list[str]] = defaultdict(list)
    for writer, mark in marks.items():
        for name in mark.next:
            writers[name].append(writer)
    found = [Series(name, max(marks[w].next[name] for w in ws), ws, {}) for name, ws in writers.items()]
    by_prefix: defaultdict[str, list[tuple[Series, re.Pattern[str]]]] = defaultdict(list)
    for one in found:
        by_prefix[one.name.partition("*")[0]].append((one, _pattern(one.name)))
    others: list[HubFile] = []
    for file in files:
        # Look series up by what precedes a number: many writers times many files are too many patterns to try.
        fits = [
            (one, int(match["n"]))
            for path in {file.path, without_part(file.path)}
            for end in (end for end, char in enumerate(path) if "0" <= char <= "9")
            for one, pattern in by_prefix.get(path[:end], ())
            if (match := pattern.fullmatch(path))
        ]
        if fits:
            # Two templates may produce the same path ("1*" and "*"): prefer the series that has reached the number.
            one, number = max(fits, key=lambda fit: (fit[1] < fit[0].next, len(fit[0].name)))
            one.shards.setdefault(number, []).append(file)
        else:
            others.append(file)
    return found, others


def _pattern(series: str) -> re.Pattern[str]:
    """Return a pattern for a series' paths; numbers may be padded, and a template may repeat its number."""
    first, *others = map(re.escape, series.split("*"))
    if not others:
        return re.compile(first)
    return re.compile(f"{first}0*(?P<n>0|[1-9][0-9]{{0,17}}){'0*(?P=n)'.join(others)}")
