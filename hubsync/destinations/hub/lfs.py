"""Staging: a shard's bytes become a blob on the Hub, through Xet, or through LFS where there is no hf_xet.

Costs nothing of the commit quota, makes nothing visible, and is idempotent: both stores are addressed by content.
hf_xet works in Rust without the GIL; it is called in a worker thread that a cancelled scope leaves behind.
"""

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
from hubsync._runtime.secret import Secret
from hubsync.destinations.hub.responses import classify
from hubsync.destinations.hub.transport import HubHTTP
from hubsync.errors import BlockedError, DefectError, TransientError
from hubsync.model.shard import Shard

_LFS = {"accept": "application/vnd.git-lfs+json", "content-type": "application/vnd.git-lfs+json"}
_BATCH = 100  # objects in one LFS batch call
_PIECE = 1 << 20


class _Action(msgspec.Struct):
    """Where to send something, and with what: both may be signed."""

    href: Secret
    header: dict[str, Secret] | None = None


class _Actions(msgspec.Struct):
    upload: _Action | None = None
    verify: _Action | None = None


class _Refusal(msgspec.Struct):
    code: Annotated[int, msgspec.Meta(ge=0, le=999)]
    message: str = ""


class _Object(msgspec.Struct):
    oid: str
    actions: _Actions | None = None
    error: _Refusal | None = None


class _Batch(msgspec.Struct):
    objects: list[_Object]


class LfsStore:
    """Uploads by git-LFS' batch API: one PUT, or parts where the Hub asks for them, then verify."""

    def __init__(self, http: HubHTTP, batch_url: str, revision: str) -> None:
        self._http = http
        self._batch_url = batch_url
        self._revision = revision

    async def upload(self, shards: Sequence[Shard]) -> None:
        """Uploads those that the Hub does not have yet.

        Raises:
            HubError: as `HubHTTP.send`; a shard that the Hub refuses is a `DefectError`.
        """
        by_oid = {shard.sha256: shard for shard in shards}
        oids = list(by_oid)
        for start in range(0, len(oids), _BATCH):
            answer = await self._http.send(
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
            found = {item.oid: item for item in answer.decode("lfs batch", _Batch).objects}
            for oid in oids[start : start + _BATCH]:
                if oid not in found:
                    raise TransientError(f"lfs batch: no word on {by_oid[oid].path}.")
                await self._object(by_oid[oid], found[oid])
                failpoint(Failpoint.BLOB_STAGED)

    async def _object(self, shard: Shard, item: _Object) -> None:
        if item.error is not None:
            raise classify(f"lfs {shard.path}", item.error.code, {"x-error-message": item.error.message}, b"")
        if item.actions is None or item.actions.upload is None:
            return  # it is there already
        upload, verify = item.actions.upload, item.actions.verify
        if "chunk_size" in (upload.header or {}):
            await self._multipart(shard, upload)
        else:
            await self._put(shard, upload.href, 0, shard.size, upload.header or {})
        if verify is not None:
            with _never_arrived():
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
        with _never_arrived():
            await self._http.send(
                f"lfs complete {shard.path}",
                "POST",
                upload.href,
                json={"oid": shard.sha256, "parts": parts},
                headers=_LFS,
                any_host=True,
            )

    async def _put(self, shard: Shard, url: Secret, start: int, size: int, headers: Mapping[str, Secret]) -> str:
        with _never_arrived():
            answer = await self._http.send(
                f"lfs upload {shard.path}",
                "PUT",
                url,
                content=partial(read_pieces, shard.file, start, size),
                headers={**headers, "content-length": str(size)},
                any_host=True,
            )
        return answer.headers.get("etag", "")


@contextlib.contextmanager
def _never_arrived() -> Iterator[None]:
    """A store's errors are not the Hub's: its signed URL has run out, or a PUT was answered on the way and did not
    arrive. No person can mend that; another PUT does.
    """
    try:
        yield
    except (BlockedError, DefectError) as error:
        if error.status is None:  # a certificate, or the token: a person can
            raise
        raise TransientError(str(error), status=error.status) from None


def _number(text: str) -> int:
    """A number that a part or its size can have, else 0."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 15 else 0


async def read_pieces(file: Path, start: int, size: int, piece: int = _PIECE) -> AsyncIterator[bytes]:
    """`size` bytes of a file from `start`, piece by piece; the disk is read in worker threads."""
    async with await anyio.open_file(file, "rb") as stream:
        await stream.seek(start)
        while size > 0:
            data = await stream.read(min(piece, size))
            if not data:
                raise TransientError(f"{file} is shorter than the catalogue says.")
            size -= len(data)
            yield data
