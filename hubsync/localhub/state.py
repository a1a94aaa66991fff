"""What every handler works with: the stores and the limits, signed addresses, revisions and trees."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from hubsync.localhub.limits import CommitQuota, Limits
from hubsync.localhub.protocol import HubError
from hubsync.localhub.storage.blobs import BlobStore, Upload
from hubsync.localhub.storage.history import Commit, Content, FolderLimit, History, PathConflict
from hubsync.localhub.storage.store import Repo, Store
from hubsync.localhub.xet.cas import ContentStore

T = TypeVar("T")
_WORKERS = 16
_WRITE_BYTES = 1 << 20


class HubState:
    """The Hub without its HTTP face. Opened on a directory, closed once; all state is on disk."""

    def __init__(self, directory: Path, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.limits = limits
        self.clock = clock
        self.endpoint = ""
        self.store = Store(directory / "hub.sqlite3")
        self.blobs = BlobStore(directory)
        self.history = History(self.store, clock)
        self.cas = ContentStore(self.store, self.blobs)
        self.quota = CommitQuota(self.store, limits, clock)
        self.hub_id = self.store.setting("hub-id", secrets.token_hex(6))
        self._secret = self.store.setting("secret", secrets.token_hex(32)).encode()
        self._workers: anyio.CapacityLimiter | None = None

    def close(self) -> None:
        """Close the database."""
        self.store.close()

    @property
    def cas_url(self) -> str:
        """The address of the CAS.

        It contains the Hub's id: hf_xet caches by address, and another Hub may later use the same port.
        """
        return f"{self.endpoint}/_localhub/cas/{self.hub_id}"

    # Work off the event loop

    async def in_thread(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run disk or hash work in a worker thread. A step that has begun is finished even if the client has gone."""
        if self._workers is None:
            self._workers = anyio.CapacityLimiter(_WORKERS)
        return await anyio.to_thread.run_sync(functools.partial(function, *args, **kwargs), limiter=self._workers)

    def release_loop(self) -> None:
        """Forget the event loop that `in_thread` ran on; a restarted server has another."""
        self._workers = None

    async def receive(self, pieces: AsyncIterator[bytes], upload: Upload, *, max_bytes: int) -> None:
        """Write a body to disk while it arrives; refuse one of more than `max_bytes` (413).

        A worker thread hashes and writes a mebibyte at a time, while the kernel goes on receiving.
        """
        waiting: list[bytes] = []
        size = 0
        async for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if upload.size + size > max_bytes:
                raise HubError(413, f"Payload Too Large: there may be {max_bytes} bytes")
            if size >= _WRITE_BYTES:
                await self.in_thread(upload.write, b"".join(waiting))
                waiting.clear()
                size = 0
        await self.in_thread(upload.write, b"".join(waiting))

    # Signed strings: Xet tokens and the addresses of blobs, valid without a session and across restarts

    def sign(self, claims: dict[str, Any]) -> str:
        """Return claims as a signed string."""
        body = base64.urlsafe_b64encode(json.dumps(claims, separators=(",", ":")).encode()).decode().rstrip("=")
        return f"{body}.{self._signature(body)}"

    def verify(self, token: str) -> dict[str, Any] | None:
        """Return the claims of a string that this Hub signed; None if it is forged or expired (`exp`, Unix seconds)."""
        body, _, signature = token.partition(".")
        if not token.isascii() or not hmac.compare_digest(self._signature(body), signature):
            return None
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return claims if claims.get("exp", 0) > self.clock() else None

    def verify_address(self, signed: str, claim: str) -> dict[str, Any]:
        """Return the claims of a signed address, one of which must be `claim`; refuse any other address (403)."""
        claims = self.verify(signed)
        if claims is None or claim not in claims:
            raise HubError(403, "Access denied: the signature is wrong or has expired")
        return claims

    def _signature(self, body: str) -> str:
        return hmac.new(self._secret, body.encode(), hashlib.sha256).hexdigest()[:32]

    # Revisions and small files

    def revision(self, repo: Repo, revision: str) -> Commit:
        """Return the commit of a revision; 404 if it does not exist."""
        oid = self.history.resolve(repo, revision)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.history.commit(repo, oid)

    def write_tree(self, base: Commit, changes: Mapping[str, str | None], ref: str) -> str:
        """Write the tree of a commit to `ref`; refuse one that git or the Hub would not take (400)."""
        try:
            return self.history.write_tree(base.tree, changes, most_entries=self.limits.folder_entries)
        except PathConflict as conflict:
            raise HubError(400, f"Invalid operations: {conflict}") from None
        except FolderLimit as limit:
            message = (
                "Your push was rejected because it contains too many files per directory. Each directory in your git "
                f"repo can only contain up to {self.limits.folder_entries} files. Offending reference: {ref} "
                f"Offending directories: {', '.join(limit.folders)}"
            )
            raise HubError(400, message) from None

    def text(self, content: Content | None) -> str:
        """Return a regular file as text; the empty string for a missing or a large one."""
        if content is None or content.sha256 is not None:
            return ""
        return self.blobs.read("git", content.oid).decode("utf-8", "replace")
