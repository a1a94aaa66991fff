"""The writers of a spool: their names, locks, notes and watermarks.

A writer is one open uploader. Its name is part of its shards' paths and of its watermark's, so a name whose process is
dead is used again. The watermark is what the dataset says about a writer: it travels in the same commit as the shards.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec

from hubsync._runtime.file_lock import ByteLocks, FileLock
from hubsync._runtime.files import write_atomically
from hubsync.model.commit import Watermark
from hubsync.model.hashing import git_blob_oid
from hubsync.model.layout import Layout
from hubsync.model.shard import Shard
from hubsync.model.target import Target
from hubsync.model.watermarks import join_fixed, merged_starts, watermark_files
from hubsync.spool.acknowledged import SUFFIX, AcknowledgedNote
from hubsync.spool.database import Catalogue
from hubsync.spool.lease import CommitterLease
from hubsync.spool.offsets import OffsetOrder, Offsets
from hubsync.spool.schemas import Schemas
from hubsync.spool.segments import Segments


class WriterNote(msgspec.Struct):
    """A file next to a writer's lock that says where its rows belong, in case the catalogue is lost.

    Attributes:
        target: the branch that the spool belongs to.
        layouts: pairs of a segment id and the layout of the segments after it.
        private: whether a repo that is created is private; None for the account's default.
    """

    target: Target
    layouts: list[tuple[int, Layout]]
    private: bool | None = None

    def layout_of(self, segment: int) -> Layout | None:
        """Return where a segment's rows belong; None if the note does not say."""
        return next((layout for after, layout in reversed(self.layouts) if segment > after), None)


class Writers:
    """The table of writers, and the files that belong to them."""

    def __init__(
        self,
        directory: Path,
        target: Target,
        catalogue: Catalogue,
        segments: Segments,
        offsets: Offsets,
        lease: CommitterLease,
        schemas: Schemas,
    ) -> None:
        self._directory = directory / "writers"
        self._target = target
        self._catalogue = catalogue
        self._segments = segments
        self._offsets = offsets
        self._lease = lease
        self._schemas = schemas

    def names(self) -> list[str]:
        """Return the names of all writers there ever were."""
        return [row[0] for row in self._catalogue.rows("SELECT name FROM writers ORDER BY name")]

    def epochs(self) -> dict[str, int]:
        """Return how often each writer was opened, by name."""
        return {row["name"]: row["epoch"] for row in self._catalogue.rows("SELECT name, epoch FROM writers")}

    def lock(self, name: str) -> FileLock:
        """Return the lock that a living writer holds on its name."""
        return FileLock(self._directory / f"{name}.lock")

    def acknowledged(self, name: str) -> AcknowledgedNote:
        """Return the note of what a writer has acknowledged. Its lock must be held."""
        return AcknowledgedNote(self._directory / f"{name}{SUFFIX}")

    def offset_order(self) -> OffsetOrder:
        """Return the order of offsets for an uploader that was just opened."""
        return OffsetOrder(self._offsets, ByteLocks(self._directory / "sources"), self.pids)

    def pids(self) -> set[int]:
        """Return the processes that have the spool open to write."""
        return {pid for name in self.names() if (pid := self.lock(name).holder()) is not None}

    def candidates(self) -> Iterator[str]:
        """Yield the names that a new writer may take: those of all writers, then fresh ones."""
        yield from self.names()
        while True:
            yield secrets.token_hex(4)

    def register(self, name: str, layout: Layout, private: bool | None) -> None:
        """Record that a writer was opened. Its lock must be held."""
        with self._catalogue.transaction():
            self._catalogue.run(
                "INSERT INTO writers (name, epoch) VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET epoch = epoch + 1",
                name,
            )
        self.note(name, layout, private)

    def ensure(self, name: str) -> str:
        """Return a writer to count a shard for: this one or, if a rebuild did not find it, another one."""
        return name if name in self.names() else self.any_name()

    def any_name(self) -> str:
        """Return the name of a writer, after recording one if there was none."""
        names = self.names()
        if not names:
            names.append(secrets.token_hex(4))
            self._catalogue.run("INSERT OR IGNORE INTO writers (name, epoch) VALUES (?, 1)", names[0])
        return names[0]

    def note(self, name: str, layout: Layout, private: bool | None) -> None:
        """Write down where a writer's rows belong from now on."""
        path = self._directory / f"{name}.json"
        note = WriterNote(self._target, [])
        with suppress(OSError, msgspec.DecodeError):
            note = msgspec.json.decode(path.read_bytes(), type=WriterNote)
        if note.layouts and note.layouts[-1][1] == layout and note.private == private:
            return
        note.private = private
        note.layouts.append((self._segments.newest(), layout))
        write_atomically(path, msgspec.json.encode(note))

    # Watermarks.

    def committed_watermarks(self) -> dict[str, Watermark]:
        """Return the watermarks as they were last committed, by writer. A writer that never committed has none."""
        rows = self._catalogue.rows("SELECT name, mark FROM writers WHERE mark IS NOT NULL")
        return {name: msgspec.json.decode(mark, type=Watermark) for name, mark in rows}

    def watermark_oids(self) -> dict[str, str]:
        """Return the git oids of the watermark files as they were last committed, by path.

        That of a writer that never committed is left out, unless it may have, and this catalogue was set back since.
        """
        names = self._catalogue.rows("SELECT name FROM writers WHERE mark IS NOT NULL OR epoch > 1")
        files = [watermark_files(self._committed(name))[1][0] for (name,) in names]
        return {file.path: git_blob_oid(file.content) for file in files}

    def current_watermark(self, name: str) -> Watermark:
        """Return a writer's watermark as the next commit would contain it without further shards."""
        epoch = self._catalogue.value("SELECT epoch FROM writers WHERE name = ?", name)
        return replace(self._committed(name), epoch=epoch)

    def next_watermarks(self, shards: Sequence[Shard], token: str) -> dict[str, Watermark]:
        """Return each writer's watermark once the plan of this token has committed `shards`."""
        marks: dict[str, Watermark] = {}
        for shard in shards:
            segment = self._segments.get(shard.segment)
            assert segment.series is not None
            assert segment.seq is not None
            mark = marks.get(shard.writer) or self.current_watermark(shard.writer)
            offsets, starts = dict(mark.offsets), dict(mark.starts)
            for source, offset in self._offsets.of_segment(shard.segment):
                offsets[source] = max(offsets.get(source, offset), offset)
                if more := self._offsets.starts_in(shard.segment, source):
                    starts[source] = merged_starts(starts.get(source, ()), more)
            fixed = self._schemas.fixed(segment.config, segment.schema)
            if fixed is not None and (mark.fixed is not None or not mark.rows):
                fixed = join_fixed(mark.fixed, fixed)
            else:  # some of its shards are unknown
                fixed = None
            following = {**mark.next, segment.series: max(mark.next.get(segment.series, 0), segment.seq + 1)}
            marks[shard.writer] = replace(
                mark,
                next=following,
                rows=mark.rows + shard.rows,
                offsets=offsets,
                plan=token,
                fixed=fixed,
                starts=starts,
            )
        return marks

    def set_watermark(self, mark: Watermark) -> None:
        """Record that a commit has written this watermark. Within a transaction."""
        text = msgspec.json.encode(watermark_files(mark)[0]).decode()
        self._catalogue.run("UPDATE writers SET mark = ? WHERE name = ?", text, mark.writer)

    def accept_watermark(self, mark: Watermark) -> None:
        """Record that the dataset contains this watermark of a writer of ours. For the committer."""
        with self._lease.transaction():
            self.set_watermark(mark)

    def is_behind(self, mark: Watermark) -> bool:
        """Return whether the dataset contains more of a writer of ours than the catalogue knows."""
        ours = self._committed(mark.writer)
        if mark.rows > ours.rows or any(n > ours.next.get(series, 0) for series, n in mark.next.items()):
            return True
        ahead = ((source, n) for source, n in mark.offsets.items() if n > ours.offsets.get(source, -1))
        # Of those in earlier pages only the highest that was accepted is known.
        return any(not ours.pages or n > (self._offsets.highest(source) or -1) for source, n in ahead)

    def _committed(self, name: str) -> Watermark:
        mark = self._catalogue.value("SELECT mark FROM writers WHERE name = ?", name)
        return Watermark(name, 0) if mark is None else msgspec.json.decode(mark, type=Watermark)
