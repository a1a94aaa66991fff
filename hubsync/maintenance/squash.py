"""Replace the history of a dataset by one commit: `hubsync squash`."""

from __future__ import annotations

from contextlib import aclosing
from typing import NamedTuple

import anyio

from hubsync._runtime.clock import Clock, SystemClock
from hubsync._runtime.secret import Secret
from hubsync.destinations.resolve import open_hub, target_of
from hubsync.reader.snapshot import SnapshotReader


class Squashed(NamedTuple):
    """What the history was, and is.

    Attributes:
        repo: the dataset.
        revision: its branch.
        commits: the number of commits before.
        commit: the only commit now; None if nothing was changed.
    """

    repo: str
    revision: str
    commits: int
    commit: str | None


def squash(
    repo: str,
    *,
    apply: bool = False,
    revision: str = "main",
    endpoint: str | None = None,
    token: str | None = None,
    clock: Clock | None = None,
) -> Squashed:
    """Replace the history of a branch by one commit with the same files. This cannot be undone.

    Jobs and followers continue: they notice that the commit they knew is gone.

    Args:
        repo: The dataset, such as "user/rollouts".
        apply: Do it. Otherwise only count the commits.
        revision: The branch.
        endpoint: The Hub's address; None for HF_ENDPOINT.
        token: None for HF_TOKEN or the token that `hf auth login` stored.
        clock: The source of time, for tests.

    Raises:
        ConfigError: The repo id, endpoint or revision is invalid.
        HubError: The Hub cannot be read, or refuses.
    """
    secret = None if token is None else Secret(token)
    del token  # a crash report of an error raised below would show it
    target = target_of(repo, endpoint, revision)

    async def run() -> Squashed:
        async with open_hub(target, secret) as hub:
            reader = SnapshotReader(hub, clock or SystemClock())
            head = await reader.head()
            commits = 0
            if head is not None:
                async with aclosing(reader.history(head)) as history:
                    async for _ in history:
                        commits += 1
            if not apply or commits < 2:
                return Squashed(target.repo, revision, commits, None)
            # Repeating it is harmless: a history of one commit stays one.
            await reader.retry(lambda: hub.squash(f"Squash {commits:,} commits"))
            return Squashed(target.repo, revision, commits, await reader.head())

    return anyio.run(run)
