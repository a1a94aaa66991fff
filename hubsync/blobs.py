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
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from hubsync.crashpoints import CrashPoint, reach
from hubsync.errors import BlockedError, DefectError, TransientError
from hubsync.http import HubHTTP, classify
from hubsync.plan import Shard

_LFS = {"accept": "application/vnd.git-lfs+json", "content-type": "application/vnd.git-lfs+json"}
_BATCH = 100  # objects in one LFS batch call
_PIECE = 1 << 20
_XET_NICE = 10


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
        try:
            grant = answer.json("xet-write-token")
            access = (str(grant["casUrl"]), str(grant["accessToken"]), int(grant["exp"]))
        except (KeyError, TypeError, ValueError):
            raise TransientError("xet-write-token: the answer lacks casUrl, accessToken or exp.") from None
        auth = self._http.authorization()
        session = await anyio.to_thread.run_sync(self._get_session)
        try:
            await anyio.to_thread.run_sync(
                self._run, session, access, auth, [(str(s.file), s.sha256) for s in shards], abandon_on_cancel=True
            )
        except anyio.get_cancelled_exc_class():
            self.abort()
            raise
        reach(CrashPoint.BLOB_STAGED)

    def _run(
        self, session: Any, access: tuple[str, str, int], auth: dict[str, str], files: list[tuple[str, str]]
    ) -> None:
        url, token, expires = access
        refresh = f"{self._http.endpoint}/{self._token_url}"
        try:
            with session.new_upload_commit(
                endpoint=url,
                token=token,
                token_expiry_unix_secs=expires,
                token_refresh_url=refresh,
                token_refresh_headers=auth,
            ) as commit:
                for file, sha256 in files:
                    commit.start_upload_file(file, sha256=sha256)
        except Exception as error:  # noqa: BLE001  (hf_xet raises builtins of every kind)
            text = str(error)
            for secret in (token, *auth.values()):
                text = text.replace(secret, "***")
            raise TransientError(f"uploading {len(files)} shards to Xet: {type(error).__name__}: {text}") from None

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
            try:
                for item in answer.json("lfs batch")["objects"]:
                    await self._object(by_oid[item["oid"]], item)
                    reach(CrashPoint.BLOB_STAGED)
            except (KeyError, TypeError, ValueError) as error:
                raise TransientError(f"lfs batch: an answer that can't be read ({error!r}).") from None

    async def _object(self, shard: Shard, item: dict[str, Any]) -> None:
        if "error" in item:
            error = item["error"]
            raise classify(f"lfs {shard.path}", int(error["code"]), {"x-error-message": str(error["message"])}, b"")
        actions = item.get("actions")
        if not actions:
            return  # it is there already
        upload = actions["upload"]
        header = {str(k): str(v) for k, v in (upload.get("header") or {}).items()}
        if "chunk_size" in header:
            await self._multipart(shard, upload["href"], header)
        else:
            await self._put(shard, upload["href"], 0, shard.size, header)
        if "verify" in actions:
            await self._http.send(
                f"lfs verify {shard.path}",
                "POST",
                actions["verify"]["href"],
                json={"oid": shard.sha256, "size": shard.size},
                headers={str(k): str(v) for k, v in (actions["verify"].get("header") or {}).items()},
            )

    async def _multipart(self, shard: Shard, href: str, header: dict[str, str]) -> None:
        size = int(header["chunk_size"])
        urls = [url for _, url in sorted((int(n), url) for n, url in header.items() if n.isdigit())]
        if size <= 0 or len(urls) != math.ceil(shard.size / size):
            raise TransientError(f"lfs {shard.path}: {len(urls)} parts of {size} bytes do not make {shard.size}.")
        parts = []
        for number, url in enumerate(urls):
            start = number * size
            etag = await self._put(shard, url, start, min(size, shard.size - start), {})
            parts.append({"partNumber": number + 1, "etag": etag})
        await self._http.send(
            f"lfs complete {shard.path}", "POST", href, json={"oid": shard.sha256, "parts": parts}, headers=_LFS
        )

    async def _put(self, shard: Shard, url: str, start: int, size: int, headers: dict[str, str]) -> str:
        try:
            answer = await self._http.send(
                f"lfs upload {shard.path}",
                "PUT",
                url,
                content=read_pieces(shard.file, start, size),
                headers={**headers, "content-length": str(size)},
            )
        except (BlockedError, DefectError) as error:
            # The store's signed URL may have run out, and its errors are not the Hub's: ask for a new one.
            raise TransientError(str(error), status=error.status) from None
        return answer.headers.get("etag", "")


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
