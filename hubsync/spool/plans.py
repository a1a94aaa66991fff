"""What a committer does with a spool's sealed segments: staged, planned, settled; watermarks and the card's entries.

A plan is written down before it is sent, so that whoever comes next knows what may have landed. Every change is made
under the committer's lease: where another process has taken over in the meantime, `LeaseLost` is raised and nothing
is changed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import is_all_there, size_of
from hubsync.model.commit import Plan, SidecarFile, Watermark
from hubsync.model.hashing import git_blob_oid, git_oid_of_file, hash_file
from hubsync.model.layout import Layout
from hubsync.model.shard import Mode, Shard
from hubsync.spool.database import PENDING, UNPACKED
from hubsync.spool.spool import Spool

_log = logging.getLogger("hubsync")

_CHANGED = "the disk, or somebody, changed it after its rows were accepted"
_PAGE = 500  # segments read at a time
_SMALL = 16 << 20  # bytes, below which a Hub may keep a file as a regular one; its bound is about 10 MB


class Plans:
    """The committer's view of a spool."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._catalogue = spool.catalogue
        self._left = 0  # segments up to this one may have met a crash or a power cut
        self._read: set[int] = set()  # those of them whose files were read here, and hold what their writers hashed

    def take_over(self) -> int:
        """What is sealed now, somebody else has left: its files are looked through. Answers the newest segment."""
        left = self._catalogue.value(f"SELECT max(id) FROM segments WHERE {PENDING} AND state IN ('sealed', 'staged')")
        self._left = left or 0
        return self.newest()

    # Staging.

    def sealed(self, limit: int, max_bytes: int, besides: Collection[int] = ()) -> list[Shard]:
        """The oldest sealed shards that are not staged and need no packing, hashed: up to a bound, but always one where
        there is any.
        """
        shards: list[Shard] = []
        held = 0
        for row in self._catalogue.rows(
            f"SELECT id, bytes FROM segments WHERE {PENDING} AND state = 'sealed' AND NOT {UNPACKED} "
            "ORDER BY id LIMIT ?",
            limit + len(besides),
        ):
            if row["id"] in besides:
                continue
            held += row["bytes"]
            if shards and held > max_bytes:
                break
            if self.is_whole(row["id"]):
                shards.append(self.shard(row["id"]))
        return shards

    def is_whole(self, segment: int) -> bool:
        """Whether there is anything to bring up: a power cut may have taken bytes that were sealed already, and one
        damaged segment must not hold the others up. What is all there and is not what was written waits for a person.
        """
        row = self._segment(segment)
        file = self._spool.file(row["file"])
        if self._is_as_written(row, file):
            return True
        with self._spool.leased():
            if self._segment(segment)["state"] != "sealed":
                return False
            is_changed = is_all_there(file, row["bytes"])
            if is_changed:
                self._spool.set_aside(segment, file, f"{file.name} is not what was written, by its sha256: {_CHANGED}")
            else:
                self._spool.shorten(segment, file, row["bytes"])
            found = self._segment(segment)
            state = "sealed" if found["rows"] and not is_changed else "dead"
            self._catalogue.run(
                "UPDATE segments SET sha256 = NULL, git_oid = NULL, state = ? WHERE id = ?", state, segment
            )
        if is_changed:
            file.unlink(missing_ok=True)
            where = self._spool.directory
            _log.error("%s. Its %d rows are kept in the dead letter: hubsync dead-letter list %s",
                       found["error"], found["rows"], where)  # fmt: skip
        return bool(state == "sealed")

    def _is_as_written(self, row: Any, file: Path) -> bool:
        """Whether a segment's file holds what its writer wrote: by its size, and once, where somebody else has left it,
        by its content. What an earlier process read there was perhaps in memory only, and not on the disk.
        """
        size = size_of(file)
        if size is None or size < row["bytes"]:
            return False
        if row["id"] > self._left or row["sha256"] is None or row["id"] in self._read:
            return True
        sha256, git_oid = hash_file(file, row["bytes"])
        if sha256 != row["sha256"]:
            return False
        self._read.add(row["id"])
        self._catalogue.run("UPDATE segments SET git_oid = ? WHERE id = ?", git_oid, row["id"])
        return True

    def shard(self, segment: int) -> Shard:
        """A sealed segment, hashed."""
        row = self._segment(segment)
        file = self._spool.file(row["file"])
        sha256, git_oid = row["sha256"], row["git_oid"]
        if sha256 is None:
            sha256, git_oid = hash_file(file, row["bytes"])
            self._catalogue.run("UPDATE segments SET sha256 = ?, git_oid = ? WHERE id = ?", sha256, git_oid, segment)
            failpoint(Failpoint.HASHED)
        elif git_oid is None and (row["bytes"] < _SMALL or row["mode"] == "regular"):
            git_oid = git_oid_of_file(file, row["bytes"])
            self._catalogue.run("UPDATE segments SET git_oid = ? WHERE id = ?", git_oid, segment)
            failpoint(Failpoint.HASHED)
        return Shard(
            segment, row["writer"], file, row["path"], row["bytes"], row["rows"], sha256, git_oid, row["mode"]
        )  # fmt: skip

    def _segment(self, segment: int) -> Any:
        row = self._catalogue.row("SELECT * FROM segments WHERE id = ?", segment)
        assert row is not None
        return row

    def mark_staged(self, modes: Mapping[int, Mode]) -> None:
        with self._spool.leased():
            for segment, mode in modes.items():
                self._catalogue.run(
                    "UPDATE segments SET state = 'staged', mode = ? WHERE id = ? AND state = 'sealed'", mode, segment
                )
        failpoint(Failpoint.STAGED)

    def unstage(self, shards: Iterable[Shard]) -> None:
        """The Hub no longer knows the blobs: they go up again."""
        with self._spool.leased():
            for shard in shards:
                self._catalogue.run(
                    "UPDATE segments SET state = 'sealed', mode = NULL WHERE id = ? AND state = 'staged'", shard.segment
                )
        failpoint(Failpoint.UNSTAGED)

    # Another's file at our path.

    def renumber(self, shard: Shard, seq: int) -> None:
        """Gives a shard another number: what stands at its path is not ours, and is never overwritten."""
        with self._spool.leased():
            row = self._segment(shard.segment)
            known = self._catalogue.value("SELECT next FROM series WHERE name = ?", row["series"]) or 0
            self._spool.number(shard.segment, _layout(row), row["writer"], row["series"], max(seq, known))
        failpoint(Failpoint.RENUMBERED)

    def newest(self) -> int:
        """The newest segment; 0 where there is none."""
        return int(self._catalogue.value("SELECT max(id) FROM segments") or 0)

    def numbered(self, shard: Shard, skip: int, count: int) -> list[str]:
        """The paths that this shard's series gives to `count` numbers, from `skip` after its own."""
        row = self._segment(shard.segment)
        return [_layout(row).path(row["writer"], row["seq"] + n) for n in range(skip, skip + count)]

    def seq(self, shard: Shard) -> int:
        return int(self._segment(shard.segment)["seq"])

    # Plans.

    def is_urgent(self) -> bool:
        """Whether somebody waits for a staged shard."""
        urgent = self._catalogue.value(
            f"SELECT 1 FROM segments WHERE {PENDING} AND state = 'staged' AND urgent LIMIT 1"
        )
        return urgent is not None

    def is_waited_for(self) -> bool:
        """Whether somebody waits for a shard, staged or not."""
        urgent = self._catalogue.value(f"SELECT 1 FROM segments WHERE {PENDING} AND state != 'dead' AND urgent LIMIT 1")
        return urgent is not None

    def damaged(self) -> list[Shard]:
        """Staged shards that travel in the commit, and whose file is not what it was."""
        rows = self._catalogue.rows(f"SELECT * FROM segments WHERE {PENDING} AND state = 'staged' AND mode = 'regular'")
        return [
            self.shard(row["id"]) for row in rows if not self._is_as_written(row, self._spool.file(row["file"]))
        ]  # fmt: skip

    def ready(self, limit: int, max_inline_bytes: int) -> list[Shard]:
        """The oldest staged shards that fit one commit and may go now; always at least one where any may."""
        shards: list[Shard] = []
        inline = 0
        for row in self._in_order(lambda row: row["state"] == "staged" and row["plan"] is None):
            inline += row["bytes"] if row["mode"] == "regular" else 0
            if len(shards) == limit or (shards and inline > max_inline_bytes):
                break
            shards.append(self.shard(row["id"]))
        return shards

    def in_order(self, shards: Sequence[Shard]) -> list[Shard]:
        """Those of `shards`, the oldest first, that may go now where no others go."""
        ours = {shard.segment: shard for shard in shards}
        return [ours[row["id"]] for row in self._in_order(lambda row: row["id"] in ours, max(ours, default=0))]

    def _in_order(self, may_go: Callable[[Any], bool], last: int | None = None) -> Iterator[Any]:
        """Of the segments that wait, up to `last`, those that may go and overtake none of the same source.

        So a watermark's offset says that all before it is in the dataset, and nothing behind it: were the disk lost
        now, a job that goes on from there would neither pass over a row nor bring one again.
        """
        behind: set[str] = set()
        after = 0  # a later segment has the later offsets, so only earlier ones can be overtaken
        while page := self._catalogue.rows(
            "SELECT *, (SELECT json_group_array(source) FROM segment_offsets WHERE segment = id) AS sources "
            f"FROM segments WHERE {PENDING} AND state != 'dead' AND id > ? AND id <= ? ORDER BY id LIMIT {_PAGE}",
            after, self.newest() if last is None else last,
        ):  # fmt: skip
            for row in page:
                sources = msgspec.json.decode(row["sources"])
                if may_go(row) and behind.isdisjoint(sources):
                    yield row
                else:
                    behind.update(sources)
            after = page[-1]["id"]

    def may_meet_others(self, shards: Iterable[Shard]) -> bool:
        """Whether another machine's shards may have the same paths: their template has no `{writer}`."""
        return any("{writer}" not in self._segment(shard.segment)["template"] for shard in shards)

    def waiting(self) -> list[Shard]:
        """All that are sealed or staged, where their bytes are there."""
        rows = self._catalogue.rows(
            f"SELECT id, file FROM segments WHERE {PENDING} AND state IN ('sealed', 'staged') AND NOT {UNPACKED}"
        )
        return [self.shard(row["id"]) for row in rows if size_of(self._spool.file(row["file"])) is not None]

    def write(self, shards: Sequence[Shard], card: SidecarFile | None, parent: str | None, summary: str) -> Plan:
        """Writes down the next commit: the shards, each writer's watermark as it will be, and the card."""
        with self._spool.leased():
            notes = [*([card] if card else []), *self._watermark_notes(shards)]
            plan = self._catalogue.run(
                "INSERT INTO plans (created_at, parent, summary, notes) VALUES (?, ?, ?, ?)",
                self._spool.clock.time(), parent, summary, msgspec.msgpack.encode(notes),
            )  # fmt: skip
            for shard in shards:
                self._catalogue.run("UPDATE segments SET plan = ? WHERE id = ?", plan, shard.segment)
            failpoint(Failpoint.WATERMARKED)
        failpoint(Failpoint.PLANNED)
        return Plan(plan, shards, notes, parent, summary, self._spool.term or 0)

    def claim(self, parent: str | None) -> Plan:
        """A commit that only says that a writer is here."""
        name = self._catalogue.value("SELECT name FROM writers ORDER BY name LIMIT 1")
        note = _note(self._mark(str(name)))
        return Plan(0, (), (note,), parent, f"Open writer {name}", self._spool.term or 0)

    def unsettled(self) -> Plan | None:
        """The plan that an earlier try left: it may have landed, so it is reconciled before anything else is sent."""
        row = self._catalogue.row("SELECT * FROM plans ORDER BY id LIMIT 1")
        if row is None:
            return None
        segments = self._catalogue.rows("SELECT id FROM segments WHERE plan = ? ORDER BY id", row["id"])
        notes = msgspec.msgpack.decode(row["notes"], type=list[SidecarFile])
        return Plan(row["id"], [self.shard(s["id"]) for s in segments], notes, row["parent"], row["summary"])

    def settle(self, plan: Plan, landed: Mapping[int, str]) -> None:
        """Ends a plan: `landed` (segment to sha) are committed, the others are free for the next plan."""
        gone = [shard for shard in plan.shards if shard.segment in landed]
        now = self._spool.clock.time()
        with self._spool.leased():
            for writer, mark in self._marks(gone).items():
                self._catalogue.run(
                    "UPDATE writers SET mark = ? WHERE name = ?", msgspec.json.encode(mark).decode(), writer
                )
            for shard in gone:
                self._catalogue.run(
                    "UPDATE segments SET state = 'committed', sha = ?, committed_at = ?, plan = NULL WHERE id = ?",
                    landed[shard.segment], now, shard.segment,
                )  # fmt: skip
            if gone:
                self._count_committed(gone)
            self._catalogue.run("UPDATE segments SET plan = NULL WHERE plan = ?", plan.id)
            self._catalogue.run("DELETE FROM plans WHERE id = ?", plan.id)
            failpoint(Failpoint.WATERMARK_RECORDED)
        failpoint(Failpoint.SETTLED)
        for shard in gone:
            with suppress(OSError):  # what stays is swept at the next start
                shard.file.unlink()
            failpoint(Failpoint.FILE_REMOVED)

    def _count_committed(self, shards: Sequence[Shard]) -> None:
        for key, more in (
            ("rows", sum(s.rows for s in shards)), ("bytes", sum(s.size for s in shards)), ("shards", len(shards)),
        ):  # fmt: skip
            self._catalogue.set(f"committed_{key}", str(int(self._catalogue.get(f"committed_{key}") or 0) + more))

    def bury(self, shard: Shard, why: str) -> Path:
        """Sets a shard aside in the dead letter, for good, and answers where it lies now."""
        with self._spool.leased():
            grave = self._spool.set_aside(shard.segment, shard.file, why)
        failpoint(Failpoint.QUARANTINED)
        with suppress(OSError):
            shard.file.unlink()
        return grave

    # What the dataset shows: watermarks, and the card.

    def _watermark_notes(self, shards: Sequence[Shard]) -> list[SidecarFile]:
        return [_note(mark) for mark in self._marks(shards).values()]

    def _marks(self, shards: Sequence[Shard]) -> dict[str, Watermark]:
        """Each writer's watermark once `shards` are committed."""
        marks: dict[str, Watermark] = {}
        for shard in shards:
            row = self._segment(shard.segment)
            mark = marks.get(shard.writer) or self._mark(shard.writer)
            offsets = dict(mark.offsets)
            for found in self._catalogue.rows("SELECT * FROM segment_offsets WHERE segment = ?", shard.segment):
                offsets[found["source"]] = max(offsets.get(found["source"], found["offset"]), found["offset"])
            following = {**mark.next, row["series"]: max(mark.next.get(row["series"], 0), row["seq"] + 1)}
            marks[shard.writer] = replace(mark, next=following, rows=mark.rows + shard.rows, offsets=offsets)
        return marks

    def _mark(self, writer: str) -> Watermark:
        epoch = self._catalogue.value("SELECT epoch FROM writers WHERE name = ?", writer)
        return replace(self._stored_mark(writer), epoch=epoch)

    def _stored_mark(self, writer: str) -> Watermark:
        """A writer's watermark as it was last committed."""
        mark = self._catalogue.value("SELECT mark FROM writers WHERE name = ?", writer)
        return Watermark(writer, 0) if mark is None else msgspec.json.decode(mark, type=Watermark)

    def marks(self) -> dict[str, str]:
        """The watermarks of this spool's writers as it last committed them, by path: their git oids."""
        names = self._catalogue.rows("SELECT name FROM writers")
        notes = [_note(self._stored_mark(row["name"])) for row in names]
        return {note.path: git_blob_oid(note.content) for note in notes}

    def is_behind(self, mark: Watermark) -> bool:
        """Whether the dataset knows more of a writer of ours than the catalogue."""
        ours = self._stored_mark(mark.writer)
        return (
            mark.rows > ours.rows
            or any(n > ours.next.get(series, 0) for series, n in mark.next.items())
            or any(n > ours.offsets.get(source, -1) for source, n in mark.offsets.items())
        )

    def accept_mark(self, mark: Watermark) -> None:
        """What the dataset says of a writer of ours is so."""
        with self._spool.leased():
            self._catalogue.run(
                "UPDATE writers SET mark = ? WHERE name = ?", msgspec.json.encode(mark).decode(), mark.writer
            )

    def entries(self, shards: Sequence[Shard]) -> list[tuple[str, str, str]]:
        """The (config, split, glob) of `shards`, that the dataset's card is to show."""
        rows = [self._segment(shard.segment) for shard in shards]
        return list(dict.fromkeys((row["config"], row["split"], _layout(row).glob) for row in rows))

    def uncarded(self, shards: Sequence[Shard]) -> list[tuple[str, str, str]]:
        """Those that it may not show yet."""
        known = "SELECT 1 FROM cards WHERE config = ? AND split = ? AND glob = ?"
        return [entry for entry in self.entries(shards) if self._catalogue.value(known, *entry) is None]

    def carded(self) -> dict[tuple[str, str, str], str]:
        """What the card should show of all that this spool has committed: (config, split, glob); its newest path."""
        newest = self._catalogue.rows(
            "SELECT config, split, template, path, max(id) FROM segments WHERE state = 'committed' "
            "GROUP BY config, split, template"
        )
        return {(row["config"], row["split"], _layout(row).glob): row["path"] for row in newest}

    def is_card_owed(self) -> bool:
        """Whether shards were committed without the card that shows them."""
        return self._catalogue.get("card_owed") == "1"

    def owe_card(self, owed: bool) -> None:
        if owed != self.is_card_owed():
            with self._spool.leased():
                self._catalogue.set("card_owed", str(int(owed)))

    def mark_carded(self, entries: Iterable[tuple[str, str, str]], *, no_others: bool) -> None:
        """The card shows them now."""
        with self._spool.leased():
            if no_others:
                self._catalogue.run("DELETE FROM cards")
            for entry in entries:
                self._catalogue.run("INSERT OR IGNORE INTO cards VALUES (?, ?, ?)", *entry)
        failpoint(Failpoint.CARD_RECORDED)


def _note(mark: Watermark) -> SidecarFile:
    return SidecarFile(mark.path, msgspec.json.format(msgspec.json.encode(mark), indent=2) + b"\n")


def _layout(row: Any) -> Layout:
    return Layout(row["config"], row["split"], row["template"])
