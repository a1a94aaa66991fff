"""Accounts and repos: whoami, create, delete, move, settings, info, listings, likes, and the metadata check."""

from __future__ import annotations

import re
from typing import Any

from starlette.responses import Response

from hubsync.localhub.api import cards
from hubsync.localhub.call import Call, HubError, Operation, iso, json_response
from hubsync.localhub.routing import Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage import git
from hubsync.localhub.storage.history import Commit
from hubsync.localhub.storage.store import Caller, Repo

_TYPES = ("model", "dataset", "space")
_NAME = re.compile(r"(?!.*--)(?!.*\.\.)[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?\Z")
_DEFAULT_LIST = 100
_SORTS = ("createdAt", "downloads", "lastModified", "likes", "trendingScore")
_EXPANDABLE = {
    "model": (
        "author", "baseModels", "cardData", "childrenModelCount", "config", "createdAt", "disabled", "downloads",
        "downloadsAllTime", "evalResults", "gated", "gguf", "inference", "inferenceProviderMapping", "lastModified",
        "library_name", "likes", "mask_token", "model-index", "pipeline_tag", "private", "resourceGroup", "safetensors",
        "sha", "siblings", "spaces", "tags", "transformersInfo", "trendingScore", "usedStorage", "widgetData",
        "gitalyUid", "xetEnabled",
    ),
    "dataset": (
        "author", "cardData", "citation", "createdAt", "description", "disabled", "downloads", "downloadsAllTime",
        "gated", "lastModified", "likes", "mainSize", "paperswithcode_id", "private", "resourceGroup", "sha",
        "siblings", "tags", "trendingScore", "usedStorage", "gitalyUid", "xetEnabled",
    ),
    "space": (
        "author", "cardData", "createdAt", "datasets", "disabled", "lastModified", "likes", "models", "private",
        "region", "resourceGroup", "runtime", "sdk", "sha", "siblings", "subdomain", "tags", "trendingScore",
        "usedStorage", "gitalyUid", "xetEnabled",
    ),
}  # fmt: skip


def whoami(hub: HubState, call: Call) -> Response:
    caller = hub.authenticated(call)
    body = _account(hub, "user", caller.name) | {
        "email": f"{caller.name}@localhost",
        "emailVerified": True,
        "isPro": False,
        "orgs": [_account(hub, "org", org) for org in hub.store.orgs(caller.name)],
        "auth": {
            "type": "access_token",
            "accessToken": {"displayName": "localhub", "role": caller.role, "createdAt": iso(0)},
        },
    }
    return json_response(body)


def _account(hub: HubState, kind: str, name: str) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": kind, "id": _hex_id(kind, name), "name": name, "email": None}
    shown |= {"fullname": hub.store.fullname(name), "avatarUrl": "/avatars/default.svg"}
    shown |= {"canPay": False, "periodEnd": None}
    if kind == "org":
        shown |= {"roleInOrg": "admin", "isEnterprise": False}
    return shown


def create(hub: HubState, call: Call) -> Response:
    body = call.json()
    repo_type, name = _checked_type(body), _full_name(hub, call, body)
    visibility = body.get("visibility")
    if visibility not in (None, "public", "private", "protected"):
        raise HubError(400, '"visibility" must be one of public, private, protected')
    private = visibility == "private" or bool(body.get("private", hub.store.private_by_default(name.split("/")[0])))
    private = private and visibility != "public"
    extra = {key: body[key] for key in ("sdk", "hardware", "sleepTimeSeconds", "region") if body.get(key) is not None}
    if repo_type == "space" and extra.get("sdk") not in ("gradio", "streamlit", "docker", "static"):
        raise HubError(400, '"sdk" must be one of [gradio, docker, static]')
    with hub.store.transaction():
        existing = hub.store.repo(repo_type, name)
        # A name that only redirects to a moved repo is free to take again.
        if existing is not None and existing.name.lower() == name.lower():
            body = {"url": f"{hub.endpoint}/{existing.web_path}", "name": existing.name}
            raise HubError(409, f"You already created this {repo_type} repo: {existing.name}", body=body)
        repo = hub.store.add_repo(repo_type, name, private, hub.clock(), extra)
        _first_commit(hub, repo)
    return json_response(
        {"url": f"{hub.endpoint}/{repo.web_path}", "name": repo.name, "id": _hex_id("repo", str(repo.id))}
    )


def _first_commit(hub: HubState, repo: Repo) -> None:
    files = {".gitattributes": git.default_gitattributes(repo.type)}
    if repo.type == "space":
        title = repo.name.split("/")[1]
        files["README.md"] = f"---\ntitle: {title}\nsdk: {repo.extra['sdk']}\n---\n".encode()
    changes: dict[str, str | None] = {}
    for path, data in files.items():
        changes[path] = oid = hub.blobs.put_git(data)
        hub.history.add_content(oid, len(data), None)
    tree = hub.history.write_tree(git.EMPTY_TREE, changes)
    commit = hub.history.add_commit(
        repo, tree=tree, parent=None, author=repo.namespace, title="initial commit", message="", now=hub.clock()
    )
    hub.history.set_ref(repo, "refs/heads/main", commit.oid)


def _checked_type(body: dict[str, Any]) -> str:
    repo_type = body.get("type") or "model"
    if repo_type not in _TYPES:
        raise HubError(400, f'"type" must be one of [{", ".join(_TYPES)}]')
    return str(repo_type)


def _check_name(name: str) -> None:
    """Refuse what the Hub does not take as the second half of a repo id."""
    if not isinstance(name, str) or not _NAME.match(name) or name.lower().endswith((".git", ".ipynb")):
        raise HubError(
            400, f'Invalid repo name: "{name}". It must match [A-Za-z0-9._-], 1 to 96 characters, without "--" or ".."'
        )


def _full_name(hub: HubState, call: Call, body: dict[str, Any]) -> str:
    """The repo id in a create or delete request, for which the caller has been checked to hold the namespace."""
    caller = hub.authenticated(call)
    name, namespace = str(body.get("name") or ""), str(body.get("organization") or caller.name)
    if name.count("/") == 1 and not body.get("organization"):
        namespace, name = name.split("/")
    _check_name(name)
    _check_owner(hub, caller, namespace, str(body.get("type") or "model"))
    account = hub.store.account(namespace)
    return f"{account[0] if account else namespace}/{name}"


def _check_owner(hub: HubState, caller: Caller, namespace: str, repo_type: str) -> None:
    if caller.role != "write" or not hub.store.may_write(caller, namespace):
        raise HubError(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}"')


def _admin(hub: HubState, call: Call, repo_type: str, name: str) -> tuple[Repo, Caller]:
    caller = hub.authenticated(call)
    repo = hub.find(caller, repo_type, name)
    if caller.role != "write" or not hub.store.may_write(caller, repo.namespace):
        raise HubError(403, f"You don't have the rights to administer {repo.type} {repo.name}")
    return repo, caller


def delete(hub: HubState, call: Call) -> Response:
    body = call.json()
    caller = hub.authenticated(call)
    name = str(body.get("name") or "")
    full = name if "/" in name else f"{body.get('organization') or caller.name}/{name}"
    repo, _ = _admin(hub, call, _checked_type(body), full)
    hub.store.delete_repo(repo)
    return json_response({"success": True})


def move(hub: HubState, call: Call) -> Response:
    body = call.json()
    source, target = str(body.get("fromRepo") or ""), str(body.get("toRepo") or "")
    namespace, _, name = target.partition("/")
    _check_name(name)
    repo, caller = _admin(hub, call, _checked_type(body), source)
    _check_owner(hub, caller, namespace, repo.type)
    with hub.store.transaction():
        taken = hub.store.repo(repo.type, target)
        if taken is not None and taken.id != repo.id and taken.name.lower() == target.lower():
            raise HubError(409, f"A {repo.type} repository called {target} already exists")
        account = hub.store.account(namespace)
        hub.store.move_repo(repo, f"{account[0] if account else namespace}/{name}")
    return json_response({"success": True, "url": f"{hub.endpoint}/{target}"})


def settings(hub: HubState, call: Call) -> Response:
    body = call.json()
    repo, _ = _admin(hub, call, call.repo_type, call.repo_name)
    gated, visibility = body.get("gated", repo.extra.get("gated", False)), body.get("visibility")
    if gated not in (False, "auto", "manual"):
        raise HubError(400, '"gated" must be one of [false, auto, manual]')
    if visibility not in (None, "public", "private", "protected"):
        raise HubError(400, '"visibility" must be one of [public, private, protected]')
    private = body.get("private") if visibility is None else visibility == "private"
    if private not in (None, True, False):
        raise HubError(400, '"private" must be a boolean')
    hub.store.update_repo(repo, private=private, gated=gated)
    return json_response({"private": repo.private if private is None else private, "gated": gated})


def auth_check(hub: HubState, call: Call) -> Response:
    hub.content_of(call)
    if call.params.get("write"):
        hub.writable(call)
    return json_response({"status": "ok"})


def info(hub: HubState, call: Call) -> Response:
    repo = hub.readable(call)
    commit = hub.revision(repo, call.params.get("rev", "main"))
    body = describe(hub, repo, commit, blobs=call.flag("blobs") or call.flag("files_metadata"))
    if call.flag("securityStatus"):
        body["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    if wanted := _expanded(call):
        body = {key: value for key, value in body.items() if key in ("_id", "id", *wanted)}
    return json_response(body, headers={"X-Repo-Commit": commit.oid})


def _expanded(call: Call) -> list[str]:
    """The only fields that the caller wants, or none where all are."""
    query = call.request.query_params
    wanted = query.getlist("expand") + query.getlist("expand[]")
    for place, name in enumerate(wanted):
        if name not in _EXPANDABLE[call.repo_type]:
            names = "|".join(f'"{known}"' for known in _EXPANDABLE[call.repo_type])
            raise HubError(400, f"✖ Invalid option: expected one of {names}\n  → at expand[{place}]")
    return wanted


def describe(hub: HubState, repo: Repo, commit: Commit, *, blobs: bool = False) -> dict[str, Any]:
    """A repo as the Hub's info endpoint shows it."""
    metadata = cards.metadata(hub, commit)
    likes = hub.store.row("SELECT count(*) FROM liked WHERE repo = ?", repo.id)
    body: dict[str, Any] = {
        "_id": _hex_id("repo", str(repo.id)), "id": repo.name, "author": repo.namespace, "sha": commit.oid,
        "lastModified": iso(commit.created), "createdAt": iso(repo.created), "private": repo.private, "disabled": False,
        "gated": repo.extra.get("gated", False), "likes": likes[0] if likes else 0, "downloads": 0,
        "downloadsAllTime": 0,
        "tags": cards.tags(metadata, repo.type),
        "siblings": siblings(hub, commit, blobs=blobs), "trendingScore": 0,
        "usedStorage": _used_storage(hub, repo),
    }  # fmt: skip
    if metadata:
        body["cardData"] = metadata
    if repo.type == "model":
        body |= {"modelId": repo.name, "spaces": [], "config": {}}
        body |= {key: metadata[key] for key in ("library_name", "pipeline_tag", "model-index") if key in metadata}
    elif repo.type == "space":
        runtime = {"stage": "RUNNING", "hardware": {"current": None, "requested": None}, "storage": None}
        host = repo.name.replace("/", "-").lower()
        body |= {
            "sdk": repo.extra["sdk"],
            "subdomain": host,
            "host": f"http://{host}.localhost",
            "runtime": runtime,
            "models": [],
        }
    else:
        body |= {"description": "", "key": ""}
    return body


def siblings(hub: HubState, commit: Commit, *, blobs: bool) -> list[dict[str, Any]]:
    files = [node for node in hub.history.walk(commit.tree, "", recursive=True) if not node.entry.is_directory]
    if not blobs:
        return [{"rfilename": node.path} for node in files]
    contents = hub.history.contents(node.entry.oid for node in files)
    out: list[dict[str, Any]] = []
    for node in files:
        content = contents[node.entry.oid]
        item: dict[str, Any] = {"rfilename": node.path, "size": content.size, "blobId": content.oid}
        if content.sha256 is not None:
            pointer = len(git.lfs_pointer(content.sha256, content.size))
            item["lfs"] = {"sha256": content.sha256, "size": content.size, "pointerSize": pointer}
        out.append(item)
    return out


def _used_storage(hub: HubState, repo: Repo) -> int:
    sql = "SELECT coalesce(sum(l.size), 0) FROM granted g JOIN large l ON l.sha256 = g.sha256 WHERE g.repo = ?"
    row = hub.store.row(sql, repo.id)
    return int(row[0]) if row else 0


def listing(hub: HubState, call: Call) -> Response:
    """A page of the repos that the caller may see, newest first or as `sort` says; the next one is in `Link`.

    `author`, `search`, `gated` and `filter` (tags, all of which a repo must have) are understood, other filters not.
    """
    caller, query = hub.caller(call), call.request.query_params
    limit, start = call.integer("limit", _DEFAULT_LIST, most=1000), call.integer("cursor", 0, most=10**9)
    wanted, full, sort = _expanded(call), call.flag("full"), query.get("sort", "")
    author, searched = query.get("author", "").lower(), [text.lower() for text in query.getlist("search")]
    gated, tags = query.get("gated", "").lower(), set(query.getlist("filter"))
    if sort not in ("", *_SORTS):
        names = "|".join(f'"{known}"' for known in _SORTS)
        raise HubError(400, f"✖ Invalid option: expected one of {names}\n  → at sort")
    repos = [
        repo
        for repo in hub.store.repos(call.repo_type)
        if (not author or repo.namespace.lower() == author)
        and all(text in repo.name.lower() for text in searched)
        and (not gated or bool(repo.extra.get("gated")) == (gated == "true"))
        and hub.may_read(caller, repo)
    ]
    if tags or sort in ("lastModified", "likes"):  # these alone are not known before a repo is looked into
        found = [describe(hub, repo, hub.revision(repo, "main")) for repo in repos]
        found = [body for body in found if tags <= set(body["tags"])]
        if sort:
            found.sort(key=lambda body: body[sort], reverse=True)
        page = found[start : start + limit]
        more = len(found) > start + limit
    else:
        page = [describe(hub, repo, hub.revision(repo, "main")) for repo in repos[start : start + limit]]
        more = len(repos) > start + limit
    if wanted:
        page = [{key: body[key] for key in ("_id", "id", *wanted) if key in body} for body in page]
    else:
        shown = {
            "siblings": full,
            "cardData": full or call.flag("cardData"),
            "config": call.flag("config"),
            "downloadsAllTime": False,
            "usedStorage": False,
        }
        page = [{key: value for key, value in body.items() if shown.get(key, True)} for body in page]
    return json_response(page, headers=call.next_link(hub.endpoint, "cursor", str(start + limit)) if more else {})


def own_repos(hub: HubState, call: Call) -> Response:
    namespace = call.params.get("namespace") or hub.authenticated(call).name
    out = [
        {
            "id": repo.name, "type": repo.type, "updatedAt": iso(hub.revision(repo, "main").created),
            "visibility": "private" if repo.private else "public", "storage": _used_storage(hub, repo),
            "storagePercent": 0.0,
        }
        for repo_type in _TYPES
        for repo in hub.store.repos(repo_type)
        if repo.namespace.lower() == namespace.lower() and hub.may_read(hub.caller(call), repo)
    ]  # fmt: skip
    return json_response(out)


def like(hub: HubState, call: Call) -> Response:
    repo, caller = hub.readable(call), hub.authenticated(call)
    if call.request.method == "DELETE":
        hub.store.write("DELETE FROM liked WHERE account = ? AND repo = ?", caller.name, repo.id)
    else:
        hub.store.write("INSERT OR IGNORE INTO liked VALUES (?, ?, ?)", caller.name, repo.id, hub.clock())
    return json_response("OK")


def likers(hub: HubState, call: Call) -> Response:
    rows = hub.store.rows("SELECT account FROM liked WHERE repo = ? ORDER BY at", hub.readable(call).id)
    return json_response([{"user": row[0], "fullname": row[0], "avatarUrl": "/avatars/default.svg"} for row in rows])


def likes_of(hub: HubState, call: Call) -> Response:
    sql = "SELECT l.at, l.repo FROM liked l WHERE l.account = ? ORDER BY l.at DESC"
    out: list[dict[str, Any]] = []
    for at, repo_id in hub.store.rows(sql, call.params["account"]):
        repo = hub.store.repo_by_id(repo_id)
        if repo is not None and hub.may_read(hub.caller(call), repo):
            out.append({"createdAt": iso(at), "repo": {"name": repo.name, "type": repo.type}})
    return json_response(out)


def validate_yaml(hub: HubState, call: Call) -> Response:
    body = call.json()
    errors, warnings = cards.problems(str(body.get("content") or ""), str(body.get("repoType") or "model"))
    status = 400 if errors else 200
    if call.request.headers.get("accept", "").startswith("text/plain"):  # so asks `RepoCard.validate`
        lines = [f"- Error: {text}" for text in errors] + [f"- Warning: {text}" for text in warnings]
        return Response("\n".join(lines), status, media_type="text/plain")
    answer = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return json_response(answer, status=status)


def _hex_id(kind: str, name: str) -> str:
    """A stable 24-digit id, shaped like the Hub's."""
    return git.object_oid(kind, name.encode())[:24]


ROUTES = [
    Route(Operation.WHOAMI, "GET", "/api/whoami-v2", whoami),
    Route(Operation.REPO_CREATE, "POST", "/api/repos/create", create),
    Route(Operation.REPO_DELETE, "DELETE", "/api/repos/delete", delete),
    Route(Operation.REPO_MOVE, "POST", "/api/repos/move", move),
    Route(Operation.VALIDATE_YAML, "POST", "/api/validate-yaml", validate_yaml),
    Route(Operation.REPO_SETTINGS, "PUT", "/api/{type}/{repo}/settings", settings),
    Route(Operation.AUTH_CHECK, "GET", "/api/{type}/{repo}/auth-check", auth_check),
    Route(Operation.AUTH_CHECK, "GET", "/api/{type}/{repo}/auth-check/{write}", auth_check),
    Route(Operation.LIKE, "POST", "/api/{type}/{repo}/like", like),
    Route(Operation.LIKE, "DELETE", "/api/{type}/{repo}/like", like),
    Route(Operation.LIKE, "GET", "/api/{type}/{repo}/likers", likers),
    Route(Operation.LIKE, "GET", "/api/users/{account}/likes", likes_of),
    Route(Operation.REPO_LIST, "GET", "/api/settings/repositories", own_repos),
    Route(Operation.REPO_LIST, "GET", "/api/organizations/{namespace}/settings/repositories", own_repos),
    Route(Operation.REPO_LIST, "GET", "/api/{type}", listing),
    Route(Operation.REPO_INFO, "GET", "/api/{type}/{repo}/revision/{rev}", info),
    Route(Operation.REPO_INFO, "GET", "/api/{type}/{repo}", info),
]
