"""Inspect, export, resubmit and discard rejected shards: `hubsync dead-letter`.

A shard is resubmitted under its own segment, path and number, so its receipts, keys and offsets stay valid, the dataset
has no gap, and a shard that landed after all is recognized by its path. One transaction makes it sealed again: before,
it is dead and in the dead letter; after, any committer uploads it. A job may use the spool at the same time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from hubsync._runtime.clock import SystemClock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import fsync_directory, is_raw
from hubsync._runtime.formatting import datetime_text
from hubsync.encoding.codecs import DamagedShard, open_lines
from hubsync.encoding.rows import decode_row, encode
from hubsync.errors import ConfigError, RowError, SpoolError, UnreadableRow
from hubsync.model.hashing import hash_file
from hubsync.model.layout import format_of
from hubsync.model.shard import QuarantinedShard
from hubsync.policies import SpoolPolicy
from hubsync.spool.opening import open_spool
from hubsync.spool.segments import Segment

_PIECE_BYTES = 1 << 20


class _Rows(NamedTuple):
    """The rows to resubmit: a file in the dead letter's directory."""

    file: Path
    rows: int
    bytes: int
    sha256: str


class QuarantineCommands:
    """What an operator can do with the rejected shards of one spool. Commands of several processes take turns."""

    def __init__(self, directory: Path) -> None:
        """Open an existing spool.

        Raises:
            SpoolError: the spool does not exist.
        """
        # "fsync": before a file leaves the dead letter, its rows must be safe elsewhere, also after a power cut.
        self._spool = open_spool(None, SpoolPolicy(directory=directory, durability="fsync"), SystemClock())
        self._catalogue = self._spool.catalogue
        self._segments = self._spool.segments
        self._quarantine = self._spool.quarantine
        self.directory = self._spool.directory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()

    @property
    def committer_pid(self) -> int | None:
        """The process that commits for this spool, and so uploads what is resubmitted; None if no process does."""
        return self._spool.lease.holder_pid

    def shards(self) -> list[QuarantinedShard]:
        """Return the rejected shards, oldest first. One from an older version has the time of its file."""
        found = []
        for shard in self._quarantine.shards():
            file = self._quarantine.file_of(shard.id) if shard.at is None else None
            found.append(shard if file is None else shard._replace(at=file.stat().st_ctime))
        return found

    def pick(self, ids: Sequence[int]) -> list[QuarantinedShard]:
        """Return the shards with these ids, in their order.

        Raises:
            ConfigError: one of them is not in the dead letter.
        """
        found = {shard.id: shard for shard in self.shards()}
        if missing := [str(number) for number in ids if number not in found]:
            held = ", ".join(map(str, found)) or "nothing"
            raise ConfigError(f"{', '.join(missing)} is not in the dead letter of {self.directory}; it holds {held}.")
        return [found[number] for number in dict.fromkeys(ids)]

    def lines(self, shard: QuarantinedShard) -> Iterator[bytes]:
        """Yield a shard's rows as JSON Lines, byte for byte, in pieces.

        Raises:
            SpoolError: the file is missing or damaged, or its format is not installed here.
        """
        if not shard.rows:
            return
        file = self._file(shard)
        try:
            with open_lines(file.open("rb"), file.name) as lines:
                while piece := lines.read(_PIECE_BYTES):
                    yield piece
        except (DamagedShard, ConfigError) as error:
            raise SpoolError(f"Cannot decompress {file}: {error}") from error

    def export(self, shards: Sequence[QuarantinedShard], out: Path, *, force: bool = False) -> list[Path]:
        """Write rows to the file `out`, or to one file for each shard if it is a directory; return the files.

        A file is written completely or not at all.

        Raises:
            ConfigError: a file exists, and `force` is False.
            SpoolError: a file cannot be written.
        """
        if out.is_dir():
            files = [(shard, self._file(shard).name) for shard in shards if shard.rows]
            todo = [(out / f"{name.removesuffix(_ending(name))}.jsonl", [shard]) for shard, name in files]
        else:
            todo = [(out, list(shards))]
        for path, _ in todo:
            if path.exists() and not force:
                raise _exists(path)
        for path, some in todo:
            write_file(path, (piece for shard in some for piece in self.lines(shard)), force=force)
        return [path for path, _ in todo]

    def resubmit(self, shard: QuarantinedShard) -> None:
        """Make a shard sealed again with its own rows, to be committed like any other.

        Raises:
            SpoolError: it left the dead letter, it holds no rows, or its file was edited.
        """
        with self._turn():
            if not shard.rows:
                raise SpoolError(f"{shard.path} holds no rows ({shard.why}): there is nothing to resubmit.")
            file = self._file(shard)
            sha256 = self._unchanged_sha256(shard, file)
            if sha256 is None:
                raise SpoolError(
                    f"{file} was edited after the shard was rejected. Nothing was changed. To upload what it holds "
                    f"now: hubsync dead-letter resubmit {self.directory} {shard.id} --from {file}"
                )
            self._seal(shard, _Rows(file, shard.rows, shard.bytes, sha256), is_edited=False)

    def edited_files(self, shards: Sequence[QuarantinedShard]) -> list[Path]:
        """Return the files of shards that were edited after the shards were rejected."""
        files = [(shard, self._file(shard)) for shard in shards if shard.rows]
        return [file for shard, file in files if self._unchanged_sha256(shard, file) is None]

    def _unchanged_sha256(self, shard: QuarantinedShard, file: Path) -> str | None:
        """Return the sha256 of a shard's file; None if it was edited."""
        if file.stat().st_size != shard.bytes:
            return None
        known = self._segments.get(shard.id).sha256
        sha256, _ = hash_file(file, shard.bytes)
        return sha256 if known in (None, sha256) else None

    def resubmit_edited(
        self, shard: QuarantinedShard, file: Path, *, confirm: Callable[[int], object] = lambda rows: None
    ) -> tuple[int, int]:
        """Make a shard sealed again with the rows of `file`; return how many rows and bytes these are.

        Args:
            shard: the shard whose rows are replaced.
            file: JSON Lines.
            confirm: called with the number of rows before anything is changed; it may raise to prevent the change.

        Raises:
            UnreadableRow: a line of the file is not a JSON object. Nothing was changed.
            SpoolError: the file or the disk fails, or the shard left the dead letter.
        """
        with self._turn():
            rows = self._copy_checked(shard, file)
            try:
                confirm(rows.rows)
                self._seal(shard, rows, is_edited=True)
            finally:
                rows.file.unlink(missing_ok=True)
        return rows.rows, rows.bytes

    def discard(self, shard: QuarantinedShard) -> None:
        """Delete a shard's rows. The catalogue keeps its number, keys and offsets. Lost rows are no longer listed.

        Raises:
            SpoolError: it left the dead letter.
        """
        with self._turn():
            file = self._quarantine.file_of(shard.id)
            when = datetime_text(self._spool.clock.time())
            why = f"discarded {when} ({shard.rows:,} rows, {shard.bytes:,} bytes). It was rejected: {shard.why}"
            with self._catalogue.transaction():
                if shard.lost and self._segments.state(shard.id) != "dead":  # its other rows are uploaded
                    self._segments.forget_loss(shard.id)
                    return
                self._still_dead(shard)
                self._segments.discard(shard.id, why)
            failpoint(Failpoint.DISCARDED)
            if file is not None:
                file.unlink(missing_ok=True)

    def _seal(self, shard: QuarantinedShard, rows: _Rows, *, is_edited: bool) -> None:
        """Make a shard sealed again, in one transaction.

        Its file gets a name that was never used: a committer that has just rejected the shard, and now removes its old
        file, removes nothing else.
        """
        quarantined = self._quarantine.file_of(shard.id)
        with self._catalogue.transaction():
            segment = self._still_dead(shard)
            writer = self._spool.writers.ensure(segment.writer)
            name = _next_name(segment.file, writer, shard.id, rows.file.name)
            file = self._spool.file(name)
            file.unlink(missing_ok=True)  # a link that a crash has left
            try:
                os.link(rows.file, file)
            except OSError as error:
                raise SpoolError(f"Cannot create {file}: {error}. Nothing was changed.") from error
            fsync_directory(file.parent)
            failpoint(Failpoint.RELINKED)
            self._segments.resubmit(
                segment, file=name, size=rows.bytes, rows=rows.rows, sha256=rows.sha256, is_edited=is_edited,
                writer=writer,
            )  # fmt: skip
        failpoint(Failpoint.RESUBMITTED)
        with self._catalogue.transaction():  # by now the Hub may have rejected it again
            if quarantined is not None and self._segments.state(shard.id) != "dead":
                quarantined.unlink(missing_ok=True)

    def _still_dead(self, shard: QuarantinedShard) -> Segment:
        segment = self._segments.find(shard.id)
        if segment is None or segment.state != "dead" or segment.rows != shard.rows:
            raise SpoolError(f"{shard.path} is no longer in the dead letter: another process was faster.")
        return segment

    def _copy_checked(self, shard: QuarantinedShard, file: Path) -> _Rows:
        """Copy an operator's file, which may change at any time, and check each line."""
        copy = self._quarantine.directory / f"{shard.id:06d}.new"
        sha256, rows, size = hashlib.sha256(), 0, 0
        try:
            fd = os.open(copy, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            with open(fd, "wb") as new, file.open("rb") as given:
                for number, line in enumerate(given, 1):
                    if not (row := line.strip()):
                        continue
                    if problem := _problem(row):
                        raise UnreadableRow(str(file), number, problem)
                    row += b"\n"
                    new.write(row)
                    sha256.update(row)
                    rows += 1
                    size += len(row)
                new.flush()
                os.fsync(fd)
            if not rows:
                raise SpoolError(f"{file} holds no rows. To throw the shard away: hubsync dead-letter discard.")
        except BaseException as error:
            copy.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise SpoolError(f"Cannot copy {file}: {error}. Nothing was changed.") from error
            raise
        failpoint(Failpoint.EDITED_COPIED)
        return _Rows(copy, rows, size, sha256.hexdigest())

    def _file(self, shard: QuarantinedShard) -> Path:
        file = self._quarantine.file_of(shard.id)
        if file is None:
            raise SpoolError(f"The file of {shard.path} is gone from {self._quarantine.directory}.")
        return file

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for other commands, and remove what a crashed one left."""
        fd = os.open(self._quarantine.directory, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for file in self._quarantine.directory.glob("*.new"):
                file.unlink(missing_ok=True)
            self._quarantine.sweep()
            yield
        finally:
            os.close(fd)


def _next_name(file: str, writer: str, segment: int, held: str) -> str:
    """Return a name for the n-th resubmit, "{writer}-{n}-{segment}.jsonl"; no committer gives a compressed file a 0.

    Its ending is that of `held`, the name of the file with the rows.
    """
    parts = file.split("-")
    nth = int(parts[1]) + 1 if len(parts) == 3 else 1
    ending = _ending(held)
    return f"{writer}-{nth}-{segment:08d}{ending if is_raw(ending) else f'.0{ending}'}"


def _ending(name: str) -> str:
    return Path(name).suffix if is_raw(name) else f".{format_of(name)}"


def _problem(line: bytes) -> str | None:
    """Return what is wrong with a line, without showing its text; None if it is a row."""
    try:
        encode([decode_row(line)])
    except RowError as error:
        return error.reason.rstrip(".")
    except ValueError as error:
        return str(error)
    return None


def write_file(path: Path, pieces: Iterator[bytes], *, force: bool) -> None:
    """Write a file completely or not at all.

    Raises:
        ConfigError: it exists, and `force` is False.
        SpoolError: it cannot be written.
    """
    new = None
    try:
        fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with open(fd, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(fd)
        if force:
            os.replace(new, path)
        else:
            os.link(new, path)  # atomic, and fails if the path exists
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise SpoolError(f"Cannot write {path}: {error}.") from error
    finally:
        if new is not None:
            Path(new).unlink(missing_ok=True)


def _exists(path: Path) -> ConfigError:
    return ConfigError(f"{path} exists and was not changed. Use another name, or --force.")
