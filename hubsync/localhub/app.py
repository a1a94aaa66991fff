"""The ASGI application: finds a request's operation and handler, applies the faults, and writes the log.

It is pure ASGI because a fault must be able to abort the connection under a request, answer instead of the handler, or
run the handler and discard its response. Every response gets its `RateLimit`, `RateLimit-Policy` and `X-Request-Id`
here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from inspect import iscoroutinefunction
from urllib.parse import urlsplit

import anyio
import anyio.abc
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from hubsync.localhub.api import commits, discussions, files, lfs, refs, repos, xet
from hubsync.localhub.control import Control, RequestLog, Served
from hubsync.localhub.faults import Fault, Faults
from hubsync.localhub.limits import RequestWindows
from hubsync.localhub.protocol import HubError, json_response
from hubsync.localhub.routing import Call, Match, Router
from hubsync.localhub.state import HubState

_MAX_BODY_BYTES = 256 << 20
_HUGE_BYTES = 64 << 20
_logger = logging.getLogger("hubsync.localhub")


@dataclass
class _Exchange:
    """A request and its response on the wire: counted and, under a bandwidth fault, slowed down."""

    scope: Scope
    receive_raw: Receive
    send_raw: Send
    headers: dict[str, str]
    bytes_per_s: float | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    status: int = 0
    on_end: Callable[[], None] | None = None
    request_ended: bool = False

    async def receive(self) -> Message:
        message = await self.receive_raw()
        self.request_ended = message["type"] != "http.request" or not message.get("more_body", False)
        size = len(message.get("body", b""))
        self.bytes_in += size
        await self._ration(size)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", []))
            names = {name.lower() for name, _ in given}
            added = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
            message = {**message, "headers": given + [pair for pair in added if pair[0].lower() not in names]}
        else:
            size = len(message.get("body", b""))
            self.bytes_out += size
            await self._ration(size)
            if not message.get("more_body", False):
                self.end()
        await self.send_raw(message)

    async def _ration(self, size: int) -> None:
        if self.bytes_per_s is not None and size:
            await asyncio.sleep(size / self.bytes_per_s)

    def end(self) -> None:
        """Report the end, once, before the last byte is sent: a client with the response finds it in the log."""
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()

    async def drain(self) -> None:
        """Read the rest of the request: a refusal before that would look like a broken connection to the client."""
        while not self.request_ended:
            await self.receive()

    async def disconnected(self) -> None:
        """Wait until the connection has ended."""
        while (await self.receive_raw())["type"] != "http.disconnect":
            pass

    async def abort(self) -> None:
        """Reset the connection, without a response."""
        self.end()
        transport: asyncio.Transport = self.scope["state"]["transport"]
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        await self.disconnected()  # uvicorn would answer 500 if the application returned before it saw the end


class App:
    """The Hub as an ASGI application. `tasks` owns the effects that take place after their request."""

    def __init__(self, hub: HubState, faults: Faults, log: RequestLog) -> None:
        self._hub = hub
        self._faults = faults
        self._log = log
        self._control = Control(faults, hub.limits, log, urlsplit(hub.endpoint).hostname or "")
        self._windows = RequestWindows(hub.limits, hub.clock)
        modules = (commits, files, refs, xet, lfs, discussions, repos)
        self._router = Router([route for module in modules for route in module.ROUTES])
        self.tasks: anyio.abc.TaskGroup | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return
        raw_path = scope["raw_path"].decode("ascii", "replace")
        asked = Headers(scope=scope)
        headers = {"X-Request-Id": _request_id(asked), "Date": formatdate(self._hub.clock(), usegmt=True)}
        exchange = _Exchange(scope, receive, send, headers)
        try:
            controlled = await self._control.answer(scope, exchange.receive)
        except HubError as refusal:
            await exchange.drain()
            controlled = refusal.response()
        if controlled is not None:
            await controlled(scope, exchange.receive, exchange.send)
            return
        match = self._router.match(scope["method"], raw_path)
        repo = match.params.get("repo") or self._repo_of_token(match, asked)
        drawn = self._faults.draw(match.operation, repo)
        exchange.bytes_per_s = drawn.bytes_per_s
        exchange.headers |= self._windows.count(scope, match.operation)

        def log() -> None:
            request = (match.operation, scope["method"], raw_path)
            response = (exchange.status, exchange.bytes_in, exchange.bytes_out)
            fault = drawn.fault.kind if drawn.fault else None
            self._log.add(Served(*request, *response, repo, fault, asked.get("user-agent")))

        exchange.on_end = log
        try:
            if drawn.delay_s:
                await asyncio.sleep(drawn.delay_s)
            if drawn.fault is None:
                await self._answer(match, exchange, exchange.receive, exchange.send)
            else:
                await self._apply(drawn.fault, match, exchange)
        finally:
            exchange.end()

    def _repo_of_token(self, match: Match, asked: Headers) -> str | None:
        """Return the repo of a request that names it only in a signed token: to the CAS, or about a large object."""
        signed = match.params.get("ticket") or match.params.get("claims")
        if signed is None and "hub" in match.params:
            signed = asked.get("authorization", "").partition(" ")[2]
        claims = self._hub.verify(signed) if signed else None
        repo = self._hub.store.repo_by_id(int(claims.get("repo", 0))) if claims else None
        return None if repo is None else repo.name

    async def _answer(self, match: Match, exchange: _Exchange, receive: Receive, send: Send) -> None:
        """Let the handler answer, without a fault."""
        request = Request(exchange.scope, receive)
        try:
            response = await self._run_handler(match, exchange, request)
        except HubError as refusal:
            await exchange.drain()
            response = refusal.response()
        except ClientDisconnect:
            return
        except Exception:
            _logger.exception("the embedded Hub failed at %s %s", exchange.scope["method"], exchange.scope["path"])
            await exchange.drain()
            error = "Internal Error - We're working hard to fix this as soon as possible!"
            response = json_response({"error": error}, status=500)
        await response(exchange.scope, receive, send)

    async def _run_handler(self, match: Match, exchange: _Exchange, request: Request) -> Response:
        self._windows.check(exchange.headers, match.operation)
        if match.handler is None:
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        call = Call(self._hub, request, match.params)
        if iscoroutinefunction(match.handler):
            response = await match.handler(self._hub, call)
        else:
            async for piece in request.stream():
                call.body += piece
                if len(call.body) > _MAX_BODY_BYTES:
                    raise HubError(413, "Payload Too Large")
            response = await self._hub.in_thread(match.handler, self._hub, call)
        assert isinstance(response, Response)
        return response

    # Faults

    async def _apply(self, fault: Fault, match: Match, exchange: _Exchange) -> None:
        if fault.kind == "outage":
            await exchange.abort()
        elif fault.kind == "late":
            await self._answer_late(fault, match, exchange)
        elif fault.kind == "hostile" and fault.shape == "truncated":
            await self._answer_half(match, exchange)
        else:
            if fault.when == "after":
                await self._answer(match, exchange, exchange.receive, _discard)
            await exchange.drain()
            if fault.kind == "hang":
                await self._hang(fault, exchange)
            elif fault.kind == "reset":
                await exchange.abort()
            else:
                response = _refusal(fault) if fault.kind == "status" else _hostile(fault)
                await response(exchange.scope, exchange.receive, exchange.send)

    async def _hang(self, fault: Fault, exchange: _Exchange) -> None:
        """Keep the connection silent until the fault's time is over or the client has gone, then abort it."""
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                await exchange.disconnected()
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await self._faults.hold(fault.seconds)
            tasks.cancel_scope.cancel()
        await exchange.abort()

    async def _answer_late(self, fault: Fault, match: Match, exchange: _Exchange) -> None:
        """Keep the whole request, answer at once, and let the handler see the request later."""
        assert self.tasks is not None
        kept = tempfile.SpooledTemporaryFile(max_size=8 << 20)  # noqa: SIM115 - the task closes it
        while not exchange.request_ended:
            kept.write((await exchange.receive()).get("body", b""))
        kept.seek(0)
        ended = False

        async def replay() -> Message:
            nonlocal ended
            if ended:  # the next message would be the end of the connection, which has long ended
                await anyio.sleep_forever()
            piece = kept.read(1 << 20)
            ended = not piece
            return {"type": "http.request", "body": piece, "more_body": not ended}

        async def take_effect() -> None:
            with kept:
                await self._faults.hold(fault.seconds)
                await self._answer(match, exchange, replay, _discard)

        self.tasks.start_soon(take_effect)
        if fault.code is None:
            await exchange.abort()
        else:
            await _refusal(fault)(exchange.scope, exchange.receive, exchange.send)

    async def _answer_half(self, match: Match, exchange: _Exchange) -> None:
        """Send the head of the real response and half of its first piece, then reset the connection."""
        cut = False

        async def send_half(message: Message) -> None:
            nonlocal cut
            if cut:
                return
            if message["type"] == "http.response.body":
                cut = True
                body = message.get("body", b"")
                message = {**message, "body": body[: len(body) // 2], "more_body": True}
            await exchange.send(message)

        await self._answer(match, exchange, exchange.receive, send_half)
        await exchange.abort()


def _request_id(asked: Headers) -> str:
    """Return the id that the client gave its request, or one that contains the client's trace id, as the Hub does."""
    made = f"Root=1-{secrets.token_hex(4)}-{secrets.token_hex(12)}"
    return asked.get("x-request-id") or ";".join(filter(None, (made, asked.get("x-amzn-trace-id"))))


async def _discard(message: Message) -> None:
    """Drop a message of a response that the client must not see."""


def _refusal(fault: Fault) -> Response:
    code, headers = fault.code or 504, dict(fault.headers)
    if fault.body is None:
        return json_response({"error": f"{code} (a fault of the embedded Hub)"}, status=code, headers=headers)
    is_json = fault.body.lstrip().startswith(("{", "["))
    return Response(fault.body, code, headers, f"{'application/json' if is_json else 'text/html'}; charset=utf-8")


def _hostile(fault: Fault) -> Response:
    if fault.shape == "redirect":
        return Response(b"", 302, {"Location": "http://localhub.invalid/elsewhere"})
    if fault.shape == "html":
        page = "<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>"
        return Response(page, 200, media_type="text/html")
    if fault.shape == "wrong-shape":
        return json_response([None, {"unexpected": True}])
    bodies = {"garbage": b'{"success": tr\xff\xfe\x00', "empty": b""}
    body = bodies[fault.shape] if fault.shape in bodies else json.dumps({"error": "x" * _HUGE_BYTES}).encode()
    return Response(body, 200, media_type="application/json")
