"""The control API under `/_localhub/`: what a process other than the Hub's own can see and make go wrong, in JSON.

health: GET {"status": "ok", "held": 0}
requests: GET {"counters": {"commit": 3}, "requests": [{...}]}, with `?operation=commit` for one; DELETE forgets them
faults: GET [{"id": 1, "kind": "status", "seen": 4, "struck": 2, ...}]; POST one fault (the fields of `Fault`) {"id": 1}
faults: DELETE forgets all and releases, DELETE faults/{id} forgets one
release: POST ends hangs and lets late effects land
"""

from __future__ import annotations

import json
from urllib.parse import parse_qs

from starlette.responses import Response
from starlette.types import Receive, Scope

from hubsync.localhub.faults import Fault, Faults
from hubsync.localhub.record import RequestLog
from hubsync.localhub.routing import json_response

_PREFIX = "/_localhub/"
_BODY_BYTES = 1 << 20


async def answer(scope: Scope, receive: Receive, faults: Faults, log: RequestLog) -> Response | None:
    """The answer to a control request, or None where the path is not one. Faults never touch these."""
    name, _, rest = scope["path"].removeprefix(_PREFIX).partition("/")
    method = scope["method"]
    if name == "health":
        return json_response({"status": "ok", "held": faults.held})
    if name == "requests":
        if method == "DELETE":
            log.clear()
            return json_response({})
        operation = parse_qs(scope["query_string"].decode()).get("operation", [None])[0]
        return json_response(
            {"counters": log.counters(), "requests": [item._asdict() for item in log.served(operation)]}
        )
    if name == "release" and method == "POST":
        faults.release()
        return json_response({})
    if name == "faults":
        return await _faults(method, rest, receive, faults)
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
    body = bytearray()
    while len(body) < _BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    try:
        value = json.loads(body)
        if not isinstance(value, dict):
            raise ValueError("a fault is a JSON object")
        return json_response({"id": faults.add(Fault.from_json(value))})
    except ValueError as error:
        return json_response({"error": str(error)}, status=400)
