"""Names for everything the Hub does (`Operation`), and the way from a request line to one of them.

Paths are matched raw, before percent-decoding, because a revision may hold an encoded slash (`refs%2Fpr%2F1`).
`Call` is what a handler gets: the request, the decoded path parameters and, for small requests, the whole body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec
from starlette.requests import Request
from starlette.responses import Response

if TYPE_CHECKING:
    from hubsync.localhub.core import Core


class Operation(StrEnum):
    """What a request asks for. Faults and counters go by these names."""

    WHOAMI = "whoami"
    REPO_CREATE = "repo-create"
    REPO_DELETE = "repo-delete"
    REPO_MOVE = "repo-move"
    REPO_SETTINGS = "repo-settings"
    REPO_INFO = "repo-info"
    REPO_LIST = "repo-list"
    AUTH_CHECK = "auth-check"
    VALIDATE_YAML = "validate-yaml"
    PREUPLOAD = "preupload"
    COMMIT = "commit"
    COMMITS = "commits"
    SQUASH = "squash"
    REFS = "refs"
    REF_WRITE = "ref-write"
    TREE = "tree"
    PATHS_INFO = "paths-info"
    RESOLVE = "resolve"
    BLOB = "blob"
    DISCUSSION = "discussion"
    LIKE = "like"
    LFS_BATCH = "lfs-batch"
    LFS_UPLOAD = "lfs-upload"
    LFS_VERIFY = "lfs-verify"
    LFS_FILES = "lfs-files"
    XET_TOKEN = "xet-token"  # noqa: S105 - a name, not a secret
    XORB_GRANT = "xorb-grant"
    XORB = "xorb"
    SHARD = "shard"
    RECONSTRUCTION = "reconstruction"
    CHUNK = "chunk"
    XORB_DATA = "xorb-data"
    OTHER = "other"


class HubError(Exception):
    """A refusal: the status, and what the Hub says in the body's `error` and in `X-Error-Message`."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})
        self.body = dict(body or {})

    def response(self) -> Response:
        headers = {"X-Error-Message": re.sub(r"[^\x20-\x7e]+", " ", self.message).strip(), **self.headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return json_response({"error": self.message, **self.body}, status=self.status, headers=headers)


def json_response(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(body, status_code=status, headers=headers, media_type="application/json; charset=utf-8")


@dataclass
class Call:
    """One request on its way to a handler; `body` is filled for handlers that want it whole."""

    operation: Operation
    request: Request
    params: dict[str, str]
    body: bytes = b""

    @property
    def repo_type(self) -> str:
        """`model`, `dataset` or `space`, from the path's plural or, in web addresses, from its absence."""
        return (self.params.get("type") or "models").rstrip("/").removesuffix("s")

    @property
    def repo_name(self) -> str:
        return self.params.get("repo", "")

    def json(self) -> dict[str, Any]:
        """The body as a JSON object; anything else is the caller's mistake (400)."""
        try:
            value = msgspec.json.decode(self.body or b"{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise HubError(400, f"Invalid JSON in request body: {error}") from None
        if not isinstance(value, dict):
            raise HubError(400, "Request body must be a JSON object")
        return value

    def flag(self, name: str) -> bool:
        return self.request.query_params.get(name, "").lower() in ("1", "true")

    def integer(self, name: str, default: int, *, most: int) -> int:
        text = self.request.query_params.get(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or not 0 < int(text) <= most:
            raise HubError(400, f'"{name}" must be a number between 1 and {most}')
        return int(text)


Handler = Callable[["Core", Call], Response]
StreamHandler = Callable[["Core", Call], Coroutine[Any, Any, Response]]

_PLACEHOLDERS = {
    "type": r"(?P<type>models|datasets|spaces)",
    "web": r"(?P<type>datasets/|spaces/)?",
    "repo": r"(?P<repo>[^/]+/[^/]+|[^/]+)",
    "rev": r"(?P<rev>refs/(?:pr|convert|heads|tags)/[^/]+|[^/]+)",
    "path": r"(?P<path>.*)",
}


@dataclass(frozen=True)
class Route:
    """A method and a path, what they mean, and who answers.

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


class Router:
    """Finds the first route whose method and path fit."""

    def __init__(self, routes: list[Route]) -> None:
        self._routes: dict[str, list[Route]] = {}
        for route in routes:
            self._routes.setdefault(route.method, []).append(route)

    def match(self, method: str, raw_path: str) -> tuple[Route, dict[str, str]] | None:
        for route in self._routes.get("GET" if method == "HEAD" else method, ()):
            if found := route.pattern.match(raw_path):
                return route, {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
        return None
