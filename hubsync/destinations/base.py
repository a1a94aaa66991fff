"""The contract of a destination: stage blobs, commit atomically on a named parent, read what is there."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from hubsync.errors import AmbiguousError, BlockedError, DefectError, StaleParentError, TransientError
from hubsync.model.commit import BranchTip, Plan, Watermark
from hubsync.model.shard import RemoteFile, Shard, Staged


@dataclass(frozen=True, slots=True)
class Landed:
    """The commit is in the branch, under this sha."""

    sha: str


@dataclass(frozen=True, slots=True)
class NotSent:
    """Nothing landed, and nothing is wrong with the commit: send it again later, or once an operator has acted."""

    error: TransientError | BlockedError


@dataclass(frozen=True, slots=True)
class Rejected:
    """Nothing landed: the destination rejects the commit's content, and will again."""

    error: DefectError


@dataclass(frozen=True, slots=True)
class Unknown:
    """The commit may have landed, or the branch moved: read what is at its paths before you decide."""

    error: AmbiguousError | StaleParentError


CommitOutcome = Landed | NotSent | Rejected | Unknown


async def outcome_of(sending: Awaitable[str]) -> CommitOutcome:
    """Await a request that answers with the new commit's sha; return its outcome, with an error as a value."""
    try:
        return Landed(await sending)
    except (AmbiguousError, StaleParentError) as error:
        return Unknown(error)
    except (TransientError, BlockedError) as error:
        return NotSent(error)
    except DefectError as error:
        return Rejected(error)


class Destination(Protocol):
    """Where shards go. Every method raises a `HubError` of the kind that tells the worker what to do next.

    Contracts: `stage` is idempotent and makes nothing visible. `commit` is atomic, sends once and never retries: an
    `AmbiguousError` means that it may have landed, and only then. `standing` reads at the given commit, so that a
    commit on that parent can't overwrite what it did not show.
    """

    async def ensure_repo(self, *, private: bool | None) -> BranchTip:
        """Makes sure that the repo exists (creating it) and that the token may write there."""
        ...

    async def head(self) -> BranchTip:
        """The branch's newest commit."""
        ...

    async def stage(self, shards: Sequence[Shard]) -> Sequence[Staged]:
        """Uploads what goes up as blobs; answers for each, in order. `regular` ones wait for the commit."""
        ...

    async def commit(self, plan: Plan) -> CommitOutcome:
        """Send a plan as one commit on its parent, once."""
        ...

    async def find_files(self, paths: Sequence[str], at: str) -> Mapping[str, RemoteFile]:
        """What stands at `paths` in the commit `at`; a path where nothing stands is left out."""
        ...

    async def read_file(self, path: str, at: str) -> bytes | None:
        """A small file's content in the commit `at`; None where there is none."""
        ...

    async def download(self, path: str, at: str, take: Callable[[bytes], object]) -> bool:
        """Hands a file's content in the commit `at` to `take`, piece by piece; False where there is none."""
        ...

    async def read_watermarks(self, at: str) -> Sequence[Watermark]:
        """The watermarks of all writers in the commit `at`."""
        ...

    async def aclose(self) -> None:
        """Lets go of its connections."""
        ...
