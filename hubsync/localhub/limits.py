"""The Hub's limits, those on requests in a window, and those on commits in an hour.

Windows are fixed and 300 seconds long. They count by token or, without one, by address; `RateLimit` and
`RateLimit-Policy` describe them on every response. Only calls to the API and to `resolve` count, each in a window of
its own: on the real Hub, other hosts serve the contents. The commit quota is a sliding hour per user, kept in the
store. Only the body of its 429 mentions it; the headers of that 429 describe the API's window.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from starlette.types import Scope

from hubsync.localhub.protocol import HubError, Operation
from hubsync.localhub.storage.store import Caller, Store

_WINDOW_S = 300
_HOUR_S = 3600.0
_API_REQUESTS = 1000
_RESOLVE_REQUESTS = 5000
_UNCOUNTED = frozenset(
    {
        Operation.XORB_GRANT, Operation.XORB, Operation.SHARD, Operation.RECONSTRUCTION, Operation.CHUNK,
        Operation.XORB_DATA, Operation.LFS_UPLOAD, Operation.BLOB,
    }
)  # fmt: skip


_AtLeastOne = Annotated[int, msgspec.Meta(ge=1)]


class Limits(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a Hub allows. Change a field at any time: the next request sees it.

    Attributes:
        commits_per_hour: Each user's commits in a sliding hour (the Hub: about 128); None for no limit.
        requests_per_window: API requests of a token in 300 seconds (the Hub: 1000); None counts and refuses none.
        folder_entries: Files and folders in one folder. A commit that adds to a folder beyond that is refused (400).
        preupload_files: Files in one preupload request (400).
        lfs_batch_objects: Objects in one LFS batch request (422).
        requested_paths: Paths in one paths-info request (413).
        page_entries: Entries on one page of a tree, and the most that a client may ask for (400).
        inlined_bytes: Bytes of all regular files in one commit (413).
        regular_bytes: A file of so many bytes is large (`lfs`), whatever its name; a larger regular one is refused.
        lfs_multipart_bytes: An LFS object of more bytes is uploaded in parts of so many.
        xet_token_ttl_s: How long a Xet token is valid, in seconds.
    """

    commits_per_hour: _AtLeastOne | None = None
    requests_per_window: _AtLeastOne | None = None
    folder_entries: _AtLeastOne = 10_000
    preupload_files: _AtLeastOne = 256
    lfs_batch_objects: _AtLeastOne = 256
    requested_paths: _AtLeastOne = 1000
    page_entries: _AtLeastOne = 1000
    inlined_bytes: _AtLeastOne = 128 << 20  # huggingface_hub's own tests send 108 MiB to the Hub
    regular_bytes: _AtLeastOne = 10 << 20
    lfs_multipart_bytes: _AtLeastOne = 20_000_000
    xet_token_ttl_s: Annotated[float, msgspec.Meta(gt=0)] = 3600.0

    def update(self, **changes: Any) -> None:
        """Change some fields, or none.

        Raises:
            ValueError: A field is unknown or has a wrong value.
        """
        changed = msgspec.convert({**msgspec.structs.asdict(self), **changes}, Limits)
        for name in changes:
            setattr(self, name, getattr(changed, name))


class RequestWindows:
    """Counts requests in each window, and refuses those beyond `limits.requests_per_window`."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._window = 0
        self._used: dict[tuple[bytes, str], int] = {}

    def count(self, scope: Scope, operation: Operation) -> dict[str, str]:
        """Count a request; return the headers of its response."""
        now = self._clock()
        limit = self._limits.requests_per_window
        name, quota = "api", limit or _API_REQUESTS
        if operation is Operation.RESOLVE:
            name, quota = "resolvers", _RESOLVE_REQUESTS
        sender = dict(scope["headers"]).get(b"authorization") or str(scope.get("client")).encode()
        with self._lock:
            if int(now // _WINDOW_S) != self._window:
                self._window = int(now // _WINDOW_S)
                self._used.clear()
            used = self._used.get((sender, name), 0) + (operation not in _UNCOUNTED)
            self._used[(sender, name)] = used
        left = quota - used
        limited = limit is not None and name == "api"
        reset = _WINDOW_S - int(now % _WINDOW_S)
        # Without a limit nothing is refused, so r=0, at which clients slow down, would mislead them.
        headers = {
            "RateLimit": f'"{name}";r={max(left, 0 if limited else 1)};t={reset}',
            "RateLimit-Policy": f'"fixed window";"{name}";q={quota};w={_WINDOW_S}',
        }
        return headers | ({"Retry-After": str(reset)} if limited and left < 0 else {})

    def check(self, headers: dict[str, str], operation: Operation) -> None:
        """Refuse a request whose window was spent when it was counted (429)."""
        if "Retry-After" in headers and operation not in _UNCOUNTED:
            raise HubError(429, f"We had to rate limit you. Retry after {headers['Retry-After']} seconds.")


class CommitQuota:
    """Counts commits per user in a sliding hour, and refuses those beyond `limits.commits_per_hour`."""

    def __init__(self, store: Store, limits: Limits, clock: Callable[[], float]) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock

    def check(self, caller: Caller) -> None:
        """Refuse a commit if the hour's commits are spent (429)."""
        per_hour = self._limits.commits_per_hour
        if per_hour is None:
            return
        sql = "SELECT count(*), min(at) FROM quota WHERE account = ? AND at > ?"
        row = self._store.row(sql, caller.name, self._clock() - _HOUR_S)
        if row is not None and row[0] >= per_hour:
            raise HubError(429, commit_limit_text(per_hour, row[1] + _HOUR_S - self._clock()))

    def spend(self, caller: Caller) -> None:
        """Count a commit; within its transaction, so that a refused or lost one costs nothing."""
        self._store.write("INSERT INTO quota VALUES (?, ?)", caller.name, self._clock())
        self._store.write("DELETE FROM quota WHERE at <= ?", self._clock() - 2 * _HOUR_S)


def commit_limit_text(per_hour: int, wait_s: float) -> str:
    """Return the Hub's message when the hour's commits are spent; the wait is rounded up to minutes or an hour."""
    minutes = max(1, -(-int(wait_s) // 60))
    wait = "about 1 hour" if minutes > 45 else f"{minutes} minute{'s' if minutes > 1 else ''}"
    return (
        f"You have exceeded the rate limit for repository commits ({per_hour} per hour). Retry this action in {wait}. "
        "If you're a new user, your limits will raise progressively over time. "
        "Get in touch with us at website@huggingface.co if you need access now."
    )
