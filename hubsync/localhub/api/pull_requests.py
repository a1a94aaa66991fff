"""Pull requests: numbered per repo, each a JSON document. Other discussions do not exist here.

A pull request is also a ref, `refs/pr/N`. Commits to that ref extend it; a merge applies its changes in one commit on
its base. A path that both sides changed differently is a conflict, and the Hub refuses to merge.
"""

from __future__ import annotations

import html
import json
import secrets
from typing import Any, NamedTuple

from starlette.responses import Response

from hubsync.localhub.protocol import HubError, Operation, iso, json_response
from hubsync.localhub.routing import Call, Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage.history import Commit
from hubsync.localhub.storage.store import Repo

Document = dict[str, Any]


def open_pull_request(hub: HubState, repo: Repo, author: str, target: str, base: Commit, head: Commit) -> str:
    """Give `head` a number and a ref, to be merged into the ref `target`; return the pull request's address."""
    ((num,),) = hub.store.rows("SELECT coalesce(max(num), 0) + 1 FROM discussion WHERE repo = ?", repo.id)
    page, at = f"<p>{html.escape(head.message)}</p>", iso(hub.clock())
    latest = {"raw": head.message, "html": page, "updatedAt": at, "author": {"name": author}}
    comment = _event(hub, author, "comment", {"edited": False, "hidden": False, "latest": latest, "history": []})
    document: Document = {
        "num": num, "title": head.title, "status": "open", "author": {"name": author, "type": "user"},
        "isPullRequest": True, "createdAt": at, "changes": {"base": target, "start": base.oid},
        "events": [comment, _event(hub, author, "commit", {"subject": head.title, "oid": head.oid})],
    }  # fmt: skip
    hub.history.set_ref(repo, f"refs/pr/{num}", head.oid)
    _save(hub, repo, document)
    return f"{hub.endpoint}/{repo.web_path}/discussions/{num}"


def note_commit(hub: HubState, repo: Repo, ref: str, author: str, commit: Commit) -> None:
    """Record a commit if it is on a pull request's ref."""
    if ref.startswith("refs/pr/"):
        document = _load(hub, repo, ref.rsplit("/", 1)[1])
        document["events"].append(_event(hub, author, "commit", {"subject": commit.title, "oid": commit.oid}))
        _save(hub, repo, document)


def details(hub: HubState, call: Call) -> Response:
    """Show a pull request with its events and conflicts."""
    document = _load(hub, call.repo, call.params["num"])
    conflicts = _changes(hub, call.repo, document).conflicts if document["status"] == "open" else []
    repo = {"name": call.repo.name, "type": call.repo.type}
    return json_response({**document, "repo": repo, "filesWithConflicts": conflicts})


def merge(hub: HubState, call: Call) -> Response:
    """Merge an open pull request without conflicts."""
    repo, caller = call.writable()
    with hub.store.transaction():
        document = _load(hub, repo, call.params["num"])
        if document["status"] != "open":
            raise HubError(400, "Only an open pull request can be merged")
        base, changed, conflicts = _changes(hub, repo, document)
        if conflicts:
            raise HubError(400, f"This pull request has conflicts: {', '.join(conflicts)}")
        tree = hub.write_tree(base, changed, document["changes"]["base"])
        title, message = f"{document['title']} (#{document['num']})", str(call.json().get("comment") or "")
        commit = hub.history.add_commit(repo, tree, base.oid, caller.name, title, message)
        hub.history.set_ref(repo, document["changes"]["base"], commit.oid)
        document["status"] = "merged"
        document["changes"] |= {"mergeCommitId": commit.oid}
        document["events"].append(_event(hub, caller.name, "status-change", {"status": "merged"}))
        _save(hub, repo, document)
    return json_response({"success": True, "commitOid": commit.oid})


def _save(hub: HubState, repo: Repo, document: Document) -> None:
    row = (repo.id, document["num"], json.dumps(document))
    hub.store.write("INSERT OR REPLACE INTO discussion VALUES (?, ?, ?)", *row)


def _load(hub: HubState, repo: Repo, num: str) -> Document:
    if not num.isdecimal() or len(num) > 9:
        raise HubError(400, "A pull request is known by its number")
    row = hub.store.row("SELECT body FROM discussion WHERE repo = ? AND num = ?", repo.id, int(num))
    if row is None:
        raise HubError(404, f"Pull request {num} does not exist in {repo.name}")
    document: Document = json.loads(row[0])
    return document


def _event(hub: HubState, author: str, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    who = {"name": author, "type": "user"}
    return {"id": secrets.token_hex(12), "type": kind, "author": who, "createdAt": iso(hub.clock()), "data": data}


class _Changes(NamedTuple):
    """What a merge would do to the base: path -> new oid, None to remove it; and the paths that conflict."""

    base: Commit
    changed: dict[str, str | None]
    conflicts: list[str]


def _changes(hub: HubState, repo: Repo, document: Document) -> _Changes:
    def files(commit: Commit) -> dict[str, str]:
        return {path: content.oid for path, content in hub.history.files(commit.tree).items()}

    start = files(hub.history.commit(repo, document["changes"]["start"]))
    head = files(hub.revision(repo, f"refs/pr/{document['num']}"))
    base = hub.revision(repo, document["changes"]["base"])
    now = files(base)
    changed = {path: head.get(path) for path in sorted(start | head) if start.get(path) != head.get(path)}
    conflicts = [path for path, oid in changed.items() if now.get(path) not in (start.get(path), oid)]
    return _Changes(base, changed, conflicts)


_ONE = "/api/{type}/{repo}/discussions/{num}"
ROUTES = [
    Route(Operation.DISCUSSION, "GET", _ONE, details),
    Route(Operation.DISCUSSION, "POST", _ONE + "/merge", merge),
]
