"""Reading: trees, paths, and the bytes of files.

`resolve` redirects small files of public repos (307) to the address of their commit, as the Hub does with its cache,
and large ones (302) to a signed address. That one serves ranges, whether the object is a blob or a Xet file. Both the
redirect and its target have the metadata headers: a client follows a redirect on the same host and reads the headers
of the last response.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.responses import Response, StreamingResponse

from hubsync.localhub.call import Call, HubError, Operation, iso, json_response
from hubsync.localhub.routing import Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage import git
from hubsync.localhub.storage.history import Commit, Content, Node
from hubsync.localhub.storage.store import Repo

_EXPANDED_PAGE = 50
_URL_TTL_S = 3600.0
_TEXT = "text/plain; charset=utf-8"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")


# Trees and paths


def tree(hub: HubState, call: Call) -> Response:
    """List a page of a folder."""
    repo = hub.downloadable(call)
    commit = hub.revision(repo, call.params["rev"])
    expand, recursive = call.flag("expand"), call.flag("recursive")
    path = call.params.get("path", "").strip("/")
    entry = hub.history.entry(commit.tree, path)
    if entry is None or not entry.is_directory:
        raise HubError(404, f'{path} does not exist on "{call.params["rev"]}"', code="EntryNotFound")
    page_entries = hub.limits.page_entries
    default, most = (min(_EXPANDED_PAGE, page_entries), 2 * _EXPANDED_PAGE) if expand else (page_entries, page_entries)
    limit = call.integer("limit", default, most=min(most, page_entries))
    cursor = call.request.query_params.get("cursor", "")
    page: list[Node] = []
    more = False
    for node in hub.history.walk(entry.oid, f"{path}/" if path else "", recursive=recursive):
        # The order of a commit's tree is fixed, so the last path of a page marks where the next one begins.
        if cursor:
            cursor = "" if node.path == cursor else cursor
        elif len(page) == limit:
            more = True
            break
        else:
            page.append(node)
    headers = {"X-Repo-Commit": commit.oid}
    if more:
        headers |= call.next_link(hub.endpoint, "cursor", page[-1].path)
    return json_response(_described(hub, repo, commit, page, expand=expand), headers=headers)


def paths_info(hub: HubState, call: Call) -> Response:
    """Describe those of the requested paths that exist."""
    repo = hub.downloadable(call)
    commit = hub.revision(repo, call.params["rev"])
    paths, expand = _requested_paths(call, hub.limits.requested_paths)
    nodes: list[Node] = []
    for path in dict.fromkeys(paths):
        entry = hub.history.entry(commit.tree, path.strip("/"))
        if entry is not None and path.strip("/"):
            nodes.append(Node(path.strip("/"), entry))
    return json_response(_described(hub, repo, commit, nodes, expand=expand), headers={"X-Repo-Commit": commit.oid})


def _requested_paths(call: Call, most: int) -> tuple[list[str], bool]:
    """Return the paths, and whether to expand them, from a form (huggingface_hub sends one) or a JSON body."""
    if call.request.headers.get("content-type", "").startswith("application/json"):
        body = call.json()
        paths, expand = body.get("paths"), body.get("expand") is True
    else:
        form = parse_qs(call.body.decode("utf-8", "replace"), keep_blank_values=True)
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("true", "1")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise HubError(400, '"paths" must be an array of strings')
    if len(paths) > most:
        raise HubError(413, "too many parameters")
    return paths, expand


def _described(hub: HubState, repo: Repo, commit: Commit, nodes: list[Node], *, expand: bool) -> list[dict[str, Any]]:
    contents = hub.history.contents(node.entry.oid for node in nodes if not node.entry.is_directory)
    changes = hub.history.last_changes(repo, commit.oid, [node.path for node in nodes]) if expand else {}
    shown: list[dict[str, Any]] = []
    for node in nodes:
        if node.entry.is_directory:
            item: dict[str, Any] = {"type": "directory", "oid": node.entry.oid, "size": 0, "path": node.path}
        else:
            content = contents[node.entry.oid]
            item = {"type": "file", "oid": content.oid, "size": content.size, "path": node.path}
            item |= _large_fields(hub, content)
            if expand:
                item["securityFileStatus"] = {"status": "safe", "avScan": None, "pickleImportScan": None}
        if expand:
            last = changes[node.path]
            item["lastCommit"] = {"id": last.oid, "title": last.title, "date": iso(last.created)}
        shown.append(item)
    return shown


def _large_fields(hub: HubState, content: Content) -> dict[str, Any]:
    if content.sha256 is None:
        return {}
    pointer_size = len(git.lfs_pointer(content.sha256, content.size))
    fields: dict[str, Any] = {"lfs": {"oid": content.sha256, "size": content.size, "pointerSize": pointer_size}}
    large = hub.store.large(content.sha256)
    if large is not None and large.xet_hash is not None:
        fields["xetHash"] = large.xet_hash
    return fields


# The bytes of a file


def resolve(hub: HubState, call: Call) -> Response:
    """Serve a file, or redirect to it."""
    repo, commit, path, content = _requested_file(hub, call)
    if content.sha256 is None:
        # The real Hub redirects to its cache for these, and serves all other regular files itself.
        if not repo.private and not repo.extra.get("gated") and "/" in call.repo_name and content.size:
            return _redirect_to_cache(call, repo, commit, path, content)
        return _regular(hub, call, commit, path, content)
    claims = {"sha256": content.sha256, "repo": repo.id, "commit": commit.oid, "exp": hub.clock() + _URL_TTL_S}
    location = f"{hub.endpoint}/_localhub/blob/{hub.sign(claims)}/{quote(path.rsplit('/', 1)[-1], safe='')}"
    headers = _file_headers(commit.oid, path) | _linked(hub, repo, commit.oid, content)
    headers |= {"Location": location, "Vary": "Origin, Accept"}
    return Response(f"Found. Redirecting to {location}", 302, headers)


def cached(hub: HubState, call: Call) -> Response:
    """Serve a small file of a public repo, to which `resolve` redirects; large files are not here."""
    _, commit, path, content = _requested_file(hub, call)
    if content.sha256 is not None:
        raise HubError(404, "Entry not found", code="EntryNotFound")
    return _regular(hub, call, commit, path, content)


def raw(hub: HubState, call: Call) -> Response:
    """Serve the git blob at a path: of a large file, its pointer."""
    _, commit, path, content = _requested_file(hub, call)
    if content.sha256 is None:
        return _regular(hub, call, commit, path, content)
    pointer = git.lfs_pointer(content.sha256, content.size)
    headers = _file_headers(commit.oid, path, content.oid)
    return _ranged(call, len(pointer), headers, lambda start, end: iter([pointer[start:end]]), _TEXT)


def _requested_file(hub: HubState, call: Call) -> tuple[Repo, Commit, str, Content]:
    repo = hub.downloadable(call)
    commit = hub.revision(repo, call.params["rev"])
    path = call.params["path"]
    content = hub.history.file(commit.tree, path)
    if content is None:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit.oid})
    return repo, commit, path, content


def _redirect_to_cache(call: Call, repo: Repo, commit: Commit, path: str, content: Content) -> Response:
    query = urlencode({call.request.url.path: "", "etag": f'"{content.oid}"'})
    location = f"/api/resolve-cache/{repo.type}s/{repo.name}/{commit.oid}/{quote(path)}?{query}"
    headers = _file_headers(commit.oid, path, content.oid) | {"Location": location, "Vary": "Origin, Accept"}
    return Response(f"Temporary Redirect. Redirecting to {location}", 307, headers, _TEXT)


def _regular(hub: HubState, call: Call, commit: Commit, path: str, content: Content) -> Response:
    def pieces(start: int, end: int) -> Iterator[bytes]:
        return hub.blobs.stream("git", content.oid, start, end)

    return _ranged(call, content.size, _file_headers(commit.oid, path, content.oid), pieces, _TEXT)


def blob(hub: HubState, call: Call) -> Response:
    """Serve a large object at its signed address, as the Hub's CDN does: without a token, with ranges."""
    claims = hub.verify_address(call.params["claims"], "sha256")
    sha256 = str(claims["sha256"])
    large = hub.store.large(sha256)
    repo = hub.store.repo_by_id(int(claims["repo"]))
    if large is None or repo is None:
        raise HubError(404, "Not Found", code="EntryNotFound")
    commit = str(claims["commit"])
    headers = _file_headers(commit, call.params["name"], sha256)
    headers |= _linked(hub, repo, commit, Content("", large.size, sha256))

    def pieces(start: int, end: int) -> Iterator[bytes]:
        if large.is_blob:
            return hub.blobs.stream("lfs", sha256, start, end)
        return hub.cas.read(str(large.xet_hash), start, end)

    return _ranged(call, large.size, headers, pieces, "application/octet-stream")


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


def _ranged(
    call: Call, size: int, headers: dict[str, str], pieces: Callable[[int, int], Iterator[bytes]], media_type: str
) -> Response:
    """Serve the whole content or the requested range; of several ranges, the whole, as the standard allows."""
    start, end, status = 0, size, 200
    match = _RANGE.match(call.request.headers.get("range", ""))
    if match and (match[1] or match[2]):
        if match[1]:
            start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
        else:
            start = max(0, size - int(match[2]))
        if start >= size or end <= start:
            headers |= {"Content-Range": f"bytes */{size}"}
            raise HubError(416, "Requested Range Not Satisfiable", headers=headers)
        status = 206
        headers |= {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
    if "ETag" in headers and headers["ETag"] in call.request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    headers |= {"Content-Length": str(end - start)}
    if call.request.method == "HEAD" or start == end:
        return Response(b"", status, headers, media_type)
    return StreamingResponse(pieces(start, end), status, headers, media_type)


ROUTES = [
    Route(Operation.TREE, "GET", "/api/{type}/{repo}/tree/{rev}", tree),
    Route(Operation.TREE, "GET", "/api/{type}/{repo}/tree/{rev}/{path}", tree),
    Route(Operation.PATHS_INFO, "POST", "/api/{type}/{repo}/paths-info/{rev}", paths_info),
    Route(Operation.BLOB, "GET", "/_localhub/blob/{claims}/{name}", blob),
    Route(Operation.RESOLVE, "GET", "/{web}{repo}/resolve/{rev}/{path}", resolve),
    Route(Operation.RESOLVE, "GET", "/{web}{repo}/raw/{rev}/{path}", raw),
    Route(Operation.RESOLVE, "GET", "/api/resolve-cache/{type}/{repo}/{rev}/{path}", cached),
]
