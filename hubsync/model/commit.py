"""The records that the spool and a destination exchange, and the destination's contract.

Staging knows nothing of committing, and a plan's item is (path, length, hashes, content) and never "that file": so
shards may come to be staged elsewhere, or a path be committed again with longer content, without a new format.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import msgspec

from hubsync.model.shard import Shard


@dataclass(frozen=True, slots=True)
class SidecarFile:
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
    sidecars: Sequence[SidecarFile] = ()
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
        return watermark_path(self.writer)


def watermark_path(writer: str) -> str:
    """Return the path of a writer's watermark in the dataset."""
    return f".hubsync/{writer}.json"


# What SQLite can hold, and for a sequence number enough room to continue from it.
_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _UntrustedWatermark(msgspec.Struct):
    """A watermark as the dataset holds it: anyone who may write there can have edited it."""

    writer: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    epoch: _Number
    next: dict[str, _Number] = {}
    rows: _Size = 0
    offsets: dict[str, _Size] = {}


def decode_watermark(content: bytes, path: str) -> Watermark:
    """Return the watermark in the dataset file `path`.

    Raises:
        ValueError: `content` is not a watermark, or that of another writer.
    """
    try:
        mark = msgspec.json.decode(content, type=_UntrustedWatermark)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if path != watermark_path(mark.writer):
        raise ValueError(f"it is the watermark of {mark.writer!r}")
    for name in (*mark.next, *mark.offsets):
        name.encode()  # SQLite can't store half of a surrogate pair
    return Watermark(mark.writer, mark.epoch, mark.next, mark.rows, mark.offsets)


@dataclass(frozen=True, slots=True)
class BranchTip:
    """The branch as the Hub has it: its newest commit, None for a branch without any; whether it was made just now."""

    sha: str | None
    is_new: bool = False


def commit_summary(shards: Sequence[Shard]) -> str:
    """The title of their commit."""
    rows = sum(shard.rows for shard in shards)
    return f"Add {rows:,} rows in {len(shards)} {'shard' if len(shards) == 1 else 'shards'}"
