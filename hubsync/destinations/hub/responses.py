"""Turn an unsuccessful response into the typed error that says what to do next."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

import msgspec

from hubsync.errors import (
    AmbiguousError,
    AuthenticationError,
    BlockedError,
    DefectError,
    HubError,
    RateLimitedError,
    RepoMissingError,
    StaleParentError,
    StorageQuotaError,
    TransientError,
    WriteForbiddenError,
)

_MAX_ERROR = 64 * 1024  # of a body that is looked into for the Hub's words
# A server must not be able to stop the uploader for a year; and no wait that the Hub is known to ask for is longer than
# an hour. Asking once a day too often harms nobody.
_MAX_WAIT_S = 86_400.0
_COMMIT_QUOTA = re.compile(r"commits?\b.{0,80}\bper hour|repository commits", re.IGNORECASE | re.DOTALL)
_RETRY_IN = re.compile(r"(?:in|after)\s+(?:about\s+)?(an?|[0-9]+)\s*(second|minute|hour)", re.IGNORECASE)
_SECONDS_TEXT = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_RATE_LIMIT = re.compile(r'"(\w+)"\s*;\s*r\s*=\s*([0-9]+)\s*;\s*t\s*=\s*([0-9]+)')
_ADVICE = "The token is that of token=…, else of HF_TOKEN, else of hf auth login: give one there that may do this."
_MISSING: dict[str, Literal["repo", "revision", "file"]] = {
    "RepoNotFound": "repo",
    "GatedRepo": "repo",
    "DisabledRepo": "repo",
    "RevisionNotFound": "revision",
    "EntryNotFound": "file",
}


def classify(
    what: str, status: int, headers: Mapping[str, str], body: bytes, *, effect: bool = False, ours: bool = True
) -> HubError:
    """The typed error of an answer that is no success; with `ours`, of one to which the token was sent."""
    code = headers.get("x-error-code", "")
    said = (headers.get("x-error-message") or _error_of(body)).strip()[:2_000]
    request_id = headers.get("x-request-id") or headers.get("x-amzn-trace-id")
    message = f"{what}: {status}" + (f", {said[:300]}" if said else "")
    if status == 429:
        return RateLimitedError(
            message,
            status=status,
            request_id=request_id,
            retry_after_s=retry_after(headers, said),
            commit_quota=_COMMIT_QUOTA.search(said) is not None,
        )
    if status in (408, 425) or status >= 500:
        kind: type[TransientError] = AmbiguousError if effect and status not in (425, 501) else TransientError
        return kind(message, status=status, request_id=request_id, retry_after_s=retry_after(headers, ""))
    if status in (409, 412, 423):
        kind = StaleParentError if status == 412 else TransientError
        return kind(message, status=status, request_id=request_id, retry_after_s=retry_after(headers, ""))
    # A 404 without a code may be a proxy's: it does not show that anything is missing.
    if code in _MISSING and (status == 404 or code != "EntryNotFound"):
        return RepoMissingError(f"{message} ({code})", status=status, request_id=request_id, missing=_MISSING[code])
    advised = f"{message.rstrip('.')}. {_ADVICE}" if ours else message
    if status == 401:
        return AuthenticationError(advised, status=status, request_id=request_id)
    if status in (402, 403) and (status == 402 or re.search(r"storage|quota", said, re.IGNORECASE)):
        return StorageQuotaError(message, status=status, request_id=request_id)
    if status == 403:
        return WriteForbiddenError(advised, status=status, request_id=request_id)
    if status in (400, 413, 422):
        return DefectError(message, status=status, request_id=request_id)
    if status == 404:
        return RepoMissingError(message, status=status, request_id=request_id)
    return BlockedError(message, status=status, request_id=request_id)


def retry_after(headers: Mapping[str, str], said: str) -> float | None:
    """Seconds that the Hub asks to wait, a day at most, or None.

    `Retry-After` first, in seconds or as a date; then `RateLimit`, which stands on every answer and so counts only
    where nothing remains (`r=0`); then the words of the commit quota's message.
    """
    value = headers.get("retry-after", "").strip()[:100]
    if _SECONDS_TEXT.fullmatch(value):
        return min(float(value), _MAX_WAIT_S)
    if value:
        try:
            wait = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
            return min(max(0.0, wait), _MAX_WAIT_S)
        except (TypeError, ValueError, OverflowError):
            pass
    limit = _RATE_LIMIT.search(headers.get("ratelimit", "")[:200])
    if limit and limit[2] == "0":
        return min(float(limit[3]), _MAX_WAIT_S)
    words = _RETRY_IN.search(said)
    if words:
        count = 1.0 if words[1].lower() in ("a", "an") else float(words[1])
        return min(count * _SECONDS[words[2].lower()], _MAX_WAIT_S)
    return None


def _error_of(body: bytes) -> str:
    if len(body) > _MAX_ERROR:
        return ""
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        text = body[:200].decode("utf-8", "replace")
        return "" if "<" in text else text
    error = parsed.get("error", "") if isinstance(parsed, dict) else ""
    return error if isinstance(error, str) else str(error)
