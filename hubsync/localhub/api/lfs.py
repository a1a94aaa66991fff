"""Git LFS: the batch endpoint, uploads in one PUT or in parts, and the verification after them.

Upload addresses are signed and carry what was asked for; the content must have the sha256 and the size that the
batch request named, or it is dropped. Only content that was uploaded for a repo may be referred to from that repo's
commits.
"""

from __future__ import annotations

import re
import shutil
from typing import Any

from starlette.responses import Response

from hubsync.localhub.call import Call, HubError, Operation, iso, json_response
from hubsync.localhub.routing import Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage.store import Repo

_TTL_S = 24 * 3600.0
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MEDIA_TYPE = {"Content-Type": "application/vnd.git-lfs+json"}


def batch(hub: HubState, call: Call) -> Response:
    body = call.json()
    operation = body.get("operation")
    if operation == "download":
        repo = hub.content_of(call)
    elif operation == "upload":
        repo, _ = hub.writable(call, pull_request=True)
    else:
        raise HubError(422, '"operation" must be upload or download')
    objects = body.get("objects")
    if not isinstance(objects, list) or body.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, '"objects" must be an array, "hash_algo" sha256')
    answers = [_answer(hub, repo, str(operation), item) for item in objects]
    multipart = any("chunk_size" in answer.get("actions", {}).get("upload", {}).get("header", {}) for answer in answers)
    return json_response({"transfer": "multipart" if multipart else "basic", "objects": answers}, headers=_MEDIA_TYPE)


def _answer(hub: HubState, repo: Repo, operation: str, item: object) -> dict[str, Any]:
    if not isinstance(item, dict) or not _SHA256.match(str(item.get("oid"))) or not isinstance(item.get("size"), int):
        raise HubError(422, '"objects" items need an "oid" (sha256) and a "size"')
    oid, size = str(item["oid"]), int(item["size"])
    answer: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    held = hub.store.granted(repo.id, oid)
    expires = hub.clock() + _TTL_S
    if operation == "download":
        if held is None:
            return {"oid": oid, "size": size, "error": {"code": 404, "message": "Object does not exist"}}
        signed = hub.sign({"sha256": oid, "repo": repo.id, "commit": "", "exp": expires})
        answer["actions"] = {"download": {"href": f"{hub.endpoint}/_localhub/blob/{signed}/{oid}"}}
        return answer
    if held is not None:
        return answer
    ticket = {"upload": oid, "size": size, "repo": repo.id, "exp": expires}
    base = f"{hub.endpoint}/_localhub/lfs/{hub.sign(ticket)}"
    part_bytes = hub.settings.lfs_multipart_bytes
    upload: dict[str, Any] = {"href": base}
    if size > part_bytes:
        parts = {str(number): f"{base}/{number}" for number in range(1, -(-size // part_bytes) + 1)}
        upload = {"href": f"{base}/complete", "header": {"chunk_size": str(part_bytes), **parts}}
    verify = f"{hub.endpoint}/{repo.web_path}.git/info/lfs/objects/verify"
    answer["actions"] = {"upload": upload, "verify": {"href": verify}}
    return answer


def _accept(hub: HubState, ticket: dict[str, Any], sha256: str, size: int) -> None:
    if (sha256, size) != (ticket["upload"], ticket["size"]):
        raise HubError(
            400, f"The content has sha256 {sha256} and {size} bytes, not {ticket['upload']} and {ticket['size']}"
        )


def _register(hub: HubState, ticket: dict[str, Any]) -> None:
    hub.store.add_large(ticket["upload"], ticket["size"], xet=None)
    hub.store.grant(ticket["repo"], ticket["upload"], hub.clock())


async def put_object(hub: HubState, call: Call) -> Response:
    ticket = hub.signed(call.params["ticket"], "upload")
    with hub.blobs.receive(sha256=True) as incoming:
        await hub.take_in(call.request.stream(), incoming, int(ticket["size"]))
        _accept(hub, ticket, incoming.sha256, incoming.size)
        await hub.in_thread(hub.blobs.keep, incoming, "lfs", ticket["upload"])
        await hub.in_thread(_register, hub, ticket)
    return Response(b"", 200, {"ETag": f'"{ticket["upload"]}"'})


async def put_part(hub: HubState, call: Call) -> Response:
    ticket, number = hub.signed(call.params["ticket"], "upload"), int(call.params["number"])
    size, part_bytes = int(ticket["size"]), hub.settings.lfs_multipart_bytes
    expected = min(part_bytes, size - (number - 1) * part_bytes)
    if number < 1 or expected <= 0:
        raise HubError(404, "There is no such part")
    parts = hub.blobs.incoming_dir / f"parts-{ticket['repo']}-{ticket['upload']}"
    parts.mkdir(exist_ok=True)
    with hub.blobs.receive(sha256=True) as incoming:
        await hub.take_in(call.request.stream(), incoming, expected)
        if incoming.size != expected:
            raise HubError(400, f"Part {number} must have {expected} bytes")
        etag = incoming.sha256
        await hub.in_thread(incoming.keep_at, parts / f"{number}-{etag}")
    return Response(b"", 200, {"ETag": f'"{etag}"'})


def complete(hub: HubState, call: Call) -> Response:
    """Join the parts in their order; each is named by the ETag that its upload was answered with."""
    ticket = hub.signed(call.params["ticket"], "upload")
    folder = hub.blobs.incoming_dir / f"parts-{ticket['repo']}-{ticket['upload']}"
    with hub.blobs.receive(sha256=True) as incoming:
        for number, etag in _named_parts(call.json().get("parts")):
            part = folder / f"{number}-{etag}"
            if not part.exists():
                raise HubError(400, f"Part {number} was never uploaded")
            with part.open("rb") as file:
                while piece := file.read(1 << 20):
                    incoming.write(piece)
        _accept(hub, ticket, incoming.sha256, incoming.size)
        hub.blobs.keep(incoming, "lfs", ticket["upload"])
        _register(hub, ticket)
    shutil.rmtree(folder, ignore_errors=True)
    return json_response({"success": True})


def _named_parts(parts: object) -> list[tuple[int, str]]:
    """(number, ETag) of the parts in a completion request; both become part of a file name, so both are checked."""
    named: list[tuple[int, str]] = []
    for item in parts if isinstance(parts, list) else []:
        number, etag = (item.get("partNumber"), item.get("etag")) if isinstance(item, dict) else (None, None)
        etag = str(etag).strip('"')
        if not isinstance(number, int) or not _SHA256.match(etag):
            raise HubError(400, '"parts" items need a "partNumber" and the "etag" of the upload')
        named.append((number, etag))
    return named


def verify(hub: HubState, call: Call) -> Response:
    repo, _ = hub.writable(call, pull_request=True)
    body = call.json()
    held = hub.store.granted(repo.id, str(body.get("oid")))
    if held is None or held != body.get("size"):
        raise HubError(404, "Object does not exist")
    return json_response({"success": True}, headers=_MEDIA_TYPE)


# The large objects of a repo, as its settings page lists them


def listing(hub: HubState, call: Call) -> Response:
    repo, _ = hub.writable(call)
    sql = (
        "SELECT g.sha256, g.created, l.size FROM granted g JOIN large l ON l.sha256 = g.sha256 "
        "WHERE g.repo = ? ORDER BY g.created, g.sha256"
    )
    places = _places(hub, repo)
    out = []
    for sha256, at, size in hub.store.rows(sql, repo.id):
        ref, path = places.get(sha256, (None, sha256))
        item = {"fileOid": sha256, "oid": sha256, "size": size, "filename": path, "pushedAt": iso(at), "ref": ref}
        out.append(item)
    return json_response(out)


def _places(hub: HubState, repo: Repo) -> dict[str, tuple[str, str]]:
    """Where each large object is to be found: a ref, `main` before all others, and a path."""
    places: dict[str, tuple[str, str]] = {}
    refs = hub.history.refs(repo, "refs/heads/")
    for name, oid in sorted(refs.items(), key=lambda item: item[0] != "main"):
        tree = hub.history.commit(repo, oid).tree
        nodes = [node for node in hub.history.walk(tree, "", recursive=True) if not node.entry.is_directory]
        contents = hub.history.contents(node.entry.oid for node in nodes)
        for node in nodes:
            sha256 = contents[node.entry.oid].sha256
            if sha256 is not None:
                places.setdefault(sha256, (f"refs/heads/{name}", node.path))
    return places


def purge(hub: HubState, call: Call) -> Response:
    """Take large objects from a repo for good; with `rewriteHistory`, as if they had never been committed."""
    repo, _ = hub.writable(call)
    deletions = call.json().get("deletions")
    if not isinstance(deletions, dict) or not isinstance(deletions.get("sha"), list):
        raise HubError(400, '"deletions.sha" must be an array')
    gone = {str(sha256) for sha256 in deletions["sha"]}
    with hub.store.transaction():
        for sha256 in gone:
            hub.store.write("DELETE FROM granted WHERE repo = ? AND sha256 = ?", repo.id, sha256)
        if deletions.get("rewriteHistory", True):
            hub.history.rewrite(repo, lambda oid: hub.history.content(oid).sha256 not in gone)
    return json_response({"success": True})


def duplicate(hub: HubState, call: Call) -> Response:
    """Let another repo of the caller refer to large objects of this one, without moving a byte."""
    source = hub.content_of(call)
    body = call.json()
    target, files = body.get("target"), body.get("files")
    if not isinstance(target, dict) or not isinstance(files, list):
        raise HubError(400, '"target" and "files" are required')
    call.params = {"type": f"{target.get('type')}s", "repo": str(target.get("name"))}
    repo, _ = hub.writable(call)
    succeeded: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for item in files:
        sha256 = str(item.get("sha256")) if isinstance(item, dict) else str(item)
        if hub.store.granted(source.id, sha256) is None:
            failed.append({"sha256": sha256, "error": "Object does not exist"})
        else:
            hub.store.grant(repo.id, sha256, hub.clock())
            succeeded.append({"sha256": sha256})
    return json_response({"success": succeeded, "failed": failed})


_LFS = "/_localhub/lfs/{ticket}"
ROUTES = [
    Route(Operation.LFS_BATCH, "POST", "/{web}(?P<repo>[^/]+/[^/]+)[.]git/info/lfs/objects/batch", batch),
    Route(Operation.LFS_VERIFY, "POST", "/{web}(?P<repo>[^/]+/[^/]+)[.]git/info/lfs/objects/verify", verify),
    Route(Operation.LFS_UPLOAD, "PUT", _LFS, stream=put_object),
    Route(Operation.LFS_UPLOAD, "PUT", _LFS + "/(?P<number>[0-9]+)", stream=put_part),
    Route(Operation.LFS_UPLOAD, "POST", _LFS + "/complete", complete),
    Route(Operation.LFS_FILES, "GET", "/api/{type}/{repo}/lfs-files", listing),
    Route(Operation.LFS_FILES, "POST", "/api/{type}/{repo}/lfs-files/batch", purge),
    Route(Operation.LFS_FILES, "POST", "/api/{type}/{repo}/lfs-files/duplicate", duplicate),
]
