"""The directory on local disk that holds what is not yet committed, and survives the process.

    open ──seal──> sealed ──stage──> staged ──plan, commit──> committed   (the file goes only now)
                      └──────────────────┴── refused for good ──> dead    (kept in dead-letter/)

A segment's bytes are the future shard's bytes. Bytes are written first and then counted in the catalogue, so a torn
tail is what the catalogue does not count, and is cut off. Any number of processes may open one spool: each is a
writer with a locked name of its own, and the holder of `committer.lock` commits for all.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec

from hubsync.catalogue import Catalogue
from hubsync.clock import Clock, SystemClock
from hubsync.errors import SpoolError, SpoolMismatch
from hubsync.locks import FileLock
from hubsync.plan import Mode, Note, Plan, Shard, Watermark
from hubsync.policy import Layout, SpoolPolicy

SegmentState = Literal["open", "sealed", "staged", "committed", "dead"]


class SpoolDepth(NamedTuple):
    """What a spool holds. `oldest_at` is when the oldest row not yet committed came, in seconds since the epoch."""

    rows: int
    bytes: int
    open: int
    sealed: int
    staged: int
    dead: int
    oldest_at: float | None
    committed_rows: int
    committed_bytes: int
    committed_shards: int


@dataclass(frozen=True, slots=True)
class Target:
    """The branch of a dataset that a spool belongs to."""

    endpoint: str
    repo: str
    revision: str = "main"


def default_home() -> Path:
    """Where spools live when the user names no place. They are state, not a cache: nobody may sweep them."""
    home = os.environ.get("HUBSYNC_HOME")
    if home is None:
        home = os.path.join(os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state"), "hubsync")
    return Path(home)


def default_directory(target: Target) -> Path:
    """The spool of `target` there."""
    tag = hashlib.blake2b(f"{target.endpoint}\0{target.revision}".encode(), digest_size=4).hexdigest()
    return default_home() / f"{target.repo.replace('/', '--')}-{tag}"


class Spool:
    """One spool directory, opened by this process. Its methods block on the disk; the worker calls them in threads."""

    def __init__(
        self, directory: Path, *, target: Target | None, policy: SpoolPolicy | None = None, clock: Clock | None = None
    ) -> None:
        """Opens the spool, making it where `target` is given; with None it must be there already.

        Raises:
            SpoolError: the directory can't be written, or there is no spool.
            SpoolMismatch: it belongs to another target.
            SpoolVersionError: a newer hubsync wrote it.
        """
        self.directory = directory
        self.policy = policy or SpoolPolicy()
        self.clock: Clock = clock or SystemClock()
        if target is None and not (directory / "catalogue.sqlite").exists():
            raise SpoolError(f"there is no spool at {directory}.")
        try:
            for folder in (directory, directory / "segments", directory / "writers", directory / "dead-letter"):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise SpoolError(f"the spool {directory} can't be made: {error}. Give another with spool=…") from error
        self._fsync = self.policy.durability == "fsync"
        self.catalogue = Catalogue(directory / "catalogue.sqlite", fsync=self._fsync)
        self.target = self._bind(target)
        self._committer = FileLock(directory / "committer.lock")

    def _bind(self, target: Target | None) -> Target:
        stored = self.catalogue.get("target")
        if stored is None:
            if target is None:
                raise SpoolError(f"the spool {self.directory} was never used for a repo.")
            with self.catalogue.transaction():
                self.catalogue.set("target", msgspec.json.encode(target).decode())
            return target
        found = msgspec.json.decode(stored, type=Target)
        if target is not None and found != target:
            self.catalogue.close()
            raise SpoolMismatch(
                f"the spool {self.directory} holds rows for {found.repo} ({found.revision}) at {found.endpoint}, not "
                f"for {target.repo} ({target.revision}) at {target.endpoint}. Nothing was touched. Give another "
                f"spool, or bring this one up first: hubsync drain {self.directory}"
            )
        return found

    def close(self) -> None:
        self._committer.release()
        self.catalogue.close()

    # Writers.

    def adopt(self) -> int:
        """Seals the segments that dead writers left open; answers their rows."""
        rows = 0
        names = {r["writer"] for r in self.catalogue.rows("SELECT DISTINCT writer FROM segments WHERE state = 'open'")}
        for name in names:
            lock = self.writer_lock(name)
            if lock.acquire():
                try:
                    rows += self.recover(name)
                finally:
                    lock.release()
        return rows

    def writer_lock(self, name: str) -> FileLock:
        """The lock that a living writer holds on its name."""
        return FileLock(self.directory / "writers" / f"{name}.lock")

    def recover(self, writer: str) -> int:
        """Cuts torn tails back to what was accepted, seals, and removes files that never were. Under the lock."""
        rows = 0
        for row in self.catalogue.rows("SELECT * FROM segments WHERE state = 'open' AND writer = ?", writer):
            file = self.directory / "segments" / row["file"]
            size = file.stat().st_size if file.exists() else 0
            if size > row["bytes"]:
                os.truncate(file, row["bytes"])
            with self.catalogue.transaction():
                if size < row["bytes"]:
                    self._shortened(row["id"], file, row["bytes"])
                self.seal_segment(row["id"])
            rows += row["rows"]
        for file in (self.directory / "segments").glob(f"{writer}-*.jsonl"):
            if self._state_of(file) is None:
                file.unlink()
        return rows

    def _shortened(self, segment: int, file: Path, accepted: int) -> None:
        """A power cut took accepted bytes that only the kernel had: keep the whole lines, and say what is missing."""
        kept = file.read_bytes() if file.exists() else b""
        kept = kept[: kept.rfind(b"\n") + 1].rstrip(b"\0")
        file.write_bytes(kept)
        lost = f"{accepted - len(kept)} accepted bytes of {file.name} were lost by a power cut (durability='process')"
        self.catalogue.run(
            "UPDATE segments SET bytes = ?, rows = ?, error = ? WHERE id = ?",
            len(kept), kept.count(b"\n"), lost, segment,
        )  # fmt: skip

    def sweep(self) -> None:
        """Removes files of segments that are committed: a crash came between the two."""
        for file in (self.directory / "segments").iterdir():
            if self._state_of(file) == "committed":
                file.unlink(missing_ok=True)

    def _state_of(self, file: Path) -> str | None:
        """The state of a file's segment, whose id is in its name; None where the catalogue does not know it."""
        number = file.stem.rpartition("-")[2]
        fate = self.fate(int(number)) if number.isdigit() else None
        return fate[0] if fate is not None else None

    def seal_segment(self, segment: int) -> None:
        """Fixes the path. Within a transaction."""
        row = self.catalogue.row("SELECT * FROM segments WHERE id = ?", segment)
        assert row is not None
        if row["rows"] == 0:
            self.catalogue.run("DELETE FROM segments WHERE id = ?", segment)
            return
        layout = Layout(row["config"], row["split"], row["template"])
        series = layout.series(row["writer"])
        seq = self.catalogue.value("SELECT next FROM series WHERE name = ?", series) or 0
        self._number(segment, layout, row["writer"], series, seq)

    def _number(self, segment: int, layout: Layout, writer: str, series: str, seq: int) -> None:
        # Templates that differ only in a number's width are two series that may meet.
        while self.catalogue.row("SELECT 1 FROM segments WHERE path = ?", layout.path(writer, seq)):
            seq += 1
        self.catalogue.run(
            "INSERT INTO series VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET next = excluded.next", series, seq + 1
        )
        self.catalogue.run(
            "UPDATE segments SET state = 'sealed', sealed_at = ?, series = ?, seq = ?, path = ?, plan = NULL "
            "WHERE id = ?",
            self.clock.time(), series, seq, layout.path(writer, seq), segment,
        )  # fmt: skip

    # The committer.

    def become_committer(self) -> bool:
        """Whether this process now is (or was) the one that stages and commits, for all writers of this spool."""
        return self._committer.acquire()

    @property
    def is_committer(self) -> bool:
        return self._committer.held

    @property
    def committer_pid(self) -> int | None:
        """The committer's process, whoever it is; None where there is none."""
        return self._committer.holder()

    def resign(self) -> None:
        self._committer.release()

    def sealed(self, limit: int, max_bytes: int) -> list[Shard]:
        """The oldest sealed shards that are not staged, hashed: up to a bound, but always one where there is any."""
        shards: list[Shard] = []
        held = 0
        for row in self.catalogue.rows(
            "SELECT id, bytes FROM segments WHERE state = 'sealed' ORDER BY id LIMIT ?", limit
        ):
            held += row["bytes"]
            if shards and held > max_bytes:
                break
            shards.append(self._shard(row["id"]))
        return shards

    def urge(self, writer: str | None) -> list[int]:
        """Marks what is still to be committed (of one writer, or of all) as waited for, and answers it."""
        with self.catalogue.transaction():
            whose = "" if writer is None else "AND writer = ?"
            who = () if writer is None else (writer,)
            pending = "state IN ('sealed', 'staged') " + whose
            self.catalogue.run(f"UPDATE segments SET urgent = 1 WHERE {pending}", *who)
            return [r["id"] for r in self.catalogue.rows(f"SELECT id FROM segments WHERE {pending}", *who)]

    def is_urgent(self) -> bool:
        """Whether somebody waits for a staged shard."""
        return self.catalogue.value("SELECT 1 FROM segments WHERE state = 'staged' AND urgent LIMIT 1") is not None

    def staged(self, limit: int, max_inline_bytes: int) -> list[Shard]:
        """The oldest staged shards that fit one commit; always at least one where there is any."""
        shards: list[Shard] = []
        inline = 0
        for row in self.catalogue.rows(
            "SELECT id, mode, bytes FROM segments WHERE state = 'staged' AND plan IS NULL ORDER BY id LIMIT ?", limit
        ):
            inline += row["bytes"] if row["mode"] == "regular" else 0
            if shards and inline > max_inline_bytes:
                break
            shards.append(self._shard(row["id"]))
        return shards

    def _shard(self, segment: int) -> Shard:
        row = self.catalogue.row("SELECT * FROM segments WHERE id = ?", segment)
        assert row is not None
        file = self.directory / "segments" / row["file"]
        sha256, git_oid = row["sha256"], row["git_oid"]
        if sha256 is None:
            sha256, git_oid = _hashes(file, row["bytes"])
            self.catalogue.run("UPDATE segments SET sha256 = ?, git_oid = ? WHERE id = ?", sha256, git_oid, segment)
        return Shard(
            segment, row["writer"], file, row["path"], row["bytes"], row["rows"], sha256, git_oid, row["mode"]
        )  # fmt: skip

    def mark_staged(self, modes: Mapping[int, Mode]) -> None:
        with self.catalogue.transaction():
            for segment, mode in modes.items():
                self.catalogue.run(
                    "UPDATE segments SET state = 'staged', mode = ? WHERE id = ? AND state = 'sealed'", mode, segment
                )

    def unstage(self, shards: Iterable[Shard]) -> None:
        """The Hub no longer knows the blobs: they go up again."""
        with self.catalogue.transaction():
            for shard in shards:
                self.catalogue.run(
                    "UPDATE segments SET state = 'sealed', mode = NULL WHERE id = ? AND state = 'staged'", shard.segment
                )

    def first_restage(self, shard: Shard) -> bool:
        """Whether a shard's blob may go up once more; True only the first time it is asked for."""
        with self.catalogue.transaction():
            row = self.catalogue.row("SELECT error FROM segments WHERE id = ?", shard.segment)
            assert row is not None
            self.catalogue.run("UPDATE segments SET error = 'restaged' WHERE id = ?", shard.segment)
            return bool(row["error"] != "restaged")

    def newest(self) -> int:
        """The newest segment; 0 where there is none."""
        return int(self.catalogue.value("SELECT max(id) FROM segments") or 0)

    def renumber(self, shard: Shard, seq: int) -> None:
        """Gives a shard another number: what stands at its path is not ours, and is never overwritten."""
        with self.catalogue.transaction():
            row = self.catalogue.row("SELECT * FROM segments WHERE id = ?", shard.segment)
            assert row is not None
            layout = Layout(row["config"], row["split"], row["template"])
            known = self.catalogue.value("SELECT next FROM series WHERE name = ?", row["series"]) or 0
            self._number(shard.segment, layout, row["writer"], row["series"], max(seq, known))

    def numbered(self, shard: Shard, skip: int, count: int) -> list[str]:
        """The paths that this shard's series gives to `count` numbers, from `skip` after its own."""
        row = self.catalogue.row("SELECT * FROM segments WHERE id = ?", shard.segment)
        assert row is not None
        layout = Layout(row["config"], row["split"], row["template"])
        return [layout.path(row["writer"], row["seq"] + n) for n in range(skip, skip + count)]

    def seq(self, shard: Shard) -> int:
        return int(self.catalogue.value("SELECT seq FROM segments WHERE id = ?", shard.segment))

    # Plans.

    def plan(self, shards: Sequence[Shard], card: Note | None, parent: str | None, summary: str) -> Plan:
        """Writes down the next commit: the shards, each writer's watermark as it will be, and the card."""
        with self.catalogue.transaction():
            notes = [*([card] if card else []), *self._watermark_notes(shards)]
            plan = self.catalogue.run(
                "INSERT INTO plans (created_at, parent, summary, notes) VALUES (?, ?, ?, ?)",
                self.clock.time(), parent, summary, msgspec.msgpack.encode(notes),
            )  # fmt: skip
            for shard in shards:
                self.catalogue.run("UPDATE segments SET plan = ? WHERE id = ?", plan, shard.segment)
        return Plan(plan, shards, notes, parent, summary)

    def open_plan(self) -> Plan | None:
        """The plan that an earlier try left: it may have landed, so it is reconciled before anything else is sent."""
        row = self.catalogue.row("SELECT * FROM plans ORDER BY id LIMIT 1")
        if row is None:
            return None
        segments = self.catalogue.rows("SELECT id FROM segments WHERE plan = ? ORDER BY id", row["id"])
        notes = msgspec.msgpack.decode(row["notes"], type=list[Note])
        return Plan(row["id"], [self._shard(s["id"]) for s in segments], notes, row["parent"], row["summary"])

    def settle(self, plan: Plan, landed: Mapping[int, str]) -> None:
        """Ends a plan: `landed` (segment to sha) are committed, the others are free for the next plan."""
        gone = [shard for shard in plan.shards if shard.segment in landed]
        now = self.clock.time()
        with self.catalogue.transaction():
            for writer, mark in self._marks(gone).items():
                self.catalogue.run(
                    "UPDATE writers SET mark = ? WHERE name = ?", msgspec.json.encode(mark).decode(), writer
                )
            for shard in gone:
                self.catalogue.run(
                    "UPDATE segments SET state = 'committed', sha = ?, committed_at = ?, plan = NULL WHERE id = ?",
                    landed[shard.segment], now, shard.segment,
                )  # fmt: skip
            if gone:
                self._count_committed(gone)
            self.catalogue.run("UPDATE segments SET plan = NULL WHERE plan = ?", plan.id)
            self.catalogue.run("DELETE FROM plans WHERE id = ?", plan.id)
        for shard in gone:
            with suppress(OSError):  # what stays is swept at the next start
                shard.file.unlink()

    def _count_committed(self, shards: Sequence[Shard]) -> None:
        for key, more in (
            ("rows", sum(s.rows for s in shards)), ("bytes", sum(s.size for s in shards)), ("shards", len(shards)),
        ):  # fmt: skip
            self.catalogue.set(f"committed_{key}", str(int(self.catalogue.get(f"committed_{key}") or 0) + more))

    def bury(self, shard: Shard, why: str) -> Path:
        """Sets a shard aside in the dead letter, for good, and answers where it lies now."""
        grave = self.directory / "dead-letter" / f"{shard.segment:06d}-{os.path.basename(shard.path)}"
        os.link(shard.file, grave) if not grave.exists() else None
        with self.catalogue.transaction():
            self.catalogue.run(
                "UPDATE segments SET state = 'dead', error = ?, plan = NULL WHERE id = ?", why, shard.segment
            )
        with suppress(OSError):
            shard.file.unlink()
        return grave

    def _watermark_notes(self, shards: Sequence[Shard]) -> list[Note]:
        return [
            Note(f".hubsync/{writer}.json", msgspec.json.format(msgspec.json.encode(mark), indent=2) + b"\n")
            for writer, mark in self._marks(shards).items()
        ]

    def _marks(self, shards: Sequence[Shard]) -> dict[str, Watermark]:
        """Each writer's watermark once `shards` are committed."""
        marks: dict[str, Watermark] = {}
        for shard in shards:
            row = self.catalogue.row("SELECT * FROM segments WHERE id = ?", shard.segment)
            assert row is not None
            mark = marks.get(shard.writer) or self._mark(shard.writer)
            offsets = dict(mark.offsets)
            for found in self.catalogue.rows("SELECT * FROM segment_offsets WHERE segment = ?", shard.segment):
                offsets[found["source"]] = max(offsets.get(found["source"], found["offset"]), found["offset"])
            following = {**mark.next, row["series"]: max(mark.next.get(row["series"], 0), row["seq"] + 1)}
            marks[shard.writer] = replace(mark, next=following, rows=mark.rows + shard.rows, offsets=offsets)
        return marks

    def _mark(self, writer: str) -> Watermark:
        row = self.catalogue.row("SELECT epoch, mark FROM writers WHERE name = ?", writer)
        assert row is not None
        if row["mark"] is None:
            return Watermark(writer, row["epoch"])
        return replace(msgspec.json.decode(row["mark"], type=Watermark), epoch=row["epoch"])

    # What the dataset told, and what anybody may ask.

    def uncarded(self, shards: Sequence[Shard]) -> list[tuple[str, str, str]]:
        """The (config, split, glob) of `shards` that the dataset's card may not show yet."""
        found = []
        for shard in shards:
            row = self.catalogue.row("SELECT * FROM segments WHERE id = ?", shard.segment)
            assert row is not None
            entry = (row["config"], row["split"], Layout(row["config"], row["split"], row["template"]).glob)
            known = self.catalogue.value("SELECT 1 FROM cards WHERE config = ? AND split = ? AND glob = ?", *entry)
            if known is None and entry not in found:
                found.append(entry)
        return found

    def mark_carded(self, entries: Iterable[tuple[str, str, str]]) -> None:
        """The card shows them now."""
        with self.catalogue.transaction():
            for entry in entries:
                self.catalogue.run("INSERT OR IGNORE INTO cards VALUES (?, ?, ?)", *entry)

    @property
    def seeded(self) -> bool:
        """Whether the dataset's watermarks have been read into this spool."""
        return self.catalogue.get("seeded") is not None

    def seed(self, marks: Iterable[Watermark]) -> None:
        """Goes on from what earlier spools, now lost, have brought into the dataset."""
        with self.catalogue.transaction():
            for mark in marks:
                for source, offset in mark.offsets.items():
                    self.raise_offset(source, offset)
                for name, following in mark.next.items():
                    self.catalogue.run(
                        "INSERT INTO series VALUES (?, ?) "
                        "ON CONFLICT (name) DO UPDATE SET next = max(next, excluded.next)",
                        name, following,
                    )  # fmt: skip
            self.catalogue.set("seeded", "1")

    def raise_offset(self, source: str, offset: int) -> None:
        self.catalogue.run(
            "INSERT INTO offsets VALUES (?, ?) "
            "ON CONFLICT (source) DO UPDATE SET offset = max(offset, excluded.offset)",
            source, offset,
        )  # fmt: skip

    def offset(self, source: str) -> int | None:
        """The highest offset accepted from `source`; None before the first."""
        value: int | None = self.catalogue.value("SELECT offset FROM offsets WHERE source = ?", source)
        return value

    def fate(self, segment: int) -> tuple[SegmentState, str | None, str | None] | None:
        """What became of a segment: (state, sha, error); None where the catalogue does not know it."""
        row = self.catalogue.row("SELECT state, sha, error FROM segments WHERE id = ?", segment)
        return (row["state"], row["sha"], row["error"]) if row is not None else None

    def dead(self) -> list[tuple[str, int, str]]:
        """The dead letter: (path, rows, why)."""
        rows = self.catalogue.rows("SELECT path, rows, error FROM segments WHERE state = 'dead' ORDER BY id")
        return [(r["path"], r["rows"], r["error"]) for r in rows]

    def depth(self) -> SpoolDepth:
        by_state = {
            row["state"]: row
            for row in self.catalogue.rows(
                "SELECT state, count(*) AS n, sum(rows) AS rows, sum(bytes) AS bytes, "
                "min(CASE WHEN rows > 0 THEN opened_at END) AS oldest "
                "FROM segments WHERE state IN ('open', 'sealed', 'staged', 'dead') GROUP BY state"
            )
        }
        waiting = [by_state[s] for s in ("open", "sealed", "staged") if s in by_state]
        counts = {state: row["n"] for state, row in by_state.items()}
        done = {key: int(self.catalogue.get(f"committed_{key}") or 0) for key in ("rows", "bytes", "shards")}
        return SpoolDepth(
            rows=sum(row["rows"] for row in waiting),
            bytes=sum(row["bytes"] for row in waiting),
            open=counts.get("open", 0),
            sealed=counts.get("sealed", 0),
            staged=counts.get("staged", 0),
            dead=counts.get("dead", 0),
            oldest_at=min((row["oldest"] for row in waiting if row["oldest"] is not None), default=None),
            committed_rows=done["rows"],
            committed_bytes=done["bytes"],
            committed_shards=done["shards"],
        )

    def is_full(self) -> bool:
        """Whether the spool holds as many bytes as its policy allows."""
        held = self.catalogue.value("SELECT sum(bytes) FROM segments WHERE state IN ('open', 'sealed', 'staged')")
        return (held or 0) >= self.policy.max_bytes


def _hashes(file: Path, size: int) -> tuple[str, str]:
    """sha256 (what LFS and Xet call it) and git's blob id (what a regular file is called), in one pass."""
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    seen = 0
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            git.update(chunk)
            seen += len(chunk)
    if seen != size:
        raise SpoolError(f"{file} holds {seen} bytes where the catalogue counts {size}: something else wrote to it.")
    return sha256.hexdigest(), git.hexdigest()
