"""The records of a commit: its plan, the watermarks in it, the branch.

A plan refers to a file by path, size, hashes and content, never by "this local file". So shards could be staged by
another process, or a path committed again with longer content, without a change of the format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import msgspec
from msgspec import UNSET, UnsetType

from hubsync._runtime.formatting import count_text
from hubsync.model.hashing import git_blob_oid
from hubsync.model.shard import Shard

_MAX_CARD_BYTES = 64 * 1024  # of a card that is kept


@dataclass(frozen=True, slots=True)
class SidecarFile:
    """A small file that hubsync adds to a commit: the card or a watermark."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """What the next commit contains. It is written to the catalogue before it is sent.

    Attributes:
        id: Its number in the catalogue.
        shards: The shards to add.
        sidecars: Other files to add or replace.
        parent: The commit that it builds on; None for an empty branch.
        summary: The commit's title.
        term: The number of the committer that wrote it. The terms of one spool never overlap.
        deletions: The paths of files to delete.
        token: What its watermarks contain, and those of no other plan; empty if it has none.
    """

    id: int
    shards: Sequence[Shard]
    sidecars: Sequence[SidecarFile] = ()
    parent: str | None = None
    summary: str = ""
    term: int = 0
    deletions: Sequence[str] = ()
    token: str = ""


FixedBy = Literal["text", "declared"]
"""Why a column can't become JSON: it holds strings that read as JSON, or a person declared its type."""


class Start(NamedTuple):
    """Where the offsets of a source start: each of its first two batches, and the first batch after a gap between runs.

    Attributes:
        offset: The batch's offset.
        after: The offset accepted before it, so that those in between were never put; -1 for a source's first batch.
        content: The batch's fingerprint, if it is one of the first two; None if it is not.
    """

    offset: int
    after: int
    content: int | None = None


class LastCommit(msgspec.Struct, frozen=True):
    """What a spool knows of the dataset after its own last commit. While that is the head, nothing must be read again.

    Attributes:
        sha: The commit.
        card: The card in it; None if it has none, UNSET if that is unknown.
        card_oid: The card's git oid: of what is kept on a disk, the dataset must not get what the disk made of it.
        folders: How many files are in each folder that was counted.
    """

    sha: str
    card: bytes | UnsetType | None = UNSET
    card_oid: str = ""
    folders: Mapping[str, int] = {}

    @classmethod
    def of(cls, sha: str, card: bytes | UnsetType | None, folders: Mapping[str, int]) -> LastCommit:
        """Return what is known after the commit `sha`. A large card is left out."""
        if not isinstance(card, bytes):
            return cls(sha, card, folders=folders)
        return cls(sha, folders=folders) if len(card) > _MAX_CARD_BYTES else cls(sha, card, git_blob_oid(card), folders)

    @property
    def is_whole(self) -> bool:
        """Whether the card is as it was."""
        return not isinstance(self.card, bytes) or git_blob_oid(self.card) == self.card_oid


@dataclass(frozen=True, slots=True)
class Watermark:
    """How far one writer is in the dataset. `watermarks` says in which files that is.

    Attributes:
        writer: The writer's name.
        epoch: How often the writer was opened.
        next: The next sequence number by series (a path with `*` for the number).
        rows: Rows committed by this writer.
        offsets: The highest committed offset by source, without those in earlier pages.
        pages: How many files of earlier offsets the writer has written.
        plan: The token of the plan that wrote it, so that a plan is known to have landed although its shards were
            compacted since; empty in those of earlier versions.
        fixed: Why columns of its shards must keep their types, by config and column, as a card can't say it; None if an
            earlier version wrote some of them.
        starts: Where sources start, for those batches that the writer committed.
    """

    writer: str
    epoch: int
    next: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0
    offsets: Mapping[str, int] = field(default_factory=dict)
    pages: int = 0
    plan: str = ""
    fixed: Mapping[str, Mapping[str, FixedBy]] | None = None
    starts: Mapping[str, Sequence[Start]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Its path in the dataset."""
        return watermark_path(self.writer)


def watermark_path(writer: str) -> str:
    """Return the path of a writer's watermark in the dataset."""
    return f".hubsync/{writer}.json"


@dataclass(frozen=True, slots=True)
class BranchTip:
    """The newest commit of the branch.

    Attributes:
        sha: The commit; None if the branch has none.
        is_new: This call has created the repo.
        is_empty: The commit has no card and no rows, as far as the Hub says.
    """

    sha: str | None
    is_new: bool = False
    is_empty: bool = False


def commit_summary(shards: Sequence[Shard]) -> str:
    """Return the title of a commit with these shards."""
    rows = sum(shard.rows for shard in shards)
    return f"Add {count_text(rows, 'row')} in {count_text(len(shards), 'shard')}"
