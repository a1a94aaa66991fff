"""The Hub's two limits: requests per window, and commits per hour.

Windows are fixed and 300 seconds long. They count by token or, without one, by address; `RateLimit` and
`RateLimit-Policy` describe them on every response. Only calls to the API and to `resolve` count, each in a window of
its own: on the real Hub, other hosts serve the contents. The commit quota is a sliding hour per user, kept in the
store. Only the body of its 429 mentions it; the headers of that 429 describe the API's window.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from starlette.types import Scope

from hubsync.localhub.call import HubError, Operation
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


class RequestWindows:
    """Counts requests; `limit` is the API's per window, or None to count without ever refusing."""

    def __init__(self, limit: int | None, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._window = 0
        self._used: dict[tuple[bytes, str], int] = {}

    def count(self, scope: Scope, operation: Operation) -> dict[str, str]:
        """Count a request; return the headers of its response."""
        now = self._clock()
        name, quota = "api", self._limit or _API_REQUESTS
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
        limited = self._limit is not None and name == "api"
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
    """Counts commits per user in a sliding hour; `per_hour` is None for no limit."""

    def __init__(self, store: Store, per_hour: int | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._per_hour = per_hour
        self._clock = clock

    def check(self, caller: Caller) -> None:
        """Refuse a commit if the hour's commits are spent (429)."""
        if self._per_hour is None:
            return
        sql = "SELECT count(*), min(at) FROM quota WHERE account = ? AND at > ?"
        row = self._store.row(sql, caller.name, self._clock() - _HOUR_S)
        if row is not None and row[0] >= self._per_hour:
            raise HubError(429, commit_limit_text(self._per_hour, row[1] + _HOUR_S - self._clock()))

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
