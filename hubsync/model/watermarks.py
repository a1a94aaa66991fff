"""The files that hold watermarks in the dataset, and how they are merged, paged and folded.

    .hubsync/<writer>.json       what the writer's last commit wrote
    .hubsync/<writer>-<n>.json   offsets that had no more room there; never rewritten
    .hubsync/folded/<n>.json     the watermarks of many writers, so that a new spool reads few files

A file never holds the only truth about a writer: in all of them together, the highest number and offset counts. So a
folded writer may continue with a file of its own, and whoever folds needs to know of no other.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, islice
from typing import Annotated

import msgspec

from hubsync.model.commit import FixedBy, SidecarFile, Start, Watermark, watermark_path

FOLDER = ".hubsync"
_FOLDED = f"{FOLDER}/folded/"
FIRST_FOLDED = f"{_FOLDED}00000.json"
"""The first file of folded watermarks. Without this file nothing is folded."""
FOLD_FROM = 32
"""Files of single watermarks from which a new spool folds them."""
FIRST_FOLD, LARGEST_FOLD = 100, 1_000
"""Files that one commit folds and deletes: few at first, so that a job that lives for seconds folds some, too."""
_PAGE_BYTES = 256 << 10  # of offsets, which every commit of their writer rewrites
_FOLDED_BYTES = 4 << 20  # of a folded file
_MOST_STARTS = 8  # of a source
_WATERMARK = re.compile(r"\.hubsync/(folded/)?[^/]+\.json")

Fixed = Mapping[str, Mapping[str, FixedBy]]
"""Columns that must keep their types, by config and name."""

# What SQLite can hold, and for a sequence number enough room to continue from it.
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _UntrustedWatermark(msgspec.Struct):
    """A watermark as the dataset holds it: anyone who may write there can have edited it."""

    writer: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    epoch: _Number
    next: dict[str, _Number] = {}
    rows: _Size = 0
    offsets: dict[str, _Size] = {}
    pages: _Number = 0
    plan: Annotated[str, msgspec.Meta(max_length=200)] = ""
    fixed: dict[str, dict[str, FixedBy]] | None = None
    starts: dict[str, list[Start]] = {}


class _UntrustedFile(msgspec.Struct):
    watermarks: list[_UntrustedWatermark]


@dataclass(frozen=True)
class RemoteWatermarks:
    """The watermarks in one commit.

    Attributes:
        single: Those in files of their own, by path.
        folded: Those that share a file, by its path.
        unreadable: Files that hold no watermark, by path, with the reason.
        unread: How many files were not read yet.
    """

    single: Mapping[str, Watermark] = field(default_factory=dict)
    folded: Mapping[str, list[Watermark]] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)
    unread: int = 0

    @classmethod
    def of(cls, files: Mapping[str, list[Watermark] | str], unread: int = 0) -> RemoteWatermarks:
        """Return the watermarks of files that were decoded, or the reason why one could not be."""
        good = {path: marks for path, marks in sorted(files.items()) if not isinstance(marks, str)}
        return cls(
            {path: marks[0] for path, marks in good.items() if not is_folded(path)},
            {path: marks for path, marks in good.items() if is_folded(path)},
            {path: why for path, why in sorted(files.items()) if isinstance(why, str)},
            unread,
        )

    @property
    def files(self) -> int:
        """How many files were read."""
        return len(self.single) + len(self.folded) + len(self.unreadable)

    @cached_property
    def by_writer(self) -> dict[str, Watermark]:
        """The watermark of each writer, merged from all files."""
        found: dict[str, Watermark] = {}
        for mark in (*self.single.values(), *(mark for marks in self.folded.values() for mark in marks)):
            known = found.get(mark.writer)
            found[mark.writer] = mark if known is None else _merge(known, mark)
        return dict(sorted(found.items()))

    @property
    def has_offsets(self) -> bool:
        """Whether any source is known."""
        return any(mark.offsets for mark in self.by_writer.values())

    @property
    def should_be_folded(self) -> bool:
        """Whether they are in too many files. One that can't be read is never replaced: someone may repair it."""
        return len(self.single) >= FOLD_FROM and not any(is_folded(path) for path in self.unreadable)

    def fold(self) -> tuple[list[SidecarFile], list[str]]:
        """Return the files to add or replace, and the paths to delete, so that fewer files say the same."""
        paths = list(islice(self.single, LARGEST_FOLD))
        merged = RemoteWatermarks({path: self.single[path] for path in paths}, self.folded).by_writer
        folded = {f"{_FOLDED}{n:05d}.json": marks for n, marks in enumerate(_chunks(merged.values()))}
        files = [SidecarFile(path, _encode(marks)) for path, marks in folded.items() if marks != self.folded.get(path)]
        return files, [*paths, *(path for path in self.folded if path not in folded)]


def is_watermark(path: str) -> bool:
    """Return whether a file of the dataset should hold watermarks."""
    return _WATERMARK.fullmatch(path) is not None


def is_folded(path: str) -> bool:
    """Return whether a file of watermarks may hold those of any writer."""
    return path.startswith(_FOLDED)


def may_hold(path: str, writers: Collection[str]) -> bool:
    """Return whether a file of watermarks may hold that of one of these writers."""
    name = path.removeprefix(f"{FOLDER}/").removesuffix(".json")
    return is_folded(path) or name in writers or name.rpartition("-")[0] in writers


def decode_watermarks(content: bytes, path: str) -> list[Watermark]:
    """Return the watermarks in a file of the dataset.

    Raises:
        ValueError: `content` holds no watermarks, or those of another writer.
    """
    try:
        if is_folded(path):
            found = msgspec.json.decode(content, type=_UntrustedFile).watermarks
        else:
            found = [msgspec.json.decode(content, type=_UntrustedWatermark)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    for mark in found:
        if not is_folded(path) and not _is_path_of(mark.writer, path):
            raise ValueError(f"it is the watermark of {mark.writer!r}")
        fixed = mark.fixed or {}
        names = (*mark.next, *mark.offsets, *mark.starts, *fixed, *chain.from_iterable(fixed.values()))
        for name in (mark.writer, mark.plan, *names):
            name.encode()  # raises for a lone surrogate, which SQLite cannot store
    return [Watermark(**msgspec.structs.asdict(mark)) for mark in found]


def watermark_files(mark: Watermark) -> tuple[Watermark, list[SidecarFile]]:
    """Return a writer's watermark as its next commit leaves it, and the files that the commit writes for it.

    A page of offsets is written when they would take more room than a commit should rewrite.
    """
    files = []
    if sum(_source_bytes(mark, source) for source in mark.offsets) > _PAGE_BYTES:
        count = mark.pages
        for part in _parts(mark, _PAGE_BYTES):
            count += 1
            page = Watermark(mark.writer, mark.epoch, offsets=part.offsets, starts=part.starts)
            files.append(_file(f"{FOLDER}/{mark.writer}-{count}.json", page))
        mark = replace(mark, offsets={}, starts={}, pages=count)
    return mark, [_file(watermark_path(mark.writer), mark), *files]


def plan_token(files: Iterable[SidecarFile]) -> str:
    """Return the token of the plan that writes these files; empty if they have none."""
    marks = (mark for file in files if is_watermark(file.path) for mark in decode_watermarks(file.content, file.path))
    return next((mark.plan for mark in marks if mark.plan), "")


def _file(path: str, mark: Watermark) -> SidecarFile:
    return SidecarFile(path, msgspec.json.format(msgspec.json.encode(_plain(mark)), indent=2) + b"\n")


def _plain(mark: Watermark) -> dict[str, object]:
    plain: dict[str, object] = msgspec.to_builtins(mark)
    for name in ("pages", "plan", "starts"):
        if not plain[name]:  # so that the file is the same as an earlier version's
            del plain[name]
    if mark.fixed is None:
        del plain["fixed"]
    return plain


def _encode(marks: Iterable[Watermark]) -> bytes:
    lines = b",\n".join(msgspec.json.encode(_plain(mark)) for mark in marks)
    return b'{"watermarks":[\n' + lines + b"\n]}\n"


def _merge(one: Watermark, other: Watermark) -> Watermark:
    """Return the highest of everything that two files say of a writer."""
    return Watermark(
        one.writer,
        max(one.epoch, other.epoch),
        _highest(one.next, other.next),
        max(one.rows, other.rows),
        _highest(one.offsets, other.offsets),
        max(one.pages, other.pages),
        max(one, other, key=lambda mark: mark.rows).plan,
        join_fixed(one.fixed, other.fixed),
        {**one.starts, **{name: merged_starts(one.starts.get(name, ()), more) for name, more in other.starts.items()}},
    )


def join_fixed(one: Fixed | None, other: Fixed | None) -> Fixed | None:
    """Return what both say of the columns of their shards."""
    if one is None or other is None:
        return one if other is None else other
    configs = dict.fromkeys((*one, *other))
    return {config: {**one.get(config, {}), **other.get(config, {})} for config in configs}


def merged_starts(one: Iterable[Start], other: Iterable[Start]) -> list[Start]:
    """Return the starts of a source that two places know, by offset: the first ones and the newest ones of many."""
    found = sorted({*one, *other}, key=lambda start: (start.offset, start.after, start.content or 0))
    return found if len(found) <= _MOST_STARTS else [*found[:2], *found[2 - _MOST_STARTS :]]


def _highest(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {**one, **{name: max(number, one.get(name, number)) for name, number in other.items()}}


def _chunks(marks: Iterable[Watermark]) -> Iterator[list[Watermark]]:
    """Yield the watermarks for each folded file."""
    chunk: list[Watermark] = []
    size = 0
    for mark in marks:
        for part in _parts(mark, _FOLDED_BYTES):
            more = 100 + sum(_source_bytes(part, name) for name in (*part.offsets, *part.next))
            if chunk and size + more > _FOLDED_BYTES:
                yield chunk
                chunk, size = [], 0
            chunk.append(part)
            size += more
    if chunk:
        yield chunk


def _parts(mark: Watermark, most: int) -> Iterator[Watermark]:
    """Yield a watermark in parts whose offsets take no more than `most` bytes."""
    offsets: dict[str, int] = {}
    size = 0
    for source, offset in mark.offsets.items():
        more = _source_bytes(mark, source)
        if offsets and size + more > most:
            yield _part(mark, offsets)
            offsets, size = {}, 0
        offsets[source] = offset
        size += more
    yield _part(mark, offsets)


def _part(mark: Watermark, offsets: Mapping[str, int]) -> Watermark:
    return replace(mark, offsets=offsets, starts={name: mark.starts[name] for name in offsets if name in mark.starts})


def _source_bytes(mark: Watermark, name: str) -> int:
    starts = len(mark.starts.get(name, ()))
    # A number, quotes, a comma, an indent; the name again, and three numbers on lines of their own.
    return len(name.encode()) + 16 + (len(name.encode()) + 20 + 80 * starts if starts else 0)


def _is_path_of(writer: str, path: str) -> bool:
    return path == watermark_path(writer) or (
        re.fullmatch(r"-[1-9][0-9]*\.json", path.removeprefix(f"{FOLDER}/{writer}")) is not None
    )
