"""One request as a handler sees it (`Call`), and what it may answer: JSON, or a refusal (`HubError`)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from urllib.parse import urlencode

import msgspec
from starlette.requests import Request
from starlette.responses import Response


class Operation(StrEnum):
    """What a request asks for; faults and counters use these names."""

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
    """A refusal: the status, and the text of the body's `error` and of `X-Error-Message`."""

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
        """Return it as the response to send."""
        headers = {"X-Error-Message": re.sub(r"[^\x20-\x7e]+", " ", self.message).strip(), **self.headers}
        if self.code is not None:
            headers["X-Error-Code"] = self.code
        return json_response({"error": self.message, **self.body}, status=self.status, headers=headers)


def json_response(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(body, status_code=status, headers=headers, media_type="application/json; charset=utf-8")


@dataclass
class Call:
    """One request; `params` come from its path, and `body` is empty if the handler reads it as a stream."""

    operation: Operation
    request: Request
    params: dict[str, str]
    body: bytes = b""

    @property
    def repo_type(self) -> str:
        """The repo type: `model`, `dataset` or `space`; a web address without a type is a model's."""
        return (self.params.get("type") or "models").rstrip("/").removesuffix("s")

    @property
    def repo_name(self) -> str:
        """The full name of the repo in the path."""
        return self.params.get("repo", "")

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

    def next_link(self, endpoint: str, key: str, value: str) -> dict[str, str]:
        """Return the `Link` header to the next page: the same request with another value of `key`."""
        pairs = [pair for pair in self.request.query_params.multi_items() if pair[0] != key]
        path = self.request.scope["raw_path"].decode("ascii")
        return {"Link": f'<{endpoint}{path}?{urlencode([*pairs, (key, value)])}>; rel="next"'}


def iso(seconds: float) -> str:
    """Return Unix time as the Hub writes it: UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
