"""What an answer of the Hub means: the typed errors, and how long to wait."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import anyio
import httpx
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
from hubsync.destinations.hub.transport import HubHTTP
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
def test_each_status_has_its_kind(status: int, headers: dict[str, str], kind: type[HubError]) -> None:
    assert type(classify("it", status, headers, b"")) is kind


@pytest.mark.parametrize("status", [401, 403])
def test_a_token_that_may_not_is_said_with_where_it_came_from_and_only_of_the_hub(status: int) -> None:
    assert "HF_TOKEN, else the token of hf auth login" in classify("it", status, {}, b"").reason
    assert str(classify("it", status, {}, b"", token_sent=False)) == f"it: {status}"
    assert "HF_TOKEN" not in str(classify("it", 403, {"x-error-message": "storage limit reached"}, b""))


@pytest.mark.parametrize("status", [408, 500, 502, 503, 504])
def test_an_answer_that_may_hide_an_effect_is_ambiguous(status: int) -> None:
    assert type(classify("commit", status, {}, b"", has_effect=True)) is AmbiguousError


def test_the_commit_quota_is_told_by_its_body_and_not_by_the_headers_beside_it() -> None:
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
def test_the_hubs_word_on_when_to_try_again_is_found(headers: dict[str, str], said: str, seconds: float | None) -> None:
    assert retry_after(headers, said) == seconds


def test_a_date_in_retry_after_is_understood() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    assert 3500 < (retry_after({"retry-after": later}, "") or 0) <= 3600


Handler = Callable[[httpx.Request], httpx.Response] | Callable[[httpx.Request], Awaitable[httpx.Response]]


def ask(handler: Handler, **how: object) -> object:
    """What `send` makes of a server that behaves like `handler`."""

    async def main() -> object:
        http = HubHTTP("https://hub.test", lambda: "hf_secret", transport=httpx.MockTransport(handler))
        try:
            return await http.send("it", how.pop("method", "GET"), "api/x", **how)  # type: ignore[arg-type]
        except HubError as error:
            return error
        finally:
            await http.aclose()

    return anyio.run(main)


def test_the_token_goes_to_the_hub_alone() -> None:
    seen: list[httpx.Request] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(302, headers={"location": "https://evil.test/x"})

    error = ask(server)
    assert isinstance(error, TransientError)
    assert "evil.test" in str(error)
    assert [request.url.host for request in seen] == ["hub.test"]
    assert seen[0].headers["authorization"] == "Bearer hf_secret"
    assert "hf_secret" not in str(error)


def test_a_redirect_on_the_hub_itself_is_followed() -> None:
    def server(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/x":
            return httpx.Response(307, headers={"location": "/api/y"})
        return httpx.Response(200, json={"path": request.url.path})

    answer = ask(server)
    assert answer.decode("it", Any) == {"path": "/api/y"}  # type: ignore[attr-defined]


async def lines() -> AsyncIterator[bytes]:
    yield b"a\n"
    yield b"b\n"


@pytest.mark.parametrize("status", [307, 308])
def test_a_commit_to_a_repo_that_was_renamed_is_sent_whole_to_where_it_is_now(status: int) -> None:
    sent: list[tuple[str, str, bytes, str]] = []

    async def hub(request: httpx.Request) -> httpx.Response:
        sent.append((request.method, request.url.path, await request.aread(), request.headers["authorization"]))
        if request.url.path == "/api/x":
            return httpx.Response(status, headers={"location": "/api/y"})
        return httpx.Response(200, json={})

    answer = ask(hub, method="POST", content=lines, has_effect=True)
    assert answer.is_success  # type: ignore[attr-defined]
    assert sent == [("POST", path, b"a\nb\n", "Bearer hf_secret") for path in ("/api/x", "/api/y")]


@pytest.mark.parametrize(("status", "location"), [(307, "https://evil.test/x"), (302, "/api/y")])
def test_a_commit_is_sent_on_to_the_hub_alone_and_never_without_its_body(status: int, location: str) -> None:
    asked: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(status, headers={"location": location})

    error = ask(server, method="POST", content=lines, has_effect=True)
    assert type(error) is TransientError
    assert asked == ["https://hub.test/api/x"]


def test_a_circle_of_redirects_ends() -> None:
    error = ask(lambda request: httpx.Response(302, headers={"location": "/api/x"}))
    assert "circle" in str(error)


def test_a_huge_answer_is_not_read_to_its_end() -> None:
    async def endless() -> object:
        while True:
            yield b"x" * 1_000_000

    error = ask(lambda request: httpx.Response(200, content=endless()), max_body=5_000_000, has_effect=True)
    assert isinstance(error, AmbiguousError)


def test_an_answer_that_is_no_json_is_a_proxys() -> None:
    answer = ask(lambda request: httpx.Response(200, text="<html>log in to the wifi"))
    with pytest.raises(TransientError, match="not JSON"):
        answer.decode("it", Any)  # type: ignore[attr-defined]
    with pytest.raises(AmbiguousError):
        answer.decode("it", Any, has_effect=True)  # type: ignore[attr-defined]


@pytest.mark.parametrize("effect", [False, True])
def test_a_connection_that_was_never_made_had_no_effect(effect: bool) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    error = ask(refuse, has_effect=effect)
    assert type(error) is TransientError


def test_a_connection_that_broke_may_have_had_one() -> None:
    def reset(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset")

    assert type(ask(reset, has_effect=True)) is AmbiguousError
    assert type(ask(reset)) is TransientError


def download(handler: Callable[[httpx.Request], httpx.Response]) -> bytes | HubError:
    """What `download` takes from a server that behaves like `handler`."""
    taken: list[bytes] = []

    async def main() -> bytes | HubError:
        http = HubHTTP("https://hub.test", lambda: "hf_secret", transport=httpx.MockTransport(handler))
        try:
            await http.download("it", "api/x", taken.append)
        except HubError as error:
            return error
        finally:
            await http.aclose()
        return b"".join(taken)

    return anyio.run(main)


def test_a_download_follows_to_the_store_and_leaves_the_token_behind() -> None:
    seen: list[httpx.Request] = []

    def server(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if len(seen) < 3:
            return httpx.Response(302, headers={"location": ["/api/y", "https://store.test/z"][len(seen) - 1]})
        return httpx.Response(200, content=b"x" * 50_000_000)

    assert download(server) == b"x" * 50_000_000
    assert [str(request.url) for request in seen] == [
        "https://hub.test/api/x", "https://hub.test/api/y", "https://store.test/z"
    ]  # fmt: skip
    assert [request.headers.get("authorization") for request in seen] == ["Bearer hf_secret"] * 2 + [None]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_what_the_store_refuses_may_be_a_url_that_ran_out(status: int) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        if request.url.host == "hub.test":
            return httpx.Response(302, headers={"location": "https://store.test/z"})
        return httpx.Response(status, text="<Error>AccessDenied</Error>")

    assert type(download(server)) is TransientError
    assert isinstance(download(lambda request: httpx.Response(status)), BlockedError)


@pytest.mark.parametrize(
    "location", ["http://store.test/z", "ftp://store.test/z", "file:///etc/passwd", "/api/x", "//[x", "//h:99999/"]
)
def test_a_download_is_sent_nowhere_unsafe(location: str) -> None:
    asked: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(302, headers={"location": location})

    assert type(download(server)) is TransientError
    assert set(asked) == {"hub.test"}


@pytest.mark.parametrize("location", ["//[x", "https://h:99999/", "/" + "x" * 70_000])
def test_a_redirect_that_can_not_be_read_is_transient(location: str) -> None:
    error = ask(lambda request: httpx.Response(302, headers={"location": location}))
    assert type(error) is TransientError


def test_a_download_that_breaks_off_is_transient() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise httpx.ReadError("reset")

    assert type(download(lambda request: httpx.Response(200, content=broken()))) is TransientError
