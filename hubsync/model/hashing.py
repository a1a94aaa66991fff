"""Content hashes as git, LFS and Xet name files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from hubsync.errors import SpoolError


def git_blob_oid(content: bytes) -> str:
    """What git calls a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def git_oid_of_file(file: Path, size: int) -> str:
    """What git calls a file with this content."""
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(1 << 20):
            git.update(chunk)
    return git.hexdigest()


def hash_file(file: Path, size: int) -> tuple[str, str]:
    """sha256 (what LFS and Xet call it) and git's blob id (what a regular file is called), in one pass.

    Raises:
        SpoolError: the file is not `size` bytes long.
    """
    sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    seen = 0
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(1 << 20):
            sha256.update(chunk)
            git.update(chunk)
            seen += len(chunk)
    if seen != size:
        raise SpoolError(f"{file} holds {seen} bytes where the catalogue counts {size}: something else wrote to it.")
    return sha256.hexdigest(), git.hexdigest()
