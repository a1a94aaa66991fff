"""From the request line to the operation and its handler, and what a handler gets: a `Call`.

Paths are matched raw, before percent-decoding, because a revision may contain an encoded slash (`refs%2Fpr%2F1`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import unquote, urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from hubsync.localhub.protocol import HubError, Operation
from hubsync.localhub.state import HubState
from hubsync.localhub.storage.history import Commit
from hubsync.localhub.storage.store import Caller, Repo

_PLACEHOLDERS = {
    "type": r"(?P<type>models|datasets|spaces)",
    "web": r"(?P<type>datasets/|spaces/)?",
    "repo": r"(?P<repo>[^/]+/[^/]+|[^/]+)",
    "rev": r"(?P<rev>refs/(?:pr|convert|heads|tags)/[^/]+|[^/]+)",
    "path": r"(?P<path>.*)",
}
_RANGE = re.compile(r"bytes=(\d*)-(\d*)\Z")


@dataclass
class Call:
    """One request: `params` come from its path; `body` is empty if the handler reads it as a stream.

    `repo`, `downloadable` and `writable` are the only ways to a repo, so a private repo looks like a missing one
    everywhere, and a read token or a stranger is refused before a handler looks at anything.
    """

    hub: HubState
    request: Request
    params: dict[str, str]
    body: bytearray = field(default_factory=bytearray)

    # The caller, and what they may do

    @cached_property
    def caller(self) -> Caller | None:
        """The token's owner, or None for an anonymous request. A bad token is refused for any request (401)."""
        header = self.request.headers.get("authorization", "")
        scheme, _, token = header.partition(" ")
        if not header:
            return None
        caller = self.hub.store.caller(token.strip(), self.hub.clock()) if scheme.lower() == "bearer" else None
        if caller is None:
            raise HubError(401, "Invalid credentials in Authorization header")
        return caller

    @property
    def user(self) -> Caller:
        """The token's owner; an anonymous request is refused (401)."""
        if self.caller is None:
            raise HubError(401, "Invalid username or password.")
        return self.caller

    def owns(self, repo: Repo) -> bool:
        """Return whether the caller owns a repo, in person or by an organization."""
        return self.caller is not None and self.hub.store.owns(self.caller, repo.namespace)

    def may_read(self, repo: Repo) -> bool:
        """Return whether the caller may know of a repo."""
        caller = self.caller  # a bad token is refused even for a public repo
        return not repo.private or (caller is not None and self.owns(repo))

    def find_repo(self, repo_type: str, name: str) -> Repo:
        """Return a repo. Missing and forbidden ones look alike: 401 to a stranger, 404 to a user."""
        repo = self.hub.store.repo(repo_type, name)
        if repo is not None and self.may_read(repo):
            return repo
        if self.caller is None:
            raise HubError(401, "Invalid username or password.", code="RepoNotFound")
        raise HubError(404, "Repository not found", code="RepoNotFound")

    @property
    def repo_type(self) -> str:
        """The repo type: `model`, `dataset` or `space`; a web address without a type is a model's."""
        return (self.params.get("type") or "models").rstrip("/").removesuffix("s")

    @cached_property
    def repo(self) -> Repo:
        """The repo that the path names, if the caller may know of it."""
        return self.find_repo(self.repo_type, self.params.get("repo", ""))

    @cached_property
    def commit(self) -> Commit:
        """The commit of the repo that the path names."""
        return self.hub.revision(self.repo, self.params.get("rev", "main"))

    def downloadable(self) -> Repo:
        """Return the repo that the path names, if the caller may read its files: of a gated repo, only its owners."""
        repo = self.repo
        if repo.extra.get("gated") and not self.owns(repo):
            message = (
                f"Access to {repo.type} {repo.name} is restricted and you are not in the authorized list. "
                f"Visit {self.hub.endpoint}/{repo.web_path} to ask for access."
            )
            raise HubError(401 if self.caller is None else 403, message, code="GatedRepo")
        return repo

    def writable(self, *, pull_request: bool = False) -> tuple[Repo, Caller]:
        """Return the repo that the path names and the caller, if they may write to it.

        To open a pull request, a write token and a readable repo are enough.
        """
        repo, caller = self.repo, self.user
        if caller.role != "write":
            raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")
        if not pull_request and not self.owns(repo):
            raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repo, caller

    # Its parameters and body

    def json(self) -> dict[str, Any]:
        """Return the body, which must be a JSON object (400)."""
        try:
            value = msgspec.json.decode(self.body or b"{}")
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise HubError(400, f"Invalid JSON in request body: {error}") from None
        if not isinstance(value, dict):
            raise HubError(400, "Request body must be a JSON object")
        return value

    def flag(self, name: str) -> bool:
        """Return whether a query parameter is true."""
        return self.request.query_params.get(name, "").lower() in ("1", "true")

    def integer(self, name: str, default: int, *, most: int) -> int:
        """Return a query parameter from 1 to `most` (400 for any other value)."""
        text = self.request.query_params.get(name)
        if text is None:
            return default
        if not text.isascii() or not text.isdigit() or not 0 < int(text) <= most:
            raise HubError(400, f'"{name}" must be a number between 1 and {most}')
        return int(text)

    def next_link(self, key: str, value: str) -> dict[str, str]:
        """Return the `Link` header to the next page: the same request with another value of `key`."""
        pairs = [pair for pair in self.request.query_params.multi_items() if pair[0] != key]
        path = self.request.scope["raw_path"].decode("ascii")
        return {"Link": f'<{self.hub.endpoint}{path}?{urlencode([*pairs, (key, value)])}>; rel="next"'}


def requested_range(call: Call, size: int, headers: dict[str, str]) -> tuple[int, int] | None:
    """Return the first byte of the requested range and the one after its last, or refuse the range (416).

    Without a range, or with several, return None: the standard allows to serve the whole then.
    """
    match = _RANGE.match(call.request.headers.get("range", ""))
    if match is None or not (match[1] or match[2]):
        return None
    start, end = max(0, size - int(match[2] or 0)), size
    if match[1]:
        start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
    if start >= size or end <= start:
        headers = {**headers, "Content-Range": f"bytes */{size}"}
        raise HubError(416, "Requested Range Not Satisfiable", headers=headers)
    return start, end


def ranged(
    call: Call, size: int, headers: dict[str, str], pieces: Callable[[int, int], Iterator[bytes]], media_type: str
) -> Response:
    """Serve the whole content or the requested range; `pieces` yields the bytes between two offsets."""
    found = requested_range(call, size, headers)
    start, end = found or (0, size)
    if "ETag" in headers and headers["ETag"] in call.request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    headers = {**headers, "Content-Length": str(end - start)}
    if found:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    status = 206 if found else 200
    if call.request.method == "HEAD" or start == end:
        return Response(b"", status, headers, media_type)
    return StreamingResponse(pieces(start, end), status, headers, media_type)


Handler = Callable[[HubState, Call], Response | Coroutine[Any, Any, Response]]


class Route(NamedTuple):
    """A method and a path, their operation, and its handler.

    A plain function runs in a worker thread and gets the whole body; a coroutine function reads the body itself.
    """

    operation: Operation
    method: str
    path: str
    handler: Handler


class Match(NamedTuple):
    """What a request asks for; an address that does not exist has no handler."""

    operation: Operation
    handler: Handler | None
    params: dict[str, str]


class Router:
    """Finds the first route whose method and path match."""

    def __init__(self, routes: list[Route]) -> None:
        def expand(match: re.Match[str]) -> str:
            return _PLACEHOLDERS.get(match[1]) or f"(?P<{match[1]}>[^/]+)"

        self._routes: dict[str, list[tuple[re.Pattern[str], Route]]] = {}
        for route in routes:
            pattern = re.compile(re.sub(r"\{(\w+)\}", expand, route.path) + r"\Z")
            self._routes.setdefault(route.method, []).append((pattern, route))

    def match(self, method: str, raw_path: str) -> Match:
        """Return what a request asks for, its path parameters decoded."""
        for pattern, route in self._routes.get("GET" if method == "HEAD" else method, ()):
            if found := pattern.match(raw_path):
                params = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                return Match(route.operation, route.handler, params)
        return Match(Operation.OTHER, None, {})
