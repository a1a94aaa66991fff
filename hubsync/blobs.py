"""Staging: a shard's bytes become a blob on the Hub, through Xet, or through LFS where there is no hf_xet.

Costs nothing of the commit quota, makes nothing visible, and is idempotent: both stores are addressed by content.
hf_xet works in Rust without the GIL; it is called in a worker thread that a cancelled scope leaves behind.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import msgspec

from hubsync.crashpoints import CrashPoint, reach
from hubsync.errors import BlockedError, DefectError, TransientError
from hubsync.http import HubHTTP, classify
from hubsync.plan import Shard
from hubsync.secret import Secret, hide

_LFS = {"accept": "application/vnd.git-lfs+json", "content-type": "application/vnd.git-lfs+json"}
_BATCH = 100  # objects in one LFS batch call
_PIECE = 1 << 20
_XET_NICE = 10


class _Grant(msgspec.Struct, rename="camel"):
    cas_url: str
    access_token: Secret
    exp: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


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


def xet_available() -> bool:
    """Whether hf_xet is installed in a version with sessions, and not switched off by HF_HUB_DISABLE_XET."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET or _is_true(os.environ.get("HF_HUB_DISABLE_XET")):
        return False
    try:
        import hf_xet
    except ImportError:
        return False
    return hasattr(hf_xet, "XetSession")


def _is_true(value: str | None) -> bool:
    return value is not None and value.upper() in ("1", "ON", "YES", "TRUE")


class XetStore:
    """Uploads through hf_xet. One session serves a process; a forked child makes its own."""

    def __init__(self, http: HubHTTP, token_url: str) -> None:
        self._http = http
        self._token_url = token_url
        self._lock = threading.Lock()
        self._session: Any = None
        self._pid = 0

    async def upload(self, shards: Sequence[Shard]) -> None:
        """Uploads all of them in one go, deduplicated against each other and the store.

        Raises:
            TransientError: the store could not be reached or refused; hf_xet has already retried for minutes.
            BlockedError: no write token is to be had.
        """
        answer = await self._http.send("xet-write-token", "GET", self._token_url)
        grant = answer.decode("xet-write-token", _Grant)
        if not self._http.is_safe(grant.cas_url):
            # hf_xet would also take `local:///some/where`, and write there.
            raise TransientError(f"xet-write-token: sent to a store that is not safe ({grant.cas_url[:80]!r}).")
        session = await anyio.to_thread.run_sync(self._get_session)
        try:
            await anyio.to_thread.run_sync(
                self._run, session, grant, [(str(s.file), s.sha256) for s in shards], abandon_on_cancel=True
            )
        except anyio.get_cancelled_exc_class():
            self.abort()
            raise
        reach(CrashPoint.BLOB_STAGED)

    def _run(self, session: Any, grant: _Grant, files: list[tuple[str, str]]) -> None:
        try:
            with session.new_upload_commit(
                endpoint=grant.cas_url,
                token=grant.access_token.reveal(),
                token_expiry_unix_secs=grant.exp,
                token_refresh_url=f"{self._http.endpoint}/{self._token_url}",
                token_refresh_headers={**self._http.authorization(), **self._http.sender},
                custom_headers=self._http.sender,
            ) as commit:
                for file, sha256 in files:
                    commit.start_upload_file(file, sha256=sha256)
            return
        except Exception as error:  # noqa: BLE001  (hf_xet raises builtins of every kind)
            why = grant.access_token.hide_in(hide(f"{type(error).__name__}: {error}"))
        # Not within the `except`: the context of this error would be one whose text nobody has gone through.
        raise TransientError(f"uploading {len(files)} shards to Xet: {why}")

    def _get_session(self) -> Any:
        with self._lock:
            if self._session is None or self._pid != os.getpid():
                maker = threading.Thread(target=self._make_session, name="hubsync xet")
                maker.start()
                maker.join()
                self._pid = os.getpid()
            return self._session

    def _make_session(self) -> None:
        """In a thread of its own, whose lower priority hf_xet's threads take over: chunking and compressing use every
        core, and the job must not feel it.
        """
        import hf_xet

        if sys.platform == "linux":  # where a priority is a thread's own
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _XET_NICE)
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # this thread; it wakes up behind others
        self._session = hf_xet.XetSession()

    def abort(self) -> None:
        """Stops what is under way; the next upload makes a new session."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None and self._pid == os.getpid():
            session.sigint_abort()


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
                reach(CrashPoint.BLOB_STAGED)

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
                    abroad=True,
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
                abroad=True,
            )

    async def _put(self, shard: Shard, url: Secret, start: int, size: int, headers: Mapping[str, Secret]) -> str:
        with _never_arrived():
            answer = await self._http.send(
                f"lfs upload {shard.path}",
                "PUT",
                url,
                content=partial(read_pieces, shard.file, start, size),
                headers={**headers, "content-length": str(size)},
                abroad=True,
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
