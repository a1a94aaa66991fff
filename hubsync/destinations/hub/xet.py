"""Upload blobs through hf_xet, which deduplicates them by chunks. It works in Rust, without the GIL."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import anyio
import msgspec

from hubsync._runtime.failpoints import Failpoint, failpoint
from hubsync._runtime.files import open_regular
from hubsync._runtime.formatting import count_text
from hubsync._runtime.secret import Secret, hide
from hubsync._runtime.threads import run_in_thread
from hubsync._runtime.validation import is_set
from hubsync.destinations.hub.transport import HubHTTP
from hubsync.errors import TransientError, UnreadableShard
from hubsync.model.shard import Shard

_OPEN_FILES = 16  # of one upload; hf_xet reads 8 at a time
_PROC = Path("/proc/self/fd")  # Linux
_NICE = 10  # how much lower the priority of hf_xet's threads is


class _Grant(msgspec.Struct, rename="camel"):
    cas_url: str
    access_token: Secret
    exp: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


def xet_available() -> bool:
    """Return whether a version of hf_xet with sessions is installed, and HF_HUB_DISABLE_XET does not disable it."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET or is_set("HF_HUB_DISABLE_XET"):
        return False
    try:
        import hf_xet
    except ImportError:
        return False
    return hasattr(hf_xet, "XetSession")


def _send(commit: Any, shards: Sequence[Shard]) -> None:
    """Hand the shards' files to hf_xet, a few at a time: each is open here until hf_xet has read it."""
    with contextlib.ExitStack() as opened:
        sent: deque[tuple[Any, BinaryIO]] = deque()
        for shard in shards:
            if len(sent) == _OPEN_FILES:
                upload, file = sent.popleft()
                upload.result()
                file.close()
            file = opened.enter_context(_open(shard.file))
            sent.append((commit.start_upload_file(_path_of(file, shard.file), sha256=shard.sha256), file))
        for upload, _ in sent:
            upload.result()


def _open(file: Path) -> BinaryIO:
    try:
        return open_regular(file)
    except OSError as error:
        raise UnreadableShard(f"a shard cannot be read: {error}.") from error


def _path_of(file: BinaryIO, path: Path) -> str:
    """Return a path by which hf_xet opens this very file.

    If a named pipe took the place of the file, hf_xet would wait for its writer forever, and hold the GIL once it is
    to abort.
    """
    return f"/proc/self/fd/{file.fileno()}" if _PROC.is_dir() else str(path)


class XetStore:
    """Uploads blobs in one hf_xet session per process; a forked child creates its own."""

    def __init__(self, http: HubHTTP, token_url: str) -> None:
        self._http = http
        self._token_url = token_url
        self._lock = threading.Lock()
        self._session: Any = None
        self._pid = 0

    async def upload(self, shards: Sequence[Shard]) -> None:
        """Upload all shards in one hf_xet commit, which is not a commit of the repo. Idempotent.

        Raises:
            TransientError: The store is unreachable or rejected them; hf_xet has already retried for minutes.
            `UnreadableShard`: a file cannot be opened.
            BlockedError: The Hub gives no write token.
        """
        response = await self._http.send("xet-write-token", "GET", self._token_url)
        grant = response.decode("xet-write-token", _Grant)
        if not self._http.is_safe(grant.cas_url):
            # hf_xet accepts `local:///some/where`, too, and would write there.
            raise TransientError(
                f"xet-write-token: the store's URL is not safe ({grant.cas_url[:80]!r}); not followed."
            )
        session = await run_in_thread(self._get_session)
        try:
            await run_in_thread(self._run, session, grant, shards, abandon_on_cancel=True)
        except anyio.get_cancelled_exc_class():
            self.abort()
            raise
        failpoint(Failpoint.BLOB_STAGED)

    def _run(self, session: Any, grant: _Grant, shards: Sequence[Shard]) -> None:
        try:
            with session.new_upload_commit(
                endpoint=grant.cas_url,
                token=grant.access_token.reveal(),
                token_expiry_unix_secs=grant.exp,
                token_refresh_url=f"{self._http.endpoint}/{self._token_url}",
                token_refresh_headers={**self._http.authorization(), **self._http.sender},
                custom_headers=self._http.sender,
            ) as commit:
                _send(commit, shards)
            return
        except UnreadableShard:
            raise
        except Exception as error:  # noqa: BLE001  (hf_xet raises many builtin exceptions)
            why = grant.access_token.hide_in(hide(f"{type(error).__name__}: {error}"))
        # Outside of the `except`: otherwise the error's context would be one whose text may contain secrets.
        raise TransientError(f"uploading {count_text(len(shards), 'shard')} to Xet: {why}")

    def _get_session(self) -> Any:
        with self._lock:
            if self._session is None or self._pid != os.getpid():
                thread = threading.Thread(target=self._create_session, name="hubsync xet")
                thread.start()
                thread.join()
                self._pid = os.getpid()
            return self._session

    def _create_session(self) -> None:
        """Create the session in its own thread, whose lower priority hf_xet's threads inherit.

        Chunking and compression use every core; they must not slow the job down.
        """
        import hf_xet

        if sys.platform == "linux":  # where each thread has its own priority
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
                # 0: this thread. It does not preempt others when it wakes up.
                os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        self._session = hf_xet.XetSession()

    def abort(self) -> None:
        """Abort running uploads. The next upload creates a new session."""
        with self._lock:
            session, self._session = self._session, None
        if session is not None and self._pid == os.getpid():
            session.sigint_abort()
