"""Branches, tags, the commit log, and the super-squash of a branch."""

from __future__ import annotations

import html
import re
from typing import Any

from starlette.responses import Response

from hubsync.localhub.protocol import HubError, Operation, iso, json_response
from hubsync.localhub.routing import Call, Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage import git
from hubsync.localhub.storage.history import Commit

_BAD_REF = re.compile(r"[\x00-\x20~^:?*\[\\\x7f]|\.\.|@\{|//|/\.|^[./-]|[./]$|\.lock$")


def refs(hub: HubState, call: Call) -> Response:
    """List branches, tags and, with `include_prs`, pull requests."""
    kinds = {"branches": "refs/heads/", "converts": "refs/convert/", "tags": "refs/tags/"}
    if call.flag("include_prs"):
        kinds["pullRequests"] = "refs/pr/"
    body = {
        kind: [
            {"name": name, "ref": prefix + name, "targetCommit": oid}
            for name, oid in hub.history.refs(call.repo, prefix).items()
        ]
        for kind, prefix in kinds.items()
    }
    return json_response(body)


def commits(hub: HubState, call: Call) -> Response:
    """List a page of a revision's commits, newest first."""
    page = call.integer("p", 1, most=10**6) if "p" in call.request.query_params else 0
    limit = call.integer("limit", 50, most=100)
    formatted = "formatted" in call.request.query_params.getlist("expand[]")
    log = list(hub.history.log(call.repo, call.commit.oid))
    headers = {"X-Total-Count": str(len(log))}
    if len(log) > (page + 1) * limit:
        headers |= call.next_link("p", str(page + 1))
    shown = [_shown(commit, formatted) for commit in log[page * limit : (page + 1) * limit]]
    return json_response(shown, headers=headers)


def _shown(commit: Commit, formatted: bool) -> dict[str, Any]:
    item: dict[str, Any] = {
        "id": commit.oid, "title": commit.title, "message": commit.message,
        "authors": [{"user": commit.author, "avatar": "/avatars/default.svg"}], "date": iso(commit.created),
    }  # fmt: skip
    if formatted:
        title, message = html.escape(commit.title), html.escape(commit.message)
        item["formatted"] = {"title": title, "message": f"<p>{message}</p>" if message else ""}
    return item


def create(hub: HubState, call: Call) -> Response:
    """Create a tag at a revision, or a branch at `startingPoint` or without files."""
    repo, _ = call.writable()
    body = call.json()
    is_tag = "rev" in call.params
    name = body.get("tag") if is_tag else call.params["name"]
    full = f"refs/tags/{name}" if is_tag else f"refs/heads/{name}"
    with hub.store.transaction():
        start = hub.revision(repo, call.params["rev"] if is_tag else str(body.get("startingPoint") or "main"))
        if not isinstance(name, str) or not name or _BAD_REF.search(name) or len(name) > 200:
            raise HubError(400, f"Invalid reference name: {name!r}")
        if hub.history.ref(repo, full):
            raise HubError(409, f"Reference {full} already exists")
        if body.get("emptyBranch") and not is_tag:
            start = hub.history.add_commit(repo, git.EMPTY_TREE, None, repo.namespace, "initial commit")
        hub.history.set_ref(repo, full, start.oid)
    return json_response({"success": True})


def delete(hub: HubState, call: Call) -> Response:
    """Delete a tag, or any branch but main."""
    repo, _ = call.writable()
    name, is_tag = call.params["name"], call.params["kind"] == "tag"
    if name == "main" and not is_tag:
        raise HubError(403, "Cannot delete refs/heads/main")
    full = f"refs/tags/{name}" if is_tag else name if name.startswith("refs/") else f"refs/heads/{name}"
    if not hub.history.delete_ref(repo, full):
        raise HubError(404, f"Invalid rev id: {full}", code="RevisionNotFound")
    return json_response({"success": True})


def squash(hub: HubState, call: Call) -> Response:
    """Replace a branch's commits by one with the same files."""
    repo, caller = call.writable()
    branch = call.params["rev"]
    title = str(call.json().get("message") or f"Super-squash branch '{branch}'")
    with hub.store.transaction():
        head = hub.revision(repo, branch)
        ref = hub.history.branch(repo, branch)
        if ref is None:
            raise HubError(400, f"{branch} is not a branch", code="RevisionNotFound")
        commit = hub.history.add_commit(repo, head.tree, None, caller.name, title)
        hub.history.set_ref(repo, ref, commit.oid)
        hub.history.delete_unreachable(repo, head.oid)
    return json_response({"success": True, "commitOid": commit.oid})


ROUTES = [
    Route(Operation.REFS, "GET", "/api/{type}/{repo}/refs", refs),
    Route(Operation.COMMITS, "GET", "/api/{type}/{repo}/commits/{rev}", commits),
    Route(Operation.REF_WRITE, "POST", "/api/{type}/{repo}/branch/{name}", create),
    Route(Operation.REF_WRITE, "POST", "/api/{type}/{repo}/tag/{rev}", create),
    Route(Operation.REF_WRITE, "DELETE", "/api/{type}/{repo}/(?P<kind>branch|tag)/{name}", delete),
    Route(Operation.SQUASH, "POST", "/api/{type}/{repo}/super-squash/{rev}", squash),
]
