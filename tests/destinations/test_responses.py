"""The classification of responses: typed errors, and how long to wait."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from hubsync import (
    AuthenticationError,
    BlockedError,
    HubError,
    RepoMissingError,
    StorageQuotaError,
    TransientError,
    WriteForbiddenError,
)
from hubsync.destinations.hub.responses import classify, retry_after
from hubsync.errors import AmbiguousError, DefectError, RateLimitedError, StaleParentError

QUOTA = (
    b'{"error":"You have exceeded the rate limit for repository commits (128 per hour). Retry this action in about '
    b'1 hour. For assistance, contact the support."}'
)


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (408, {}, TransientError),
        (409, {}, TransientError),
        (412, {}, StaleParentError),
        (423, {}, TransientError),
        (425, {}, TransientError),
        (429, {}, RateLimitedError),
        (500, {}, TransientError),
        (502, {}, TransientError),
        (503, {}, TransientError),
        (504, {}, TransientError),
        (401, {}, AuthenticationError),
        (401, {"x-error-code": "RepoNotFound"}, RepoMissingError),
        (404, {"x-error-code": "RevisionNotFound"}, RepoMissingError),
        (402, {}, StorageQuotaError),
        (403, {}, WriteForbiddenError),
        (403, {"x-error-message": "Private repository storage limit reached"}, StorageQuotaError),
        (400, {}, DefectError),
        (413, {}, DefectError),
        (422, {}, DefectError),
        (405, {}, BlockedError),
        (418, {}, BlockedError),
    ],
)
def test_each_status_has_its_error_type(status: int, headers: dict[str, str], kind: type[HubError]) -> None:
    assert type(classify("it", status, headers, b"")) is kind


@pytest.mark.parametrize("status", [401, 403])
def test_only_the_hubs_401_and_403_explain_where_the_token_comes_from(status: int) -> None:
    assert "HF_TOKEN, else the token of hf auth login" in classify("it", status, {}, b"").reason
    assert str(classify("it", status, {}, b"", token_sent=False)) == f"it: {status}"
    assert "HF_TOKEN" not in str(classify("it", 403, {"x-error-message": "storage limit reached"}, b""))


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_a_failure_that_may_have_had_an_effect_is_ambiguous(status: int) -> None:
    assert type(classify("commit", status, {}, b"", has_effect=True)) is AmbiguousError


def test_the_commit_quota_is_recognized_by_the_body_not_the_headers() -> None:
    headers = {"ratelimit": '"api";r=871;t=271', "ratelimit-policy": '"fixed window";"api";q=1000;w=300'}
    error = classify("commit", 429, headers, QUOTA)
    assert isinstance(error, RateLimitedError)
    assert (error.commit_quota, error.retry_after_s) == (True, 3600)


@pytest.mark.parametrize(
    ("headers", "said", "seconds"),
    [
        ({"retry-after": "12"}, "", 12),
        ({"retry-after": "1.5"}, "", 1.5),
        ({"ratelimit": '"api";r=0;t=55'}, "", 55),
        ({"ratelimit": '"api";r=3;t=55'}, "", None),
        ({}, "Retry in 5 minutes", 300),
        ({}, "Try again after 30 seconds.", 30),
        ({}, "Retry this action in about an hour", 3600),
        ({"retry-after": "soon"}, "", None),
        ({}, "", None),
    ],
)
def test_the_requested_wait_is_found(headers: dict[str, str], said: str, seconds: float | None) -> None:
    assert retry_after(headers, said) == seconds


def test_a_date_in_retry_after_is_understood() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < (retry_after({"retry-after": later}, "") or 0) <= 3600


@pytest.mark.parametrize("headers", [
    {"ratelimit": '"api";r=812;t=271'}, {"ratelimit": '"api";r=0;t=271'}, {"retry-after": "271"}, {},
])  # fmt: skip
def test_the_commit_quotas_wait_is_in_the_body_whatever_the_headers_say(headers: dict[str, str]) -> None:
    body = {
        "error": "You have exceeded the rate limit for repository commits (128 per hour). Retry this action in about 1 "
        "hour. If you're a new user, your limits will raise progressively over time."
    }
    error = classify("commit", 429, headers, json.dumps(body).encode(), has_effect=True)
    assert isinstance(error, RateLimitedError)
    assert (error.commit_quota, error.retry_after_s) == (True, 3600)
