"""The Xet content-addressed store: tokens, xorb and shard uploads, reconstructions and ranges of xorbs for download.

A shard is registered only when every chunk it names is stored and the file they add up to has the sha256 it
declares; that is what lets a commit refer to the file. Files are never materialized: a reconstruction is read from
the xorbs whenever somebody wants bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import Any

from starlette.responses import Response, StreamingResponse

from hubsync.localhub import xet
from hubsync.localhub.core import Core
from hubsync.localhub.routing import Call, HubError, Operation, Route, json_response
from hubsync.localhub.xet import Chunk, ShardFile, Term, XetFormatError

_XORB_BYTES = 80 << 20  # the protocol's 64 MiB of content, and room for headers and a footer
_SHARD_BYTES = 256 << 20
_PIECE_BYTES = 1 << 20
_URL_TTL_S = 3600.0
_CACHED_INDEXES = 256
_HASH = re.compile(r"[0-9a-f]{64}\Z")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)\Z")


def cas_url(core: Core) -> str:
    """Where this hub's CAS is. Its id is part of it: hf_xet keeps what it knows of a CAS by address, and ports are used
    again.
    """
    return f"{core.endpoint}/_localhub/cas/{core.hub_id}"


def token(core: Core, call: Call) -> Response:
    """`xet-write-token` and `xet-read-token`: a signed token for one repo and a short time."""
    scope, revision = call.params["scope"], call.params.get("rev", "main")
    if scope == "write":
        repo, _ = core.writable(call, pull_request=call.flag("create_pr"))
    else:
        repo = core.content_of(call)
    if revision != "None":
        core.revision(repo, revision)
    expires = int(core.clock() + core.settings.xet_token_ttl_s)
    access = core.sign({"scope": scope, "repo": repo.id, "exp": expires})
    headers = {"X-Xet-Access-Token": access, "X-Xet-Token-Expiration": str(expires), "X-Xet-Cas-Url": cas_url(core)}
    return json_response({"accessToken": access, "exp": expires, "casUrl": cas_url(core)}, headers=headers)


def claims(core: Core, call: Call, scope: str) -> dict[str, Any]:
    """What the request's Xet token allows; a write token may also read."""
    header = call.request.headers.get("authorization", "")
    found = core.verify(header.partition(" ")[2].strip()) if header else None
    if found is None or found.get("scope") not in ("read", "write"):
        raise HubError(401, "Invalid or expired Xet token")
    if scope == "write" and found["scope"] != "write":
        raise HubError(403, "This Xet token may only read")
    if call.params["hub"] != core.hub_id:
        raise HubError(404, "No such CAS")
    return found


def refuse_grant(core: Core, call: Call) -> Response:
    raise HubError(404, "Not Found")


def no_chunk(core: Core, call: Call) -> Response:
    """Global deduplication is not offered: a client goes on with what it knows itself."""
    claims(core, call, "read")
    raise HubError(404, "Not Found")


def no_second_version(core: Core, call: Call) -> Response:
    raise HubError(404, "Not Found")


async def put_xorb(core: Core, call: Call) -> Response:
    claims(core, call, "write")
    name = call.params["hash"]
    if not _HASH.match(name) or call.params["prefix"] != "default":
        raise HubError(400, "Bad xorb hash")
    with core.blobs.receive() as incoming:
        await core.take_in(call.request.stream(), incoming, _XORB_BYTES)

        def register() -> bool:
            incoming.close()
            try:
                with incoming.path.open("rb") as file:
                    chunks = xet.read_xorb(file, incoming.size)
            except XetFormatError as error:
                raise HubError(400, f"Bad xorb: {error}") from None
            inserted = core.blobs.keep(incoming, "xorb", name)
            core.store.write("INSERT OR IGNORE INTO xorb VALUES (?, ?, ?)", name, incoming.size, xet.pack_index(chunks))
            return inserted

        return json_response({"was_inserted": await core.in_thread(register)})


def put_shard(core: Core, call: Call) -> Response:
    allowed = claims(core, call, "write")
    try:
        files = xet.read_shard(call.body)
        for file in files:
            _check_file(core, file)
    except XetFormatError as error:
        raise HubError(400, f"Bad shard: {error}") from None
    with core.store.transaction():
        for file in files:
            terms = json.dumps([list(term) for term in file.terms])
            core.store.write("INSERT OR IGNORE INTO xetfile VALUES (?, ?, ?)", file.hash, file.size, terms)
            if file.sha256 is not None:
                core.store.add_large(file.sha256, file.size, xet=file.hash)
                core.store.grant(int(allowed["repo"]), file.sha256, core.clock())
    if call.params.get("version") == "v2":
        # The second version answers with a stream of events, of which the last is the result.
        return Response(b'{"type":"result","result":1}\n', 200, media_type="application/x-ndjson")
    return json_response({"result": 1})


def _check_file(core: Core, file: ShardFile) -> None:
    """Every chunk is stored, the lengths are true, and the content has the sha256 that the shard declares."""
    for term in file.terms:
        index = _index(core, term.xorb)
        if not 0 <= term.start < term.end <= len(index):
            raise HubError(400, f"Bad shard: xorb {term.xorb} has no chunks {term.start} to {term.end}")
        if sum(chunk.unpacked for chunk in index[term.start : term.end]) != term.unpacked:
            raise HubError(400, f"Bad shard: a segment of xorb {term.xorb} does not have {term.unpacked} bytes")
    if file.sha256 is None:
        return
    digest = hashlib.sha256()
    for term in file.terms:
        for piece in _term_content(core, term):
            digest.update(piece)
    if digest.hexdigest() != file.sha256:
        raise HubError(400, f"Bad shard: the content of {file.hash} has sha256 {digest.hexdigest()}, not {file.sha256}")


def _index(core: Core, xorb: str) -> list[Chunk]:
    index = core.chunk_indexes.get(xorb)
    if index is None:
        row = core.store.row("SELECT chunks FROM xorb WHERE hash = ?", xorb)
        if row is None:
            raise HubError(400, f"Xorb {xorb} was never uploaded")
        if len(core.chunk_indexes) >= _CACHED_INDEXES:
            core.chunk_indexes.clear()
        index = core.chunk_indexes[xorb] = xet.unpack_index(row[0])
    return index


def _bounds(index: list[Chunk], start: int, end: int) -> tuple[int, int]:
    """The bytes of a xorb, start and end (exclusive), that hold the chunks `start` to `end` (exclusive)."""
    return (index[start - 1].end if start else 0), index[end - 1].end


def _term_content(core: Core, term: Term) -> Iterator[bytes]:
    index = _index(core, term.xorb)
    position = term.start
    with core.blobs.open("xorb", term.xorb) as file:
        while position < term.end:
            stop, begin = position + 1, _bounds(index, position, position + 1)[0]
            while stop < term.end and index[stop].end - begin <= _PIECE_BYTES:
                stop += 1
            file.seek(begin)
            yield b"".join(xet.unpack_chunks(file.read(index[stop - 1].end - begin)))
            position = stop


def content(core: Core, file_hash: str, start: int, end: int) -> Iterator[bytes]:
    """The bytes `start` to `end` (exclusive) of a registered file, in pieces of about 1 MiB."""
    terms, _ = file_terms(core, file_hash)
    offset, trimmed = _trim(core, terms, start, end)
    skip, left = offset, end - start
    for term in trimmed:
        for piece in _term_content(core, term):
            part = piece[skip : skip + left]
            skip = max(0, skip - len(piece))
            left -= len(part)
            if part:
                yield part


def file_terms(core: Core, file_hash: str) -> tuple[list[Term], int]:
    """(terms, size in bytes) of a registered file."""
    row = core.store.row("SELECT terms, size FROM xetfile WHERE hash = ?", file_hash)
    if row is None:
        raise HubError(404, "Not Found")
    return [Term(*term) for term in json.loads(row[0])], int(row[1])


def _trim(core: Core, terms: list[Term], start: int, end: int) -> tuple[int, list[Term]]:
    """Where `start` is in the first of the terms cut down to what holds `start` to `end`, and these terms."""
    out: list[Term] = []
    offset = position = 0
    for term in terms:
        index = _index(core, term.xorb)
        first = last = None
        unpacked = 0
        for number in range(term.start, term.end):
            size = index[number].unpacked
            if position < end and position + size > start:
                if first is None:
                    first = number
                    if not out:
                        offset = start - position
                last = number
                unpacked += size
            position += size
        if first is not None and last is not None:
            out.append(Term(term.xorb, first, last + 1, unpacked))
    return offset, out


def reconstruction(core: Core, call: Call) -> Response:
    """How to put a file, or a range of it, together from ranges of xorbs."""
    claims(core, call, "read")
    terms, size = file_terms(core, call.params["hash"])
    start, end = 0, size
    if header := call.request.headers.get("range"):
        match = _RANGE.match(header)
        if match is None:
            raise HubError(400, "Bad range")
        start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
        if start >= size or end <= start:
            raise HubError(416, "Range Not Satisfiable")
    offset, trimmed = _trim(core, terms, start, end)
    fetch: dict[str, list[dict[str, Any]]] = {}
    for term in dict.fromkeys(trimmed):
        first, last = _bounds(_index(core, term.xorb), term.start, term.end)
        signed = core.sign({"xorb": term.xorb, "exp": core.clock() + _URL_TTL_S})
        entry = {
            "range": {"start": term.start, "end": term.end},
            "url": f"{cas_url(core)}/xorb-data/{signed}",
            "url_range": {"start": first, "end": last - 1},
        }
        if entry not in fetch.setdefault(term.xorb, []):
            fetch[term.xorb].append(entry)
    shown = [
        {"hash": term.xorb, "unpacked_length": term.unpacked, "range": {"start": term.start, "end": term.end}}
        for term in trimmed
    ]
    return json_response({"offset_into_first_range": offset, "terms": shown, "fetch_info": fetch})


def xorb_data(core: Core, call: Call) -> Response:
    """A byte range of a stored xorb, under the signed address that a reconstruction gave."""
    allowed = core.verify(call.params["signed"])
    if allowed is None or "xorb" not in allowed:
        raise HubError(403, "Access denied: the signature is wrong or has expired")
    name = str(allowed["xorb"])
    size = core.blobs.size("xorb", name)
    match = _RANGE.match(call.request.headers.get("range", ""))
    start, end, status = 0, size, 200
    headers = {"Accept-Ranges": "bytes"}
    if match:
        start, end, status = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size), 206
        if start >= end:
            raise HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    headers["Content-Length"] = str(end - start)
    return StreamingResponse(core.blobs.stream("xorb", name, start, end), status, headers, "application/octet-stream")


_CAS = "/_localhub/cas/{hub}"
ROUTES = [
    Route(Operation.XET_TOKEN, "GET", "/api/{type}/{repo}/xet-(?P<scope>read|write)-token/{rev}", token),
    Route(Operation.XET_TOKEN, "GET", "/api/{type}/{repo}/xet-(?P<scope>read|write)-token", token),
    Route(Operation.XORB_GRANT, "POST", _CAS + "/v1/xorb-grants/{prefix}/{hash}", refuse_grant),
    Route(Operation.XORB, "POST", _CAS + "/v1/xorbs/{prefix}/{hash}", stream=put_xorb),
    Route(Operation.SHARD, "POST", _CAS + "/(?P<version>v[12])/shards", put_shard),
    Route(Operation.SHARD, "POST", _CAS + "/shards", put_shard),
    Route(Operation.RECONSTRUCTION, "GET", _CAS + "/v2/reconstructions/{hash}", no_second_version),
    Route(Operation.RECONSTRUCTION, "GET", _CAS + "/v1/reconstructions/{hash}", reconstruction),
    Route(Operation.CHUNK, "GET", _CAS + "/v1/chunks/{prefix}/{hash}", no_chunk),
    Route(Operation.XORB_DATA, "GET", _CAS + "/xorb-data/{signed}", xorb_data),
]
