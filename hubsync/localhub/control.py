"""The request log, and the control API, through which another process reads the log and sets faults.

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
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope

from hubsync.localhub.call import json_response
from hubsync.localhub.faults import Fault, Faults
from hubsync.localhub.limits import Limits

PREFIX = "/_localhub/"
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

    def clear(self) -> None:
        """Forget all requests."""
        with self._lock:
            self._served.clear()
            self._counters.clear()


async def answer(scope: Scope, receive: Receive, faults: Faults, limits: Limits, log: RequestLog) -> Response | None:
    """Answer a control request; return None if the path is not one. Faults never affect these requests."""
    name, _, rest = scope["path"].removeprefix(PREFIX).partition("/")
    method = scope["method"]
    if name == "health":
        return json_response({"status": "ok", "held": faults.held})
    if name == "requests" and method == "DELETE":
        log.clear()
        return json_response({})
    if name == "requests":
        operation = parse_qs(scope["query_string"].decode()).get("operation", [None])[0]
        requests = [item._asdict() for item in log.served(operation)]
        return json_response({"counters": log.counters(), "requests": requests})
    if name == "release" and method == "POST":
        faults.release()
        return json_response({})
    try:
        if name == "limits":
            if method == "PATCH":
                limits.update(**await _json_object(receive))
            return json_response(msgspec.structs.asdict(limits))
        if name == "faults":
            return await _faults(method, rest, receive, faults)
    except ValueError as error:
        return json_response({"error": str(error)}, status=400)
    return None


async def _faults(method: str, number: str, receive: Receive, faults: Faults) -> Response:
    if method == "GET":
        return json_response(faults.active())
    if method == "DELETE" and not number:
        faults.clear()
        return json_response({})
    if method == "DELETE":
        found = number.isdigit() and faults.remove(int(number))
        return json_response({} if found else {"error": f"there is no fault {number}"}, status=200 if found else 404)
    return json_response({"id": faults.add(Fault.from_json(await _json_object(receive)))})


async def _json_object(receive: Receive) -> dict[str, Any]:
    body = bytearray()
    while len(body) < _BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return msgspec.json.decode(body, type=dict[str, Any])
