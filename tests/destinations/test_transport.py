"""One request: redirects, downloads, lost responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import httpx
import pytest

from hubsync import (
    BlockedError,
    HubError,
    TransientError,
)
from hubsync.destinations.hub.transport import HubHTTP
from hubsync.errors import AmbiguousError

Handler = Callable[[httpx.Request], httpx.Response] | Callable[[httpx.Request], Awaitable[httpx.Response]]


def ask(handler: Handler, **how: object) -> object:
    """Return what `send` returns or raises for a server that behaves like `handler`."""

    async def main() -> object:
        http = HubHTTP("https://hub.test", lambda: "hf_secret", transport=httpx.MockTransport(handler))
        try:
            return await http.send("it", how.pop("method", "GET"), "api/x", **how)  # type: ignore[arg-type]
        except HubError as error:
            return error
        finally:
            await http.aclose()

    return anyio.run(main)


def test_the_token_is_sent_to_the_hub_only() -> None:
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


def test_a_redirect_within_the_hub_is_followed() -> None:
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
def test_a_commit_to_a_renamed_repo_is_sent_again_with_its_whole_body(status: int) -> None:
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
def test_a_commit_follows_redirects_only_within_the_hub_and_with_its_body(status: int, location: str) -> None:
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


def test_a_huge_response_is_not_read_to_its_end() -> None:
    async def endless() -> object:
        while True:
            yield b"x" * 1_000_000

    error = ask(lambda request: httpx.Response(200, content=endless()), max_body=5_000_000, has_effect=True)
    assert isinstance(error, AmbiguousError)


def test_a_response_that_is_not_json_is_transient() -> None:
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


def test_a_connection_that_broke_may_have_had_an_effect() -> None:
    def reset(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadError("reset")

    assert type(ask(reset, has_effect=True)) is AmbiguousError
    assert type(ask(reset)) is TransientError


def download(handler: Callable[[httpx.Request], httpx.Response]) -> bytes | HubError:
    """Return what `download` receives from a server that behaves like `handler`, or its error."""
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


def test_a_download_follows_redirects_to_a_store_without_the_token() -> None:
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
def test_a_stores_rejection_is_transient_because_its_url_may_have_expired(status: int) -> None:
    def server(request: httpx.Request) -> httpx.Response:
        if request.url.host == "hub.test":
            return httpx.Response(302, headers={"location": "https://store.test/z"})
        return httpx.Response(status, text="<Error>AccessDenied</Error>")

    assert type(download(server)) is TransientError
    assert isinstance(download(lambda request: httpx.Response(status)), BlockedError)


@pytest.mark.parametrize(
    "location", ["http://store.test/z", "ftp://store.test/z", "file:///etc/passwd", "/api/x", "//[x", "//h:99999/"]
)
def test_a_download_does_not_follow_unsafe_redirects(location: str) -> None:
    asked: list[str] = []

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.host)
        return httpx.Response(302, headers={"location": location})

    assert type(download(server)) is TransientError
    assert set(asked) == {"hub.test"}


@pytest.mark.parametrize("location", ["//[x", "https://h:99999/", "/" + "x" * 70_000])
def test_an_invalid_redirect_is_transient(location: str) -> None:
    error = ask(lambda request: httpx.Response(302, headers={"location": location}))
    assert type(error) is TransientError


def test_a_download_that_breaks_off_is_transient() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise httpx.ReadError("reset")

    assert type(download(lambda request: httpx.Response(200, content=broken()))) is TransientError
