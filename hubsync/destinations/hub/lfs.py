"""Upload blobs through git-LFS, for a Hub or a machine without Xet."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import anyio
import anyio.to_thread
import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import open_regular
from hubsync._runtime.secret import Secret
from hubsync.destinations.hub.responses import classify
from hubsync.destinations.hub.transport import HubHTTP
from hubsync.errors import BlockedError, DefectError, TransientError, UnreadableShard
from hubsync.model.shard import Shard

_LFS = {"accept": "application/vnd.git-lfs+json", "content-type": "application/vnd.git-lfs+json"}
_BATCH = 100  # objects in one batch request
_PIECE = 1 << 20


class _Action(msgspec.Struct):
    """Where to send a request, and its headers. Both may contain a signature."""

    href: Secret
    header: dict[str, Secret] | None = None


class _Actions(msgspec.Struct):
    upload: _Action | None = None
    verify: _Action | None = None


class _ObjectError(msgspec.Struct):
    code: Annotated[int, msgspec.Meta(ge=0, le=999)]
    message: str = ""


class _Object(msgspec.Struct):
    oid: str
    actions: _Actions | None = None
    error: _ObjectError | None = None


class _BatchResponse(msgspec.Struct):
    objects: list[_Object]


class LfsStore:
    """Uploads with git-LFS' batch API: one PUT, or several parts if the Hub requests them, then verify."""

    def __init__(self, http: HubHTTP, batch_url: str, revision: str) -> None:
        self._http = http
        self._batch_url = batch_url
        self._revision = revision

    async def upload(self, shards: Sequence[Shard]) -> None:
        """Upload the shards that the Hub does not have yet. Idempotent.

        Raises:
            DefectError: The Hub rejected a shard.
            HubError: A request failed; the type says what to do next.
        """
        by_oid = {shard.sha256: shard for shard in shards}
        oids = list(by_oid)
        for start in range(0, len(oids), _BATCH):
            response = await self._http.send(
                "lfs batch",
                "POST",
                self._batch_url,
                json={
                    "operation": "upload",
                    "transfers": ["basic", "multipart"],
                    "objects": [{"oid": oid, "size": by_oid[oid].size} for oid in oids[start : start + _BATCH]],
                    "hash_algo": "sha256",
                    "ref": {"name": self._revision},
                },
                headers=_LFS,
            )
            found = {item.oid: item for item in response.decode("lfs batch", _BatchResponse).objects}
            for oid in oids[start : start + _BATCH]:
                if oid not in found:
                    raise TransientError(f"lfs batch: the response does not mention {by_oid[oid].path}.")
                await self._object(by_oid[oid], found[oid])
                failpoint(Failpoint.BLOB_STAGED)

    async def _object(self, shard: Shard, item: _Object) -> None:
        if item.error is not None:
            raise classify(f"lfs {shard.path}", item.error.code, {"x-error-message": item.error.message}, b"")
        if item.actions is None or item.actions.upload is None:
            return  # the Hub has it
        upload, verify = item.actions.upload, item.actions.verify
        if "chunk_size" in (upload.header or {}):
            await self._multipart(shard, upload)
        else:
            await self._put(shard, upload.href, 0, shard.size, upload.header or {})
        if verify is not None:
            with _as_transient():
                await self._http.send(
                    f"lfs verify {shard.path}",
                    "POST",
                    verify.href,
                    json={"oid": shard.sha256, "size": shard.size},
                    headers=verify.header,
                    any_host=True,
                )

    async def _multipart(self, shard: Shard, upload: _Action) -> None:
        header = upload.header or {}
        size = _number(header["chunk_size"].reveal())
        urls = [header[name] for name in sorted((n for n in header if _number(n)), key=_number)]
        if size <= 0 or len(urls) != math.ceil(shard.size / size):
            raise TransientError(f"lfs {shard.path}: {len(urls)} parts of {size} bytes do not make {shard.size}.")
        parts = []
        for number, url in enumerate(urls):
            start = number * size
            etag = await self._put(shard, url, start, min(size, shard.size - start), {})
            parts.append({"partNumber": number + 1, "etag": etag})
        with _as_transient():
            await self._http.send(
                f"lfs complete {shard.path}",
                "POST",
                upload.href,
                json={"oid": shard.sha256, "parts": parts},
                headers=_LFS,
                any_host=True,
            )

    async def _put(self, shard: Shard, url: Secret, start: int, size: int, headers: Mapping[str, Secret]) -> str:
        with _as_transient():
            response = await self._http.send(
                f"lfs upload {shard.path}",
                "PUT",
                url,
                content=partial(read_pieces, shard.file, start, size),
                headers={**headers, "content-length": str(size)},
                any_host=True,
            )
        return response.headers.get("etag", "")


@contextlib.contextmanager
def _as_transient() -> Iterator[None]:
    """Report a store's errors as transient: its signed URL has expired, or a proxy answered the PUT.

    An operator cannot fix that; another PUT can succeed.
    """
    try:
        yield
    except (BlockedError, DefectError) as error:
        if error.status is None:  # a certificate or the token: an operator can fix that
            raise
        raise TransientError(str(error), status=error.status) from None


def _number(text: str) -> int:
    """Return the number of a part, or its size; 0 if `text` is not one."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else 0


async def read_pieces(file: Path, start: int, size: int, piece: int = _PIECE) -> AsyncIterator[bytes]:
    """Yield `size` bytes of a file from `start`, piece by piece. The disk is read in worker threads."""
    async with anyio.wrap_file(await anyio.to_thread.run_sync(open_regular, file)) as stream:
        await stream.seek(start)
        while size > 0:
            data = await stream.read(min(piece, size))
            if not data:
                raise UnreadableShard(f"{file} is shorter than the catalogue says.")
            size -= len(data)
            yield data
