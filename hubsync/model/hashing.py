"""Content hashes: how git names a regular file, and how LFS and Xet name a large one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from hubsync._runtime.files import open_regular
from hubsync.errors import SpoolError

if TYPE_CHECKING:
    from hashlib import _Hash

_CHUNK = 1 << 20


def git_hash(size: int) -> _Hash:
    """Return a hash whose digest, after `size` bytes of content, is git's blob id."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def oid_hash(oid: str, size: int) -> _Hash:
    """Return a hash whose digest, after `size` bytes of the right content, is `oid`: a sha256 or git's blob id."""
    return hashlib.sha256() if len(oid) == 64 else git_hash(size)


def git_blob_oid(content: bytes) -> str:
    """Return git's blob id of `content`."""
    blob = git_hash(len(content))
    blob.update(content)
    return blob.hexdigest()


def git_oid_of_file(file: Path, size: int) -> str:
    """Return git's blob id of the content of `file`, which has `size` bytes."""
    _, (git,) = _hash(file, git_hash(size))
    return git


def hash_file(file: Path, size: int) -> tuple[str, str]:
    """Return the sha256 and git's blob id of the content of `file`, read once.

    Raises:
        SpoolError: The file does not have `size` bytes.
    """
    seen, (sha256, git) = _hash(file, hashlib.sha256(), git_hash(size))
    if seen != size:
        raise SpoolError(f"{file} has {seen} bytes, but the catalogue counts {size}: something else wrote to it.")
    return sha256, git


def _hash(file: Path, *hashes: _Hash) -> tuple[int, list[str]]:
    seen = 0
    with open_regular(file) as stream:
        while chunk := stream.read(_CHUNK):
            seen += len(chunk)
            for one in hashes:
                one.update(chunk)
    return seen, [one.hexdigest() for one in hashes]
