"""The request log, and the control API, through which another process reads the log and sets faults and limits.

Everything is JSON under `/_localhub/`:
    GET health             {"status": "ok", "held": 0}
    GET requests           {"counters": {"commit": 3}, "requests": [{...}]}; with `?operation=commit` only those
    DELETE requests        clear the log
    GET faults             [{"id": 1, "kind": "status", "seen": 4, "struck": 2, ...}]
    POST faults            add a fault (the fields of `Fault`): {"id": 1}
    DELETE faults[/{id}]   remove all faults and release what they hold, or remove one
    POST release           end hangs, and let late effects take place
    GET limits             the fields of `Limits`
    PATCH limits           change some of them; answers with all

POST and PATCH need `Content-Type: application/json`, which a browser sends for a page of another site only after
asking, and that is never allowed. What a browser sends for such a page is refused, and so is a request to a name that a
site may have given this machine.
"""

from __future__ import annotations

import ipaddress
import re
import threading
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope

from hubsync.localhub.faults import Fault, Faults
from hubsync.localhub.limits import Limits
from hubsync.localhub.protocol import HubError, json_response

PREFIX = "/_localhub/"
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?")
_RESOURCES = ("health", "requests", "faults", "release", "limits")
_BODY_BYTES = 1 << 20
_KEPT_REQUESTS = 100_000


class Served(NamedTuple):
    """One request.

    `status` is 0 if the connection ended without a response; sizes are of the bodies, in bytes.
    """

    operation: str
    method: str
    path: str
    status: int
    bytes_in: int
    bytes_out: int
    repo: str | None
    fault: str | None
    user_agent: str | None = None


class RequestLog:
    """The last 100,000 requests, and the number of all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all requests."""
        with self._lock:
            self._served: deque[Served] = deque(maxlen=_KEPT_REQUESTS)
            self._counters: Counter[str] = Counter()

    def add(self, served: Served) -> None:
        """Log a request."""
        with self._lock:
            self._served.append(served)
            self._counters[served.operation] += 1

    def served(self, operation: str | None = None) -> tuple[Served, ...]:
        """Return all requests, or those of one operation, oldest first."""
        with self._lock:
            return tuple(item for item in self._served if operation is None or item.operation == operation)

    def counters(self) -> dict[str, int]:
        """Return the number of requests by operation, whatever their responses."""
        with self._lock:
            return dict(self._counters)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach what listens on `host`."""
    address = _ip_address(host)
    return host == "localhost" if address is None else address.is_loopback


class Control:
    """Answers the control requests of a Hub that listens on `host`; faults never affect them."""

    def __init__(self, faults: Faults, limits: Limits, log: RequestLog, host: str) -> None:
        self._faults = faults
        self._limits = limits
        self._log = log
        self._host = host

    async def answer(self, scope: Scope, receive: Receive) -> Response | None:
        """Answer a control request; return None if the path is not one.

        Raises:
            HubError: The request is refused, or any request to a host name that is not ours.
        """
        name, _, number = scope["path"].removeprefix(PREFIX).partition("/")
        controls = name in _RESOURCES
        request = Request(scope, receive)
        if controls or is_loopback(self._host):
            self._check_host(request)
        if not controls:
            return None
        handlers: dict[tuple[str, str], Callable[[Request, str, dict[str, Any]], object]] = {
            ("GET", "health"): lambda *_: {"status": "ok", "held": self._faults.held},
            ("GET", "requests"): self._requests,
            ("DELETE", "requests"): lambda *_: self._log.clear(),
            ("GET", "faults"): lambda *_: self._faults.active(),
            ("POST", "faults"): lambda request, number, body: {"id": self._faults.add(Fault.from_json(body))},
            ("DELETE", "faults"): self._remove,
            ("POST", "release"): lambda *_: self._faults.release(),
            ("GET", "limits"): lambda *_: msgspec.structs.asdict(self._limits),
            ("PATCH", "limits"): self._change,
        }
        _refuse_other_sites(request)
        handler = handlers.get((request.method, name))
        if handler is None:
            raise HubError(405, f"{request.method} is not for {name}")
        try:
            body = await _json_object(request) if request.method in ("POST", "PATCH") else {}
            result = handler(request, number, body)
            return json_response({} if result is None else result)
        except ValueError as error:
            raise HubError(400, str(error)) from None

    def _check_host(self, request: Request) -> None:
        """Refuse a request to a name that a site may have given this machine, to read the answers (421)."""
        match = _HOST.fullmatch(request.headers.get("host", ""))
        name = match[1].strip("[]").lower() if match else ""
        if name not in ("localhost", self._host) and _ip_address(name) is None:
            raise HubError(421, "This Hub answers to localhost and to IP addresses. Use one of them.")

    def _requests(self, request: Request, *_: object) -> object:
        operation = request.query_params.get("operation")
        served = [item._asdict() for item in self._log.served(operation)]
        return {"counters": self._log.counters(), "requests": served}

    def _remove(self, request: Request, number: str, body: dict[str, Any]) -> None:
        if not number:
            self._faults.clear()
        elif not (number.isdigit() and self._faults.remove(int(number))):
            raise HubError(404, f"there is no fault {number}")

    def _change(self, request: Request, number: str, body: dict[str, Any]) -> object:
        self._limits.update(**body)
        return msgspec.structs.asdict(self._limits)


def _ip_address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _refuse_other_sites(request: Request) -> None:
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "none")
    own = f"http://{request.headers.get('host', '')}"
    if site not in ("none", "same-origin") or origin not in (None, own):
        raise HubError(403, "A page of another site may not control this Hub")


async def _json_object(request: Request) -> dict[str, Any]:
    """Return the body, of a type that no form can send (415)."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HubError(415, "The Content-Type must be application/json")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _BODY_BYTES:
            raise HubError(413, "Payload Too Large")
    return msgspec.json.decode(body or b"{}", type=dict[str, Any])
