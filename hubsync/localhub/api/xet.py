"""Xet: tokens, uploads of xorbs and shards, reconstructions, and ranges of xorbs for download."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response

from hubsync.localhub.protocol import HubError, Operation, json_response
from hubsync.localhub.routing import Call, Route, ranged, requested_range
from hubsync.localhub.state import HubState
from hubsync.localhub.xet import formats
from hubsync.localhub.xet.cas import UnknownXorbError
from hubsync.localhub.xet.formats import XetFormatError

_XORB_BYTES = 80 << 20  # the protocol's 64 MiB of content, and room for headers and a footer
_URL_TTL_S = 3600.0
_HASH = re.compile(r"[0-9a-f]{64}\Z")


def token(hub: HubState, call: Call) -> Response:
    """Issue a token to write to one repo or read from it, for a short time."""
    scope, revision = call.params["scope"], call.params.get("rev", "main")
    repo = call.writable(pull_request=call.flag("create_pr"))[0] if scope == "write" else call.downloadable()
    if revision != "None":
        hub.revision(repo, revision)
    expires = int(hub.clock() + hub.limits.xet_token_ttl_s)
    access = hub.sign({"scope": scope, "repo": repo.id, "exp": expires})
    headers = {"X-Xet-Access-Token": access, "X-Xet-Token-Expiration": str(expires), "X-Xet-Cas-Url": hub.cas_url}
    return json_response({"accessToken": access, "exp": expires, "casUrl": hub.cas_url}, headers=headers)


def _claims(hub: HubState, call: Call, scope: str) -> dict[str, Any]:
    """Return what the request's Xet token allows; a write token may also read."""
    found = hub.verify(call.request.headers.get("authorization", "").partition(" ")[2].strip())
    if found is None or found.get("scope") not in ("read", "write"):
        raise HubError(401, "Invalid or expired Xet token")
    if scope == "write" and found["scope"] != "write":
        raise HubError(403, "This Xet token may only read")
    if call.params["hub"] != hub.hub_id:
        raise HubError(404, "No such CAS")
    return found


def not_offered(hub: HubState, call: Call) -> Response:
    """Answer 404, at which a client uses something that the embedded Hub offers."""
    raise HubError(404, "Not Found")


def chunk(hub: HubState, call: Call) -> Response:
    """Answer a query for global deduplication, which the embedded Hub does not offer."""
    _claims(hub, call, "read")
    return not_offered(hub, call)


async def put_xorb(hub: HubState, call: Call) -> Response:
    """Receive a xorb."""
    _claims(hub, call, "write")
    name = call.params["hash"]
    if not _HASH.match(name) or call.params["prefix"] != "default":
        raise HubError(400, "Bad xorb hash")
    with hub.blobs.upload() as upload:
        await hub.receive(call.request.stream(), upload, max_bytes=_XORB_BYTES)
        try:
            inserted = await hub.in_thread(hub.cas.add_xorb, name, upload)
        except XetFormatError as error:
            raise HubError(400, f"Bad xorb: {error}") from None
        return json_response({"was_inserted": inserted})


def put_shard(hub: HubState, call: Call) -> Response:
    """Register the files that a shard describes, for commits of the token's repo."""
    allowed = _claims(hub, call, "write")
    try:
        files = formats.read_shard(bytes(call.body))
        for file in files:
            hub.cas.check(file)
    except (XetFormatError, UnknownXorbError) as error:
        raise HubError(400, f"Bad shard: {error}") from None
    with hub.store.transaction():
        for file in files:
            hub.cas.add_file(file)
            if file.sha256 is not None:
                hub.store.grant(int(allowed["repo"]), file.sha256, hub.clock())
    if call.params.get("version") == "v2":
        # The second version answers with a stream of events, of which the last is the result.
        return Response(b'{"type":"result","result":1}\n', 200, media_type="application/x-ndjson")
    return json_response({"result": 1})


def reconstruction(hub: HubState, call: Call) -> Response:
    """Tell from which ranges of xorbs a file, or a range of it, is made."""
    _claims(hub, call, "read")
    file = hub.cas.file(call.params["hash"])
    if file is None:
        raise HubError(404, "Not Found")
    found = requested_range(call, file.size, {})
    if found is None and "range" in call.request.headers:
        raise HubError(400, "Bad range")
    offset, kept = hub.cas.cut(file.terms, *(found or (0, file.size)))
    fetch: dict[str, list[dict[str, Any]]] = {}
    for term in dict.fromkeys(kept):
        first, last = hub.cas.extent(term)
        signed = hub.sign({"xorb": term.xorb, "exp": hub.clock() + _URL_TTL_S})
        entry = {
            "range": {"start": term.start, "end": term.end},
            "url": f"{hub.cas_url}/xorb-data/{signed}",
            "url_range": {"start": first, "end": last - 1},
        }
        if entry not in fetch.setdefault(term.xorb, []):
            fetch[term.xorb].append(entry)
    shown = [
        {"hash": term.xorb, "unpacked_length": term.unpacked, "range": {"start": term.start, "end": term.end}}
        for term in kept
    ]
    return json_response({"offset_into_first_range": offset, "terms": shown, "fetch_info": fetch})


def xorb_data(hub: HubState, call: Call) -> Response:
    """Serve a byte range of a stored xorb, at the signed address in a reconstruction."""
    name = str(hub.verify_address(call.params["signed"], "xorb")["xorb"])

    def pieces(start: int, end: int) -> Iterator[bytes]:
        return hub.blobs.stream("xorb", name, start, end)

    headers = {"Accept-Ranges": "bytes"}
    return ranged(call, hub.blobs.size("xorb", name), headers, pieces, "application/octet-stream")


_CAS = "/_localhub/cas/{hub}"
ROUTES = [
    Route(Operation.XET_TOKEN, "GET", "/api/{type}/{repo}/xet-(?P<scope>read|write)-token/{rev}", token),
    Route(Operation.XET_TOKEN, "GET", "/api/{type}/{repo}/xet-(?P<scope>read|write)-token", token),
    Route(Operation.XORB_GRANT, "POST", _CAS + "/v1/xorb-grants/{prefix}/{hash}", not_offered),
    Route(Operation.XORB, "POST", _CAS + "/v1/xorbs/{prefix}/{hash}", put_xorb),
    Route(Operation.SHARD, "POST", _CAS + "/(?P<version>v[12])/shards", put_shard),
    Route(Operation.SHARD, "POST", _CAS + "/shards", put_shard),
    Route(Operation.RECONSTRUCTION, "GET", _CAS + "/v2/reconstructions/{hash}", not_offered),
    Route(Operation.RECONSTRUCTION, "GET", _CAS + "/v1/reconstructions/{hash}", reconstruction),
    Route(Operation.CHUNK, "GET", _CAS + "/v1/chunks/{prefix}/{hash}", chunk),
    Route(Operation.XORB_DATA, "GET", _CAS + "/xorb-data/{signed}", xorb_data),
]
