"""The records that the spool and a destination exchange, and the destination's contract.

Staging knows nothing of committing, and a plan's item is (path, length, hashes, content) and never "that file": so
shards may come to be staged elsewhere, or a path be committed again with longer content, without a new format.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from hubsync.errors import SpoolError

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

    def is_at(self, standing: Standing) -> bool:
        """Whether what stands at the path is this shard's content."""
        if self.git_oid is None and len(standing.oid) == 40:
            return standing.oid == git_oid_of(self.file, self.size)
        return standing.oid in (self.sha256, self.git_oid)


@dataclass(frozen=True, slots=True)
class Standing:
    """What stands at a path of the repo: the git oid of a regular file, the sha256 of an LFS one."""

    path: str
    oid: str
    commit: str | None = None  # the commit that last touched it, where the Hub said so


@dataclass(frozen=True, slots=True)
class Staged:
    """A shard is on the Hub as far as it can be before a commit; `standing` is the oid of what is at its path now."""

    mode: Mode
    standing: str | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """A small file of hubsync's own that goes along in a commit: the card, a watermark."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next commit contains. It stands in the catalogue before it is sent.

    `term` counts the spool's committers: those of one spool never overlap.
    """

    id: int
    shards: Sequence[Shard]
    notes: Sequence[Note] = ()
    parent: str | None = None
    summary: str = ""
    term: int = 0


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far one writer is in the dataset: what `.hubsync/<writer>.json` holds.

    Attributes:
        epoch: how often the writer was opened.
        next: the next sequence number by series (a path with `*` for the number).
        rows: rows committed by this writer.
        offsets: the highest committed offset by source.
    """

    writer: str
    epoch: int
    next: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    offsets: Mapping[str, int] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Where it stands in the dataset."""
        return mark_path(self.writer)


def mark_path(writer: str) -> str:
    """Where a writer's watermark stands."""
    return f".hubsync/{writer}.json"


@dataclass(frozen=True, slots=True)
class Head:
    """The branch as the Hub has it: its newest commit, None for a branch without any; whether it was made just now."""

    sha: str | None
    is_new: bool = False


def summary_of(shards: Sequence[Shard]) -> str:
    """The title of their commit."""
    rows = sum(shard.rows for shard in shards)
    return f"Add {rows:,} rows in {len(shards)} {'shard' if len(shards) == 1 else 'shards'}"


def blob_oid(content: bytes) -> str:
    """What git calls a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def git_oid_of(file: Path, size: int) -> str:
    """What git calls a file with this content."""
    git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(1 << 20):
            git.update(chunk)
    return git.hexdigest()


def hashes(file: Path, size: int) -> tuple[str, str]:
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


class Destination(Protocol):
    """Where shards go. Every method raises a `HubError` of the kind that tells the worker what to do next.

    Contracts: `stage` is idempotent and makes nothing visible. `commit` is atomic, sends once and never retries: an
    `AmbiguousError` means that it may have landed, and only then. `standing` reads at the given commit, so that a
    commit on that parent can't overwrite what it did not show.
    """

    async def check(self, *, private: bool | None) -> Head:
        """Makes sure that the repo exists (creating it) and that the token may write there."""
        ...

    async def head(self) -> Head:
        """The branch's newest commit."""
        ...

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        """Uploads what goes up as blobs; answers for each, in order. `regular` ones wait for the commit."""
        ...

    async def commit(self, plan: Plan) -> str:
        """Sends the plan as one commit on its parent; answers the new commit's sha."""
        ...

    async def standing(self, paths: Sequence[str], at: str) -> Mapping[str, Standing]:
        """What stands at `paths` in the commit `at`; a path where nothing stands is left out."""
        ...

    async def read(self, path: str, at: str) -> bytes | None:
        """A small file's content in the commit `at`; None where there is none."""
        ...

    async def download(self, path: str, at: str, take: Callable[[bytes], object]) -> bool:
        """Hands a file's content in the commit `at` to `take`, piece by piece; False where there is none."""
        ...

    async def watermarks(self, at: str) -> Sequence[Watermark]:
        """The watermarks of all writers in the commit `at`."""
        ...

    async def aclose(self) -> None:
        """Lets go of its connections."""
        ...
