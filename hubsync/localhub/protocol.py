"""What all parts share: the operations, and what a handler may answer: JSON, or a refusal (`HubError`)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum

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
    """A refusal: the status, the text of the body's `error` and of `X-Error-Message`, and the `X-Error-Code`."""

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
        self._body = {"error": message, **(body or {})}
        self._headers = {"X-Error-Message": re.sub(r"[^\x20-\x7e]+", " ", message).strip(), **(headers or {})}
        if code is not None:
            self._headers["X-Error-Code"] = code

    def response(self) -> Response:
        """Return it as the response to send."""
        return json_response(self._body, status=self.status, headers=self._headers)


def json_response(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with a JSON body."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return Response(body, status_code=status, headers=headers, media_type="application/json; charset=utf-8")


def iso(seconds: float) -> str:
    """Return Unix time as the Hub writes it: UTC with milliseconds."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
