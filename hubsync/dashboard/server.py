"""The page's server: one page, its style and script, and one JSON answer; on 127.0.0.1, read-only.

It can change nothing: it answers GET alone. It answers only to the names of this machine, so that no site that a
browser visits can read it under a name of its own (DNS rebinding); and the browser loads nothing from anywhere else.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hubsync.dashboard.history import Watch
from hubsync.errors import ConfigError
from hubsync.model.target import default_home

_LOOK_S = 1.0
_HOST = re.compile(rb"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?")
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
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/plots.js": ("plots.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


def app(watch: Watch) -> ASGIApp:
    """Return the ASGI app. It reads the spools once a second, however many pages are open."""
    shown: dict[str, Any] = {"body": b"", "failed": None}
    started = time.time()

    def look() -> None:
        begun = time.perf_counter()
        spools = watch.look()
        took = round((time.perf_counter() - begun) * 1000, 1)
        shown["body"] = msgspec.json.encode(
            {"now": time.time(), "started": started, "look_ms": took, "home": str(default_home()), "spools": spools}
        )

    async def look_for_ever() -> None:
        while True:
            try:
                await anyio.to_thread.run_sync(look)
                shown["failed"] = None
            except Exception as error:  # noqa: BLE001  (the page says it, and lives on)
                shown["failed"] = f"{type(error).__name__}: {error}"
            await anyio.sleep(_LOOK_S)

    @contextlib.asynccontextmanager
    async def life(_: Starlette) -> AsyncIterator[None]:
        await anyio.to_thread.run_sync(look)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look_for_ever)
            yield
            tasks.cancel_scope.cancel()

    async def spools(_: Request) -> Response:
        if shown["failed"] is not None:
            return Response(msgspec.json.encode({"error": shown["failed"]}), 500, media_type="application/json")
        return Response(shown["body"], media_type="application/json")

    routes = [Route("/api/spools", spools), *(_file(path, *what) for path, what in _FILES.items())]
    return _Guard(Starlette(routes=routes, lifespan=life))


def _file(path: str, name: str, media_type: str) -> Route:
    content = (Path(__file__).parent / name).read_bytes()

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

        hosts = [value for name, value in scope["headers"] if name == b"host"]
        answer: ASGIApp = self._inner
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0].lower()):
            answer = Response("This page answers to 127.0.0.1, localhost and [::1] alone.\n", 421)
        elif scope["method"] != "GET":
            answer = Response("This page can only be read.\n", 405, {"Allow": "GET"})
        await answer(scope, receive, send_guarded)


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
                f"cannot listen on port {port}: {error}. Choose another one with --port; 0 finds a free one."
            ) from None
        config = uvicorn.Config(
            app(Watch(directories)), log_level="warning", access_log=False, lifespan="on", server_header=False,
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        _Server(config, lambda: started(address)).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Calls `up` once it serves."""

    def __init__(self, config: uvicorn.Config, up: Callable[[], None]) -> None:
        super().__init__(config)
        self._up = up

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._up()
