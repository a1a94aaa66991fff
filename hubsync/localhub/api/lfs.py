"""Git LFS: the batch endpoint, uploads in one PUT or in parts, and their verification.

Upload addresses are signed and contain what the batch request announced; content with another sha256 or size is
dropped. A repo's commits may only refer to content that was uploaded for this repo.
"""

from __future__ import annotations

import re
import shutil
from typing import Any

from starlette.responses import Response

from hubsync.localhub.protocol import HubError, Operation, json_response
from hubsync.localhub.routing import Call, Route
from hubsync.localhub.state import HubState
from hubsync.localhub.storage.blobs import Upload
from hubsync.localhub.storage.store import Repo

_TTL_S = 24 * 3600.0
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_MEDIA_TYPE = {"Content-Type": "application/vnd.git-lfs+json"}


def batch(hub: HubState, call: Call) -> Response:
    """Tell where to upload, or from where to download, each of many objects."""
    body = call.json()
    operation, objects, most = body.get("operation"), body.get("objects"), hub.limits.lfs_batch_objects
    if operation not in ("download", "upload"):
        raise HubError(422, '"operation" must be upload or download')
    repo = call.downloadable() if operation == "download" else call.writable(pull_request=True)[0]
    if not isinstance(objects, list) or body.get("hash_algo", "sha256") != "sha256":
        raise HubError(422, '"objects" must be an array, "hash_algo" sha256')
    if len(objects) > most:
        raise HubError(422, f'"objects" must contain less than or equal to {most} items')
    shown = [_actions(hub, repo, operation, item) for item in objects]
    multipart = any("header" in item.get("actions", {}).get("upload", {}) for item in shown)
    return json_response({"transfer": "multipart" if multipart else "basic", "objects": shown}, headers=_MEDIA_TYPE)


def _actions(hub: HubState, repo: Repo, operation: str, item: object) -> dict[str, Any]:
    if not isinstance(item, dict) or not _SHA256.match(str(item.get("oid"))) or not isinstance(item.get("size"), int):
        raise HubError(422, '"objects" items need an "oid" (sha256) and a "size"')
    oid, size, expires = str(item["oid"]), int(item["size"]), hub.clock() + _TTL_S
    shown: dict[str, Any] = {"oid": oid, "size": size, "authenticated": True}
    granted = hub.store.granted(repo.id, oid) is not None
    if operation == "download":
        if not granted:
            return {"oid": oid, "size": size, "error": {"code": 404, "message": "Object does not exist"}}
        signed = hub.sign({"sha256": oid, "repo": repo.id, "commit": "", "exp": expires})
        return shown | {"actions": {"download": {"href": f"{hub.endpoint}/_localhub/blob/{signed}/{oid}"}}}
    if granted:
        return shown
    base = f"{hub.endpoint}/_localhub/lfs/" + hub.sign({"upload": oid, "size": size, "repo": repo.id, "exp": expires})
    upload: dict[str, Any] = {"href": base}
    part_bytes = hub.limits.lfs_multipart_bytes
    if size > part_bytes:
        parts = {str(number): f"{base}/{number}" for number in range(1, -(-size // part_bytes) + 1)}
        upload = {"href": f"{base}/complete", "header": {"chunk_size": str(part_bytes), **parts}}
    verify = {"href": f"{hub.endpoint}/{repo.web_path}.git/info/lfs/objects/verify"}
    return shown | {"actions": {"upload": upload, "verify": verify}}


async def put_object(hub: HubState, call: Call) -> Response:
    """Receive an object in one piece."""
    ticket = _ticket(hub, call)
    with hub.blobs.upload(sha256=True) as upload:
        await hub.receive(call.request.stream(), upload, max_bytes=int(ticket["size"]))
        await hub.in_thread(_register, hub, ticket, upload)
    return Response(b"", 200, {"ETag": f'"{ticket["upload"]}"'})


async def put_part(hub: HubState, call: Call) -> Response:
    """Receive a part of an object; its ETag names it in the request that completes the upload."""
    ticket, number = _ticket(hub, call), int(call.params["number"])
    part_bytes = hub.limits.lfs_multipart_bytes
    expected = min(part_bytes, int(ticket["size"]) - (number - 1) * part_bytes)
    if number < 1 or expected <= 0:
        raise HubError(404, "There is no such part")
    parts = hub.blobs.parts(f"{ticket['repo']}-{ticket['upload']}")
    parts.mkdir(exist_ok=True)
    with hub.blobs.upload(sha256=True) as upload:
        await hub.receive(call.request.stream(), upload, max_bytes=expected)
        if upload.size != expected:
            raise HubError(400, f"Part {number} must have {expected} bytes")
        etag = upload.sha256
        await hub.in_thread(upload.move_to, parts / f"{number}-{etag}")
    return Response(b"", 200, {"ETag": f'"{etag}"'})


def complete(hub: HubState, call: Call) -> Response:
    """Join the parts of an object in the order of the request."""
    ticket, named = _ticket(hub, call), call.json().get("parts")
    parts = hub.blobs.parts(f"{ticket['repo']}-{ticket['upload']}")
    with hub.blobs.upload(sha256=True) as upload:
        for item in named if isinstance(named, list) else []:
            number, etag = (item.get("partNumber"), item.get("etag")) if isinstance(item, dict) else (None, None)
            etag = str(etag).strip('"')
            if not isinstance(number, int) or not _SHA256.match(etag):  # both become part of a file name
                raise HubError(400, '"parts" items need a "partNumber" and the "etag" of the upload')
            part = parts / f"{number}-{etag}"
            if not part.exists():
                raise HubError(400, f"Part {number} was never uploaded")
            with part.open("rb") as file:
                while piece := file.read(1 << 20):
                    upload.write(piece)
        _register(hub, ticket, upload)
    shutil.rmtree(parts, ignore_errors=True)
    return json_response({"success": True})


def _ticket(hub: HubState, call: Call) -> dict[str, Any]:
    """Return what the batch request announced, from the signed upload address."""
    return hub.verify_address(call.params["ticket"], "upload")


def _register(hub: HubState, ticket: dict[str, Any], upload: Upload) -> None:
    """Store a complete upload, if it is what was announced, for commits of the ticket's repo."""
    sha256, size = ticket["upload"], ticket["size"]
    if (upload.sha256, upload.size) != (sha256, size):
        raise HubError(400, f"The content has sha256 {upload.sha256} and {upload.size} bytes, not {sha256} and {size}")
    hub.blobs.add(upload, "lfs", sha256)
    hub.store.add_large(sha256, size, xet_hash=None)
    hub.store.grant(ticket["repo"], sha256, hub.clock())


def verify(hub: HubState, call: Call) -> Response:
    """Confirm that an object was uploaded."""
    repo, _ = call.writable(pull_request=True)
    body = call.json()
    size = hub.store.granted(repo.id, str(body.get("oid")))
    if size is None or size != body.get("size"):
        raise HubError(404, "Object does not exist")
    return json_response({"success": True}, headers=_MEDIA_TYPE)


def duplicate(hub: HubState, call: Call) -> Response:
    """Let commits of another repo of the caller refer to large objects of this one."""
    source, body = call.downloadable(), call.json()
    target, files = body.get("target"), body.get("files")
    if not isinstance(target, dict) or not isinstance(files, list):
        raise HubError(400, '"target" and "files" are required')
    params = {"type": f"{target.get('type')}s", "repo": str(target.get("name"))}
    repo, _ = Call(hub, call.request, params).writable()
    answer: dict[str, list[dict[str, Any]]] = {"success": [], "failed": []}
    for item in files:
        sha256 = str(item.get("sha256")) if isinstance(item, dict) else str(item)
        if hub.store.granted(source.id, sha256) is None:
            answer["failed"].append({"sha256": sha256, "error": "Object does not exist"})
        else:
            hub.store.grant(repo.id, sha256, hub.clock())
            answer["success"].append({"sha256": sha256})
    return json_response(answer)


_LFS = "/_localhub/lfs/{ticket}"
_BATCH = "/{web}(?P<repo>[^/]+/[^/]+)[.]git/info/lfs/objects"
ROUTES = [
    Route(Operation.LFS_BATCH, "POST", _BATCH + "/batch", batch),
    Route(Operation.LFS_VERIFY, "POST", _BATCH + "/verify", verify),
    Route(Operation.LFS_UPLOAD, "PUT", _LFS, put_object),
    Route(Operation.LFS_UPLOAD, "PUT", _LFS + "/(?P<number>[0-9]+)", put_part),
    Route(Operation.LFS_UPLOAD, "POST", _LFS + "/complete", complete),
    Route(Operation.LFS_FILES, "POST", "/api/{type}/{repo}/lfs-files/duplicate", duplicate),
]
