"""Pull requests and other discussions: numbered per repo, each a JSON document with its events.

A pull request is also a ref, `refs/pr/N`. Commits to that ref extend it; a merge applies its changes in one commit on
its base. A path that both sides changed differently is a conflict, and the Hub refuses to merge.
"""

from __future__ import annotations

import contextlib
import html
import json
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

from starlette.responses import Response

from hubsync.localhub.protocol import HubError, Operation, iso, json_response
from hubsync.localhub.routing import Call, Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage.history import Commit
from hubsync.localhub.storage.store import Caller, Repo

_PAGE = 10
_STATUSES = {"open": ("open", "draft"), "closed": ("closed", "merged")}

Document = dict[str, Any]


def open_pull_request(hub: HubState, repo: Repo, author: str, target: str, base: Commit, head: Commit) -> str:
    """Give `head` a number and a ref, to be merged into the ref `target`; return the pull request's address."""
    document = _create(hub, repo, author, head.title, head.message, target=target, base=base)
    hub.history.set_ref(repo, f"refs/pr/{document['num']}", head.oid)
    document["events"].append(_event(hub, author, "commit", {"subject": head.title, "oid": head.oid}))
    _save(hub, repo, document)
    return _url(hub, repo, document)


def note_commit(hub: HubState, repo: Repo, ref: str, author: str, commit: Commit) -> None:
    """Record a commit if it is on a pull request's ref."""
    if ref.startswith("refs/pr/"):
        document = _load(hub, repo, ref.rsplit("/", 1)[1])
        document["events"].append(_event(hub, author, "commit", {"subject": commit.title, "oid": commit.oid}))
        _save(hub, repo, document)


# Handlers


def listing(hub: HubState, call: Call) -> Response:
    """List a page of a repo's discussions, newest first."""
    repo, query = call.repo, call.request.query_params
    rows = hub.store.rows("SELECT body FROM discussion WHERE repo = ? ORDER BY num DESC", repo.id)
    is_pull = {"pull_request": True, "discussion": False}.get(query.get("type", "all"))
    statuses, author = _STATUSES.get(query.get("status", "all")), query.get("author", "").lower()
    found = [
        document
        for document in (json.loads(row[0]) for row in rows)
        if (is_pull is None or document["isPullRequest"] == is_pull)
        and (statuses is None or document["status"] in statuses)
        and (not author or document["author"]["name"].lower() == author)
    ]
    start = _PAGE * int(query.get("p", "0")) if query.get("p", "0").isdigit() else 0
    fields = ("num", "title", "status", "author", "isPullRequest", "createdAt")
    shown = [{key: item[key] for key in fields} | {"repo": _named(repo)} for item in found[start : start + _PAGE]]
    return json_response({"discussions": shown, "count": len(found), "start": start, "numClosedDiscussions": 0})


def create(hub: HubState, call: Call) -> Response:
    """Open a discussion, or a pull request that is an empty draft."""
    repo, caller, body = call.repo, _participant(call), call.json()
    title, text = str(body.get("title") or "").strip(), str(body.get("description") or "")
    if len(title) < 3 or len(title) > 200:
        raise HubError(400, '"title" length must be between 3 and 200 characters')
    with hub.store.transaction():
        base = hub.revision(repo, "main") if body.get("pullRequest") else None
        document = _create(hub, repo, caller.name, title, text, target="refs/heads/main", base=base)
        if base is not None:
            document["status"] = "draft"
            hub.history.set_ref(repo, f"refs/pr/{document['num']}", base.oid)
        _save(hub, repo, document)
    shown = {"num": document["num"], "title": title, "url": _url(hub, repo, document), "pullRequest": base is not None}
    return json_response(shown, status=201)


def details(hub: HubState, call: Call) -> Response:
    """Show a discussion with its events and, of a pull request, its conflicts."""
    document = _load(hub, call.repo, call.params["num"])
    body = {**document, "repo": _named(call.repo)}
    if document["isPullRequest"]:
        is_open = document["status"] in _STATUSES["open"]
        body["filesWithConflicts"] = _changes(hub, call.repo, document).conflicts if is_open else []
    return json_response(body)


def comment(hub: HubState, call: Call) -> Response:
    """Add a comment."""
    caller, text = _participant(call), str(call.json().get("comment") or "").strip()
    if not text:
        raise HubError(400, '"comment" is not allowed to be empty')
    with _edited(hub, call) as document:
        document["events"].append(_comment(hub, caller.name, text))
    return json_response({"newMessage": document["events"][-1]}, status=201)


def change_status(hub: HubState, call: Call) -> Response:
    """Open or close a discussion that is not merged; its author may, and the owners of the repo."""
    caller, body = _participant(call), call.json()
    status = body.get("status")
    if status not in ("open", "closed", "draft"):
        raise HubError(400, '"status" must be one of [draft, open, closed]')
    event = _event(hub, caller.name, "status-change", {"status": status})
    with _edited(hub, call) as document:
        if caller.name != document["author"]["name"] and not call.owns(call.repo):
            raise HubError(403, "Only its author and the owners of the repo may change this")
        if document["status"] == "merged":
            raise HubError(400, "This pull request is merged")
        document["status"] = status
        document["events"].append(event)
        if body.get("comment"):
            document["events"].append(_comment(hub, caller.name, str(body["comment"])))
    return json_response({"newStatus": event})


def merge(hub: HubState, call: Call) -> Response:
    """Merge an open pull request without conflicts."""
    repo, caller = call.writable()
    with _edited(hub, call) as document:
        if not document["isPullRequest"] or document["status"] not in _STATUSES["open"]:
            raise HubError(400, "Only an open pull request can be merged")
        if document["status"] == "draft":
            raise HubError(400, "Cannot merge a draft pull request: open it first")
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
    return json_response({"success": True, "commitOid": commit.oid})


# Documents


def _create(
    hub: HubState, repo: Repo, author: str, title: str, text: str, *, target: str, base: Commit | None
) -> Document:
    """Return a new document, open; with a base, of a pull request into the ref `target`."""
    ((num,),) = hub.store.rows("SELECT coalesce(max(num), 0) + 1 FROM discussion WHERE repo = ?", repo.id)
    document: Document = {
        "num": num, "title": title, "status": "open", "author": {"name": author, "type": "user"},
        "isPullRequest": base is not None, "createdAt": iso(hub.clock()), "events": [_comment(hub, author, text)],
    }  # fmt: skip
    return document if base is None else document | {"changes": {"base": target, "start": base.oid}}


def _save(hub: HubState, repo: Repo, document: Document) -> None:
    row = (repo.id, document["num"], json.dumps(document))
    hub.store.write("INSERT OR REPLACE INTO discussion VALUES (?, ?, ?)", *row)


def _load(hub: HubState, repo: Repo, num: str) -> Document:
    if not num.isdecimal() or len(num) > 9:
        raise HubError(400, "A discussion is known by its number")
    row = hub.store.row("SELECT body FROM discussion WHERE repo = ? AND num = ?", repo.id, int(num))
    if row is None:
        raise HubError(404, f"Discussion {num} does not exist in {repo.name}")
    document: Document = json.loads(row[0])
    return document


@contextlib.contextmanager
def _edited(hub: HubState, call: Call) -> Iterator[Document]:
    """Load the discussion of a request, and save it after the block, in one transaction."""
    with hub.store.transaction():
        document = _load(hub, call.repo, call.params["num"])
        yield document
        _save(hub, call.repo, document)


def _url(hub: HubState, repo: Repo, document: Document) -> str:
    return f"{hub.endpoint}/{repo.web_path}/discussions/{document['num']}"


def _named(repo: Repo) -> dict[str, str]:
    return {"name": repo.name, "type": repo.type}


def _participant(call: Call) -> Caller:
    _, caller = call.repo, call.user
    if caller.role != "write":
        raise HubError(403, "Forbidden: you must use a write token to take part in discussions.")
    return caller


def _event(hub: HubState, author: str, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    who = {"name": author, "type": "user"}
    return {"id": secrets.token_hex(12), "type": kind, "author": who, "createdAt": iso(hub.clock()), "data": data}


def _comment(hub: HubState, author: str, text: str) -> dict[str, Any]:
    page, at = f"<p>{html.escape(text)}</p>", iso(hub.clock())
    latest = {"raw": text, "html": page, "updatedAt": at, "author": {"name": author}}
    return _event(hub, author, "comment", {"edited": False, "hidden": False, "latest": latest, "history": []})


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
    Route(Operation.DISCUSSION, "GET", "/api/{type}/{repo}/discussions", listing),
    Route(Operation.DISCUSSION, "POST", "/api/{type}/{repo}/discussions", create),
    Route(Operation.DISCUSSION, "GET", _ONE, details),
    Route(Operation.DISCUSSION, "POST", _ONE + "/comment", comment),
    Route(Operation.DISCUSSION, "POST", _ONE + "/status", change_status),
    Route(Operation.DISCUSSION, "POST", _ONE + "/merge", merge),
]
