"""Small file operations: sync directories, replace files atomically, count whole rows."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from hubsync._runtime import frames


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


def is_raw(name: str) -> bool:
    """Return whether a segment's file is as its writer wrote it: JSON Lines or frames, and no shard's format yet."""
    return name.endswith((".jsonl", frames.SUFFIX))


def whole_rows(file: Path, limit: int) -> tuple[int, int]:
    """Return how many whole rows the first `limit` bytes of a raw file begin with, and the size of these rows."""
    return frames.whole_frames(file, limit) if file.suffix == frames.SUFFIX else whole_lines(file, limit)


def whole_lines(file: Path, limit: int) -> tuple[int, int]:
    """Return how many whole lines the first `limit` bytes of a file begin with, and the size of these lines.

    A line with zeros does not count: a power cut can leave zeros where a block was lost.
    """
    rows = kept = seen = 0
    with file.open("rb") as stream:
        for line in stream:
            seen += len(line)
            if seen > limit or not line.endswith(b"\n") or b"\0" in line:
                break
            rows += 1
            kept = seen
    return rows, kept


def is_complete(file: Path, accepted: int) -> bool:
    """Return whether a file has all of its `accepted` bytes, without zeros in their place."""
    size = file_size(file)
    if size is None or size < accepted:
        return False
    return not is_raw(file.name) or whole_rows(file, accepted)[1] == accepted
