"""The Hub's two limits: requests per window, and commits per hour.

Windows are fixed, 300 seconds long, counted by token or, without one, by address; `RateLimit` and `RateLimit-Policy`
tell of them on every answer. Only calls to the API and to `resolve` count, each in a window of its own: contents go to
other hosts on the real Hub. The commit quota is a sliding hour per user, kept in the store, and said only in the body
of its 429, whose headers go on describing the API's window.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from starlette.types import Scope

from hubsync.localhub.call import HubError, Operation
from hubsync.localhub.storage.store import Caller, Store

WINDOW_S = 300
_HOUR_S = 3600.0
_API_REQUESTS = 1000
_RESOLVE_REQUESTS = 5000
_FREE = frozenset(
    {
        Operation.XORB_GRANT, Operation.XORB, Operation.SHARD, Operation.RECONSTRUCTION, Operation.CHUNK,
        Operation.XORB_DATA,
        Operation.LFS_UPLOAD, Operation.BLOB,
    }
)  # fmt: skip


class Windows:
    """Counts requests; `limit` is the API's per window, or None to count without ever refusing."""

    def __init__(self, limit: int | None, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._window = 0
        self._used: dict[tuple[bytes, str], int] = {}

    def take(self, scope: Scope, operation: Operation) -> dict[str, str]:
        """Count a request and return the headers that its answer carries."""
        now = self._clock()
        name, quota = (
            ("resolvers", _RESOLVE_REQUESTS)
            if operation is Operation.RESOLVE
            else ("api", self._limit or _API_REQUESTS)
        )
        who = next(
            (value for key, value in scope["headers"] if key == b"authorization"), str(scope.get("client")).encode()
        )
        with self._lock:
            if int(now // WINDOW_S) != self._window:
                self._window = int(now // WINDOW_S)
                self._used.clear()
            used = self._used.get((who, name), 0) + (operation not in _FREE)
            self._used[(who, name)] = used
        left = quota - used
        # Without a limit nobody is refused, and a client that slows down at r=0 must not be misled.
        shown = max(left, 0 if self._limit is not None and name == "api" else 1)
        refused = self._limit is not None and name == "api" and left < 0
        reset = WINDOW_S - int(now % WINDOW_S)
        headers = {
            "RateLimit": f'"{name}";r={shown};t={reset}',
            "RateLimit-Policy": f'"fixed window";"{name}";q={quota};w={WINDOW_S}',
        }
        return headers | ({"Retry-After": str(reset)} if refused else {})

    def check(self, headers: dict[str, str], operation: Operation) -> None:
        """Refuse a request whose window was spent when it was counted."""
        if "Retry-After" in headers and operation not in _FREE:
            raise HubError(429, f"We had to rate limit you. Retry after {headers['Retry-After']} seconds.")


def commits_spent(per_hour: int, wait_s: float) -> str:
    """What the Hub says when the hour's commits are spent; the wait is rounded up to minutes or an hour."""
    minutes = max(1, -(-int(wait_s) // 60))
    wait = "about 1 hour" if minutes > 45 else f"{minutes} minute{'s' if minutes > 1 else ''}"
    return (
        f"You have exceeded the rate limit for repository commits ({per_hour} per hour). Retry this action in {wait}. "
        "If you're a new user, your limits will raise progressively over time. "
        "Get in touch with us at website@huggingface.co if you need access now."
    )


class CommitQuota:
    """Counts commits per user in a sliding hour; `per_hour` is None for no limit."""

    def __init__(self, store: Store, per_hour: int | None, clock: Callable[[], float]) -> None:
        self._store = store
        self._per_hour = per_hour
        self._clock = clock

    def check(self, caller: Caller) -> None:
        """Refuse when the hour is full. The headers of this 429 speak of the API window, only the body of commits, as
        on the Hub.
        """
        if self._per_hour is None:
            return
        sql = "SELECT count(*), min(at) FROM quota WHERE account = ? AND at > ?"
        row = self._store.row(sql, caller.name, self._clock() - _HOUR_S)
        if row is not None and row[0] >= self._per_hour:
            raise HubError(429, commits_spent(self._per_hour, row[1] + _HOUR_S - self._clock()))

    def spend(self, caller: Caller) -> None:
        """Count a commit that lands; inside its transaction, so that what is refused or lost costs nothing."""
        self._store.write("INSERT INTO quota VALUES (?, ?)", caller.name, self._clock())
        self._store.write("DELETE FROM quota WHERE at <= ?", self._clock() - 2 * _HOUR_S)
