"""Branches, tags, the commit log, and the super-squash of a branch."""

from __future__ import annotations

import html
import itertools
import re
from typing import Any

from starlette.responses import Response

from hubsync.localhub.call import Call, HubError, Operation, iso, json_response
from hubsync.localhub.routing import Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage import git
from hubsync.localhub.storage.history import Commit

_BAD_REF = re.compile(r"[\x00-\x20~^:?*\[\\\x7f]|\.\.|@\{|//|/\.|^[./-]|[./]$|\.lock$")


def refs(hub: HubState, call: Call) -> Response:
    """List branches, tags and, with `include_prs`, pull requests."""
    repo = hub.readable(call)

    def listed(prefix: str) -> list[dict[str, str]]:
        found = hub.history.refs(repo, prefix)
        return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in found.items()]

    body = {"branches": listed("refs/heads/"), "converts": listed("refs/convert/"), "tags": listed("refs/tags/")}
    if call.flag("include_prs"):
        body["pullRequests"] = listed("refs/pr/")
    return json_response(body)


def commits(hub: HubState, call: Call) -> Response:
    """List a page of a revision's commits, newest first."""
    repo = hub.readable(call)
    head = hub.revision(repo, call.params["rev"])
    page = call.integer("p", 1, most=10**6) if "p" in call.request.query_params else 0
    limit = call.integer("limit", 50, most=100)
    formatted = "formatted" in call.request.query_params.getlist("expand[]")
    log = hub.history.log(repo, head.oid)
    shown = [_shown(commit, formatted) for commit in itertools.islice(log, page * limit, (page + 1) * limit)]
    total = sum(1 for _ in hub.history.log(repo, head.oid))
    headers = {"X-Total-Count": str(total)}
    if total > (page + 1) * limit:
        headers |= call.next_link(hub.endpoint, "p", str(page + 1))
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


def create_branch(hub: HubState, call: Call) -> Response:
    """Create a branch at `startingPoint`, or an empty one."""
    repo, _ = hub.writable(call)
    name = _checked(call.params["name"])
    body = call.json()
    with hub.store.transaction():
        if hub.history.ref(repo, f"refs/heads/{name}"):
            raise HubError(409, f"Reference refs/heads/{name} already exists")
        commit = hub.revision(repo, str(body.get("startingPoint") or "main"))
        if body.get("emptyBranch"):
            commit = hub.history.add_commit(repo, git.EMPTY_TREE, None, repo.namespace, "initial commit")
        hub.history.set_ref(repo, f"refs/heads/{name}", commit.oid)
    return json_response({"success": True})


def delete_branch(hub: HubState, call: Call) -> Response:
    """Delete any branch but main."""
    repo, _ = hub.writable(call)
    name = call.params["name"]
    if name == "main":
        raise HubError(403, "Cannot delete refs/heads/main")
    full = name if name.startswith("refs/") else f"refs/heads/{name}"
    if not hub.history.delete_ref(repo, full):
        raise HubError(404, f"Invalid rev id: {full}", code="RevisionNotFound")
    return json_response({"success": True})


def create_tag(hub: HubState, call: Call) -> Response:
    """Create a tag at a revision."""
    repo, _ = hub.writable(call)
    tag = call.json().get("tag")
    if not isinstance(tag, str):
        raise HubError(400, '"tag" is required')
    with hub.store.transaction():
        commit = hub.revision(repo, call.params["rev"])
        full = f"refs/tags/{_checked(tag)}"
        if hub.history.ref(repo, full):
            raise HubError(409, f"Tag reference {full} already exists")
        hub.history.set_ref(repo, full, commit.oid)
    return json_response({"success": True})


def delete_tag(hub: HubState, call: Call) -> Response:
    """Delete a tag."""
    repo, _ = hub.writable(call)
    if not hub.history.delete_ref(repo, f"refs/tags/{call.params['name']}"):
        raise HubError(404, f"Tag not found: {call.params['name']}", code="RevisionNotFound")
    return json_response({"success": True})


def squash(hub: HubState, call: Call) -> Response:
    """Replace a branch's commits by one with the same files."""
    repo, caller = hub.writable(call)
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


def _checked(name: str) -> str:
    if not name or _BAD_REF.search(name) or len(name) > 200:
        raise HubError(400, f"Invalid reference name: {name!r}")
    return name


ROUTES = [
    Route(Operation.REFS, "GET", "/api/{type}/{repo}/refs", refs),
    Route(Operation.COMMITS, "GET", "/api/{type}/{repo}/commits/{rev}", commits),
    Route(Operation.REF_WRITE, "POST", "/api/{type}/{repo}/branch/{name}", create_branch),
    Route(Operation.REF_WRITE, "DELETE", "/api/{type}/{repo}/branch/{name}", delete_branch),
    Route(Operation.REF_WRITE, "POST", "/api/{type}/{repo}/tag/{rev}", create_tag),
    Route(Operation.REF_WRITE, "DELETE", "/api/{type}/{repo}/tag/{name}", delete_tag),
    Route(Operation.SQUASH, "POST", "/api/{type}/{repo}/super-squash/{rev}", squash),
]
