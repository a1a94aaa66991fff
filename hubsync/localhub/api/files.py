"""Reading: trees, paths, and the bytes of files.

`resolve` sends small files of public repos on (307) to the address of their commit, as the Hub does with its cache, and
large ones (302) to a signed address, which serves ranges whether the object is stored whole or as a Xet
reconstruction. The metadata headers stand on both answers, because a client follows a redirect that stays on one host
and reads the headers of the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from starlette.responses import Response, StreamingResponse

from hubsync.localhub.call import Call, HubError, Operation, iso, json_response
from hubsync.localhub.routing import Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage import git
from hubsync.localhub.storage.history import Commit, Content, Node
from hubsync.localhub.storage.store import Repo

_PAGE = 1000
_EXPANDED_PAGE = 50
_URL_TTL_S = 3600.0
_TEXT = "text/plain; charset=utf-8"
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")


def tree(hub: HubState, call: Call) -> Response:
    repo = hub.content_of(call)
    commit = hub.revision(repo, call.params["rev"])
    expand, recursive = call.flag("expand"), call.flag("recursive")
    path = call.params.get("path", "").strip("/")
    entry = hub.history.entry(commit.tree, path)
    if entry is None or not entry.is_directory:
        raise HubError(404, f'{path} does not exist on "{call.params["rev"]}"', code="EntryNotFound")
    most = _EXPANDED_PAGE * 2 if expand else _PAGE
    limit = call.integer("limit", _EXPANDED_PAGE if expand else _PAGE, most=most)
    cursor = call.request.query_params.get("cursor", "")
    page: list[Node] = []
    more = False
    for node in hub.history.walk(entry.oid, f"{path}/" if path else "", recursive=recursive):
        # The walk's order is fixed for a commit's tree, so the last path of a page marks where the next one begins.
        if cursor:
            cursor = "" if node.path == cursor else cursor
        elif len(page) == limit:
            more = True
            break
        else:
            page.append(node)
    headers = {"X-Repo-Commit": commit.oid} | (call.next_link(hub.endpoint, "cursor", page[-1].path) if more else {})
    return json_response(_described(hub, repo, commit, page, expand=expand), headers=headers)


def paths_info(hub: HubState, call: Call) -> Response:
    repo = hub.content_of(call)
    commit = hub.revision(repo, call.params["rev"])
    paths, expand = _wanted_paths(call)
    nodes: list[Node] = []
    for path in dict.fromkeys(paths):
        entry = hub.history.entry(commit.tree, path.strip("/"))
        if entry is not None and path.strip("/"):
            nodes.append(Node(path.strip("/"), entry))
    return json_response(_described(hub, repo, commit, nodes, expand=expand), headers={"X-Repo-Commit": commit.oid})


def _wanted_paths(call: Call) -> tuple[list[str], bool]:
    """The paths of a form (as huggingface_hub sends them) or of a JSON body."""
    if call.request.headers.get("content-type", "").startswith("application/json"):
        body = call.json()
        paths, expand = body.get("paths"), body.get("expand") is True
    else:
        form = parse_qs(call.body.decode("utf-8", "replace"), keep_blank_values=True)
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() in ("true", "1")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise HubError(400, '"paths" must be an array of strings')
    if len(paths) > _PAGE:
        raise HubError(413, f'"paths" must contain less than or equal to {_PAGE} items')
    return paths, expand


def _described(hub: HubState, repo: Repo, commit: Commit, nodes: list[Node], *, expand: bool) -> list[dict[str, Any]]:
    contents = hub.history.contents(node.entry.oid for node in nodes if not node.entry.is_directory)
    touched = hub.history.last_touched(repo, commit.oid, [node.path for node in nodes]) if expand else {}
    out: list[dict[str, Any]] = []
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
            last = touched[node.path]
            item["lastCommit"] = {"id": last.oid, "title": last.title, "date": iso(last.created)}
        out.append(item)
    return out


def _large_fields(hub: HubState, content: Content) -> dict[str, Any]:
    if content.sha256 is None:
        return {}
    pointer_size = len(git.lfs_pointer(content.sha256, content.size))
    fields: dict[str, Any] = {"lfs": {"oid": content.sha256, "size": content.size, "pointerSize": pointer_size}}
    large = hub.store.large(content.sha256)
    if large is not None and large[1] is not None:
        fields["xetHash"] = large[1]
    return fields


# The bytes of a file


def resolve(hub: HubState, call: Call) -> Response:
    repo, commit, path, content = _found(hub, call)
    if content.sha256 is None:
        # Where the real Hub answers from its cache, one address further; the rest it serves itself.
        if not repo.private and not repo.extra.get("gated") and "/" in call.repo_name and content.size:
            return _to_cache(call, repo, commit, path, content)
        return _plain(hub, call, commit, path, content)
    headers = _file_headers(commit, path) | _linked(hub, repo, commit.oid, content)
    claims = {"sha256": content.sha256, "repo": repo.id, "commit": commit.oid, "exp": hub.clock() + _URL_TTL_S}
    location = f"{hub.endpoint}/_localhub/blob/{hub.sign(claims)}/{quote(path.rsplit('/', 1)[-1], safe='')}"
    return Response(
        f"Found. Redirecting to {location}", 302, headers | {"Location": location, "Vary": "Origin, Accept"}
    )


def cached(hub: HubState, call: Call) -> Response:
    """A small file of a public repo, where `resolve` leads to; a large one is not there."""
    _, commit, path, content = _found(hub, call)
    if content.sha256 is not None:
        raise HubError(404, "Entry not found", code="EntryNotFound")
    return _plain(hub, call, commit, path, content)


def raw(hub: HubState, call: Call) -> Response:
    """What git has under a path: of a large file, its pointer."""
    _, commit, path, content = _found(hub, call)
    if content.sha256 is None:
        return _plain(hub, call, commit, path, content)
    pointer = git.lfs_pointer(content.sha256, content.size)
    headers = _file_headers(commit, path) | {"ETag": f'"{content.oid}"'}
    return _ranged(call, len(pointer), headers, lambda start, end: iter([pointer[start:end]]), _TEXT)


def _found(hub: HubState, call: Call) -> tuple[Repo, Commit, str, Content]:
    repo = hub.content_of(call)
    commit = hub.revision(repo, call.params["rev"])
    path = call.params["path"]
    entry = hub.history.entry(commit.tree, path)
    if entry is None or entry.is_directory or not path:
        raise HubError(404, "Entry not found", code="EntryNotFound", headers={"X-Repo-Commit": commit.oid})
    return repo, commit, path, hub.history.content(entry.oid)


def _to_cache(call: Call, repo: Repo, commit: Commit, path: str, content: Content) -> Response:
    asked = urlencode({call.request.url.path: "", "etag": f'"{content.oid}"'})
    location = f"/api/resolve-cache/{repo.type}s/{repo.name}/{commit.oid}/{quote(path)}?{asked}"
    headers = _file_headers(commit, path) | {"ETag": f'"{content.oid}"', "Location": location, "Vary": "Origin, Accept"}
    return Response(f"Temporary Redirect. Redirecting to {location}", 307, headers, _TEXT)


def _plain(hub: HubState, call: Call, commit: Commit, path: str, content: Content) -> Response:
    headers = _file_headers(commit, path) | {"ETag": f'"{content.oid}"'}
    return _ranged(
        call, content.size, headers, lambda start, end: hub.blobs.stream("git", content.oid, start, end), _TEXT
    )


def _file_headers(commit: Commit, path: str) -> dict[str, str]:
    return {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "Content-Disposition": _disposition(path)}


def blob(hub: HubState, call: Call) -> Response:
    """A large object under its signed address, as the Hub's CDN serves it: no token needed, ranges understood."""
    claims = hub.signed(call.params["claims"], "sha256")
    sha256 = str(claims["sha256"])
    large = hub.store.large(sha256)
    repo = hub.store.repo_by_id(int(claims["repo"]))
    if large is None or repo is None:
        raise HubError(404, "Not Found", code="EntryNotFound")
    size, xet_hash, plain = large
    headers = {
        "X-Repo-Commit": str(claims["commit"]),
        "Accept-Ranges": "bytes",
        "Content-Disposition": _disposition(call.params["name"]),
    }
    headers |= {"ETag": f'"{sha256}"'} | _linked(hub, repo, str(claims["commit"]), Content("", size, sha256))

    def pieces(start: int, end: int) -> Iterator[bytes]:
        if plain:
            return hub.blobs.stream("lfs", sha256, start, end)
        found = hub.content.file(xet_hash or "")
        assert found is not None, f"{sha256} is stored nowhere"
        return hub.content.read(found[0], start, end)

    return _ranged(call, size, headers, pieces, "application/octet-stream")


def _linked(hub: HubState, repo: Repo, commit_oid: str, content: Content) -> dict[str, str]:
    """The headers that tell a client about the large object behind a path and, where it is in Xet, how to get at it."""
    assert content.sha256 is not None
    headers = {"X-Linked-Size": str(content.size), "X-Linked-ETag": f'"{content.sha256}"'}
    large = hub.store.large(content.sha256)
    if large is not None and large[1] is not None:
        route = f"{hub.endpoint}/api/{repo.type}s/{repo.name}/xet-read-token/{commit_oid}"
        reconstruction = f"{hub.cas_url}/v1/reconstructions/{large[1]}"
        headers["X-Xet-Hash"] = large[1]
        headers["Link"] = f'<{route}>; rel="xet-auth", <{reconstruction}>; rel="xet-reconstruction-info"'
    return headers


def _disposition(path: str) -> str:
    name = path.rsplit("/", 1)[-1]
    plain = re.sub(r'[^\x20-\x7e]|["\\]', "_", name)
    return f"inline; filename*=UTF-8''{quote(name, safe='')}; filename=\"{plain}\""


def _ranged(call: Call, size: int, headers: dict[str, str], pieces: Any, media_type: str) -> Response:
    """The whole content or the one range that is asked for. Several ranges at once are served whole, as the standard
    allows.
    """
    start, end, status = 0, size, 200
    match = _RANGE.match(call.request.headers.get("range", ""))
    if match and (match[1] or match[2]):
        if match[1]:
            start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
        else:
            start = max(0, size - int(match[2]))
        if start >= size or end <= start:
            raise HubError(
                416, "Requested Range Not Satisfiable", headers=headers | {"Content-Range": f"bytes */{size}"}
            )
        status = 206
        headers = headers | {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
    headers = headers | {"Content-Length": str(end - start)}
    etag = headers.get("ETag")
    if etag is not None and etag in call.request.headers.get("if-none-match", ""):
        return Response(
            status_code=304, headers={key: value for key, value in headers.items() if key != "Content-Length"}
        )
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
