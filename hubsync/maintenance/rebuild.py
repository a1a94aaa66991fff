"""Rebuild a spool's catalogue from its segment files: `hubsync drain --rescue`.

The files hold the rows, and their names the writer and segment; each writer also notes where its rows belong.
What the damaged catalogue still tells is taken over, and what the dataset holds already is recognized by its content.
What cannot be known is reported: whether the last batch of a file was acknowledged, which keys and offsets were
accepted.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import msgspec

from hubsync._runtime.clock import SystemClock
from hubsync._runtime.file_lock import HEARTBEAT_S, FileLock
from hubsync._runtime.files import is_raw, whole_rows
from hubsync._runtime.formatting import count_text
from hubsync.destinations.resolve import open_hub
from hubsync.encoding.codecs import DamagedShard, read_lines
from hubsync.errors import ConfigError, SpoolBusy, SpoolError
from hubsync.maintenance.salvage import SalvagedCatalogue
from hubsync.model.commit import Watermark
from hubsync.model.hashing import hash_file
from hubsync.model.layout import Layout, format_of
from hubsync.model.target import Target
from hubsync.policies import RetryPolicy
from hubsync.spool.acknowledged import SUFFIX, forgotten_files
from hubsync.spool.database import Catalogue, read_only, strange_file
from hubsync.spool.disk import segment_id_of
from hubsync.spool.offsets import Offsets
from hubsync.spool.opening import restrict_to_owner
from hubsync.spool.segments import SegmentQueries, Segments
from hubsync.spool.writers import WriterNote


@dataclass
class RebuildReport:
    """What a rebuild found: `rows` in `segments` files to upload, and `on_hub` files that the dataset holds already.

    Attributes:
        kept: where the damaged catalogue was moved; None if it was gone.
        unknown: what could not be known, for the operator.
    """

    rows: int = 0
    segments: int = 0
    on_hub: int = 0
    kept: Path | None = None
    unknown: list[str] = field(default_factory=list)


class RemoteState(NamedTuple):
    """What the dataset holds: the oids of its files (git oids and sha256), and its watermarks."""

    oids: set[str]
    watermarks: Sequence[Watermark]


def rebuild(directory: Path, *, retry: RetryPolicy | None = None) -> RebuildReport | None:
    """Give a spool a new catalogue and keep the damaged one; return None if the catalogue is sound.

    Raises:
        SpoolBusy: a job has the spool open.
        SpoolError: nothing tells which repo the rows belong to.
        HubError: the Hub cannot be asked what it has already.
    """
    restrict_to_owner(directory)
    with _all_locks(directory) as locks, _scratch(directory) as scratch:
        old = SalvagedCatalogue(directory, scratch)
        is_sound = old.is_sound()
        is_whole = is_sound and strange_file(directory / "catalogue.sqlite") is None
        if is_whole and not _is_set_back(directory):
            return None
        notes = _read_notes(directory)
        target, private = _target(directory, old, notes), _private(old, notes)
        remote = anyio.run(read_remote, target, private, retry or RetryPolicy())
        with closing(Catalogue(scratch / "catalogue.sqlite")) as catalogue, catalogue.transaction():
            builder = _Builder(directory, catalogue, old, remote, is_set_back=is_sound)
            builder.copy_state(target, private)
            builder.add_segments(notes)
        if not {lock.path for lock in locks}.issuperset((directory / "writers").glob("*.lock")):
            raise SpoolBusy(f"A job has opened {directory} in the meantime. End it, and rescue again.")
        builder.report.kept = _move_aside(directory)
        os.replace(scratch / "catalogue.sqlite", directory / "catalogue.sqlite")
        for file in (*builder.obsolete, *(directory / "writers").glob(f"*{SUFFIX}")):
            file.unlink(missing_ok=True)
    return builder.report


async def read_remote(target: Target, private: bool | None, retry: RetryPolicy) -> RemoteState:
    """Return what the dataset holds, creating it if it does not exist."""
    async with open_hub(target, None, retry) as destination:
        head = (await destination.ensure_repo(private=private)).sha or ""
        oids = {file.oid for file in await destination.list_files(head)}
        return RemoteState(oids, list((await destination.read_watermarks(head)).by_writer.values()))


class _Builder:
    """Fills a new catalogue.

    Attributes:
        report: what was found.
        obsolete: files to remove once the new catalogue is in place.
    """

    def __init__(
        self, directory: Path, catalogue: Catalogue, old: SalvagedCatalogue, remote: RemoteState, *, is_set_back: bool
    ) -> None:
        self._is_set_back = is_set_back  # the old catalogue can be read, and is older than the files
        self.report = RebuildReport()
        self.obsolete: list[Path] = []
        self._files = directory / "segments"
        self._dead_letter = directory / "dead-letter"
        self._catalogue = catalogue
        self._segments = Segments(catalogue, SystemClock())
        self._old = old
        self._remote = remote

    def copy_state(self, target: Target, private: bool | None) -> None:
        """Take over everything but the segments, and what the watermarks tell."""
        self._copy("meta", (row for row in self._old.rows("meta") if row["key"] != "status"))
        self._catalogue.set("target", msgspec.json.encode(target).decode())
        self._catalogue.set("private", json.dumps(private))
        self._catalogue.set("seeded", "1")
        for table in ("writers", "series", "cards", "schemas", "committed_layouts"):
            self._copy(table, self._old.rows(table))
        keys = self._copy("keys", self._old.rows("keys"))
        offsets = Offsets(self._catalogue)
        for row in (*self._old.rows("offsets"), *self._old.rows("segment_offsets")):
            offsets.advance(row["source"], row["offset"])
        for mark in self._remote.watermarks:
            for source, offset in mark.offsets.items():
                offsets.advance(source, offset)
            offsets.learn_starts(mark.starts)
            for series, following in mark.next.items():
                self._segments.raise_next(series, following)
        if self._is_set_back or not (self._old.is_complete("offsets") or self._old.is_complete("segment_offsets")):
            known = ", ".join(f"{row[0]}: {row[1]:,}" for row in self._catalogue.rows("SELECT * FROM offsets"))
            self.report.unknown.append(
                f"which offsets were accepted after those that the dataset tells ({known or 'none'}). A job that "
                "continues from them may repeat rows of this spool."
            )
        if self._is_set_back or not self._old.is_complete("keys"):
            self.report.unknown.append(
                f"which keys were accepted ({keys:,} are known). A batch with another key may be repeated."
            )

    def _copy(self, table: str, rows: Iterable[Mapping[str, Any]]) -> int:
        count = 0
        for count, row in enumerate(rows, 1):  # noqa: B007
            names, marks = ", ".join(row), ", ".join("?" * len(row))
            self._catalogue.run(f"INSERT OR IGNORE INTO {table} ({names}) VALUES ({marks})", *row.values())
        return count

    def add_segments(self, notes: Mapping[str, WriterNote]) -> None:
        """Enter committed and dead segments as the old catalogue knows them, and the others by their files."""
        finished = {row.id: row for row in self._old.segments if row.state in ("committed", "dead")}
        pending = {_stem(row.file): row for row in self._old.segments if row.id not in finished}
        for row in finished.values():
            if row.path is None or not self._segments.is_path_taken(row.path):
                self._segments.insert(**row._asdict())
        quarantined = {_inode(file) for file in self._dead_letter.glob("*-*.*")}
        for file in self._current_files({row.file for row in pending.values()}):
            known, same_id = pending.get(_stem(file.name)), finished.get(segment_id_of(file))
            is_finished = same_id is not None and _stem(same_id.file) == _stem(file.name)
            if is_finished or (known is None and _inode(file) in quarantined):  # a resubmit was interrupted
                self.obsolete.append(file)
            elif known is not None:
                # Another form of the same rows has other bytes than those that were counted.
                is_counted = known.file == file.name and not (self._is_set_back and known.state == "open")
                self._add(file, known._asdict(), known.bytes if is_counted else None)
            else:
                file = self._with_free_id(file, {row.id for row in self._old.segments})
                self._add(file, self._describe(file, notes), None)
            pending.pop(_stem(file.name), None)
        for row in pending.values():
            self.report.unknown.append(
                f"where {count_text(row.rows, 'row')} of {row.file} went: the file is gone. What is not in the dataset "
                "is lost."
            )
        offsets = self._old.rows("segment_offsets")
        self._copy("segment_offsets", (row for row in offsets if self._segments.find(row["segment"]) is not None))
        if not self._old.is_complete("schemas"):  # the default policy, so that the dataset loads
            self._copy("schemas", ({"config": config, "policy": "json"} for config in self._segments.configs()))
        for file in self._dead_letter.glob("*-*.*"):
            number, _, name = file.name.partition("-")
            if number.isdigit() and self._segments.find(int(number)) is None:
                self._add_dead(int(number), name, file)

    def _current_files(self, counted: Collection[str]) -> list[Path]:
        """Return the file of each segment, and note other files of the same segment as obsolete.

        It is the one that the old catalogue counts, or else a compressed one, which may be on the Hub. The others hold
        the same rows, or a part of them.
        """
        by_stem: dict[str, list[Path]] = {}
        for file in self._files.glob("*-*.*"):
            if file.suffix == ".new":
                self.obsolete.append(file)
            else:
                by_stem.setdefault(_stem(file.name), []).append(file)
        current = []
        for files in by_stem.values():
            best, *others = sorted(files, key=lambda f: (f.name in counted, not is_raw(f.name), f.name), reverse=True)
            current.append(best)
            self.obsolete += others
        return sorted(current, key=segment_id_of)

    def _with_free_id(self, file: Path, taken: Collection[int]) -> Path:
        """Rename a file whose id belongs to another segment: the transaction that created it was rolled back."""
        if segment_id_of(file) not in taken and self._segments.find(segment_id_of(file)) is None:
            return file
        free = max(0, *taken, *map(segment_id_of, self._files.glob("*-*.*"))) + 1
        stem, _, ending = file.name.partition(".")
        return file.rename(file.with_name(f"{stem.rpartition('-')[0]}-{free:08d}.{ending}"))

    def _describe(self, file: Path, notes: Mapping[str, WriterNote]) -> dict[str, Any]:
        """Return what the name of a file and its writer's note tell."""
        writer = _stem(file.name).partition("-")[0]
        note, format = notes.get(writer), format_of(file.name)
        layout = note.layout_of(segment_id_of(file)) if note is not None else None
        if layout is None or format not in ("jsonl", layout.format):
            layout = Layout.of("default", "train", None, format)
            self.report.unknown.append(f"which config and split {file.name} belongs to: it goes to default/train.")
        self.report.unknown.append(f"whether the last batch in {file.name} was acknowledged: it is uploaded.")
        place = {"config": layout.config, "split": layout.split, "template": layout.template}
        return {"id": segment_id_of(file), "writer": writer, "opened_at": file.stat().st_mtime, **place}

    def _add(self, file: Path, about: dict[str, Any], accepted: int | None) -> None:
        """Enter a pending segment, unless the dataset holds its rows."""
        rows = self._cut(file, accepted) if is_raw(file.name) else _count_rows(file)
        size = file.stat().st_size
        if rows == 0 or self._remote.oids.intersection(hash_file(file, size)):
            self.report.on_hub += rows > 0
            self.obsolete.append(file)
            return
        self.report.rows += rows
        self.report.segments += 1
        self._copy("writers", [{"name": about["writer"], "epoch": 1}])
        names = ["id", "writer", "config", "split", "template", "opened_at"]
        is_sealed = about.get("path") is not None and not self._segments.is_path_taken(about["path"])
        if is_sealed:
            names += ["series", "seq", "path"]
        found = {"file": file.name, "bytes": size, "rows": rows, "state": "sealed" if is_sealed else "open"}
        self._segments.insert(**found, **{name: about[name] for name in names})

    def _cut(self, file: Path, accepted: int | None) -> int:
        """Cut a file to what was accepted, at least to whole rows; return its rows."""
        size = file.stat().st_size
        if accepted is not None and size < accepted:
            self.report.unknown.append(f"{accepted - size:,} accepted bytes of {file.name}: they are missing.")
        rows, length = whole_rows(file, size if accepted is None else min(size, accepted))
        if length < size:
            os.truncate(file, length)
        return rows

    def _add_dead(self, segment: int, path: str, file: Path) -> None:
        about = file.stat()
        rows, size = whole_rows(file, about.st_size) if is_raw(path) else (0, about.st_size)
        self._segments.insert(
            id=segment, writer="", file="", config="default", split="train", template="", state="dead", bytes=size,
            rows=rows, opened_at=about.st_mtime, path=path, error="unknown: a rescue found it in the dead letter",
        )  # fmt: skip


def _is_set_back(directory: Path) -> bool:
    with read_only(directory / "catalogue.sqlite") as db:
        return bool(forgotten_files(directory, SegmentQueries(db)).files)


def _stem(name: str) -> str:
    """Return what the names of a segment's files have in common: `writer-00000012`."""
    return name.partition(".")[0]


def _inode(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_dev, about.st_ino


def _count_rows(file: Path) -> int:
    """Return the rows of a compressed file, which is complete or cannot be read at all."""
    try:
        return sum(1 for _ in read_lines(file))
    except (DamagedShard, ConfigError) as error:
        raise SpoolError(
            f"Cannot read {file} ({error}). Nothing was changed. Move the file elsewhere, and rescue again."
        ) from None


# What surrounds a rebuild.


@contextmanager
def _all_locks(directory: Path) -> Iterator[Sequence[FileLock]]:
    """Hold the locks of the committer and of all writers, and refresh them, since the Hub may take long to answer."""
    done = threading.Event()
    with ExitStack() as stack:
        locks: list[FileLock] = []
        for path in [directory / "committer.lock", *(directory / "writers").glob("*.lock")]:
            lock = FileLock(path)
            if not lock.acquire():
                raise SpoolBusy(f"Process {lock.holder()} has {directory} open. End it, and rescue again.")
            stack.callback(lock.release)
            locks.append(lock)

        def refresh() -> None:
            while not done.wait(HEARTBEAT_S):
                for lock in locks:
                    lock.refresh()

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        stack.callback(thread.join)
        stack.callback(done.set)
        yield locks


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    scratch = directory / "rescue"
    shutil.rmtree(scratch, ignore_errors=True)  # of a rescue that was killed
    scratch.mkdir(mode=0o700)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _read_notes(directory: Path) -> dict[str, WriterNote]:
    notes = {}
    for file in (directory / "writers").glob("*.json"):
        with suppress(msgspec.DecodeError):
            notes[file.stem] = msgspec.json.decode(file.read_bytes(), type=WriterNote)
    return notes


def _target(directory: Path, old: SalvagedCatalogue, notes: Mapping[str, WriterNote]) -> Target:
    if (stored := old.get("target")) is not None:
        return msgspec.json.decode(stored, type=Target)
    targets = {note.target for note in notes.values()}
    if len(targets) != 1:
        raise SpoolError(
            f"Nothing in {directory} tells which repo its rows belong to. Its files are unchanged. Rows not on the "
            f"Hub are in {directory / 'segments'}; to upload one of its .jsonl files: hubsync pipe REPO < FILE"
        )
    return targets.pop()


def _private(old: SalvagedCatalogue, notes: Mapping[str, WriterNote]) -> bool | None:
    """Return whether a repo that is created is private; if notes disagree, it is."""
    if (stored := old.get("private")) is not None:
        return stored == "true"
    return max((note.private for note in notes.values() if note.private is not None), default=None)


def _move_aside(directory: Path) -> Path | None:
    kept = next(file for n in count(1) if not (file := directory / f"catalogue.broken-{n}").exists())
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(directory / f"catalogue.sqlite{suffix}", f"{kept}{suffix}")
    return kept if kept.exists() else None
