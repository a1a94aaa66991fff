"""Reading: trees, paths, and the bytes of files.

`resolve` redirects small files of public repos (307) to the address of their commit, as the Hub does with its cache,
and large ones (302) to a signed address. That one serves ranges, whether the object is a blob or a Xet file. Both the
redirect and its target have the metadata headers: a client follows a redirect on the same host and reads the headers
of the last response.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.responses import Response

from hubsync.localhub.protocol import HubError, Operation, iso, json_response
from hubsync.localhub.routing import Call, Route, ranged
from hubsync.localhub.state import HubState
from hubsync.localhub.storage import git
from hubsync.localhub.storage.history import Content, Node
from hubsync.localhub.storage.store import Repo

_EXPANDED_PAGE = 50
_URL_TTL_S = 3600.0
_TEXT = "text/plain; charset=utf-8"


# Trees and paths


def tree(hub: HubState, call: Call) -> Response:
    """List a page of a folder."""
    call.downloadable()
    commit, expand, most = call.commit, call.flag("expand"), hub.limits.page_entries
    path = call.params.get("path", "").strip("/")
    entry = hub.history.entry(commit.tree, path)
    if entry is None or not entry.is_directory:
        raise HubError(404, f'{path} does not exist on "{call.params["rev"]}"', code="EntryNotFound")
    most = min(2 * _EXPANDED_PAGE, most) if expand else most
    limit = call.integer("limit", min(_EXPANDED_PAGE, most) if expand else most, most=most)
    cursor = call.request.query_params.get("cursor", "")
    page: list[Node] = []
    headers: dict[str, str] = {}
    for node in hub.history.walk(entry.oid, f"{path}/" if path else "", recursive=call.flag("recursive")):
        # The order of a commit's tree is fixed, so the last path of a page marks where the next one begins.
        if cursor:
            cursor = "" if node.path == cursor else cursor
        elif len(page) == limit:
            headers = call.next_link("cursor", page[-1].path)
            break
        else:
            page.append(node)
    return _described(hub, call, page, expand=expand, headers=headers)


def paths_info(hub: HubState, call: Call) -> Response:
    """Describe those of the requested paths that exist; they are in a form (huggingface_hub sends one) or in JSON."""
    call.downloadable()
    if call.request.headers.get("content-type", "").startswith("application/json"):
        body = call.json()
        paths, expand = body.get("paths"), body.get("expand") is True
    else:
        form = parse_qs(call.body.decode("utf-8", "replace"), keep_blank_values=True)
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("true", "1")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise HubError(400, '"paths" must be an array of strings')
    if len(paths) > hub.limits.requested_paths:
        raise HubError(413, "too many parameters")
    wanted = [path for path in dict.fromkeys(path.strip("/") for path in paths) if path]
    entries = ((path, hub.history.entry(call.commit.tree, path)) for path in wanted)
    return _described(hub, call, [Node(path, entry) for path, entry in entries if entry is not None], expand=expand)


def _described(
    hub: HubState, call: Call, nodes: list[Node], *, expand: bool, headers: dict[str, str] | None = None
) -> Response:
    contents = hub.history.contents(node.entry.oid for node in nodes if not node.entry.is_directory)
    changes = hub.history.last_changes(call.repo, call.commit.oid, [node.path for node in nodes]) if expand else {}
    shown: list[dict[str, Any]] = []
    for node in nodes:
        if node.entry.is_directory:
            item: dict[str, Any] = {"type": "directory", "oid": node.entry.oid, "size": 0, "path": node.path}
        else:
            content = contents[node.entry.oid]
            item = {"type": "file", "oid": content.oid, "size": content.size, "path": node.path}
            if content.sha256 is not None:
                pointer_size = len(git.lfs_pointer(content.sha256, content.size))
                item["lfs"] = {"oid": content.sha256, "size": content.size, "pointerSize": pointer_size}
                large = hub.store.large(content.sha256)
                if large is not None and large.xet_hash is not None:
                    item["xetHash"] = large.xet_hash
            if expand:
                item["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
        if expand:
            last = changes[node.path]
            item["lastCommit"] = {"id": last.oid, "title": last.title, "date": iso(last.created)}
        shown.append(item)
    return json_response(shown, headers={"X-Repo-Commit": call.commit.oid, **(headers or {})})


# The bytes of a file


def resolve(hub: HubState, call: Call) -> Response:
    """Serve a file, or redirect to it."""
    repo, content = _requested_file(hub, call)
    commit, path = call.commit, call.params["path"]
    if content.sha256 is None:
        # The real Hub redirects to its cache for these, and serves all other regular files itself.
        if repo.private or repo.extra.get("gated") or "/" not in call.params["repo"] or not content.size:
            return _regular(hub, call, content)
        query = urlencode({call.request.url.path: "", "etag": f'"{content.oid}"'})
        location = f"/api/resolve-cache/{repo.type}s/{repo.name}/{commit.oid}/{quote(path)}?{query}"
        headers = _file_headers(commit.oid, path, content.oid) | {"Location": location, "Vary": "Origin, Accept"}
        return Response(f"Temporary Redirect. Redirecting to {location}", 307, headers, _TEXT)
    claims = {"sha256": content.sha256, "repo": repo.id, "commit": commit.oid, "exp": hub.clock() + _URL_TTL_S}
    location = f"{hub.endpoint}/_localhub/blob/{hub.sign(claims)}/{quote(path.rsplit('/', 1)[-1], safe='')}"
    headers = _file_headers(commit.oid, path) | _linked(hub, repo, commit.oid, content)
    headers |= {"Location": location, "Vary": "Origin, Accept"}
    return Response(f"Found. Redirecting to {location}", 302, headers)


def cached(hub: HubState, call: Call) -> Response:
    """Serve a small file of a public repo, to which `resolve` redirects; large files are not here."""
    _, content = _requested_file(hub, call)
    if content.sha256 is not None:
        raise HubError(404, "Entry not found", code="EntryNotFound")
    return _regular(hub, call, content)


def raw(hub: HubState, call: Call) -> Response:
    """Serve the git blob at a path: of a large file, its pointer."""
    _, content = _requested_file(hub, call)
    if content.sha256 is None:
        return _regular(hub, call, content)
    pointer = git.lfs_pointer(content.sha256, content.size)
    headers = _file_headers(call.commit.oid, call.params["path"], content.oid)
    return ranged(call, len(pointer), headers, lambda start, end: iter([pointer[start:end]]), _TEXT)


def _requested_file(hub: HubState, call: Call) -> tuple[Repo, Content]:
    repo = call.downloadable()
    content = hub.history.file(call.commit.tree, call.params["path"])
    if content is None:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": call.commit.oid})
    return repo, content


def _regular(hub: HubState, call: Call, content: Content) -> Response:
    def pieces(start: int, end: int) -> Iterator[bytes]:
        return hub.blobs.stream("git", content.oid, start, end)

    headers = _file_headers(call.commit.oid, call.params["path"], content.oid)
    return ranged(call, content.size, headers, pieces, _TEXT)


def blob(hub: HubState, call: Call) -> Response:
    """Serve the bytes of a large object, at the signed address to which `resolve` redirects."""
    claims = hub.verify_address(call.params["claims"], "sha256")
    sha256 = str(claims["sha256"])
    large, repo = hub.store.large(sha256), hub.store.repo_by_id(int(claims["repo"]))
    if large is None or repo is None:
        raise HubError(404, "Not Found", code="EntryNotFound")
    commit = str(claims["commit"])
    headers = _file_headers(commit, call.params["name"], sha256)
    headers |= _linked(hub, repo, commit, Content("", large.size, sha256))

    def pieces(start: int, end: int) -> Iterator[bytes]:
        if large.is_blob:
            return hub.blobs.stream("lfs", sha256, start, end)
        return hub.cas.read(str(large.xet_hash), start, end)

    return ranged(call, large.size, headers, pieces, "application/octet-stream")


def _file_headers(commit_oid: str, path: str, etag: str | None = None) -> dict[str, str]:
    name = path.rsplit("/", 1)[-1]
    ascii_name = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    disposition = f"inline; filename*=UTF-8''{quote(name, safe='')}; filename=\"{ascii_name}\""
    headers = {"X-Repo-Commit": commit_oid, "Accept-Ranges": "bytes", "Content-Disposition": disposition}
    return headers if etag is None else headers | {"ETag": f'"{etag}"'}


def _linked(hub: HubState, repo: Repo, commit_oid: str, content: Content) -> dict[str, str]:
    """Return the headers on the large object behind a path and, if Xet has it, on how to download it from there."""
    headers = {"X-Linked-Size": str(content.size), "X-Linked-ETag": f'"{content.sha256}"'}
    large = hub.store.large(str(content.sha256))
    if large is not None and large.xet_hash is not None:
        route = f"{hub.endpoint}/api/{repo.type}s/{repo.name}/xet-read-token/{commit_oid}"
        reconstruction = f"{hub.cas_url}/v1/reconstructions/{large.xet_hash}"
        headers["X-Xet-Hash"] = large.xet_hash
        headers["Link"] = f'<{route}>; rel="xet-auth", <{reconstruction}>; rel="xet-reconstruction-info"'
    return headers


ROUTES = [
    Route(Operation.TREE, "GET", "/api/{type}/{repo}/tree/{rev}", tree),
    Route(Operation.TREE, "GET", "/api/{type}/{repo}/tree/{rev}/{path}", tree),
    Route(Operation.PATHS_INFO, "POST", "/api/{type}/{repo}/paths-info/{rev}", paths_info),
    Route(Operation.BLOB, "GET", "/_localhub/blob/{claims}/{name}", blob),
    Route(Operation.RESOLVE, "GET", "/{web}{repo}/resolve/{rev}/{path}", resolve),
    Route(Operation.RESOLVE, "GET", "/{web}{repo}/raw/{rev}/{path}", raw),
    Route(Operation.RESOLVE, "GET", "/api/resolve-cache/{type}/{repo}/{rev}/{path}", cached),
]
