"""Remove empty spools, and save or discard the rows of one that can never be uploaded: `hubsync prune`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hubsync._runtime.clock import SystemClock
from hubsync._runtime.formatting import count_text, duration_text
from hubsync.errors import HubsyncError, SpoolBusy, SpoolError
from hubsync.maintenance.inspect import inspect_spool
from hubsync.maintenance.quarantine import QuarantineCommands, write_file
from hubsync.model.target import default_home
from hubsync.reader.pending_segments import segment_lines
from hubsync.spool.database import CatalogueReader, read_only
from hubsync.spool.opening import open_spool
from hubsync.spool.removal import remove_spool, sweep_removed
from hubsync.spool.segments import SegmentQueries, StateDepth

_PIECE_BYTES = 1 << 20
# What a spool consists of; a directory that holds anything else is not removed.
_PARTS = {"catalogue.sqlite", "catalogue.sqlite-wal", "catalogue.sqlite-shm", "segments", "writers", "dead-letter",
          "committer.lock", "reserve", "host", "merging"}  # fmt: skip


class Pruned(NamedTuple):
    """What became of one spool.

    Attributes:
        directory: The spool.
        is_removed: Whether it was removed or, in a dry run, would be.
        why: Why it is kept; or how long it has been unused.
        rows: Rows that are not on the Hub, rejected ones included.
    """

    directory: Path
    is_removed: bool
    why: str
    rows: int = 0


def prune(
    directories: Sequence[Path], *, older_than_s: float = 0.0, forget_keys: bool = False, dry_run: bool = True
) -> Iterator[Pruned]:
    """Remove empty spools; yield what became of each.

    A spool is kept if a process has it open, if it holds rows or rejected rows, if it cannot be read, or if it knows
    the keys of batches, since a job that puts them again would repeat their rows.

    Args:
        directories: The spools.
        older_than_s: Keep spools that a job used less than so many seconds ago.
        forget_keys: Also remove spools that know the keys of batches.
        dry_run: Remove nothing.
    """
    if not dry_run:
        sweep_removed(default_home())
    check = partial(_check_catalogue, forget_keys=forget_keys)
    for directory in directories:
        rows = 0
        try:
            unused_s = _unused_s(directory)
            rows = _check_open(directory, is_discarded=False)
            _check_files(directory)
            if unused_s < older_than_s:
                raise SpoolError(f"used {duration_text(unused_s)} ago")
            if dry_run:
                with read_only(directory / "catalogue.sqlite") as db:
                    check(db)
            else:
                remove_spool(directory, check)
        except _Held as held:
            yield Pruned(directory, False, str(held), held.rows)
        except (HubsyncError, OSError) as error:
            yield Pruned(directory, False, str(error).rstrip("."), rows)
        else:
            yield Pruned(directory, True, f"empty, unused for {duration_text(unused_s)}")


def discard_spool(directory: Path) -> int:
    """Remove a spool with all its rows, and return how many rows these were.

    Raises:
        SpoolBusy: a process has the spool open.
        SpoolError: the spool does not exist, or cannot be read or removed.
    """
    rows = _check_open(directory, is_discarded=True)
    remove_spool(directory, lambda db: None)
    return rows


def export_rows(directory: Path, out: Path, *, force: bool = False) -> int:
    """Write every row of a spool that is not on the Hub, rejected ones included, as JSON Lines; return how many.

    Raises:
        ConfigError: the file exists, and `force` is False.
        SpoolBusy: a process has the spool open.
        SpoolError: the spool or the file cannot be read or written.
    """
    rows = _check_open(directory, is_discarded=True)
    write_file(out, _pieces(directory), force=force)
    return rows


def _pieces(directory: Path) -> Iterator[bytes]:
    spool = open_spool(None, directory, SystemClock())
    try:
        for segment in spool.segments.waiting():
            if segment.rows:
                with segment_lines(spool.file(segment.file), segment.bytes) as lines:
                    while piece := lines.read(_PIECE_BYTES):
                        yield piece
    finally:
        spool.close()
    with QuarantineCommands(directory) as letter:
        for shard in letter.shards():
            yield from letter.lines(shard)


class _Held(SpoolError):
    """The spool holds rows."""

    def __init__(self, waiting: int, rejected: int, lost: int = 0) -> None:
        self.rows = waiting + rejected
        parts = [f"{count_text(waiting, 'row')} not on the Hub"] if waiting else []
        parts += [f"{count_text(rejected, 'rejected row')}"] if rejected else []
        parts += [f"a list of {count_text(lost, 'lost row')}"] if lost else []
        super().__init__(f"holds {' and '.join(parts) or 'a dead letter'}")


def _check_open(directory: Path, *, is_discarded: bool) -> int:
    """Return the rows of a spool that no process has open.

    Raises:
        SpoolBusy: a process has it open.
        _Held: it holds rows or rejected shards, and `is_discarded` is False.
        SpoolError: it does not exist or cannot be read.
    """
    report = inspect_spool(directory)
    if report.committer_pid or report.writer_pids:
        pids = ", ".join(map(str, sorted({report.committer_pid or 0, *report.writer_pids} - {0})))
        raise SpoolBusy(f"process {pids} has {directory} open")
    depth = report.depth
    if not is_discarded and (depth.rows or depth.dead or depth.lost_rows):
        raise _Held(depth.rows, depth.dead_rows, depth.lost_rows)
    return depth.rows + depth.dead_rows


def _check_catalogue(db: CatalogueReader, *, forget_keys: bool) -> None:
    """Check again, since the first look was not under a lock.

    Raises:
        SpoolError: the spool holds rows, rejected shards, or keys.
    """
    segments = SegmentQueries(db)
    depths, lost = segments.depths(), segments.lost_rows()
    dead = depths.pop("dead", StateDepth())
    if depths or dead.shards or lost:
        raise _Held(sum(depth.rows for depth in depths.values()), dead.rows, lost)
    keys = db.value("SELECT count(*) FROM keys")
    if keys and not forget_keys:
        raise SpoolError(f"remembers {count_text(keys, 'key')}; a job that puts them again would repeat rows (--keys)")


def _check_files(directory: Path) -> None:
    """Check that the directory holds nothing but an empty spool.

    Raises:
        SpoolError: it holds other files.
    """
    others = [path.name for path in directory.iterdir() if path.name not in _PARTS]
    others += [f"{name}/{path.name}" for name in ("segments", "dead-letter") for path in (directory / name).glob("*")]
    if others:
        raise SpoolError(f"holds {others[0]}" + (f" and {len(others) - 1:,} more files" if others[1:] else ""))


def _unused_s(directory: Path) -> float:
    """Return how long no job has used a spool, in seconds: jobs refresh their locks twice a second."""
    used = [directory / "segments", directory / "committer.lock", *(directory / "writers").glob("*.lock")]
    times = [os.stat(path).st_mtime for path in used if path.exists()]
    return max(0.0, time.time() - max(times, default=os.stat(directory).st_mtime))
