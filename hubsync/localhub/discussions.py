"""Discussions and pull requests: numbered per repo, each one document of events; a pull request is also the ref
`refs/pr/N`.
"""

from __future__ import annotations

from hubsync.localhub.core import Core
from hubsync.localhub.history import Commit
from hubsync.localhub.routing import Route
from hubsync.localhub.store import Repo


def open_pull_request(core: Core, repo: Repo, author: str, base: Commit, head: Commit) -> str:
    """Give `head` a new number and ref; returns the pull request's address."""
    row = core.store.row("SELECT coalesce(max(num), 0) + 1 FROM discussion WHERE repo = ?", repo.id)
    assert row is not None
    num = int(row[0])
    core.store.write("INSERT INTO discussion VALUES (?, ?, ?)", repo.id, num, "{}")
    core.history.set_ref(repo, f"refs/pr/{num}", head.oid)
    return f"{core.endpoint}/{repo.web_path}/discussions/{num}"


def note_commit(core: Core, repo: Repo, ref: str, author: str, commit: Commit) -> None:
    """Record a later commit on a pull request's ref."""


ROUTES: list[Route] = []
