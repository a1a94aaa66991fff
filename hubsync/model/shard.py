"""A shard: a sealed segment at its path in the dataset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from hubsync.model.hashing import git_oid_of_file

Mode = Literal["regular", "lfs"]


@dataclass(frozen=True, slots=True)
class Shard:
    """A sealed segment under its path in the dataset: bytes, hashes and rows are fixed.

    `git_oid` is None for a large one, which no Hub keeps as a regular file; it is found out where one does.
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

    def is_at(self, standing: RemoteFile) -> bool:
        """Whether what stands at the path is this shard's content."""
        if self.git_oid is None and len(standing.oid) == 40:
            return standing.oid == git_oid_of_file(self.file, self.size)
        return standing.oid in (self.sha256, self.git_oid)


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What stands at a path of the repo: the git oid of a regular file, the sha256 of an LFS one."""

    path: str
    oid: str
    commit: str | None = None  # the commit that last touched it, where the Hub said so


@dataclass(frozen=True, slots=True)
class Staged:
    """A shard is on the Hub as far as it can be before a commit; `standing` is the oid of what is at its path now."""

    mode: Mode
    standing: str | None = None


class QuarantinedShard(NamedTuple):
    """A shard in the dead letter. `at` is when it was set aside, in seconds since the epoch; None where that was not
    noted. `rows` and `bytes` are 0 where a power cut took them.
    """

    id: int
    path: str
    rows: int
    bytes: int
    at: float | None
    why: str
