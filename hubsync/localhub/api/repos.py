"""Accounts and repos: whoami, create, delete, move, settings, info, listings, and the check of a card's metadata."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from typing import Any, get_args

from starlette.responses import Response

from hubsync.localhub.api import cards
from hubsync.localhub.protocol import HubError, Operation, iso, json_response
from hubsync.localhub.routing import Call, Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage import git
from hubsync.localhub.storage.history import Commit
from hubsync.localhub.storage.store import Caller, Repo

_TYPES = ("model", "dataset", "space")
_VISIBILITIES = ("public", "private", "protected")
_NAME = re.compile(r"(?!.*--)(?!.*\.\.)[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?\Z")
_DEFAULT_LIST = 100
_SORTS = ("createdAt", "downloads", "lastModified", "likes", "trendingScore")


def whoami(hub: HubState, call: Call) -> Response:
    """Describe the token and its owner."""
    caller = call.user
    token = {"displayName": "localhub", "role": caller.role, "createdAt": iso(0)}
    body = _account(hub, "user", caller.name) | {
        "email": f"{caller.name}@localhost", "emailVerified": True, "isPro": False,
        "orgs": [
            _account(hub, "org", org) | {"roleInOrg": "admin", "isEnterprise": False}
            for org in hub.store.orgs(caller.name)
        ],
        "auth": {"type": "access_token", "accessToken": token},
    }  # fmt: skip
    return json_response(body)


def _account(hub: HubState, kind: str, name: str) -> dict[str, Any]:
    return {
        "type": kind, "id": _hex_id(kind, name), "name": name, "email": None,
        "fullname": hub.store.account(name).fullname, "avatarUrl": "/avatars/default.svg",
        "canPay": False, "periodEnd": None,
    }  # fmt: skip


# Create, delete, move, change


def create(hub: HubState, call: Call) -> Response:
    """Create a repo with its first commit."""
    body, caller = call.json(), call.user
    repo_type, (namespace, name) = _checked_type(body), _full_name(body, caller)
    name = _new_name(hub, caller, namespace, name, repo_type)
    visibility = _checked_visibility(body, "public, private, protected")
    private = visibility == "private" or bool(body.get("private", hub.store.account(namespace).private))
    private = private and visibility != "public"
    extra = {key: body[key] for key in ("sdk", "hardware", "sleepTimeSeconds", "region") if body.get(key) is not None}
    if repo_type == "space" and extra.get("sdk") not in ("gradio", "streamlit", "docker", "static"):
        raise HubError(400, '"sdk" must be one of [gradio, docker, static]')
    with hub.store.transaction():
        existing = _existing(hub, repo_type, name)
        if existing is not None:
            body = {"url": f"{hub.endpoint}/{existing.web_path}", "name": existing.name}
            raise HubError(409, f"You already created this {repo_type} repo: {existing.name}", body=body)
        repo = hub.store.add_repo(repo_type, name, private, hub.clock(), extra)
        _first_commit(hub, repo)
    url = f"{hub.endpoint}/{repo.web_path}"
    return json_response({"url": url, "name": repo.name, "id": _hex_id("repo", str(repo.id))})


def _first_commit(hub: HubState, repo: Repo) -> None:
    files = {".gitattributes": git.default_gitattributes(repo.type)}
    if repo.type == "space":
        title = repo.name.split("/")[1]
        files["README.md"] = f"---\ntitle: {title}\nsdk: {repo.extra['sdk']}\n---\n".encode()
    changes: dict[str, str | None] = {}
    for path, data in files.items():
        changes[path] = oid = hub.blobs.add_git(data)
        hub.history.add_content(oid, len(data), None)
    tree = hub.history.write_tree(git.EMPTY_TREE, changes)
    commit = hub.history.add_commit(repo, tree, None, repo.namespace, "initial commit")
    hub.history.set_ref(repo, "refs/heads/main", commit.oid)


def delete(hub: HubState, call: Call) -> Response:
    """Delete a repo."""
    body = call.json()
    hub.store.delete_repo(_administered(call, _checked_type(body), "/".join(_full_name(body, call.user))))
    return json_response({"success": True})


def move(hub: HubState, call: Call) -> Response:
    """Rename a repo, within a namespace or to another one."""
    body = call.json()
    target = str(body.get("toRepo") or "")
    namespace, _, name = target.partition("/")
    _check_name(name)
    repo = _administered(call, _checked_type(body), str(body.get("fromRepo") or ""))
    full = _new_name(hub, call.user, namespace, name, repo.type)
    with hub.store.transaction():
        existing = _existing(hub, repo.type, target)
        if existing is not None and existing.id != repo.id:
            raise HubError(409, f"A {repo.type} repository called {target} already exists")
        hub.store.move_repo(repo, full)
    return json_response({"success": True, "url": f"{hub.endpoint}/{target}"})


def settings(hub: HubState, call: Call) -> Response:
    """Change a repo's visibility, or who may read its files."""
    body = call.json()
    repo = _administered(call, call.repo_type, call.params["repo"])
    gated = body.get("gated", repo.extra.get("gated", False))
    if gated not in (False, "auto", "manual"):
        raise HubError(400, '"gated" must be one of [false, auto, manual]')
    visibility = _checked_visibility(body, "[public, private, protected]")
    private = body.get("private") if visibility is None else visibility == "private"
    if private not in (None, True, False):
        raise HubError(400, '"private" must be a boolean')
    private = repo.private if private is None else bool(private)
    hub.store.update_repo(repo, private=private, gated=gated)
    return json_response({"private": private, "gated": gated})


def auth_check(hub: HubState, call: Call) -> Response:
    """Confirm that the caller may read a repo's files, or write to it."""
    call.downloadable()
    if call.params.get("write"):
        call.writable()
    return json_response({"status": "ok"})


def _full_name(body: dict[str, Any], caller: Caller) -> tuple[str, str]:
    """Return the namespace and the name of a repo that a body names, in either of two ways."""
    name, namespace = str(body.get("name") or ""), body.get("organization")
    if name.count("/") == 1 and not namespace:
        namespace, name = name.split("/")
    return str(namespace or caller.name), name


def _checked_type(body: dict[str, Any]) -> str:
    repo_type = body.get("type") or "model"
    if repo_type not in _TYPES:
        raise HubError(400, f'"type" must be one of [{", ".join(_TYPES)}]')
    return str(repo_type)


def _checked_visibility(body: dict[str, Any], shown: str) -> object:
    visibility = body.get("visibility")
    if visibility not in (None, *_VISIBILITIES):
        raise HubError(400, f'"visibility" must be one of {shown}')
    return visibility


def _check_name(name: str) -> None:
    if not _NAME.match(name) or name.lower().endswith((".git", ".ipynb")):
        raise HubError(
            400, f'Invalid repo name: "{name}". It must match [A-Za-z0-9._-], 1 to 96 characters, without "--" or ".."'
        )


def _new_name(hub: HubState, caller: Caller, namespace: str, name: str, repo_type: str) -> str:
    """Return the full name of a repo that the caller may create."""
    _check_name(name)
    if caller.role != "write" or not hub.store.owns(caller, namespace):
        raise HubError(403, f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}"')
    return f"{hub.store.account(namespace).name}/{name}"


def _existing(hub: HubState, repo_type: str, name: str) -> Repo | None:
    """Return the repo of this name; a name that only leads to a moved repo is free."""
    repo = hub.store.repo(repo_type, name)
    return repo if repo is not None and repo.name.lower() == name.lower() else None


def _administered(call: Call, repo_type: str, name: str) -> Repo:
    """Return a repo that the caller may administer."""
    role = call.user.role
    repo = call.find_repo(repo_type, name)
    if role != "write" or not call.owns(repo):
        raise HubError(403, f"You don't have the rights to administer {repo.type} {repo.name}")
    return repo


# Info and listings


def info(hub: HubState, call: Call) -> Response:
    """Describe a repo at a revision."""
    body = _described(hub, call.repo, call.commit, blobs=call.flag("blobs") or call.flag("files_metadata"))
    if call.flag("securityStatus"):
        body["securityRepoStatus"] = {"scansDone": True, "filesWithIssues": []}
    if expanded := _expanded(call):
        body = {key: value for key, value in body.items() if key in ("_id", "id", *expanded)}
    return json_response(body, headers={"X-Repo-Commit": call.commit.oid})


def listing(hub: HubState, call: Call) -> Response:
    """List a page of the repos that the caller may see, newest first or in the order of `sort`.

    Of the Hub's filters, `author`, `search`, `gated` and `filter` (tags, all of which a repo must have) are supported.
    """
    query = call.request.query_params
    limit, start = call.integer("limit", _DEFAULT_LIST, most=1000), call.integer("cursor", 0, most=10**9)
    expanded, full, sort = _expanded(call), call.flag("full"), query.get("sort", "")
    if sort not in ("", *_SORTS):
        raise _invalid_option(_SORTS, "sort")
    author, gated = query.get("author", "").lower(), query.get("gated", "").lower()
    words, tags = [text.lower() for text in query.getlist("search")], set(query.getlist("filter"))
    repos = [
        repo
        for repo in hub.store.repos(call.repo_type)
        if (not author or repo.namespace.lower() == author)
        and all(word in repo.name.lower() for word in words)
        and (not gated or bool(repo.extra.get("gated")) == (gated == "true"))
        and call.may_read(repo)
    ]
    if sort == "lastModified":
        repos.sort(key=lambda repo: hub.revision(repo, "main").created, reverse=True)
    bodies = (_described(hub, repo, hub.revision(repo, "main")) for repo in repos)
    page = list(itertools.islice((body for body in bodies if tags <= set(body["tags"])), start, start + limit + 1))
    headers = call.next_link("cursor", str(start + limit)) if len(page) > limit else {}
    if expanded:
        page = [{key: body[key] for key in ("_id", "id", *expanded) if key in body} for body in page]
    else:
        shown = {"siblings": full, "cardData": full or call.flag("cardData"), "config": call.flag("config")}
        shown |= {"downloadsAllTime": False, "usedStorage": False}
        page = [{key: value for key, value in body.items() if shown.get(key, True)} for body in page]
    return json_response(page[:limit], headers=headers)


def _expanded(call: Call) -> list[str]:
    """Return the only fields that the caller wants, of those that huggingface_hub knows; empty for all."""
    wanted = call.request.query_params.getlist("expand") + call.request.query_params.getlist("expand[]")
    if wanted:
        from huggingface_hub import hf_api

        known = (*get_args(getattr(hf_api, f"Expand{call.repo_type.title()}Property_T")), "gitalyUid", "xetEnabled")
        for place, name in enumerate(wanted):
            if name not in known:
                raise _invalid_option(known, f"expand[{place}]")
    return wanted


def _invalid_option(known: Iterable[str], place: str) -> HubError:
    names = "|".join(f'"{name}"' for name in known)
    return HubError(400, f"✖ Invalid option: expected one of {names}\n  → at {place}")


def _described(hub: HubState, repo: Repo, commit: Commit, *, blobs: bool = False) -> dict[str, Any]:
    metadata = cards.metadata(hub.text(hub.history.file(commit.tree, "README.md")))
    body: dict[str, Any] = {
        "_id": _hex_id("repo", str(repo.id)), "id": repo.name, "author": repo.namespace, "sha": commit.oid,
        "lastModified": iso(commit.created), "createdAt": iso(repo.created), "private": repo.private, "disabled": False,
        "gated": repo.extra.get("gated", False), "likes": 0, "downloads": 0, "downloadsAllTime": 0,
        "tags": cards.tags(metadata, repo.type), "siblings": _siblings(hub, commit, blobs=blobs), "trendingScore": 0,
        "usedStorage": hub.store.used_bytes(repo),
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
            "sdk": repo.extra["sdk"], "subdomain": host, "host": f"http://{host}.localhost", "runtime": runtime,
            "models": [],
        }  # fmt: skip
    else:
        body |= {"description": "", "key": ""}
    return body


def _siblings(hub: HubState, commit: Commit, *, blobs: bool) -> list[dict[str, Any]]:
    shown: list[dict[str, Any]] = []
    for path, content in hub.history.files(commit.tree).items():
        item: dict[str, Any] = {"rfilename": path}
        if blobs:
            item |= {"size": content.size, "blobId": content.oid}
        if blobs and content.sha256 is not None:
            pointer_size = len(git.lfs_pointer(content.sha256, content.size))
            item["lfs"] = {"sha256": content.sha256, "size": content.size, "pointerSize": pointer_size}
        shown.append(item)
    return shown


def validate_yaml(hub: HubState, call: Call) -> Response:
    """Check a card's metadata, as a commit of it would."""
    body = call.json()
    errors, warnings = cards.problems(str(body.get("content") or ""), str(body.get("repoType") or "model"))
    status = 400 if errors else 200
    if call.request.headers.get("accept", "").startswith("text/plain"):  # `RepoCard.validate` asks for that
        lines = [f"- Error: {text}" for text in errors] + [f"- Warning: {text}" for text in warnings]
        return Response("\n".join(lines), status, media_type="text/plain")
    found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return json_response(found, status=status)


def _hex_id(kind: str, name: str) -> str:
    """Return a stable id of 24 digits, like the Hub's."""
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
    Route(Operation.REPO_LIST, "GET", "/api/{type}", listing),
    Route(Operation.REPO_INFO, "GET", "/api/{type}/{repo}/revision/{rev}", info),
    Route(Operation.REPO_INFO, "GET", "/api/{type}/{repo}", info),
]
