"""From the request line to the operation and its handler.

Paths are matched raw, before percent-decoding, because a revision may contain an encoded slash (`refs%2Fpr%2F1`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import unquote

from starlette.responses import Response

from hubsync.localhub.call import Call, Operation
from hubsync.localhub.state import HubState

Handler = Callable[[HubState, Call], Response]
StreamHandler = Callable[[HubState, Call], Coroutine[Any, Any, Response]]

_PLACEHOLDERS = {
    "type": r"(?P<type>models|datasets|spaces)",
    "web": r"(?P<type>datasets/|spaces/)?",
    "repo": r"(?P<repo>[^/]+/[^/]+|[^/]+)",
    "rev": r"(?P<rev>refs/(?:pr|convert|heads|tags)/[^/]+|[^/]+)",
    "path": r"(?P<path>.*)",
}


@dataclass(frozen=True)
class Route:
    """A method and a path, their operation, and its handler.

    A `handler` is a plain function that runs in a worker thread and gets the whole body (small requests); a `stream`
    handler is a coroutine function that reads the body itself.
    """

    operation: Operation
    method: str
    path: str
    handler: Handler | None = None
    stream: StreamHandler | None = None
    pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        assert (self.handler is None) != (self.stream is None), self.path

        def expand(match: re.Match[str]) -> str:
            return _PLACEHOLDERS.get(match[1]) or f"(?P<{match[1]}>[^/]+)"

        object.__setattr__(self, "pattern", re.compile(re.sub(r"\{(\w+)\}", expand, self.path) + r"\Z"))


class Match(NamedTuple):
    """What a request asks for; an address that does not exist has no route."""

    operation: Operation
    route: Route | None
    params: dict[str, str]


class Router:
    """Finds the first route whose method and path match."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes: dict[str, list[Route]] = {}
        for route in routes:
            self._routes.setdefault(route.method, []).append(route)

    def match(self, method: str, raw_path: str) -> Match:
        """Return what a request asks for, its path parameters decoded."""
        for route in self._routes.get("GET" if method == "HEAD" else method, ()):
            if found := route.pattern.match(raw_path):
                params = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                return Match(route.operation, route, params)
        return Match(Operation.OTHER, None, {})
