"""The contract of a destination: stage blobs, commit them atomically on a named parent, read the repo."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hubsync.errors import (
    AmbiguousError,
    BlockedError,
    DefectError,
    FolderFullError,
    StaleParentError,
    TransientError,
)
from hubsync.model.commit import BranchTip, Plan
from hubsync.model.shard import ListedFile, RemoteFile, Shard, Staged
from hubsync.model.watermarks import RemoteWatermarks


@dataclass(frozen=True, slots=True)
class Landed:
    """The commit is in the branch, under this sha."""

    sha: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """Nothing landed, and nothing is wrong with the commit: send it again later, or once an operator has acted."""

    error: TransientError | BlockedError


@dataclass(frozen=True, slots=True)
class FolderFull:
    """Nothing landed: a folder has no room for the commit's files. They are not at fault; give them other paths."""

    error: FolderFullError


@dataclass(frozen=True, slots=True)
class Rejected:
    """Nothing landed: the destination rejects the commit's content, and will again."""

    error: DefectError


@dataclass(frozen=True, slots=True)
class Unknown:
    """The commit may have landed, or the branch moved: read what is at its paths before you decide."""

    error: AmbiguousError | StaleParentError


CommitOutcome = Landed | NotSent | FolderFull | Rejected | Unknown


async def outcome_of(sending: Awaitable[str]) -> CommitOutcome:
    """Await a request that answers with the new commit's sha; return its outcome, with an error as a value."""
    try:
        return Landed(await sending)
    except (AmbiguousError, StaleParentError) as error:
        return Unknown(error)
    except FolderFullError as error:
        return FolderFull(error)
    except (TransientError, BlockedError) as error:
        return NotSent(error)
    except DefectError as error:
        return Rejected(error)


class Destination(Protocol):
    """Where shards go.

    Every method may raise a `HubError`, whose type says what to do next: retry (`TransientError`), read the remote
    state before anything else (`AmbiguousError`), wait for an operator (`BlockedError`), or give this content up
    (`DefectError`). No method retries.

    The committer relies on these capabilities:

    - *Atomic commits.* All files of a plan become visible together, or none does.
    - *Preconditions.* A commit names its parent and is rejected if the branch has moved, so it cannot overwrite a file
      that the parent's listing did not show.
    - *Reads at a commit.* Files are listed and read at a given commit, not at a moving branch.
    """

    async def ensure_repo(self, *, private: bool | None) -> BranchTip:
        """Create the repo if it does not exist, and check that the token may write to it.

        Args:
            private: Whether a new repo is private; None for the account's default.

        Returns:
            The branch's newest commit.
        """
        ...

    async def head(self) -> BranchTip:
        """Return the branch's newest commit."""
        ...

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        """Upload shards as blobs. Idempotent; nothing becomes visible, and no commit quota is used.

        Returns:
            One item for each shard, in order. Shards whose mode is "regular" are not uploaded: `commit` sends them.
        """
        ...

    async def commit(self, plan: Plan) -> CommitOutcome:
        """Send the plan once, as one atomic commit on its parent. Its outcome is returned, not raised.

        The outcome must be `Unknown` if the commit may have landed, or if the branch's newest commit is not its parent.
        """
        ...

    async def find_files(self, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        """Return the files that exist at `paths` in the commit `at`, by path."""
        ...

    async def count_files(self, folder: str, at: str, *, most: int, deep: bool) -> int:
        """Return how many entries a folder has in the commit `at`; above `most`, any number above it.

        Args:
            folder: Its path, without a slash at either end; empty for the root.
            at: The commit.
            most: Where to stop counting.
            deep: Count the files of all folders below it, too.
        """
        ...

    async def list_files(self, at: str, folder: str = "") -> Sequence[ListedFile]:
        """Return every file in the commit `at`, or below one of its folders."""
        ...

    async def read_file(self, path: str, at: str) -> bytes | None:
        """Return the content of a small file in the commit `at`; None if it does not exist."""
        ...

    async def download(self, path: str, at: str, write: Callable[[bytes], object]) -> bool:
        """Pass a file's content in the commit `at` to `write`, piece by piece; return False if it does not exist."""
        ...

    async def read_watermarks(
        self, at: str, *, writers: Collection[str] | None = None, most: int | None = None
    ) -> RemoteWatermarks:
        """Return the watermarks in the commit `at`. What was read is kept: the next call continues, after errors too.

        Args:
            at: The commit.
            writers: Read only files that may hold those of these writers; None for all.
            most: How many files of single watermarks to read now; None for all. The result says how many are unread.
        """
        ...

    async def aclose(self) -> None:
        """Close the connections."""
        ...
