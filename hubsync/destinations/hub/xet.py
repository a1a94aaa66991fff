"""Upload blobs through hf_xet. One session serves a process."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Sequence
from typing import Annotated, Any

import anyio
import anyio.to_thread
import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.secret import Secret, hide
from hubsync.destinations.hub.transport import HubHTTP
from hubsync.errors import TransientError
from hubsync.model.shard import Shard

_XET_NICE = 10


class _Grant(msgspec.Struct, rename="camel"):
    cas_url: str
    access_token: Secret
    exp: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


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
        failpoint(Failpoint.BLOB_STAGED)

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
