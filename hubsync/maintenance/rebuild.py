"""Rebuilding a spool whose catalogue is corrupt or gone, from its segments' files: what `hubsync drain --rescue` does.

Files are the rows themselves, named by writer and number; beside them each writer notes where its rows belong. What
the broken catalogue still tells is taken over; what is on the Hub already is found by its content. The rest can't be
known, and is said: which batches at a file's end were never acknowledged, which keys and offsets were accepted.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

import anyio
import msgspec

from hubsync._runtime.clock import SystemClock
from hubsync._runtime.file_lock import HEARTBEAT_S, FileLock
from hubsync._runtime.files import whole_lines
from hubsync.destinations.resolve import online_destination
from hubsync.encoding.codecs import DamagedShard, read_lines
from hubsync.errors import ConfigError, SpoolBusy, SpoolError
from hubsync.model.commit import Watermark
from hubsync.model.hashing import hash_file
from hubsync.model.layout import Layout, format_of
from hubsync.model.target import Target
from hubsync.policies import RetryPolicy
from hubsync.schema.types import loads
from hubsync.spool.database import Catalogue
from hubsync.spool.disk import segment_id_of
from hubsync.spool.opening import restrict_to_owner
from hubsync.spool.segments import Segments
from hubsync.spool.writers import WriterNote

# Keys may be millions.
_TABLES = ("meta", "writers", "segments", "series", "offsets", "segment_offsets", "cards", "schemas")


@dataclass
class Rebuilt:
    """What a rescue found. `unknown` is what it could not know, in words; `kept` is the broken catalogue, where one was
    left.
    """

    rows: int = 0
    segments: int = 0
    on_hub: int = 0
    kept: Path | None = None
    unknown: list[str] = field(default_factory=list)


class _Old:
    """What the broken catalogue still tells, by table; one that breaks off in the middle is not in `complete`.

    Read on a copy, so that the original stays as it is.
    """

    def __init__(self, directory: Path, scratch: Path) -> None:
        self.tables: dict[str, list[dict[str, Any]]] = {}
        self.complete: set[str] = set()
        self._columns = _columns(scratch / "pattern")
        self._copy = scratch / "copy"
        for suffix in ("", "-wal"):
            with suppress(OSError):
                shutil.copy(directory / f"catalogue.sqlite{suffix}", f"{self._copy}{suffix}")
        for table in _TABLES:
            self.tables[table] = list(self.read(table))

    def read(self, table: str) -> Iterator[dict[str, Any]]:
        """The rows of a table, as far as they can be read; one that can't be is as if it were not there."""
        columns, is_whole = self._columns[table], True
        with closing(sqlite3.connect(self._copy)) as db, suppress(sqlite3.Error, UnicodeDecodeError):
            db.row_factory, db.text_factory = sqlite3.Row, _text
            for row in db.execute(f"SELECT * FROM {table}"):
                values = {name: row[name] if name in row.keys() else None for name in columns}  # noqa: SIM118
                if _is_readable(table, values, columns):
                    yield values
                else:
                    is_whole = False
            if is_whole:
                self.complete.add(table)

    def get(self, key: str) -> str | None:
        return next((row["value"] for row in self.tables["meta"] if row["key"] == key), None)


_KINDS = {"TEXT": str, "INTEGER": int, "REAL": float, "BLOB": bytes}
_JSON: dict[str, Any] = {"target": Target, "private": bool | None, "status": Any, "governor": dict}  # else a number


def _columns(pattern: Path) -> dict[str, dict[str, tuple[type, ...]]]:
    """What the columns of each table may hold, as a new catalogue has them."""
    with closing(Catalogue(pattern)) as new:
        return {
            table: {
                column["name"]: (_KINDS[column["type"]], *(() if column["notnull"] or column["pk"] else (NoneType,)))
                for column in new.rows(f"PRAGMA table_info({table})")
            }
            for table in (*_TABLES, "keys", "plans")
        }


def _text(value: bytes) -> str | bytes:
    """Text that is none stays bytes: so the rows behind it can be read."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _is_readable(table: str, row: Mapping[str, Any], columns: Mapping[str, tuple[type, ...]]) -> bool:
    """Whether its values are of their columns' types, and the JSON among them is some."""
    if not all(isinstance(row[name], kinds) for name, kinds in columns.items()):
        return False
    try:
        if table == "meta":
            msgspec.json.decode(row["value"], type=_JSON.get(row["key"], int))
        elif table == "writers" and row["mark"] is not None:
            msgspec.json.decode(row["mark"], type=Watermark)
        for name in ("schema", "known", "published"):
            if row.get(name) is not None:
                loads(row[name])
    except msgspec.DecodeError:
        return False
    return table != "segments" or row["file"] == "" or row["id"] == segment_id_of(Path(row["file"]))


def rebuild(directory: Path, *, retry: RetryPolicy | None = None) -> Rebuilt | None:
    """Gives a spool a new catalogue; the old one is kept beside it. None where the catalogue is sound.

    Raises:
        SpoolBusy: a job has it open.
        SpoolError: nothing tells which repo it belongs to.
        HubError: the Hub, which is asked what it has already.
    """
    restrict_to_owner(directory)
    with ExitStack() as stack:
        locks: list[FileLock] = []
        for path in [directory / "committer.lock", *(directory / "writers").glob("*.lock")]:
            lock = FileLock(path)
            if not lock.acquire():
                raise SpoolBusy(f"process {lock.holder()} has {directory} open; end it first.")
            stack.callback(lock.release)
            locks.append(lock)
        stack.enter_context(_beating(locks))
        old = _Old(directory, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        if _is_sound(directory / "catalogue.sqlite", old):
            return None
        notes = _notes(directory)
        target = _target(directory, old, notes)
        private = _private(old, notes)
        oids, marks = anyio.run(_on_hub, target, private, retry or RetryPolicy())
        found = Rebuilt()
        new = directory / "catalogue.rescued"
        _remove(new)
        catalogue = Catalogue(new)
        try:
            with catalogue.transaction():
                _take_over(catalogue, old, target, marks, found)
                catalogue.set("private", json.dumps(private))
                removed = _segments(catalogue, directory, old, notes, oids, found)
                _keep_schema_policy(catalogue, old)
                _graves(catalogue, directory, old)
        finally:
            catalogue.close()
        if not {lock.path for lock in locks}.issuperset((directory / "writers").glob("*.lock")):
            raise SpoolBusy(f"a job has opened {directory} meanwhile; end it, and rescue again.")
        found.kept = _set_aside(directory)
        os.replace(new, directory / "catalogue.sqlite")
        for file in removed:
            file.unlink(missing_ok=True)
    return found


@contextmanager
def _beating(locks: Sequence[FileLock]) -> Iterator[None]:
    """The Hub may take long to answer: a job that is started meanwhile must not think that their holder has stopped."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            for lock in locks:
                lock.refresh()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_sound(path: Path, old: _Old) -> bool:
    if not path.exists():
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if not version or db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                return False
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except (sqlite3.Error, UnicodeDecodeError):
        return False
    for table in ("keys", "plans"):
        for _ in old.read(table):
            pass
    return tables & {*_TABLES, "keys", "plans"} <= old.complete  # SQLite does not look what a text or a number says


def _notes(directory: Path) -> dict[str, WriterNote]:
    notes = {}
    for file in (directory / "writers").glob("*.json"):
        with suppress(msgspec.DecodeError):
            notes[file.stem] = msgspec.json.decode(file.read_bytes(), type=WriterNote)
    return notes


def _target(directory: Path, old: _Old, notes: Mapping[str, WriterNote]) -> Target:
    if (stored := old.get("target")) is not None:
        return msgspec.json.decode(stored, type=Target)
    targets = {note.target for note in notes.values()}
    if len(targets) != 1:
        raise SpoolError(f"nothing in {directory} tells which repo its rows belong to. Its files are untouched.")
    return targets.pop()


def _private(old: _Old, notes: Mapping[str, WriterNote]) -> bool | None:
    """Whether a repo that is made now is private. Where only notes tell, and not all alike, it is."""
    stored = old.get("private")
    if stored is not None:
        return stored == "true"
    return max((note.private for note in notes.values() if note.private is not None), default=None)


async def _on_hub(target: Target, private: bool | None, retry: RetryPolicy) -> tuple[set[str], list[Watermark]]:
    """The contents that the dataset holds (git oids and sha256), and its watermarks."""
    destination = online_destination(target, None, retry)
    try:
        head = await destination.ensure_repo(private=private)
        files = await destination.list_files(head.sha or "")
        return {file.oid for file in files}, list(await destination.read_watermarks(head.sha or ""))
    finally:
        await destination.aclose()


def _take_over(catalogue: Catalogue, old: _Old, target: Target, marks: list[Watermark], found: Rebuilt) -> None:
    catalogue.set("target", msgspec.json.encode(target).decode())
    catalogue.set("seeded", "1")
    for row in old.tables["meta"]:
        if row["key"] not in ("target", "status"):
            catalogue.set(row["key"], row["value"])
    known_offsets = {row["source"]: row["offset"] for row in old.tables["offsets"]}
    for row in old.tables["segment_offsets"]:
        known_offsets[row["source"]] = max(row["offset"], known_offsets.get(row["source"], row["offset"]))
    series = {row["name"]: row["next"] for row in old.tables["series"]}
    for mark in marks:
        for source, offset in mark.offsets.items():
            known_offsets[source] = max(offset, known_offsets.get(source, offset))
        for name, following in mark.next.items():
            series[name] = max(following, series.get(name, 0))
    for source, offset in known_offsets.items():
        catalogue.run("INSERT INTO offsets VALUES (?, ?)", source, offset)
    for name, following in series.items():
        catalogue.run("INSERT INTO series VALUES (?, ?)", name, following)
    for row in old.tables["writers"]:
        catalogue.run("INSERT OR IGNORE INTO writers VALUES (?, ?, ?)", row["name"], row["epoch"], row["mark"])
    keys = 0
    for keys, row in enumerate(old.read("keys"), 1):  # noqa: B007  (counts)
        catalogue.run("INSERT OR IGNORE INTO keys VALUES (?, ?)", row["digest"], row["segment"])
    for row in old.tables["cards"]:
        catalogue.run("INSERT OR IGNORE INTO cards VALUES (?, ?, ?)", row["config"], row["split"], row["glob"])
    for row in old.tables["schemas"]:  # so that a drain guards what an uploader did
        catalogue.run(
            "INSERT OR IGNORE INTO schemas VALUES (?, ?, ?, ?)",
            row["config"], row["known"], row["published"], row["policy"],
        )  # fmt: skip
    if not old.complete & {"offsets", "segment_offsets"}:
        told = ", ".join(f"{source}: {offset:,}" for source, offset in known_offsets.items()) or "none"
        found.unknown.append(
            f"which offsets were accepted beyond those that the dataset tells ({told}). A job that goes on from there "
            "may bring rows of this spool again."
        )
    if "keys" not in old.complete:
        found.unknown.append(f"which keys were accepted ({keys:,} are known). A batch with another may come again.")


def _segments(
    catalogue: Catalogue,
    directory: Path,
    old: _Old,
    notes: Mapping[str, WriterNote],
    oids: set[str],
    found: Rebuilt,
) -> list[Path]:
    """Enters every file that is not on the Hub; answers those that are, and so may go."""
    known = {_stem(row["file"]): row for row in old.tables["segments"]}
    taken = {row["id"]: name for name, row in known.items()}
    graves = {(there.st_dev, there.st_ino) for there in map(os.stat, (directory / "dead-letter").glob("*-*.*"))}
    done: list[Path] = []
    for file in _files(directory, known, done):
        row = known.get(_stem(file.name))
        is_in_grave = row is None and (file.stat().st_dev, file.stat().st_ino) in graves  # half put again
        if is_in_grave or (row is not None and row["state"] in ("committed", "dead")):
            done.append(file)
            continue
        if row is None:
            if taken.get(segment_id_of(file), _stem(file.name)) != _stem(file.name):
                # A take that was rolled back gave its number to another writer: this file needs one of its own.
                free = max(max(taken), 0, *map(segment_id_of, (directory / "segments").glob("*-*.*"))) + 1
                name, ending = _stem(file.name), file.name.partition(".")[2]
                file = file.rename(file.with_name(f"{name.rpartition('-')[0]}-{free:08d}.{ending}"))
            taken[segment_id_of(file)] = _stem(file.name)
            row = _guess(file, notes, found)
        elif row["file"] != file.name:
            row = {**row, "bytes": None}  # of the form that is gone
        rows = _cut(file, row["bytes"], found) if format_of(file.name) == "jsonl" else _count(file)
        if rows == 0 or set(hash_file(file, file.stat().st_size)) & oids:
            found.on_hub += rows > 0
            done.append(file)
            continue
        _enter(catalogue, file, row, rows)
        found.rows += rows
        found.segments += 1
        for offset in old.tables["segment_offsets"]:
            if offset["segment"] == row["id"]:
                catalogue.run("INSERT OR IGNORE INTO segment_offsets VALUES (?, ?, ?)", *offset.values())
    return done


def _keep_schema_policy(catalogue: Catalogue, old: _Old) -> None:
    """Where nothing tells what was chosen for conflicts: what is chosen by default, so that the dataset loads."""
    if "schemas" not in old.complete:
        for config in Segments(catalogue, SystemClock()).configs():
            catalogue.run("INSERT OR IGNORE INTO schemas (config, policy) VALUES (?, 'refuse')", config)


def _stem(name: str) -> str:
    """What the files of one segment have in common: `writer-00000012`."""
    return name.partition(".")[0]


def _files(directory: Path, known: Mapping[str, Any], done: list[Path]) -> list[Path]:
    """The file of each segment: what the old catalogue counts, or else what is packed, and may be on the Hub. The
    others hold the same rows, or a part of them, and go into `done`.
    """
    by_name: dict[str, list[Path]] = {}
    for file in (directory / "segments").glob("*-*.*"):
        if file.suffix == ".new":
            done.append(file)
        else:
            by_name.setdefault(_stem(file.name), []).append(file)
    counted = {row["file"] for row in known.values()}
    chosen = []
    for files in by_name.values():
        best, *others = sorted(files, key=lambda f: (f.name in counted, f.suffix != ".jsonl", f.name), reverse=True)
        chosen.append(best)
        done += others
    return sorted(chosen, key=segment_id_of)


def _guess(file: Path, notes: Mapping[str, WriterNote], found: Rebuilt) -> dict[str, Any]:
    """What its name and its writer's note tell of a file that the old catalogue does not."""
    writer = _stem(file.name).partition("-")[0]
    note = notes.get(writer)
    layout = note.layout_of(segment_id_of(file)) if note is not None else None
    packed = format_of(file.name)
    if layout is None or packed not in ("jsonl", layout.format):
        layout = Layout.of("default", "train", None, packed)
        found.unknown.append(f"to which config and split {file.name} belongs: it goes to default/train.")
    found.unknown.append(f"whether the last batch in {file.name} was acknowledged: it is brought up.")
    return {
        "id": segment_id_of(file), "writer": writer, "bytes": None, "state": "open", "path": None, "opened_at":
        file.stat().st_mtime, "config": layout.config, "split": layout.split, "template": layout.template,
        "series": None, "seq": None,
    }  # fmt: skip


def _cut(file: Path, accepted: int | None, found: Rebuilt) -> int:
    """Leaves what was accepted, and at any rate whole lines; answers the rows."""
    size = file.stat().st_size
    if accepted is not None and size < accepted:
        found.unknown.append(f"{accepted - size:,} accepted bytes of {file.name} are missing.")
    rows, length = whole_lines(file, size if accepted is None else min(size, accepted))
    if length < size:
        os.truncate(file, length)
    return rows


def _count(file: Path) -> int:
    """The rows of a packed file. It is whole, or nothing of it can be read: then it stays for a person to look at."""
    try:
        return sum(1 for _ in read_lines(file))
    except (DamagedShard, ConfigError) as error:
        raise SpoolError(
            f"{file} can't be read ({error}). Nothing was changed; move it elsewhere, and rescue again."
        ) from None


def _enter(catalogue: Catalogue, file: Path, row: Mapping[str, Any], rows: int) -> None:
    if catalogue.row("SELECT 1 FROM writers WHERE name = ?", row["writer"]) is None:
        catalogue.run("INSERT INTO writers (name, epoch) VALUES (?, 1)", row["writer"])
    segments = Segments(catalogue, SystemClock())
    is_fixed = row["path"] is not None and not segments.is_path_taken(row["path"])
    segments.insert(
        id=row["id"], writer=row["writer"], file=file.name, config=row["config"], split=row["split"],
        template=row["template"], state="sealed" if is_fixed else "open", bytes=file.stat().st_size, rows=rows,
        opened_at=row["opened_at"], series=row["series"] if is_fixed else None, seq=row["seq"] if is_fixed else None,
        path=row["path"] if is_fixed else None,
    )  # fmt: skip


def _graves(catalogue: Catalogue, directory: Path, old: _Old) -> None:
    """What lies in the dead letter stays dead, and what was discarded from it stays known."""
    known = {row["id"]: row for row in old.tables["segments"] if row["state"] == "dead"}
    for file in (directory / "dead-letter").glob("*-*.*"):
        number, _, name = file.name.partition("-")
        if number.isdigit():
            row = known.pop(int(number), {})
            size = file.stat().st_size
            held = whole_lines(file, size) if format_of(file.name) == "jsonl" else (row.get("rows", 0), size)
            _bury(catalogue, int(number), name, held, file.stat().st_mtime, row)
    for number, row in known.items():
        if row["rows"] == 0:
            _bury(catalogue, number, row["path"], (0, 0), row["opened_at"], row)


def _bury(
    catalogue: Catalogue, number: int, path: str, held: tuple[int, int], opened_at: float, row: Mapping[str, Any]
) -> None:
    segments = Segments(catalogue, SystemClock())
    if segments.find(number) is not None:
        return
    rows, size = held
    segments.insert(
        id=number, writer=row.get("writer", ""), file=row.get("file", ""), config=row.get("config", "default"),
        split=row.get("split", "train"), template=row.get("template", ""), state="dead", bytes=size, rows=rows,
        opened_at=opened_at, path=row.get("path", path), series=row.get("series"), seq=row.get("seq"),
        sealed_at=row.get("sealed_at"), error=row.get("error", "not known: found in the dead letter by a rescue"),
    )  # fmt: skip


def _set_aside(directory: Path) -> Path | None:
    number = 1
    while (directory / f"catalogue.broken-{number}").exists():
        number += 1
    kept = directory / f"catalogue.broken-{number}"
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.replace(directory / f"catalogue.sqlite{suffix}", f"{kept}{suffix}")
    return kept if kept.exists() else None


def _remove(catalogue: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{catalogue}{suffix}").unlink(missing_ok=True)
