"""Small file operations: sync directories, replace files atomically, count whole lines."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_with_parents(directory: Path) -> None:
    """A new directory is on the disk once the one that holds it is. Up to where a disk begins: who has made them may
    have been killed before they were synced.
    """
    for folder in (directory, *directory.absolute().parents):
        with suppress(PermissionError):  # what we may not read, we have not made
            fsync_directory(folder)
        if folder.is_mount():
            break


def write_atomically(path: Path, content: bytes) -> None:
    """A small file, as a whole or not at all."""
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    try:
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)
    os.replace(new, path)


def size_of(file: Path) -> int | None:
    """Bytes of a file, None where there is none. What can't be looked at raises `OSError`, and has lost nothing:
    `Path.exists` answers False there from Python 3.14 on.
    """
    try:
        return os.stat(file).st_size
    except FileNotFoundError:
        return None


def whole_lines(file: Path, most: int) -> tuple[int, int]:
    """How many whole lines a file begins with, and their bytes; of its first `most` bytes. Zeros, which a power cut
    leaves where it took a block, are no line.
    """
    rows = kept = seen = 0
    with file.open("rb") as stream:
        for line in stream:
            seen += len(line)
            if seen > most or not line.endswith(b"\n") or b"\0" in line:
                break
            rows += 1
            kept = seen
    return rows, kept


def is_all_there(file: Path, accepted: int) -> bool:
    """Whether no accepted bytes are missing, nor zeros in their place, as after a power cut."""
    size = size_of(file)
    if size is None or size < accepted:
        return False
    return file.suffix != ".jsonl" or whole_lines(file, accepted)[1] == accepted
