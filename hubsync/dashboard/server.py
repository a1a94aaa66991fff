"""The dashboard's server: one page, its style and script, and one JSON response; on 127.0.0.1, read-only.

It accepts only GET, so a request cannot change anything. It accepts only the names of this machine as `Host`, so a
website cannot read it through a DNS name of its own (DNS rebinding), and no request of another site's page. The page
loads nothing from other servers.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubsync.dashboard.history import ALWAYS_DETAILED, SpoolHistories
from hubsync.dashboard.view import Page
from hubsync.errors import ConfigError
from hubsync.model.target import default_home

_REFRESH_S = 1.0
_HOST = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")
_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
                                 b"frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
]  # fmt: skip
_STATIC = Path(__file__).parent / "static"
_SCRIPTS = ("page", "overview", "card", "plots", "format", "dom")
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript") for name in _SCRIPTS},
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def app(histories: SpoolHistories) -> ASGIApp:
    """Return the ASGI app. It reads the spools once a second, however many pages are open."""
    started = time.time()
    refresh_ms = 0.0
    failure: str | None = None

    def refresh() -> None:
        nonlocal refresh_ms, failure
        begun = time.perf_counter()
        try:
            histories.refresh()
            failure = None
        except Exception as error:  # noqa: BLE001  (the page reports it; the next refresh may succeed)
            failure = f"{type(error).__name__}: {error}"
        refresh_ms = round((time.perf_counter() - begun) * 1000, 1)

    async def refresh_forever() -> None:
        while True:
            await anyio.to_thread.run_sync(refresh)
            await anyio.sleep(_REFRESH_S)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(refresh)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(refresh_forever)
            yield
            tasks.cancel_scope.cancel()

    async def spools(request: Request) -> Response:
        if failure is not None:
            return Response(msgspec.json.encode({"error": failure}), 500, media_type="application/json")
        detailed = request.query_params.getlist("detail")[:ALWAYS_DETAILED]
        page = Page(time.time(), started, refresh_ms, str(default_home()), histories.views(detailed))
        return Response(msgspec.json.encode(page), media_type="application/json")

    routes = [Route("/api/spools", spools), *(_file(path, *what) for path, what in _FILES.items())]
    return _Guard(Starlette(routes=routes, lifespan=lifespan))


def _file(path: str, name: str, media_type: str) -> Route:
    content = (_STATIC / name).read_bytes()

    async def answer(_: Request) -> Response:
        return Response(content, media_type=media_type)

    return Route(path, answer)


class _Guard:
    """Allows only GET to this machine's own names, and adds the headers to every response."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        answer: ASGIApp = self._inner
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0].lower()):
            answer = Response("This page is only served under the names 127.0.0.1, localhost and [::1].\n", 421)
        elif _is_for_another_site(headers):
            answer = Response("No page of another site may read this one.\n", 403)
        elif scope["method"] != "GET":
            answer = Response("This page is read-only: use GET.\n", 405, {"Allow": "GET"})
        await answer(scope, receive, send_guarded)


def _is_for_another_site(headers: Headers) -> bool:
    """Return whether the request comes from a page of another site and is more than a click on a link to this page."""
    own = f"http://{headers['host']}"
    follows = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    is_own = headers.get("sec-fetch-site", "none") in ("none", "same-origin")
    return headers.get("origin", own) != own or not (is_own or follows)


def serve(
    directories: Sequence[Path] = (), port: int = 0, started: Callable[[str], None] = lambda address: None
) -> None:
    """Serve until SIGTERM or Ctrl-C; call `started` with the address once the server listens.

    Raises:
        ConfigError: The port is in use.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with listener:
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(128)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on port {port}: {error}. Choose another with --port; 0 takes a free one."
            ) from None
        config = uvicorn.Config(
            app(SpoolHistories(directories)), log_level="warning", access_log=False, lifespan="on", server_header=False,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        _Server(config, lambda: started(address)).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Calls `started` once it listens."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._started()
