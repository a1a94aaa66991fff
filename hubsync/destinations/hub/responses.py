"""Turn an unsuccessful response into the typed error that says what to do next."""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, NamedTuple

import msgspec

from hubsync.errors import (
    AmbiguousError,
    AuthenticationError,
    BlockedError,
    DefectError,
    FolderFullError,
    HubError,
    RateLimitedError,
    RepoMissingError,
    StaleParentError,
    StorageQuotaError,
    TransientError,
    WriteForbiddenError,
)

_MAX_ERROR_BODY = 64 * 1024  # bytes of a body that is searched for an error message
# No server may stop the uploader for longer. The Hub is not known to ask for more than an hour.
_MAX_WAIT_S = 86_400.0
_COMMIT_QUOTA = re.compile(r"commits?\b.{0,80}\bper hour|repository commits", re.IGNORECASE | re.DOTALL)
_RETRY_IN = re.compile(r"(?:in|after)\s+(?:about\s+)?(an?|[0-9]+)\s*(second|minute|hour)", re.IGNORECASE)
_SECONDS_TEXT = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}
_RATE_LIMIT = re.compile(r'"(\w+)"\s*;\s*r\s*=\s*([0-9]+)\s*;\s*t\s*=\s*([0-9]+)')
_FOLDER_FULL = re.compile(r"too many files per directory", re.IGNORECASE)
_FOLDER_LIMIT = re.compile(r"up to ([0-9]{1,9}) files", re.IGNORECASE)
_FOLDERS = re.compile(r"directories:\s*(.*)", re.IGNORECASE | re.DOTALL)
_ADVICE = "hubsync uses token=…, else HF_TOKEN, else the token of hf auth login. Set one there that has access."


class _Rule(NamedTuple):
    """Responses with one of these statuses, this error code and this text in the message become `error`.

    Attributes:
        if_effect: The error if the request may have taken effect; None for `error`.
        missing: What does not exist.
        advice: Whether the message says where the token comes from.
    """

    statuses: Container[int]
    error: type[HubError]
    if_effect: type[HubError] | None = None
    code: str | None = None
    text: re.Pattern[str] | None = None
    missing: Literal["repo", "revision", "file"] | None = None
    advice: bool = False


_ANY = range(1_000)
_5XX = range(500, 1_000)

# The first rule that matches decides.
_RULES = (
    # Retry: the committer waits, and for 412 looks at the branch again.
    _Rule({429}, RateLimitedError),
    _Rule({412}, StaleParentError),
    _Rule({409, 423, 425, 501}, TransientError),
    _Rule({408, *_5XX}, TransientError, if_effect=AmbiguousError),
    # Something does not exist, or the token may not see it. A 404 without a code may come from a proxy, so it does not
    # show that anything is missing.
    _Rule(_ANY, RepoMissingError, code="RepoNotFound", missing="repo"),
    _Rule(_ANY, RepoMissingError, code="GatedRepo", missing="repo"),
    _Rule(_ANY, RepoMissingError, code="DisabledRepo", missing="repo"),
    _Rule(_ANY, RepoMissingError, code="RevisionNotFound", missing="revision"),
    _Rule({404}, RepoMissingError, code="EntryNotFound", missing="file"),
    _Rule({404}, RepoMissingError),
    # An operator must act.
    _Rule({401}, AuthenticationError, advice=True),
    _Rule({402}, StorageQuotaError),
    _Rule({403}, StorageQuotaError, text=re.compile("storage|quota", re.IGNORECASE)),
    _Rule({403}, WriteForbiddenError, advice=True),
    _Rule({400, 413, 422}, FolderFullError, text=_FOLDER_FULL),
    # The content is never accepted.
    _Rule({400, 413, 422}, DefectError),
    _Rule(_ANY, BlockedError),
)


def classify(
    what: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    has_effect: bool = False,
    token_sent: bool = True,
) -> HubError:
    """Return the typed error for a response that is not a success.

    Args:
        what: The name of the request in the message.
        status: The HTTP status.
        headers: The headers, with names in lower case.
        body: The body.
        has_effect: Whether the request may have taken effect even though it failed.
        token_sent: Whether the request carried the token.
    """
    code = headers.get("x-error-code", "")
    text = (headers.get("x-error-message") or _message_in(body)).strip()[:2_000]
    rule = next(rule for rule in _RULES if _matches(rule, status, code, text))
    kind = rule.if_effect if has_effect and rule.if_effect else rule.error
    message = f"{what}: {status}" + (f", {text[:300]}" if text else "")
    request_id = headers.get("x-request-id") or headers.get("x-amzn-trace-id")
    if issubclass(kind, RateLimitedError):
        is_quota, wait = _COMMIT_QUOTA.search(text) is not None, retry_after(headers, text)
        if is_quota and wait is not None:  # the headers may describe the API's window, which ends earlier
            wait = max(wait, retry_after({}, text) or 0.0)
        return kind(message, status=status, request_id=request_id, retry_after_s=wait, commit_quota=is_quota)
    if issubclass(kind, TransientError):
        return kind(message, status=status, request_id=request_id, retry_after_s=retry_after(headers, ""))
    if issubclass(kind, RepoMissingError):
        shown = f"{message} ({code})" if rule.missing else message
        return kind(shown, status=status, request_id=request_id, missing=rule.missing)
    if issubclass(kind, FolderFullError):
        limit, named = _FOLDER_LIMIT.search(text), _FOLDERS.search(text)
        # Names are separated by spaces or commas, and may contain them; each has a slash at both ends.
        folders = tuple(re.findall(r"(?<![^\s,])/(?:[^,]*?/)?(?=[\s,]|$)", named[1])) if named else ()
        return kind(
            message, status=status, request_id=request_id, folders=folders, limit=int(limit[1]) if limit else None
        )
    if rule.advice and token_sent:
        message = f"{message.rstrip('.')}. {_ADVICE}"
    return kind(message, status=status, request_id=request_id)


def _matches(rule: _Rule, status: int, code: str, text: str) -> bool:
    return (
        status in rule.statuses
        and (rule.code is None or rule.code == code)
        and (rule.text is None or rule.text.search(text) is not None)
    )


def retry_after(headers: Mapping[str, str], text: str) -> float | None:
    """Return the seconds that the Hub asks to wait, at most a day; None if it does not say.

    `Retry-After` comes first, in seconds or as a date. Then `RateLimit`: every response has this header, so it counts
    only if nothing remains (`r=0`). Then the text of the commit quota's message.
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
    words = _RETRY_IN.search(text)
    if words:
        count = 1.0 if words[1].lower() in ("a", "an") else float(words[1])
        return min(count * _SECONDS[words[2].lower()], _MAX_WAIT_S)
    return None


def _message_in(body: bytes) -> str:
    """Return the error message in a body; empty if it has none or is HTML."""
    if len(body) > _MAX_ERROR_BODY:
        return ""
    try:
        parsed = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        text = body[:200].decode("utf-8", "replace")
        return "" if "<" in text else text
    error = parsed.get("error", "") if isinstance(parsed, dict) else ""
    return error if isinstance(error, str) else str(error)
