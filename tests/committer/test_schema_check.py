"""The schema of a segment's file, for segments whose writer recorded none."""

from __future__ import annotations

import gzip
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import yaml

from hubsync.committer.schema_check import Unreadable, scan
from hubsync.schema.types import Conflict, ListOf, StructOf
from hubsync.spool.database import _MIGRATIONS, _SCHEMA


def test_a_first_version_spool_gets_its_schema_from_its_files(tmp_path: Path, uploader: Any, dataset: Any) -> None:
    directory = tmp_path / "spool"
    with uploader(spool=directory) as up:
        target = up._target
    for suffix in ("", "-wal", "-shm"):
        (directory / f"catalogue.sqlite{suffix}").unlink(missing_ok=True)
    with sqlite3.connect(directory / "catalogue.sqlite") as db:
        db.executescript(_SCHEMA)
        db.execute("PRAGMA user_version = 1")
        import msgspec

        db.execute("INSERT INTO meta VALUES ('target', ?)", (msgspec.json.encode(target).decode(),))
        db.execute("INSERT INTO meta VALUES ('seeded', '1')")
        db.execute("INSERT INTO writers VALUES ('0badcafe', 1, NULL)")
        lines = b'{"a":1}\n{"a":2.5,"b":["x"]}\n'
        (directory / "segments" / "0badcafe-00000001.jsonl").write_bytes(lines)
        db.execute(
            "INSERT INTO segments (id, writer, file, config, split, template, bytes, rows, opened_at) VALUES "
            "(1, '0badcafe', '0badcafe-00000001.jsonl', 'default', 'train', "
            "'data/{split}-{writer}-{seq:05d}.jsonl', ?, 2, 0)",
            (len(lines),),
        )
    assert len(_MIGRATIONS) > 1
    with uploader(spool=directory) as up:
        up.put([{"b": [None]}])
    assert len(dataset.rows()) == 3
    card = yaml.safe_load(dataset.read("README.md").decode().split("---")[1])
    assert card["dataset_info"][0]["features"] == [{"name": "a", "dtype": "float64"}, {"name": "b", "list": "string"}]


def test_a_file_without_rows_is_unreadable(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    for content in (b"\x1f\x8b\x08\x00\n", b"[1]\n", b'{"a": \n', b"PAR1"):
        file.write_bytes(content)
        with pytest.raises(Unreadable):
            scan(file)
    packed = tmp_path / "x.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"a":1}\n{"b":[0.5]}\n'))
    assert scan(packed) == StructOf({"a": "int", "b": ListOf("float")})
    file.write_bytes(b'{"a":1}\n{"a":"x"}\n')
    with pytest.raises(Conflict):
        scan(file)
