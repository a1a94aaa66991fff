"""Read what a damaged catalogue still tells."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from types import NoneType
from typing import Any

import msgspec

from hubsync.model.commit import LastCommit, Watermark
from hubsync.model.target import Target
from hubsync.policies import CommitPolicy
from hubsync.schema.types import loads
from hubsync.spool.database import Catalogue
from hubsync.spool.disk import segment_id_of
from hubsync.spool.folders import FolderFill
from hubsync.spool.segments import Segment

_TABLES = (
    "meta", "writers", "plans", "segments", "series", "offsets", "segment_offsets", "keys", "cards", "schemas",
    "schema_texts", "committed_layouts",
)  # fmt: skip
_NEW = {"lost": 0}  # columns that older versions lack, and that are not empty there
_TYPES = {"TEXT": str, "INTEGER": int, "REAL": float, "BLOB": bytes}
# The JSON of other names is a number.
_META_TYPES: dict[str, Any] = {
    "target": Target, "private": bool | None, "status": Any, "governor": dict, "folder": FolderFill,
    "declared": dict[str, list[str]], "last_commit": LastCommit, "commit_policy": CommitPolicy,
}  # fmt: skip


class SalvagedCatalogue:
    """The readable rows of a catalogue that may be damaged. It is read from a copy, and stays as it is."""

    def __init__(self, directory: Path, scratch: Path) -> None:
        """Copy a spool's catalogue.

        Args:
            directory: the spool.
            scratch: an empty directory for the copy.
        """
        self._complete: set[str] = set()
        self._columns = _column_types(scratch / "new.sqlite")
        self._copy = scratch / "copy.sqlite"
        for suffix in ("", "-wal"):
            with suppress(OSError):
                shutil.copy(directory / f"catalogue.sqlite{suffix}", f"{self._copy}{suffix}")
        texts = {row["id"]: row["text"] for row in self.rows("schema_texts")}
        self.segments = [
            Segment(**row, schema=schema or texts.get(known))
            for row in self.rows("segments")
            for schema, known in [(row.pop("schema"), row.pop("schema_id"))]
        ]

    def rows(self, table: str) -> Iterator[dict[str, Any]]:
        """Yield the rows of a table that can be read and whose values have the right types."""
        columns, is_complete = self._columns[table], True
        with closing(sqlite3.connect(self._copy)) as db, suppress(sqlite3.Error, UnicodeDecodeError):
            db.row_factory, db.text_factory = sqlite3.Row, _decode
            for found in db.execute(f"SELECT * FROM {table}"):
                row = {name: found[name] if name in found.keys() else _NEW.get(name) for name in columns}  # noqa: SIM118
                if _is_valid(table, row, columns):
                    yield row
                else:
                    is_complete = False
            if is_complete:
                self._complete.add(table)

    def is_complete(self, *tables: str) -> bool:
        """Return whether all of these tables, once their rows were read, turned out to be undamaged."""
        return self._complete.issuperset(tables)

    def get(self, key: str) -> str | None:
        """Return a named value of the spool; None if it is not set or cannot be read."""
        return next((row["value"] for row in self.rows("meta") if row["key"] == key), None)

    def is_sound(self) -> bool:
        """Return whether the catalogue exists and nothing in it is damaged."""
        try:
            with closing(sqlite3.connect(self._copy)) as db:
                version = db.execute("PRAGMA user_version").fetchone()[0]
                if not version or db.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
                    return False
                names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except (sqlite3.Error, UnicodeDecodeError):
            return False
        tables = [table for table in _TABLES if table in names]  # an older version has fewer
        for table in tables:  # SQLite does not check the values of texts and numbers
            for _ in self.rows(table):
                pass
        return self.is_complete(*tables)


def _column_types(new: Path) -> dict[str, dict[str, tuple[type, ...]]]:
    """Return the types that the columns of each table may hold, by the schema of a new catalogue."""
    with closing(Catalogue(new)) as catalogue:
        return {
            table: {
                column["name"]: (_TYPES[column["type"]], *(() if column["notnull"] or column["pk"] else (NoneType,)))
                for column in catalogue.rows(f"PRAGMA table_info({table})")
            }
            for table in _TABLES
        }


def _decode(value: bytes) -> str | bytes:
    """Return invalid text as bytes, so that the rows after it can be read."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


def _is_valid(table: str, row: Mapping[str, Any], columns: Mapping[str, tuple[type, ...]]) -> bool:
    """Return whether values have the types of their columns, and JSON can be decoded."""
    if not all(isinstance(row[name], types) for name, types in columns.items()):
        return False
    try:
        if table == "meta":
            msgspec.json.decode(row["value"], type=_META_TYPES.get(row["key"].partition(":")[0], int))
        elif table == "writers" and row["mark"] is not None:
            msgspec.json.decode(row["mark"], type=Watermark)
        for name in ("schema", "known", "published", "committed", "text"):
            if row.get(name) is not None:
                loads(row[name])
    except msgspec.DecodeError:
        return False
    return table != "segments" or row["file"] == "" or row["id"] == segment_id_of(Path(row["file"]))
