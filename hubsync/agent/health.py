"""A page of JSON that says whether the agent works, for supervisors: GET / answers 200, or 503 if it has stalled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec

from hubsync.agent.agent import Health
from hubsync.errors import ConfigError

_STALLED_S = 30.0  # without a look for changed spools
_REQUEST_S = 5.0


@contextmanager
def serve_health(host: str, port: int, health: Callable[[], Health]) -> Iterator[str]:
    """Serve within the block, in a thread; yield the address.

    Raises:
        ConfigError: the address cannot be used.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_S

        def do_GET(self) -> None:
            found = health()
            works = time.time() - found.looked_at < _STALLED_S
            body = msgspec.json.encode({"status": "ok" if works else "stalled", **found._asdict()})
            self.send_response(200 if works else 503)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Log nothing: supervisors ask every few seconds."""

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}. Choose another address with --health.") from None
    with server:
        thread = threading.Thread(target=server.serve_forever, name="hubsync health", daemon=True)
        thread.start()
        try:
            yield f"http://{host}:{server.server_address[1]}"
        finally:
            server.shutdown()
