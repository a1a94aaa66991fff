"""The Hub's request windows: `RateLimit` and `RateLimit-Policy` on every answer and, where a limit is set, the 429 when
one is spent.

Fixed windows of 300 seconds, counted by token or, without one, by address. Only calls to the API and to `resolve`
count, each in a window of its own; uploads of content go to other hosts on the real Hub.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from starlette.types import Scope

from hubsync.localhub.routing import HubError, Operation

WINDOW_S = 300
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
