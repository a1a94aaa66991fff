"""Small file operations: sync directories, replace files atomically, read only regular files, count whole rows."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO, BinaryIO

import msgspec

from hubsync._runtime import frames


class _AnyObject(msgspec.Struct):
    """Any JSON object: it is parsed as a whole, and nothing of it is kept."""


_parse_object = msgspec.json.Decoder(_AnyObject).decode


def fsync_directory(directory: Path) -> None:
    """Write a directory's entries to the disk."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_with_parents(directory: Path) -> None:
    """Sync a directory and its parents, up to the mount point.

    A new directory survives a power cut once its parent is synced. Another process may have created the parents, and
    may have been killed before it synced them.
    """
    for folder in (directory, *directory.absolute().parents):
        with suppress(PermissionError):  # hubsync has not created what it may not read
            fsync_directory(folder)
        if folder.is_mount():
            break


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a small file: after a crash it has the old content or the new, never a part."""
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)
    os.replace(new, path)


def file_size(file: Path) -> int | None:
    """Return a file's size in bytes; None if it does not exist.

    Raises:
        OSError: The file's state is unknown. `Path.exists` would return False for it from Python 3.14 on.
    """
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return None


def regular_size(file: Path) -> int | None:
    """Return the size of a regular file in bytes; None if it does not exist.

    Raises:
        OSError: It cannot be looked at, or is a directory, a pipe or a device.
    """
    try:
        return _size_if_regular(os.stat(file), file)
    except FileNotFoundError:
        return None


def open_regular(file: Path) -> BinaryIO:
    """Open a regular file to read it. Never blocks, whatever may be in its place.

    Raises:
        OSError: It cannot be opened, or is a directory, a pipe or a device.
    """
    fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # without that flag, opening a pipe waits for its writer
    try:
        _size_if_regular(os.fstat(fd), file)
    except OSError:
        os.close(fd)
        raise
    return open(fd, "rb")


def _size_if_regular(about: os.stat_result, file: Path) -> int:
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "something else is in its place, which is not a regular file", str(file))
    return about.st_size


def is_raw(name: str) -> bool:
    """Return whether a segment's file is as its writer wrote it: JSON Lines or frames, and no shard's format yet."""
    return name.endswith((".jsonl", frames.SUFFIX))


def whole_rows(file: Path, limit: int) -> tuple[int, int]:
    """Return how many whole rows the first `limit` bytes of a raw file begin with, and the size of these rows."""
    with open_regular(file) as stream:
        return (frames.whole_frames if file.suffix == frames.SUFFIX else whole_lines)(stream, limit)


def whole_lines(stream: IO[bytes], limit: int) -> tuple[int, int]:
    """Return how many whole lines the first `limit` bytes of a file begin with, and the size of these lines.

    A line that is no JSON object does not count: a power cut can leave zeros where a block was lost, and a file that
    was cut while rows were appended holds half a row with another one after it.
    """
    rows = kept = seen = 0
    for line in stream:
        seen += len(line)
        if seen > limit or not line.endswith(b"\n") or not _is_row(line):
            break
        rows += 1
        kept = seen
    return rows, kept


def _is_row(line: bytes) -> bool:
    try:
        _parse_object(line)
    except msgspec.DecodeError:
        return False
    except RecursionError:  # it is nested too deeply to tell
        pass
    return True
