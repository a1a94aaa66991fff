"""Packs sealed segments whose shards are of another format than the lines they were written as.

The lines stay what counts until the packed shard is whole, on disk and in the catalogue, in one transaction; only then
are they removed. So a crash at any instant packs again, and what is sent later never changes. For the committer.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync.encoding import codecs
from hubsync.errors import BlockedError, ConfigError, DefectError, SpoolError
from hubsync.model.hashing import hash_file
from hubsync.model.layout import format_of
from hubsync.model.shard import Shard
from hubsync.schema.types import EMPTY, StructOf
from hubsync.spool.database import PENDING, UNPACKED
from hubsync.spool.spool import Spool


class Compressor:
    """Packs one segment after another. Python's lock is free while zlib, Zstandard and pyarrow work."""

    def __init__(
        self,
        spool: Spool,
        is_whole: Callable[[int], bool],
        shard: Callable[[int], Shard],
        columns: Callable[[str], StructOf] = lambda config: EMPTY,
    ) -> None:
        """`is_whole` looks whether a segment's file is there (and sorts it out where not), `shard` makes one of it;
        `columns` tells what the columns of a config hold.
        """
        self._columns = columns
        self._spool = spool
        self._is_whole = is_whole
        self._shard = shard

    def pack_next(self) -> bool | Incompressible:
        """Packs the oldest sealed segment that is yet to be packed; False where there is none.

        Raises:
            SpoolError, OSError: the disk refuses; nothing is changed. `LeaseLost` where another commits now.
            BlockedError: a package is missing here.
        """
        row = self._spool.catalogue.row(
            f"SELECT * FROM segments WHERE {PENDING} AND state = 'sealed' AND {UNPACKED} ORDER BY id LIMIT 1"
        )
        if row is None:
            return False
        if self._is_whole(row["id"]):
            return self._pack(self._spool.catalogue.row("SELECT * FROM segments WHERE id = ?", row["id"]))
        return True

    def _pack(self, row: Any) -> bool | Incompressible:
        lines = self._spool.file(row["file"])
        format = format_of(row["path"])
        # Named by the committer's term: one that had stopped in the middle never writes over what its successor made.
        packed = lines.with_name(f"{lines.name.removesuffix('.jsonl')}.{self._spool.term or 0}.{format}")
        try:
            codecs.compress(lines, packed, row["rows"], self._columns(row["config"]))
        except ConfigError as error:
            raise BlockedError(f"{row['path']} can't be packed here: {error}") from None
        except DefectError as error:
            return Incompressible(self._shard(row["id"]), error)
        try:
            failpoint(Failpoint.COMPRESSED)
            self._count(row, packed)
        except BaseException:
            with suppress(OSError):
                packed.unlink()
            raise
        failpoint(Failpoint.COMPRESSED_RECORDED)
        with suppress(OSError):  # what stays is swept
            lines.unlink()
        return True

    def _count(self, row: Any, packed: Path) -> None:
        size = packed.stat().st_size
        sha256, git_oid = hash_file(packed, size)
        with self._spool.leased():
            if self._spool.catalogue.value("SELECT file FROM segments WHERE id = ?", row["id"]) != row["file"]:
                raise SpoolError(f"{row['file']} was packed by another process.")
            self._spool.catalogue.run(
                "UPDATE segments SET file = ?, bytes = ?, sha256 = ?, git_oid = ? WHERE id = ?",
                packed.name, size, sha256, git_oid, row["id"],
            )  # fmt: skip
            failpoint(Failpoint.COMPRESSED_COUNTED)


class Incompressible(NamedTuple):
    """A shard whose lines can't become its format, and why."""

    shard: Shard
    error: DefectError
