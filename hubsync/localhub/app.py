"""The ASGI application: from a request to an operation, through the faults, to its handler, into the log.

Pure ASGI, because a fault must be able to abort the connection under a request, answer without the handler, or run
the handler and throw its answer away. Every answer gets `RateLimit`, `RateLimit-Policy` and `X-Request-Id` here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
import struct
import tempfile
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, NamedTuple

import anyio
import anyio.abc
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from hubsync.localhub import control
from hubsync.localhub.api import commits, discussions, files, lfs, refs, repos, xet
from hubsync.localhub.call import Call, HubError, Operation, json_response
from hubsync.localhub.control import RequestLog, Served
from hubsync.localhub.faults import Fault, Faults
from hubsync.localhub.limits import Windows
from hubsync.localhub.routing import Route, Router
from hubsync.localhub.state import HubState

_SMALL_BODY_BYTES = 256 << 20
_HUGE_BYTES = 64 << 20
_logger = logging.getLogger("hubsync.localhub")


class _Match(NamedTuple):
    operation: Operation
    route: Route | None
    params: dict[str, str]


@dataclass
class _Wire:
    """One request's two directions, with their bytes counted and, under a bandwidth fault, rationed."""

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
        if message["type"] == "http.request":
            size = len(message.get("body", b""))
            self.bytes_in += size
            self.request_ended = not message.get("more_body", False)
            await self._ration(size)
        else:
            self.request_ended = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
            given = {name.lower() for name, _ in message.get("headers", [])}
            message = {
                **message,
                "headers": [*message.get("headers", []), *(pair for pair in raw if pair[0].lower() not in given)],
            }
        else:
            size = len(message.get("body", b""))
            self.bytes_out += size
            await self._ration(size)
            if not message.get("more_body", False):
                self.end()
        await self.send_raw(message)

    def end(self) -> None:
        """Say once that the request is over, before its last byte goes: who has the answer finds it in the log."""
        if self.on_end is not None:
            on_end, self.on_end = self.on_end, None
            on_end()

    async def drain(self) -> None:
        """Take in what is left of the request: a refusal that overtakes the body would reach the client as a broken
        connection.
        """
        while not self.request_ended:
            await self.receive()

    async def abort(self) -> None:
        """End the connection with a reset, without an answer."""
        self.end()
        transport: asyncio.Transport = self.scope["state"]["transport"]
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
        # uvicorn must have seen the end before the application returns, or it would try to answer 500.
        while (await self.receive_raw())["type"] != "http.disconnect":
            pass

    async def _ration(self, size: int) -> None:
        if self.bytes_per_s is not None and size:
            await asyncio.sleep(size / self.bytes_per_s)


class App:
    """The Hub as an ASGI application. `tasks` is the owner of effects that land after their request."""

    def __init__(self, hub: HubState, faults: Faults, log: RequestLog) -> None:
        self._state = hub
        self._faults = faults
        self._log = log
        self._windows = Windows(hub.settings.requests_per_window, hub.clock)
        self._router = Router(
            [
                *commits.ROUTES, *files.ROUTES, *refs.ROUTES, *xet.ROUTES, *lfs.ROUTES,
                *discussions.ROUTES, *repos.ROUTES,
            ]
        )  # fmt: skip
        self.tasks: anyio.abc.TaskGroup | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        raw_path = scope["raw_path"].decode("ascii", "replace")
        wire = _Wire(
            scope,
            receive,
            send,
            {"X-Request-Id": _request_id(scope), "Date": formatdate(self._state.clock(), usegmt=True)},
        )
        if raw_path.startswith("/_localhub/") and (
            answer := await control.answer(scope, wire.receive, self._faults, self._log)
        ):
            await answer(scope, wire.receive, wire.send)
            return
        found = self._router.match(scope["method"], raw_path)
        match = _Match(found[0].operation, *found) if found else _Match(Operation.OTHER, None, {})
        repo = match.params.get("repo") or self._signed_repo(match, scope)
        drawn = self._faults.draw(match.operation, repo)
        wire.bytes_per_s = drawn.bytes_per_s
        wire.headers |= self._windows.take(scope, match.operation)
        struck = drawn.fault.kind if drawn.fault else None

        def log() -> None:
            sizes = (wire.bytes_in, wire.bytes_out)
            agent = dict(scope["headers"]).get(b"user-agent")
            sender = None if agent is None else agent.decode("latin-1")
            self._log.add(Served(match.operation, scope["method"], raw_path, wire.status, *sizes, repo, struck, sender))

        wire.on_end = log
        try:
            if drawn.delay_s:
                await asyncio.sleep(drawn.delay_s)
            if drawn.fault is None:
                await self._answer(match, wire, wire.receive, wire.send)
            else:
                await self._misbehave(drawn.fault, match, wire)
        finally:
            wire.end()

    def _signed_repo(self, match: _Match, scope: Scope) -> str | None:
        """The repo of a request that names it only in a signed token: to the CAS, or about a large object."""
        signed = match.params.get("ticket") or match.params.get("claims")
        if signed is None and "hub" in match.params:
            signed = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1").partition(" ")[2]
        claims = self._state.verify(signed) if signed else None
        repo = self._state.store.repo_by_id(int(claims.get("repo", 0))) if claims else None
        return None if repo is None else repo.name

    async def _answer(self, match: _Match, wire: _Wire, receive: Receive, send: Send) -> None:
        """Let the handler answer, as a Hub does that has no fault."""
        request = Request(wire.scope, receive)
        try:
            response = await self._handled(match, wire, request)
        except HubError as refusal:
            await wire.drain()
            response = refusal.response()
        except ClientDisconnect:
            return
        except Exception:
            _logger.exception("the embedded Hub failed at %s %s", wire.scope["method"], wire.scope["path"])
            await wire.drain()
            response = json_response(
                {"error": "Internal Error - We're working hard to fix this as soon as possible!"}, status=500
            )
        await response(wire.scope, receive, send)

    async def _handled(self, match: _Match, wire: _Wire, request: Request) -> Response:
        self._windows.check(wire.headers, match.operation)
        if match.route is None:
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        call = Call(match.operation, request, match.params)
        if match.route.stream is not None:
            return await match.route.stream(self._state, call)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > _SMALL_BODY_BYTES:
                raise HubError(413, "Payload Too Large")
        call.body = bytes(body)
        assert match.route.handler is not None
        return await self._state.in_thread(match.route.handler, self._state, call)

    async def _misbehave(self, fault: Fault, match: _Match, wire: _Wire) -> None:
        if fault.kind == "outage":
            await wire.abort()
            return
        if fault.kind == "late":
            await self._postpone(fault, match, wire)
            return
        if fault.kind == "hostile" and fault.shape == "truncated":
            await self._answer_half(match, wire)
            return
        if fault.when == "after":
            await self._answer(match, wire, wire.receive, _swallow)
        await wire.drain()
        if fault.kind == "hang":
            await self._hold_open(fault, wire)
        elif fault.kind == "reset":
            await wire.abort()
        elif fault.kind == "status":
            await _refusal(fault)(wire.scope, wire.receive, wire.send)
        else:
            await _hostile(fault, self._state)(wire.scope, wire.receive, wire.send)

    async def _hold_open(self, fault: Fault, wire: _Wire) -> None:
        async with anyio.create_task_group() as tasks:

            async def gone() -> None:
                while (await wire.receive_raw())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(gone)
            await self._faults.hold(fault.seconds)
            tasks.cancel_scope.cancel()
        await wire.abort()

    async def _postpone(self, fault: Fault, match: _Match, wire: _Wire) -> None:
        """Keep the whole request, answer at once, and let the handler see the request later."""
        assert self.tasks is not None
        kept = tempfile.SpooledTemporaryFile(max_size=8 << 20)  # noqa: SIM115 - the task closes it
        while not wire.request_ended:
            kept.write((await wire.receive()).get("body", b""))
        kept.seek(0)
        ended = False

        async def replay() -> Message:
            nonlocal ended
            if ended:  # who asks for more waits for the client to go, and it went long ago
                await anyio.sleep_forever()
            piece = kept.read(1 << 20)
            ended = not piece
            return {"type": "http.request", "body": piece, "more_body": not ended}

        async def land() -> None:
            with kept:
                await self._faults.hold(fault.seconds)
                await self._answer(match, wire, replay, _swallow)

        self.tasks.start_soon(land)
        if fault.code is None:
            await wire.abort()
        else:
            await _refusal(fault)(wire.scope, wire.receive, wire.send)

    async def _answer_half(self, match: _Match, wire: _Wire) -> None:
        """The real answer's head and half of its first piece, then a reset."""
        cut = False

        async def half(message: Message) -> None:
            nonlocal cut
            if cut:
                return
            if message["type"] == "http.response.body":
                body = message.get("body", b"")
                cut = True
                message = {**message, "body": body[: len(body) // 2], "more_body": True}
            await wire.send(message)

        await self._answer(match, wire, wire.receive, half)
        await wire.abort()


def _request_id(scope: Scope) -> str:
    """The id that the client gave its request, or one that contains it, as the Hub answers."""
    given = dict(scope["headers"])
    if b"x-request-id" in given:
        return str(given[b"x-request-id"].decode("latin-1"))
    trace = given.get(b"x-amzn-trace-id", b"").decode("latin-1")
    return f"Root=1-{secrets.token_hex(4)}-{secrets.token_hex(12)}" + (f";{trace}" if trace else "")


async def _swallow(message: MutableMapping[str, Any]) -> None:
    """Where the answer goes of which nobody shall hear."""


def _refusal(fault: Fault) -> Response:
    code = fault.code or 504
    if fault.body is None:
        return json_response(
            {"error": f"{code} (a fault of the embedded Hub)"}, status=code, headers=dict(fault.headers)
        )
    is_json = fault.body.lstrip().startswith(("{", "["))
    media_type = "application/json; charset=utf-8" if is_json else "text/html; charset=utf-8"
    return Response(fault.body, code, dict(fault.headers), media_type)


def _hostile(fault: Fault, hub: HubState) -> Response:
    if fault.shape == "html":
        return Response(
            "<!DOCTYPE html><html><body><h1>502 Bad Gateway</h1></body></html>", 200, media_type="text/html"
        )
    if fault.shape == "garbage":
        return Response(b'{"success": tr\xff\xfe\x00', 200, media_type="application/json")
    if fault.shape == "huge":
        return Response(json.dumps({"error": "x" * _HUGE_BYTES}), 200, media_type="application/json")
    if fault.shape == "redirect":
        return Response(b"", 302, {"Location": "http://localhub.invalid/elsewhere"})
    if fault.shape == "wrong-shape":
        return json_response([None, {"unexpected": True}])
    return Response(b"", 200, media_type="application/json")
