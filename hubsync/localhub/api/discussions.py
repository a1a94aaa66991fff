"""Discussions and pull requests: numbered per repo, each a document of events; a pull request is also a ref,
`refs/pr/N`.

A pull request grows by commits to its ref and is merged by one commit on its base that brings its changed paths
over. What both sides changed differently is a conflict, and the Hub refuses to merge.
"""

from __future__ import annotations

import difflib
import html
import json
import secrets
from typing import Any

from starlette.responses import Response

from hubsync.localhub.call import Call, HubError, Operation, iso, json_response
from hubsync.localhub.routing import Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage.history import Commit
from hubsync.localhub.storage.store import Caller, Repo

_PAGE = 10
_EMPTY_PR = "draft"
_DIFFED_BYTES = 1 << 20

Document = dict[str, Any]


def open_pull_request(hub: HubState, repo: Repo, author: str, target: str, base: Commit, head: Commit) -> str:
    """Give `head` a number and a ref, to be merged into the ref `target`; returns the pull request's address."""
    document = _create(hub, repo, author, head.title, head.message, base=(target, base.oid), status="open")
    hub.history.set_ref(repo, f"refs/pr/{document['num']}", head.oid)
    document["events"].append(_event(hub, author, "commit", {"subject": head.title, "oid": head.oid}))
    _save(hub, repo, document)
    return f"{hub.endpoint}/{repo.web_path}/discussions/{document['num']}"


def note_commit(hub: HubState, repo: Repo, ref: str, author: str, commit: Commit) -> None:
    """Record a later commit on a pull request's ref; commits to other refs are nothing to a discussion."""
    if not ref.startswith("refs/pr/"):
        return
    document = _load(hub, repo, int(ref.rsplit("/", 1)[1]))
    document["events"].append(_event(hub, author, "commit", {"subject": commit.title, "oid": commit.oid}))
    _save(hub, repo, document)


# Routes


def listing(hub: HubState, call: Call) -> Response:
    repo, query = hub.readable(call), call.request.query_params
    rows = hub.store.rows("SELECT body FROM discussion WHERE repo = ? ORDER BY num DESC", repo.id)
    found = [json.loads(row[0]) for row in rows]
    wanted = {"pull_request": True, "discussion": False}.get(query.get("type", "all"))
    states = {"open": ("open", "draft"), "closed": ("closed", "merged")}.get(query.get("status", "all"))
    author = query.get("author", "").lower()
    found = [
        document
        for document in found
        if (wanted is None or document["isPullRequest"] == wanted)
        and (states is None or document["status"] in states)
        and (not author or document["author"]["name"].lower() == author)
    ]
    page = int(query.get("p", "0")) if query.get("p", "0").isdigit() else 0
    shown = [
        {
            **{key: document[key] for key in ("num", "title", "status", "author", "isPullRequest", "createdAt")},
            "repo": _named(repo),
        }
        for document in found[page * _PAGE : (page + 1) * _PAGE]
    ]
    return json_response({"discussions": shown, "count": len(found), "start": page * _PAGE, "numClosedDiscussions": 0})


def create(hub: HubState, call: Call) -> Response:
    repo, caller = hub.readable(call), _member(hub, call)
    body = call.json()
    title, description = str(body.get("title") or "").strip(), str(body.get("description") or "")
    if len(title) < 3 or len(title) > 200:
        raise HubError(400, '"title" length must be between 3 and 200 characters')
    with hub.store.transaction():
        base = hub.revision(repo, "main")
        is_pull = bool(body.get("pullRequest"))
        status = _EMPTY_PR if is_pull else "open"
        document = _create(
            hub,
            repo,
            caller.name,
            title,
            description,
            base=("refs/heads/main", base.oid) if is_pull else None,
            status=status,
        )
        if is_pull:
            hub.history.set_ref(repo, f"refs/pr/{document['num']}", base.oid)
        _save(hub, repo, document)
    url = f"{hub.endpoint}/{repo.web_path}/discussions/{document['num']}"
    return json_response({"num": document["num"], "title": title, "url": url, "pullRequest": is_pull}, status=201)


def details(hub: HubState, call: Call) -> Response:
    repo = hub.readable(call)
    document = _load(hub, repo, _number(call))
    body = {**document, "repo": _named(repo)}
    if document["isPullRequest"]:
        body["filesWithConflicts"] = _conflicts(hub, repo, document) if document["status"] in ("open", "draft") else []
        if call.flag("diff"):
            body["diff"] = _diff(hub, repo, document)
    return json_response(body)


def comment(hub: HubState, call: Call) -> Response:
    repo, caller = hub.readable(call), _member(hub, call)
    text = str(call.json().get("comment") or "").strip()
    if not text:
        raise HubError(400, '"comment" is not allowed to be empty')
    with hub.store.transaction():
        document = _load(hub, repo, _number(call))
        event = _comment(hub, caller.name, text)
        document["events"].append(event)
        _save(hub, repo, document)
    return json_response({"newMessage": event}, status=201)


def edit_comment(hub: HubState, call: Call) -> Response:
    repo, caller = hub.readable(call), _member(hub, call)
    with hub.store.transaction():
        document = _load(hub, repo, _number(call))
        event = _find_comment(hub, repo, caller, document, call)
        data = event["data"]
        data["history"].append(data["latest"])
        data |= {"edited": True, "latest": _text(hub, caller.name, str(call.json().get("content") or ""))}
        _save(hub, repo, document)
    return json_response({"updatedComment": event})


def hide_comment(hub: HubState, call: Call) -> Response:
    repo, caller = hub.readable(call), _member(hub, call)
    with hub.store.transaction():
        document = _load(hub, repo, _number(call))
        event = _find_comment(hub, repo, caller, document, call)
        event["data"] |= {
            "hidden": True,
            "hiddenBy": caller.name,
            "latest": _text(hub, caller.name, "This comment has been hidden"),
        }
        _save(hub, repo, document)
    return json_response({"updatedComment": event})


def retitle(hub: HubState, call: Call) -> Response:
    repo, caller = hub.readable(call), _member(hub, call)
    title = str(call.json().get("title") or "").strip()
    if len(title) < 3:
        raise HubError(400, '"title" length must be at least 3 characters long')
    with hub.store.transaction():
        document = _load(hub, repo, _number(call))
        _check_author(hub, repo, caller, document["author"]["name"])
        event = _event(hub, caller.name, "title-change", {"from": document["title"], "to": title})
        document["title"] = title
        document["events"].append(event)
        _save(hub, repo, document)
    return json_response({"newTitle": event})


def change_status(hub: HubState, call: Call) -> Response:
    repo, caller = hub.readable(call), _member(hub, call)
    body = call.json()
    status = body.get("status")
    if status not in ("open", "closed", "draft"):
        raise HubError(400, '"status" must be one of [draft, open, closed]')
    with hub.store.transaction():
        document = _load(hub, repo, _number(call))
        _check_author(hub, repo, caller, document["author"]["name"])
        if document["status"] == "merged":
            raise HubError(400, "This pull request is merged")
        document["status"] = status
        event = _event(hub, caller.name, "status-change", {"status": status})
        document["events"].append(event)
        if body.get("comment"):
            document["events"].append(_comment(hub, caller.name, str(body["comment"])))
        _save(hub, repo, document)
    return json_response({"newStatus": event})


def merge(hub: HubState, call: Call) -> Response:
    repo, caller = hub.writable(call)
    with hub.store.transaction():
        document = _load(hub, repo, _number(call))
        if not document["isPullRequest"] or document["status"] not in ("open", "draft"):
            raise HubError(400, "Only an open pull request can be merged")
        if document["status"] == "draft":
            raise HubError(400, "Cannot merge a draft pull request: open it first")
        if conflicts := _conflicts(hub, repo, document):
            raise HubError(400, f"This pull request has conflicts: {', '.join(map(str, conflicts))}")
        base = hub.revision(repo, document["changes"]["base"])
        tree = hub.history.write_tree(base.tree, _changes(hub, repo, document))
        title = f"{document['title']} (#{document['num']})"
        message = str(call.json().get("comment") or "")
        commit = hub.history.add_commit(
            repo, tree=tree, parent=base.oid, author=caller.name, title=title, message=message, now=hub.clock()
        )
        hub.history.set_ref(repo, document["changes"]["base"], commit.oid)
        document["status"] = "merged"
        document["changes"] |= {"mergeCommitId": commit.oid}
        document["events"].append(_event(hub, caller.name, "status-change", {"status": "merged"}))
        _save(hub, repo, document)
    return json_response({"success": True, "commitOid": commit.oid})


# What stands behind them


def _create(
    hub: HubState, repo: Repo, author: str, title: str, text: str, *, base: tuple[str, str] | None, status: str
) -> Document:
    row = hub.store.row("SELECT coalesce(max(num), 0) + 1 FROM discussion WHERE repo = ?", repo.id)
    assert row is not None
    document: Document = {
        "num": int(row[0]), "title": title, "status": status, "author": {"name": author, "type": "user"},
        "isPullRequest": base is not None, "createdAt": iso(hub.clock()), "events": [_comment(hub, author, text)],
    }  # fmt: skip
    if base is not None:
        document["changes"] = {"base": base[0], "start": base[1]}
    return document


def _save(hub: HubState, repo: Repo, document: Document) -> None:
    hub.store.write(
        "INSERT OR REPLACE INTO discussion VALUES (?, ?, ?)", repo.id, document["num"], json.dumps(document)
    )


def _load(hub: HubState, repo: Repo, num: int) -> Document:
    row = hub.store.row("SELECT body FROM discussion WHERE repo = ? AND num = ?", repo.id, num)
    if row is None:
        raise HubError(404, f"Discussion {num} does not exist in {repo.name}")
    document: Document = json.loads(row[0])
    return document


def _number(call: Call) -> int:
    if not call.params["num"].isdigit():
        raise HubError(400, "A discussion is known by its number")
    return int(call.params["num"])


def _named(repo: Repo) -> dict[str, str]:
    return {"name": repo.name, "type": repo.type}


def _member(hub: HubState, call: Call) -> Caller:
    caller = hub.authenticated(call)
    if caller.role != "write":
        raise HubError(403, "Forbidden: you must use a write token to take part in discussions.")
    return caller


def _check_author(hub: HubState, repo: Repo, caller: Caller, author: str) -> None:
    if caller.name != author and not hub.store.may_write(caller, repo.namespace):
        raise HubError(403, "Only its author and the owners of the repo may change this")


def _find_comment(hub: HubState, repo: Repo, caller: Caller, document: Document, call: Call) -> dict[str, Any]:
    for event in document["events"]:
        if event["id"] == call.params["comment"] and event["type"] == "comment":
            _check_author(hub, repo, caller, event["author"]["name"])
            found: dict[str, Any] = event
            return found
    raise HubError(404, "This comment does not exist")


def _event(hub: HubState, author: str, kind: str, data: dict[str, Any]) -> dict[str, Any]:
    who = {"name": author, "type": "user"}
    return {"id": secrets.token_hex(12), "type": kind, "author": who, "createdAt": iso(hub.clock()), "data": data}


def _comment(hub: HubState, author: str, text: str) -> dict[str, Any]:
    data = {"edited": False, "hidden": False, "latest": _text(hub, author, text), "history": []}
    return _event(hub, author, "comment", data)


def _text(hub: HubState, author: str, text: str) -> dict[str, Any]:
    return {
        "raw": text,
        "html": f"<p>{html.escape(text)}</p>",
        "updatedAt": iso(hub.clock()),
        "author": {"name": author},
    }


def _files(hub: HubState, tree: str) -> dict[str, str]:
    return {
        node.path: node.entry.oid for node in hub.history.walk(tree, "", recursive=True) if not node.entry.is_directory
    }


def _sides(hub: HubState, repo: Repo, document: Document) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Path -> oid where the pull request began, at its head, and on its base now."""
    start = hub.history.commit(repo, document["changes"]["start"])
    head = hub.revision(repo, f"refs/pr/{document['num']}")
    return (
        _files(hub, start.tree),
        _files(hub, head.tree),
        _files(hub, hub.revision(repo, document["changes"]["base"]).tree),
    )


def _changes(hub: HubState, repo: Repo, document: Document) -> dict[str, str | None]:
    start, head, _ = _sides(hub, repo, document)
    return {path: head.get(path) for path in start | head if start.get(path) != head.get(path)}


def _conflicts(hub: HubState, repo: Repo, document: Document) -> list[str]:
    """The paths that the pull request and its base have both changed, and differently."""
    start, head, base = _sides(hub, repo, document)
    changed = (path for path in start | head if start.get(path) != head.get(path))
    return sorted(path for path in changed if base.get(path) not in (start.get(path), head.get(path)))


def _diff(hub: HubState, repo: Repo, document: Document) -> str:
    start, head, _ = _sides(hub, repo, document)
    out: list[str] = []
    for path in sorted(start | head):
        if start.get(path) == head.get(path):
            continue
        before, after = _lines(hub, start.get(path)), _lines(hub, head.get(path))
        out.append(f"diff --git a/{path} b/{path}\n")
        names = (f"a/{path}" if path in start else "/dev/null", f"b/{path}" if path in head else "/dev/null")
        diff = difflib.unified_diff(before, after, *names)
        out.extend(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in diff)
    return "".join(out)


def _lines(hub: HubState, oid: str | None) -> list[str]:
    if oid is None:
        return []
    content = hub.history.content(oid)
    if content.sha256 is not None or content.size > _DIFFED_BYTES:
        return [f"({content.size} bytes, {content.sha256 or oid})\n"]
    return hub.blobs.read("git", oid).decode("utf-8", "replace").splitlines(keepends=True)


_ONE = "/api/{type}/{repo}/discussions/{num}"
ROUTES = [
    Route(Operation.DISCUSSION, "GET", "/api/{type}/{repo}/discussions", listing),
    Route(Operation.DISCUSSION, "POST", "/api/{type}/{repo}/discussions", create),
    Route(Operation.DISCUSSION, "GET", _ONE, details),
    Route(Operation.DISCUSSION, "POST", _ONE + "/comment", comment),
    Route(Operation.DISCUSSION, "POST", _ONE + "/comment/{comment}/edit", edit_comment),
    Route(Operation.DISCUSSION, "POST", _ONE + "/comment/{comment}/hide", hide_comment),
    Route(Operation.DISCUSSION, "POST", _ONE + "/title", retitle),
    Route(Operation.DISCUSSION, "POST", _ONE + "/status", change_status),
    Route(Operation.DISCUSSION, "POST", _ONE + "/merge", merge),
]
