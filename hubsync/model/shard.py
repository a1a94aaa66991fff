"""A shard: a sealed segment at its path in the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from hubsync.model.hashing import git_oid_of_file

Mode = Literal["regular", "lfs"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A sealed segment and its path in the dataset: its bytes, hashes and rows are fixed.

    `git_oid` is None for a large shard, because the Hub stores it as a blob. It is computed if a Hub does not.
    """

    segment: int
    writer: str
    file: Path
    path: str
    size: int
    rows: int
    sha256: str
    git_oid: str | None
    mode: Mode | None = None  # None until it is staged

    def matches(self, remote: RemoteFile) -> bool:
        """Return whether the file at the path has this shard's content."""
        if self.git_oid is None and len(remote.oid) == 40:
            return remote.oid == git_oid_of_file(self.file, self.size)
        return remote.oid in (self.sha256, self.git_oid)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in the repo: `oid` is the git oid of a regular file, the sha256 of an LFS file."""

    path: str
    oid: str
    commit: str | None = None  # the commit that last touched it, if the Hub reported it


@dataclass(frozen=True, slots=True)
class Staged:
    """A shard that is uploaded as far as it can be before a commit.

    Attributes:
        mode: How the Hub stores it: inside the commit, or as a blob.
        remote_oid: The oid of the file that is at the shard's path now, if the Hub reported one.
    """

    mode: Mode
    remote_oid: str | None = None


class QuarantinedShard(NamedTuple):
    """A shard in the dead letter.

    Attributes:
        id: The number of its segment.
        path: Its path in the dataset, had it been committed.
        rows: Its rows; 0 if a power cut destroyed them.
        bytes: Its size, in bytes; 0 if a power cut destroyed it.
        at: When it was rejected, in seconds since the epoch; None if that was not recorded.
        why: Why it was rejected.
    """

    id: int
    path: str
    rows: int
    bytes: int
    at: float | None
    why: str
