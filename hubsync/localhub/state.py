"""What every handler works with: the stores, the settings, and the Hub's rules on who may see and do what.

`readable` and `writable` are the only ways from a request to a repo, so that a private repo looks the same as a
missing one everywhere, and a read token or a stranger is refused before anything is looked at.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from hubsync.localhub.call import Call, HubError
from hubsync.localhub.limits import CommitQuota
from hubsync.localhub.storage.blobs import BlobStore, Incoming
from hubsync.localhub.storage.history import Commit, History
from hubsync.localhub.storage.store import Caller, Repo, Store
from hubsync.localhub.xet.cas import ContentStore

T = TypeVar("T")
_WORKERS = 16
_WRITE_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """How this Hub behaves; times are in seconds, `None` means no limit."""

    commits_per_hour: int | None = None
    requests_per_window: int | None = None
    xet_token_ttl_s: float = 3600.0
    lfs_multipart_bytes: int = 20_000_000


class HubState:
    """The Hub behind its HTTP face. Opened on a directory, closed once; all state is on disk."""

    def __init__(self, directory: Path, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.settings = settings
        self.clock = clock
        self.endpoint = ""
        self.store = Store(directory / "hub.sqlite3")
        self.blobs = BlobStore(directory)
        self.history = History(self.store)
        self.content = ContentStore(self.store, self.blobs)
        self.quota = CommitQuota(self.store, settings.commits_per_hour, clock)
        self.hub_id = self.store.setting("hub-id", secrets.token_hex(6))
        self._secret = self.store.setting("secret", secrets.token_hex(32)).encode()
        self._workers: anyio.CapacityLimiter | None = None

    def close(self) -> None:
        self.store.close()

    async def in_thread(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run disk or hash work off the event loop. A step that began is finished even if the client has gone."""
        if self._workers is None:
            self._workers = anyio.CapacityLimiter(_WORKERS)
        return await anyio.to_thread.run_sync(functools.partial(function, *args, **kwargs), limiter=self._workers)

    async def take_in(self, pieces: AsyncIterator[bytes], incoming: Incoming, most: int) -> None:
        """Write a body to disk as it comes; 413 beyond `most` bytes.

        Hashing and writing run in a worker thread for a mebibyte at a time, while the kernel goes on receiving.
        """
        waiting: list[bytes] = []
        size = 0
        async for piece in pieces:
            waiting.append(piece)
            size += len(piece)
            if incoming.size + size > most:
                raise HubError(413, f"Payload Too Large: there may be {most} bytes")
            if size >= _WRITE_BYTES:
                await self.in_thread(incoming.write, b"".join(waiting))
                waiting.clear()
                size = 0
        await self.in_thread(incoming.write, b"".join(waiting))

    def forget_loop(self) -> None:
        """The limiter belongs to one event loop; a restarted server has another."""
        self._workers = None

    # Signed strings: Xet tokens and the addresses of blobs, valid without a session and across restarts

    def sign(self, claims: dict[str, Any]) -> str:
        body = base64.urlsafe_b64encode(json.dumps(claims, separators=(",", ":")).encode()).decode().rstrip("=")
        return f"{body}.{hmac.new(self._secret, body.encode(), hashlib.sha256).hexdigest()[:32]}"

    def verify(self, token: str) -> dict[str, Any] | None:
        """The claims of a string that this Hub signed and that has not expired (`exp`, Unix seconds)."""
        body, _, signature = token.partition(".")
        if not token.isascii() or not hmac.compare_digest(
            hmac.new(self._secret, body.encode(), hashlib.sha256).hexdigest()[:32], signature
        ):
            return None
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        return claims if claims.get("exp", 0) > self.clock() else None

    def signed(self, token: str, claim: str) -> dict[str, Any]:
        """The claims of a signed address, which must have this one; 403 for any other."""
        claims = self.verify(token)
        if claims is None or claim not in claims:
            raise HubError(403, "Access denied: the signature is wrong or has expired")
        return claims

    @property
    def cas_url(self) -> str:
        """Where this hub's CAS is. Its id is part of it: hf_xet keeps what it knows of a CAS by address, and ports are
        used again.
        """
        return f"{self.endpoint}/_localhub/cas/{self.hub_id}"

    # Who is calling

    def caller(self, call: Call) -> Caller | None:
        """The token's owner, or None for an anonymous request. A bad token is refused, whatever is asked."""
        header = call.request.headers.get("authorization", "")
        scheme, _, token = header.partition(" ")
        if not header:
            return None
        caller = self.store.caller(token.strip(), self.clock()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return caller

    def authenticated(self, call: Call) -> Caller:
        caller = self.caller(call)
        if caller is None:
            raise HubError(401, "Invalid username or password.")
        return caller

    def may_read(self, caller: Caller | None, repo: Repo) -> bool:
        return not repo.private or (caller is not None and self.store.may_write(caller, repo.namespace))

    def readable(self, call: Call) -> Repo:
        """The repo a request names. Missing and forbidden look alike: 401 to a stranger, 404 to a user."""
        return self.find(self.caller(call), call.repo_type, call.repo_name)

    def find(self, caller: Caller | None, repo_type: str, name: str) -> Repo:
        repo = self.store.repo(repo_type, name)
        if repo is None or not self.may_read(caller, repo):
            if caller is None:
                raise HubError(401, "Invalid username or password.", code="RepoNotFound")
            raise HubError(404, "Repository not found", code="RepoNotFound")
        return repo

    def content_of(self, call: Call) -> Repo:
        """A readable repo whose files may be read too: a gated one only by its owners."""
        repo = self.readable(call)
        if repo.extra.get("gated"):
            caller = self.caller(call)
            if caller is None or not self.store.may_write(caller, repo.namespace):
                message = (
                    f"Access to {repo.type} {repo.name} is restricted and you are not in the authorized list. "
                    f"Visit {self.endpoint}/{repo.web_path} to ask for access."
                )
                raise HubError(401 if caller is None else 403, message, code="GatedRepo")
        return repo

    def writable(self, call: Call, *, pull_request: bool = False) -> tuple[Repo, Caller]:
        """The repo and the caller, who may write to it; opening a pull request only takes reading and a write token."""
        repo = self.readable(call)
        caller = self.authenticated(call)
        if caller.role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if not pull_request and not self.store.may_write(caller, repo.namespace):
            raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo, caller

    def revision(self, repo: Repo, revision: str) -> Commit:
        oid = self.history.resolve(repo, revision)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")
        return self.history.commit(repo, oid)
