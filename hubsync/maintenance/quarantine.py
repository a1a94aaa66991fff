"""The dead letter: shards that can't be committed as they are. Looked at, exported, put again, thrown away.

A shard is put again as itself: the same segment, path and number, so its receipts, keys and offsets stay true, the
dataset has no gap, and what landed after all is known by its path. One transaction makes it sealed again; before it
the shard is dead and in the dead letter, after it any committer brings it up. All of it may be done beside a job.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from hubsync._runtime.clock import SystemClock
from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import fsync_directory
from hubsync._runtime.formatting import datetime_text
from hubsync.encoding.codecs import DamagedShard, open_lines
from hubsync.encoding.rows import decode_row, encode
from hubsync.errors import ConfigError, RowError, SpoolError, UnreadableRow
from hubsync.model.hashing import hash_file
from hubsync.model.layout import Format, format_of
from hubsync.model.shard import QuarantinedShard
from hubsync.policies import SpoolPolicy
from hubsync.spool.opening import open_spool
from hubsync.spool.segments import Segment

_PIECE = 1 << 20  # bytes


class Mended(NamedTuple):
    """Rows that a person has edited, on their way back: a file of the dead letter's directory."""

    file: Path
    rows: int
    bytes: int
    sha256: str


class Quarantine:
    """The dead letter of one spool, whether a job is live on it or not. For one person at a time: others wait."""

    def __init__(self, directory: Path) -> None:
        """Opens a spool that is there.

        Raises:
            SpoolError: there is none.
        """
        # "fsync": what is removed from the dead letter must be known to be elsewhere, also after a power cut.
        self._spool = open_spool(None, SpoolPolicy(directory=directory, durability="fsync"), SystemClock())
        self._catalogue = self._spool.catalogue
        self._segments = self._spool.segments
        self.directory = self._spool.directory

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool.close()

    @property
    def committer_pid(self) -> int | None:
        """The process that commits for this spool, and so brings up what is put again; None where there is none."""
        return self._spool.lease.holder_pid

    def shards(self) -> list[QuarantinedShard]:
        """What is in it, the oldest first."""
        return [
            shard if shard.at is not None or grave is None else shard._replace(at=grave.stat().st_ctime)
            for shard in self._spool.quarantine.shards()
            for grave in [self._spool.quarantine.file_of(shard.id)]
        ]

    def pick(self, ids: Sequence[int]) -> list[QuarantinedShard]:
        """Those of `ids`, in that order.

        Raises:
            ConfigError: one is not there.
        """
        there = {shard.id: shard for shard in self.shards()}
        if missing := [str(number) for number in ids if number not in there]:
            held = ", ".join(map(str, there)) or "nothing"
            raise ConfigError(f"{', '.join(missing)} is not in the dead letter of {self.directory}; it holds {held}.")
        return [there[number] for number in dict.fromkeys(ids)]

    def lines(self, shard: QuarantinedShard) -> Iterator[bytes]:
        """Its rows as JSON Lines, exactly as they are in its file (unpacked, where that is packed), in pieces.

        Raises:
            SpoolError: what it was packed with is not installed here, or it is damaged.
        """
        if not shard.rows:
            return
        grave = self._file(shard)
        try:
            with open_lines(grave.open("rb"), grave.name) as file:
                while piece := file.read(_PIECE):
                    yield piece
        except (DamagedShard, ConfigError) as error:
            raise SpoolError(f"{grave} can't be unpacked: {error}") from error

    def export(self, shards: Sequence[QuarantinedShard], out: Path, *, force: bool = False) -> list[Path]:
        """Writes their rows to the file `out`, or each to a file of its own where `out` is a directory. A file is
        written whole or not at all.

        Raises:
            ConfigError: it is there already, and `force` is not given.
            SpoolError: it can't be written.
        """
        if out.is_dir():
            files = [(shard, self._file(shard).name) for shard in shards if shard.rows]
            todo = [(out / f"{name.removesuffix(f'.{format_of(name)}')}.jsonl", [shard]) for shard, name in files]
        else:
            todo = [(out, list(shards))]
        if there := [path for path, _ in todo if path.exists() and not force]:
            raise _exists(there[0])
        for path, some in todo:
            _write(path, (piece for shard in some for piece in self.lines(shard)), force=force)
        return [path for path, _ in todo]

    def resubmit(self, shard: QuarantinedShard) -> None:
        """Puts its rows again, as they are: they are sealed then, and are committed as any other's.

        Raises:
            SpoolError: it is no longer there, it holds no rows, or somebody has edited its file.
        """
        with self._alone():
            if not shard.rows:
                raise SpoolError(f"nothing is left of {shard.path} ({shard.why}): there are no rows to put again.")
            grave = self._file(shard)
            sha256 = self._unchanged(shard, grave)
            if sha256 is None:
                raise SpoolError(
                    f"{grave} was changed after it was set aside. Nothing was done. To put what it holds now: "
                    f"hubsync dead-letter resubmit {self.directory} {shard.id} --from {grave}"
                )
            self._put_again(shard, Mended(grave, shard.rows, shard.bytes, sha256), grave, is_edited=False)

    def edited(self, shards: Sequence[QuarantinedShard]) -> list[Path]:
        """Files of theirs that somebody has changed after they were set aside."""
        files = [(shard, self._file(shard)) for shard in shards if shard.rows]
        return [file for shard, file in files if self._unchanged(shard, file) is None]

    def _unchanged(self, shard: QuarantinedShard, grave: Path) -> str | None:
        """The sha256 of its file; None where that is no longer what was set aside."""
        if grave.stat().st_size != shard.bytes:
            return None
        known = self._segments.get(shard.id).sha256
        sha256, _ = hash_file(grave, shard.bytes)
        return sha256 if known in (None, sha256) else None

    def mend(
        self, shard: QuarantinedShard, file: Path, *, agree: Callable[[int], object] = lambda rows: None
    ) -> tuple[int, int]:
        """Puts the rows of `file` in place of its own; answers how many rows and bytes they are. `agree` is told how
        many rows they are before anything is done, and may raise: then nothing is.

        Raises:
            UnreadableRow: a line of it is no JSON object. Nothing was done.
            SpoolError: the file or the disk; or the shard is no longer there.
        """
        with self._alone():
            grave = self._spool.quarantine.file_of(shard.id)
            mended = self._read(shard, file)
            try:
                agree(mended.rows)
                self._put_again(shard, mended, grave, is_edited=True)
            finally:
                mended.file.unlink(missing_ok=True)
        return mended.rows, mended.bytes

    def discard(self, shard: QuarantinedShard) -> None:
        """Throws its rows away, for good. The catalogue remembers that there was a shard of this number.

        Raises:
            SpoolError: it is no longer there.
        """
        with self._alone():
            grave = self._spool.quarantine.file_of(shard.id)
            when = datetime_text(self._spool.clock.time())
            why = f"discarded {when} ({shard.rows:,} rows, {shard.bytes:,} bytes). It was set aside: {shard.why}"
            with self._catalogue.transaction():
                self._still_dead(shard)
                self._segments.discard(shard.id, why)
            failpoint(Failpoint.DISCARDED)
            if grave is not None:
                grave.unlink(missing_ok=True)

    # How it is put again.

    def _put_again(self, shard: QuarantinedShard, rows: Mended, grave: Path | None, *, is_edited: bool) -> None:
        """The one transaction. The file goes under a name that it never had: whoever still removes the old one, a
        committer that has just buried it perhaps, removes nothing else.
        """
        with self._catalogue.transaction():
            row = self._still_dead(shard)
            writer = self._spool.writers.ensure(row.writer)
            name = _next_name(row.file, writer, shard.id, format_of(rows.file.name))
            file = self._spool.file(name)
            file.unlink(missing_ok=True)  # a link that a crash has left
            try:
                os.link(rows.file, file)
            except OSError as error:
                raise SpoolError(f"{file} can't be made: {error}. Nothing was changed.") from error
            fsync_directory(file.parent)
            failpoint(Failpoint.RELINKED)
            self._segments.resubmit(
                row, file=name, size=rows.bytes, rows=rows.rows, sha256=rows.sha256, is_edited=is_edited, writer=writer
            )
        failpoint(Failpoint.RESUBMITTED)
        with self._catalogue.transaction():  # a committer may have buried it again by now
            state = self._segments.state(shard.id)
            if grave is not None and state != "dead":
                grave.unlink(missing_ok=True)

    def _still_dead(self, shard: QuarantinedShard) -> Segment:
        row = self._segments.find(shard.id)
        if row is None or row.state != "dead" or row.rows != shard.rows:
            raise SpoolError(f"{shard.path} is no longer in the dead letter: somebody else was faster.")
        return row

    def _read(self, shard: QuarantinedShard, file: Path) -> Mended:
        """Checks a person's file line by line, and copies it beside the dead letter: there it stays as it is."""
        copy = self.directory / "dead-letter" / f"{shard.id:06d}.new"
        sha256, rows, size = hashlib.sha256(), 0, 0
        try:
            fd = os.open(copy, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            with open(fd, "wb") as new, file.open("rb") as given:
                for number, line in enumerate(given, 1):
                    if not (row := line.strip()):
                        continue
                    if why := _defect(row):
                        raise UnreadableRow(str(file), number, why)
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
                raise SpoolError(f"{file} can't be taken: {error}. Nothing was changed.") from error
            raise
        failpoint(Failpoint.EDITED_COPIED)
        return Mended(copy, rows, size, sha256.hexdigest())

    def _file(self, shard: QuarantinedShard) -> Path:
        grave = self._spool.quarantine.file_of(shard.id)
        if grave is None:
            raise SpoolError(f"the file of {shard.path} is gone from {self.directory / 'dead-letter'}.")
        return grave

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time; who comes after a crash removes what it left."""
        directory = self.directory / "dead-letter"
        fd = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for file in directory.glob("*.new"):
                file.unlink(missing_ok=True)
            self._spool.quarantine.sweep()
            yield
        finally:
            os.close(fd)


def _next_name(file: str, writer: str, segment: int, format: Format) -> str:
    """The n-th return's: "{writer}-{n}-{segment}.jsonl"; packed, as what no committer has packed in its term."""
    parts = file.split("-")
    nth = int(parts[1]) + 1 if len(parts) == 3 else 1
    return f"{writer}-{nth}-{segment:08d}.{'' if format == 'jsonl' else '0.'}{format}"


def _defect(line: bytes) -> str | None:
    """What is wrong with a line; None where it is a row. Its text is not shown: a log is no place for it."""
    try:
        encode([decode_row(line)])
    except RowError as error:
        return error.reason.rstrip(".")
    except ValueError as error:
        return str(error)
    return None


def _write(path: Path, pieces: Iterator[bytes], *, force: bool) -> None:
    try:
        fd, new = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise SpoolError(f"{path} can't be written: {error}.") from error
    try:
        with open(fd, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(fd)
        if force:
            os.replace(new, path)
        else:
            os.link(new, path)  # as an atomic "only where nothing is"
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise SpoolError(f"{path} can't be written: {error}.") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new)


def _exists(path: Path) -> ConfigError:
    return ConfigError(f"{path} is there already, and was left as it is. Give another name, or --force.")
