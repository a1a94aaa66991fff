"""A shard: a sealed segment at its path in the dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

from hubsync._runtime.formatting import count_text
from hubsync.errors import ShardsRefused
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


class ListedFile(Protocol):
    """A file in a listing of the repo."""

    @property
    def path(self) -> str:
        """Its path."""

    @property
    def size(self) -> int:
        """Its size, in bytes."""


class QuarantinedShard(NamedTuple):
    """A shard in the dead letter: rows that were rejected, or rows that were lost.

    Attributes:
        id: The number of its segment.
        path: Its path in the dataset, had it been committed.
        rows: Its rows that are kept in the dead letter.
        bytes: Their size, in bytes.
        at: When it was rejected, in seconds since the epoch; None if that was not recorded.
        why: Why it was rejected, or which of its rows are lost and why.
        lost: Its rows that were accepted and are lost.
    """

    id: int
    path: str
    rows: int
    bytes: int
    at: float | None
    why: str
    lost: int = 0


_NAMED = 3  # shards that an error names


def refusal(spool: Path, shards: Sequence[QuarantinedShard]) -> ShardsRefused:
    """Return the error for shards whose rows are not in the dataset, or not all of them."""
    kept, lost = [shard for shard in shards if shard.rows], [shard for shard in shards if shard.lost]
    rows, lost_rows = sum(shard.rows for shard in kept), sum(shard.lost for shard in lost)
    sentences = []
    if kept or not lost:
        named = kept or shards  # those without rows were discarded in the meantime
        were, their = ("was", "Its") if len(named) == 1 else ("were", "Their")
        sentences.append(f"{count_text(len(named), 'shard')} {were} rejected: {_named(named)}.")
        state = f"{'is' if rows == 1 else 'are'} kept" if kept else "were discarded"
        sentences.append(f"{their} {count_text(rows, 'row')} {state}.")
    if lost:
        are, them = ("is", "it") if lost_rows == 1 else ("are", "them")
        where = f" in {count_text(len(lost), 'shard')}" if len(lost) > 1 else ""
        sentences.append(f"{count_text(lost_rows, 'accepted row')}{where} {are} lost: {_named(lost)}.")
        sentences.append(f"All other rows are safe. Put {them} again if the job still has {them}.")
    text = f"{' '.join(sentences)} For details: hubsync dead-letter list {spool}"
    return ShardsRefused(text, shards=len(shards), rows=rows, lost_rows=lost_rows)


def _named(shards: Sequence[QuarantinedShard]) -> str:
    named = [f"{shard.path} ({shard.why.rstrip('.')})" for shard in shards[:_NAMED]]
    more = [f"and {len(shards) - _NAMED:,} more"] if len(shards) > _NAMED else []
    return ", ".join([*named, *more])
